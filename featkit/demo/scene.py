"""A small synthetic scene with exact cameras, rendered by featkit: the input of `featkit demo`.

    images/0000.jpg ...                 the map
    queries/query_0000.jpg ...          images to localize
    truth/camera.txt                    `PINHOLE w h fx fy cx cy` in COLMAP pixels, the same for all images
    truth/poses.txt, query_poses.txt    world to camera, in metres
    truth/scene.json                    the scene's configuration, and the size of every file; written last

Nothing is downloaded or estimated: the images are computed from the ground truth.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float
from pydantic import Field

from featkit.core.config import (
    Config,
    Count,
    CountOrZero,
    Pixels,
    Runtime,
    Seed,
)
from featkit.core.errors import BadInputError
from featkit.core.log import LOGGER, progress
from featkit.core.runtime import capped
from featkit.core.types import Pose
from featkit.demo.courtyard import (
    FRONT_DEG,
    MATERIALS,
    UP,
    Face,
    Texture,
    courtyard,
    direction,
    finished,
    paste,
    texels,
)
from featkit.demo.render import Rectangle, Surface, first_hits, pyramid, render
from featkit.geometry.poses import look_at
from featkit.images.listing import MARKED_BYTES, marked
from featkit.io.artifact import explained, write_bytes, write_text
from featkit.io.atomic import FOREIGN, refuse_foreign
from featkit.io.lists import Intrinsics, format_poses

RENDERER = 1  # version, incremented whenever the same config gives different images
GOLDEN = 0.5 * (5**0.5 - 1)  # its multiples, modulo 1, spread evenly over the unit interval
PLASTIC = 0.7548776662466927  # another such number, independent of the first
MARK = b"featkit rendered scene"  # in a comment of every picture
PICTURE = re.compile(r"(images/|queries/query_)\d{4,}\.(jpg|png)")


class RenderedConfig(Config):
    """How the scene is rendered."""

    width: int = Field(800, ge=32, le=8000)
    """Width of the images, px."""
    height: int = Field(600, ge=32, le=8000)
    """Height of the images, px."""
    focal_px: Pixels | None = None
    """Focal length, px. None: 0.9 of the width, a horizontal field of view of 58 degrees."""
    num_map: Count = 12
    """Number of images for the map; the poses depend only on the index."""
    num_queries: CountOrZero = 4
    """Number of images to localize."""
    supersampling: int = Field(2, ge=1, le=8)
    """Supersampling: samples per pixel along each axis."""
    texel_m: float = Field(0.006, ge=0.001, le=0.05)
    """Size of a texel of the textures, metres; by default about half a pixel's footprint at 8 m."""
    noise_std: float = Field(1.5, ge=0, le=255)
    """Standard deviation of the image noise, in grey levels of 0 to 255."""
    arc_deg: float = Field(76.0, gt=0, le=90)
    """Arc covered by the map's cameras as seen from the centre of the scene, degrees."""
    sun_azimuth_deg: float = Field(62.0, ge=-360, le=360)
    """Azimuth of the light, degrees from +x towards +y."""
    sun_elevation_deg: float = Field(48.0, gt=0, le=90)
    """Elevation of the light above the horizon, degrees."""
    image_format: Literal["jpg", "png"] = "jpg"
    """File format of the images."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    """JPEG quality, 1 to 100."""
    seed: Seed = 0
    """Random seed of textures, small variations of the poses, and noise."""
    workers: Runtime[int] = Field(2, ge=1, le=1024)
    """Number of rendering processes."""


@dataclass(frozen=True)
class RenderedScene:
    """Paths of a rendered scene and its ground truth. poses: by name in images/; query_poses: by name in queries/."""

    images: Path
    queries: Path
    camera: Path
    poses_file: Path
    query_poses_file: Path
    intrinsics: Intrinsics
    poses: dict[str, Pose]
    query_poses: dict[str, Pose]


def intrinsics(config: RenderedConfig) -> Intrinsics:
    """The one camera, in COLMAP pixels: principal point at (width / 2, height / 2)."""
    focal = config.focal_px if config.focal_px is not None else 0.9 * config.width
    params = (focal, focal, 0.5 * config.width, 0.5 * config.height)
    return Intrinsics("PINHOLE", config.width, config.height, params)


def map_poses(config: RenderedConfig) -> dict[str, Pose]:
    """World-to-camera poses of the map, by name: evenly along the arc, at varied heights and distances."""
    along = (np.arange(config.num_map) + 0.5) / config.num_map
    return {
        f"{index:04d}.{config.image_format}": _pose_on_arc(config, place, index) for index, place in enumerate(along)
    }


def query_poses(config: RenderedConfig) -> dict[str, Pose]:
    """World-to-camera poses of the queries, by name: between the map's, except for the first and the last."""
    along = np.linspace(-0.03, 1.03, config.num_queries) if config.num_queries > 1 else np.array([0.52])
    return {
        f"query_{index:04d}.{config.image_format}": _pose_on_arc(config, along[index], 1000.5 + index)
        for index in range(config.num_queries)
    }


