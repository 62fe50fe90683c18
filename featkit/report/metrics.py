"""metrics.json: what a run came to, in plain values. Lengths in the unit of the map or the truth, as named."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from featkit import __version__
from featkit.evaluation.localization import LocalizationScore
from featkit.localization.localize import QueryResult
from featkit.mapping.align import PoseErrors, compare_with_truth
from featkit.mapping.database import count_verified
from featkit.mapping.model import read_model
from featkit.mapping.statistics import map_statistics
from featkit.types import Pose


def map_metrics(
    sparse: Path, database: Path, images: int, truth: dict[str, Pose] | None, align: bool
) -> dict[str, Any]:
    """Statistics of every model, the largest first; camera errors of the largest when the truth is known.

    align: whether the map is moved onto the truth by a similarity first.
    """
    folders = sorted((path for path in sparse.iterdir() if path.is_dir()), key=lambda path: int(path.name))
    largest = read_model(folders[0])
    statistics = [map_statistics(largest, images)]
    statistics += [map_statistics(read_model(folder), images) for folder in folders[1:]]  # one in memory at a time
    verified, inliers = count_verified(database)
    metrics: dict[str, Any] = {
        "featkit_version": __version__,
        **asdict(statistics[0]),
        "verified_pairs": verified,
        "inlier_matches": inliers,
        "models": [asdict(one) for one in statistics],
        **peak_memory(),
    }
    if truth is not None:
        metrics["truth"] = error_summary(compare_with_truth(largest, truth, align))
    return metrics


def error_summary(errors: PoseErrors) -> dict[str, Any]:
    """Means, medians and maxima of camera errors, and the errors of every image."""
    return {
        "cameras": len(errors.names),
        "centre_mean": float(np.mean(errors.centre)),
        "centre_median": float(np.median(errors.centre)),
        "centre_max": float(np.max(errors.centre)),
        "rotation_deg_mean": float(np.mean(errors.rotation_deg)),
        "rotation_deg_max": float(np.max(errors.rotation_deg)),
        "per_image": {
            name: {"centre": float(centre), "rotation_deg": float(angle)}
            for name, centre, angle in zip(errors.names, errors.centre, errors.rotation_deg, strict=True)
        },
    }


def localization_metrics(
    results: Sequence[QueryResult], score: LocalizationScore | None, seconds: dict[str, float]
) -> dict[str, Any]:
    """How many queries were localized; recall and medians (metres, degrees) when the truth is known."""
    localized = [result.name for result in results if result.pose is not None]
    metrics: dict[str, Any] = {
        "featkit_version": __version__,
        "queries": len(results),
        "localized": len(localized),
        "failed": {result.name: result.reason for result in results if result.pose is None},
        "seconds": seconds,
        **peak_memory(),
    }
    if score is not None:
        metrics |= {
            "judged": score.queries,
            "recall": {
                f"{metres:g} m, {degrees:g} deg": share
                for (metres, degrees), share in zip(score.thresholds, score.recall, strict=True)
            },
            "median_m": _finite(score.median_m),
            "median_deg": _finite(score.median_deg),
            "errors": {name: {"m": m, "deg": deg} for name, (m, deg) in score.errors.items()},
        }
    return metrics


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def peak_memory() -> dict[str, float]:
    """Largest resident size so far, in MB (10^6 bytes): of this process, and of its largest worker that has ended."""
    return {
        "peak_memory_mb": _peak_mb(resource.RUSAGE_SELF),
        "peak_worker_memory_mb": _peak_mb(resource.RUSAGE_CHILDREN),
    }


def _peak_mb(who: int) -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return round(resource.getrusage(who).ru_maxrss * unit / 1e6, 1)
