"""Pairs of photographs with camera poses, in the layout of the MegaDepth release of CAPS (Wang et al., ECCV 2020).

    ROOT/scene/dense0/aligned/images/...     the photographs, without lens distortion
    ROOT/scene/dense0/aligned/img_cam.txt    size, K and world-to-camera pose of each (posed_format.py)
    ROOT/scene/dense0/aligned/pairs.txt      pairs to train on
    ROOT/scene/dense0/aligned/pairs.json     optional: overlap statistics and boxes of the pairs (`featkit data`)

ROOT may also be a folder above it, one of these folders, or a zip of them; symbolic links are followed. A scene with no
pairs or only one image is skipped with a warning. Photographs whose size differs from their camera's are resized to it.
The index files of LoFTR, D2-Net, glue-factory and DISK are read as well (scene_info.py).

The release does not document the origin of K. It was made with COLMAP, so COLMAP's convention is assumed: the *corner*
of the top-left pixel is (0, 0), as in the output of `featkit data posed-pairs`. `featkit train scfeat --set
data.origin=centre` selects the other convention. In memory K is always in featkit pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field

from featkit.core.config import Config, Count, Degrees, Factor, FactorOrZero, PositiveShare, Share, Side, digest
from featkit.core.errors import BadInputError
from featkit.data.posed_format import CameraTable, has_lines, parse_cameras, parse_pairs
from featkit.data.scene_info import IndexedScene, OverlapLimits, is_scene_info, read_indices
from featkit.data.tree import FileTree, open_tree
from featkit.geometry.epipolar import SAME_PLACE, fundamental_matrix
from featkit.geometry.pixels import intrinsics_from_colmap

LOGGER = logging.getLogger(__name__)
ALIGNED, CAMERAS, PAIRS, STATISTICS, IMAGES = "aligned", "img_cam.txt", "pairs.txt", "pairs.json", "images"
GRID = 5  # points per image axis; the epipolar line of at least one must cross the other image


class PosedConfig(Config):
    """How posed pairs are read, and which of them are used."""

    origin: Literal["corner", "centre"] = "corner"
    """Origin of K's principal point: corner (COLMAP) or centre (featkit) of the top-left pixel."""
    max_rotation_deg: Degrees = Field(80.0, gt=0)
    """Largest relative rotation of the two cameras, degrees. CAPS and SCFeat: 80."""
    max_pairs: Count = 5000
    """Maximum number of pairs per scene/dense*, drawn at random. CAPS and SCFeat: 5,000."""
    scenes: tuple[str, ...] = ()
    """Scenes to use, by folder name (0001, or 0001/dense0); empty: all. Also set by `--scenes FILE`. SCFeat, like CAPS,
    trains on 130 of MegaDepth's 196 scenes: those in the folder `train/` of CAPS's release."""
    min_overlap: Share = Field(0.1, lt=1)
    """Smallest overlap of pairs from a scene_info index (exclusive). LoFTR and glue-factory: 0.1."""
    max_overlap: PositiveShare = 0.7
    """Largest overlap of pairs from a scene_info index. LoFTR and glue-factory: 0.7."""
    stretch_tolerance: FactorOrZero = 0.02
    """Largest relative difference between the factors in width and height from the camera's size to the photograph's.
    Beyond it the photograph was cropped or rotated and is refused."""
    min_side_px: Side = 64
    """Shortest accepted side of an image, px."""
    rotation_tolerance: Factor = 1e-3
    """Largest entry of R R^T - 1."""
    principal_tolerance: Factor = 0.2
    """Largest distance of the principal point from the image centre, as a fraction of the side. Beyond it K belongs to
    the image at another size. Raise it for photographs that were cropped on one side."""


@dataclass(frozen=True)
class SceneCameras:
    """The cameras of one scene. intrinsics: in featkit pixels. sizes: width, height; poses are world to camera.

    files: paths relative to the tree, or absolute.
    """

    name: str
    image_names: tuple[str, ...]
    sizes: Int[np.ndarray, "m 2"]
    intrinsics: Float[np.ndarray, "m 3 3"]
    rotations: Float[np.ndarray, "m 3 3"]
    translations: Float[np.ndarray, "m 3"]
    files: tuple[str, ...]


