"""`featkit data pack`: folders of patches -> one small file (patch_pack.py reads it).

At 64 px and quality 80 a patch takes 400 to 540 bytes and is wrong by 0.9 to 1.3 grey levels on average, 0.6 to 0.7 at
the 32 px that networks see. Without loss it takes 1,300 to 1,700 bytes (PNG: 2,200 to 2,400). Reduced to 48 px at the
same bytes it is wrong by more, so bytes are better saved by quality than by size.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from featkit import __version__
from featkit.config import Config
from featkit.data.patch_pack import FORMAT, MANIFEST, MAX_SIDE, patches_of, tiles_of
from featkit.data.patch_pairs import draw_pairs
from featkit.data.patch_set import PatchSet
from featkit.data.phototour import PER_BITMAP, TestPairs, find_pairs, read_image_ids, read_pairs, read_phototour
from featkit.errors import BadInputError, NothingCameOutError, UsageError
from featkit.log import progress
from featkit.store.artifact import writing
from featkit.store.stamp import refuse_foreign

LOSSLESS = 101  # OpenCV's name for WebP without loss
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in the zip: the same patches give the same bytes
SAMPLE = 2 * PER_BITMAP  # patches that tell how many bytes one takes
LABEL_BYTES = 8.0  # of a patch, deflated: its class, its image, and its share of the test pairs
MARGIN = 0.98  # of the room that an estimate of the bytes may fill
FULL, GROWTHS = 0.96, 2  # a file emptier than this share is packed anew with more patches, so many times at most
LICENCE = "licence.txt"


class PackConfig(Config):
    """What a pack holds."""

    max_mb: float = 30.0
    """Size of the file, 10^6 bytes. Whole classes are left out, drawn at random, until it fits; every set may hold the
    same number of patches, so that small sets stay whole while large ones give."""
    side: int = 64
    """Patches are reduced to this side, px; a multiple of 8."""
    quality: int = 80
    """Of JPEG, 1 to 100; 0: without loss (WebP), about three times the size."""


@dataclass(frozen=True)
class _Source:
    """A folder to be packed. order: its classes at random, as rows of patches; ends: patches after each class."""

    patch_set: PatchSet
    images: Int[np.ndarray, " n"]
    pairs: TestPairs | None
    licence: str
    order: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " c"]
    bytes_per_patch: float

    def rows(self, cap: int) -> Int[np.ndarray, " n"]:
        """The patches of as many whole classes as fit into `cap`, in the folder's order."""
        whole = int(np.searchsorted(self.ends, cap, side="right"))
        return np.sort(self.order[: self.ends[whole - 1] if whole else 0])


def write_pack(config: PackConfig, folders: Sequence[Path], out: Path, seed: int = 0) -> dict[str, Any]:
    """Pack folders of UBC's format into the file `out`, whole or not at all; returns the manifest.

    Raises UsageError, BadInputError, NothingCameOutError when not one class fits, NotWritableError.
    """
    _check(config, folders, out)
    generator = np.random.default_rng(seed)
    sources = [_source(config, folder, generator) for folder in folders]
    cap = _cap(sources, MARGIN * config.max_mb * 1e6)
    with writing(out) as file:
        part = Path(file.name)
        room, grown = config.max_mb * 1e6, 0
        while True:
            manifest = _write(config, sources, cap, part, seed)
            fill = part.stat().st_size / room
            if fill <= 1 and (fill >= FULL or grown == GROWTHS or cap >= max(len(s.patch_set) for s in sources)):
                break
            grown += fill <= 1
            cap = max(1, int(min(cap, max(len(s.patch_set) for s in sources)) * MARGIN / fill))
    return manifest


