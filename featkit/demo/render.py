"""Renders textured rectangles with a pinhole camera: exact rays, supersampled.

Every pixel is divided into k × k samples. A sample's ray meets the plane of a rectangle (corner o, edges u, v, in the
camera's frame) where  λ (s, t, 1) = [u v o]^-1 (x, y, 1):  s and t are the position on the rectangle in units of its
edges, and λ is the inverse depth. The nearest hit is visible. Its colour is interpolated in a box-filtered pyramid of
the texture, between the two levels whose texels are about as large as the sample (trilinear: Williams, Pyramidal
Parametrics, 1983), and a pixel is the mean of its samples. The centre of the top-left pixel is (0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int

from featkit.core.types import Pose
from featkit.geometry.pixels import COLMAP_ORIGIN
from featkit.geometry.poses import rotation_matrix
from featkit.io.lists import Intrinsics

SEAM = 1e-5  # share of an edge: rectangles with a common edge overlap by this much, so that no ray passes between them
NEAR_M = 0.05  # near plane, m
REMAP_COLUMNS = 1024  # cv2.remap does not accept sides above 32767, so samples are arranged in rows


@dataclass(frozen=True)
class Rectangle:
    """A one-sided rectangle in metres. Seen from the front: corner top left, edge_u to the right, edge_v down."""

    corner: Float[np.ndarray, "3"]
    edge_u: Float[np.ndarray, "3"]
    edge_v: Float[np.ndarray, "3"]

    def __post_init__(self) -> None:
        lengths = np.linalg.norm(self.edge_u) * np.linalg.norm(self.edge_v)
        if not lengths > 0 or abs(self.edge_u @ self.edge_v) > 1e-9 * lengths:
            raise ValueError("the edges of a rectangle must be orthogonal and not zero")

    @property
    def size_m(self) -> tuple[float, float]:
        """Lengths of edge_u and edge_v."""
        return float(np.linalg.norm(self.edge_u)), float(np.linalg.norm(self.edge_v))

    @property
    def normal(self) -> Float[np.ndarray, "3"]:
        """Unit normal of the front side."""
        normal = np.cross(self.edge_v, self.edge_u)
        return normal / np.linalg.norm(normal)

    def at(self, s: Float[np.ndarray, "..."], t: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 3"]:
        """World points at s along edge_u and t along edge_v, both 0 to 1."""
        return self.corner + s[..., None] * self.edge_u + t[..., None] * self.edge_v


@dataclass(frozen=True)
class Surface:
    """A rectangle and its texture (BGR, 0 to 255), finest level first; texel i of n is centred at (i + 0.5) / n."""

    rectangle: Rectangle
    levels: tuple[Float[np.ndarray, "h w 3"], ...]


@dataclass(frozen=True)
class Sky:
    """Background of rays that hit nothing: BGR colours, 0 to 255."""

    zenith: tuple[float, float, float] = (205.0, 150.0, 95.0)
    horizon: tuple[float, float, float] = (235.0, 225.0, 212.0)

    def colour(self, elevation: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
        """Colours for sines of the ray's elevation above the horizon (z up)."""
        share = np.sqrt(np.clip(elevation, 0.0, 1.0))[:, None]
        mixed = (1 - share) * np.array(self.horizon) + share * np.array(self.zenith)
        return mixed.astype(np.float32)


def pyramid(texture: Float[np.ndarray, "h w 3"]) -> tuple[Float[np.ndarray, "h w 3"], ...]:
    """The texture and its halvings by box filter, down to a side of 8 texels."""
    levels = [np.ascontiguousarray(texture, dtype=np.float32)]
    while min(levels[-1].shape[:2]) >= 16:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return tuple(levels)


def facing_matrix(rectangle: Rectangle, pose: Pose) -> Float[np.ndarray, "3 3"] | None:
    """[u v o]^-1 in the camera's frame, or None if the camera is behind the rectangle or in its plane."""
    rotation = rotation_matrix(pose.qvec)
    corner = rotation @ rectangle.corner + pose.tvec
    columns = np.stack([rotation @ rectangle.edge_u, rotation @ rectangle.edge_v, corner], axis=1)
    scale = rectangle.size_m[0] * rectangle.size_m[1]
    if np.linalg.det(columns) <= 1e-9 * scale:
        return None
    return np.linalg.inv(columns)


