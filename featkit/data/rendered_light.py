"""Textures with light on them: sun with a soft shadow, and sky where it is not hidden, worked out once per surface.

Light that does not depend on the viewer is part of the texture: a shadow's edge lies on the surface it falls on, and
is as good a landmark as a stone's. Lambert's cosine for the sun, ambient occlusion by rays over the half sphere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from jaxtyping import Float

from featkit.data.raycast import Rectangle, Surface, pyramid
from featkit.data.rendered_courtyard import Face
from featkit.data.textures import MATERIALS, Texture, finished, paste, texels

LIFT_M = 0.002  # m: shadow rays start this far above their own surface
SUN_SPREAD = 0.02  # deviation of the sun's direction; the real sun's is 0.005, a softer edge looks better
SUN_RAYS = 6
SKY_RAYS = 16
CORNERS = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0, 1.0])  # s and t, around a rectangle
SUN_GRID_M = 0.06  # m between the places whose shadow is worked out
SKY_GRID_M = 0.25
SUN_BGR = (0.78, 0.88, 0.94)
SKY_BGR = (0.60, 0.53, 0.48)


def textured(
    faces: Sequence[Face], texel_m: float, sun: Float[np.ndarray, "3"], seed: int, workers: int = 1
) -> tuple[Surface, ...]:
    """Every face with its material, decals and light.

    sun: unit vector towards it; texel_m: metres a texel; workers: faces painted at the same time.
    """
    rectangles = [face.rectangle for face in faces]

    def paint(index: int) -> Surface:
        rng = np.random.default_rng([seed, index])
        texture = face_texture(faces[index], texel_m, rng)
        texture *= light(rectangles[index], rectangles, texture.shape[:2], sun, rng)
        return Surface(rectangles[index], pyramid(np.clip(texture, 0.0, 255.0)))

    with ThreadPoolExecutor(workers) as pool:
        return tuple(pool.map(paint, range(len(faces))))


def face_texture(face: Face, texel_m: float, rng: np.random.Generator) -> Texture:
    """A face's own colours, unlit: BGR, 0 to 255."""
    size = face.rectangle.size_m
    texture = MATERIALS[face.material](size, texel_m, rng)
    height, width = texels(size, texel_m)
    for decal in face.decals:
        patch = MATERIALS[decal.material](decal.size, texel_m, rng)
        column, row = round(decal.place[0] / size[0] * width), round(decal.place[1] / size[1] * height)
        paste(texture, patch, (column, row))
    return finished(texture)


def light(
    rectangle: Rectangle,
    others: Sequence[Rectangle],
    shape: tuple[int, int],
    sun: Float[np.ndarray, "3"],
    rng: np.random.Generator,
) -> Texture:
    """What a texture of `shape` is multiplied by, BGR: sun and sky as they reach the rectangle."""
    normal = rectangle.normal
    sky_rays = rng.normal(size=(SKY_RAYS, 3))
    sky_rays = sky_rays / np.linalg.norm(sky_rays, axis=1, keepdims=True) + normal  # cosine-weighted about the normal
    sky = _open_share(rectangle, others, sky_rays, SKY_GRID_M)
    picture = _spread(0.25 + 0.75 * sky, shape)[..., None] * np.array(SKY_BGR, dtype=np.float32)
    cosine = float(sun @ normal)
    if cosine > 0:
        sun_rays = sun + SUN_SPREAD * rng.normal(size=(SUN_RAYS, 3))
        lit = _spread(_open_share(rectangle, others, sun_rays, SUN_GRID_M), shape)
        picture = picture + (cosine * lit)[..., None] * np.array(SUN_BGR, dtype=np.float32)
    return picture.astype(np.float32)


def _spread(coarse: Float[np.ndarray, "a b"], shape: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def _open_share(
    rectangle: Rectangle, others: Sequence[Rectangle], rays: Float[np.ndarray, "m 3"], spacing_m: float
) -> Float[np.ndarray, "a b"]:
    """For a grid of places on the rectangle the share of rays that meet no other rectangle."""
    width, height = rectangle.size_m
    rows, columns = max(2, round(height / spacing_m)), max(2, round(width / spacing_m))
    t, s = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    places = rectangle.at(s, t) + LIFT_M * rectangle.normal
    corners = np.stack([other.at(*CORNERS) for other in others])
    edges = np.stack([np.stack([other.edge_u, other.edge_v], axis=1) for other in others])
    shares = np.zeros((rows, columns), dtype=np.float32)
    for ray in rays:
        if ray @ rectangle.normal <= 0:
            continue
        hidden = np.zeros((rows, columns), dtype=bool)
        inverses = _ray_frames(edges, ray)
        for index, window in _shadow_windows(rectangle, corners, ray, (rows, columns)):
            # [u v -ray] (s, t, λ) = place - corner: where the ray from each place meets the other's plane.
            offset = (places[window] - others[index].corner) @ inverses[index].T
            s, t, length = offset[..., 0], offset[..., 1], offset[..., 2]
            hidden[window] |= (length > 0) & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
        shares += ~hidden
    return shares / len(rays)


def _ray_frames(edges: Float[np.ndarray, "m 3 2"], ray: Float[np.ndarray, "3"]) -> Float[np.ndarray, "m 3 3"]:
    """[u v -ray]^-1 of every rectangle; NaN, which meets nothing, where the ray runs along the rectangle."""
    frames = np.concatenate([edges, np.broadcast_to(-ray[:, None], (len(edges), 3, 1))], axis=2)
    along = np.abs(np.linalg.det(frames)) < 1e-9
    frames[along] = np.eye(3)
    inverses = np.linalg.inv(frames)
    inverses[along] = np.nan
    return inverses


def _shadow_windows(
    rectangle: Rectangle, corners: Float[np.ndarray, "m 4 3"], ray: Float[np.ndarray, "3"], shape: tuple[int, int]
) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Which of the others throw a shadow towards `rectangle`, and the rows and columns of its grid that it can reach.

    The shadow of a rectangle lies within the box around the shadows of its corners.
    """
    onto = np.linalg.inv(np.stack([rectangle.edge_u, rectangle.edge_v, ray], axis=1))
    s, t, length = np.moveaxis((corners - rectangle.corner) @ onto.T, -1, 0)
    begin = np.stack([t.min(axis=1) * shape[0], s.min(axis=1) * shape[1]], axis=1) - 1
    end = np.stack([t.max(axis=1) * shape[0], s.max(axis=1) * shape[1]], axis=1) + 2
    begin, end = (np.clip(bound, 0, shape).astype(int) for bound in (begin, end))
    above = length.max(axis=1) > LIFT_M  # this also leaves out the rectangle itself
    for index in np.flatnonzero(above & (begin < end).all(axis=1)):
        top, left = begin[index]
        bottom, right = end[index]
        yield int(index), (slice(top, bottom), slice(left, right))
