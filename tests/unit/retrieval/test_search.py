import importlib.util
import tracemalloc

import numpy as np
import pytest

from featkit.core.errors import UsageError
from featkit.retrieval import search
from featkit.retrieval.search import MIB, block_bytes, block_rows, top_k

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
BACKENDS = [pytest.param("faiss", marks=needs_faiss), "torch"]


def table(n: int, d: int = 12, seed: int = 0, largest: int = 200) -> np.ndarray:
    return np.random.default_rng(seed).integers(-largest, largest + 1, size=(n, d)).astype(np.int16)


def brute_force(queries: np.ndarray, database: np.ndarray, num: int, exclude: np.ndarray) -> np.ndarray:
    """The plain way: all similarities, a stable sort, the excluded one left out."""
    found = np.full((len(queries), num), -1)
    for row, query in enumerate(queries.astype(np.int64)):
        order = np.argsort(-(database.astype(np.int64) @ query), kind="stable")
        order = order[order != exclude[row]][:num]
        found[row, : len(order)] = order
    return found


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("device", ["banana", "gpu", "", "mps", "cpu:x", "cuda:999"])
def test_a_device_that_is_not_there_is_a_usage_error(backend: str, device: str) -> None:
    with pytest.raises(UsageError, match=f"--device {device}: "):
        top_k(table(4), table(4), 2, available_bytes=MIB, backend=backend, device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [16, 64, 4096])
@pytest.mark.parametrize("largest", [200, 1])  # 1: almost every similarity is a tie
def test_top_k_equals_brute_force_for_every_budget(backend: str, rows: int, largest: int) -> None:
    database = table(230, d=6, largest=largest)
    exclude = np.arange(230)
    found, similarities = top_k(
        database, database, 7, available_bytes=block_bytes(rows, 6, 7), exclude=exclude, backend=backend
    )  # type: ignore[call-overload]
    assert np.array_equal(found, brute_force(database, database, 7, exclude))
    exact = database.astype(np.int64) @ database.astype(np.int64).T
    assert np.array_equal(similarities, np.take_along_axis(exact, found, axis=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_rows_come_lower_index_first_across_blocks(backend: str) -> None:
    database = np.repeat(table(1), 100, axis=0)
    found, _ = top_k(database[:1], database, 5, available_bytes=block_bytes(16, 12, 5), backend=backend)  # type: ignore[arg-type]
    assert found.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_rows_than_asked_for_are_padded(backend: str) -> None:
    database = table(3)
    found, similarities = top_k(
        database, database, 5, available_bytes=MIB, exclude=np.array([0, 1, -1]), backend=backend
    )  # type: ignore[call-overload]
    assert (found >= 0).sum(axis=1).tolist() == [2, 2, 3]
    assert (similarities[found < 0] == 0).all()
    assert 0 not in found[0]


def test_nothing_to_search() -> None:
    found, _ = top_k(table(2), table(0), 3, available_bytes=MIB)
    assert found.tolist() == [[-1, -1, -1]] * 2
    assert top_k(table(0), table(2), 3, available_bytes=MIB)[0].shape == (0, 3)


@pytest.mark.parametrize("available", [1 * MIB, 7 * MIB, 300 * MIB])
def test_block_rows_is_the_largest_power_of_two_that_fits(available: int) -> None:
    rows = block_rows(512, 20, available)
    assert block_bytes(rows, 512, 20) <= available
    assert rows == search.LARGEST_BLOCK or block_bytes(2 * rows, 512, 20) > available


def test_impossible_budget_names_the_least() -> None:
    with pytest.raises(UsageError, match=r"memory_budget_mb: at least 3 MiB"):
        block_rows(20000, 20, MIB)


@needs_faiss
def test_memory_stays_within_the_budget() -> None:
    database = table(3000, d=256, largest=20)
    available = 2 * MIB  # all similarities at once would take 34 MiB
    tracemalloc.start()
    try:
        top_k(database, database, 10, available_bytes=available, backend="faiss")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    result = 3000 * 10 * 8 * 2
    assert peak < available + result + 3000 * 8


def test_torch_blocks_are_no_larger_than_the_budget_says(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    block_torch = search._search_block_torch

    def spy(queries: np.ndarray, block: np.ndarray, *rest: object) -> np.ndarray:
        shapes.append((len(queries), len(block)))
        return block_torch(queries, block, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "_search_block_torch", spy)
    available = block_bytes(64, 12, 3)
    top_k(table(200), table(300), 3, available_bytes=available, backend="torch")
    assert max(q for q, _ in shapes) == max(b for _, b in shapes) == 64
    assert len(shapes) == 4 * 5