def _pose_on_arc(config: RenderedConfig, along: float, turn: float) -> Pose:
    """A camera at fraction `along` of the arc; `turn` selects its height, distance and aim, without repetition."""
    phase = np.array([turn * GOLDEN, turn * PLASTIC, turn * GOLDEN * PLASTIC]) + 0.1 * config.seed
    height, distance, aim = phase % 1.0
    angle = FRONT_DEG + (along - 0.5) * config.arc_deg
    middle = 2.0 * direction(FRONT_DEG)
    centre = middle + (7.8 + 1.8 * distance) * direction(angle) + (1.3 + 1.9 * height) * UP
    target = middle + (aim - 0.5) * direction(angle + 90.0) + (1.55 + 0.3 * distance) * UP
    return look_at(centre, target, UP)


def render_scene(config: RenderedConfig, output: Path) -> RenderedScene:
    """Write images and ground truth into `output`; does nothing if the same scene is already complete.

    Images of an earlier, larger scene in the same folder are removed. Raises BadInputError if files with the scene's
    names exist that featkit did not write, and NotWritableError.
    """
    scene = _scene_paths(config, output)
    record = output / "truth" / "scene.json"
    previous = _read_record(record)
    if _is_complete(config, output, previous):
        LOGGER.info("rendered scene: up to date in %s", output)
        return scene
    jobs = [
        *((scene.images / name, pose, [config.seed, 0, i]) for i, (name, pose) in enumerate(scene.poses.items())),
        *(
            (scene.queries / name, pose, [config.seed, 1, i])
            for i, (name, pose) in enumerate(scene.query_poses.items())
        ),
    ]
    files = [path for path, _, _ in jobs] + [scene.camera, scene.poses_file, scene.query_poses_file]
    _refuse_foreign(output, record, previous, files)
    with explained(output):
        # From here until the end the scene is incomplete; the record lists featkit's files, of this and earlier scenes.
        write_text(record, json.dumps(_incomplete_record(files, output, previous), indent=1) + "\n", owned=True)
        scene.images.mkdir(parents=True, exist_ok=True)
        scene.queries.mkdir(parents=True, exist_ok=True)
        _remove_stale(output, previous, {path for path, _, _ in jobs})
        _render_all(config, jobs)
    camera = scene.intrinsics
    text = f"PINHOLE {camera.width} {camera.height} {' '.join(map(repr, camera.params))}\n"
    truth = {
        scene.camera: text,
        scene.poses_file: format_poses(scene.poses),
        scene.query_poses_file: format_poses(scene.query_poses),
    }
    for path, content in truth.items():
        write_text(path, content, owned=_is_own(path, output, previous))
    write_text(record, json.dumps(_complete_record(config, output, files), indent=1) + "\n", owned=True)
    return scene


