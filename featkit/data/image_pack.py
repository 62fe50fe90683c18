"""`featkit data pack` for photographs: pack posed pairs and folders of photographs into a zip that is read directly.

    pack.json                           contents, settings, licences
    NAME/scene/dense0/aligned/...       for a folder of posed pairs: read_posed_pairs reads the zip, or `pack.zip/NAME`
    NAME/...jpg                         for a folder of photographs, upright: read by HomographyPairs

Photographs are reduced to the size that the network sees. If they do not fit, photographs are dropped at random until
all folders have an equal share of the space; folders smaller than their share stay complete.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import Field

from featkit import __version__
from featkit.core.config import Config, Megabytes, digest
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.core.log import Advance, progress
from featkit.data.make_patches import LICENCE
from featkit.data.make_posed_pairs import name_of
from featkit.data.patch_pack import EPOCH, FORMAT, IMAGES_KIND, MANIFEST
from featkit.data.phototour import INFO
from featkit.data.posed_format import CameraTable, format_cameras, posed_pairs_text
from featkit.data.posed_pairs import (
    ALIGNED,
    CAMERAS,
    IMAGES,
    PAIRS,
    STATISTICS,
    PosedConfig,
    PosedPairs,
    read_posed_pairs,
)
from featkit.data.posed_samples import photographs, reduced
from featkit.data.tree import is_image, open_tree
from featkit.geometry.pixels import intrinsics_to_colmap
from featkit.io.artifact import inside, writing
from featkit.io.atomic import refuse_foreign

SAMPLE = 8  # photographs from which the packed size of a folder is estimated
ENTRY_BYTES = 400  # per photograph, in addition to its JPEG: zip directory entry, camera and pairs, deflated
EVERY_PAIR = PosedConfig(max_rotation_deg=180, max_pairs=10**9, principal_tolerance=1e3)  # training selects later
Kind = Literal["patches", "posed", "photographs"]


class ImagePackConfig(Config):
    """Size and quality of a pack of photographs."""

    max_mb: Megabytes = 60.0
    """Size of the file, 10^6 bytes."""
    max_side: int = Field(640, ge=64, le=2**16)
    """Longer side of the photographs, px."""
    quality: int = Field(88, ge=1, le=100)
    """JPEG quality, 1 to 100."""


@dataclass(frozen=True)
class _Source:
    """A folder to pack. load: returns the pixels of photograph i. groups: photographs that are only useful together,
    in the order in which they are added."""

    name: str
    kind: Kind
    names: tuple[str, ...]
    load: Callable[[int], np.ndarray]
    groups: Sequence[tuple[int, ...]]
    posed: PosedPairs | None
    licence: str


def folder_kind(folder: Path) -> Kind:
    """The kind of data in a folder; "patches" if it cannot be determined."""
    if (folder / INFO).is_file() or not folder.is_dir():
        return "patches"
    names = open_tree(folder).names()
    if any(name == CAMERAS or name.endswith(f"{ALIGNED}/{CAMERAS}") for name in names):
        return "posed"
    patches = any(name.startswith("patches") and name.endswith(".bmp") for name in names)
    return "photographs" if not patches and any(is_image(name) for name in names) else "patches"


def write_image_pack(config: ImagePackConfig, folders: Sequence[Path], out: Path, seed: int = 0) -> dict[str, Any]:
    """Pack posed pairs and photographs into the zip `out`, which is written atomically. Returns the manifest.

    Raises UsageError, BadInputError, EmptyResultError if not a single pair or photograph of a folder fits,
    NotWritableError.
    """
    names = [folder.resolve().name for folder in folders]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise UsageError(f"two of the folders are named {duplicate!r}; rename one")
    if out.is_dir():
        raise BadInputError(f"{out}: is a folder; name a file, such as {out / 'photographs.zip'}")
    refuse_foreign(out)
    generator = np.random.default_rng(seed)
    sources = [_prepare_source(folder, generator) for folder in folders]
    budget = limit = config.max_mb * 1e6
    with writing(out) as file:
        part = Path(file.name)
        while True:
            manifest = _write_zip(config, sources, budget, part, seed)
            size = part.stat().st_size
            if size <= limit:
                break
            budget *= 0.99 * limit / size
    return manifest


def _prepare_source(folder: Path, generator: np.random.Generator) -> _Source:
    licence = folder / LICENCE
    licence_text = licence.read_text(encoding="utf-8", errors="replace").strip() if licence.is_file() else "not stated"
    name, kind = folder.resolve().name, folder_kind(folder)
    if kind == "photographs":
        files = photographs(folder)
        groups = [(int(i),) for i in generator.permutation(len(files))]
        names = tuple(name_of(file) for _, file in files)
        return _Source(name, kind, names, lambda i: files[i][0].upright_pixels(files[i][1]), groups, None, licence_text)
    pairs = read_posed_pairs(folder, EVERY_PAIR)
    first = np.cumsum([0, *(len(scene.image_names) for scene in pairs.scenes)])
    places = [(number, image) for number, scene in enumerate(pairs.scenes) for image in range(len(scene.image_names))]
    names = tuple(
        f"{scene.name}/{ALIGNED}/{IMAGES}/{name_of(image)}" for scene in pairs.scenes for image in scene.image_names
    )
    order = pairs.pairs[generator.permutation(len(pairs))]
    groups_of_two: list[tuple[int, ...]] = [(int(first[scene] + a), int(first[scene] + b)) for scene, a, b in order]
    return _Source(name, kind, names, lambda i: pairs.pixels(*places[i]), groups_of_two, pairs, licence_text)


def _write_zip(
    config: ImagePackConfig, sources: Sequence[_Source], budget: float, part: Path, seed: int
) -> dict[str, Any]:
    sizes = [_estimate_packed_size(config, source) for source in sources]
    sets: dict[str, Any] = {}
    with (
        zipfile.ZipFile(part, "w") as archive,
        progress("pack", sum(len(source.names) for source in sources), "photographs") as advance,
    ):
        for done, number in enumerate(
            np.argsort(sizes, kind="stable")
        ):  # small folders first: the space they leave is shared by the others
            source = sources[number]
            encoded, used = _encode_share(config, source, budget / (len(sources) - done), advance)
            budget -= used
            sets[source.name] = _add_folder(archive, source, encoded)
        manifest = {
            "format": FORMAT,
            "kind": IMAGES_KIND,
            "featkit_version": __version__,
            "seed": seed,
            "settings": config.result_fields(),
            "sets": {source.name: sets[source.name] for source in sources},
        }
        _add_text(archive, MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _estimate_packed_size(config: ImagePackConfig, source: _Source) -> float:
    """Estimated packed size of a complete folder, bytes, from a sample of its photographs."""
    sample = sorted({image for group in source.groups[:SAMPLE] for image in group})[:SAMPLE]
    return len(source.names) * (
        ENTRY_BYTES + sum(len(_encode_photograph(config, source, image)[0]) for image in sample) / len(sample)
    )


def _encode_share(
    config: ImagePackConfig, source: _Source, share: float, advance: Advance
) -> tuple[dict[int, tuple[bytes, tuple[int, int]]], float]:
    """The JPEGs and image sizes of as many photographs as fit into `share` bytes, and the bytes used."""
    encoded: dict[int, tuple[bytes, tuple[int, int]]] = {}
    used = 0.0
    for group in source.groups:
        group_encoded = {image: _encode_photograph(config, source, image) for image in group if image not in encoded}
        group_bytes = sum(len(data) + ENTRY_BYTES for data, _ in group_encoded.values())
        if used + group_bytes > share:
            break
        encoded.update(group_encoded)
        used += group_bytes
        advance(len(group_encoded))
    if not encoded:
        raise EmptyResultError(
            f"{config.max_mb:g} MB is too little for the photographs of {source.name}; allow more with --max-mb"
        )
    return encoded, used


def _encode_photograph(config: ImagePackConfig, source: _Source, image: int) -> tuple[bytes, tuple[int, int]]:
    """The JPEG and the reduced size (width, height)."""
    pixels = cv2.cvtColor(reduced(source.load(image), config.max_side), cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, config.quality])[1]
    return encoded.tobytes(), (pixels.shape[1], pixels.shape[0])


def _add_folder(
    archive: zipfile.ZipFile, source: _Source, encoded: dict[int, tuple[bytes, tuple[int, int]]]
) -> dict[str, Any]:
    """Write a folder's photographs, cameras and pairs; returns its manifest entry."""
    for image in sorted(encoded):
        name = inside(Path(source.name), source.names[image]).as_posix()
        archive.writestr(zipfile.ZipInfo(name, EPOCH), encoded[image][0])
    _add_text(archive, f"{source.name}/{LICENCE}", source.licence + "\n")
    entry: dict[str, Any] = {"kind": source.kind, "images": len(encoded), "of_images": len(source.names)}
    if source.posed is not None:
        first = 0
        entry |= {"pairs": 0, "of_pairs": len(source.posed)}
        for number, scene in enumerate(source.posed.scenes):
            count = len(scene.image_names)
            sizes = {i: encoded[first + i][1] for i in range(count) if first + i in encoded}
            entry["pairs"] += _add_scene(archive, source, number, sizes)
            first += count
    return entry | {
        "megabytes": round(sum(len(data) for data, _ in encoded.values()) / 1e6, 3),
        "licence": source.licence,
    }