def ray_coordinates(
    camera: Intrinsics, pixels: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """x and y of the rays (x, y, 1) through featkit pixels, in the camera's frame (x right, y down)."""
    fx, fy, cx, cy = camera.params
    pixels = np.asarray(pixels, dtype=np.float64)
    return (pixels[:, 0] - (cx - COLMAP_ORIGIN)) / fx, (pixels[:, 1] - (cy - COLMAP_ORIGIN)) / fy


def first_hits(
    rectangles: Sequence[Rectangle], camera: Intrinsics, pose: Pose, pixels: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 3"]:
    """World points (metres) at the pixels; NaN where the ray hits nothing."""
    x, y = ray_coordinates(camera, pixels)
    rays = np.stack([x, y, np.ones_like(x)], axis=1)
    points = np.full((len(x), 3), np.nan)
    nearest = np.zeros(len(x))
    for rectangle in rectangles:
        matrix = facing_matrix(rectangle, pose)
        if matrix is None:
            continue
        s, t, inverse_depth = matrix @ rays.T
        hit = _hits_rectangle(s, t, inverse_depth) & (inverse_depth > nearest)
        nearest[hit] = inverse_depth[hit]
        points[hit] = rectangle.at(s[hit] / inverse_depth[hit], t[hit] / inverse_depth[hit])
    return points


def render(
    surfaces: Sequence[Surface], camera: Intrinsics, pose: Pose, supersampling: int, sky: Sky | None = None
) -> Float[np.ndarray, "h w 3"]:
    """Image taken by a PINHOLE camera: BGR float32, 0 to 255, not rounded.

    supersampling: samples per pixel and axis.
    """
    size = (camera.width * supersampling, camera.height * supersampling)
    column = (np.arange(size[0]) + 0.5) / supersampling - 0.5  # sample centres in pixels
    row = (np.arange(size[1]) + 0.5) / supersampling - 0.5
    x, _ = ray_coordinates(camera, np.stack([column, column], axis=1))
    _, y = ray_coordinates(camera, np.stack([row, row], axis=1))
    owner = _nearest_surface([surface.rectangle for surface in surfaces], pose, x, y).ravel()
    order = np.argsort(owner, kind="stable")  # groups the samples by surface
    bounds = np.searchsorted(owner[order], np.arange(-1, len(surfaces) + 1))
    colours = np.empty((owner.size, 3), dtype=np.float32)
    step = 1.0 / (camera.params[0] * supersampling)
    for index in range(-1, len(surfaces)):
        samples = order[bounds[index + 1] : bounds[index + 2]]
        if len(samples) == 0:
            continue
        row_of, column_of = np.divmod(samples, size[0])
        sample_x, sample_y = x[column_of], y[row_of]
        if index < 0:
            colours[samples] = _sky_colours(sky or Sky(), pose, sample_x, sample_y)
        else:
            colours[samples] = _surface_colours(surfaces[index], pose, sample_x, sample_y, step)
    image = colours.reshape(size[1], size[0], 3)
    # INTER_AREA by an integer factor is the plain mean of the k × k samples.
    return cv2.resize(image, (camera.width, camera.height), interpolation=cv2.INTER_AREA)


def _hits_rectangle(s: np.ndarray, t: np.ndarray, inverse_depth: np.ndarray) -> np.ndarray:
    """Whether λs, λt, λ are on the rectangle and in front of the camera (without division)."""
    low, high = -SEAM * inverse_depth, (1 + SEAM) * inverse_depth
    ahead = (inverse_depth > 0) & (inverse_depth < 1.0 / NEAR_M)
    return ahead & (s >= low) & (s <= high) & (t >= low) & (t <= high)


def _nearest_surface(
    rectangles: Sequence[Rectangle], pose: Pose, x: Float[np.ndarray, " w"], y: Float[np.ndarray, " h"]
) -> Int[np.ndarray, "h w"]:
    """Index of the first rectangle hit by every ray (x, y, 1), -1 for none."""
    nearest = np.zeros((len(y), len(x)), dtype=np.float32)
    owner = np.full(nearest.shape, -1, dtype=np.int16)
    for index, rectangle in enumerate(rectangles):
        matrix = facing_matrix(rectangle, pose)
        if matrix is None:
            continue
        rows, columns = _covered_range(rectangle, pose, x, y)
        s, t, inverse_depth = (
            (line[0] * x[columns]).astype(np.float32)[None, :]
            + (line[1] * y[rows] + line[2]).astype(np.float32)[:, None]
            for line in matrix
        )
        hit = _hits_rectangle(s, t, inverse_depth) & (inverse_depth > nearest[rows, columns])
        nearest[rows, columns][hit] = inverse_depth[hit]
        owner[rows, columns][hit] = index
    return owner


def _covered_range(rectangle: Rectangle, pose: Pose, x: np.ndarray, y: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that the rectangle may cover; all of them if it extends behind the camera."""
    ends = rectangle.at(np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0, 1.0]))
    corners = ends @ rotation_matrix(pose.qvec).T + pose.tvec
    if corners[:, 2].min() < NEAR_M:
        return slice(None), slice(None)
    slices = []
    for axis, grid in ((1, y), (0, x)):
        projected = corners[:, axis] / corners[:, 2]
        begin, end = np.searchsorted(grid, [projected.min(), projected.max()])
        slices.append(slice(max(int(begin) - 1, 0), int(end) + 1))
    return slices[0], slices[1]


def _sky_colours(sky: Sky, pose: Pose, x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "n 3"]:
    up = rotation_matrix(pose.qvec)[:, 2]  # the world's z axis in the camera's frame
    elevation = (up[0] * x + up[1] * y + up[2]) / np.sqrt(x * x + y * y + 1.0)
    return sky.colour(elevation)


def _surface_colours(
    surface: Surface, pose: Pose, x: np.ndarray, y: np.ndarray, step: float
) -> Float[np.ndarray, "n 3"]:
    """Texture colours at the rays (x, y, 1). step: distance between samples in ray coordinates."""
    matrix = facing_matrix(surface.rectangle, pose)
    assert matrix is not None  # it is visible, so it faces the camera
    s, t, depth = (line[0] * x + line[1] * y + line[2] for line in matrix)
    depth = 1.0 / depth
    s, t = s * depth, t * depth
    level = _pyramid_level(surface, matrix, s.astype(np.float32), t.astype(np.float32), depth.astype(np.float32) * step)
    return _sample_trilinear(surface.levels, s, t, level)


def _pyramid_level(
    surface: Surface, matrix: np.ndarray, s: np.ndarray, t: np.ndarray, reach: np.ndarray
) -> Float[np.ndarray, " n"]:
    """The pyramid level whose texels are as large as a sample. reach: depth times the step of the ray coordinates."""
    matrix = matrix.astype(np.float32)
    height, width = surface.levels[0].shape[:2]
    # d(s, t) / d(x, y) by the quotient rule, in texels: shift on the texture from one sample to the next.
    squared = [
        ((matrix[0, axis] - s * matrix[2, axis]) * width) ** 2 + ((matrix[1, axis] - t * matrix[2, axis]) * height) ** 2
        for axis in (0, 1)
    ]
    footprint = np.sqrt(np.maximum(*squared)) * reach
    return np.clip(np.log2(footprint), 0.0, len(surface.levels) - 1.0)


def _sample_trilinear(
    levels: tuple[np.ndarray, ...], s: np.ndarray, t: np.ndarray, level: np.ndarray
) -> Float[np.ndarray, "n 3"]:
    colours = np.empty((len(s), 3), dtype=np.float32)
    lower = level.astype(np.int8)
    for fine in range(int(lower.max()) + 1):
        index = np.flatnonzero(lower == fine)
        if len(index) == 0:
            continue
        picked = _sample_bilinear(levels[fine], s[index], t[index])
        share = (level[index] - fine).astype(np.float32)[:, None]
        if share.any():
            picked += share * (_sample_bilinear(levels[fine + 1], s[index], t[index]) - picked)
        colours[index] = picked
    return colours


def _sample_bilinear(texture: np.ndarray, s: np.ndarray, t: np.ndarray) -> Float[np.ndarray, "n 3"]:
    count = len(s)
    rows = -(-count // REMAP_COLUMNS)
    maps = np.zeros((2, rows * REMAP_COLUMNS), dtype=np.float32)
    maps[0, :count] = s * texture.shape[1] - 0.5  # texel centres at integers
    maps[1, :count] = t * texture.shape[0] - 0.5
    map_x, map_y = maps.reshape(2, rows, REMAP_COLUMNS)
    sampled = cv2.remap(texture, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return sampled.reshape(-1, 3)[:count]