@dataclass(frozen=True)
class PosedPairs:
    """Pairs of all scenes, in the order of the files. pairs: scene and its two images. boxes: the part of each image
    that the other sees (x0 y0 x1 y1, featkit pixels; the whole image if unknown). is_whole: whether these are all
    scenes of the tree, not selected by `scenes` and not read from an index.
    """

    tree: FileTree
    scenes: tuple[SceneCameras, ...]
    pairs: Int[np.ndarray, "n 3"]
    boxes: Float[np.ndarray, "n 2 4"]
    stretch_tolerance: float = PosedConfig().stretch_tolerance
    is_whole: bool = True

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, index: Int[np.ndarray, " k"]) -> PosedPairs:
        """The pairs at `index`, in that order."""
        return replace(self, pairs=self.pairs[index], boxes=self.boxes[index])

    def image_folders(self) -> tuple[Path, ...]:
        """The folders of the photographs, in the order of the scenes."""
        files = (self.tree.where(file) for scene in self.scenes for file in scene.files)
        return tuple(dict.fromkeys(Path(file).parent for file in files))

    def names(self, index: int) -> tuple[str, str]:
        """`scene/image` of both images of a pair."""
        scene, first, second = self.pairs[index]
        named = self.scenes[scene]
        return f"{named.name}/{named.image_names[first]}", f"{named.name}/{named.image_names[second]}"

    def fundamental01(self, index: int) -> Float[np.ndarray, "3 3"]:
        """F of a pair: x1^T F x0 = 0 in featkit pixels of the files, Frobenius norm 1."""
        scene, first, second = self.pairs[index]
        cameras = self.scenes[scene]
        parts = (cameras.intrinsics, cameras.rotations, cameras.translations)
        return fundamental_matrix(*(part[image] for image in (first, second) for part in parts))

    def pixels(self, scene: int, image: int) -> UInt8[np.ndarray, "h w 3"]:
        """A photograph, RGB, at its camera's size. Raises BadInputError if it is broken, cropped or rotated."""
        name, (width, height) = self.scenes[scene].files[image], self.scenes[scene].sizes[image]
        file = Path(name)  # absolute if it comes from an index, whose photographs can be anywhere
        stored = FileTree(file.parent).stored_pixels(file.name) if file.is_absolute() else self.tree.stored_pixels(name)
        if stored.shape[:2] == (height, width):
            return stored
        factors = resize_factors((width, height), (stored.shape[1], stored.shape[0]), self.stretch_tolerance)
        if factors is None:
            raise BadInputError(
                f"{self.tree.where(name)}: {stored.shape[1]} x {stored.shape[0]} pixels, but its camera has {width} x"
                f" {height}: cropped or rotated; use the images that the cameras were made for (at any size)"
            )
        how = cv2.INTER_AREA if max(factors) > 1 else cv2.INTER_CUBIC
        return cv2.resize(stored, (int(width), int(height)), interpolation=how)  # maps corners to corners, like K


def resize_factors(camera: tuple[int, int], file: tuple[int, int], tolerance: float) -> tuple[float, float] | None:
    """Factors from the camera's size to the file's, in width and height; None if the file was cropped or rotated.

    tolerance: largest relative difference between the two factors, in addition to the rounding to whole pixels.
    """
    factors = file[0] / camera[0], file[1] / camera[1]
    rounding = 1 / camera[0] + 1 / camera[1]
    return factors if abs(factors[0] - factors[1]) <= max(factors) * (tolerance + rounding) else None


def read_posed_pairs(root: Path, config: PosedConfig | None = None, seed: int = 0) -> PosedPairs:
    """Read all scenes in a folder, a zip or an index file. Raises BadInputError with the file and line of an error.

    seed: random seed for the choice of pairs in scenes that have more than `max_pairs`.
    """
    config = config or PosedConfig()
    tree, names = _open_root(root)
    generator = np.random.default_rng([seed, 0])
    scenes: list[SceneCameras] = []
    pairs, boxes, nothing = [], [], []
    for source in _read_sources(tree, names, config):
        if isinstance(source, str):
            nothing.append(source)
            LOGGER.warning("passed over: %s", source)
            continue
        indexed, boxes_of_scene = source
        scene = _posed_scene(indexed, config)
        chosen = _choose_pairs(scene, indexed.pairs, config, generator)
        number = np.full((len(chosen), 1), len(scenes))
        scenes.append(scene)
        pairs.append(np.concatenate([number, indexed.pairs[chosen]], axis=1))
        boxes.append(boxes_of_scene[chosen])
    if not scenes:
        raise BadInputError(f"{nothing[0]}; there is no other scene" if nothing else _no_scene_message(root, config))
    posed_pairs = PosedPairs(
        tree,
        tuple(scenes),
        np.concatenate(pairs),
        np.concatenate(boxes),
        config.stretch_tolerance,
        not config.scenes and not any(Path(scene.files[0]).is_absolute() for scene in scenes),
    )
    if not len(posed_pairs):
        raise BadInputError(
            f"{root}: no pair is left: all are rotated by more than {config.max_rotation_deg:g} degrees, or their"
            " images do not overlap; check the poses in img_cam.txt (they must be world to camera)"
        )
    return posed_pairs


