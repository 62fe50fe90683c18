"""Posed pairs from other projects' MegaDepth indices: scene_info of D2-Net, LoFTR, glue-factory; DISK's dataset.json.

    scene_info*/0001.npz    image_paths, depth_paths, intrinsics, poses (lists over images, None: missing), and
                            overlap_matrix (D2-Net, glue-factory) or pair_infos: ((i, j), overlap, ...) (LoFTR)
    dataset.json            by scene: image_path, calib_path (calibration_NAME.h5 with K, R, T), images, tuples (DISK)

Poses are world to camera; the origin of K is the corner of the image. An .npz has no image sizes: K is for the size of
the depth map (to which D2-Net reduces the photograph), or of the photograph itself if there is no depth map. The base
folder of the paths is not stored, so it is searched for above the index (and in subfolders, such as LoFTR's `train/`).
Photographs of D2-Net's Undistorted_SfM are also found in MegaDepth_v1's dense0/imgs, which has the same images, as
in XFeat. Several .npz with the same images (LoFTR has one per range of overlaps) are merged into one scene.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float, Int

from featkit.core.config import digest
from featkit.core.errors import BadInputError
from featkit.core.log import progress
from featkit.data.posed_format import CameraTable
from featkit.data.tree import FileTree
from featkit.images.read import stored_size
from featkit.io.foreign_arrays import h5_shape, read_h5, read_npz

LOGGER = logging.getLogger(__name__)
SCENE_INFO = re.compile(r"(^|/)scene_info[^/]*/[^/]+\.npz$")
DATASET = "dataset.json"
NAMED = re.compile(r"(\d{4})[._](.+)")  # LoFTR's 0001_0.1_0.3, D2-Net's 0001.0
ARRAYS = ("image_paths", "depth_paths", "intrinsics", "poses", "pair_infos", "overlap_matrix")
D2NET_IMAGES = re.compile(r"(?:.*/)?Undistorted_SfM/(.+)/images/(.+)")
DENSE = re.compile(r"/(dense\d+)/")
UNDISTORTED = ("phoenix/S6/zl548/MegaDepth_v1/{}/{}/imgs/{}", "{}/{}/imgs/{}")  # MegaDepth_v1 as unpacked, or moved
ABOVE = 3  # folders above the index that the paths may be relative to


@dataclass(frozen=True)
class IndexedScene:
    """A scene of an index. files: image paths, relative to the tree or absolute. pairs: rows of the table."""

    name: str
    where: str
    table: CameraTable
    files: tuple[str, ...]
    pairs: Int[np.ndarray, "n 2"]


class OverlapLimits:
    """low < overlap <= high, with the overlap as stored in the index (glue-factory's rule)."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    def holds(self, overlap: Float[np.ndarray, "..."]) -> np.ndarray:
        return (overlap > self.low) & (overlap <= self.high)


def is_scene_info(tree: FileTree, name: str) -> bool:
    """Whether a file of the tree is one of these indices."""
    if name.endswith(".npz") and "/" not in name:  # the root may be scene_info itself
        return SCENE_INFO.search(f"{tree.root.name}/{name}") is not None
    return SCENE_INFO.search(name) is not None or _is_disk_index(tree, name)


def _is_disk_index(tree: FileTree, name: str) -> bool:
    """Whether a file is DISK's dataset.json; featkit writes a different file of that name."""
    if name.rsplit("/", 1)[-1] != DATASET:
        return False
    try:
        scenes = json.loads(tree.text(name))
    except (BadInputError, ValueError, RecursionError):
        return False
    return isinstance(scenes, dict) and any(
        isinstance(scene, dict) and "calib_path" in scene for scene in scenes.values()
    )


def read_indices(
    tree: FileTree, names: Sequence[str], limits: OverlapLimits, wanted: Callable[[str], bool]
) -> Iterator[IndexedScene | str]:
    """The scenes of the index files `names`, in order; a message instead of a scene without usable pairs.

    wanted: whether a scene is wanted, by its name; files of other scenes are not opened.

    Raises BadInputError for a file that is not a valid index.
    """
    if names and tree.archive is not None:
        raise BadInputError(f"{tree.root}: scene_info inside a zip is not supported; unpack it next to the photographs")
    arrays = [name for name in names if name.endswith(".npz") and wanted(_scene_name(name))]
    merged: dict[str, _SceneArrays] = {}
    with progress("read scene info", len(arrays), "files") as advance:
        for name in arrays:
            scene_arrays = _SceneArrays.read(tree, name)
            key = scene_arrays.identity()
            merged[key] = scene_arrays if key not in merged else merged[key].joined(scene_arrays)
            advance(1)
    with progress("look for photographs", len(merged), "scenes") as advance:
        for merged_scene in merged.values():
            yield merged_scene.scene(tree, limits)
            advance(1)
    for name in names:
        if not name.endswith(".npz"):
            yield from _disk_scenes(tree, name, wanted)


def _scene_name(name: str) -> str:
    """0001/0.1_0.3 for 0001_0.1_0.3.npz."""
    stem = name.rsplit("/", 1)[-1].removesuffix(".npz")
    named = NAMED.fullmatch(stem)
    return f"{named[1]}/{named[2]}" if named else stem


@dataclass(frozen=True)
class _SceneArrays:
    """One .npz. images, depths: paths, "" for None. intrinsics, poses (3 x 4): NaN if missing."""

    name: str
    scene_name: str
    images: tuple[str, ...]
    depths: tuple[str, ...]
    intrinsics: Float[np.ndarray, "m 3 3"]
    poses: Float[np.ndarray, "m 3 4"]
    pairs: Int[np.ndarray, "n 2"]
    overlaps: Float[np.ndarray, " n"]

    @classmethod
    def read(cls, tree: FileTree, name: str) -> _SceneArrays:
        where = tree.where(name)
        arrays = read_npz(Path(where), where, ARRAYS)
        missing = next((key for key in ARRAYS[:4] if key not in arrays and key != "depth_paths"), None)
        if missing is not None or not {"pair_infos", "overlap_matrix"} & set(arrays):
            raise BadInputError(
                f"{where}: no {missing or 'pair_infos or overlap_matrix'} in it, so it is not a scene_info file"
            )
        try:
            images = _to_paths(arrays["image_paths"])
            depths = _to_paths(arrays["depth_paths"]) if "depth_paths" in arrays else ("",) * len(images)
            intrinsics = _to_matrices(arrays["intrinsics"], len(images), 3)
            poses = _to_matrices(arrays["poses"], len(images), 4)
            pairs, overlaps = _read_overlaps(arrays, len(images))
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise BadInputError(f"{where}: not a valid scene_info file ({str(error)[:100]})") from None
        return cls(name, _scene_name(name), images, depths, intrinsics, poses, pairs, overlaps)

    def identity(self) -> str:
        """A digest of images and cameras: equal for files of the same scene."""
        return digest(*self.images, hashlib.sha256(self.intrinsics.tobytes() + self.poses.tobytes()).hexdigest())

    def joined(self, other: _SceneArrays) -> _SceneArrays:
        """Merge with the pairs of another file for the same images; common pairs are kept once."""
        pairs = np.concatenate([self.pairs, other.pairs])
        overlaps = np.concatenate([self.overlaps, other.overlaps])
        _, first = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)
        first.sort()
        return replace(self, scene_name=self.scene_name.split("/")[0], pairs=pairs[first], overlaps=overlaps[first])

    def scene(self, tree: FileTree, limits: OverlapLimits) -> IndexedScene | str:
        """The scene, with the image sizes to which K refers and only existing files; a message if no pair is usable."""
        where = tree.where(self.name)
        pairs = self.pairs[limits.holds(self.overlaps)]
        if not len(pairs):
            return f"{where}: no pairs with an overlap of {limits.low:g} to {limits.high:g}"
        usable = np.array([bool(path) for path in self.images]) & np.isfinite(self.poses).all(axis=(1, 2))
        usable &= np.isfinite(self.intrinsics).all(axis=(1, 2))
        pairs = pairs[usable[pairs].all(axis=1)]
        folders = _BaseFolders.of(tree, self.name)
        files = _existing_files(
            where, pairs, lambda row: folders.photograph(self.images[row], self.depths[row]), self.images
        )
        pairs = pairs[np.isin(pairs, list(files)).all(axis=1)]
        if not len(pairs):
            return f"{where}: no pair whose photographs both exist; put them where its image_paths point"
        rows = np.unique(pairs)
        table = CameraTable(
            tuple(self.images[row] for row in rows),
            rows,
            np.array([folders.size_of(self.depths[row]) or stored_size(files[row]) for row in rows.tolist()]),
            self.intrinsics[rows],
            self.poses[rows, :, :3],
            self.poses[rows, :, 3],
        )
        paths = tuple(str(files[row]) for row in rows.tolist())
        return IndexedScene(self.scene_name, where, table, paths, np.searchsorted(rows, pairs))


