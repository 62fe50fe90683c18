"""Light and camera: each strength does what the formula in the file's head says, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featkit.data.views import DISPLAY_GAMMA, PhotometricConfig, photometric

RAMP = np.repeat(np.tile(np.arange(0, 256, dtype=np.uint8), (64, 1))[:, :, None], 3, axis=2)
GREY = np.full((96, 128, 3), 128, np.uint8)


def changed(pixels: np.ndarray, seed: int, **strengths: Any) -> np.ndarray:
    return photometric(pixels, PhotometricConfig(**strengths), np.random.default_rng(seed))


def test_without_strengths_or_probability_nothing_changes() -> None:
    assert photometric(RAMP, PhotometricConfig(), np.random.default_rng(0)) is RAMP
    assert changed(RAMP, 0, probability=0.0, gamma_stops=1.0) is RAMP
    kept = [changed(GREY, seed, probability=0.5, gamma_stops=1.0) is GREY for seed in range(200)]
    assert 70 < sum(kept) < 130


def test_the_same_generator_gives_the_same_bytes_and_another_one_others() -> None:
    everything = {
        "gamma_stops": 0.7, "temperature_stops": 0.6, "shade": 0.8, "night_probability": 0.5, "noise": 0.1,
        "blur_px": 1.5, "jpeg": 80, "haze": 0.4,
    }  # fmt: skip
    first = changed(RAMP, 3, **everything)
    assert first.dtype == np.uint8
    assert first.shape == RAMP.shape
    assert np.array_equal(first, changed(RAMP, 3, **everything))
    assert not np.array_equal(first, changed(RAMP, 4, **everything))


def test_gamma_is_one_exponent_within_its_range() -> None:
    exponents = []
    for seed in range(40):
        found = changed(RAMP, seed, gamma_stops=1.0)[0, :, 0]
        exponent = np.log(found[128] / 255) / np.log(128 / 255)
        expected = 255 * (np.arange(256) / 255) ** exponent
        assert np.abs(found - expected)[8:].max() < 4  # the exponent was read off one rounded value
        exponents.append(exponent)
    assert 0.49 < min(exponents) < 0.7
    assert 1.5 < max(exponents) < 2.05


def test_temperature_moves_red_against_blue_and_leaves_green() -> None:
    ratios = []
    for seed in range(40):
        red, green, blue = changed(GREY, seed, temperature_stops=1.0)[0, 0].astype(float)
        assert green == 128
        ratios.append(DISPLAY_GAMMA * np.log2(red / blue))  # of linear intensities
    assert max(np.abs(ratios)) < 1.05
    assert min(ratios) < -0.5 < 0.5 < max(ratios)


def test_night_is_underexposed_within_its_stops_where_no_lamp_is() -> None:
    darkest = []
    for seed in range(40):
        image = changed(GREY, seed, night_probability=1.0, night_stops=4.0)
        stops = -DISPLAY_GAMMA * np.log2(np.maximum(image.min(), 1) / 128)
        assert -1e-9 <= stops < 4.3
        darkest.append(stops)
    assert max(darkest) > 2
    assert np.array_equal(changed(GREY, 0, night_probability=0.0, gamma_stops=1e-9), GREY)


def test_noise_grows_with_the_light_as_shot_noise_does() -> None:
    dark, bright = np.full((200, 200, 3), 70, np.uint8), np.full((200, 200, 3), 180, np.uint8)
    for seed in range(5):
        deviations = []
        for image in (dark, bright):
            linear = (changed(image, seed, noise=0.05) / 255) ** DISPLAY_GAMMA
            deviations.append(linear.std())
        light = [(v / 255) ** DISPLAY_GAMMA for v in (70, 180)]
        expected = np.sqrt((light[1] + 1 / 16) / (light[0] + 1 / 16))
        if deviations[1] > 0.01:  # else rounding to 8 bits is most of it
            assert deviations[1] / deviations[0] == pytest.approx(expected, rel=0.1)
        assert deviations[1] < 0.05


def test_blur_smooths_and_keeps_the_mean_in_linear_light() -> None:
    rng = np.random.default_rng(0)
    checks = np.where(rng.random((96, 128, 1)) < 0.5, 60, 200).astype(np.uint8).repeat(3, axis=2)
    smoothed = [changed(checks, seed, blur_px=3.0) for seed in range(20)]
    assert min(image.std() for image in smoothed) < 0.5 * checks.std()
    for image in smoothed:
        assert ((image / 255) ** DISPLAY_GAMMA).mean() == pytest.approx(
            ((checks / 255) ** DISPLAY_GAMMA).mean(), rel=0.02
        )


def test_shade_darkens_smoothly_and_never_brightens() -> None:
    for seed in range(20):
        image = changed(GREY, seed, shade=1.0)
        assert image.max() <= 128
    assert min(changed(GREY, seed, shade=1.0).min() for seed in range(20)) < 40
    assert max(changed(GREY, seed, shade=0.2).min() for seed in range(20)) > 100


def test_haze_lifts_the_dark_and_narrows_the_range() -> None:
    for seed in range(20):
        found = changed(RAMP, seed, haze=0.6)[0, :, 0].astype(int)
        assert found[0] >= 0
        assert found[255] - found[0] <= 255
        assert (np.diff(found) >= 0).all()
    assert max(changed(RAMP, seed, haze=0.6)[0, 0, 0] for seed in range(20)) > 60


def test_jpeg_leaves_blocks_of_eight() -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = [changed(noise, seed, jpeg=90).astype(int) for seed in range(10)]
    assert max(np.abs(one - noise).mean() for one in found) > 10
    assert np.array_equal(changed(noise, 0, jpeg=0.0, gamma_stops=1e-9), noise)
