"""From measured rows to growth, and from growth to maps of up to a million photographs on paper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

TARGETS = (10_000, 100_000, 1_000_000)
Row = dict[str, Any]


@dataclass(frozen=True)
class Assumptions:
    """What a photograph and a pair of a real collection are taken to be. Bytes are decimal: 1 GB is 10^9."""

    photo_mb: float = 4.0
    """A JPEG of 12 to 16 megapixels."""
    keypoints: int = 2048
    """Of an image."""
    dims: int = 128
    """Numbers of a descriptor, 2 bytes each."""
    pairs_per_image: float = 40.0
    """Different pairs divided by images."""
    matches: int = 300
    """Of a pair, before verification."""
    extract_core_s: float = 1.5
    """To decode a photograph and to detect and describe its keypoints, on one core."""
    vector_dims: int = 4096
    """Numbers of an image's vector in retrieval, 2 bytes each (64 clusters x 64)."""
    cluster_images: int = 500
    overlap: int = 50
    """Images that a cluster shares with others; it is mapped anew for each."""
    node_cores: int = 32
    """Of one machine, where hours are those of several."""


def growth(rows: Iterable[Row], key: str = "seconds") -> dict[str, Any] | None:
    """Least squares of log(value) over log(images), over rows that ended: value = factor x images^exponent."""
    done = [row for row in rows if row.get("stopped_after_s") is None and row.get(key)]
    if len({row["images"] for row in done}) < 2:
        return None
    x, y = (np.log([float(row[name]) for row in done]) for name in ("images", key))
    exponent, offset = np.polyfit(x, y, 1)
    return {
        "factor": float(np.exp(offset)),
        "exponent": round(float(exponent), 3),
        "from_images": sorted(row["images"] for row in done),
        "worst_ratio": round(float(np.exp(np.abs(y - exponent * x - offset).max())), 3),
    }


def straight(rows: Iterable[Row], key: str = "peak_memory_mb") -> dict[str, Any] | None:
    """Least squares of value = base + per_1000 x images / 1000, over rows that ended."""
    done = [row for row in rows if row.get("stopped_after_s") is None]
    if len({row["images"] for row in done}) < 2:
        return None
    per_1000, base = np.polyfit([row["images"] / 1000 for row in done], [row[key] for row in done], 1)
    return {"base": round(float(base), 1), "per_1000": round(float(per_1000), 1)}


def fits(rows: list[Row]) -> dict[str, Any]:
    """For every stage: seconds as a power of the images; memory and bytes on disk as a straight line."""
    found = {}
    for stage in dict.fromkeys(row["stage"] for row in rows):
        of_it = [row for row in rows if row["stage"] == stage]
        found[stage] = {
            "seconds": growth(of_it),
            "memory_mb": straight(of_it),
            "disk_bytes": straight(of_it, "disk_bytes"),
        }
    return found


def extrapolated(found: dict[str, Any], targets: Iterable[int] = TARGETS) -> list[Row]:
    """The fits carried on, the same images more of them, on the machine that measured: hours, and memory in GB."""
    rows = []
    for images in targets:
        for stage, fit in found.items():
            seconds, memory = fit["seconds"], fit["memory_mb"]
            if stage == "survey" or seconds is None or memory is None:
                continue
            hours = seconds["factor"] * images ** seconds["exponent"] / 3600
            memory_gb = (memory["base"] + memory["per_1000"] * images / 1000) / 1e3
            rows.append({"images": images, "stage": stage, "hours": hours, "memory_gb": memory_gb})
    return rows


def unit_costs(rows: list[Row], search: Row, cores: int, keypoints: float, dims: int) -> dict[str, float] | None:
    """Core-seconds of one image, pair or cluster as measured, of the largest size that ended.

    None when a stage did not end at any size. keypoints, dims: of an image and of its descriptors, as measured.
    """
    largest: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["images"]):
        if row.get("stopped_after_s") is None:
            largest[row["stage"]] = row
    if not {"pairs", "match", "verify", "map incremental"} <= largest.keys():
        return None
    pairs, match, verify = (largest[name] for name in ("pairs", "match", "verify"))
    mapped = growth(row for row in rows if row["stage"] == "map incremental")
    at_cluster = None if mapped is None else mapped["factor"] * 550 ** mapped["exponent"]
    searched = cores * search["seconds"] / search["vectors"] ** 2
    product = searched * keypoints**2 * dims / Assumptions.vector_dims  # of a pair: the same work, shorter vectors
    vectors_s = max(0.0, cores * pairs["seconds"] - searched * pairs["images"] ** 2)
    return {
        "keypoints": keypoints,
        "describe_image_core_s": vectors_s / pairs["images"],
        "search_core_s_per_image_squared": searched,
        "match_pair_core_s": cores * match["seconds"] / match["pairs"],
        "match_product_core_s": product,
        "verify_pair_core_s": cores * verify["seconds"] / verify["pairs"],
        "matches_of_a_pair": verify["matches"] / verify["pairs"],
        "map_cluster_core_s": cores * (at_cluster or largest["map incremental"]["seconds"]),
    }


def on_paper(unit: dict[str, float], given: Assumptions, targets: Iterable[int] = TARGETS) -> list[Row]:
    """Core-hours of every stage, hours of machines, disk and network of a collection of photographs.

    The matrix product of a pair grows with the square of the keypoints, what else its matching takes (reading and
    writing) with them; its verification with its matches, a cluster's map and an image's vector with the keypoints;
    the search of retrieval with the square of the images.
    """
    rows = []
    dense = given.keypoints / unit["keypoints"]
    product = unit["match_product_core_s"]
    match_pair = product * dense**2 + max(0.0, unit["match_pair_core_s"] - product) * dense
    for images in targets:
        pairs = given.pairs_per_image * images
        clusters = max(1.0, images / (given.cluster_images - given.overlap))
        core_s = {
            "extract": images * given.extract_core_s,
            "describe": images * unit["describe_image_core_s"] * dense,
            "search": images**2 * unit["search_core_s_per_image_squared"],
            "match": pairs * match_pair,
            "verify": pairs * unit["verify_pair_core_s"] * given.matches / unit["matches_of_a_pair"],
            "clusters": clusters * unit["map_cluster_core_s"] * dense,
        }
        feature_bytes = images * given.keypoints * (2 * given.dims + 8 + 4 + 8)  # xy, score, scale and angle
        match_bytes = pairs * given.keypoints * 8  # an index and a score for every keypoint of the first image
        database_bytes = images * given.keypoints * 8 + pairs * given.matches * 16  # matches twice: all, and verified
        rows.append(
            {
                "images": images,
                "pairs": pairs,
                "core_hours": {name: seconds / 3600 for name, seconds in core_s.items()},
                "node_hours": sum(core_s.values()) / 3600 / given.node_cores,
                "photographs_tb": images * given.photo_mb / 1e6,
                "features_tb": feature_bytes / 1e12,
                "matches_tb": match_bytes / 1e12,
                "database_tb": database_bytes / 1e12,
                "vectors_gb": images * given.vector_dims * 2 / 1e9,
                # in: photographs once; features once out, and once in for matching by blocks of images that stand
                # together; matches once out and once in
                "network_tb": (images * given.photo_mb * 1e6 + 2 * feature_bytes + 2 * match_bytes) / 1e12,
            }
        )
    return rows


def described(given: Assumptions) -> dict[str, Any]:
    """The assumptions, for the result file."""
    return asdict(given)
