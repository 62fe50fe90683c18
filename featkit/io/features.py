"""features.h5 in hloc's layout: one group per image (slashes nest) with keypoints, descriptors, scores, image_size.

Descriptors are D x N, keypoints float32 with the centre of the top-left pixel at (0, 0), orientations in degrees
(radians in memory). Files written by hloc (no `complete`, float16 keypoints) can be read directly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32

from featkit.core.config import Config
from featkit.core.errors import BadInputError, open_input
from featkit.core.types import Features
from featkit.io import h5
from featkit.io.h5 import attribute
from featkit.io.h5_items import array_of, dataset_of, find_item, has, linked_items, refuse_missing, refuse_too_large
from featkit.io.journal import DAMAGE, explains_damage

LARGEST_PX = 1e5
"""Largest scale and uncertainty of keypoints that others made, px: the side of the largest photograph."""
FROM_SEEN = "from_seen"
"""Keypoint attribute for a photograph that was resized or rotated: `Features.from_seen`, row by row."""


class FeatureStore:
    """One open features.h5. Get one from `open_features` or `append_features`."""

    holds = "features"

    def __init__(self, path: Path, file: h5py.File):
        self.path = path
        self._file = file

    @explains_damage
    def names(self) -> list[str]:
        """Names of images with complete features, sorted."""
        made_here = "format" in self._file.attrs
        in_this_file = [name for name, _ in h5.groups(self._file, "keypoints", whole=made_here)]
        return sorted(in_this_file + linked_items(self._file))

    def has(self, name: str) -> bool:
        """Whether an image has complete features."""
        return h5.is_complete(self._file, name)

    @explains_damage
    def digest(self, name: str) -> str:
        """Digest (16 hex digits) of keypoints and descriptors, which detects results made from other features."""
        group = self._group(name)
        if "digest" in group.attrs:
            return str(attribute(group, "digest"))
        described = has(group, "descriptors")  # keypoints alone are enough for matches that others made
        return features_digest(self.read(name) if described else self._read_points(name))

    @explains_damage
    def source(self, name: str) -> str:
        """Identifies the image file from which the features were extracted; "" if unknown."""
        return str(attribute(self._group(name), "source", ""))

    @explains_damage
    def read(self, name: str) -> Features:
        """Features of one image. Raises BadInputError if they are missing or damaged."""
        points, group = self._read_points(name), self._group(name)
        features = replace(
            points,
            descriptors=self._read_descriptors(group),
            turns=int(group["descriptors"].attrs.get("turns", 1)),
            extractor=self.extractor,
            from_seen=self._read_from_seen(group),
        )
        if len(features.descriptors) != len(points):
            raise BadInputError(
                f"{self.path}: {name!r} has {len(points)} keypoints but {len(features.descriptors)} descriptors"
            )
        return features

    @explains_damage
    def read_points(self, name: str) -> Features:
        """Keypoints, scores, scales and orientations of one image, without its descriptors (n, 0).

        Raises BadInputError when they are missing or damaged, or scales are none that a photograph can have.
        """
        points = self._read_points(name)
        numbers = [part for part in (points.scores, points.scales, points.oris) if part is not None]
        if not all(np.isfinite(part).all() for part in numbers):
            raise BadInputError(f"{self.path}: {name!r} has scores, scales or angles that are not finite")
        if points.scales is not None and (points.scales <= 0).any():
            raise BadInputError(f"{self.path}: {name!r} has keypoints with a scale of 0 or less")
        if points.scales is not None and (points.scales > LARGEST_PX).any():
            raise BadInputError(f"{self.path}: {name!r} has keypoints with a scale of {points.scales.max():.3g} px")
        return points

    def _read_points(self, name: str) -> Features:
        group = self._group(name)
        keypoints = self._read_keypoints(group)
        scores, oris = self._read_optional(group, "scores"), self._read_optional(group, "oris")
        points = Features(
            keypoints=keypoints,
            descriptors=np.zeros((len(keypoints), 0), np.float32),
            scores=np.ones(len(keypoints), np.float32) if scores is None else scores,
            image_size=self._read_image_size(group),
            scales=self._read_optional(group, "scales"),
            oris=None if oris is None else np.radians(oris),
            uncertainty_px=self._read_uncertainty(group),
        )
        parts = (points.scores, points.scales, points.oris)
        if any(part is not None and len(part) != len(keypoints) for part in parts):
            raise BadInputError(f"{self.path}: {name!r} has scores, scales or angles for another number of keypoints")
        return points

    @explains_damage
    def keypoints(self, name: str) -> np.ndarray:
        """Only the keypoints of one image, (n, 2) float32."""
        return self._read_keypoints(self._group(name))

    @explains_damage
    def descriptors(self, name: str) -> np.ndarray:
        """Only the descriptors of one image, (n, d): as stored, or float32 for other programs' uint8."""
        return self._read_descriptors(self._group(name))

    @explains_damage
    def count(self, name: str) -> int:
        """Number of keypoints of one image, without reading them. Raises BadInputError if they do not fit."""
        return int(dataset_of(self._group(name), "keypoints", ndim=2).shape[0])

    @explains_damage
    def image_size(self, name: str) -> tuple[int, int]:
        """Width and height of one image, in pixels."""
        return self._read_image_size(self._group(name))

    @explains_damage
    def uncertainty_px(self, name: str) -> float:
        """Standard deviation of the keypoints of one image, in pixels."""
        return self._read_uncertainty(self._group(name))

    @explains_damage
    def attributes(self) -> dict:
        """Root attributes of the file: kind, format, fingerprint, config, versions."""
        return h5.root_attributes(self._file)

    def write(self, name: str, features: Features, source: str = "") -> None:
        """Write the features of one image as a transaction. Raises BadInputError for more than can be read."""
        datasets = {
            "keypoints": features.keypoints.astype(np.float32, copy=False),
            "descriptors": np.ascontiguousarray(features.descriptors.T),
            "scores": features.scores.astype(np.float32, copy=False),
            "image_size": np.asarray(features.image_size, dtype=np.int64),
        }
        for part in ("keypoints", "descriptors"):
            where = f"{self.path}: {part!r} of {name!r}"
            refuse_too_large(datasets[part].shape, datasets[part].dtype.itemsize, where)
        if features.scales is not None:
            datasets["scales"] = features.scales.astype(np.float32, copy=False)
        if features.oris is not None:
            datasets["oris"] = np.degrees(features.oris).astype(np.float32, copy=False)
        described: dict[tuple[str, str], Any] = {
            ("keypoints", "uncertainty"): features.uncertainty_px,
            ("descriptors", "turns"): features.turns,
        }
        if features.from_seen is not None:
            described["keypoints", FROM_SEEN] = features.from_seen.ravel()
        attributes = {"source": source, "digest": features_digest(features)}
        h5.write_item(self._file, name, datasets, attributes, described)

    @cached_property
    @explains_damage
    def extractor(self) -> str:
        """`Features.extractor` of all its images."""
        config = self.attributes().get("config")
        return extractor_name(config) if isinstance(config, dict) else ""

    @property
    def intensity_range(self) -> tuple[float, float] | None:
        """The intensities mapped to black and white in photographs of more than 8 bits (`DecodeConfig`)."""
        config = self.attributes().get("config")
        decoding = config.get("decode") if isinstance(config, dict) else None
        ends = decoding.get("intensity_range") if isinstance(decoding, dict) else None
        return (float(ends[0]), float(ends[1])) if isinstance(ends, list) and len(ends) == 2 else None

    def _group(self, name: str) -> h5py.Group:
        refuse_missing(self._file, name)
        if not isinstance(group := find_item(self._file, name), h5py.Group):
            raise BadInputError(f"{self.path}: no features of image {name!r}; extract it first")
        if "format" in self._file.attrs and not h5.is_whole(group):
            raise BadInputError(f"{self.path}: the features of {name!r} are cut short; run the extraction again")
        return group

    def _read_keypoints(self, group: h5py.Group) -> np.ndarray:
        stored = array_of(group, "keypoints", ndim=2).astype(np.float32, copy=False)
        if stored.shape[1] != 2:
            raise BadInputError(f"{self.path}: {group.name!r} has keypoints of {stored.shape[1]} numbers, not x and y")
        return stored

    def _read_uncertainty(self, group: h5py.Group) -> float:
        found = float(group["keypoints"].attrs.get("uncertainty", 1.0))
        if not 0 < found <= LARGEST_PX:
            raise BadInputError(f"{self.path}: {str(group.name).strip('/')!r} has an uncertainty of {found} px")
        return found

    def _read_descriptors(self, group: h5py.Group) -> np.ndarray:
        stored = np.ascontiguousarray(array_of(group, "descriptors", ndim=2).T)
        if stored.dtype == np.uint8 and "format" not in self._file.attrs:
            return stored.astype(np.float32)  # values such as SIFT's; only featkit's own uint8 are packed bits
        return stored

    def _read_image_size(self, group: h5py.Group) -> tuple[int, int]:
        if not has(group, "image_size"):
            return (0, 0)
        width, height = (int(v) for v in array_of(group, "image_size", ndim=1))
        return width, height

    def _read_from_seen(self, group: h5py.Group) -> np.ndarray | None:
        stored = group["keypoints"].attrs.get(FROM_SEEN)
        return None if stored is None else np.asarray(stored, dtype=np.float64).reshape(2, 3)

    def _read_optional(self, group: h5py.Group, name: str) -> np.ndarray | None:
        return array_of(group, name).astype(np.float32, copy=False).reshape(-1) if has(group, name) else None