def _refuse_foreign(output: Path, record: Path, previous: Mapping[str, object], files: list[Path]) -> None:
    """Raises BadInputError if one of `files` exists that featkit did not write, or that was replaced since.

    Files that a killed run may have written after its last image are checked when they are written again.
    """
    if not previous:
        refuse_foreign(record)
    for path in files:
        written_last = path.parent == record.parent and _recorded_size(path, output, previous) == -1
        if os.path.lexists(path) and not _is_own(path, output, previous) and not written_last:
            raise BadInputError(f"{path}: {FOREIGN}")


def _recorded_size(path: Path, output: Path, record: Mapping[str, object]) -> object:
    """Recorded size of a file: None if it is not in the record, -1 if its run did not finish."""
    sizes = record.get("bytes")
    return sizes.get(path.relative_to(output).as_posix()) if isinstance(sizes, dict) else None


def _is_own(path: Path, output: Path, record: Mapping[str, object]) -> bool:
    """Whether featkit wrote the file: it is in the record with the same size, or a marked picture."""
    size = _recorded_size(path, output, record)
    if size is None or path.is_symlink() or not path.is_file():
        return False
    if path.stat().st_size == size:
        return True
    with path.open("rb") as file:
        return PICTURE.fullmatch(path.relative_to(output).as_posix()) is not None and MARK in file.read(MARKED_BYTES)


def _incomplete_record(files: list[Path], output: Path, previous: Mapping[str, object]) -> dict[str, object]:
    """The record of an incomplete scene: the earlier one's files, and the new ones without a size."""
    sizes = previous.get("bytes")
    names = dict.fromkeys(sorted(path.relative_to(output).as_posix() for path in files), -1)
    earlier = dict(sizes) if isinstance(sizes, dict) else {}
    return {"renderer": RENDERER, "fingerprint": "", "config": {}, "bytes": names | earlier}


def surface_point(config: RenderedConfig, pose: Pose, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """True world points (metres) at featkit pixels of an image taken from `pose`; NaN in the sky."""
    return first_hits(_rectangles(), intrinsics(config), pose, pixels)


def distance_to_surface(config: RenderedConfig, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
    """Distance in metres from each world point to the nearest surface of the scene."""
    points = np.asarray(points, dtype=np.float64)
    nearest = np.full(len(points), np.inf)
    for rectangle in _rectangles():
        offset = points - rectangle.corner
        edges = (rectangle.edge_u, rectangle.edge_v)
        s, t = (np.clip(offset @ edge / (edge @ edge), 0.0, 1.0) for edge in edges)
        nearest = np.minimum(nearest, np.linalg.norm(points - rectangle.at(s, t), axis=1))
    return nearest


def surfaces(config: RenderedConfig) -> tuple[Surface, ...]:
    """The scene with textures and light; takes seconds and a few hundred MB at the default texel size."""
    elevation = np.radians(config.sun_elevation_deg)
    sun = np.cos(elevation) * direction(config.sun_azimuth_deg) + np.sin(elevation) * UP
    return textured(courtyard(), config.texel_m, sun, config.seed, config.workers)


def _rectangles() -> list[Rectangle]:
    return [face.rectangle for face in courtyard()]


def _scene_paths(config: RenderedConfig, output: Path) -> RenderedScene:
    truth = output / "truth"
    return RenderedScene(
        images=output / "images",
        queries=output / "queries",
        camera=truth / "camera.txt",
        poses_file=truth / "poses.txt",
        query_poses_file=truth / "query_poses.txt",
        intrinsics=intrinsics(config),
        poses=map_poses(config),
        query_poses=query_poses(config),
    )


Job = tuple[Path, Pose, list[int]]  # output file, pose, seed of the noise


def _render_all(config: RenderedConfig, jobs: list[Job]) -> None:
    world = surfaces(config)
    with (
        progress("rendering", len(jobs), "photographs") as advance,
        ThreadPoolExecutor(capped(config.workers)) as pool,
    ):
        for _ in pool.map(lambda job: _render_one(config, world, job), jobs):
            advance(1)


def _render_one(config: RenderedConfig, world: tuple[Surface, ...], job: Job) -> None:
    path, pose, seed = job
    image = render(world, intrinsics(config), pose, config.supersampling)
    noise = np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32)
    image = np.clip(np.rint(image + config.noise_std * noise), 0, 255).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality] if config.image_format == "jpg" else []
    encoded = cv2.imencode(f".{config.image_format}", image, options)[1]
    write_bytes(path, marked(encoded.tobytes(), MARK), owned=True)


