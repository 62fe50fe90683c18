"""Forms of the same distance."""

import math

import pytest
import torch

from featkit.losses.base import angle, euclidean, paired_similarity, similarity_at, similarity_matrix


@pytest.fixture
def unit() -> torch.Tensor:
    raw = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return raw / raw.norm(dim=1, keepdim=True)


def test_similarity_angle_and_distance_agree(unit) -> None:
    similarity = similarity_matrix(unit[:20], unit[20:])
    torch.testing.assert_close(similarity[:10].diagonal(), paired_similarity(unit[:10], unit[20:]))
    lengths = torch.cdist(unit[:20], unit[20:])
    torch.testing.assert_close(euclidean(similarity, 1e-14), lengths)
    torch.testing.assert_close(angle(similarity, 1 - 1e-14), 2 * (lengths / 2).asin())


@pytest.mark.parametrize("distance", [0.0, 0.008, 0.5, math.sqrt(2), 2.0])
def test_similarity_at_a_distance(distance) -> None:
    assert math.sqrt(2 - 2 * similarity_at(distance)) == pytest.approx(distance, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_products_are_float32_at_least(unit, dtype) -> None:
    values = unit.to(dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert similarity_matrix(values, values).dtype == paired_similarity(values, values).dtype == expected


def test_ends_and_beyond_have_a_value_and_a_finite_gradient() -> None:
    similarity = torch.tensor([1.0, 1.0 + 1e-6, -1.0, -1.0 - 1e-6], requires_grad=True)
    total = euclidean(similarity, 1e-6).sum() + angle(similarity, 1 - 1e-6).sum()
    total.backward()
    assert similarity.grad is not None
    assert total.isfinite()
    assert similarity.grad.isfinite().all()
