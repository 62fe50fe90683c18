"""Batches of descriptors for the tests of the losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from featkit.losses.base import PairBatch

MakePairs = Callable[..., PairBatch]


def pairs_from(raw: torch.Tensor, weights: torch.Tensor | None = None) -> PairBatch:
    """raw: (2, n, d), anchors and positives before they are normalised."""
    unit = raw / raw.norm(dim=2, keepdim=True)
    return PairBatch(unit[0], unit[1], raw[0], raw[1], weights)


@pytest.fixture
def raw_pairs() -> Callable[..., torch.Tensor]:
    """`raw_pairs(n, d, noise=.., seed=..)`: (2, n, d) in float64; the smaller the noise, the nearer the pairs."""

    def make(n: int = 12, d: int = 5, noise: float = 0.8, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        anchors = torch.randn(n, d, generator=generator, dtype=torch.float64)
        near = anchors + noise * torch.randn(n, d, generator=generator, dtype=torch.float64)
        return torch.stack([anchors, near * (0.5 + torch.rand(n, 1, generator=generator, dtype=torch.float64))])

    return make


@pytest.fixture
def pairs(raw_pairs: Callable[..., torch.Tensor]) -> MakePairs:
    """`pairs(n, d, ...)` is `raw_pairs` as a batch."""
    return lambda *args, **kwargs: pairs_from(raw_pairs(*args, **kwargs))


@pytest.fixture
def as_pairs() -> Callable[..., PairBatch]:
    """`as_pairs(raw, weights)`: a batch of raw vectors (2, n, d), differentiable."""
    return pairs_from
