"""DOAP's loss against average precision counted by hand."""

import itertools
import time

import pytest
import torch

from featkit.losses.average_precision import (
    AveragePrecisionConfig,
    AveragePrecisionLoss,
    ap_of_histograms,
    soft_histogram,
)
from featkit.losses.base import GroupBatch


def ranked_ap(distances: list[float], matches: list[bool]) -> float:
    """Eq. 1 and 2 on a ranking without ties."""
    order = sorted(range(len(distances)), key=lambda i: distances[i])
    hits, total = 0, 0.0
    for rank, i in enumerate(order, start=1):
        if matches[i]:
            hits += 1
            total += hits / rank
    return total / hits


def brute_force(distances: torch.Tensor, labels: torch.Tensor, ignored: torch.Tensor | None = None) -> float:
    """Mean AP over all patches that have a match."""
    values = []
    for q in range(len(labels)):
        others = [i for i in range(len(labels)) if i != q and not (ignored is not None and ignored[q, i])]
        matches = [bool(labels[i] == labels[q]) for i in others]
        if any(matches):
            values.append(ranked_ap([float(distances[q, i]) for i in others], matches))
    return sum(values) / len(values)


def groups(m: int, size: int, d: int = 8, noise: float = 0.8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(m) // size
    centres = torch.randn(m // size + 1, d, generator=generator, dtype=torch.float64)
    return centres[labels] + noise * torch.randn(m, d, generator=generator, dtype=torch.float64), labels


def unit(raw: torch.Tensor) -> torch.Tensor:
    return raw / raw.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_ignored", [False, True])
def test_sharp_bins_give_average_precision_itself(seed, with_ignored) -> None:
    raw, labels = groups(24, 4, seed=seed)
    descriptors = unit(raw)
    ignored = None
    if with_ignored:
        ignored = torch.rand(24, 24, generator=torch.Generator().manual_seed(seed)) < 0.3
    sharp = AveragePrecisionLoss(AveragePrecisionConfig(bins=20_001, bin_overlap=1e-3, epsilon=1e-12))
    loss = sharp(GroupBatch(descriptors, labels, ignored), 0.0).loss
    expected = brute_force(torch.cdist(descriptors, descriptors), labels, ignored)
    assert 0.2 < expected < 0.95
    assert float(loss) == pytest.approx(1 - expected, abs=1e-9)


def test_many_triangular_bins_come_near_average_precision() -> None:
    raw, labels = groups(48, 4)
    expected = brute_force(torch.cdist(unit(raw), unit(raw)), labels)
    losses = [
        float(AveragePrecisionLoss(AveragePrecisionConfig(bins=bins))(GroupBatch(unit(raw), labels), 0.0).loss)
        for bins in (5, 25, 2001)
    ]
    errors = [abs(1 - loss - expected) for loss in losses]
    assert errors[2] < 0.01 < errors[0]
    assert errors[1] < 0.05


def soft_reference(
    distances: torch.Tensor, labels: torch.Tensor, ignored: torch.Tensor, bins: int, top: float
) -> float:
    """Triangular bins and the closed form, one patch, one bin, one distance at a time."""
    m, width, losses = len(labels), top / (bins - 1), []
    for q in range(m):
        h_plus, h = [0.0] * bins, [0.0] * bins
        for i in range(m):
            if i == q or ignored[q, i]:
                continue
            for k in range(bins):
                weight = max(0.0, 1.0 - abs(float(distances[q, i]) - k * width) / width)
                h[k] += weight
                h_plus[k] += weight if labels[i] == labels[q] else 0.0
        wanted = sum(h_plus)
        if wanted == 0:
            continue
        before, before_plus, total = 0.0, 0.0, 0.0
        for k in range(bins):
            total += h_plus[k] * (2 * before_plus + h_plus[k] + 1) / (2 * before + h[k] + 1)
            before, before_plus = before + h[k], before_plus + h_plus[k]
        losses.append(1 - total / wanted)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("descriptor", ["real", "binary"])
def test_equals_the_formula_in_loops(descriptor) -> None:
    raw, labels = groups(15, 3, d=7, noise=1.2)
    labels[-1] = 99  # asks for nothing
    ignored = torch.rand(15, 15, generator=torch.Generator().manual_seed(0)) < 0.2
    if descriptor == "real":
        x, bins, top = unit(raw), 25, 2.0
        distances = torch.cdist(x, x)
    else:
        x, bins, top = raw.tanh(), 8, 7.0
        distances = (7 - x @ x.T) / 2
    loss = AveragePrecisionLoss(AveragePrecisionConfig(descriptor=descriptor, epsilon=1e-12))
    result = loss(GroupBatch(x, labels, ignored), 0.0)
    expected = soft_reference(distances, labels, ignored, bins, top)
    assert float(result.loss) == pytest.approx(expected, abs=1e-6)
    assert float(result.statistics["mean_average_precision"]) == pytest.approx(1 - expected, abs=1e-6)


def test_binary_codes_have_a_bin_per_hamming_distance() -> None:
    """Codes of +-1 whose distances to a query are all different: the loss is AP on Hamming distances."""
    bits = 6
    codes = torch.ones(bits + 1, bits, dtype=torch.float64)
    for i in range(bits + 1):
        codes[i, :i] = -1  # at Hamming distance |i - j| of each other
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    ignored = torch.ones(7, 7, dtype=torch.bool)
    ignored[0] = False  # only the first asks; its distances are 1, 2, ..., 6
    loss = AveragePrecisionLoss(AveragePrecisionConfig(descriptor="binary"))(GroupBatch(codes, labels, ignored), 0.0)
    assert float(loss.loss) == pytest.approx(1 - (1 / 2 + 2 / 4 + 3 / 6) / 3)


@pytest.mark.parametrize(("before", "tied"), [("01", "1100"), ("1", "10"), ("0011", "1110"), ("", "1")])
def test_ties_count_as_the_middle_of_all_their_orders(before, tied) -> None:
    """The closed form is the precision at a tie's middle rank: near the mean over all orders, exact for one item."""
    distances = [0.0] * len(before) + [1.0] * len(tied)
    for i in range(len(before)):
        distances[i] = i / 100  # in an order of their own
    matches = [c == "1" for c in before + tied]
    orders = []
    for order in itertools.permutations(range(len(tied))):
        shifted = distances[: len(before)] + [1.0 + order[i] / 100 for i in range(len(tied))]
        orders.append(ranked_ap(shifted, matches))
    mean = sum(orders) / len(orders)
    position = torch.tensor([[*range(len(before)), *([8] * len(tied))]], dtype=torch.float64)
    relevant = torch.tensor([matches])
    histogram = soft_histogram(position, relevant, torch.ones_like(relevant), 10, 1.0)
    value = float(ap_of_histograms(histogram[:, 1], histogram.sum(1), relevant.sum(1)))
    assert value == pytest.approx(mean, abs=0.0 if len(tied) == 1 else 0.06)
    assert min(orders) <= value <= max(orders)


def test_a_distance_is_shared_between_two_bins() -> None:
    position = torch.tensor([[0.0, 2.25, 3.0, 1.5]], dtype=torch.float64)
    relevant = torch.tensor([[False, True, False, False]])
    counted = torch.tensor([[True, True, True, False]])
    histogram = soft_histogram(position, relevant, counted, 4, 1.0)
    assert histogram[0, 0].tolist() == [1, 0, 0, 1]
    assert histogram[0, 1].tolist() == [0, 0, 0.75, 0.25]
    assert soft_histogram(position, relevant, counted, 4, 0.1)[0, 1].tolist() == [0, 0, 1, 0]


def test_what_lies_at_the_end_or_beyond_falls_into_the_last_bin() -> None:
    position = torch.tensor([[3.0, 3.00001, 2.99999, 3.0]], dtype=torch.float64)
    relevant = torch.tensor([[True, True, False, False]])
    histogram = soft_histogram(position, relevant, torch.ones_like(relevant), 4, 1.0)
    torch.testing.assert_close(histogram[0], torch.tensor([[0, 0, 0, 2], [0, 0, 0, 2]]).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("descriptor", ["real", "binary"])
def test_gradient(descriptor) -> None:
    raw, labels = groups(9, 3, d=5, noise=1.0)
    loss = AveragePrecisionLoss(AveragePrecisionConfig(descriptor=descriptor))

    def value(x: torch.Tensor) -> torch.Tensor:
        return loss(GroupBatch(x.tanh() if descriptor == "binary" else unit(x), labels), 0.0).loss

    assert torch.autograd.gradcheck(value, raw.requires_grad_())


def test_descent_improves_the_true_average_precision() -> None:
    raw, labels = groups(30, 5, noise=1.5)
    before = brute_force(torch.cdist(unit(raw), unit(raw)), labels)
    loss = AveragePrecisionLoss(AveragePrecisionConfig())
    raw.requires_grad_()
    optimiser = torch.optim.SGD([raw], lr=10.0)
    for _ in range(30):
        optimiser.zero_grad()
        loss(GroupBatch(unit(raw), labels), 0.0).loss.backward()
        optimiser.step()
    after = brute_force(torch.cdist(unit(raw.detach()), unit(raw.detach())), labels)
    assert after > before + 0.2


def test_perfect_ranking_costs_nothing() -> None:
    labels = torch.arange(12) // 3
    x = torch.eye(4, dtype=torch.float64)[labels]
    result = AveragePrecisionLoss(AveragePrecisionConfig())(GroupBatch(x, labels), 0.0)
    assert float(result.loss) == pytest.approx(0.0, abs=1e-9)


def test_ignored_pairs_do_not_count_at_all() -> None:
    raw, labels = groups(16, 4)
    fifth = torch.tensor([True] * 12 + [False] * 4)
    ignored = ~(fifth[:, None] & fifth[None, :])
    loss = AveragePrecisionLoss(AveragePrecisionConfig())
    some = loss(GroupBatch(unit(raw), labels, ignored), 0.0).loss
    fewer = loss(GroupBatch(unit(raw)[:12], labels[:12]), 0.0).loss
    assert float(some) == pytest.approx(float(fewer))


@pytest.mark.parametrize("descriptor", ["real", "binary"])
def test_order_of_the_batch_does_not_matter(descriptor) -> None:
    raw, labels = groups(20, 4)
    x = raw.tanh() if descriptor == "binary" else unit(raw)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    loss = AveragePrecisionLoss(AveragePrecisionConfig(descriptor=descriptor))
    assert float(loss(GroupBatch(x, labels), 0.0).loss) == pytest.approx(
        float(loss(GroupBatch(x[order], labels[order]), 0.0).loss)
    )


@pytest.mark.parametrize("descriptor", ["real", "binary"])
def test_equal_descriptors_have_finite_gradients(descriptor) -> None:
    raw = torch.ones(8, 6, requires_grad=True)
    x = raw.tanh() if descriptor == "binary" else unit(raw)
    AveragePrecisionLoss(AveragePrecisionConfig(descriptor=descriptor))(
        GroupBatch(x, torch.arange(8) // 2), 0.0
    ).loss.backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]])
def test_one_group_or_no_match_is_refused(labels) -> None:
    raw = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="at least 2 groups"):
        AveragePrecisionLoss(AveragePrecisionConfig())(GroupBatch(unit(raw), torch.tensor(labels)), 0.0)


@pytest.mark.parametrize("descriptor", ["real", "binary"])
def test_a_large_batch_is_quick(descriptor) -> None:
    """1024 patches, forward and backward: a tenth of a second; the bound leaves room for a busy machine."""
    raw, labels = groups(1024, 16, d=256 if descriptor == "binary" else 128)
    raw = raw.float().requires_grad_()
    loss = AveragePrecisionLoss(AveragePrecisionConfig(descriptor=descriptor))
    best = float("inf")
    for _ in range(3):
        x = raw.tanh() if descriptor == "binary" else unit(raw)
        started = time.perf_counter()
        loss(GroupBatch(x, labels), 0.0).loss.backward()
        best = min(best, time.perf_counter() - started)
    assert best < 1.0
