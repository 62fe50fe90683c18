"""Validation of SCFeat's maps: unrestricted nearest neighbours, checked against the known geometry."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from featkit.data.posed_samples import HomographyBatch, PosedBatch
from featkit.geometry.batched import epipolar_lines, point_line_distance, sample_map
from featkit.losses.two_views import inside_image, mask_at

GRID_PX = 8  # between query points
TOLERANCE_PX = 4.0  # one cell of the maps
RIGHT_PX = 2.0  # as in the reward (SCFeat, eq. 18)
KEYPOINTS = 512  # of an image, at most
NMS_PX = 5


def wrong_share(maps: Float[Tensor, "2 c h w"], batch: HomographyBatch) -> float:
    """Share of the points of view 0 visible in view 1 whose nearest neighbour is off by more than one cell."""
    size = batch.images0.shape[2], batch.images0.shape[1]
    points, matched = nearest_neighbours(maps, size)
    projected = torch.cat([points, torch.ones_like(points[..., :1])], -1) @ batch.homographies01[0].to(points).T
    true = projected[..., :2] / projected[..., 2:]
    visible = (
        mask_at(batch.valid0[:, None].to(points.device), points) & inside_image(true, size) & (projected[..., 2] > 0)
    )
    visible &= mask_at(batch.valid1[:, None].to(points.device), true)
    wrong = (matched - true).norm(dim=-1) > TOLERANCE_PX
    return _share_among(wrong, visible)


def off_line_share(maps: Float[Tensor, "2 c h w"], batch: PosedBatch) -> float:
    """Share of the points of image 0 whose nearest neighbour is more than one cell from the epipolar line."""
    size = batch.images0.shape[2], batch.images0.shape[1]
    points, matched = nearest_neighbours(maps, size)
    lines = epipolar_lines(points, batch.fundamentals01.to(points.device))
    off = point_line_distance(matched, lines) > TOLERANCE_PX
    return _share_among(off, mask_at(batch.valid0[:, None].to(points.device), points))


def unmatched_share(scores: Float[Tensor, "2 1 h w"], maps: Float[Tensor, "2 c h4 w4"], batch: PosedBatch) -> float:
    """Share of the strongest keypoints of image 0 without a correct match.

    A correct match is a mutual nearest neighbour among the strongest of image 1, both within `RIGHT_PX` of the
    other's epipolar line.
    """
    size = batch.images0.shape[2], batch.images0.shape[1]
    shown = torch.stack([batch.valid0, batch.valid1]).to(scores.device)
    points0, points1 = strongest(torch.where(shown, scores, 0.0))
    if not (len(points0) and len(points1)):
        return 1.0
    descriptors = [
        F.normalize(sample_map(maps[i : i + 1], points[None], size)[0], dim=1)
        for i, points in enumerate((points0, points1))
    ]
    similar = descriptors[0] @ descriptors[1].T
    best = similar.argmax(1)
    mutual = similar.argmax(0)[best] == torch.arange(len(best), device=best.device)
    fundamental = batch.fundamentals01.to(scores.device)
    distance1 = point_line_distance(points1[best][None], epipolar_lines(points0[None], fundamental))
    distance0 = point_line_distance(points0[None], epipolar_lines(points1[best][None], fundamental.mT))
    correct = mutual & (distance1 < RIGHT_PX)[0] & (distance0 < RIGHT_PX)[0]
    return 1.0 - float(correct.double().mean())


def strongest(scores: Float[Tensor, "b 1 h w"], count: int = KEYPOINTS) -> list[Float[Tensor, "n 2"]]:
    """The `count` highest local maxima of each image (or all, if there are fewer), in pixels."""
    peak = (scores == F.max_pool2d(scores, NMS_PX, 1, NMS_PX // 2)) & (scores > 0)
    keypoints = []
    for score_map, is_peak in zip(scores[:, 0], peak[:, 0], strict=True):
        y, x = is_peak.nonzero(as_tuple=True)
        order = score_map[y, x].topk(min(count, len(x))).indices
        keypoints.append(torch.stack([x, y], dim=-1)[order].to(scores.dtype))
    return keypoints


def nearest_neighbours(
    maps: Float[Tensor, "2 c h w"], size: tuple[int, int]
) -> tuple[Float[Tensor, "1 n 2"], Float[Tensor, "1 n 2"]]:
    """Points on a grid of image 0, and the cells of image 1 whose vectors are most similar to theirs, in pixels."""
    width, height = size
    x = torch.arange(GRID_PX // 2, width, GRID_PX, device=maps.device, dtype=maps.dtype)
    y = torch.arange(GRID_PX // 2, height, GRID_PX, device=maps.device, dtype=maps.dtype)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(1, -1, 2)
    queries = F.normalize(sample_map(maps[:1], points, size)[0], dim=1)
    targets = F.normalize(maps[1].flatten(1), dim=0)
    place = (queries @ targets).argmax(1)
    columns, rows = maps.shape[3], maps.shape[2]
    cell = torch.tensor([width / columns, height / rows], device=maps.device, dtype=maps.dtype)
    matched = (torch.stack([place % columns, place // columns], dim=-1) + 0.5) * cell - 0.5
    return points, matched[None]


def _share_among(of: Bool[Tensor, "1 n"], among: Bool[Tensor, "1 n"]) -> float:
    """Share of `among` that is also in `of`; 1 if `among` is empty."""
    count = int(among.sum())
    return float(np.float64(int((of & among).sum())) / count) if count else 1.0


# ----------------------------------------------------------------------------------------------------------------------
# Visualisations during training: matches with their epipolar lines, scores and keypoints (SCFeat, figure 7).


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
    """Both images concatenated: some points on the left; their lines, and circles at their matches, on the right."""
    left, right = image0.copy(), image1.copy()
    chosen = np.flatnonzero(shown)
    chosen = (
        chosen[np.unique(np.linspace(0, len(chosen) - 1, min(SHOWN, len(chosen))).astype(int))]
        if len(chosen)
        else chosen
    )
    for number, index in enumerate(chosen):
        colour = _hue_colour(number, len(chosen))
        ends = _border_points(lines1[index], right.shape[1])
        if ends is not None:
            cv2.line(right, *ends, colour, 1, LINE_TYPE)
        for picture, point in ((left, points0[index]), (right, points1[index])):
            cv2.circle(picture, _rounded_point(point), 4, colour, 2, LINE_TYPE)
    return _concatenate_pictures(left, right)


def keypoint_picture(
    image: UInt8[np.ndarray, "h w 3"], scores: Float[np.ndarray, "h w"], keypoints: Float[np.ndarray, "n 2"]
) -> UInt8[np.ndarray, "h w2 3"]:
    """The scores as a heat map, and the keypoints in the image."""
    low, high = np.percentile(scores, (1, 99.5))
    grey = np.clip(255 * (scores - low) / max(high - low, 1e-9), 0, 255).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    right = image.copy()
    for point in keypoints:
        cv2.circle(right, _rounded_point(point), 2, (0, 255, 0), 1, LINE_TYPE)
    return _concatenate_pictures(heat, right)


def _concatenate_pictures(
    left: UInt8[np.ndarray, "h w 3"], right: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h w2 3"]:
    gap = np.full((left.shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _hue_colour(number: int, count: int) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(number / max(count, 1), 0.9, 1.0)
    return int(255 * r), int(255 * g), int(255 * b)


def _rounded_point(point: Float[np.ndarray, "2"]) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def _border_points(line: Float[np.ndarray, "3"], width: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Points of the line a x + b y + c = 0 at the left and right border (far outside the image for a steep one)."""
    a, b, c = (float(v) for v in line)
    far = 1e4
    if abs(b) < 1e-9 * abs(a):
        return (round(-c / a), -int(far)), (round(-c / a), int(far))
    if b == 0:
        return None
    heights = [float(np.clip(-(a * x + c) / b, -far, far)) for x in (0, width - 1)]
    return (0, round(heights[0])), (width - 1, round(heights[1]))
