"""Scfeat: one image's way through it, images that come together, and what cannot be used."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from featkit.core.config import make
from featkit.core.errors import BadInputError, UsageError
from featkit.core.types import Features
from featkit.features import stage as extract
from featkit.features.fast.scfeat import FrozenSCFeat
from featkit.features.scfeat import NetworkThread, Request, Scfeat, ScfeatConfig
from featkit.features.stage import ExtractConfig, extraction_method
from featkit.io.features import open_features
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.weights.files import load_scfeat_network, save_patch_network, save_scfeat_network
from featkit.weights.manifest import sha256_of


@pytest.fixture(scope="module")
def weight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = SCFeatNetwork(SCFeatNetworkConfig(encoder="resnet18"), torch.Generator().manual_seed(0)).eval()
    return save_scfeat_network(tmp_path_factory.mktemp("weights") / "s.safetensors", network)


@pytest.fixture(scope="module")
def scfeat(weight: Path) -> Scfeat:
    return build(weight)


def build(weight: Path, **config: Any) -> Scfeat:
    return Scfeat(ScfeatConfig(weights=str(weight), **{"threshold": 0.5, **config}), "cpu")


def image(seed: int = 0, width: int = 128, height: int = 96) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width, 3)), (0, 0), 2.0)
    return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


def assert_same(a: Features, b: Features) -> None:
    assert a.image_size == b.image_size
    for name in ("keypoints", "descriptors", "scores"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name


def test_keypoints_and_descriptors_are_the_networks(weight: Path, scfeat: Scfeat) -> None:
    """By the network as it was trained: its score at the pixel, its map there, half a pixel from corner to corner."""
    pixels = image()
    found = build(weight, refine=False).extract(pixels)
    with torch.inference_mode():
        maps, scores = load_scfeat_network(weight)(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    assert len(found) > 30
    columns, rows = found.keypoints.T.astype(int)
    np.testing.assert_allclose(found.scores, scores[0, 0].numpy()[rows, columns], atol=1e-4)
    assert found.scores.min() > 0.5
    assert (np.diff(found.scores) <= 0).all()
    large = F.interpolate(maps.descriptors, scale_factor=4, mode="bilinear")[0]
    expected = F.normalize(large[:, rows, columns].T, dim=1).numpy()
    np.testing.assert_allclose(found.descriptors, expected, atol=1e-3)
    between = scfeat.extract(pixels)
    assert np.abs(between.keypoints - found.keypoints).max() <= 1
    assert (between.keypoints != np.round(between.keypoints)).any()


def test_any_size_is_padded_by_its_edge(weight: Path) -> None:
    """The same as an image that was larger by repeated pixels, less what lies beyond the edge."""
    pixels = image(1, 101, 83)
    larger = np.pad(pixels, ((0, 13), (0, 11), (0, 0)), mode="edge")
    found, whole = (build(weight, nms_window=1, border_px=0, refine=False).extract(p) for p in (pixels, larger))
    assert found.image_size == (101, 83)
    inside = np.flatnonzero(((whole.keypoints >= 0) & (whole.keypoints < [101, 83])).all(axis=1))
    assert len(inside) < len(whole)
    assert found.keypoints.tobytes() == whole.keypoints[inside].tobytes()
    np.testing.assert_array_equal(found.descriptors, whole.descriptors[inside])
    assert found.keypoints[:, 0].max() == 100


@pytest.mark.parametrize("config", [{"max_keypoints": 9}, {"threshold": 1.2}, {"min_keypoints": 400, "threshold": 3.0}])
def test_limits(weight: Path, config: dict[str, Any]) -> None:
    everything = build(weight, threshold=0.0).extract(image())
    found = build(weight, **config).extract(image())
    if "min_keypoints" in config:
        assert len(found) == min(400, len(everything))
    elif "threshold" in config:
        assert 0 < len(found) == (everything.scores > 1.2).sum()
    else:
        assert len(found) == 9
    np.testing.assert_array_equal(found.keypoints, everything.keypoints[: len(found)])


def test_maps_and_normalisations(weight: Path, scfeat: Scfeat) -> None:
    plain = scfeat.extract(image())
    behind = build(weight, descriptor_map="normalised").extract(image())
    assert np.array_equal(behind.keypoints, plain.keypoints)
    assert np.abs(behind.descriptors.astype(float) - plain.descriptors).max() > 0.05
    fused = build(weight, normalisation="fusion").extract(image())
    assert fused.descriptors.shape == (len(plain), 129)
    direction = fused.descriptors[:, :-1].astype(np.float32)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    np.testing.assert_allclose(direction, plain.descriptors, atol=2e-3)


@pytest.mark.slow
def test_tiles_give_the_same(weight: Path) -> None:
    pixels = image(2, 1200, 64)
    whole = build(weight).extract(pixels)
    config = ScfeatConfig(weights=str(weight), threshold=0.5).model_copy(update={"max_pixels": 64 * 640})
    tiled = Scfeat(config, "cpu").extract(pixels)
    assert abs(len(tiled) - len(whole)) <= 0.01 * len(whole)
    apart = np.linalg.norm(whole.keypoints[:, None] - tiled.keypoints[None], axis=2)
    assert (apart.min(axis=1) < 0.01).mean() > 0.99


def test_together_or_alone(weight: Path) -> None:
    scfeat = build(weight)
    images = [image(seed, 96 + 16 * (seed % 2), 80) for seed in range(5)] + [np.zeros((20, 20, 3), np.uint8)]
    together = scfeat.extract_batch(images)
    assert len(together) == 6
    assert len(together[5]) == 0
    for found, pixels in zip(together, images, strict=True):
        assert_same(found, scfeat.extract(pixels))


def test_batches_through_the_network(weight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: images of one size in one forward; scores and descriptors as alone, to rounding."""
    scfeat, seen = build(weight), []
    alone = [scfeat.extract(image(seed)) for seed in range(5)]
    assert scfeat._network is not None
    plain = FrozenSCFeat(load_scfeat_network(weight), torch.device("cpu"), fast=False)
    monkeypatch.setattr(scfeat, "_network", plain)
    monkeypatch.setattr(plain, "_forward", lambda given: seen.append(len(given)) or plain._network(given))
    batch = scfeat._run_batch([Request(image(seed), alone[seed] if seed == 2 else None) for seed in range(5)])
    assert seen == [5]
    for found, expected in zip(batch, alone, strict=True):
        assert len(found) == len(expected)
        order = [np.lexsort(f.keypoints.round(2).T) for f in (found, expected)]
        np.testing.assert_allclose(found.keypoints[order[0]], expected.keypoints[order[1]], atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)


