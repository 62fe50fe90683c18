"""Pictures of a training: matches with their epipolar lines, scores and keypoints (SCFeat, figure 7)."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

SHOWN = 12  # matches in a picture
GAP_PX = 8
LINE_TYPE = cv2.LINE_AA


def line_picture(
    image0: UInt8[np.ndarray, "h w 3"],
    image1: UInt8[np.ndarray, "h w 3"],
    points0: Float[np.ndarray, "n 2"],
    points1: Float[np.ndarray, "n 2"],
    lines1: Float[np.ndarray, "n 3"],
    shown: Bool[np.ndarray, " n"],
) -> UInt8[np.ndarray, "h w2 3"]:
    """Both images side by side: some points on the left; their lines, and circles at their matches, on the right."""
    left, right = image0.copy(), image1.copy()
    some = np.flatnonzero(shown)
    some = some[np.unique(np.linspace(0, len(some) - 1, min(SHOWN, len(some))).astype(int))] if len(some) else some
    for number, index in enumerate(some):
        colour = _colour(number, len(some))
        ends = _ends(lines1[index], right.shape[1])
        if ends is not None:
            cv2.line(right, *ends, colour, 1, LINE_TYPE)
        for picture, point in ((left, points0[index]), (right, points1[index])):
            cv2.circle(picture, _pixel(point), 4, colour, 2, LINE_TYPE)
    return _beside(left, right)


def keypoint_picture(
    image: UInt8[np.ndarray, "h w 3"], scores: Float[np.ndarray, "h w"], keypoints: Float[np.ndarray, "n 2"]
) -> UInt8[np.ndarray, "h w2 3"]:
    """The scores as a heat map, and the keypoints in the image."""
    low, high = np.percentile(scores, (1, 99.5))
    grey = np.clip(255 * (scores - low) / max(high - low, 1e-9), 0, 255).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    right = image.copy()
    for point in keypoints:
        cv2.circle(right, _pixel(point), 2, (0, 255, 0), 1, LINE_TYPE)
    return _beside(heat, right)


def _beside(left: UInt8[np.ndarray, "h w 3"], right: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w2 3"]:
    gap = np.full((left.shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _colour(number: int, count: int) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(number / max(count, 1), 0.9, 1.0)
    return int(255 * r), int(255 * g), int(255 * b)


def _pixel(point: Float[np.ndarray, "2"]) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def _ends(line: Float[np.ndarray, "3"], width: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Where the line a x + b y + c = 0 is at the left and at the right border (far up or down for a steep one)."""
    a, b, c = (float(v) for v in line)
    far = 1e4
    if abs(b) < 1e-9 * abs(a):
        return (round(-c / a), -int(far)), (round(-c / a), int(far))
    if b == 0:
        return None
    heights = [float(np.clip(-(a * x + c) / b, -far, far)) for x in (0, width - 1)]
    return (0, round(heights[0])), (width - 1, round(heights[1]))