def _existing_files(
    where: str, pairs: Int[np.ndarray, "n 2"], find: Callable[[int], Path | None], names: Sequence[str]
) -> dict[int, Path]:
    """The files of the images in pairs, by row; missing ones are reported in one warning."""
    rows = np.unique(pairs).tolist()
    files = {row: file for row in rows if (file := find(row)) is not None}
    missing = [names[row] for row in rows if row not in files]
    if missing:
        LOGGER.warning(
            "%s: %d of %d photographs are missing and left out, such as %s",
            *(where, len(missing), len(rows), missing[0]),
        )
    return files


def _to_paths(values: np.ndarray) -> tuple[str, ...]:
    """Paths; "" for None, an empty string or NaN."""
    if values.ndim != 1:
        raise ValueError(f"paths of shape {values.shape}")
    texts = [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]
    return tuple(value if isinstance(value, str) else "" for value in texts)


def _to_matrices(values: np.ndarray, count: int, columns: int) -> Float[np.ndarray, "m 3 c"]:
    """The first three rows of matrices, which may be stored flat; NaN for None."""
    if len(values) != count:
        raise ValueError(f"{len(values)} matrices for {count} images")
    matrices = np.full((count, 3, columns), np.nan)
    for row, value in enumerate(values):
        if value is not None:
            matrix = np.asarray(value, dtype=np.float64).reshape(-1, columns)
            if len(matrix) < 3:
                raise ValueError(f"a matrix of {matrix.size} numbers")
            matrices[row] = matrix[:3]
    return matrices


