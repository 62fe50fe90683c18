"""Augmentation: the transforms it draws, and what a patch looks like through them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from featkit.data.augment import (
    AugmentConfig,
    Degradations,
    blur_patches,
    degrade_patches,
    draw_degradations,
    draw_transforms,
    warp_patches,
)
from featkit.features.patches import resize_patches

IDENTITY = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
SDGM = AugmentConfig(
    rotation_deg=5,
    crop_area_min=0.9,
    crop_ratio_max=1.1,
    quarter_turns=0.75,
    flip_horizontal=1 / 3,
    flip_vertical=1 / 3,
)


def patches(count: int = 6, side: int = 64, blur: float = 0.0) -> torch.Tensor:
    values = np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8)
    if blur:
        values = np.stack([cv2.GaussianBlur(v, (0, 0), blur, borderType=cv2.BORDER_REFLECT) for v in values])
        values = np.stack([cv2.normalize(v, None, 0, 255, cv2.NORM_MINMAX) for v in values])
    return torch.from_numpy(values)


def transforms(config: AugmentConfig, count: int = 400, seed: int = 0, classes: int | None = None) -> np.ndarray:
    labels = np.arange(count) if classes is None else np.sort(np.arange(count) % classes)
    return draw_transforms(config, labels, np.random.default_rng(seed))


@pytest.mark.parametrize("size", [32, 42, 64])
def test_without_augmentation_a_patch_is_what_tests_see(size: int) -> None:
    some = patches()
    drawn = torch.from_numpy(transforms(AugmentConfig(), 6))
    assert torch.equal(drawn, IDENTITY.expand(6, 2, 3))
    seen = warp_patches(some, drawn, size)
    assert seen.shape == (6, 1, size, size)
    assert (seen[:, 0] - resize_patches(some, size)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[0.0, -1, 0], [1, 0, 0]], lambda p: np.rot90(p, 1)),
        ([[-1.0, 0, 0], [0, 1, 0]], lambda p: p[:, ::-1]),
        ([[1.0, 0, 0], [0, -1, 0]], lambda p: p[::-1]),
        ([[0.0, 1, 0], [1, 0, 0]], lambda p: p.T),
    ],
)
def test_turns_and_flips_move_pixels_exactly(matrix: list, expected: object) -> None:
    some = patches(1)
    seen = warp_patches(some, torch.tensor([matrix]), 64)[0, 0].numpy() * 255
    assert np.abs(seen - expected(some[0].numpy())).max() < 0.1  # type: ignore[operator]


def test_a_warp_is_opencvs() -> None:
    """An independent warp at full size, then the mean of 2 x 2 pixels."""
    some = patches(8, blur=1.5)
    drawn = draw_transforms(SDGM, np.arange(8), np.random.default_rng(4))
    seen = warp_patches(some, torch.from_numpy(drawn), 32)[:, 0].numpy() * 255
    for patch, matrix, ours in zip(some.numpy(), drawn.astype(np.float64), seen, strict=True):
        to_units = np.array([[2 / 64, 0, 1 / 64 - 1], [0, 2 / 64, 1 / 64 - 1], [0, 0, 1]])
        full = np.vstack([matrix, [0, 0, 1]])
        pixels = (np.linalg.inv(to_units) @ full @ to_units)[:2]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        theirs = cv2.warpAffine(patch.astype(np.float32), pixels, (64, 64), flags=flags, borderValue=0)
        theirs = theirs.reshape(32, 2, 32, 2).mean((1, 3))
        assert np.abs(ours - theirs)[2:-2, 2:-2].max() < 2.0


def test_a_fine_pattern_does_not_alias_when_turned() -> None:
    """Stripes of one pixel become grey at half size, also where a turned grid meets them in phase."""
    stripes = torch.zeros((1, 64, 64), dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    turn = torch.tensor([[[0.999, 0.02, 0.0], [-0.02, 0.999, 0.0]]])
    assert warp_patches(stripes, turn, 32)[0, 0, 4:-4, 4:-4].std() < 0.01
    grid = torch.nn.functional.affine_grid(turn, [1, 1, 32, 32], align_corners=False)
    sampled = torch.nn.functional.grid_sample(stripes[:, None] / 255.0, grid, align_corners=False)
    assert sampled[0, 0, 4:-4, 4:-4].std() > 0.2, "plain sampling would"


def test_jitter_stays_within_its_bounds() -> None:
    config = AugmentConfig(rotation_deg=5, crop_area_min=0.9, crop_ratio_max=1.1)
    drawn = transforms(config, 3000).astype(np.float64)
    angle = np.degrees(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    assert np.abs(angle).max() <= 5.0001
    assert np.abs(angle).max() > 4.9
    side = np.linalg.norm(drawn[:, :, :2], axis=1)
    area, ratio = side.prod(1), side[:, 0] / side[:, 1]
    assert side.max() <= 1 + 1e-6
    assert area.max() <= 1 + 1e-6
    assert area.min() > 0.9 / np.sqrt(1.1) - 1e-6  # a side longer than the patch is cut to it
    assert 1 / 1.1 - 1e-6 <= ratio.min() < 0.93
    assert 1.07 < ratio.max() <= 1.1 + 1e-6
    straight = np.einsum("nij,ni->nj", drawn[:, :, :2] / side[:, None], drawn[:, :, 2])
    assert (np.abs(straight) <= 1 - side + 1e-6).all(), "the crop lies inside of the patch"


def dihedral(drawn: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(np.rint(one[:, :2]).astype(int).ravel()) for one in drawn]


def test_a_class_is_turned_and_flipped_as_one_but_jittered_apart() -> None:
    drawn = transforms(SDGM, 90, classes=30)
    turned = np.array(dihedral(drawn)).reshape(30, 3, 4)
    assert (turned == turned[:, :1]).all()
    assert len({tuple(t[0]) for t in turned}) > 4
    assert len(np.unique(drawn.reshape(90, 6), axis=0)) == 90


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AugmentConfig(transpose=0.5, flip_horizontal=0.5), 4),  # HardNet+
        (AugmentConfig(quarter_turns=0.5, flip_vertical=0.5), 8),  # HyNet
        (SDGM.model_copy(update={"rotation_deg": 0.0, "crop_area_min": 1.0, "crop_ratio_max": 1.0}), 8),
        (AugmentConfig(), 1),
    ],
)
def test_turns_and_flips_occur_as_often_as_configured(config: AugmentConfig, expected: int) -> None:
    drawn = transforms(config, 8000)
    kinds = dihedral(drawn)
    assert len(set(kinds)) == expected
    straight = np.mean([kind in {(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)} for kind in kinds])
    # x stays x: no quarter turn (or one of 180), and not transposed
    even_turns = 1 - config.quarter_turns * 2 / 3
    assert abs(straight - (even_turns * (1 - config.transpose) + (1 - even_turns) * config.transpose)) < 0.02
    mirrored = np.mean([kind[0] * kind[3] - kind[1] * kind[2] < 0 for kind in kinds])
    flips = config.flip_horizontal + config.flip_vertical
    assert abs(mirrored - (flips * (1 - config.transpose) + (1 - flips) * config.transpose)) < 0.02


def test_copies_that_fill_a_class_are_turned_further() -> None:
    filled = np.arange(2000) % 2 == 0
    drawn = draw_transforms(AugmentConfig(), np.zeros(2000, int), np.random.default_rng(0), filled, 15.0)
    angle = np.abs(np.degrees(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0])))
    assert angle[~filled].max() == 0
    assert 14 < angle[filled].max() <= 15.001


def test_the_same_generator_draws_the_same_transforms() -> None:
    assert np.array_equal(transforms(SDGM, seed=5), transforms(SDGM, seed=5))
    assert not np.array_equal(transforms(SDGM, seed=5), transforms(SDGM, seed=6))


def test_blur_is_a_gaussian_of_each_patchs_own_width() -> None:
    some = patches(4, 32)[:, None].float() / 255
    sigma = [0.0, 0.5, 1.0, 2.0]
    found = blur_patches(some, torch.tensor(sigma))
    for patch, result, width in zip(some, found, sigma, strict=True):
        expected = gaussian_filter(patch[0].double().numpy(), width, mode="nearest", radius=6) if width else patch[0]
        np.testing.assert_allclose(result[0], expected, atol=1e-5)


def test_degradations_are_drawn_within_their_limits() -> None:
    config = AugmentConfig(degraded=0.25, blur_px=2.0, noise=0.1)
    drawn = draw_degradations(config, 4000, np.random.default_rng(0))
    assert drawn is not None
    assert np.mean(drawn.blur_px > 0) == pytest.approx(0.25, abs=0.03)
    assert np.array_equal(drawn.blur_px > 0, drawn.noise > 0)
    assert drawn.blur_px.max() == pytest.approx(2.0, rel=0.02)
    assert drawn.noise.max() == pytest.approx(0.1, rel=0.02)


def test_nothing_is_drawn_where_nothing_is_degraded() -> None:
    """Trainings of recipes without it stay what they were, to the bit."""
    generator = np.random.default_rng(0)
    assert draw_degradations(AugmentConfig(), 10, generator) is None
    assert generator.random() == np.random.default_rng(0).random()


def test_noise_is_that_of_the_complete_batch() -> None:
    some = patches(6, 16)[:, None].float() / 255
    by = Degradations(np.zeros(6), np.array([0, 0.02, 0.02, 0.1, 0.1, 0.1]), seed=3)
    whole = degrade_patches(some, by, slice(0, 6))
    parts = torch.cat([degrade_patches(some[rows], by, rows) for rows in (slice(0, 2), slice(2, 6))])
    assert torch.equal(parts, whole)
    added = whole - some
    assert float(added[0].abs().max()) == 0
    assert float(added[3:].std()) == pytest.approx(0.1, rel=0.05)
