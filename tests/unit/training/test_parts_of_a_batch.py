"""What processes with a part of a batch each compute is what one computes of the whole: here in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from featkit.losses.two_views import PartOfDraws, draw_uniform
from featkit.training.whole_batch import PartOfDropout, SharedBatchNorm, share_batch_norms

PARTS = (slice(0, 3), slice(3, 5), slice(5, 9))


class Sum:
    """The `Total` of threads: each gives a value, all get the sum."""

    def __init__(self, count: int):
        self._given: list[Tensor] = []
        self._barrier = threading.Barrier(count)

    def __call__(self, values: Tensor) -> Tensor:
        self._given.append(values.detach())
        self._barrier.wait(30)
        total = torch.stack(self._given).sum(0)
        if self._barrier.wait(30) == 0:
            self._given.clear()
        self._barrier.wait(30)
        return total


def in_threads(work: Callable[[slice], Tensor]) -> list[Tensor]:
    with ThreadPoolExecutor(len(PARTS)) as pool:
        return list(pool.map(work, PARTS))


def maps_of(seed: int) -> Tensor:
    return torch.randn((9, 4, 5, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.float32) * 3 + 2


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_over_all_parts_is_that_of_the_whole_batch(affine: bool) -> None:
    """Values, gradients of the maps and of the parameters, running statistics; torch's own BatchNorm is the truth."""
    plain = nn.BatchNorm2d(4, affine=affine)
    maps, weights = maps_of(0), maps_of(1)
    if affine:
        nn.init.uniform_(plain.weight, 0.5, 2, generator=torch.Generator().manual_seed(2))
    total = Sum(len(PARTS))
    shared = [nn.BatchNorm2d(4, affine=affine) for _ in PARTS]
    for one in shared:
        one.load_state_dict(plain.state_dict())
        share_batch_norms(one, total)
        assert isinstance(one, SharedBatchNorm)
    whole = maps.clone().requires_grad_()
    expected = plain(whole)
    (expected * weights).sum().backward()

    def work(rows: slice) -> Tensor:
        own = maps[rows].clone().requires_grad_()
        found = shared[PARTS.index(rows)](own)
        value = found.detach().clone()
        (found * weights[rows]).sum().backward()
        assert own.grad is not None
        return torch.stack([value, own.grad])

    values, gradients = torch.cat(in_threads(work), dim=1)
    assert torch.allclose(values, expected.detach(), atol=1e-5)
    assert whole.grad is not None
    assert torch.allclose(gradients, whole.grad, atol=1e-5)
    if affine:
        for name in ("weight", "bias"):
            found = torch.stack([getattr(one, name).grad for one in shared]).sum(0)
            assert torch.allclose(found, getattr(plain, name).grad, rtol=1e-4, atol=1e-4)
    for one in shared:
        assert torch.allclose(one.running_mean, plain.running_mean, atol=1e-6)
        assert torch.allclose(one.running_var, plain.running_var, rtol=1e-5)
        assert one.num_batches_tracked == 1
    assert torch.allclose(shared[0].eval()(maps), plain.eval()(maps), atol=1e-5), "alone, by running statistics"


def test_dropout_of_parts_is_that_of_the_whole_batch() -> None:
    maps = maps_of(0).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(3)
    expected = nn.functional.dropout(maps, 0.3)
    after = torch.get_rng_state()
    for rows in PARTS:
        torch.manual_seed(3)
        dropout = PartOfDropout(0.3)
        dropout.start(rows, len(maps))
        pieces = maps[rows].tensor_split(2)
        for _ in range(2):  # chunks are described twice
            assert torch.equal(torch.cat([dropout(piece) for piece in pieces]), expected[rows])
            dropout.again()
        assert torch.equal(torch.get_rng_state(), after)


def test_draws_of_parts_are_those_of_the_whole_batch() -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(4)

    whole = generator()
    expected = [draw_uniform((9, 7, 2), whole, "cpu"), draw_uniform((9, 5), whole, "cpu")]
    for rows in PARTS:
        draws = PartOfDraws(generator(), rows, 9)
        count = rows.stop - rows.start
        for shape, one in zip(((count, 7, 2), (count, 5)), expected, strict=True):
            assert torch.equal(draw_uniform(shape, draws, "cpu"), one[rows])