def _check(config: PackConfig, folders: Sequence[Path], out: Path) -> None:
    if config.side % 8 or not 8 <= config.side <= MAX_SIDE:
        raise UsageError(f"side {config.side}: patches are packed at a multiple of 8 px, up to {MAX_SIDE}")
    if not 0 <= config.quality <= 100:
        raise UsageError(f"quality {config.quality}: 1 to 100, or 0 for no loss")
    names = [folder.resolve().name for folder in folders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two of the folders are named {twice!r}; rename one")
    if out.is_dir():
        raise BadInputError(f"{out}: is a folder; name a file, such as {out / 'patches.zip'}")
    refuse_foreign(out)


def _source(config: PackConfig, folder: Path, generator: np.random.Generator) -> _Source:
    patch_set = read_phototour(folder)
    if config.side > patch_set.patches.shape[1]:
        raise UsageError(
            f"side {config.side}: {folder} has patches of {patch_set.patches.shape[1]} px; only smaller ones"
        )
    try:
        pairs = read_pairs(find_pairs(folder), patch_set)
    except BadInputError:
        if list(folder.glob("m50_*")):
            raise
        pairs = None
    licence = folder / LICENCE
    _, dense, sizes = np.unique(patch_set.classes, return_inverse=True, return_counts=True)
    drawn = generator.permutation(len(sizes))
    place = np.empty(len(sizes), np.int64)
    place[drawn] = np.arange(len(sizes))
    order = np.argsort(place[dense], kind="stable")
    sample = order[: min(SAMPLE, len(order))]
    encoded = sum(len(_encoded(config, part)) for part in _batches(config, patch_set, sample))
    return _Source(
        patch_set,
        read_image_ids(folder),
        pairs,
        licence.read_text(encoding="utf-8", errors="replace") if licence.is_file() else "not stated",
        order,
        np.cumsum(sizes[drawn]),
        encoded / len(sample) + LABEL_BYTES,
    )


def _cap(sources: Sequence[_Source], room: float) -> int:
    """The most patches any set may hold, so that together they fit."""
    low, high = 0, max(len(source.patch_set) for source in sources)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(len(s.patch_set), middle) * s.bytes_per_patch for s in sources) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _write(config: PackConfig, sources: Sequence[_Source], cap: int, part: Path, seed: int) -> dict[str, Any]:
    kept = [source.rows(cap) for source in sources]
    if not all(len(index) for index in kept):
        raise NothingCameOutError(f"{config.max_mb:g} MB are too few for a class of each set; allow more with --max-mb")
    sets: dict[str, Any] = {}
    with zipfile.ZipFile(part, "w") as archive, progress("pack", sum(map(len, kept)), "patches") as advance:
        for source, index in zip(sources, kept, strict=True):
            name, error = source.patch_set.name, 0.0
            for number, patches in enumerate(_batches(config, source.patch_set, index)):
                data = _encoded(config, patches)
                _add(archive, f"{name}/tile{number:04d}", data, zipfile.ZIP_STORED)
                error += _error(data, patches)
                advance(len(patches))
            sets[name] = _add_labels(config, archive, source, index, seed)
            sets[name]["mean_abs_error"] = round(error / len(index), 3)
        manifest = {
            "format": FORMAT,
            "featkit_version": __version__,
            "seed": seed,
            "settings": config.result_fields(),
            "sets": sets,
        }
        _add(archive, MANIFEST, _json(manifest), zipfile.ZIP_DEFLATED)
    return manifest


def _add_labels(
    config: PackConfig, archive: zipfile.ZipFile, source: _Source, index: Int[np.ndarray, " n"], seed: int
) -> dict[str, Any]:
    """Everything of a set but its tiles; returns its line of the manifest."""
    patch_set, name = source.patch_set, source.patch_set.name
    _, classes = np.unique(patch_set.classes[index], return_inverse=True)
    pairs = source.pairs or TestPairs(index[:0], index[:0], np.zeros(0, bool))
    if len(index) < len(patch_set) and len(pairs):  # pairs of patches that stayed behind: draw as many among the others
        pairs = draw_pairs(classes, patch_set.scenes[index], len(pairs), np.random.default_rng(seed))
    scene_of_image = [""] * (int(source.images.max()) + 1)
    for image in np.unique(source.images):
        scene_of_image[image] = patch_set.scene_names[patch_set.scenes[np.argmax(source.images == image)]]
    entry = {"side": config.side, "quality": config.quality, "scene_of_image": scene_of_image}
    _add(archive, f"{name}/set.json", _json(entry), zipfile.ZIP_DEFLATED)
    _add(archive, f"{name}/{LICENCE}", source.licence.encode(), zipfile.ZIP_DEFLATED)
    labels = np.stack([classes, source.images[index]], axis=1)
    for member, table in (("labels", labels), ("pairs", np.stack([pairs.index0, pairs.index1], axis=1))):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, table.astype("<i4"), allow_pickle=False)
        _add(archive, f"{name}/{member}.npy", stream.getvalue(), zipfile.ZIP_DEFLATED)
    return {
        "patches": len(index),
        "classes": int(classes.max()) + 1,
        "of_patches": len(patch_set),
        "test_pairs": len(pairs),
        "matching_pairs": int(pairs.match.sum()),
        "licence": source.licence.strip(),
    }


def _error(data: bytes, patches: UInt8[np.ndarray, "b s s"]) -> float:
    """Sum over patches of the mean absolute difference that encoding made, grey levels."""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert decoded is not None
    kept = patches_of(decoded, patches.shape[1])[: len(patches)]
    return float(np.abs(kept.astype(np.int16) - patches).mean(axis=(1, 2)).sum())


def _batches(
    config: PackConfig, patch_set: PatchSet, index: Int[np.ndarray, " n"]
) -> Iterator[UInt8[np.ndarray, "b s s"]]:
    """Patches at the pack's side, a mosaic's worth at a time."""
    for start in range(0, len(index), PER_BITMAP):
        patches = patch_set.patches[index[start : start + PER_BITMAP]]
        if patches.shape[1] != config.side:
            size = (config.side, config.side)
            patches = np.stack([cv2.resize(patch, size, interpolation=cv2.INTER_AREA) for patch in patches])
        yield patches


def _encoded(config: PackConfig, patches: UInt8[np.ndarray, "b s s"]) -> bytes:
    if config.quality:
        form, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, config.quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    else:
        form, options = ".webp", [cv2.IMWRITE_WEBP_QUALITY, LOSSLESS]
    return bytes(cv2.imencode(form, tiles_of(patches), options)[1])


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _add(archive: zipfile.ZipFile, name: str, data: bytes, method: int) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = method
    archive.writestr(info, data)
