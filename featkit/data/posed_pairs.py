"""Pairs of photographs with camera poses, in the layout of the MegaDepth release of CAPS (Wang et al., ECCV 2020).

    ROOT/scene/dense0/aligned/images/...     the photographs, without lens distortion
    ROOT/scene/dense0/aligned/img_cam.txt    size, K and world-to-camera pose of each (posed_format.py)
    ROOT/scene/dense0/aligned/pairs.txt      which of them to learn from together
    ROOT/scene/dense0/aligned/pairs.json     optional: how much the two of a pair share, and where (`featkit data`)

ROOT may be a folder above it, one of these folders, or a zip of them. Nobody states where the K of the release has its
origin. It was made with COLMAP, so it is taken as COLMAP's: the *corner* of the top-left pixel is (0, 0), as in what
`featkit data posed-pairs` writes. `featkit train scfeat --set data.origin=centre` reads it the other way. In memory K
is always in featkit's pixels.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from pydantic import Field

from featkit.config import Config
from featkit.data.image_tree import FileTree, open_tree
from featkit.data.posed_format import CameraTable, parse_cameras, parse_pairs
from featkit.errors import BadInputError
from featkit.geometry.epipolar import SAME_PLACE, fundamental_matrix
from featkit.geometry.homography import intrinsics_from_colmap
from featkit.store.stamp import digest

LOGGER = logging.getLogger(__name__)
ALIGNED, CAMERAS, PAIRS, STATISTICS, IMAGES = "aligned", "img_cam.txt", "pairs.txt", "pairs.json", "images"
GRID = 5  # points per axis of an image, of which at least one line must cross the other image


class PosedConfig(Config):
    """How posed pairs are read, and which of them are taken."""

    origin: Literal["corner", "centre"] = "corner"
    """What the principal point is counted from: the corner of the top-left pixel (COLMAP) or its centre (featkit)."""
    max_rotation_deg: float = Field(80.0, gt=0, le=180)
    """Pairs turned further against each other are left out, degrees. CAPS and SCFeat: 80."""
    max_pairs: int = Field(5000, ge=1)
    """Of each scene/dense*, drawn at random. CAPS and SCFeat: 5,000."""
    min_side_px: int = Field(64, ge=1)
    """Smaller images are refused, px."""
    rotation_tolerance: float = Field(1e-3, gt=0)
    """Largest entry of R R^T - 1."""
    principal_tolerance: float = Field(0.2, gt=0)
    """Largest distance of the principal point from the image's middle, as a share of its side: beyond it K belongs to
    the image at another size. Raise it for photographs that were cropped on one side."""


@dataclass(frozen=True)
class PosedScene:
    """The cameras of one scene. intrinsics: for featkit's pixels. sizes: width, height; poses are world to camera."""

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
    featkit pixels; the whole image where nobody says). The order is that of the files.
    """

    tree: FileTree
    scenes: tuple[PosedScene, ...]
    pairs: Int[np.ndarray, "n 3"]
    boxes: Float[np.ndarray, "n 2 4"]

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, index: Int[np.ndarray, " k"]) -> PosedPairs:
        """The pairs at `index`, in that order."""
        return PosedPairs(self.tree, self.scenes, self.pairs[index], self.boxes[index])

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
        """A photograph, RGB. Raises BadInputError when it is broken or not of its camera's size."""
        name, (width, height) = self.scenes[scene].files[image], self.scenes[scene].sizes[image]
        found = self.tree.stored_pixels(name)
        if found.shape[:2] != (height, width):
            raise BadInputError(
                f"{self.tree.where(name)}: {found.shape[1]} x {found.shape[0]} pixels, but its camera in {CAMERAS} is"
                f" of {width} x {height}; use the images that the cameras were made for"
            )
        return found


