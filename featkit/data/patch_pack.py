"""One small file of what a training on patches needs, to travel to another machine; and reading it, or folders.

A pack is a zip of pack.json and, for each set: NAME/set.json, NAME/labels.npy (class and image of every patch),
NAME/pairs.npy (test pairs), NAME/tile0000 ...: mosaics of 16 x 16 patches. A patch's side is a multiple of JPEG's
blocks of 8 pixels, so nothing leaks from one patch into the next. Nothing is ever unpacked to disk or unpickled.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from featkit.data.patch_set import PatchSet, union
from featkit.data.phototour import PER_BITMAP, ROW, TestPairs, find_pairs, read_pairs, read_phototour
from featkit.errors import BadInputError

FORMAT = 1
MANIFEST = "pack.json"
IMAGES_KIND = "photographs"  # the manifest's "kind" of a pack that image_pack.py wrote
MAX_SIDE = 256  # px of a patch
MAX_BYTES = 1 << 28  # of one member: more is no pack, but an attempt to fill the memory

WRONG = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, NotImplementedError, RuntimeError)


def read_patch_data(path: Path) -> PatchSet:
    """The patches of a folder of UBC's format, of a pack, or of one set of a pack (`patches.zip/liberty`).

    A folder's patches are mapped, a pack's are in memory; all sets of a pack come as their union. Raises BadInputError.
    """
    if path.is_dir():
        return read_phototour(path)
    file, wanted = _split(path)
    with _opened(file) as archive:
        sets = [_read_set(archive, name) for name in _names(archive, wanted)]
    return sets[0] if len(sets) == 1 else union(sets, file.stem)


def read_test_pairs(path: Path) -> TestPairs:
    """Test pairs of what `read_patch_data` reads. Raises BadInputError when there are none."""
    if path.is_dir():
        return read_pairs(find_pairs(path), read_phototour(path))
    file, wanted = _split(path)
    parts, first = [], 0
    with _opened(file) as archive:
        for name in _names(archive, wanted):
            classes = _array(archive, f"{name}/labels.npy")[:, 0]
            index = _array(archive, f"{name}/pairs.npy")
            if len(index) and (index.min() < 0 or index.max() >= len(classes)):
                raise BadInputError(f"{file}: {name}/pairs.npy names patches that are not there; pack it again")
            a, b = index[:, 0], index[:, 1]
            parts.append(TestPairs(a + first, b + first, classes[a] == classes[b]))
            first += len(classes)
    if not sum(len(part) for part in parts):
        raise BadInputError(f"{path}: no test pairs in it")
    joined = {key: np.concatenate([getattr(part, key) for part in parts]) for key in ("index0", "index1", "match")}
    return TestPairs(**joined)


def read_manifest(path: Path) -> dict[str, Any]:
    """What a pack says of itself: its sets, how they were packed, their licences. Raises BadInputError."""
    with _opened(path) as archive:
        return _manifest(archive)


def tiles_of(patches: UInt8[np.ndarray, "b s s"]) -> UInt8[np.ndarray, "h w"]:
    """Up to 256 patches as one mosaic, 16 in a row; the last row is filled with black."""
    count, side = patches.shape[:2]
    rows = -(-count // ROW)
    whole = np.zeros((rows * ROW, side, side), np.uint8)
    whole[:count] = patches
    return whole.reshape(rows, ROW, side, side).transpose(0, 2, 1, 3).reshape(rows * side, ROW * side)


def patches_of(mosaic: UInt8[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "b s s"]:
    """The patches of a mosaic, those that fill its last row too."""
    rows = mosaic.shape[0] // side
    return mosaic.reshape(rows, side, ROW, side).transpose(0, 2, 1, 3).reshape(rows * ROW, side, side)


def _split(path: Path) -> tuple[Path, str | None]:
    """A pack and the name of one of its sets, None for all."""
    if not path.exists() and path.parent.is_file():
        return path.parent, path.name
    return path, None


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """A pack; whatever is wrong with the file is one BadInputError."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except FileNotFoundError:
        raise BadInputError(f"{file}: no such folder or pack of patches") from None
    except BadInputError:
        raise
    except KeyError as error:
        raise BadInputError(f"{file}: {str(error).strip(chr(34))}; pack it again") from None
    except WRONG as error:
        raise BadInputError(f"{file}: not a whole pack of `featkit data pack` ({error}); copy it again") from None
    except OSError as error:
        raise BadInputError(f"{file}: cannot be read ({error.strerror or error})") from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise BadInputError(f"{archive.filename}: {name} holds more than {MAX_BYTES >> 20} MiB; it is no pack")
    return archive.read(name)


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    manifest = json.loads(_member(archive, MANIFEST))
    if isinstance(manifest, dict) and manifest.get("kind") == IMAGES_KIND:
        raise BadInputError(f"{archive.filename}: a pack of photographs, not of patches")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not isinstance(manifest.get("sets"), dict):
        raise BadInputError(f"{archive.filename}: not a pack of format {FORMAT}; pack it again with this featkit")
    return manifest


def _names(archive: zipfile.ZipFile, wanted: str | None) -> list[str]:
    names = list(_manifest(archive)["sets"])
    if wanted is None:
        return names
    if wanted not in names:
        raise BadInputError(f"{archive.filename}: has no set {wanted!r}; it has {', '.join(names)}")
    return [wanted]


def _array(archive: zipfile.ZipFile, name: str) -> Int[np.ndarray, "n 2"]:
    array = np.lib.format.read_array(io.BytesIO(_member(archive, name)), allow_pickle=False)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise BadInputError(f"{archive.filename}: {name} is no table of two columns; pack it again")
    return array.astype(np.int64)


def _read_set(archive: zipfile.ZipFile, name: str) -> PatchSet:
    entry = json.loads(_member(archive, f"{name}/set.json"))
    side, of_image = int(entry["side"]), [str(scene) for scene in entry["scene_of_image"]]
    labels = _array(archive, f"{name}/labels.npy")
    if not 0 < side <= MAX_SIDE or (labels < 0).any() or labels[:, 1].max(initial=-1) >= len(of_image):
        raise BadInputError(f"{archive.filename}: {name}: labels and images do not fit together; pack it again")
    patches = np.empty((len(labels), side, side), np.uint8)
    for number, start in enumerate(range(0, len(labels), PER_BITMAP)):
        wanted = min(PER_BITMAP, len(labels) - start)
        patches[start : start + wanted] = _tile(archive, f"{name}/tile{number:04d}", side, wanted)
    scenes = tuple(dict.fromkeys(of_image))
    of_scene = np.array([scenes.index(scene) for scene in of_image], dtype=np.int64)
    return PatchSet(name, patches, labels[:, 0], of_scene[labels[:, 1]], scenes, labels[:, 1])


def _tile(archive: zipfile.ZipFile, name: str, side: int, count: int) -> UInt8[np.ndarray, "b s s"]:
    try:
        mosaic = cv2.imdecode(np.frombuffer(_member(archive, name), np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        mosaic = None
    if mosaic is None or mosaic.shape != (-(-count // ROW) * side, ROW * side):
        raise BadInputError(f"{archive.filename}: {name} is no mosaic of {count} patches of {side} px; copy it again")
    return patches_of(mosaic, side)[:count]
