"""Patch packs: everything that training on patches needs in one small file. Reads packs and folders, writes packs.

A pack is a zip of pack.json and, for each set: NAME/set.json, NAME/labels.npy (class and image of every patch),
NAME/pairs.npy (test pairs), NAME/tile0000 ...: mosaics of 16 x 16 patches. The side of a patch is a multiple of JPEG's
8 x 8 blocks, so that no patch affects its neighbours. Nothing is ever unpacked to disk or unpickled.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int, UInt8
from pydantic import Field

from featkit import __version__
from featkit.core.config import Config, Megabytes, Quality
from featkit.core.errors import BadInputError, EmptyResultError, UsageError, blaming, refuse_pipe
from featkit.core.log import progress
from featkit.data.patch_set import PatchSet, union
from featkit.data.phototour import (
    PER_BITMAP,
    ROW,
    TestPairs,
    draw_pairs,
    find_pairs,
    magnification_of,
    read_image_ids,
    read_phototour,
    read_phototour_pairs,
)
from featkit.io.artifact import writing
from featkit.io.atomic import refuse_foreign
from featkit.io.foreign_arrays import npy

FORMAT = 1
MANIFEST = "pack.json"
IMAGES_KIND = "photographs"  # "kind" in the manifest of a pack written by image_pack.py
MAX_SIDE = 256  # px of a patch
MAX_BYTES = 1 << 28  # limit of one member, so that a crafted file cannot exhaust the memory


def read_patch_data(path: Path) -> PatchSet:
    """The patches of a folder in UBC's format, of a pack, or of one set of a pack (`patches.zip/liberty`).

    Folders are memory-mapped, packs are loaded; the sets of a pack are returned as their union. Raises BadInputError.
    """
    if path.is_dir():
        return read_phototour(path)
    file, set_name = _split_set_name(path)
    with _open_pack(file) as archive:
        sets = [_read_set(archive, name) for name in _set_names(archive, set_name)]
    return sets[0] if len(sets) == 1 else union(sets, file.stem)


def read_test_pairs(path: Path) -> TestPairs:
    """Test pairs of anything that `read_patch_data` reads. Raises BadInputError if there are none."""
    if path.is_dir():
        return read_phototour_pairs(find_pairs(path), read_phototour(path))
    file, set_name = _split_set_name(path)
    parts, first = [], 0
    with _open_pack(file) as archive:
        for name in _set_names(archive, set_name):
            classes = _read_table(archive, f"{name}/labels.npy")[:, 0]
            index = _read_table(archive, f"{name}/pairs.npy")
            if len(index) and (index.min() < 0 or index.max() >= len(classes)):
                raise BadInputError(f"{file}: {name}/pairs.npy refers to patches that do not exist; pack it again")
            a, b = index[:, 0], index[:, 1]
            parts.append(TestPairs(a + first, b + first, classes[a] == classes[b]))
            first += len(classes)
    if not sum(len(part) for part in parts):
        raise BadInputError(f"{path}: no test pairs in it")
    joined = {key: np.concatenate([getattr(part, key) for part in parts]) for key in ("index0", "index1", "match")}
    return TestPairs(**joined)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a pack: its sets, packing settings and licences. Raises BadInputError."""
    with _open_pack(path) as archive:
        return _read_manifest(archive)


