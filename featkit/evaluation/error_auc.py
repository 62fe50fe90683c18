"""Area under the curve of errors: the share of cases with an error of at most e, over e from 0 to a threshold."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def error_auc(errors: Iterable[float], thresholds: Iterable[float]) -> tuple[float, ...]:
    """Per threshold the area in [0, 1]; 0 without any case. An error of infinity or NaN is a failure.

    The rule of SuperGlue's evaluation (Sarlin et al., CVPR 2020), which later papers keep: straight lines join the
    points (sorted error, share of cases up to it), from (0, 0) on; the last share holds up to the threshold.
    """
    listed = np.asarray(list(errors), dtype=np.float64)
    listed = np.sort(np.where(np.isfinite(listed), listed, np.inf))
    share = np.arange(1, len(listed) + 1) / max(len(listed), 1)
    areas = []
    for threshold in thresholds:
        within = int(np.searchsorted(listed, threshold))
        x = np.concatenate([[0.0], listed[:within], [threshold]])
        y = np.concatenate([[0.0], share[:within], share[within - 1 : within]])
        if within == 0:
            areas.append(0.0)
            continue
        areas.append(float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold))
    return tuple(areas)
