"""Pairs of photographs with camera poses, in the layout of the MegaDepth release of CAPS (Wang et al., ECCV 2020).

    ROOT/scene/dense0/aligned/images/...     the photographs, without lens distortion
    ROOT/scene/dense0/aligned/img_cam.txt    size, K and world-to-camera pose of each (posed_format.py)
    ROOT/scene/dense0/aligned/pairs.txt      which of them to learn from together
    ROOT/scene/dense0/aligned/pairs.json     optional: how much the two of a pair share, and where (`featkit data`)

ROOT may be a folder above it, one of these folders, or a zip of them; symbolic links are followed. A scene without
pairs, or of one image, is passed over with a line that names it. Photographs of another size than their cameras' are
resized to it. The index files of LoFTR, D2-Net, glue-factory and DISK are read as well (scene_info.py).

Nobody states where the K of the release has its origin. It was made with COLMAP, so it is taken as COLMAP's: the
*corner* of the top-left pixel is (0, 0), as in what `featkit data posed-pairs` writes. `featkit train scfeat --set
data.origin=centre` reads it the other way. In memory K is always in featkit's pixels.
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
from featkit.data.scene_info import IndexedScene, OverlapLimits, is_index, read_indices
from featkit.data.tree import FileTree, open_tree
from featkit.geometry.epipolar import SAME_PLACE, fundamental_matrix
from featkit.geometry.pixels import intrinsics_from_colmap

LOGGER = logging.getLogger(__name__)
ALIGNED, CAMERAS, PAIRS, STATISTICS, IMAGES = "aligned", "img_cam.txt", "pairs.txt", "pairs.json", "images"
GRID = 5  # points per axis of an image, of which at least one line must cross the other image


class PosedConfig(Config):
    """How posed pairs are read, and which of them are taken."""

    origin: Literal["corner", "centre"] = "corner"
    """What the principal point is counted from: the corner of the top-left pixel (COLMAP) or its centre (featkit)."""
    max_rotation_deg: Degrees = Field(80.0, gt=0)
    """Pairs turned further against each other are left out, degrees. CAPS and SCFeat: 80."""
    max_pairs: Count = 5000
    """Of each scene/dense*, drawn at random. CAPS and SCFeat: 5,000."""
    scenes: tuple[str, ...] = ()
    """Only these, by the name of their folder (0001, or 0001/dense0); none named: all. `--scenes FILE` fills it.
    SCFeat, as CAPS, learns from 130 of MegaDepth's 196: the folders in `train/` of CAPS's release are that list."""
    min_overlap: Share = Field(0.1, lt=1)
    """Of a scene_info index: pairs that share no more are left out. LoFTR and glue-factory: 0.1."""
    max_overlap: PositiveShare = 0.7
    """Of a scene_info index: pairs that share more are left out. LoFTR and glue-factory: 0.7."""
    stretch_tolerance: FactorOrZero = 0.02
    """Largest relative difference of the two factors, in width and in height, by which a photograph differs from its
    camera's size: beyond it the photograph was cropped or turned and is refused."""
    min_side_px: Side = 64
    """Smaller images are refused, px."""
    rotation_tolerance: Factor = 1e-3
    """Largest entry of R R^T - 1."""
    principal_tolerance: Factor = 0.2
    """Largest distance of the principal point from the image's middle, as a share of its side: beyond it K belongs to
    the image at another size. Raise it for photographs that were cropped on one side."""


