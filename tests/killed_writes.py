"""The state of a store on disk at every moment at which its writer might be killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np

from featkit.core.config import Config
from featkit.core.types import Features
from featkit.io import journal
from featkit.io.features import append_features, open_features

NAMES = [f"{folder}/{number}.jpg" for number in range(4) for folder in ("a", "b/c")]


class Made(Config):
    threshold: float = 0.5


def features_of(name: str) -> Features:
    rng = np.random.default_rng(NAMES.index(name))
    return Features(
        keypoints=rng.uniform(0, 400, (40, 2)).astype(np.float32),
        descriptors=rng.normal(size=(40, 32)).astype(np.float16),
        scores=rng.uniform(size=40).astype(np.float32),
        image_size=(400, 300),
    )


@dataclass(frozen=True)
class Moment:
    """done: items written so far. flushed: content of the file after the last flush."""

    done: tuple[str, ...]
    flushed: bytes


class Moments:
    """The store and its journal on disk, copied before, during and after every write to either."""

    def __init__(self, store: Path, folder: Path):
        self.store, self.folder = store, folder
        self.moments: list[Moment] = []
        self.items: list[str] = []
        self.flushed = b""

    def keep(self) -> None:
        place = self.folder / str(len(self.moments))
        place.mkdir(parents=True)
        for path in (self.store, journal.journal_of(self.store)):
            if path.exists():
                shutil.copy(path, place)
        self.moments.append(Moment(tuple(self.items), self.flushed))

    def around(self, plain: Callable[..., object], flushes: bool) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            self.keep()
            result = plain(*arguments)
            if flushes:
                self.flushed = self.store.read_bytes()
            self.keep()
            return result

        return call

    def in_halves(self, file: FileIO, data: bytes | memoryview) -> None:
        """Write all of `data` in two halves, and keep a copy of the files after each."""
        view = memoryview(data)
        for part in (view[: len(view) // 2], view[len(view) // 2 :]):
            file.write(part)
            self.keep()

    def copy(self, number: int, folder: Path) -> Path:
        """The store and its journal at one moment."""
        return shutil.copytree(self.folder / str(number), folder / str(number)) / self.store.name


def written(path: Path, names: list[str]) -> Path:
    with append_features(path, Made()) as store:
        for name in names:
            store.write(name, features_of(name))
    return path


def assert_holds(path: Path, names: list[str]) -> None:
    with open_features(path) as store:
        assert store.names() == sorted(names)
        for name in names:
            np.testing.assert_array_equal(store.read(name).descriptors, features_of(name).descriptors)
