"""What crash.py kills: hloc's way of writing; featkit's extract and match stages with data that cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

from featkit.core.config import Config
from featkit.core.registry import Method
from featkit.core.types import Features, Matches, Pair
from featkit.features import stage as extract
from featkit.features.stage import ExtractConfig, with_stage_config
from featkit.io.features import FeatureStore, append_features, open_features
from featkit.io.lists import write_pairs
from featkit.io.matches import MatchStore, append_matches
from featkit.matching import stage as match

IMAGES, KEYPOINTS, DIMENSIONS = 24, 1500, 128
Tell = Callable[[int], None]


@dataclass(frozen=True)
class Found:
    """What lies on the disk. right: items as in an undisturbed run; wrong: items that pass for done and are not."""

    right: int = 0
    wrong: int = 0
    readable: bool = True


@dataclass(frozen=True)
class Way:
    """One way of writing. write: into a folder, telling how many items are done; look: what lies there.

    counts_all: write tells how many items are there in all, not how many more.
    """

    method: str
    items: int
    write: Callable[[Path, Tell], None]
    look: Callable[[Path], Found]
    prepare: Callable[[Path], None] = field(default=lambda folder: None)
    counts_all: bool = False


def features_of(number: int) -> Features:
    """The features of an image: cheap to make, as large as real ones."""
    rng = np.random.default_rng(number)
    keypoints = rng.random((KEYPOINTS, 2), np.float32) * 60
    descriptors = rng.random((KEYPOINTS, DIMENSIONS), np.float32).astype(np.float16)
    return Features(keypoints, descriptors, keypoints[:, 0].copy(), (80, 60))


def image_name(number: int) -> str:
    return f"{number:02d}.png"


def write_like_hloc(folder: Path, tell: Tell) -> None:
    """The file is opened for each image; an image with any dataset is done."""
    path = folder / "features.h5"
    done: set[str] = set()
    if path.exists():
        with h5py.File(path, "r", libver="latest") as file:
            file.visititems(
                lambda name, item: done.add(item.parent.name[1:]) if isinstance(item, h5py.Dataset) else None
            )
    for number in range(IMAGES):
        name, features = image_name(number), features_of(number)
        if name in done:
            continue
        with h5py.File(path, "a", libver="latest") as file:
            if name in file:
                del file[name]
            group = file.create_group(name)
            for key, value in hloc_datasets(features).items():
                group.create_dataset(key, data=value)
            group["keypoints"].attrs["uncertainty"] = 1.0
        tell(1)


def hloc_datasets(features: Features) -> dict[str, np.ndarray]:
    return {
        "keypoints": features.keypoints.astype(np.float16),
        "descriptors": features.descriptors.T,
        "scores": features.scores.astype(np.float16),
        "image_size": np.array(features.image_size),
    }


def look_like_hloc(folder: Path) -> Found:
    path, right, wrong = folder / "features.h5", 0, 0
    if not path.exists():
        return Found()
    try:
        with h5py.File(path, "r", libver="latest") as file:
            for number in range(IMAGES):
                name = image_name(number)
                if name not in file or len(file[name]) == 0:
                    continue
                expected, group = hloc_datasets(features_of(number)), file[name]
                same = all(key in group and np.array_equal(group[key][()], one) for key, one in expected.items())
                same = same and "uncertainty" in group["keypoints"].attrs
                right, wrong = right + same, wrong + (not same)
    except (OSError, RuntimeError, KeyError, ValueError):
        return Found(readable=False)
    return Found(right, wrong)


class CheapConfig(Config):
    """Of the extractor below."""


class Cheap:
    """An extractor that draws: the image's number is in its pixels."""

    Config = CheapConfig
    colour, holds_gil, weights_sha256 = False, False, ""

    def __init__(self, config: CheapConfig, device: str = "auto"):
        self.config = config

    def extract(self, pixels: np.ndarray) -> Features:
        return features_of(int(pixels[0, 0]))


CHEAP = with_stage_config(Method("cheap", Cheap, CheapConfig(), "cpu"), ExtractConfig(workers=1))


