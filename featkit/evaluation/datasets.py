"""Finds the datasets below a folder by their layout, and with them the benchmarks that can run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from featkit.core.errors import BadInputError
from featkit.core.registry import Method
from featkit.data.phototour import SCENES
from featkit.evaluation.eth_scenes import known_scene
from featkit.evaluation.patches import BASELINES
from featkit.evaluation.sequences import is_sequence
from featkit.images.listing import SUFFIXES
from featkit.io.atomic import read_lines
from featkit.weights.files import learned_scenes
from featkit.weights.manifest import SUFFIX, manifest_rows

LOGGER = logging.getLogger(__name__)
DEPTH = 4  # levels of subfolders searched
WANTED = (
    "sequences with homographies (HPatches, Oxford), scenes with images/, poses.txt and camera.txt (ETH, Strecha), or"
    " with images/ and sparse/, patches in PhotoTour's format, hpatches-release, RomePatches"
)


@dataclass
class AvailableData:
    """Dataset folders, sorted by path. ETH benchmark scenes are not included in `localization`."""

    sequences: list[Path] = field(default_factory=list)
    """Folders of sequences in HPatches or Oxford layout."""
    eth: list[Path] = field(default_factory=list)
    """Scenes of the ETH benchmark by name."""
    localization: list[Path] = field(default_factory=list)
    """Other scenes with true poses."""
    models: list[Path] = field(default_factory=list)
    """Scenes with only a COLMAP model."""
    patches: list[Path] = field(default_factory=list)
    """Patch sets in PhotoTour format."""
    hpatches: list[Path] = field(default_factory=list)
    """Folders of HPatches patches."""
    rome: list[Path] = field(default_factory=list)
    """Folders of RomePatches."""

    def __len__(self) -> int:
        return sum(len(folders) for folders in vars(self).values())


def available_data(root: Path) -> AvailableData:
    """Search a folder for datasets. Raises BadInputError if it is not a folder or holds no benchmark data."""
    if not root.is_dir():
        raise BadInputError(f"{root}: no such folder; give one that holds data sets, see `featkit data fetch --help`")
    available = AvailableData()
    for folder in _candidate_folders(root):
        kind = _data_kind(folder)
        if kind is not None:
            getattr(available, kind).append(folder)
    if not len(available):
        raise BadInputError(f"{root}: nothing in it that a benchmark runs on: {WANTED}")
    return available


def _candidate_folders(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folder and its subfolders, except hidden ones and those inside a dataset."""
    yield root
    if depth == 0 or _data_kind(root) is not None:
        return
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from _candidate_folders(folder, depth - 1)


def _data_kind(folder: Path) -> str | None:
    """The field of AvailableData that a folder belongs to."""
    has_images = (folder / "images").is_dir()
    if has_images or (folder / "poses.txt").is_file():
        if (folder / "poses.txt").is_file() and (folder / "camera.txt").is_file():
            if not has_images and not any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
                return None  # poses of photographs that are elsewhere, such as those of `featkit demo`
            return "eth" if known_scene(folder.name) else "localization"
        return "models" if has_images and (folder / "sparse").is_dir() else None
    if (folder / "info.txt").is_file() and any(folder.glob("m50_*.txt")):
        return "patches"
    if any(folder.glob("patch_retrieval_Rome_*.mat")):
        return "rome"
    if any(folder.glob("[iv]_*/ref.png")):
        return "hpatches"
    return "sequences" if any(is_sequence(path) for path in folder.iterdir() if path.is_dir()) else None


def learned_by(method: Method) -> frozenset[str]:
    """The scenes that a method's weights were trained on, as far as featkit knows; published networks: none."""
    row = next((row for row in manifest_rows() if row.sha256 == method.weights_sha256), None)
    if row is not None:
        return frozenset(row.scenes)
    weights = Path(str(method.config.extractor.get("weights") or ""))
    return learned_scenes(weights) if weights.suffix == SUFFIX and weights.is_file() else frozenset()


def not_learned_from(folders: Iterable[Path], learned: Collection[str]) -> list[Path]:
    """Folders with none of the scenes that were learned from."""
    unseen = []
    for folder in folders:
        overlap = sorted(scene_names(folder).intersection(learned))
        if overlap:
            LOGGER.info("%s: not measured on, a weight was trained on %s", folder, ", ".join(overlap))
        else:
            unseen.append(folder)
    return unseen


def scene_names(folder: Path) -> set[str]:
    """The folder's name, and for a patch set the names in its scenes.txt."""
    listed = folder / SCENES
    lines = [line for _, line in read_lines(listed)] if listed.is_file() else []
    return {folder.resolve().name, *(line.split("\t")[0] for line in lines)}


def patch_method(method: Method) -> str | None:
    """Name of the patch descriptor for `patch_describer`: a baseline or weights. None: not a patch descriptor."""
    if method.name in BASELINES:
        return method.name
    extractor = method.config.extractor
    return str(extractor["weights"]) if extractor["extractor"] == "patches" else None