@dataclass(frozen=True)
class PosedScene:
    """The cameras of one scene. intrinsics: for featkit's pixels. sizes: width, height; poses are world to camera.

    files: names below the tree, or absolute.
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
    """Pairs of all scenes. pairs: scene and its two images. boxes: what each of them sees of the other (x0 y0 x1 y1,
    featkit pixels; the whole image where nobody says). The order is that of the files. is_whole: all scenes of the
    tree, read where they are: neither from a list of some nor by way of an index.
    """

    tree: FileTree
    scenes: tuple[PosedScene, ...]
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
        """F of a pair: x1^T F x0 = 0 in featkit pixels of the files; of Frobenius norm 1."""
        scene, first, second = self.pairs[index]
        cameras = self.scenes[scene]
        parts = (cameras.intrinsics, cameras.rotations, cameras.translations)
        return fundamental_matrix(*(part[image] for image in (first, second) for part in parts))

    def pixels(self, scene: int, image: int) -> UInt8[np.ndarray, "h w 3"]:
        """A photograph, RGB, at its camera's size. Raises BadInputError when it is broken, cropped or turned."""
        name, (width, height) = self.scenes[scene].files[image], self.scenes[scene].sizes[image]
        file = Path(name)  # absolute: found by an index's reader, wherever its photographs are
        found = FileTree(file.parent).stored_pixels(file.name) if file.is_absolute() else self.tree.stored_pixels(name)
        if found.shape[:2] == (height, width):
            return found
        factors = resize_factors((width, height), (found.shape[1], found.shape[0]), self.stretch_tolerance)
        if factors is None:
            raise BadInputError(
                f"{self.tree.where(name)}: {found.shape[1]} x {found.shape[0]} pixels, but its camera is of {width} x"
                f" {height}: cropped or turned; use the images that the cameras were made for (of any size)"
            )
        how = cv2.INTER_AREA if max(factors) > 1 else cv2.INTER_CUBIC
        return cv2.resize(found, (int(width), int(height)), interpolation=how)  # corners stay corners, as K counts


def resize_factors(camera: tuple[int, int], file: tuple[int, int], tolerance: float) -> tuple[float, float] | None:
    """How much larger a file is than its camera says, in width and in height; None where it was cropped or turned.

    tolerance: of the relative difference between the two factors, beside the rounding of the sides to whole pixels.
    """
    factors = file[0] / camera[0], file[1] / camera[1]
    rounding = 1 / camera[0] + 1 / camera[1]
    return factors if abs(factors[0] - factors[1]) <= max(factors) * (tolerance + rounding) else None


def read_posed_pairs(root: Path, config: PosedConfig | None = None, seed: int = 0) -> PosedPairs:
    """All scenes below a folder or in a zip, or of one index file. Raises BadInputError that says in which file and
    line something is wrong.

    seed: decides which pairs are drawn where a scene has more than `max_pairs`.
    """
    config = config or PosedConfig()
    tree, names = _opened(root)
    generator = np.random.default_rng([seed, 0])
    scenes: list[PosedScene] = []
    pairs, boxes, nothing = [], [], []
    for found in _sources(tree, names, config):
        if isinstance(found, str):
            nothing.append(found)
            LOGGER.warning("passed over: %s", found)
            continue
        indexed, seen = found
        scene = _scene_of(indexed, config)
        chosen = _chosen(scene, indexed.pairs, config, generator)
        number = np.full((len(chosen), 1), len(scenes))
        scenes.append(scene)
        pairs.append(np.concatenate([number, indexed.pairs[chosen]], axis=1))
        boxes.append(seen[chosen])
    if not scenes:
        raise BadInputError(f"{nothing[0]}; no other scene is there" if nothing else _no_scene(root, config))
    kept = PosedPairs(
        tree,
        tuple(scenes),
        np.concatenate(pairs),
        np.concatenate(boxes),
        config.stretch_tolerance,
        not config.scenes and not any(Path(scene.files[0]).is_absolute() for scene in scenes),
    )
    if not len(kept):
        raise BadInputError(
            f"{root}: no pair is left: all are turned by more than {config.max_rotation_deg:g} degrees, or their images"
            " see nothing of each other; check the poses in img_cam.txt (they are world to camera)"
        )
    return kept


def _opened(root: Path) -> tuple[FileTree, list[str]]:
    """The tree and its files; of a single index file, that alone."""
    if root.is_file() and root.suffix in {".npz", ".json"}:
        return FileTree(root.absolute().parent), [root.name]
    tree = open_tree(root)
    return tree, tree.names()


