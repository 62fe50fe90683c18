"""A small scene in exactly the layout of Aachen Day-Night, v1.0 or v1.1: images, reference model, lists, pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap

from featkit.core.types import Pose
from featkit.geometry.poses import camera_centre, rotation_matrix
from featkit.io.lists import Intrinsics
from featkit.mapping.covisibility import Tracks
from featkit.mapping.verify import to_rigid

DAY, NIGHT, MORE_NIGHT = "query/day/nexus4", "query/night/nexus5x", "query/night/nexus5x_additional_night"
SEQUENCE = "sequences/nexus4_sequences/sequence_1"  # v1.1: contains the last map images
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]


@dataclass(frozen=True)
class View:
    """An image with its pose, world to camera."""

    file: Path
    pose: Pose


@dataclass(frozen=True)
class World:
    """Content of a miniature. camera: SIMPLE_RADIAL (or PINHOLE), for all images.

    points: (m, 3); seen: for every point the places (number of the view in `mapped`, x, y in COLMAP pixels).
    """

    mapped: Sequence[View]
    queries: Sequence[View]
    camera: Intrinsics
    points: np.ndarray
    seen: Sequence[Sequence[tuple[int, float, float]]]


@dataclass(frozen=True)
class Miniature:
    """Its folder, and its ground truth by the benchmark's names. images: the folder that names are relative to."""

    root: Path
    images: Path
    poses: dict[str, Pose]
    day: dict[str, Pose]
    night: dict[str, Pose]

    @property
    def truth(self) -> dict[str, Pose]:
        return {**self.day, **self.night}


def rendered_world(scene: Any, config: Any) -> World:
    """A rendered scene, with true points on a grid of pixels in every map image."""
    from featkit.demo.scene import surface_point

    focal, _, centre_x, centre_y = scene.intrinsics.params
    width, height = scene.intrinsics.width, scene.intrinsics.height
    camera = Intrinsics("SIMPLE_RADIAL", width, height, (focal, centre_x, centre_y, 0.0))
    grid = np.stack(np.meshgrid(np.arange(15, width, 40.0), np.arange(15, height, 40.0)), axis=-1).reshape(-1, 2)
    found = np.concatenate([surface_point(config, pose, grid) for pose in scene.poses.values()])
    points = found[np.isfinite(found).all(axis=1)]
    seen: list[list[tuple[int, float, float]]] = [[] for _ in points]
    for number, pose in enumerate(scene.poses.values()):
        local = points @ rotation_matrix(pose.qvec).T + pose.tvec
        xy = focal * local[:, :2] / local[:, 2:] + [centre_x, centre_y]
        inside = (local[:, 2] > 0) & (xy > 0).all(axis=1) & (xy < [width, height]).all(axis=1)
        for point in np.flatnonzero(inside):
            seen[point].append((number, *xy[point].tolist()))
    return World(
        [View(scene.images / name, pose) for name, pose in scene.poses.items()],
        [View(scene.queries / name, pose) for name, pose in scene.query_poses.items()],
        camera,
        points,
        seen,
    )


def by_night(image: np.ndarray, seed: int) -> np.ndarray:
    """Darken, colour and add noise, as at night: (h, w, 3) BGR uint8 -> the same."""
    dark = 150.0 * (image / 255.0) ** 1.6 * np.array([0.75, 0.9, 1.1])
    noise = np.random.default_rng(seed).normal(0.0, 4.0, image.shape)
    return np.clip(np.rint(dark + noise), 0, 255).astype(np.uint8)


def write_miniature(root: Path, world: World, version: str = "1.1", pairs: bool = True) -> Miniature:
    """Write every file that the benchmark publishes, with v1.1's model in both forms and both kinds of pair lists."""
    images = root / "images" / "images_upright"
    split = len(world.mapped) - 2 if version == "1.1" else len(world.mapped)
    names = [f"{'db' if i < split else SEQUENCE}/{i + 1}.jpg" for i in range(len(world.mapped))]
    for name, view in zip(names, world.mapped, strict=True):
        _write(images / name, cv2.imread(str(view.file)))
    day, night = {}, {}
    for number, view in enumerate(world.queries):
        photograph = cv2.imread(str(view.file))
        assert photograph is not None
        folder = MORE_NIGHT if version == "1.1" and number % 2 else NIGHT
        day[f"{DAY}/IMG_2013_{number}.jpg"] = view.pose
        night[f"{folder}/IMG_2016_{number}.jpg"] = view.pose
        _write(images / DAY / f"IMG_2013_{number}.jpg", photograph)
        _write(images / folder / f"IMG_2016_{number}.jpg", by_night(photograph, number))
    made = Miniature(root, images, {n: v.pose for n, v in zip(names, world.mapped, strict=True)}, day, night)
    models = root / "3D-models" / ("aachen_v_1_1" if version == "1.1" else "")
    models.mkdir(parents=True, exist_ok=True)
    if version == "1.1":
        model_of(world, names).write(str(models))
    (models / ("aachen_v_1_1.nvm" if version == "1.1" else "aachen_cvpr2018_db.nvm")).write_text(nvm_of(world, names))
    lists = models / ("database_intrinsics_v1_1.txt" if version == "1.1" else "database_intrinsics.txt")
    lists.write_text(_listed(names, world.camera))
    (root / "queries").mkdir()
    (root / "queries" / "day_time_queries_with_intrinsics.txt").write_text(_listed(day, world.camera))
    (root / "queries" / "night_time_queries_with_intrinsics.txt").write_text(_listed(night, world.camera))
    if pairs:
        _write_pairs(made, version)
    return made