def read_posed_pairs(root: Path, config: PosedConfig | None = None, seed: int = 0) -> PosedPairs:
    """All scenes below a folder or in a zip. Raises BadInputError that says in which file and line something is wrong.

    seed: decides which pairs are drawn where a scene has more than `max_pairs`.
    """
    config = config or PosedConfig()
    tree = open_tree(root)
    names = frozenset(tree.names())
    folders = [
        name.removesuffix(CAMERAS) for name in sorted(names) if name.endswith(f"{ALIGNED}/{CAMERAS}") or name == CAMERAS
    ]
    if not folders:
        raise BadInputError(
            f"{root}: no scene/dense*/{ALIGNED}/{CAMERAS} below it; make posed pairs with `featkit data posed-pairs`"
        )
    generator = np.random.default_rng([seed, 0])
    scenes, pairs, boxes = [], [], []
    for number, folder in enumerate(folders):
        scene = _read_scene(tree, folder, names, config)
        chosen, seen = _read_pairs(tree, folder, scene, config, generator)
        scenes.append(scene)
        pairs.append(np.concatenate([np.full((len(chosen), 1), number), chosen], axis=1))
        boxes.append(seen)
    found = PosedPairs(tree, tuple(scenes), np.concatenate(pairs), np.concatenate(boxes))
    if not len(found):
        raise BadInputError(
            f"{root}: no pair is left: all are turned by more than {config.max_rotation_deg:g} degrees, or their images"
            " see nothing of each other; check the poses in img_cam.txt (they are world to camera)"
        )
    return found


def _read_scene(tree: FileTree, folder: str, names: frozenset[str], config: PosedConfig) -> PosedScene:
    where = tree.where(folder + CAMERAS)
    table = parse_cameras(tree.text(folder + CAMERAS), where)
    if len(table.names) < 2:
        raise BadInputError(f"{where}: only one image in it; a pair takes two of a scene")
    files = tuple(f"{folder}{IMAGES}/{name}" for name in table.names)
    for line, file in zip(table.lines, files, strict=True):
        if file not in names:
            raise BadInputError(
                f"{where}:{line}: there is no image {tree.where(file)}; put it there or remove the line"
            )
    check_cameras(table, where, config)
    intrinsics = intrinsics_from_colmap(table.intrinsics) if config.origin == "corner" else table.intrinsics
    return PosedScene(
        _name_of(tree, folder), table.names, table.sizes, intrinsics, table.rotations, table.translations, files
    )


def _name_of(tree: FileTree, folder: str) -> str:
    """scene/dense0, and so much of what lies above it as stands between it and the root."""
    if folder in {"", f"{ALIGNED}/"}:  # the root lies inside of the scene
        root = tree.root.resolve()
        return root.name if folder else root.parent.name
    return str(PurePosixPath(folder).parent)


def check_cameras(table: CameraTable, where: str, config: PosedConfig) -> None:
    """Raise BadInputError for a camera with a fault."""
    found = camera_fault(table, config)
    if found is not None:
        row, why = found
        raise BadInputError(f"{where}:{table.lines[row]}: {table.names[row]!r}: {why}")


def camera_fault(table: CameraTable, config: PosedConfig) -> tuple[int, str] | None:
    """The first camera that cannot be learned from, and why: a pose that is no rotation, an image too small, a K that
    belongs to another size.
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
    return next(((int(bad.argmax()), why) for bad, why in faults if bad.any()), None)


def _read_pairs(
    tree: FileTree, folder: str, scene: PosedScene, config: PosedConfig, generator: np.random.Generator
) -> tuple[Int[np.ndarray, "n 2"], Float[np.ndarray, "n 2 4"]]:
    where = tree.where(folder + PAIRS)
    pairs, _ = parse_pairs(tree.text(folder + PAIRS), scene.image_names, where)
    boxes = _read_boxes(tree, folder, scene, pairs)
    kept = np.flatnonzero(_alike(scene, pairs, config.max_rotation_deg))
    if len(kept) > config.max_pairs:
        kept = np.sort(generator.permutation(kept)[: config.max_pairs])
    seen = kept[_see_each_other(scene, pairs[kept])]
    if len(seen) < min(len(pairs), config.max_pairs):
        LOGGER.info("%s: %d of %d pairs are taken", scene.name, len(seen), len(pairs))
    return pairs[seen], boxes[seen]


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


def _read_boxes(
    tree: FileTree, folder: str, scene: PosedScene, pairs: Int[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2 4"]:
    """What pairs.json says that images see of each other; whole images where it is missing or of other pairs."""
    low = np.full((*pairs.shape, 2), -0.5)
    whole = np.concatenate([low, scene.sizes[pairs] - 0.5], axis=2)
    try:
        told = json.loads(tree.text(folder + STATISTICS))
        if told["of_pairs"] != digest(tree.text(folder + PAIRS)):
            return whole
        boxes = np.array([told["box0"], told["box1"]], dtype=np.float64)
    except (BadInputError, ValueError, KeyError, TypeError):
        return whole
    if boxes.shape != (2, len(pairs), 4) or not np.isfinite(boxes).all():
        return whole
    return np.swapaxes(boxes, 0, 1)