def _open_root(root: Path) -> tuple[FileTree, list[str]]:
    """The tree and its files; for an index file, its folder and that file alone."""
    if root.is_file() and root.suffix in {".npz", ".json"}:
        return FileTree(root.absolute().parent), [root.name]
    tree = open_tree(root)
    return tree, tree.names()


def _no_scene_message(root: Path, config: PosedConfig) -> str:
    if config.scenes:
        return f"{root}: none of the {len(config.scenes)} listed scenes exists, such as {config.scenes[0]!r}"
    return (
        f"{root}: no scene/dense*/{ALIGNED}/{CAMERAS} below it, and no scene_info/*.npz; make posed pairs with `featkit"
        " data posed-pairs`"
    )


Source = tuple[IndexedScene, Float[np.ndarray, "n 2 4"]]


def _read_sources(tree: FileTree, names: Sequence[str], config: PosedConfig) -> Iterator[Source | str]:
    """The wanted scenes with the boxes of their pairs; a message for a scene without usable pairs."""
    files = frozenset(names)
    wanted = _SceneFilter(config.scenes)
    for name in names:
        if name == CAMERAS or name.endswith(f"{ALIGNED}/{CAMERAS}"):
            folder = name.removesuffix(CAMERAS)
            if wanted.has(_scene_name(tree, folder)):
                yield _read_scene(tree, folder, files, config)
    indices = [name for name in names if is_scene_info(tree, name)]
    for indexed in read_indices(tree, indices, OverlapLimits(config.min_overlap, config.max_overlap), wanted.has):
        sound = indexed if isinstance(indexed, str) else _without_invalid_cameras(indexed, config)
        yield sound if isinstance(sound, str) else (sound, _full_boxes(sound.table.sizes, sound.pairs))
    wanted.warn()


class _SceneFilter:
    """The wanted scenes: a listed name selects every scene whose path contains its parts consecutively."""

    def __init__(self, names: Sequence[str]):
        self._names = {name: tuple(PurePosixPath(name).parts) for name in names}
        self._matched: set[str] = set()

    def has(self, scene: str) -> bool:
        parts = PurePosixPath(scene).parts
        matching = {
            name
            for name, listed in self._names.items()
            if any(parts[start : start + len(listed)] == listed for start in range(len(parts) - len(listed) + 1))
        }
        self._matched |= matching
        return bool(matching) or not self._names

    def warn(self) -> None:
        """Warn about listed names that no scene has."""
        missing = [name for name in self._names if name not in self._matched]
        if missing:
            LOGGER.warning(
                "%d of the %d listed scenes do not exist, such as %s", len(missing), len(self._names), missing[0]
            )


def _without_invalid_cameras(indexed: IndexedScene, config: PosedConfig) -> IndexedScene | str:
    """Drop the pairs of images with invalid cameras, with a warning; a message if no pair is left."""
    faults = camera_faults(indexed.table, config)
    if not faults:
        return indexed
    row, why = next(iter(faults.items()))
    LOGGER.warning(
        "%s: %d photographs are left out, such as %s: %s", indexed.where, len(faults), indexed.files[row], why
    )
    pairs = indexed.pairs[~np.isin(indexed.pairs, list(faults)).any(axis=1)]
    return replace(indexed, pairs=pairs) if len(pairs) else f"{indexed.where}: no pair of usable cameras"


def _read_scene(tree: FileTree, folder: str, names: frozenset[str], config: PosedConfig) -> Source | str:
    where, of_pairs = tree.where(folder + CAMERAS), tree.where(folder + PAIRS)
    text = tree.text(folder + CAMERAS)
    if not has_lines(text):
        return f"{where}: no images in it"
    table = parse_cameras(text, where)
    if len(table.names) < 2:
        return f"{where}: only one image in it; a pair needs two"
    if folder + PAIRS not in names:
        return f"{of_pairs}: no such file"
    if not has_lines(tree.text(folder + PAIRS)):
        return f"{of_pairs}: no pairs in it"
    files = tuple(f"{folder}{IMAGES}/{name}" for name in table.names)
    for line, file in zip(table.lines, files, strict=True):
        if file not in names:
            raise BadInputError(f"{where}:{line}: no image {tree.where(file)}; add it or remove the line")
    check_cameras(table, where, config)
    pairs, _ = parse_pairs(tree.text(folder + PAIRS), table.names, of_pairs)
    scene = IndexedScene(_scene_name(tree, folder), where, table, files, pairs)
    return scene, _read_boxes(tree, folder, table, pairs)


