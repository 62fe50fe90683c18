"""Which features of two images cover the same piece of the scene: overlap error of their regions, or distance.

A feature's region is a circle around it. That of image 1 (a circle) is compared with that of image N, mapped into image
1 by the true homography's local affine map (an ellipse). Overlap error: 1 - area of the intersection / area of the
union (Mikolajczyk and Schmid, PAMI 2005).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from featkit.geometry.homography import apply_homography

NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)  # areas are exact to 1e-3 of the circle
CHUNK = 1024  # points, or pairs of regions, that are looked at together: what fits into a cache


def jacobians(homography: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2 2"]:
    """Derivative of a homography at points: the affine map of their surroundings."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ homography.T
    depth = homogeneous[:, 2, None, None]
    mapped = homogeneous[:, :2, None] / depth
    return (homography[None, :2, :2] - mapped * homography[None, 2:, :2]) / depth


def inside(
    points: Float[np.ndarray, "n 2"], homography: Float[np.ndarray, "3 3"], image_size: tuple[int, int]
) -> Bool[np.ndarray, " n"]:
    """Which points a homography maps into an image of that width and height."""
    mapped = apply_homography(homography, points)
    with np.errstate(invalid="ignore"):  # NaN is nowhere
        return np.all((mapped >= -0.5) & (mapped < np.asarray(image_size) - 0.5), axis=1)


def near_pairs(
    points0: Float[np.ndarray, "n 2"], points1: Float[np.ndarray, "m 2"], radius_px: float
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Indices of all pairs at most that far apart. Points that are not finite are near nothing."""
    finite0, finite1 = (np.flatnonzero(np.isfinite(points).all(axis=1)) for points in (points0, points1))
    if not len(finite0) or not len(finite1):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    cells0, cells1 = (np.floor(points / radius_px) for points in (points0[finite0], points1[finite1]))
    low = np.minimum(cells0.min(axis=0), cells1.min(axis=0)) - 1
    width = max(cells0[:, 0].max(), cells1[:, 0].max()) - low[0] + 2
    key0, key1 = ((cells - low) @ [1.0, width] for cells in (cells0, cells1))
    order = np.argsort(key1, kind="stable")
    key1, finite1 = key1[order], finite1[order]
    found = [
        _close(points0, points1, finite0[index0], finite1[index1], radius_px)
        for step in (-width, 0.0, width)  # three rows of cells; three cells of a row lie in one run
        for index0, index1 in _runs(key1, key0 + step - 1, key0 + step + 1)
    ]
    return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])


def near_regions(
    centres: Float[np.ndarray, "n 2"],
    radii: Float[np.ndarray, " n"],
    scales0: Float[np.ndarray, " n"],
    mapped: Float[np.ndarray, "m 2"],
    scales1: Float[np.ndarray, " m"],
    max_error: float,
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Pairs whose overlap error may be at most `max_error`, itself at most 0.5: all of those, and few others.

    centres, radii, scales0: of circles. mapped, scales1: of ellipses, a scale being the root of an area in the unit of
    scales0. With the ellipse's centre outside the circle, less than half of either is shared, and the error is above
    0.5; and areas that differ by more than 1 - max_error cannot be shared enough.
    """
    least = np.sqrt(1 - max_error)
    found0, found1 = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    octaves = np.floor(np.log2(np.maximum(scales0, 1e-6)))
    for octave in np.unique(octaves):  # large regions reach far, and there are few of them
        some0 = np.flatnonzero(octaves == octave)
        some1 = np.flatnonzero((scales1 >= least * 2.0**octave) & (scales1 <= 2.0 ** (octave + 1) / least))
        index0, index1 = near_pairs(centres[some0], mapped[some1], float(radii[some0].max()))
        found0.append(some0[index0])
        found1.append(some1[index1])
    index0, index1 = np.concatenate(found0), np.concatenate(found1)
    ratio = scales1[index1] / scales0[index0]
    distance = np.linalg.norm(mapped[index1] - centres[index0], axis=1)
    keep = (distance <= radii[index0]) & (ratio >= least) & (ratio <= 1 / least)
    return index0[keep], index1[keep]


def _runs(keys: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (i, j) with low[i] <= keys[j] <= high[i], a part of the i at a time; the keys ascend."""
    first, end = np.searchsorted(keys, low), np.searchsorted(keys, high, side="right")
    for start in range(0, len(low), CHUNK):
        part = slice(start, start + CHUNK)
        counts = end[part] - first[part]
        skipped = np.cumsum(counts) - counts - first[part]
        index0 = np.repeat(np.arange(start, start + len(counts)), counts)
        yield index0, np.arange(counts.sum()) - np.repeat(skipped, counts)


def _close(
    points0: np.ndarray, points1: np.ndarray, index0: np.ndarray, index1: np.ndarray, radius_px: float
) -> tuple[np.ndarray, np.ndarray]:
    difference = points0[index0] - points1[index1]
    near = np.einsum("kd,kd->k", difference, difference) <= radius_px**2
    return index0[near], index1[near]


def overlap_errors(
    offsets: Float[np.ndarray, "k 2"], shapes: Float[np.ndarray, "k 2 2"], radius_px: float
) -> Float[np.ndarray, " k"]:
    """Overlap error in [0, 1] of a circle around the origin and an ellipse, the image of the unit circle.

    offsets: centre of the ellipse minus centre of the circle. shapes: matrices that map the unit circle to the ellipse.
    """
    errors = np.ones(len(offsets))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for start in range(0, len(offsets), CHUNK):
            part = slice(start, start + CHUNK)
            area = np.pi * np.abs(np.linalg.det(shapes[part]))
            shared = _intersection(offsets[part], shapes[part], radius_px)
            errors[part] = 1 - shared / (area + np.pi * radius_px**2 - shared)
    return np.where(np.isfinite(errors), np.clip(errors, 0, 1), 1.0)


def _intersection(offsets: np.ndarray, shapes: np.ndarray, radius_px: float) -> Float[np.ndarray, " k"]:
    """Area shared by circle and ellipse: the integral, over lines of equal y, of the length that lies in both."""
    squared = shapes @ shapes.transpose(0, 2, 1)
    determinant = np.linalg.det(squared)[:, None]
    x0, y0 = offsets[:, 0, None], offsets[:, 1, None]
    # The ellipse is {d : a dx^2 + 2 b dx dy + c dy^2 <= 1} around its centre.
    a, b, c = (squared[:, row, column, None] / determinant for row, column in ((1, 1), (0, 1), (0, 0)))
    reach = np.sqrt(squared[:, 1, 1, None])  # of the ellipse, in y
    low, high = np.maximum(y0 - reach, -radius_px), np.minimum(y0 + reach, radius_px)
    angle = NODES * np.pi / 2  # y = middle + span sin(angle): at the ends the length grows like a root
    span = np.maximum(high - low, 0) / 2
    y = (low + high) / 2 + span * np.sin(angle)
    half = np.sqrt(np.maximum(radius_px**2 - y**2, 0))
    dy = y - y0
    root = np.sqrt(np.maximum((b * dy) ** 2 - a * (c * dy**2 - 1), 0)) / a
    centre = x0 + b * dy / a
    length = np.minimum(centre + root, half) - np.maximum(centre - root, -half)
    return (np.maximum(length, 0) * span * np.cos(angle) * WEIGHTS * np.pi / 2).sum(axis=1)
