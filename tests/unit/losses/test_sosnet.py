"""The second-order term against loops."""

import math

import pytest
import torch

from featkit.losses.sosnet import second_order_term


def reference(batch, k: int, across: bool) -> list[float]:
    """sqrt of the sum over the neighbourhood, pair by pair."""
    a, p = batch.anchor, batch.positive
    n = len(a)

    def d(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x - y).norm())

    def nearest(i: int, rows: torch.Tensor, columns: torch.Tensor) -> set[int]:
        order = sorted((d(rows[i], columns[j]), j) for j in range(n) if j != i)
        return {j for _, j in order[:k]}

    out = []
    for i in range(n):
        near = nearest(i, a, a) | nearest(i, p, p)
        if across:
            near |= nearest(i, a, p) | nearest(i, p, a)
        out.append(math.sqrt(sum((d(a[i], a[j]) - d(p[i], p[j])) ** 2 for j in near)))
    return out


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_is_the_mean_second_order_distance(pairs, k, across) -> None:
    batch = pairs(14)
    expected = reference(batch, k, across)
    kind = "authors" if across else "paper"
    assert float(second_order_term(batch, k, kind)) == pytest.approx(sum(expected) / 14, abs=1e-4)
    assert float(second_order_term(batch, k, kind, "sum")) == pytest.approx(sum(expected), abs=2e-3)


def test_a_rotated_copy_costs_nothing(raw_pairs, as_pairs) -> None:
    raw = raw_pairs(14)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    raw[1] = raw[0] @ turn
    assert float(second_order_term(as_pairs(raw))) < 1.1e-3  # the root's epsilon
    raw[1, 0] = raw[1, 1]
    assert float(second_order_term(as_pairs(raw))) > 0.05


def test_gradient(raw_pairs, as_pairs) -> None:
    raw = raw_pairs(7, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: second_order_term(as_pairs(x), 3), raw)
    assert torch.autograd.gradcheck(lambda x: second_order_term(as_pairs(x), 3, "authors", "sum"), raw)


def test_order_of_the_batch_does_not_matter(raw_pairs, as_pairs) -> None:
    raw = raw_pairs(14)
    shuffled = raw[:, torch.randperm(14, generator=torch.Generator().manual_seed(0))]
    assert float(second_order_term(as_pairs(shuffled))) == pytest.approx(float(second_order_term(as_pairs(raw))))


def test_equal_descriptors_have_a_finite_gradient(as_pairs) -> None:
    raw = torch.ones(2, 6, 4, requires_grad=True)
    second_order_term(as_pairs(raw)).backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_one_pair_is_refused(pairs) -> None:
    with pytest.raises(ValueError, match="at least 2 pairs"):
        second_order_term(pairs(1))