def _posed_scene(indexed: IndexedScene, config: PosedConfig) -> SceneCameras:
    table = indexed.table
    intrinsics = intrinsics_from_colmap(table.intrinsics) if config.origin == "corner" else table.intrinsics
    return SceneCameras(
        indexed.name, table.names, table.sizes, intrinsics, table.rotations, table.translations, indexed.files
    )


def _scene_name(tree: FileTree, folder: str) -> str:
    """scene/dense0, preceded by any folders between it and the root."""
    if folder in {"", f"{ALIGNED}/"}:  # the root is inside of the scene
        root = tree.root.resolve()
        return root.name if folder else root.parent.name
    return str(PurePosixPath(folder).parent)


def check_cameras(table: CameraTable, where: str, config: PosedConfig) -> None:
    """Raise BadInputError for an invalid camera."""
    for row, why in camera_faults(table, config).items():
        raise BadInputError(f"{where}:{table.lines[row]}: {table.names[row]!r}: {why}")


def camera_faults(table: CameraTable, config: PosedConfig) -> dict[int, str]:
    """Invalid cameras by row, with the reason: R is not a rotation, the image is too small, K is for another size."""
    product = table.rotations @ np.swapaxes(table.rotations, 1, 2)
    skew = np.abs(product - np.eye(3)).max(axis=(1, 2)) > config.rotation_tolerance
    off = np.abs(table.intrinsics[:, :2, 2] / table.sizes - 0.5).max(axis=1)
    faults = (
        (
            skew | (np.linalg.det(table.rotations) < 0),
            "its R is not a rotation (R R^T = 1, determinant 1); it must be row by row, world to camera",
        ),
        (
            table.sizes.min(axis=1) < config.min_side_px,
            f"smaller than {config.min_side_px} px; too small to train on",
        ),
        (
            off > config.principal_tolerance,
            "its principal point is far from the image centre: is K for another image size? If the photograph was"
            " cropped, raise principal_tolerance (in a training: --set data.principal_tolerance=0.4)",
        ),
    )
    reasons: dict[int, str] = {}
    for bad, why in faults:
        for row in np.flatnonzero(bad).tolist():
            reasons.setdefault(row, why)
    return reasons


def _choose_pairs(
    scene: SceneCameras, pairs: Int[np.ndarray, "n 2"], config: PosedConfig, generator: np.random.Generator
) -> Int[np.ndarray, " k"]:
    """Which pairs are used."""
    kept = np.flatnonzero(_within_rotation(scene, pairs, config.max_rotation_deg))
    if len(kept) > config.max_pairs:
        kept = np.sort(generator.permutation(kept)[: config.max_pairs])
    usable = kept[_mutually_visible(scene, pairs[kept])]
    if len(usable) < min(len(pairs), config.max_pairs):
        LOGGER.info("%s: %d of %d pairs are used", scene.name, len(usable), len(pairs))
    return usable


def _within_rotation(
    scene: SceneCameras, pairs: Int[np.ndarray, "n 2"], max_rotation_deg: float
) -> Bool[np.ndarray, " n"]:
    """Pairs with a baseline whose relative rotation is at most `max_rotation_deg`."""
    first, second = pairs.T
    cosine = (np.einsum("nij,nij->n", scene.rotations[first], scene.rotations[second]) - 1) / 2
    centres = -np.einsum("mji,mj->mi", scene.rotations, scene.translations)
    reach = np.linalg.norm(scene.translations, axis=1)
    has_baseline = np.linalg.norm(centres[first] - centres[second], axis=1) > 10 * SAME_PLACE * (
        reach[first] + reach[second]
    )
    return has_baseline & (cosine >= np.cos(np.radians(max_rotation_deg)))