def test_one_thread_serves_those_who_wait_together() -> None:
    begun, go, batches = threading.Event(), threading.Event(), []

    class Owner:
        def work(self, images: list[np.ndarray]) -> list[Any]:
            begun.set()
            go.wait(20)
            batches.append([len(img) for img in images])
            if any(img.shape[1] == 13 for img in images):
                raise ValueError("unlucky")
            return [img.shape for img in images]

    owner = Owner()
    thread = NetworkThread(owner.work, at_once=3, most_pixels=100)
    sizes = [(1, 1), (4, 4), (4, 4), (4, 4), (4, 4), (6, 6), (6, 6), (6, 6), (40, 40), (4, 4), (1, 13)]
    waiting = [thread.submit(np.zeros((1, 1, 3)))]
    assert begun.wait(20)
    waiting += [thread.submit(np.zeros((*size, 3))) for size in sizes[1:]]
    go.set()
    assert [done.result(20) for done in waiting[:-1]] == [(*size, 3) for size in sizes[:-1]]
    with pytest.raises(ValueError, match="unlucky"):
        waiting[-1].result(20)
    assert batches == [[1], [4, 4, 4], [4], [6, 6], [6], [40], [4], [1]]


def test_threads(weight: Path) -> None:
    scfeat = build(weight)
    images = [image(seed, 96, 80) for seed in range(3)]
    expected = [build(weight).extract(pixels) for pixels in images]
    with ThreadPoolExecutor(3) as pool:
        for found, wanted in zip(pool.map(scfeat.extract, images * 2), expected * 2, strict=True):
            assert_same(found, wanted)