def _add_scene(archive: zipfile.ZipFile, source: _Source, number: int, sizes: dict[int, tuple[int, int]]) -> int:
    """Write the cameras, with scaled K, and the pairs of a scene's kept photographs; returns the number of pairs."""
    assert source.posed is not None
    scene, images = source.posed.scenes[number], np.array(sorted(sizes), dtype=np.int64)
    rows = (source.posed.pairs[:, 0] == number) & np.isin(source.posed.pairs[:, 1:], images).all(axis=1)
    if not rows.any():
        return 0
    new_sizes = np.array([sizes[image] for image in images])
    scale = new_sizes / scene.sizes[images]
    intrinsics = intrinsics_to_colmap(scene.intrinsics[images])
    intrinsics[:, :2] *= scale[:, :, None]  # with the origin at the corner, resizing an image scales K
    names = tuple(name_of(name) for name in scene.image_names)
    table = CameraTable(
        tuple(names[image] for image in images),
        images,
        new_sizes,
        intrinsics,
        scene.rotations[images],
        scene.translations[images],
    )
    pairs = source.posed.pairs[rows, 1:]
    text = posed_pairs_text(pairs, names)
    scale_of_image = np.ones((len(names), 2))
    scale_of_image[images] = scale
    boxes = (source.posed.boxes[rows] + 0.5) * np.tile(scale_of_image[pairs], 2) - 0.5
    statistics = {
        "of_pairs": digest(text),
        "box0": boxes[:, 0].round(1).tolist(),
        "box1": boxes[:, 1].round(1).tolist(),
    }
    folder = f"{source.name}/{scene.name}/{ALIGNED}"
    for name, content in ((CAMERAS, format_cameras(table)), (PAIRS, text), (STATISTICS, json.dumps(statistics) + "\n")):
        _add_text(archive, f"{folder}/{name}", content)
    return len(pairs)


def _add_text(archive: zipfile.ZipFile, name: str, text: str) -> None:
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, text.encode())