def _mutually_visible(scene: SceneCameras, pairs: Int[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Pairs where, in both directions, the epipolar line of some grid point crosses the other image."""
    if not len(pairs):
        return np.zeros(0, bool)
    parts = (scene.intrinsics, scene.rotations, scene.translations)
    fundamentals = fundamental_matrix(*(part[side] for side in pairs.T for part in parts))
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, GRID)] * 2), axis=-1).reshape(-1, 2)
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])

    def homogeneous_points(places: np.ndarray, images: np.ndarray) -> np.ndarray:
        points = places * scene.sizes[images][:, None] - 0.5
        return np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=2)

    def crosses(matrices: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        lines = homogeneous_points(grid, source) @ np.swapaxes(matrices, 1, 2)
        sides = lines @ np.swapaxes(homogeneous_points(corners, target), 1, 2)
        return ((sides.min(axis=2) < 0) & (sides.max(axis=2) > 0)).any(axis=1)

    first, second = pairs.T
    return crosses(fundamentals, first, second) & crosses(np.swapaxes(fundamentals, 1, 2), second, first)


def _full_boxes(sizes: Int[np.ndarray, "m 2"], pairs: Int[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2 4"]:
    """Boxes that cover the whole images."""
    return np.concatenate([np.full((*pairs.shape, 2), -0.5), sizes[pairs] - 0.5], axis=2)


def _read_boxes(
    tree: FileTree, folder: str, table: CameraTable, pairs: Int[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2 4"]:
    """The boxes in pairs.json; whole images if it is missing, invalid or made for other pairs."""
    full = _full_boxes(table.sizes, pairs)
    try:
        statistics = json.loads(tree.text(folder + STATISTICS))
        if statistics["of_pairs"] != digest(tree.text(folder + PAIRS)):
            return full
        boxes = np.array([statistics["box0"], statistics["box1"]], dtype=np.float64)
    except (BadInputError, ValueError, KeyError, TypeError, RecursionError):
        return full
    if boxes.shape != (2, len(pairs), 4) or not np.isfinite(boxes).all():
        return full
    return np.swapaxes(boxes, 0, 1)


# ----------------------------------------------------------------------------------------------------------------------
# Split into training pairs and validation pairs.


def split_pairs(pairs: PosedPairs, share: float, seed: int) -> tuple[PosedPairs, PosedPairs]:
    """Split into (training, validation). share: fraction of the images of every scene that are held out.

    The held-out images of a scene are connected: they grow along pairs from a random image. A pair of two held-out
    images is for validation, a pair with only one is in neither part. If that leaves no validation pair (few images), a
    fraction of the pairs is held out instead, whose images are also used in training. Raises BadInputError if a part
    would be empty.
    """
    generator = np.random.default_rng([seed, 3])
    training, validation = [], []
    for number, scene in enumerate(pairs.scenes):
        rows = np.flatnonzero(pairs.pairs[:, 0] == number)
        if not len(rows):
            continue
        of_scene = pairs.pairs[rows, 1:]
        held_out = _grow_held_out(of_scene, len(scene.image_names), share, generator)[of_scene]
        train, test = ~held_out.any(axis=1), held_out.all(axis=1)
        if not test.any() or not train.any():
            test = _random_subset(len(rows), share, generator)
            train = ~test
            LOGGER.info("%s: too few images to hold some out; pairs are held out instead", scene.name)
        training.append(rows[train])
        validation.append(rows[test])
    parts = [np.concatenate(part) if part else np.zeros(0, np.int64) for part in (training, validation)]
    if not all(len(part) for part in parts):
        raise BadInputError(f"only {len(pairs)} pairs: too few for training and validation")
    return pairs.select(parts[0]), pairs.select(parts[1])


def _grow_held_out(
    of_scene: Int[np.ndarray, "n 2"], images: int, share: float, generator: np.random.Generator
) -> Bool[np.ndarray, " m"]:
    """Images to hold out: a random one, then repeatedly the image with the most pairs with those held out so far."""
    wanted = round(share * images)
    held_out = np.zeros(images, bool)
    tie = generator.random(images)
    while held_out.sum() < wanted:
        links = np.zeros(images)
        for side, other in ((0, 1), (1, 0)):
            np.add.at(links, of_scene[:, side], held_out[of_scene[:, other]].astype(float))
        paired = np.bincount(of_scene.ravel(), minlength=images) > 0
        score = np.where(held_out | ~paired, -1.0, links + tie)
        if score.max() < 0:
            break
        held_out[score.argmax()] = True
    return held_out


def _random_subset(count: int, share: float, generator: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """A random fraction of the pairs, at least one if there are two or more."""
    chosen = np.zeros(count, bool)
    chosen[generator.permutation(count)[: max(round(share * count), int(count > 1))]] = True
    return chosen