def write_images(folder: Path) -> None:
    (folder / "images").mkdir()
    for number in range(IMAGES):
        cv2.imwrite(str(folder / "images" / image_name(number)), np.full((60, 80), number, np.uint8))


def write_extract(folder: Path, tell: Tell) -> None:
    telling(FeatureStore, tell)
    extract.run(CHEAP, folder / "images", folder / "features.h5")


def telling(store: Any, tell: Tell) -> None:
    """Tell of each item that a store has written. In the process that is killed."""
    plain = store.write

    def write(self: Any, *arguments: Any, **more: Any) -> None:
        plain(self, *arguments, **more)
        tell(1)

    store.write = write


def look_extract(folder: Path) -> Found:
    path, right, wrong = folder / "features.h5", 0, 0
    if not path.exists():
        return Found()
    try:
        with append_features(path, CHEAP.config) as store:  # as the next run opens it: what was torn is mended
            for number in range(IMAGES):
                if store.has(image_name(number)):
                    found, expected = store.read(image_name(number)), features_of(number)
                    same = np.array_equal(found.keypoints, expected.keypoints)
                    same = same and np.array_equal(found.descriptors, expected.descriptors)
                    right, wrong = right + same, wrong + (not same)
    except Exception:  # whatever it is, the file cannot be gone on with
        return Found(readable=False)
    return Found(right, wrong)


def pairs_of_images() -> list[Pair]:
    names = [image_name(number) for number in range(IMAGES)]
    return [Pair(a, b) for i, a in enumerate(names) for b in names[i + 1 : i + 5]]


def matches_of(pair: Pair) -> Matches:
    rng = np.random.default_rng([int(pair.name0[:2]), int(pair.name1[:2])])
    return Matches(rng.integers(-1, KEYPOINTS, KEYPOINTS).astype(np.int32), rng.random(KEYPOINTS, np.float32))


class CheapMatchConfig(Config):
    """Of the matcher below."""

    batch_size: int = 4


class CheapMatcher:
    """A matcher that draws."""

    Config = CheapMatchConfig

    def __init__(self, config: CheapMatchConfig, device: str = "auto"):
        self.config = config

    def match(self, batch: list[tuple[Features, Features]]) -> list[Matches]:
        return [matches_of(Pair(image_name(number_of(a)), image_name(number_of(b)))) for a, b in batch]


def number_of(features: Features) -> int:
    """Which image these are of."""
    return next(n for n in range(IMAGES) if FIRST[n] == features.keypoints[0, 0])


FIRST = {number: features_of(number).keypoints[0, 0] for number in range(IMAGES)}


def prepare_match(folder: Path) -> None:
    write_images(folder)
    extract.run(CHEAP, folder / "images", folder / "features.h5")
    write_pairs(folder / "pairs.txt", pairs_of_images())


def write_match(folder: Path, tell: Tell) -> None:
    telling(MatchStore, tell)
    files = (folder / "features.h5", folder / "pairs.txt", folder / "matches.h5")
    match.run(Method("cheap", CheapMatcher, CheapMatchConfig(), "cpu"), *files)


def look_match(folder: Path) -> Found:
    path, right, wrong = folder / "matches.h5", 0, 0
    if not path.exists():
        return Found()
    with open_features(folder / "features.h5") as features:
        origin = str(features.attributes()["fingerprint"])
        digests = {name: features.digest(name) for name in features.names()}
    try:
        with append_matches(path, CheapMatchConfig(), origin) as store:
            for pair in pairs_of_images():
                if store.has(pair, (digests[pair.name0], digests[pair.name1])):
                    found, expected = store.read(pair), matches_of(pair)
                    same = np.array_equal(found.matches0, expected.matches0)
                    same = same and np.array_equal(found.scores0, expected.scores0)
                    right, wrong = right + same, wrong + (not same)
    except Exception:
        return Found(readable=False)
    return Found(right, wrong)


WAYS = (
    Way('hloc\'s pattern (libver="latest", append per image)', IMAGES, write_like_hloc, look_like_hloc),
    Way("featkit extract", IMAGES, write_extract, look_extract, write_images),
    Way("featkit match", len(pairs_of_images()), write_match, look_match, prepare_match),
)
