"""The tiled search equals `topk(2)` on the whole product, whatever the sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.matching.top_two import MEMBERS, TILE_ROWS, TopTwo, top_two

SIZES = [1, 2, MEMBERS - 1, MEMBERS, MEMBERS + 1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 2000]


def integers(n: int, d: int, seed: int, low: int = -50, high: int = 50) -> torch.Tensor:
    """Whole numbers: every sum is exact in float32, so equality is equality."""
    return torch.randint(low, high, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def assert_is_top_two(found: TopTwo, product: torch.Tensor) -> None:
    expected = product.topk(min(2, product.shape[1]), dim=1).values
    assert torch.equal(found.best, expected[:, 0])
    second = expected[:, 1] if product.shape[1] > 1 else torch.full((len(product),), -torch.inf)
    assert torch.equal(found.second, second)
    assert torch.equal(product.gather(1, found.index[:, None])[:, 0], found.best), "the index is of the best"


@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("n", SIZES)
def test_sizes_around_the_borders(n: int, m: int) -> None:
    a, b = integers(n, 12, n), integers(m, 12, m + 7)
    across, down = top_two(a, b)
    assert_is_top_two(across, a @ b.T)
    assert_is_top_two(down, b @ a.T)


@pytest.mark.parametrize(("n", "m"), [(70, 33), (1500, 40), (40, 1500), (2100, 64)])
def test_ties_and_duplicates(n: int, m: int) -> None:
    """Few different values: nearly every row has several bests, in one group and across tiles."""
    a, b = integers(n, 3, 1, -1, 2), integers(m, 3, 2, -1, 2)
    across, down = top_two(a, b)
    assert_is_top_two(across, a @ b.T)
    assert_is_top_two(down, b @ a.T)
    same = torch.ones(n, 3)
    across, down = top_two(same, torch.ones(m, 3))
    assert torch.equal(across.second, across.best)
    assert torch.equal(down.second, down.best)


def test_all_negative() -> None:
    """Padding must never win."""
    a, b = -integers(1030, 4, 1, 1, 9), integers(37, 4, 2, 1, 9)
    across, down = top_two(a, b)
    assert_is_top_two(across, a @ b.T)
    assert_is_top_two(down, b @ a.T)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 10**6), st.integers(1, 3))
def test_any_size(n: int, m: int, seed: int, width: int) -> None:
    a, b = integers(n, width, seed, -3, 4), integers(m, width, seed + 1, -3, 4)
    across, down = top_two(a, b)
    assert_is_top_two(across, a @ b.T)
    assert_is_top_two(down, b @ a.T)
