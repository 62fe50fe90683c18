"""Covisibility: the tracks of a model, and the image pairs that share the most points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Float, Int

from featkit.core.config import Config, Count
from featkit.core.errors import BadInputError, EmptySceneError, UsageError
from featkit.core.types import Pair
from featkit.data.tracks import NO_LICENCE, PhotographFolder, Scene, SceneTracks, skip_empty_scenes
from featkit.geometry.pixels import from_colmap, to_colmap
from featkit.images.intensity import common_decoding
from featkit.images.listing import list_images
from featkit.mapping.model import is_model, point_ids, read_model
from featkit.mapping.scene import image_folder, models_in


class CovisibleConfig(Config):
    """How images of a model are paired by shared points."""

    num_matched: Count = 20
    """Number of images that each image is paired with (hloc: 20)."""


@dataclass(frozen=True)
class Tracks:
    """The images that see each point: indices into `names`; those of point i are images[starts[i] : starts[i + 1]]."""

    names: tuple[str, ...]
    starts: Int[np.ndarray, " m1"]
    images: Int[np.ndarray, " n"]


def covisible_pairs(tracks: Tracks, num: int) -> list[Pair]:
    """Each image with the `num` images that share the most points with it; each pair once, in image order.

    Ties go to the earlier image. An image that shares no points is in no pair. Memory: all tracks (about 40 bytes per
    observation while they are sorted), plus those of one image at a time.
    """
    total = len(tracks.names)
    points, images, starts = _unique_observations(tracks)
    by_image = np.argsort(images, kind="stable")
    first = np.searchsorted(images[by_image], np.arange(total + 1))
    found: dict[tuple[int, int], Pair] = {}
    for index in range(total):
        seen = points[by_image[first[index] : first[index + 1]]]
        shared = np.bincount(images[_concatenate_ranges(starts[seen], starts[seen + 1])], minlength=total)
        shared[index] = 0
        for other in np.argsort(-shared, kind="stable")[:num].tolist():
            if shared[other] == 0:
                break
            key = (min(index, other), max(index, other))
            found.setdefault(key, Pair(tracks.names[index], tracks.names[other]))
    return list(found.values())


def tracks_of_images(tracks: Tracks, names: Sequence[str]) -> Tracks:
    """The same tracks restricted to these images (all of them in `tracks`), in this order."""
    place = np.full(len(tracks.names), -1, np.int32)
    index = {name: i for i, name in enumerate(tracks.names)}
    place[[index[name] for name in names]] = np.arange(len(names))
    kept = place[tracks.images] >= 0
    before = np.concatenate([[0], np.cumsum(kept)])
    return Tracks(tuple(names), before[tracks.starts], place[tracks.images[kept]])


def _unique_observations(tracks: Tracks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Point and image of every observation, without duplicates; and where each point's observations start."""
    total, count = len(tracks.names), len(tracks.starts) - 1
    points = np.repeat(np.arange(count, dtype=np.int64), np.diff(tracks.starts))
    keys = np.unique(points * total + tracks.images)
    points, images = keys // max(total, 1), (keys % max(total, 1)).astype(np.int32)
    return points, images, np.searchsorted(points, np.arange(count + 1))


