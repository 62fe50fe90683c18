"""Vectors that images are retrieved by, in shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int16

from featkit.config import Config
from featkit.errors import BadInputError
from featkit.retrieval.retrieve import described
from featkit.retrieval.vlad import Codebook, VladConfig
from featkit.store.artifact import writing
from featkit.store.features import open_features


class DescribeTask(Config):
    """Vectors of images. Items: their names in `features`. codebook: as `write_codebook` keeps it."""

    unit: ClassVar[str] = "images"
    items_per_shard: ClassVar[int] = 512
    suffix: ClassVar[str] = ".npz"
    linked: ClassVar[bool] = True
    stage: Literal["describe"] = "describe"
    features: Path
    codebook: Path
    config: VladConfig
    device: str = "auto"

    def work(self, items: list[str], output: Path) -> None:
        """See `engine.base.Task`."""
        codebook = read_codebook(self.codebook)
        with open_features(self.features) as store:
            rows = list(described(store, items, codebook, self.config, self.device))
        vectors = np.stack([vector for _, vector in rows]) if rows else np.empty((0, codebook.dims), np.int16)
        np.savez(output, names=np.array([name for name, _ in rows], dtype=np.str_), vectors=vectors)

    def join(self, shards: list[Path], output: Path) -> None:
        """See `engine.base.Task`; who planned it reads the shards (`read_vectors`)."""


def write_codebook(codebook: Codebook, path: Path) -> None:
    """Keep a codebook for other machines."""
    with writing(path, owned=True) as file:  # named by what is in it
        np.savez(file, basis=codebook.basis, centroids=codebook.centroids)


def read_codebook(path: Path) -> Codebook:
    """A codebook that `write_codebook` kept. Raises BadInputError."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Codebook(kept["basis"], kept["centroids"])
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(f"{path}: not a codebook ({error}); make the plan again") from None


def read_vectors(shards: Sequence[Path]) -> Iterator[tuple[str, Int16[np.ndarray, " d"]]]:
    """Names and vectors of all shards, in order; one shard is in memory. Raises BadInputError."""
    for path in shards:
        try:
            with np.load(path, allow_pickle=False) as kept:
                names, vectors = kept["names"].tolist(), kept["vectors"]
        except (OSError, ValueError, KeyError) as error:
            raise BadInputError(f"{path}: damaged ({error}); remove it and run the same command again") from None
        yield from zip(names, vectors, strict=True)