def _no_scene(root: Path, config: PosedConfig) -> str:
    if config.scenes:
        return f"{root}: none of the {len(config.scenes)} scenes of the list is there, such as {config.scenes[0]!r}"
    return (
        f"{root}: no scene/dense*/{ALIGNED}/{CAMERAS} below it, and no scene_info/*.npz; make posed pairs with `featkit"
        " data posed-pairs`"
    )


Source = tuple[IndexedScene, Float[np.ndarray, "n 2 4"]]


def _sources(tree: FileTree, names: Sequence[str], config: PosedConfig) -> Iterator[Source | str]:
    """The scenes that are asked for and the boxes of their pairs; of one with nothing to learn from, a line."""
    there = frozenset(names)
    wanted = _Wanted(config.scenes)
    for name in names:
        if name == CAMERAS or name.endswith(f"{ALIGNED}/{CAMERAS}"):
            folder = name.removesuffix(CAMERAS)
            if wanted.has(_name_of(tree, folder)):
                yield _read_scene(tree, folder, there, config)
    indices = [name for name in names if is_index(tree, name)]
    for found in read_indices(tree, indices, OverlapLimits(config.min_overlap, config.max_overlap), wanted.has):
        sound = found if isinstance(found, str) else _sound(found, config)
        yield sound if isinstance(sound, str) else (sound, _whole(sound.table.sizes, sound.pairs))
    wanted.warn()


class _Wanted:
    """The list of scenes: a name of it means every scene that has its parts, in a row, in its own name."""

    def __init__(self, names: Sequence[str]):
        self._names = {name: tuple(PurePosixPath(name).parts) for name in names}
        self._met: set[str] = set()

    def has(self, scene: str) -> bool:
        parts = PurePosixPath(scene).parts
        met = {
            name
            for name, own in self._names.items()
            if any(parts[at : at + len(own)] == own for at in range(len(parts) - len(own) + 1))
        }
        self._met |= met
        return bool(met) or not self._names

    def warn(self) -> None:
        """One line for the names that no scene has."""
        missing = [name for name in self._names if name not in self._met]
        if missing:
            LOGGER.warning(
                "%d of the %d scenes of the list are not there, such as %s", len(missing), len(self._names), missing[0]
            )


def _sound(found: IndexedScene, config: PosedConfig) -> IndexedScene | str:
    """Without the pairs of images whose cameras have a fault; one line names them."""
    faults = camera_faults(found.table, config)
    if not faults:
        return found
    row, why = next(iter(faults.items()))
    LOGGER.warning("%s: %d photographs are left out, such as %s: %s", found.where, len(faults), found.files[row], why)
    pairs = found.pairs[~np.isin(found.pairs, list(faults)).any(axis=1)]
    return replace(found, pairs=pairs) if len(pairs) else f"{found.where}: no pair of usable cameras"


def _read_scene(tree: FileTree, folder: str, names: frozenset[str], config: PosedConfig) -> Source | str:
    where, of_pairs = tree.where(folder + CAMERAS), tree.where(folder + PAIRS)
    text = tree.text(folder + CAMERAS)
    if not has_lines(text):
        return f"{where}: no images in it"
    table = parse_cameras(text, where)
    if len(table.names) < 2:
        return f"{where}: only one image in it; a pair takes two of a scene"
    if folder + PAIRS not in names:
        return f"{of_pairs}: no such file"
    if not has_lines(tree.text(folder + PAIRS)):
        return f"{of_pairs}: no pairs in it"
    files = tuple(f"{folder}{IMAGES}/{name}" for name in table.names)
    for line, file in zip(table.lines, files, strict=True):
        if file not in names:
            raise BadInputError(
                f"{where}:{line}: there is no image {tree.where(file)}; put it there or remove the line"
            )
    check_cameras(table, where, config)
    pairs, _ = parse_pairs(tree.text(folder + PAIRS), table.names, of_pairs)
    scene = IndexedScene(_name_of(tree, folder), where, table, files, pairs)
    return scene, _read_boxes(tree, folder, table, pairs)


def _scene_of(found: IndexedScene, config: PosedConfig) -> PosedScene:
    table = found.table
    intrinsics = intrinsics_from_colmap(table.intrinsics) if config.origin == "corner" else table.intrinsics
    return PosedScene(
        found.name, table.names, table.sizes, intrinsics, table.rotations, table.translations, found.files
    )


