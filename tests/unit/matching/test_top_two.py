"""The tiled search equals `topk(2)` on the whole product, whatever the sizes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.matching import nearest
from featkit.matching.nearest import (
    FEW,
    MEMBERS,
    CodeProduct,
    RealProduct,
    TopTwo,
    codes_of,
    nearest_two,
    product_of,
    rows_of,
)

TILE = CodeProduct.tile_rows
TILES = [TILE - 1, TILE, TILE + 1]
HAS_FAST_BYTES = nearest._has_fast_bytes
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
SIZES = [1, 2, MEMBERS - 1, MEMBERS, MEMBERS + 1, *TILES, 2000]


@pytest.mark.skipif("avx512_vnni" not in CPU, reason="a processor without VNNI, or one that Linux does not describe")
def test_a_processor_that_multiplies_bytes_is_known() -> None:
    assert HAS_FAST_BYTES()


@pytest.fixture(autouse=True, params=["real numbers", "whole numbers"], scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whether the processor has 8-bit products; without them the same comes out, more slowly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_has_fast_bytes", lambda: request.param == "whole numbers")
        yield request.param


def integers(n: int, d: int, seed: int, low: int = -50, high: int = 50) -> torch.Tensor:
    """Whole numbers: every sum is exact in float32, so equality is equality."""
    return torch.randint(low, high, (n, d), generator=torch.Generator().manual_seed(seed)).float()


def both_ways(a: torch.Tensor, b: torch.Tensor) -> tuple[TopTwo, TopTwo]:
    rows0, rows1 = rows_of(a), rows_of(b)
    return nearest_two(rows0, rows1), nearest_two(rows1, rows0)


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
    across, down = both_ways(a, b)
    assert_is_top_two(across, a @ b.T)
    assert_is_top_two(down, b @ a.T)


@pytest.mark.parametrize(("n", "m"), [(70, 33), (1500, 40), (40, 1500), (2100, 64)])
def test_ties_and_duplicates(n: int, m: int) -> None:
    """Few different values: nearly every row has several bests, in one group and across tiles."""
    a, b = integers(n, 3, 1, -1, 2), integers(m, 3, 2, -1, 2)
    across, down = both_ways(a, b)
    assert_is_top_two(across, a @ b.T)
    assert_is_top_two(down, b @ a.T)
    same = torch.ones(n, 3)
    across, down = both_ways(same, torch.ones(m, 3))
    assert torch.equal(across.second, across.best)
    assert torch.equal(down.second, down.best)


def test_all_negative() -> None:
    """Padding must never win."""
    a, b = -integers(1030, 4, 1, 1, 9), integers(37, 4, 2, 1, 9)
    across, down = both_ways(a, b)
    assert_is_top_two(across, a @ b.T)
    assert_is_top_two(down, b @ a.T)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 10**6), st.integers(1, 3))
def test_any_size(n: int, m: int, seed: int, width: int) -> None:
    a, b = integers(n, width, seed, -3, 4), integers(m, width, seed + 1, -3, 4)
    across, down = both_ways(a, b)
    assert_is_top_two(across, a @ b.T)
    assert_is_top_two(down, b @ a.T)


def sift(n: int, seed: int, most: int = 255) -> torch.Tensor:
    """Whole numbers divided by 512, of which the largest is there."""
    rows = integers(n, 128, seed, 0, 60)
    rows[n // 2, 5] = most
    return rows / 512


@pytest.mark.parametrize("largest", [(60, 60), (127, 127), (127, 128), (255, 100), (200, 255)])
def test_descriptors_as_sift_has_them(way: str, largest: tuple[int, int]) -> None:
    a, b = sift(700, 1, largest[0]), sift(900, 2, largest[1])
    assert isinstance(product_of(rows_of(a), rows_of(b)), CodeProduct) == (way == "whole numbers")
    across, down = both_ways(a, b)
    exact = (a.double() @ b.double().T).float()
    assert_is_top_two(across, exact)
    assert_is_top_two(down, exact.T)
    across, down = both_ways(a, b[:1])
    assert torch.all(across.second == -torch.inf)
    assert_is_top_two(down, exact[:, :1].T)


@pytest.mark.parametrize("largest", [60, 255])
def test_some_of_the_rows(largest: int) -> None:
    a, b = sift(300, 1, largest), sift(400, 2)
    some = torch.tensor([150, 3, 299])
    found, expected = nearest_two(rows_of(a).take(some), rows_of(b)), nearest_two(rows_of(a), rows_of(b))
    assert torch.equal(found.index, expected.index[some])
    assert torch.equal(found.best, expected.best[some])
    assert torch.equal(found.second, expected.second[some])


def test_tiles_of_real_numbers_have_the_same_height() -> None:
    assert RealProduct(torch.rand(3, 4), torch.rand(2, 4)).tile_rows == TILE


def test_real_numbers_are_multiplied_as_such() -> None:
    a, b = torch.rand(300, 16), torch.rand(400, 16)
    assert isinstance(product_of(rows_of(a), rows_of(b)), RealProduct)
    assert isinstance(product_of(rows_of(a), rows_of(sift(20, 1)[:, :16])), RealProduct)
    across, down = both_ways(a, b)
    assert_is_top_two(across, a @ b.T)
    assert_is_top_two(down, (a @ b.T).T)


@pytest.mark.parametrize("low", [-128, -1, 0])
@pytest.mark.parametrize("high", [1, 127, 128, 255])
@pytest.mark.parametrize("scale", [1, 512])
def test_whole_numbers_of_eight_bits(low: int, high: int, scale: int) -> None:
    rows = torch.tensor([[low, 0.0], [1.0, high]]) / scale
    codes = codes_of(rows)
    if high > 127 and low < 0:
        assert codes is None
    else:
        assert codes is not None
        assert torch.equal((codes.rows.float() + codes.shift) / codes.scale, rows)


@pytest.mark.parametrize("bad", [0.25 / 512, 256.0, -129.0, 1 / 3, float("nan"), float("inf"), -float("inf")])
def test_what_eight_bits_do_not_hold(bad: float) -> None:
    assert codes_of(torch.tensor([[1.0, 2.0], [bad, 3.0]])) is None
    assert codes_of(torch.zeros(3, 0)) is None
    after_whole_ones = torch.cat([torch.ones(3 * FEW, 2), torch.tensor([[bad, 1.0]])])
    assert codes_of(after_whole_ones) is None


def test_a_scale_that_fits_the_first_rows_alone_is_not_taken() -> None:
    codes = codes_of(torch.cat([torch.ones(2 * FEW, 2) / 8, torch.full((1, 2), 0.25)]))
    assert codes is not None
    assert codes.scale == 512
    first_whole = torch.cat([torch.zeros(2 * FEW, 2), torch.full((1, 2), 0.25)])
    codes = codes_of(first_whole)
    assert codes is not None
    assert codes.scale == 512
