"""A map in the formats of other programs: nerfstudio, a point cloud, COLMAP's text, what hloc takes beside a model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pycolmap
from jaxtyping import Float, UInt8

from featkit.errors import BadInputError, NothingCameOutError, NotWritableError, UsageError
from featkit.mapping import nerfstudio
from featkit.mapping.cameras import to_intrinsics
from featkit.mapping.covisibility import CovisibleConfig, Tracks, covisible_pairs
from featkit.mapping.model import MODEL_FILES, read_model
from featkit.mapping.verify import to_pose
from featkit.store.artifact import inside, part_of, place_files, scratch, write_text
from featkit.store.pairs import format_pairs
from featkit.store.ply import write_ply
from featkit.store.poses import write_poses
from featkit.store.stamp import refuse_foreign

TRANSFORMS, POINTS = "transforms.json", "sparse_pc.ply"  # nerfstudio's names
SFM, INTRINSICS, POSES, PAIRS = "sfm", "queries_with_intrinsics.txt", "poses.txt", "pairs-covisible.txt"
NEAR = 4  # folders above a model that its photographs are looked for in: scene/featkit/sparse/0


@dataclass(frozen=True)
class Exported:
    """What was written. notes: what the reader of the files should know."""

    files: list[Path]
    images: int
    points: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """What is exported: a model, where it lies, and the folder of its photographs (None: not found)."""

    model: pycolmap.Reconstruction
    folder: Path
    images: Path | None
    pairs: CovisibleConfig

    @property
    def registered(self) -> list[pycolmap.Image]:
        """Images with a pose, by name."""
        return sorted((image for image in self.model.images.values() if image.has_pose), key=lambda image: image.name)


def export(
    form: str,
    folder: Path,
    output: Path,
    *,
    images: Path | None = None,
    pairs: CovisibleConfig | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the model in `folder` as one of FORMATS to `output`: a folder, or a file that ends in .ply.

    images: the photographs, for nerfstudio; by default those found near the model. pairs: how many, for hloc.
    Raises UsageError, BadInputError, NothingCameOutError for a map without images or points, NotWritableError.
    """
    if form not in FORMATS:
        raise UsageError(f"--format {form}: there is {', '.join(FORMATS)}")
    if (form == "ply") != (output.suffix.lower() == ".ply"):
        is_what = "a file whose name ends in .ply" if form == "ply" else "a folder, not a .ply file"
        raise UsageError(f"--format {form} writes {is_what}; --out is {output}")
    model = read_model(folder)
    names = [image.name for image in model.images.values() if image.has_pose]
    if not names:
        raise NothingCameOutError(f"{folder}: no image of this model has a pose")
    source = Source(model, folder, _photographs(folder, min(names), images), pairs or CovisibleConfig())
    if form == "ply":
        return _ply(source, output, overwrite)
    notes: list[str] = []
    if output.exists() and not output.is_dir():
        raise NotWritableError(f"{output}: is a file; choose a folder with --out")
    with scratch(part_of(output)) as part:
        notes += FOLDERS[form](source, part, output)
        written = place_files(part, output, overwrite=overwrite, kind="export", format=form)
    return Exported([output / name for name in written], len(names), model.num_points3D(), notes)


def _ply(source: Source, output: Path, overwrite: bool) -> Exported:
    refuse_foreign(output)
    points, colours = coloured_points(source.model)
    if len(points) == 0:
        raise NothingCameOutError(f"{source.folder}: there is no point in this model")
    if output.exists() and not overwrite:
        raise BadInputError(f"{output}: exists already; --overwrite replaces it, or choose another --out")
    return Exported([write_ply(output, points, colours)], len(source.registered), len(points))


def coloured_points(model: pycolmap.Reconstruction) -> tuple[Float[np.ndarray, "n 3"], UInt8[np.ndarray, "n 3"]]:
    """Points of a model in the order of their ids, and their RGB colours."""
    points = [model.points3D[point_id] for point_id in sorted(model.points3D)]
    xyz = np.array([point.xyz for point in points], dtype=np.float64).reshape(-1, 3)
    return xyz, np.array([point.color for point in points], dtype=np.uint8).reshape(-1, 3)