def _name_of(tree: FileTree, folder: str) -> str:
    """scene/dense0, and so much of what lies above it as stands between it and the root."""
    if folder in {"", f"{ALIGNED}/"}:  # the root lies inside of the scene
        root = tree.root.resolve()
        return root.name if folder else root.parent.name
    return str(PurePosixPath(folder).parent)


def check_cameras(table: CameraTable, where: str, config: PosedConfig) -> None:
    """Raise BadInputError for a camera with a fault."""
    for row, why in camera_faults(table, config).items():
        raise BadInputError(f"{where}:{table.lines[row]}: {table.names[row]!r}: {why}")


def camera_faults(table: CameraTable, config: PosedConfig) -> dict[int, str]:
    """The cameras that cannot be learned from, by row, and why: a pose that is no rotation, an image too small, a K
    that belongs to another size.
    """
    squared = table.rotations @ np.swapaxes(table.rotations, 1, 2)
    skew = np.abs(squared - np.eye(3)).max(axis=(1, 2)) > config.rotation_tolerance
    off = np.abs(table.intrinsics[:, :2, 2] / table.sizes - 0.5).max(axis=1)
    faults = (
        (
            skew | (np.linalg.det(table.rotations) < 0),
            "its nine numbers are no rotation (R R^T = 1, determinant 1); they stand row by row, world to camera",
        ),
        (
            table.sizes.min(axis=1) < config.min_side_px,
            f"smaller than {config.min_side_px} px; there is nothing to learn",
        ),
        (
            off > config.principal_tolerance,
            "its principal point is far from the image's middle: is K of the image at another size? If the photograph"
            " was cropped, raise principal_tolerance (in a training: --set data.principal_tolerance=0.4)",
        ),
    )
    found: dict[int, str] = {}
    for bad, why in faults:
        for row in np.flatnonzero(bad).tolist():
            found.setdefault(row, why)
    return found


def _chosen(
    scene: PosedScene, pairs: Int[np.ndarray, "n 2"], config: PosedConfig, generator: np.random.Generator
) -> Int[np.ndarray, " k"]:
    """Which pairs are taken."""
    kept = np.flatnonzero(_alike(scene, pairs, config.max_rotation_deg))
    if len(kept) > config.max_pairs:
        kept = np.sort(generator.permutation(kept)[: config.max_pairs])
    seen = kept[_see_each_other(scene, pairs[kept])]
    if len(seen) < min(len(pairs), config.max_pairs):
        LOGGER.info("%s: %d of %d pairs are taken", scene.name, len(seen), len(pairs))
    return seen


def _alike(scene: PosedScene, pairs: Int[np.ndarray, "n 2"], max_rotation_deg: float) -> Bool[np.ndarray, " n"]:
    """Pairs whose cameras stand apart and are turned by no more than an angle."""
    first, second = pairs.T
    cosine = (np.einsum("nij,nij->n", scene.rotations[first], scene.rotations[second]) - 1) / 2
    centres = -np.einsum("mji,mj->mi", scene.rotations, scene.translations)
    reach = np.linalg.norm(scene.translations, axis=1)
    apart = np.linalg.norm(centres[first] - centres[second], axis=1) > 10 * SAME_PLACE * (reach[first] + reach[second])
    return apart & (cosine >= np.cos(np.radians(max_rotation_deg)))