def extractor_name(config: Mapping[str, Any]) -> str:
    """`Features.extractor` from the configuration of the extract stage (`ExtractConfig`) in a features file."""
    extractor = config.get("extractor")
    if not isinstance(extractor, dict):
        return ""
    row = extractor.get("extractor")
    if row == "sift":
        return "rootsift" if extractor.get("normalization") == "l1_root" else "sift"
    kind = extractor.get("network") if row == "aliked" else row
    return kind if isinstance(kind, str) else ""


def features_digest(features: Features) -> str:
    """Digest (16 hex digits) of the keypoints (as float32) and descriptors (as stored)."""
    keypoints = np.ascontiguousarray(features.keypoints, dtype=np.float32)
    hashed = hashlib.sha256(keypoints.tobytes())
    hashed.update(np.ascontiguousarray(features.descriptors).tobytes())
    return hashed.hexdigest()[:16]


def points_digest(store: FeatureStore) -> str:
    """16 hex digits of all that a store has of keypoints, whatever it or the file around it has besides."""
    hashed = hashlib.sha256()
    for name in store.names():
        points = store.read_points(name)
        parts = (points.keypoints, points.scores, points.scales, points.oris)
        hashed.update(repr((name, points.image_size, points.uncertainty_px, [p is None for p in parts])).encode())
        for part in parts:
            hashed.update(b"" if part is None else np.ascontiguousarray(part, dtype=np.float32).tobytes())
    return hashed.hexdigest()[:16]