def _complete_record(config: RenderedConfig, output: Path, files: list[Path]) -> dict[str, object]:
    return {
        "renderer": RENDERER,
        "fingerprint": config.fingerprint(),
        "config": config.result_fields(),
        "bytes": {path.relative_to(output).as_posix(): path.stat().st_size for path in files},
    }


def _read_record(path: Path) -> Mapping[str, object]:
    """The record of an earlier run; empty if there is no readable one (the scene is then rendered again)."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("bytes"), dict) else {}


def _is_complete(config: RenderedConfig, output: Path, record: Mapping[str, object]) -> bool:
    if record.get("renderer") != RENDERER or record.get("fingerprint") != config.fingerprint():
        return False
    sizes = record["bytes"]
    assert isinstance(sizes, dict)
    files = {name: output / name for name in sizes}
    return bool(files) and all(f.is_file() and f.stat().st_size == sizes[name] for name, f in files.items())


def _remove_stale(output: Path, record: Mapping[str, object], current: set[Path]) -> None:
    """Remove the images in the record that are not part of this scene; nothing else is ever removed."""
    names = record.get("bytes")
    for name in names if isinstance(names, dict) else ():
        if PICTURE.fullmatch(name) and output / name not in current and _is_own(output / name, output, record):
            (output / name).unlink()


# ----------------------------------------------------------------------------------------------------------------------
# Baked lighting of the textures: sun with soft shadows, and sky with ambient occlusion, computed once per surface.
#
# Lighting that does not depend on the viewpoint is part of the texture: the edge of a shadow is fixed to its surface
# and is as good a landmark as that of a stone. Lambert's cosine for the sun, ambient occlusion by rays over the
# hemisphere.


LIFT_M = 0.002  # m: shadow rays start this far above their own surface
SUN_SPREAD = 0.02  # standard deviation of the sun's direction, rad; the real one is 0.005, but softer edges look better
SUN_RAYS = 6
SKY_RAYS = 16
CORNERS = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0, 1.0])  # s and t, around a rectangle
SUN_GRID_M = 0.06  # m between the points whose shadow is computed
SKY_GRID_M = 0.25
SUN_BGR = (0.78, 0.88, 0.94)
SKY_BGR = (0.60, 0.53, 0.48)


def textured(
    faces: Sequence[Face], texel_m: float, sun: Float[np.ndarray, "3"], seed: int, workers: int = 1
) -> tuple[Surface, ...]:
    """Every face with its material, decals and light.

    sun: unit vector towards it; texel_m: metres per texel; workers: faces painted in parallel.
    """
    rectangles = [face.rectangle for face in faces]

    def paint(index: int) -> Surface:
        rng = np.random.default_rng([seed, index])
        texture = face_texture(faces[index], texel_m, rng)
        texture *= light(rectangles[index], rectangles, texture.shape[:2], sun, rng)
        return Surface(rectangles[index], pyramid(np.clip(texture, 0.0, 255.0)))

    with ThreadPoolExecutor(capped(workers)) as pool:
        return tuple(pool.map(paint, range(len(faces))))


def face_texture(face: Face, texel_m: float, rng: np.random.Generator) -> Texture:
    """A face's unlit colours: BGR, 0 to 255."""
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
    """Lighting factors for a texture of `shape`, BGR: sun and sky on the rectangle."""
    normal = rectangle.normal
    sky_rays = rng.normal(size=(SKY_RAYS, 3))
    sky_rays = sky_rays / np.linalg.norm(sky_rays, axis=1, keepdims=True) + normal  # cosine-weighted about the normal
    sky = _unoccluded_share(rectangle, others, sky_rays, SKY_GRID_M)
    picture = _upsample(0.25 + 0.75 * sky, shape)[..., None] * np.array(SKY_BGR, dtype=np.float32)
    cosine = float(sun @ normal)
    if cosine > 0:
        sun_rays = sun + SUN_SPREAD * rng.normal(size=(SUN_RAYS, 3))
        lit = _upsample(_unoccluded_share(rectangle, others, sun_rays, SUN_GRID_M), shape)
        picture = picture + (cosine * lit)[..., None] * np.array(SUN_BGR, dtype=np.float32)
    return picture.astype(np.float32)


