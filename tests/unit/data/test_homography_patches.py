"""Patches of single photographs: where the views show a keypoint, how large and how turned, and that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from featkit.data.homography_patches import (
    HomographiesConfig,
    LightConfig,
    PhotographFolder,
    homography_frames,
    moved,
    relit,
)
from featkit.data.keypoint_classes import ClassesConfig, Detections
from featkit.data.make_patches import PatchSetConfig, write_patch_set
from featkit.data.patch_frames import DetectorConfig, FrameJitter, corners
from featkit.data.phototour import find_pairs, read_phototour, read_phototour_pairs

STILL = FrameJitter(position_px=0, angle_deg=0, octaves=0)
SIZE = (320, 240)


def photograph(seed: int) -> np.ndarray:
    """Blobs of all sizes in colour."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    for cells in (6, 14, 34):
        grid = rng.random((cells * 3 // 4, cells, 3)).astype(np.float32)
        pixels += cv2.resize(grid, SIZE, interpolation=cv2.INTER_CUBIC)
    return np.clip(pixels / 3 * 255, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> PhotographFolder:
    folder = tmp_path_factory.mktemp("photos")
    names = tuple(f"{number}.png" for number in range(3))
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), photograph(number))
    return PhotographFolder("photos", folder, names, "ours")


def made(photographs: PhotographFolder, jitter: FrameJitter = STILL, **changes: Any) -> Any:
    config = HomographiesConfig(**changes)
    return homography_frames(
        photographs, config, DetectorConfig(), ClassesConfig(), jitter, 12.0, None, seed=(0, 0), workers=1
    )


def test_all_views_of_a_class_come_from_one_place_of_the_photograph(photographs: PhotographFolder) -> None:
    """Traced back with OpenCV: position, and a step of one sigma along the direction."""
    views, frames, counts = made(photographs)
    assert counts["patches"] == len(frames) > 150
    assert frames.sizes().min() >= 2
    assert len(views.names) == len(views.homographies) == 12
    assert views.names[5] == "1.png#1"
    tip = frames.xy + 0.01 * np.stack([np.cos(frames.oris), np.sin(frames.oris)], axis=1)
    places, tips = np.zeros_like(frames.xy), np.zeros_like(frames.xy)
    for view, homography in enumerate(views.homographies):
        rows = np.flatnonzero(frames.images == view)
        back = np.linalg.inv(homography)
        for source, target in ((frames.xy, places), (tip, tips)):
            if len(rows):
                target[rows] = cv2.perspectiveTransform(source[rows][None], back)[0]
        for square in corners(frames.select(rows), 12.0):
            back_square = cv2.perspectiveTransform(square[None], back)[0]
            for points in (square, back_square):
                assert ((points >= -0.5) & (points <= np.array(SIZE) - 0.5)).all(), "whole in both"
        for row in rows[:5]:  # the area of a small square around it, traced back
            square = frames.xy[row] + 0.01 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
            area = cv2.contourArea(cv2.perspectiveTransform(square[None], back)[0].astype(np.float32) * 1e3) / 1e6
            sizes.setdefault(int(frames.classes[row]), []).append(frames.scales[row] * np.sqrt(area) / 0.02)
    for number in range(len(frames.sizes())):
        here = np.flatnonzero(frames.classes == number)
        assert len(set(frames.images[here])) == len(here)
        assert len(set(frames.images[here] // 4)) == 1, "views of one photograph"
        np.testing.assert_allclose(places[here], places[here[:1]].repeat(len(here), 0), atol=1e-6)
        angles = np.arctan2(*(tips - places)[here].T[::-1])
        assert np.abs((angles - angles[0] + np.pi) % (2 * np.pi) - np.pi).max() < 0.01
    for values in sizes.values():
        np.testing.assert_allclose(values, values[0], rtol=0.02)
    assert sum(len(values) > 1 for values in sizes.values()) > 5


sizes: dict[int, list[float]] = {}


def test_views_differ_as_much_as_asked(photographs: PhotographFolder) -> None:
    views, frames, _ = made(photographs)
    _, straight, _ = made(photographs, view={"rotation_deg": 0, "scale_max": 1.0, "perspective": 0.0})
    octaves, turns = [], []
    for number in range(len(frames.sizes())):
        here = np.flatnonzero(frames.classes == number)
        octaves.append(np.log2(frames.scales[here[1:]] / frames.scales[here[0]]))
        turns.append((frames.oris[here[1:]] - frames.oris[here[0]] + np.pi) % (2 * np.pi) - np.pi)
    assert np.ptp(np.concatenate(octaves)) > 1.0
    assert np.ptp(np.concatenate(turns)) > 4
    assert len(straight) > len(frames)
    first = straight.xy[straight.images == 0]
    np.testing.assert_allclose(first, straight.xy[straight.images == 1], atol=1e-9)
    assert frames.scales.min() >= 1.0
    shown = views.render(3).pixels
    assert shown.shape == (SIZE[1], SIZE[0])
    np.testing.assert_array_equal(shown, views.render(3).pixels)


def test_a_keypoint_is_moved_by_the_homography() -> None:
    turned = np.array([[0, -2.0, 90], [2.0, 0, 5], [0, 0, 1]])
    shown = moved(Detections(np.array([[10.0, 20.0]]), np.array([3.0]), np.array([0.25])), turned, 7, 4)
    np.testing.assert_allclose(shown.xy, [[50, 25]])
    assert (shown.scales[0], shown.oris[0]) == (pytest.approx(6), pytest.approx(0.25 + np.pi / 2))
    assert (shown.images[0], shown.classes[0]) == (7, 4)


def test_light_is_changed_as_much_as_asked() -> None:
    pixels = photograph(0)
    none = LightConfig(colours={"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}, camera={})
    np.testing.assert_array_equal(relit(pixels, none, np.random.default_rng(0)), pixels)
    camera, colours = (
        LightConfig(**{**none.model_dump(), part: LightConfig().model_dump()[part]}) for part in ("camera", "colours")
    )
    for config in (camera, colours, LightConfig()):
        shown = [relit(pixels, config, np.random.default_rng(seed)).astype(float) for seed in range(10)]
        assert np.mean([np.abs(one - pixels).mean() for one in shown]) > 10
        assert np.mean([np.corrcoef(one.ravel(), pixels.ravel())[0, 1] for one in shown]) > 0.7
        np.testing.assert_array_equal(relit(pixels, config, np.random.default_rng(3)), shown[3])


@pytest.mark.slow
def test_a_set_comes_out(photographs: PhotographFolder, tmp_path: Path) -> None:
    config = PatchSetConfig(source="homographies", workers=1, test_pairs=400)
    summary = write_patch_set(config, [photographs], tmp_path / "set")
    data = read_phototour(tmp_path / "set")
    assert len(data) == summary["patches"] == summary["scenes"]["photos"]["patches"] > 150
    assert data.scene_names == ("photos",)
    assert (tmp_path / "set" / "scenes.txt").read_text().splitlines()[4] == "photos\t1.png#0"
    pairs = read_phototour_pairs(find_pairs(tmp_path / "set"), data)
    assert data.images is not None
    assert (data.images[pairs.index0] // 4 == data.images[pairs.index1] // 4).all(), "of one photograph"
    flat = data.patches[np.arange(len(data))].reshape(len(data), -1).astype(float)
    flat = (flat - flat.mean(1, keepdims=True)) / (flat.std(1, keepdims=True) + 1e-6)
    likeness = (flat[pairs.index0] * flat[pairs.index1]).mean(1)
    assert np.median(likeness[pairs.match]) > 0.55 > 0.3 > np.median(likeness[~pairs.match])
    write_patch_set(config, [photographs], tmp_path / "again")
    for path in (tmp_path / "set").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    limited = write_patch_set(config.model_copy(update={"max_patches": 50}), [photographs], tmp_path / "few")
    assert 40 < limited["patches"] <= 50
