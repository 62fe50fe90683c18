"""Colour changes against kornia's and against Pillow's, which the authors' ColorJitter calls."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from posed_scenes import smooth_noise

from featkit.data.views import Jitter, JitterConfig, draw_jitter, jittered_colours


@pytest.fixture
def picture() -> np.ndarray:
    return smooth_noise((40, 50), np.random.default_rng(0))


def test_nothing_changes_without_strength(picture: np.ndarray) -> None:
    still = JitterConfig(brightness=0, contrast=0, saturation=0, hue=0)
    jitter = draw_jitter(still, np.random.default_rng(0))
    np.testing.assert_array_equal(jittered_colours(picture, jitter), picture)
    assert jittered_colours(picture, Jitter()) is picture


def test_against_kornia(picture: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    enhance = pytest.importorskip("kornia.enhance")
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255
    theirs = {
        Jitter(brightness=1.4): enhance.adjust_brightness_accumulative(tensor, 1.4),
        Jitter(contrast=0.3): enhance.adjust_contrast_with_mean_subtraction(tensor, 0.3),
        Jitter(saturation=1.9): enhance.adjust_saturation_with_gray_subtraction(tensor, 1.9),
        Jitter(hue=0.27): enhance.adjust_hue(tensor, 0.27 * 2 * np.pi),
        Jitter(hue=-0.4): enhance.adjust_hue(tensor, -0.4 * 2 * np.pi),
    }
    for jitter, expected in theirs.items():
        values = 255 * expected[0].permute(1, 2, 0).numpy()
        assert np.abs(jittered_colours(picture, jitter) - values).max() < 1.5, jitter


def test_against_pillow(picture: np.ndarray) -> None:
    image = Image.fromarray(picture)
    for factor in (0.0, 0.4, 1.7):
        for jitter, change in (
            (Jitter(brightness=factor), ImageEnhance.Brightness),
            (Jitter(contrast=factor), ImageEnhance.Contrast),
            (Jitter(saturation=factor), ImageEnhance.Color),
        ):
            expected = np.asarray(change(image).enhance(factor)).astype(int)
            assert np.abs(jittered_colours(picture, jitter) - expected).max() <= 2, jitter


def test_the_order_counts(picture: np.ndarray) -> None:
    bright_first = Jitter(brightness=1.8, contrast=0.2, order=(0, 1, 2, 3))
    contrast_first = Jitter(brightness=1.8, contrast=0.2, order=(1, 0, 2, 3))
    assert (
        np.abs(jittered_colours(picture, bright_first).astype(int) - jittered_colours(picture, contrast_first)).max()
        > 5
    )


def test_contrast_turns_about_what_is_valid() -> None:
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[:, :5] = 200
    valid = np.zeros((10, 10), bool)
    valid[:, :5] = True
    assert jittered_colours(picture, Jitter(contrast=0.0), valid)[0, 0].tolist() == [200] * 3
    assert jittered_colours(picture, Jitter(contrast=0.0))[0, 0].tolist() == [100] * 3


def test_draws() -> None:
    generator = np.random.default_rng(3)
    drawn = [draw_jitter(JitterConfig(), generator) for _ in range(400)]
    for name, low, high in (("brightness", 0, 2), ("contrast", 0, 2), ("saturation", 0, 2), ("hue", -0.4, 0.4)):
        values = np.array([getattr(jitter, name) for jitter in drawn])
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.06 * (high - low))
    assert len({jitter.order for jitter in drawn}) == 24
    half = [draw_jitter(JitterConfig(probability=0.5), generator) == Jitter() for _ in range(400)]
    assert 150 < sum(half) < 250


def test_more_than_one_is_cut_at_nothing() -> None:
    drawn = [draw_jitter(JitterConfig(brightness=3), np.random.default_rng(seed)).brightness for seed in range(50)]
    assert min(drawn) >= 0
    assert max(drawn) > 3