def tiles_of(patches: UInt8[np.ndarray, "b s s"]) -> UInt8[np.ndarray, "h w"]:
    """Up to 256 patches as one mosaic, 16 in a row; the last row is padded with black."""
    count, side = patches.shape[:2]
    rows = -(-count // ROW)
    padded = np.zeros((rows * ROW, side, side), np.uint8)
    padded[:count] = patches
    return padded.reshape(rows, ROW, side, side).transpose(0, 2, 1, 3).reshape(rows * side, ROW * side)


def patches_of(mosaic: UInt8[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "b s s"]:
    """The patches of a mosaic, including the padding of its last row."""
    rows = mosaic.shape[0] // side
    return mosaic.reshape(rows, side, ROW, side).transpose(0, 2, 1, 3).reshape(rows * ROW, side, side)


def _split_set_name(path: Path) -> tuple[Path, str | None]:
    """Split a path into the pack and the name of one of its sets, None for all sets."""
    if not path.exists() and path.parent.is_file():
        return path.parent, path.name
    return path, None


@contextmanager
def _open_pack(file: Path) -> Iterator[zipfile.ZipFile]:
    """Open a pack; any damage to the file raises BadInputError."""
    if not file.exists():
        raise BadInputError(f"{file}: no such folder or pack of patches")
    refuse_pipe(file)
    with (
        blaming(file, "a whole pack of `featkit data pack`", "copy it, or pack it, again"),
        zipfile.ZipFile(file) as archive,
    ):
        yield archive


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise BadInputError(f"{archive.filename}: {name} is larger than {MAX_BYTES >> 20} MiB; this is not a pack")
    return archive.read(name)


def _read_manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    manifest = json.loads(_read_member(archive, MANIFEST))
    if isinstance(manifest, dict) and manifest.get("kind") == IMAGES_KIND:
        raise BadInputError(f"{archive.filename}: a pack of photographs, not of patches")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not isinstance(manifest.get("sets"), dict):
        raise BadInputError(f"{archive.filename}: not a pack of format {FORMAT}; pack it again with this featkit")
    return manifest


def _set_names(archive: zipfile.ZipFile, set_name: str | None) -> list[str]:
    names = list(_read_manifest(archive)["sets"])
    if set_name is None:
        return names
    if set_name not in names:
        raise BadInputError(f"{archive.filename}: has no set {set_name!r}; it has {', '.join(names)}")
    return [set_name]


def _read_table(archive: zipfile.ZipFile, name: str) -> Int[np.ndarray, "n 2"]:
    array = npy(_read_member(archive, name), name)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise BadInputError(f"{archive.filename}: {name} is no table of two columns; pack it again")
    return array.astype(np.int64)


def _read_set(archive: zipfile.ZipFile, name: str) -> PatchSet:
    entry = json.loads(_read_member(archive, f"{name}/set.json"))
    side, of_image = int(entry["side"]), [str(scene) for scene in entry["scene_of_image"]]
    labels = _read_table(archive, f"{name}/labels.npy")
    if not 0 < side <= MAX_SIDE or (labels < 0).any() or labels[:, 1].max(initial=-1) >= len(of_image):
        raise BadInputError(f"{archive.filename}: {name}: labels and images do not fit together; pack it again")
    tiles = sum(entry.filename.startswith(f"{name}/tile") for entry in archive.infolist())
    if len(labels) > PER_BITMAP * tiles:
        raise BadInputError(f"{archive.filename}: {name} has {len(labels):,} labels but {tiles} mosaics; copy it again")
    patches = np.empty((len(labels), side, side), np.uint8)
    for number, start in enumerate(range(0, len(labels), PER_BITMAP)):
        count = min(PER_BITMAP, len(labels) - start)
        patches[start : start + count] = _read_tile(archive, f"{name}/tile{number:04d}", side, count)
    scenes = tuple(dict.fromkeys(of_image))
    of_scene = np.array([scenes.index(scene) for scene in of_image], dtype=np.int64)
    magnification = magnification_of(entry.get("magnification"), Path(f"{archive.filename}"))
    return PatchSet(name, patches, labels[:, 0], of_scene[labels[:, 1]], scenes, labels[:, 1], magnification)


def _read_tile(archive: zipfile.ZipFile, name: str, side: int, count: int) -> UInt8[np.ndarray, "b s s"]:
    try:
        mosaic = cv2.imdecode(np.frombuffer(_read_member(archive, name), np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        mosaic = None
    if mosaic is None or mosaic.shape != (-(-count // ROW) * side, ROW * side):
        raise BadInputError(f"{archive.filename}: {name} is no mosaic of {count} patches of {side} px; copy it again")
    return patches_of(mosaic, side)[:count]


# ----------------------------------------------------------------------------------------------------------------------
# `featkit data pack`: folders of patches -> one small file.
#
# At 64 px and quality 80 a patch takes 400 to 540 bytes with a mean error of 0.9 to 1.3 grey levels, or 0.6 to 0.7 at
# the 32 px that networks see. Lossless it takes 1,300 to 1,700 bytes (PNG: 2,200 to 2,400). At 48 px and the same
# number of bytes the error is larger, so lowering the quality is better than lowering the resolution.


LOSSLESS = 101  # OpenCV's quality value for lossless WebP
EPOCH = (1980, 1, 1, 0, 0, 0)  # date of every file in the zip: the same patches give the same bytes
SAMPLE = 2 * PER_BITMAP  # patches from which the bytes per patch are estimated
LABEL_BYTES = 8.0  # per patch, deflated: its class, its image, and its part of the test pairs
MARGIN = 0.98  # fraction of the limit that the estimated size may fill
FULL, GROWTHS = 0.96, 2  # a file below this fraction of the limit is packed again with more patches, at most 2 times
LICENCE = "licence.txt"


class PackConfig(Config):
    """Size and quality of a pack."""

    max_mb: Megabytes = 30.0
    """Maximum size of the file, 10^6 bytes. Complete classes are dropped at random until it fits; all sets have the
    same limit on their number of patches, so that small sets stay complete."""
    side: int = Field(64, ge=8, le=1024)
    """Side to which patches are reduced, px; a multiple of 8."""
    quality: Quality = 80
    """JPEG quality, 1 to 100; 0: lossless (WebP), about three times the size."""


@dataclass(frozen=True)
class _Source:
    """A folder to pack. order: its patches, with classes in random order; ends: number of patches up to each class."""

    patch_set: PatchSet
    images: Int[np.ndarray, " n"]
    pairs: TestPairs | None
    licence: str
    order: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " c"]
    bytes_per_patch: float

    def rows(self, cap: int) -> Int[np.ndarray, " n"]:
        """The patches of as many complete classes as fit into `cap` patches, in the folder's order."""
        complete = int(np.searchsorted(self.ends, cap, side="right"))
        return np.sort(self.order[: self.ends[complete - 1] if complete else 0])


def write_pack(config: PackConfig, folders: Sequence[Path], out: Path, seed: int = 0) -> dict[str, Any]:
    """Pack folders in UBC's format into the file `out`, which is written atomically. Returns the manifest.

    Raises UsageError, BadInputError, EmptyResultError if not a single class fits, NotWritableError.
    """
    _check_arguments(config, folders, out)
    generator = np.random.default_rng(seed)
    sources = [_prepare_source(config, folder, generator) for folder in folders]
    cap = _patches_per_set(sources, MARGIN * config.max_mb * 1e6)
    with writing(out) as file:
        part = Path(file.name)
        room, grown = config.max_mb * 1e6, 0
        while True:
            manifest = _write_zip(config, sources, cap, part, seed)
            fill = part.stat().st_size / room
            if fill <= 1 and (fill >= FULL or grown == GROWTHS or cap >= max(len(s.patch_set) for s in sources)):
                break
            grown += fill <= 1
            cap = max(1, int(min(cap, max(len(s.patch_set) for s in sources)) * MARGIN / fill))
    return manifest


def _check_arguments(config: PackConfig, folders: Sequence[Path], out: Path) -> None:
    if config.side % 8 or not 8 <= config.side <= MAX_SIDE:
        raise UsageError(f"side {config.side}: must be a multiple of 8 px, up to {MAX_SIDE}")
    names = [folder.resolve().name for folder in folders]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise UsageError(f"two of the folders are named {duplicate!r}; rename one")
    if out.is_dir():
        raise BadInputError(f"{out}: is a folder; name a file, such as {out / 'patches.zip'}")
    refuse_foreign(out)


def _prepare_source(config: PackConfig, folder: Path, generator: np.random.Generator) -> _Source:
    patch_set = read_phototour(folder)
    if config.side > patch_set.patches.shape[1]:
        raise UsageError(
            f"side {config.side}: {folder} has patches of {patch_set.patches.shape[1]} px, which cannot be enlarged"
        )
    try:
        pairs = read_phototour_pairs(find_pairs(folder), patch_set)
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
    encoded = sum(len(_encode_mosaic(config, part)) for part in _resized_batches(config, patch_set, sample))
    return _Source(
        patch_set,
        read_image_ids(folder),
        pairs,
        licence.read_text(encoding="utf-8", errors="replace") if licence.is_file() else "not stated",
        order,
        np.cumsum(sizes[drawn]),
        encoded / len(sample) + LABEL_BYTES,
    )


def _patches_per_set(sources: Sequence[_Source], room: float) -> int:
    """The largest number of patches per set with which all sets fit together."""
    low, high = 0, max(len(source.patch_set) for source in sources)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(len(s.patch_set), middle) * s.bytes_per_patch for s in sources) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _write_zip(config: PackConfig, sources: Sequence[_Source], cap: int, part: Path, seed: int) -> dict[str, Any]:
    kept = [source.rows(cap) for source in sources]
    if not all(len(index) for index in kept):
        raise EmptyResultError(f"{config.max_mb:g} MB is too little for a class of each set; allow more with --max-mb")
    sets: dict[str, Any] = {}
    with zipfile.ZipFile(part, "w") as archive, progress("pack", sum(map(len, kept)), "patches") as advance:
        for source, index in zip(sources, kept, strict=True):
            name, error = source.patch_set.name, 0.0
            for number, patches in enumerate(_resized_batches(config, source.patch_set, index)):
                data = _encode_mosaic(config, patches)
                _add_member(archive, f"{name}/tile{number:04d}", data, zipfile.ZIP_STORED)
                error += _encoding_error(data, patches)
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
        _add_member(archive, MANIFEST, _json_bytes(manifest), zipfile.ZIP_DEFLATED)
    return manifest


def _add_labels(
    config: PackConfig, archive: zipfile.ZipFile, source: _Source, index: Int[np.ndarray, " n"], seed: int
) -> dict[str, Any]:
    """Write everything of a set except its tiles; returns its manifest entry."""
    patch_set, name = source.patch_set, source.patch_set.name
    _, classes = np.unique(patch_set.classes[index], return_inverse=True)
    pairs = source.pairs or TestPairs(index[:0], index[:0], np.zeros(0, bool))
    if len(index) < len(patch_set) and len(pairs):  # some pairs refer to dropped patches: draw as many new ones
        pairs = draw_pairs(classes, patch_set.scenes[index], len(pairs), np.random.default_rng(seed))
    scene_of_image = [""] * (int(source.images.max()) + 1)
    for image in np.unique(source.images):
        scene_of_image[image] = patch_set.scene_names[patch_set.scenes[np.argmax(source.images == image)]]
    entry: dict[str, Any] = {"side": config.side, "quality": config.quality, "scene_of_image": scene_of_image}
    if patch_set.magnification is not None:
        entry["magnification"] = patch_set.magnification
    _add_member(archive, f"{name}/set.json", _json_bytes(entry), zipfile.ZIP_DEFLATED)
    _add_member(archive, f"{name}/{LICENCE}", source.licence.encode(), zipfile.ZIP_DEFLATED)
    labels = np.stack([classes, source.images[index]], axis=1)
    for member, table in (("labels", labels), ("pairs", np.stack([pairs.index0, pairs.index1], axis=1))):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, table.astype("<i4"), allow_pickle=False)
        _add_member(archive, f"{name}/{member}.npy", stream.getvalue(), zipfile.ZIP_DEFLATED)
    return {
        "patches": len(index),
        "classes": int(classes.max()) + 1,
        "of_patches": len(patch_set),
        "test_pairs": len(pairs),
        "matching_pairs": int(pairs.match.sum()),
        "licence": source.licence.strip(),
    }


def _encoding_error(data: bytes, patches: UInt8[np.ndarray, "b s s"]) -> float:
    """Sum over patches of the mean absolute encoding error, grey levels."""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert decoded is not None
    kept = patches_of(decoded, patches.shape[1])[: len(patches)]
    return float(np.abs(kept.astype(np.int16) - patches).mean(axis=(1, 2)).sum())


def _resized_batches(
    config: PackConfig, patch_set: PatchSet, index: Int[np.ndarray, " n"]
) -> Iterator[UInt8[np.ndarray, "b s s"]]:
    """Iterate over patches at the pack's size, one mosaic at a time."""
    for start in range(0, len(index), PER_BITMAP):
        patches = patch_set.patches[index[start : start + PER_BITMAP]]
        if patches.shape[1] != config.side:
            size = (config.side, config.side)
            patches = np.stack([cv2.resize(patch, size, interpolation=cv2.INTER_AREA) for patch in patches])
        yield patches


def _encode_mosaic(config: PackConfig, patches: UInt8[np.ndarray, "b s s"]) -> bytes:
    if config.quality:
        form, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, config.quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    else:
        form, options = ".webp", [cv2.IMWRITE_WEBP_QUALITY, LOSSLESS]
    return bytes(cv2.imencode(form, tiles_of(patches), options)[1])


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _add_member(archive: zipfile.ZipFile, name: str, data: bytes, method: int) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = method
    archive.writestr(info, data)