def _read_overlaps(arrays: dict[str, np.ndarray], count: int) -> tuple[Int[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """All pairs of an index, with their overlaps."""
    if "pair_infos" in arrays:
        rows = list(arrays["pair_infos"])
        pairs = np.array([[int(row[0][0]), int(row[0][1])] for row in rows], dtype=np.int64).reshape(-1, 2)
        overlaps = np.array([float(row[1]) for row in rows])
    else:
        matrix = np.asarray(arrays["overlap_matrix"], dtype=np.float64)
        if matrix.shape != (count, count):
            raise ValueError(f"overlap_matrix of shape {matrix.shape} for {count} images")
        matrix = np.triu(np.maximum(matrix, matrix.T), 1)  # some write only one half
        pairs = np.argwhere(matrix > 0)
        overlaps = matrix[matrix > 0]
    if len(pairs) and not (pairs.min() >= 0 and pairs.max() < count):
        raise ValueError(f"image indices of pairs are out of range for {count} images")
    differ = pairs[:, 0] != pairs[:, 1]
    return pairs[differ], overlaps[differ]


class _BaseFolders:
    """The folders to which the paths of an index may be relative; the one with the previous file is tried first."""

    def __init__(self, folders: Sequence[Path]):
        self._folders, self._last = folders, folders[0]

    @classmethod
    def of(cls, tree: FileTree, name: str) -> _BaseFolders:
        """The folders above an index, nearest first, each followed by its subfolders."""
        folders: list[Path] = []
        for folder in list(Path(tree.where(name)).absolute().parents)[1 : 1 + ABOVE]:
            folders.append(folder)
            with contextlib.suppress(OSError):  # a folder without read permission
                folders += sorted(path for path in folder.iterdir() if path.is_dir() and path.name[:1] != ".")
        return cls(folders or [tree.root])

    def photograph(self, path: str, depth: str) -> Path | None:
        """The file of a photograph. depth: the path of its depth map, which contains the part of the scene (dense0)."""
        match, dense = D2NET_IMAGES.fullmatch(path), DENSE.search(depth)
        part = dense[1] if dense else "dense0"
        forms = [path, *(form.format(match[1], part, match[2]) for form in UNDISTORTED if match)]
        for form in forms:
            for folder in (self._last, *self._folders):
                if _is_file(folder, form):
                    self._last = folder
                    return folder / form
        return None

    def size_of(self, depth: str) -> tuple[int, int] | None:
        """Width and height of a depth map; None if it is missing."""
        shape = h5_shape(self._last / depth, "depth") if depth and _is_file(self._last, depth) else None
        return (shape[1], shape[0]) if shape is not None and len(shape) == 2 and min(shape) > 0 else None


def _is_file(folder: Path, path: str) -> bool:
    """Whether the path is a file inside the folder."""
    relative = PurePosixPath(path)
    try:
        return not relative.is_absolute() and ".." not in relative.parts and (folder / relative).is_file()
    except (OSError, ValueError):  # a name that is too long or invalid for the file system
        return False


def _disk_scenes(tree: FileTree, name: str, wanted: Callable[[str], bool]) -> Iterator[IndexedScene | str]:
    where, folder = tree.where(name), Path(tree.where(name)).absolute().parent
    for scene, entry in json.loads(tree.text(name)).items():
        if not wanted(scene):
            continue
        try:
            images, tuples = [str(image) for image in entry["images"]], entry["tuples"]
            places = [Path(entry[key]) for key in ("image_path", "calib_path")]
            photographs, calibrations = (place if place.is_dir() else folder / place for place in places)
            pairs = [
                (int(a), int(b))
                for images_of_tuple in tuples
                for i, a in enumerate(images_of_tuple)
                for b in images_of_tuple[i + 1 :]
            ]
            if pairs and not (np.min(pairs) >= 0 and np.max(pairs) < len(images)):
                raise ValueError(f"image indices of tuples are out of range for {len(images)} images")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadInputError(f"{where}: {scene!r}: not in DISK's format ({str(error)[:100]})") from None
        pair_rows = np.unique(np.sort(np.array(pairs, np.int64).reshape(-1, 2), axis=1), axis=0)
        files = _existing_files(where, pair_rows, functools.partial(_disk_photograph, photographs, images), images)
        pair_rows = pair_rows[(pair_rows[:, 0] != pair_rows[:, 1]) & np.isin(pair_rows, list(files)).all(axis=1)]
        if not len(pair_rows):
            yield f"{where}: {scene!r}: its tuples have no pair whose photographs both exist"
            continue
        rows = np.unique(pair_rows)
        calibration = [read_h5(calibrations / f"calibration_{images[row]}.h5", ("K", "R", "T")) for row in rows]
        if any((k["K"].size, k["R"].size, k["T"].size) != (9, 9, 3) for k in calibration):
            raise BadInputError(f"{calibrations}: K and R must be 3 x 3 and T must have 3 numbers; create them again")
        table = CameraTable(
            tuple(images[row] for row in rows),
            rows,
            np.array([stored_size(files[row]) for row in rows.tolist()]),
            np.stack([k["K"].reshape(3, 3) for k in calibration]),
            np.stack([k["R"].reshape(3, 3) for k in calibration]),
            np.stack([k["T"].ravel() for k in calibration]),
        )
        paths = tuple(str(files[row]) for row in rows.tolist())
        yield IndexedScene(scene, where, table, paths, np.searchsorted(rows, pair_rows))


def _disk_photograph(folder: Path, images: Sequence[str], row: int) -> Path | None:
    """The photograph of an image name, or NAME.jpg as in DISK, where NAME is the part before the first dot."""
    names = (images[row], f"{images[row].split('.')[0]}.jpg")
    return next((folder / name for name in names if _is_file(folder, name)), None)
