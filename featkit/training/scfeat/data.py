"""What a stage of SCFeat's training learns from, and the network that it starts with."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from featkit.data.homography_pairs import photographs
from featkit.data.image_tree import FileTree
from featkit.data.posed_pairs import PosedPairs
from featkit.store.features import open_features

PART = re.compile(r"/dense\d+$")


@dataclass(frozen=True)
class Start:
    """The values that a stage starts from; those it does not name stay as they were drawn. origin: for the records."""

    values: dict[str, Tensor] = field(default_factory=dict)
    origin: str = "random"

    def digest(self) -> str:
        """16 hex digits of the values; "" when there are none."""
        if not self.values:
            return ""
        digest = hashlib.sha256()
        for name in sorted(self.values):
            digest.update(name.encode())
            digest.update(self.values[name].detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class PosedData:
    """Pairs with poses."""

    name: str
    pairs: PosedPairs
    start: Start = Start()

    @property
    def count(self) -> int:
        return len(self.pairs)

    @property
    def scenes(self) -> list[str]:
        """Their names, without MegaDepth's /dense0: its parts of a scene are one."""
        return list(dict.fromkeys(PART.sub("", scene.name) for scene in self.pairs.scenes))

    def identity(self) -> str:
        digest = hashlib.sha256(self.pairs.pairs.tobytes())
        for scene in self.pairs.scenes:
            digest.update(repr((scene.name, scene.image_names)).encode())
            for values in (scene.sizes, scene.intrinsics, scene.rotations, scene.translations):
                digest.update(values.tobytes())
        return f"{self.count} pairs, {digest.hexdigest()[:16]}, from {self.start.origin} {self.start.digest()}".strip()


@dataclass(frozen=True)
class PhotoData:
    """Single photographs."""

    name: str
    folders: tuple[Path, ...]
    start: Start = Start()
    teacher_files: tuple[Path, ...] = ()
    """Features of each folder's photographs by a teacher; none: without."""

    @cached_property
    def files(self) -> list[tuple[FileTree, str]]:
        return [found for folder in self.folders for found in photographs(folder)]

    @property
    def count(self) -> int:
        return len(self.files)

    @property
    def scenes(self) -> list[str]:
        """The folders that the photographs were looked for in."""
        return [folder.name for folder in self.folders]

    def identity(self) -> str:
        digest = hashlib.sha256("\n".join(sorted(name for _, name in self.files)).encode())
        for file in self.teacher_files:
            with open_features(file) as store:
                digest.update(repr([(name, store.digest(name)) for name in store.names()]).encode())
        found = f"{self.count} photographs, {digest.hexdigest()[:16]}"
        return f"{found}, from {self.start.origin} {self.start.digest()}".strip()