def _upsample(coarse: Float[np.ndarray, "a b"], shape: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def _unoccluded_share(
    rectangle: Rectangle, others: Sequence[Rectangle], rays: Float[np.ndarray, "m 3"], spacing_m: float
) -> Float[np.ndarray, "a b"]:
    """Share of rays that hit no other rectangle, for a grid of points on this one."""
    width, height = rectangle.size_m
    rows, columns = max(2, round(height / spacing_m)), max(2, round(width / spacing_m))
    t, s = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    origins = rectangle.at(s, t) + LIFT_M * rectangle.normal
    corners = np.stack([other.at(*CORNERS) for other in others])
    edges = np.stack([np.stack([other.edge_u, other.edge_v], axis=1) for other in others])
    shares = np.zeros((rows, columns), dtype=np.float32)
    for ray in rays:
        if ray @ rectangle.normal <= 0:
            continue
        hidden = np.zeros((rows, columns), dtype=bool)
        inverses = _ray_frames(edges, ray)
        for index, window in _shadow_windows(rectangle, corners, ray, (rows, columns)):
            # [u v -ray] (s, t, λ) = place - corner: where the ray from each point meets the other's plane.
            offset = (origins[window] - others[index].corner) @ inverses[index].T
            s, t, length = offset[..., 0], offset[..., 1], offset[..., 2]
            hidden[window] |= (length > 0) & (s >= 0) & (s <= 1) & (t >= 0) & (t <= 1)
        shares += ~hidden
    return shares / len(rays)


def _ray_frames(edges: Float[np.ndarray, "m 3 2"], ray: Float[np.ndarray, "3"]) -> Float[np.ndarray, "m 3 3"]:
    """[u v -ray]^-1 of each rectangle; NaN, which hits nothing, if the ray is parallel to the rectangle."""
    frames = np.concatenate([edges, np.broadcast_to(-ray[:, None], (len(edges), 3, 1))], axis=2)
    is_parallel = np.abs(np.linalg.det(frames)) < 1e-9
    frames[is_parallel] = np.eye(3)
    inverses = np.linalg.inv(frames)
    inverses[is_parallel] = np.nan
    return inverses


def _shadow_windows(
    rectangle: Rectangle, corners: Float[np.ndarray, "m 4 3"], ray: Float[np.ndarray, "3"], shape: tuple[int, int]
) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Which of the others cast a shadow towards `rectangle`, and the rows and columns of its grid that it can reach.

    The shadow of a rectangle is inside the bounding box of the shadows of its corners.
    """
    onto_rectangle = np.linalg.inv(np.stack([rectangle.edge_u, rectangle.edge_v, ray], axis=1))
    s, t, length = np.moveaxis((corners - rectangle.corner) @ onto_rectangle.T, -1, 0)
    begin = np.stack([t.min(axis=1) * shape[0], s.min(axis=1) * shape[1]], axis=1) - 1
    end = np.stack([t.max(axis=1) * shape[0], s.max(axis=1) * shape[1]], axis=1) + 2
    begin, end = (np.clip(bound, 0, shape).astype(int) for bound in (begin, end))
    above = length.max(axis=1) > LIFT_M  # this also leaves out the rectangle itself
    for index in np.flatnonzero(above & (begin < end).all(axis=1)):
        top, left = begin[index]
        bottom, right = end[index]
        yield int(index), (slice(top, bottom), slice(left, right))