def _nerfstudio(source: Source, part: Path, output: Path) -> list[str]:
    """transforms.json, and the points in its world."""
    points, colours = coloured_points(source.model)
    paths = {image.name: _file_path(image.name, source.images, output) for image in source.registered}
    ply_file = POINTS if len(points) else None
    content = nerfstudio.transforms(source.model, paths, ply_file)
    if ply_file is not None:
        write_ply(part / ply_file, nerfstudio.in_saved_world(points), colours)
    write_text(part / TRANSFORMS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if source.images is not None:
        return []
    return [f"photographs were not found near the map: put them into {output / 'images'}, or name them with --images"]


def _file_path(name: str, images: Path | None, output: Path) -> str:
    if images is None:
        return inside(Path("images"), name).as_posix()
    return Path(os.path.relpath(inside(images, name).resolve(), output.resolve())).as_posix()


def _text(source: Source, part: Path, output: Path) -> list[str]:
    """COLMAP's text model."""
    if any((output / f"{name}.bin").exists() for name in MODEL_FILES):
        raise BadInputError(f"{output}: holds a binary model, which COLMAP would read instead; choose another --out")
    source.model.write_text(str(part))
    return []


def _hloc(source: Source, part: Path, output: Path) -> list[str]:
    """The model, and beside it: pairs by covisibility, the cameras as a list of queries, the poses as results."""
    images = source.registered
    spaced = next((image.name for image in images if len(image.name.split()) != 1), None)
    if spaced is not None:
        raise BadInputError(f"{spaced!r}: hloc parts names at spaces and cannot read this one; rename the photograph")
    (part / SFM).mkdir()
    source.model.write(str(part / SFM))
    cameras = {image.name: to_intrinsics(source.model.cameras[image.camera_id]) for image in images}
    lines = [f"{name} {c.model} {c.width} {c.height} {' '.join(map(repr, c.params))}\n" for name, c in cameras.items()]
    write_text(part / INTRINSICS, "".join(lines))
    write_poses(part / POSES, {image.name: to_pose(image.cam_from_world()) for image in images})
    pairs = covisible_pairs(tracks_of(source.model), source.pairs.num_matched)
    if not pairs:
        return [f"no {PAIRS}: no two images of this model see a point in common"]
    write_text(part / PAIRS, format_pairs(pairs))
    return []


def tracks_of(model: pycolmap.Reconstruction) -> Tracks:
    """Who sees which point; images with a pose, by name."""
    images = sorted((image.name, image_id) for image_id, image in model.images.items() if image.has_pose)
    place = {image_id: index for index, (_, image_id) in enumerate(images)}
    seen = [
        [place[element.image_id] for element in model.points3D[point_id].track.elements if element.image_id in place]
        for point_id in sorted(model.points3D)
    ]
    starts = np.cumsum([0, *map(len, seen)])
    return Tracks(tuple(name for name, _ in images), starts, np.array([i for s in seen for i in s], dtype=np.int32))


Writer = Callable[[Source, Path, Path], list[str]]
FOLDERS: dict[str, Writer] = {"nerfstudio": _nerfstudio, "text": _text, "hloc": _hloc}
FORMATS = ("nerfstudio", "ply", "text", "hloc")


def _photographs(folder: Path, name: str, given: Path | None) -> Path | None:
    """The folder that an image's name is relative to. Raises BadInputError when the given one does not have it."""
    if given is not None:
        if not inside(given, name).is_file():
            raise BadInputError(f"{given}: no {name!r} in it, an image of the map; names are relative to --images")
        return given
    for base in (folder.resolve(), *folder.resolve().parents[:NEAR]):
        for candidate in (base / "images", base):
            if inside(candidate, name).is_file():
                return candidate
    return None
