"""Top-k search by dot product, with faiss or torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int16, Int64

from featkit.core.errors import UsageError
from featkit.core.runtime import torch_device

if TYPE_CHECKING:
    import torch

# ----------------------------------------------------------------------------------------------------------------------
# Top-k by dot product in blocks that fit a memory budget; the same result for every budget and backend.
#
# Similarities are integers (vlad.py), so a similarity and an index fit into one int64 key: sorting keys sorts by
# similarity, with ties in order of the index.


MIB = 1 << 20
INDEX_BITS = 32
INDEX_MASK = (1 << INDEX_BITS) - 1
NOTHING = np.iinfo(np.int64).min  # key of an empty place
LARGEST_BLOCK = 4096
SMALLEST_BLOCK = 16


def block_bytes(rows: int, dims: int, num: int) -> int:
    """Maximum memory, in addition to the vectors, of a search with blocks of `rows` queries and database vectors."""
    operands = 2 * rows * dims * 4  # both blocks as float32
    similarities = rows * rows * (4 + 8 + 1)  # float32, the int64 keys made from them, torch's partial sort
    best = rows * (num + 2) * 8 * 8  # keys so far, keys of this block, and copies for merging
    return operands + similarities + best


def block_rows(dims: int, num: int, available_bytes: int) -> int:
    """The largest block (a power of two) that fits. Raises UsageError if not even the smallest does."""
    rows = LARGEST_BLOCK
    while block_bytes(rows, dims, num) > available_bytes:
        rows //= 2
        if rows < SMALLEST_BLOCK:
            least_mib = -(-block_bytes(SMALLEST_BLOCK, dims, num) // MIB)
            raise UsageError(
                f"memory_budget_mb: at least {least_mib} MiB are needed for {num} neighbours in {dims} dimensions"
            )
    return rows


def top_k(
    queries: Int16[np.ndarray, "q d"],
    database: Int16[np.ndarray, "n d"],
    num: int,
    *,
    available_bytes: int,
    exclude: Int64[np.ndarray, " q"] | None = None,
    backend: Backend = "auto",
    device: str = "auto",
) -> tuple[Int64[np.ndarray, "q num"], Int64[np.ndarray, "q num"]]:
    """(indices, similarities) of the `num` database rows with the largest dot product, best first.

    queries, database: fixed-point vectors, in memory or a memmap. exclude: for each query a database index that is not
    returned (itself), or -1. available_bytes: memory in addition to the two arrays and the result. If there are fewer
    than `num` rows the index is -1 and the similarity 0. Raises UsageError if available_bytes is too small.
    """
    library = choose_backend(backend, device)
    rows = block_rows(queries.shape[1], num, available_bytes)
    indices = np.full((len(queries), num), -1, np.int64)
    similarities = np.zeros((len(queries), num), np.int64)
    for start in range(0, len(queries), rows):
        query_block = queries[start : start + rows].astype(np.float32)
        skip = np.full(len(query_block), -1) if exclude is None else exclude[start : start + rows]
        keys = np.full((len(query_block), num), NOTHING, np.int64)
        for first in range(0, len(database), rows):
            block = database[first : first + rows].astype(np.float32)
            if library == "faiss":
                block_keys = _search_block_faiss(query_block, block, num, skip - first, first)
            else:
                block_keys = _search_block_torch(query_block, block, num, skip - first, first, torch_device(device))
            keys = _largest_keys(np.concatenate([keys, block_keys], axis=1), num)
            del block, block_keys  # before the next block is read, so that only one is in memory
        is_found = keys != NOTHING
        indices[start : start + rows] = np.where(is_found, INDEX_MASK - (keys & INDEX_MASK), -1)
        similarities[start : start + rows] = np.where(is_found, keys >> INDEX_BITS, 0)
    return indices, similarities


def _sort_keys(similarities: np.ndarray, index: np.ndarray) -> np.ndarray:
    return (similarities.astype(np.int64) << INDEX_BITS) + (INDEX_MASK - index)


def _largest_keys(keys: np.ndarray, num: int) -> np.ndarray:
    """The `num` largest keys of every row, largest first."""
    keys.sort(axis=1)
    return keys[:, ::-1][:, :num].copy()


def _search_block_torch(
    queries: np.ndarray, block: np.ndarray, num: int, skip: np.ndarray, first: int, device: torch.device
) -> np.ndarray:
    import torch

    keys = (torch.from_numpy(queries).to(device) @ torch.from_numpy(block).to(device).T).to(torch.int64)
    keys.mul_(1 << INDEX_BITS)
    keys.add_(INDEX_MASK - first - torch.arange(len(block), device=device))
    inside = np.flatnonzero((skip >= 0) & (skip < len(block)))
    keys[torch.from_numpy(inside).to(device), torch.from_numpy(skip[inside]).to(device)] = NOTHING
    return torch.topk(keys, min(num, len(block)), dim=1).values.cpu().numpy()


def _search_block_faiss(queries: np.ndarray, block: np.ndarray, num: int, skip: np.ndarray, first: int) -> np.ndarray:
    import faiss

    # Two more than requested: one may be the excluded row, and one shows whether a tie was cut.
    count = min(num + 2, len(block))
    similarities, index = faiss.knn(queries, block, count, metric=faiss.METRIC_INNER_PRODUCT)
    keys = np.where(index == skip[:, None], NOTHING, _sort_keys(similarities, first + index))
    keys = _largest_keys(keys, num)
    if count == len(block):
        return keys
    # faiss does not guarantee which of several equal rows it returns: if a tie reaches the cut, compare all rows.
    cut = np.flatnonzero((keys[:, -1] >> INDEX_BITS) <= similarities[:, -1].astype(np.int64))
    all_rows = np.arange(len(block))
    for row in cut:
        full = _sort_keys(block @ queries[row], first + all_rows)
        if 0 <= skip[row] < len(block):
            full[skip[row]] = NOTHING
        keys[row] = _largest_keys(full[None, :], num)[0]
    return keys


# ----------------------------------------------------------------------------------------------------------------------
# Which library computes the products: faiss if it can be imported, otherwise torch. The results are the same.
#
# faiss and torch are imported inside functions so that importing featkit.retrieval stays cheap.


Backend = Literal["auto", "faiss", "torch"]


def choose_backend(backend: Backend, device: str = "auto") -> Literal["faiss", "torch"]:
    """The library to use. "auto" is faiss if it is installed and `device` is not a GPU (faiss runs on the CPU).

    Raises UsageError if faiss is requested but not installed, or for a device that is not available.
    """
    installed = importlib.util.find_spec("faiss") is not None
    if backend == "faiss" and not installed:
        raise UsageError("backend 'faiss' is not installed; pip install faiss-cpu, or set backend=torch")
    if backend == "auto":
        backend = "faiss" if installed and not device.startswith("cuda") else "torch"
    if backend == "faiss" and device not in {"auto", "cpu"}:
        torch_device(device)  # faiss does not use it, but an unavailable device is still refused
    return backend