def _write_pairs(made: Miniature, version: str) -> None:
    """The challenge's list: map and night, queries first or second; hloc's two lists: map, and all queries."""
    names = list(made.poses)
    mapped = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    night = [(name, other) for name in made.night for other in names]
    everything = [(name, other) for name in made.truth for other in names]
    ending = "_v1_1" if version == "1.1" else ""
    folder = made.root / "pairs" / ("aachen_v1.1" if version == "1.1" else "aachen")
    folder.mkdir(parents=True)
    (made.root / f"image_pairs_to_match{ending}.txt").write_text(_lines(mapped + night))
    (folder / "pairs-db-covis20.txt").write_text(_lines(mapped + [(b, a) for a, b in mapped]))
    unlisted = [("query/night/milestone/IMG_0.jpg", names[0])]  # hloc's list names queries that no list has
    (folder / "pairs-query-netvlad50.txt").write_text(_lines(everything + unlisted))


def model_of(world: World, names: Sequence[str]) -> pycolmap.Reconstruction:
    """The COLMAP model, with a separate camera for each image."""
    camera, model = world.camera, pycolmap.Reconstruction()
    places: list[list[tuple[float, float]]] = [[] for _ in names]
    tracks = []
    for observations in world.seen:
        track = pycolmap.Track()
        for index, x, y in observations:
            track.add_element(index + 1, len(places[index]))
            places[index].append((x, y))
        tracks.append(track)
    for number, (name, view) in enumerate(zip(names, world.mapped, strict=True), start=1):
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(
                camera_id=number, model=camera.model, width=camera.width, height=camera.height, params=camera.params
            )
        )
        keypoints = np.array(places[number - 1], np.float64).reshape(-1, 2)
        image = pycolmap.Image(name=name, keypoints=keypoints, camera_id=number, image_id=number)
        model.add_image_with_trivial_frame(image, to_rigid(view.pose))
    for xyz, track in zip(world.points, tracks, strict=True):
        model.add_point3D(xyz, track, np.zeros(3, np.uint8))
    return model


def nvm_of(world: World, names: Sequence[str]) -> str:
    """The same model in VisualSFM's format: centres, and image points relative to the principal point."""
    pinhole = world.camera.model == "PINHOLE"
    focal, (centre_x, centre_y) = (
        world.camera.params[0],
        world.camera.params[2:] if pinhole else world.camera.params[1:3],
    )
    lines = ["NVM_V3 ", "", str(len(names))]
    for name, view in zip(names, world.mapped, strict=True):
        numbers = " ".join(f"{value:.12f}" for value in (focal, *view.pose.qvec, *camera_centre(view.pose), 0.0))
        lines.append(f"{name} {numbers} 0")
    lines += ["", str(len(world.points))]
    counts = [0] * len(names)
    for xyz, observations in zip(world.points, world.seen, strict=True):
        fields = [f"{value:.9f}" for value in xyz] + ["0", "0", "0", str(len(observations))]
        for index, x, y in observations:
            fields += [str(index), str(counts[index]), f"{x - centre_x:.6f}", f"{y - centre_y:.6f}"]
            counts[index] += 1
        lines.append(" ".join(fields))
    return "\n".join([*lines, "", "", "0", "", "#the last part of NVM file points to the PLY files", "0", ""])


def tracks_of(model: pycolmap.Reconstruction) -> Tracks:
    """Tracks by image name, as in pycolmap."""
    by_name = sorted((image.name, image_id) for image_id, image in model.images.items())
    place = {image_id: index for index, (_, image_id) in enumerate(by_name)}
    seen = [[place[element.image_id] for element in point.track.elements] for point in model.points3D.values()]
    flat = np.array([index for track in seen for index in track], np.int32)
    return Tracks(tuple(name for name, _ in by_name), np.cumsum([0, *map(len, seen)]), flat)


def _listed(names: Sequence[str] | dict[str, Pose], camera: Intrinsics) -> str:
    params = " ".join(f"{value:.6f}" for value in camera.params)
    return "".join(f"{name} {camera.model} {camera.width} {camera.height} {params}\n" for name in names)


def _lines(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{a} {b}" for a, b in pairs)  # hloc's lists end without a line break


def _write(path: Path, image: np.ndarray | None) -> None:
    assert image is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image, JPEG)