@contextmanager
def open_features(path: Path) -> Iterator[FeatureStore]:
    """Open features.h5 for reading. Raises BadInputError."""
    with h5.reading(path) as file:
        if (kind := h5.store_kind(file, "features")) != "features":
            raise BadInputError(f"{path}: holds {kind}, not features")
        yield FeatureStore(path, file)


@contextmanager
def append_features(
    path: Path, config: Config, weights_sha256: str = "", overwrite: bool = False
) -> Iterator[FeatureStore]:
    """Open features.h5 for adding images. Raises BadInputError if it was made with another configuration."""
    with h5.appending(path, "features", config, {"weights_sha256": weights_sha256}, overwrite) as file:
        yield FeatureStore(path, file)


# ----------------------------------------------------------------------------------------------------------------------
# Global descriptors in hloc's layout: a group per image (slashes nest) with the dataset `global_descriptor` (d,).


DATASET = "global_descriptor"
NAMED = 3  # missing images listed in an error message
CHUNK = 1 << 22


def read_global_descriptors(files: Sequence[Path], names: Sequence[str]) -> Float32[np.ndarray, "n d"]:
    """Descriptors of `names`, as stored, each from the first file that has it.

    Raises BadInputError for a file that cannot be read, images that no file has (some are named), and descriptors that
    are not finite or differ in length.
    """
    rows: list[np.ndarray] = []
    missing: list[str] = []
    with ExitStack() as stack:
        opened = [stack.enter_context(h5.reading(path)) for path in files]
        for name in names:
            group = next((find_item(file, name) for file in opened if _has_descriptor(file, name)), None)
            if group is None:
                missing.append(name)
            else:
                rows.append(_read_descriptor(group, name))
            if rows and len(rows[-1]) != len(rows[0]):
                raise BadInputError(
                    f"{group.file.filename if group is not None else files[0]}: {name!r} has a {DATASET} of"
                    f" {len(rows[-1])} numbers, {names[0]!r} one of {len(rows[0])}; describe all images the same way"
                )
    if missing:
        where = " and ".join(map(str, files))
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise BadInputError(
            f"{where}: no {DATASET} of {', '.join(map(repr, missing[:NAMED]))}{more} ({len(missing)} of {len(names)}"
            " images); add their descriptors under the same names"
        )
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def _has_descriptor(file: h5py.File, name: str) -> bool:
    try:
        return isinstance(group := find_item(file, name), h5py.Group) and has(group, DATASET)
    except DAMAGE:
        return False


def _read_descriptor(group: h5py.Group, name: str) -> Float32[np.ndarray, " d"]:
    try:
        row = array_of(group, DATASET).astype(np.float32, copy=False).reshape(-1)
    except DAMAGE as error:
        raise BadInputError(f"{group.file.filename}: the {DATASET} of {name!r} is damaged ({error})") from None
    if len(row) == 0 or not np.isfinite(row).all():
        raise BadInputError(f"{group.file.filename}: the {DATASET} of {name!r} is not a row of finite numbers")
    return row


def files_digest(files: Sequence[Path]) -> str:
    """Digest (16 hex digits) of the files' contents. Raises BadInputError."""
    hashed = hashlib.sha256()
    for path in files:
        try:
            with open_input(path) as file:
                while chunk := file.read(CHUNK):
                    hashed.update(chunk)
        except OSError as error:
            raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    return hashed.hexdigest()[:16]
