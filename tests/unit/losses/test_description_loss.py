"""SCFeat's description loss: the weighted mean of eq. 14, what counts in it, and that descending it finds matches."""

import pytest
import torch
from pydantic import ValidationError
from synthetic_views import two_views

from featkit.losses.scfeat_description import (
    DescriptionLossConfig,
    description_loss,
    one_way_loss,
    search_line_to_window,
)
from featkit.losses.two_views import LossContext, TwoViews, query_points

SIZE = (64, 48)
SMALL = DescriptionLossConfig(cell_px=8, line_samples=20, window_share=0.3, temperature=5.0)
ROWS = torch.tensor([[[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]])  # lines are rows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps_and_geometry(pairs: int = 2, channels: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = generator(1)
    map0, map1 = (torch.randn(pairs, channels, 12, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    fundamental = torch.cat([two_views(seed).tensors()[2] for seed in range(pairs)])
    return map0, map1, fundamental


@pytest.mark.parametrize("weight", ["deviation", "variance", "none"])
def test_is_the_weighted_mean_distance_both_ways(weight: str) -> None:
    config = DescriptionLossConfig(**{**SMALL.model_dump(), "weight": weight, "mask_share": 0.05})
    map0, map1, fundamental = maps_and_geometry()
    valid0 = torch.ones(2, 1, 48, 64, dtype=torch.bool)
    valid0[0, :, :, 40:] = False
    result = description_loss(TwoViews(map0, map1, fundamental, SIZE, valid0), config, LossContext(generator()))
    draw, losses, counted, valid = generator(), [], 0, 0
    for a, b, f, own, other in (
        (map0, map1, fundamental, valid0, None),
        (map1, map0, fundamental.mT, None, valid0),
    ):
        points = query_points(2, SIZE, 8, draw).double()
        found = search_line_to_window(TwoViews(a, b, f, SIZE, None, other), points, config, draw)
        total = weights = 0.0
        for pair in range(2):
            for point, match, sigma, ok in zip(
                points[pair], found.positions[pair], found.deviation[pair], found.valid[pair], strict=True
            ):
                line = f[pair] @ torch.tensor([*point, 1.0], dtype=torch.float64)
                distance = abs(line @ torch.tensor([*match, 1.0], dtype=torch.float64)) / line[:2].norm()
                shown = own is None or own[pair, 0, int(point[1]), int(point[0])]
                valid += bool(ok and shown)
                if ok and shown and distance < 0.05 * 48:
                    share = {"deviation": 1 / sigma, "variance": 1 / sigma**2, "none": 1.0}[weight]
                    total, weights, counted = total + share * distance, weights + share, counted + 1
        losses.append(float(total / weights))
    assert float(result.loss) == pytest.approx(sum(losses), rel=1e-9)
    assert float(result.statistics["counted_share"]) == pytest.approx(counted / 192)
    assert float(result.statistics["valid_share"]) == pytest.approx(valid / 192)
    assert 20 < counted < valid < 180


def test_gradient() -> None:
    config = DescriptionLossConfig(**{**SMALL.model_dump(), "weight": "none", "cell_px": 16})
    draw = generator(2)
    maps = [torch.randn(1, 3, 6, 8, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2)]
    fundamental = two_views(0).tensors()[2]

    def loss(map0: torch.Tensor, map1: torch.Tensor) -> torch.Tensor:
        return description_loss(TwoViews(map0, map1, fundamental, SIZE), config, LossContext(generator())).loss

    assert torch.autograd.gradcheck(loss, maps, fast_mode=True)


def test_weights_have_no_gradient() -> None:
    """With equal distances the weighted mean is the same for all weights, so they must not be pushed."""
    map0, map1, fundamental = maps_and_geometry()
    map1.requires_grad_()
    way = one_way_loss(TwoViews(map0, map1, fundamental, SIZE), SMALL, LossContext(generator()))
    weight = torch.where(way.counted, 1 / way.matches.deviation, 0.0)
    lines = way.matches.lines
    distance = ((way.matches.positions * lines[..., :2]).sum(-1) + lines[..., 2]).abs()
    (expected,) = torch.autograd.grad((weight * distance).sum() / weight.sum(), map1, retain_graph=True)
    (found,) = torch.autograd.grad(way.loss, map1)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0


def test_both_maps_learn() -> None:
    """Free maps of two images of the same rows: descending the loss brings matches to their lines."""
    draw = generator(3)
    maps = [torch.randn(1, 8, 12, 16, generator=draw).requires_grad_() for _ in range(2)]
    config = DescriptionLossConfig(cell_px=4, window_share=0.4, line_samples=30, temperature=10.0)
    optimiser = torch.optim.Adam(maps, lr=0.05)
    distances = []
    for _ in range(60):
        result = description_loss(TwoViews(*maps, ROWS, SIZE), config, LossContext(draw))
        optimiser.zero_grad()
        result.loss.backward()
        optimiser.step()
        distances.append(float(result.statistics["epipolar_distance_px"]))
    assert all(m.grad is not None and m.grad.abs().max() > 0 for m in maps)
    assert sum(distances[-5:]) < 0.6 * sum(distances[:5])


@pytest.mark.parametrize("why", ["no baseline", "nothing is shown", "the line is outside"])
def test_without_matches_the_loss_is_zero(why: str) -> None:
    map0, map1, fundamental = maps_and_geometry(1)
    maps = [m.float().requires_grad_() for m in (map0, map1)]
    nothing = torch.zeros(1, 1, 48, 64, dtype=torch.bool) if why == "nothing is shown" else None
    if why == "no baseline":
        fundamental = torch.zeros_like(fundamental)
    if why == "the line is outside":
        fundamental = torch.tensor([[[0.0, 0, 0], [0, 0, -1], [0, 1, 1000.0]]])
    result = description_loss(TwoViews(*maps, fundamental, SIZE, nothing, nothing), SMALL, LossContext(generator()))
    result.loss.backward()
    assert float(result.loss.detach()) == 0
    assert all(m.grad is not None and (m.grad == 0).all() for m in maps)
    assert all(value.isfinite() for value in result.statistics.values())


def test_nan_is_not_hidden() -> None:
    map0, map1, fundamental = maps_and_geometry()
    map1[1, 2, 5, 5] = torch.nan
    assert description_loss(TwoViews(map0, map1, fundamental, SIZE), SMALL, LossContext(generator())).loss.isnan()


def test_half_precision_maps_are_compared_in_full() -> None:
    map0, map1, fundamental = maps_and_geometry()
    half = [m.bfloat16().requires_grad_() for m in (map0, map1)]
    expected = description_loss(
        TwoViews(*(m.detach().float() for m in half), fundamental, SIZE), SMALL, LossContext(generator())
    ).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = description_loss(TwoViews(*half, fundamental, SIZE), SMALL, LossContext(generator())).loss
    found.backward()
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert all(m.grad is not None and m.grad.isfinite().all() for m in half)


def test_statistics_are_detached_scalars() -> None:
    map0, map1, fundamental = maps_and_geometry()
    statistics = description_loss(
        TwoViews(map0.requires_grad_(), map1, fundamental, SIZE), SMALL, LossContext(generator())
    ).statistics
    assert set(statistics) == {"epipolar_distance_px", "deviation_px", "valid_share", "counted_share"}
    assert all(value.shape == () and not value.requires_grad for value in statistics.values())


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        DescriptionLossConfig(window=0.2)
