"""The warm-up loss against loops over points, and on images whose homography is known."""

import math

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from featkit.geometry.batched import sample_map
from featkit.losses.scfeat_warm_up import ContrastiveLossConfig, contrastive_loss, map_points
from featkit.losses.two_views import LossContext, TwoViews, query_points

SIZE = (64, 48)
TILTED = torch.tensor([[[0.9, -0.1, 4.0], [0.12, 1.05, -6.0], [5e-4, -3e-4, 1.0]]], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(pairs: int = 2, channels: int = 5) -> list[torch.Tensor]:
    draw = generator(3)
    return [torch.randn(pairs, channels, 12, 16, generator=draw, dtype=torch.float64) for _ in range(2)]


def homographies(pairs: int = 2) -> torch.Tensor:
    return torch.cat([TILTED, torch.linalg.inv(TILTED)])[:pairs]


def described(values: torch.Tensor, points: torch.Tensor) -> np.ndarray:
    found = sample_map(values[None], points[None], SIZE)[0].numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("exclusion_px", [0.0, 14.0])
@pytest.mark.parametrize("masked", [False, True])
def test_against_loops(masked: bool, exclusion_px: float) -> None:
    config = ContrastiveLossConfig(cell_px=8, temperature=3.0, exclusion_px=exclusion_px)
    map0, map1 = maps()
    valid = torch.ones(2, 1, 48, 64, dtype=torch.bool)
    valid[..., 20:30] = not masked
    masks = (valid, valid.flip(3)) if masked else (None, None)
    result = contrastive_loss(TwoViews(map0, map1, homographies(), SIZE, *masks), config, LossContext(generator()))
    points0 = query_points(2, SIZE, 8, generator()).double()
    terms, hits, shown = [], 0, 0
    for pair in range(2):
        at0 = points0[pair]
        moved = cv2.perspectiveTransform(at0[None].numpy(), homographies()[pair].numpy())[0]
        kept = [
            i
            for i, (x, y) in enumerate(moved)
            if 0 <= x <= 63
            and 0 <= y <= 47
            and bool(valid[pair, 0, int(at0[i, 1]), int(at0[i, 0])])
            and bool((valid.flip(3) if masked else valid)[pair, 0, round(y), round(x)])
        ]
        at0, at1 = at0[kept], torch.from_numpy(moved[kept])
        d0, d1 = described(map0[pair], at0), described(map1[pair], at1)
        for first, second, target in ((d0, d1, at1), (d1, d0, at0)):
            for i in range(len(kept)):
                others = [
                    j for j in range(len(kept)) if j != i and float((target[i] - target[j]).norm()) >= exclusion_px
                ]
                own = math.exp(3.0 * first[i] @ second[i])
                wrong = [math.exp(3.0 * first[i] @ second[j]) for j in others]
                terms.append(-math.log(own / (own + sum(wrong))))
                hits += own > max(wrong)
        shown += len(kept)
    assert 20 < shown < 90
    assert float(result.loss) == pytest.approx(sum(terms) / len(terms), rel=1e-6)
    assert float(result.statistics["found_share"]) == pytest.approx(hits / len(terms))
    assert float(result.statistics["shown_share"]) == pytest.approx(shown / 96)


def test_points_against_opencv() -> None:
    points = query_points(1, SIZE, 8, generator()).double()
    found, front = map_points(TILTED, points)
    np.testing.assert_allclose(found.numpy(), cv2.perspectiveTransform(points.numpy(), TILTED[0].numpy()), atol=1e-9)
    assert front.all()
    assert not map_points(-TILTED, points)[1].any()


def test_points_behind_do_not_count() -> None:
    behind = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-1 / 32, 0, 1]]])  # what lies right of x = 32 is behind
    points = torch.tensor([[[10.0, 10.0], [50.0, 10.0], [32.0, 10.0]]])
    found, front = map_points(behind, points)
    assert front.tolist() == [[True, False, False]]
    assert found.isfinite().all()
    map0, map1 = (m.float()[:1] for m in maps())
    assert contrastive_loss(
        TwoViews(map0, map1, behind, SIZE), ContrastiveLossConfig(cell_px=8), LossContext(generator())
    ).loss.isfinite()


def test_gradient() -> None:
    config = ContrastiveLossConfig(temperature=4.0)
    inputs = [m[:1, :3].clone().requires_grad_() for m in maps()]

    def loss(map0: torch.Tensor, map1: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(TwoViews(map0, map1, TILTED, SIZE), config, LossContext(generator())).loss

    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_the_right_homography_costs_less() -> None:
    """Maps that are coordinates in disguise: image 1 is image 0 moved by two cells."""
    draw = generator(1)
    base = torch.nn.functional.interpolate(torch.randn(1, 16, 6, 9, generator=draw), size=(24, 34), mode="bicubic")
    map0, map1 = base[..., 2:], base[..., :32]
    moved = torch.tensor([[[1.0, 0, 8], [0, 1, 0], [0, 0, 1]]])
    config = ContrastiveLossConfig(cell_px=8)
    right, wrong = (
        contrastive_loss(TwoViews(map0, map1, homography, (128, 96)), config, LossContext(generator()))
        for homography in (moved, torch.linalg.inv(moved))
    )
    assert right.loss < 0.2 < wrong.loss
    assert right.statistics["found_share"] > 0.97
    assert right.statistics["own_similarity"] > 0.97
    assert wrong.statistics["found_share"] < 0.7


def test_nothing_shown_costs_nothing() -> None:
    inputs = [m.float().requires_grad_() for m in maps()]
    away = torch.tensor([[1.0, 0, 1000], [0, 1, 0], [0, 0, 1]]).expand(2, 3, 3)
    result = contrastive_loss(TwoViews(*inputs, away, SIZE), ContrastiveLossConfig(), LossContext(generator()))
    result.loss.backward()
    assert float(result.loss.detach()) == 0
    assert all(m.grad is not None and (m.grad == 0).all() for m in inputs)
    assert all(value.isfinite() for value in result.statistics.values())


def test_nan_is_not_hidden() -> None:
    map0, map1 = maps()
    map1[0, 1] = torch.nan
    assert contrastive_loss(
        TwoViews(map0, map1, homographies(), SIZE), ContrastiveLossConfig(), LossContext(generator())
    ).loss.isnan()


def test_half_precision_maps_are_compared_in_full() -> None:
    half = [m.bfloat16() for m in maps()]
    config = ContrastiveLossConfig()
    expected = contrastive_loss(
        TwoViews(*(m.float() for m in half), homographies(), SIZE), config, LossContext(generator())
    ).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = contrastive_loss(TwoViews(*half, homographies(), SIZE), config, LossContext(generator())).loss
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError):
        ContrastiveLossConfig(margin=1)