def _concatenate_ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """All integers from starts[i] up to ends[i], ranges concatenated."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


# ----------------------------------------------------------------------------------------------------------------------
# A COLMAP model -> SceneTracks: the last step of patch extraction that needs pycolmap.


FOLD_TOLERANCE = 1e-3  # relative to the distance from the optical axis: how well undistortion must invert distortion


@dataclass(frozen=True)
class CameraProjector:
    """Projects with a COLMAP camera, including lens distortion."""

    camera: pycolmap.Camera

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """Points in the camera frame -> featkit pixels; NaN behind the camera or where distortion is not invertible."""
        pixels = np.full((len(points), 2), np.nan)
        ahead = np.flatnonzero(points[:, 2] > 0)
        if len(ahead) == 0:
            return pixels
        seen = np.asarray(self.camera.img_from_cam(points[ahead]))
        plane = points[ahead, :2] / points[ahead, 2:]
        # A radial polynomial is not monotonic far outside the image and would project points from there into it.
        back = np.asarray(self.camera.cam_from_img(seen))
        folded = ~(np.linalg.norm(back - plane, axis=1) <= FOLD_TOLERANCE * (1 + np.linalg.norm(plane, axis=1)))
        seen[folded] = np.nan
        pixels[ahead] = from_colmap(seen)
        return pixels

    def rays(self, pixels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
        """featkit pixels -> points at depth 1 in the camera frame."""
        plane = np.asarray(self.camera.cam_from_img(to_colmap(pixels)))
        return np.concatenate([plane, np.ones((len(plane), 1))], axis=1)


def model_components(scene: Path) -> list[Path]:
    """The model of a scene, or all models in sparse/manhattan: MegaDepth has one per connected component of a scene.

    Raises BadInputError.
    """
    if not scene.is_dir():
        raise BadInputError(f"{scene}: {'is a file, not a scene folder' if scene.exists() else 'no such folder'}")
    if models := models_in(scene):
        return models[:1]
    parts = [part for part in sorted((scene / "sparse" / "manhattan").glob("*")) if is_model(part)]
    if parts:
        return parts
    raise BadInputError(f"{scene}: no COLMAP model in sparse/; map it first with `featkit reconstruct {scene}`")


def mapped_scenes(
    scenes: Sequence[Path], licence: str | None = None, keypoints: Sequence[Path] | None = None
) -> list[Scene]:
    """Scenes to extract patches from. licence: of all photographs; None: from each scene's licence file.

    The components of a MegaDepth scene are named 0001, 0001.1 and so on. If there are several scenes, those with one
    image or without points are skipped with a warning. keypoints: one features.h5 per scene, used instead of a
    detector. Raises BadInputError; UsageError for two scenes of one name or the wrong number of keypoint files.
    """
    names = _unique_scene_names(scenes)
    if keypoints and len(keypoints) != len(scenes):
        raise UsageError(f"--keypoints: {len(keypoints)} files for {len(scenes)} scenes; give one for each, in order")
    files: Sequence[Path | None] = keypoints or [None] * len(scenes)
    models = [
        (scene, model, name if model.name == "0" or number == 0 else f"{name}.{model.name}", file)
        for scene, name, file in zip(scenes, names, files, strict=True)
        for number, model in enumerate(model_components(scene))
    ]
    found: list[Scene] = []

    def read(one: tuple[Path, Path, str, Path | None]) -> None:
        scene, model, name, file = one
        tracks, images = read_tracks(model, name), image_folder(scene)
        decoding = common_decoding([images / name for name in tracks.image_names])
        found.append(Scene(tracks, images, licence or _read_licence(scene), file, decoding))

    skip_empty_scenes(models, read)
    return found


def photograph_folders(folders: Sequence[Path], licence: str | None = None) -> list[PhotographFolder]:
    """Folders of single photographs; for a scene, those in its images/. Raises the same errors as `mapped_scenes`."""
    found = []
    for folder, name in zip(folders, _unique_scene_names(folders), strict=True):
        images = image_folder(folder)
        listed = tuple(list_images(images))
        decoding = common_decoding([images / image for image in listed])
        found.append(PhotographFolder(name, images, listed, licence or _read_licence(folder), decoding))
    return found


def _unique_scene_names(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two scenes are named {twice!r}; rename one of the folders")
    return names


def _read_licence(scene: Path) -> str:
    for path in sorted(scene.iterdir()):
        if path.is_file() and path.stem.lower() in {"licence", "license", "copying"}:
            return path.read_text(encoding="utf-8", errors="replace")
    return NO_LICENCE


def read_tracks(model_dir: Path, name: str | None = None) -> SceneTracks:
    """Read a COLMAP model. name: the scene's name; by default the folder's. Raises BadInputError."""
    model = read_model(model_dir)
    images = sorted((model.images[i] for i in model.reg_image_ids()), key=lambda image: image.name)
    cameras = [model.cameras[image.camera_id] for image in images]
    poses = [np.asarray(image.cam_from_world().matrix()) for image in images]
    points = sorted(model.points3D)
    if not points or len(images) < 2:
        raise EmptySceneError(f"{model_dir}: {len(images)} images and {len(points)} points; patches need 2 images")
    seen = [_observations(image) for image in images]
    ids = np.concatenate([part[0] for part in seen])
    order = np.argsort(ids, kind="stable")
    return SceneTracks(
        name=name or model_dir.resolve().name,
        image_names=tuple(image.name for image in images),
        image_sizes=np.array([[camera.width, camera.height] for camera in cameras]),
        rotations=np.stack([pose[:, :3] for pose in poses]),
        translations=np.stack([pose[:, 3] for pose in poses]),
        projectors=tuple(CameraProjector(camera) for camera in cameras),
        points=np.array([model.points3D[i].xyz for i in points]),
        observed_points=np.searchsorted(np.array(points), ids[order]),
        observed_images=np.repeat(np.arange(len(images)), [len(part[0]) for part in seen])[order],
        observed_xy=np.concatenate([part[1] for part in seen])[order],
    )


def _observations(image: pycolmap.Image) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the points an image sees, and their positions in featkit pixels."""
    ids = point_ids(image)
    seen = ids >= 0
    xy = np.array([point.xy for point in image.points2D], dtype=np.float64).reshape(-1, 2)
    return ids[seen], from_colmap(xy[seen])
