"""From stored descriptors to the most similar images: codebook, one vector per image, search, pairs.

The descriptors of one image are in memory at a time. Vectors are int16 (vlad.py): 100,000 images of 64 x 64 take
781 MiB. They and the search stay within `memory_budget_mb`; vectors that do not fit go to a temporary file.
The budget does not include: the training of the codebook (see `train_codebook`; finished before vectors are computed),
the descriptors of one image, the libraries themselves, the names, and the result (8 bytes for each image found, 15 MiB
for 100,000 images with 20 each; as `Pair`s about 56 bytes each, 107 MiB).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int16, Int64

from featkit.core.errors import BadInputError, NotWritableError, UsageError
from featkit.core.log import LOGGER, progress
from featkit.core.types import Pair
from featkit.io.features import FeatureStore, read_global_descriptors
from featkit.retrieval.search import LARGEST_BLOCK, MIB, block_bytes, top_k
from featkit.retrieval.vlad import (
    DOT_NORM,
    Codebook,
    VladConfig,
    to_fixed_point,
    train_codebook,
    unit_descriptors,
    vlad,
)

Describe = Callable[
    [FeatureStore, Sequence[str], Codebook, VladConfig, str], Iterator[tuple[str, Int16[np.ndarray, " d"]]]
]
"""Computes image vectors: (features, names, codebook, configuration, device) -> name and vector; see `described`."""


@dataclass(frozen=True)
class ImageVectors:
    """Image vectors and their names; images without keypoints are left out."""

    names: list[str]
    vectors: Int16[np.ndarray, "n d"]


@dataclass(frozen=True)
class SimilarImages:
    """query_names, database_names: the images that have a vector. best: for every query, indices into database_names,
    most similar first; -1 if there are fewer.
    """

    query_names: list[str]
    database_names: list[str]
    best: Int64[np.ndarray, "q num"]


def retrieve(
    queries: FeatureStore,
    query_names: Sequence[str],
    database: FeatureStore,
    database_names: Sequence[str],
    config: VladConfig,
    num: int,
    generator: np.random.Generator,
    *,
    device: str = "auto",
    spill_folder: Path | None = None,
    describe: Describe | None = None,
) -> list[Pair]:
    """Pairs (query, database image): for every query, in their order, its `num` most similar images, best first.

    Arguments and errors as for `most_similar`.
    """
    similar = most_similar(
        queries, query_names, database, database_names, config, num, generator,
        device=device, spill_folder=spill_folder, describe=describe,
    )  # fmt: skip
    return [
        Pair(name, similar.database_names[index])
        for name, row in zip(similar.query_names, similar.best, strict=True)
        for index in row[row >= 0].tolist()
    ]


def most_similar(
    queries: FeatureStore,
    query_names: Sequence[str],
    database: FeatureStore,
    database_names: Sequence[str],
    config: VladConfig,
    num: int,
    generator: np.random.Generator,
    *,
    device: str = "auto",
    spill_folder: Path | None = None,
    describe: Describe | None = None,
) -> SimilarImages:
    """For every query the `num` most similar images of the database.

    The codebook is trained on the database alone. Within one store no image is found for itself; a query without
    keypoints is left out and a database image without keypoints is never found. spill_folder: folder for vectors beyond
    the memory budget (an unnamed temporary file; by default in the system's temporary folder). describe: function that
    computes the vectors instead of `described`.
    Raises BadInputError for missing or damaged features, or if no database image has a keypoint; UsageError for an
    impossible budget; NotWritableError if there is no space to spill.
    """
    codebook = train_codebook(database, database_names, config, generator, device=device)
    is_one_store = queries is database
    same = is_one_store and list(query_names) == list(database_names)
    rows = len(database_names) + (0 if same else len(query_names))
    spill = needs_spill(rows, codebook.dims, num, config.memory_budget_mb)
    with ExitStack() as stack:
        folder = spill_folder if spill else None
        args = (codebook, config, device, spill, folder, describe or described)
        database_vectors = stack.enter_context(image_vectors(database, database_names, *args))
        query_vectors = database_vectors if same else stack.enter_context(image_vectors(queries, query_names, *args))
        used = 0 if spill else database_vectors.vectors.nbytes + (0 if same else query_vectors.vectors.nbytes)
        best, _ = top_k(
            query_vectors.vectors,
            database_vectors.vectors,
            num,
            available_bytes=config.memory_budget_mb * MIB - used,
            exclude=_indices_of_queries(query_vectors.names, database_vectors.names, same) if is_one_store else None,
            backend=config.backend,
            device=device,
        )
        return SimilarImages(query_vectors.names, database_vectors.names, best)


def _indices_of_queries(query_names: list[str], database_names: list[str], same: bool) -> Int64[np.ndarray, " q"]:
    """Index of each query image among the database images, or -1."""
    if same:
        return np.arange(len(database_names))
    index_of = {name: index for index, name in enumerate(database_names)}
    return np.array([index_of.get(name, -1) for name in query_names], np.int64)


def needs_spill(rows: int, dims: int, num: int, memory_budget_mb: int) -> bool:
    """Whether the vectors of `rows` images and a search with reasonably large blocks exceed the budget."""
    comfortable = block_bytes(min(rows, LARGEST_BLOCK // 8), dims, num)
    return rows * dims * 2 + comfortable > memory_budget_mb * MIB


@contextmanager
def image_vectors(
    store: FeatureStore,
    names: Sequence[str],
    codebook: Codebook,
    config: VladConfig,
    device: str = "auto",
    spill: bool = False,
    folder: Path | None = None,
    describe: Describe | None = None,
) -> Iterator[ImageVectors]:
    """Vectors of `names`, in memory or (spill) in a temporary file in `folder` that is deleted with this context.

    Raises BadInputError for features that do not fit the codebook, NotWritableError if there is no space.
    """
    described_names: list[str] = []
    named_vectors = (describe or described)(store, names, codebook, config, device)
    if not spill:
        table = np.empty((len(names), codebook.dims), np.int16)
        for name, vector in named_vectors:
            table[len(described_names)] = vector
            described_names.append(name)
        yield ImageVectors(described_names, table[: len(described_names)])
        return
    LOGGER.info("vectors of %d images exceed %d MiB: using a temporary file", len(names), config.memory_budget_mb)
    try:
        # Written as a stream and mapped afterwards: a full disk is an error here, but a SIGBUS in a memmap.
        with tempfile.TemporaryFile(dir=folder, prefix=".featkit-vectors-") as file:
            for name, vector in named_vectors:
                file.write(vector.tobytes())
                described_names.append(name)
            file.flush()
            shape = (len(described_names), codebook.dims)
            mapped = np.memmap(file, np.int16, "r", shape=shape) if described_names else np.empty(shape, np.int16)
            yield ImageVectors(described_names, mapped)
    except OSError as error:
        raise NotWritableError(
            f"{folder or tempfile.gettempdir()}: cannot store image vectors ({error.strerror});"
            " free some space or raise memory_budget_mb"
        ) from None


def image_vector(
    rows: Float32[np.ndarray, "n d"], codebook: Codebook, config: VladConfig, device: str, image: str
) -> Int16[np.ndarray, " kp"]:
    """The vector by which images are compared, all zeros without descriptors. rows: from `unit_descriptors`.

    Raises BadInputError, beginning with `image`, for descriptors whose length differs from the database's.
    """
    if len(rows) and rows.shape[1] != len(codebook.basis):
        raise BadInputError(
            f"{image} has descriptors of length {rows.shape[1]}, the database {len(codebook.basis)};"
            " extract all images with one method"
        )
    return to_fixed_point(vlad(rows, codebook, config, device=device)[None, :], DOT_NORM)[0]


def described(
    store: FeatureStore, names: Sequence[str], codebook: Codebook, config: VladConfig, device: str
) -> Iterator[tuple[str, Int16[np.ndarray, " d"]]]:
    """Name and vector of every image that has one, in the order of `names`. Raises as `image_vector` does."""
    with progress("describe images", len(names), "images") as advance:
        for name in names:
            rows = unit_descriptors(store, name, config.descriptors_per_image)
            vector = image_vector(rows, codebook, config, device, f"{store.path}: {name!r}")
            advance(1)
            if vector.any():
                yield name, vector


# ----------------------------------------------------------------------------------------------------------------------
# Retrieval with other programs' global descriptors (NetVLAD, OpenIBL, MegaLoc, ...), from files in hloc's layout.
#
# Compared as in hloc, by the dot product of the stored vectors. All are in memory as float32: 1.5 GiB for 100,000
# images of 4,096 numbers.


MAX_FILES = 2
BLOCK = 256  # queries at a time: their similarities to 100,000 images take 100 MB


def retrieve_given(
    files: Sequence[Path], query_names: Sequence[str], database_names: Sequence[str], num: int
) -> list[Pair]:
    """Pairs (query, database image): for every query, in their order, its `num` most similar images, best first.

    files: one with all images, or the database's and the queries' (each is searched first for its own images). Raises
    BadInputError, which names the images without a descriptor, and UsageError for more than two files.
    """
    check_files(files)
    database = read_global_descriptors(files, database_names)
    queries = read_global_descriptors(list(files)[::-1], query_names)
    best = most_similar_rows(queries, database, num)
    return [
        Pair(name, database_names[index])
        for name, row in zip(query_names, best, strict=True)
        for index in row[row >= 0].tolist()
    ]


def check_files(files: Sequence[Path]) -> None:
    """Raise UsageError unless there are one or two files."""
    if not 1 <= len(files) <= MAX_FILES:
        raise UsageError(
            f"--retrieval takes one file of all images, or two (the map's, the queries'); {len(files)} given"
        )


def most_similar_rows(
    queries: Float32[np.ndarray, "q d"], database: Float32[np.ndarray, "n d"], num: int, *, not_itself: bool = False
) -> Int64[np.ndarray, "q num"]:
    """For every query the `num` rows of the database with the largest dot product, best first; -1 if there are fewer.

    Ties are in order of the index. not_itself: queries and database are the same images, and none finds itself. Raises
    UsageError for vectors of different lengths.
    """
    if len(queries) and len(database) and queries.shape[1] != database.shape[1]:
        raise UsageError(
            f"--retrieval: descriptors of {queries.shape[1]} and {database.shape[1]} numbers cannot be compared;"
            " describe queries and map with the same method"
        )
    best = np.full((len(queries), num), -1, np.int64)
    for start in range(0, len(queries), BLOCK):
        similarities = queries[start : start + BLOCK] @ database.T
        if not_itself:
            rows = np.arange(len(similarities))
            similarities[rows, start + rows] = -np.inf
        order = np.argsort(-similarities, axis=1, kind="stable")[:, : min(num, len(database) - not_itself)]
        best[start : start + len(order), : order.shape[1]] = order
    return best