def test_small_and_empty_images(scfeat: Scfeat, caplog: pytest.LogCaptureFixture) -> None:
    for width, height in ((63, 200), (200, 63), (1, 1)):
        with caplog.at_level(logging.WARNING):
            found = scfeat.extract(image(0, 200, 200)[:height, :width])
        assert (len(found), found.image_size) == (0, (width, height))
        assert f"{width} x {height} px is too small for SCFeat (64 px)" in caplog.text
    caplog.clear()
    assert len(scfeat.extract(image(0, 64, 64))) > 0
    assert len(scfeat.extract(np.full((80, 90, 3), 200, np.uint8))) == 0
    assert scfeat.extract(np.full((80, 90, 3), 200, np.uint8)).descriptors.shape == (0, 128)
    assert caplog.text == ""


def test_weights(weight: Path, tmp_path: Path) -> None:
    assert build(weight).weights_sha256 == sha256_of(weight)
    with pytest.raises(UsageError, match="no weights named 'scfeet'"):
        Scfeat(ScfeatConfig(weights="scfeet"), "cpu").extract(image())
    patch = PatchNetwork(PatchNetworkConfig(architecture="l2net"), torch.Generator().manual_seed(0))
    save_patch_network(tmp_path / "p.safetensors", patch)
    with pytest.raises(BadInputError, match=r"not a scfeat network .*featkit patch network"):
        build(tmp_path / "p.safetensors").extract(image())


def test_impossible_configurations() -> None:
    for values, problem in (
        ({"nms_window": 4}, "odd"),
        ({"max_pixels": 1000}, "262144"),
        ({"treshold": 1}, "threshold"),
    ):
        with pytest.raises(UsageError, match=problem):
            make(ScfeatConfig, values)
    runtime = ScfeatConfig(batch_size=2, max_pixels=10**6, compile=True)
    assert runtime.fingerprint() == ScfeatConfig().fingerprint()


def test_by_name_through_the_stage(weight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(3):
        cv2.imwrite(str(folder / f"{seed}.png"), image(seed)[..., ::-1])
    method = extraction_method(ExtractConfig(features="scfeat"), {"weights": str(weight), "threshold": 0.5}, "cpu")
    output = extract.run(method, folder, tmp_path / "features.h5")
    with open_features(output) as store:
        assert store.names() == ["0.png", "1.png", "2.png"]
        found = store.read("1.png")
    expected = build(weight).extract(image(1))
    np.testing.assert_array_equal(found.keypoints, expected.keypoints)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.descriptors, expected.descriptors)


def test_several_scales_are_those_of_resized_images(weight: Path) -> None:
    """Each on its own by the plain extractor, moved back by hand; the best of all are kept, in order."""
    pixels = image(3, 192, 160)
    small = cv2.resize(pixels, (96, 80), interpolation=cv2.INTER_AREA)
    parts = [build(weight, max_keypoints=60).extract(one) for one in (pixels, small)]
    found = build(weight, max_keypoints=60, scales=(1, 0.5)).extract(pixels)
    assert found.image_size == (192, 160)
    assert found.scales is not None
    assert set(found.scales) == {1.0, 2.0}
    scores = np.concatenate([part.scores for part in parts])
    best = np.argsort(-scores, kind="stable")[:60]
    assert np.array_equal(found.scores, scores[best])
    moved = np.concatenate([parts[0].keypoints, 2 * parts[1].keypoints + 0.5])  # the corners of both coincide
    np.testing.assert_allclose(found.keypoints, moved[best], atol=1e-4)
    assert np.array_equal(found.descriptors, np.concatenate([part.descriptors for part in parts])[best])
    assert np.array_equal(found.scales, np.repeat([1.0, 2.0], [len(part) for part in parts])[best])


def test_a_scale_at_which_an_image_is_too_small_is_left_out(weight: Path) -> None:
    pixels = image(3, 192, 100)
    found = build(weight, scales=(1, 0.5)).extract(pixels)
    assert_same(found, build(weight).extract(pixels))
    assert found.scales is not None
    assert len(build(weight, scales=(1, 0.5)).extract(np.full((96, 128, 3), 7, np.uint8))) == 0
    assert_same(build(weight, scales=(0.5,)).extract(pixels), build(weight).extract(pixels))


def test_scales_are_different(weight: Path) -> None:
    with pytest.raises(UsageError, match=r"scales: .*each scale once"):
        make(ScfeatConfig, {"scales": [1, 0.5, 1.0]}, "scfeat")