def _see_each_other(scene: PosedScene, pairs: Int[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Pairs where, both ways, the line of some point of a grid crosses the other image."""
    if not len(pairs):
        return np.zeros(0, bool)
    parts = (scene.intrinsics, scene.rotations, scene.translations)
    fundamentals = fundamental_matrix(*(part[side] for side in pairs.T for part in parts))
    share = np.stack(np.meshgrid(*[np.linspace(0, 1, GRID)] * 2), axis=-1).reshape(-1, 2)
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])

    def of_images(places: np.ndarray, images: np.ndarray) -> np.ndarray:
        points = places * scene.sizes[images][:, None] - 0.5
        return np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=2)

    def crosses(matrices: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        lines = of_images(share, source) @ np.swapaxes(matrices, 1, 2)
        sides = lines @ np.swapaxes(of_images(corners, target), 1, 2)
        return ((sides.min(axis=2) < 0) & (sides.max(axis=2) > 0)).any(axis=1)

    first, second = pairs.T
    return crosses(fundamentals, first, second) & crosses(np.swapaxes(fundamentals, 1, 2), second, first)


def _whole(sizes: Int[np.ndarray, "m 2"], pairs: Int[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2 4"]:
    """The boxes of whole images."""
    return np.concatenate([np.full((*pairs.shape, 2), -0.5), sizes[pairs] - 0.5], axis=2)


def _read_boxes(
    tree: FileTree, folder: str, table: CameraTable, pairs: Int[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2 4"]:
    """What pairs.json says that images see of each other; whole images where it is missing or of other pairs."""
    whole = _whole(table.sizes, pairs)
    try:
        told = json.loads(tree.text(folder + STATISTICS))
        if told["of_pairs"] != digest(tree.text(folder + PAIRS)):
            return whole
        boxes = np.array([told["box0"], told["box1"]], dtype=np.float64)
    except (BadInputError, ValueError, KeyError, TypeError, RecursionError):
        return whole
    if boxes.shape != (2, len(pairs), 4) or not np.isfinite(boxes).all():
        return whole
    return np.swapaxes(boxes, 0, 1)


# ----------------------------------------------------------------------------------------------------------------------
# Posed pairs to learn from, and pairs that are kept aside to choose weights by.


def split_pairs(pairs: PosedPairs, share: float, seed: int) -> tuple[PosedPairs, PosedPairs]:
    """(to learn from, held out). share: of the images of every scene that are held out.

    The images of a scene that are held out lie together: they grow from one drawn at random along pairs. A pair of two
    of them is held out, a pair of one of them is in neither part. Where that leaves no held-out pair (few images), a
    share of the pairs is held out instead, whose images are also learned from. Raises BadInputError when a part would
    be empty.
    """
    generator = np.random.default_rng([seed, 3])
    learned, held = [], []
    for number, scene in enumerate(pairs.scenes):
        rows = np.flatnonzero(pairs.pairs[:, 0] == number)
        if not len(rows):
            continue
        of_scene = pairs.pairs[rows, 1:]
        out = _grown(of_scene, len(scene.image_names), share, generator)[of_scene]
        train, test = ~out.any(axis=1), out.all(axis=1)
        if not test.any() or not train.any():
            test = _some(len(rows), share, generator)
            train = ~test
            LOGGER.info("%s: too few images to hold some of them out; pairs are held out instead", scene.name)
        learned.append(rows[train])
        held.append(rows[test])
    parts = [np.concatenate(part) if part else np.zeros(0, np.int64) for part in (learned, held)]
    if not all(len(part) for part in parts):
        raise BadInputError(f"only {len(pairs)} pairs: too few to learn from and hold some of them out")
    return pairs.select(parts[0]), pairs.select(parts[1])


def _grown(
    of_scene: Int[np.ndarray, "n 2"], images: int, share: float, generator: np.random.Generator
) -> Bool[np.ndarray, " m"]:
    """Images to hold out: from a random one, always the one next that has most pairs with those already held."""
    wanted = round(share * images)
    held = np.zeros(images, bool)
    tie = generator.random(images)
    while held.sum() < wanted:
        links = np.zeros(images)
        for one, other in ((0, 1), (1, 0)):
            np.add.at(links, of_scene[:, one], held[of_scene[:, other]].astype(float))
        paired = np.bincount(of_scene.ravel(), minlength=images) > 0
        score = np.where(held | ~paired, -1.0, links + tie)
        if score.max() < 0:
            break
        held[score.argmax()] = True
    return held


def _some(count: int, share: float, generator: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """A share of the pairs, at least one where two or more are there."""
    chosen = np.zeros(count, bool)
    chosen[generator.permutation(count)[: max(round(share * count), int(count > 1))]] = True
    return chosen
