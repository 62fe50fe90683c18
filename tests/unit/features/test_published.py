"""Published features: what kornia gives when called by hand, in featkit's pixel frame; nothing asks the network."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import kornia
import numpy as np
import pytest
import torch
from published_weights import needs_package, untrained
from safetensors.torch import save_file
from torch import Tensor

from featkit.core.errors import BadInputError, UsageError
from featkit.core.registry import resolve
from featkit.core.types import Features
from featkit.features.published import KEYNET_SCALE, MIN_SIDE_PX
from featkit.features.published_networks import build
from featkit.images.read import DecodeConfig, decode
from featkit.weights.catalogue import packaged_files

feature = pytest.importorskip("kornia.feature")
PHOTOGRAPHS = ("oxford-affine/graf/img1.png", "oxford-affine/boat/img1.png", "oxford-affine/bikes/img1.png")
SIDE_PX = 210


def extractor(name: str, device: str = "cpu", **changes: Any) -> Any:
    return resolve("extractor", name, {"max_keypoints": 300, **changes}, device).built


@pytest.fixture(scope="module")
def untrained_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("untrained")

    def file(name: str) -> str:
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            save_file(untrained(name), path)
        return str(path)

    return file


def photograph(shared_data: Path, name: str, side_px: int = SIDE_PX, colour: bool = True) -> np.ndarray:
    return decode(shared_data / name, DecodeConfig(resize_max=side_px), colour).pixels


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    smooth = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width, 3)), (0, 0), 1.5)
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def as_batch(pixels: np.ndarray) -> Tensor:
    """As kornia takes it: (1, 3, h, w) in [0, 1]."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float() / 255


def authors(name: str) -> dict[str, Tensor]:
    needs_package(name)
    (path,) = packaged_files(name) or []
    return torch.load(path, map_location="cpu", weights_only=True)


def assert_alike(found: Features, keypoints: Tensor, descriptors: Tensor, scores: Tensor) -> None:
    """The same features in the same order."""
    assert len(found) == len(keypoints) > 100
    np.testing.assert_allclose(found.keypoints, keypoints.numpy(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.descriptors, descriptors.numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.scores, scores.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["aliked-n16", "aliked-n16rot", "aliked-n32", "aliked-t16"])
@torch.inference_mode()
def test_aliked_is_kornias(name: str, shared_data: Path, no_network: None) -> None:
    network = feature.ALIKED(name, max_num_keypoints=300, detection_threshold=0.0)
    lacking, unknown = network.load_state_dict(authors(name), strict=False)
    assert (lacking, unknown) == (["dkd.hw_grid"], [])
    for photo in PHOTOGRAPHS if name == "aliked-n16" else PHOTOGRAPHS[:1]:
        pixels = photograph(shared_data, photo)
        (theirs,) = network.eval()(as_batch(pixels))
        assert_alike(extractor(name).extract(pixels), theirs.keypoints, theirs.descriptors, theirs.keypoint_scores)


@pytest.mark.slow
@torch.inference_mode()
def test_disk_is_kornias(shared_data: Path, no_network: None) -> None:
    network = feature.DISK()
    network.load_state_dict(authors("disk")["extractor"])
    for photo in PHOTOGRAPHS:
        pixels = photograph(shared_data, photo)
        assert pixels.shape[0] % 16, "a size that is padded"
        (theirs,) = network.eval()(as_batch(pixels), n=300, pad_if_not_divisible=True)
        assert_alike(extractor("disk").extract(pixels), theirs.keypoints, theirs.descriptors, theirs.detection_scores)


@torch.inference_mode()
def test_xfeat_is_kornias(shared_data: Path, no_network: None) -> None:
    """kornia's keypoint i * W / W' of the resized image is the pixel whose centre is (i + 0.5) * W / W' - 0.5."""
    network = feature.XFeat(top_k=300)
    network.net.load_state_dict(authors("xfeat"))
    for photo in PHOTOGRAPHS:
        pixels = photograph(shared_data, photo)
        height, width = pixels.shape[:2]
        ratio = torch.tensor([width / (width // 32 * 32), height / (height // 32 * 32)])
        assert (ratio > 1).all(), "a size that is resized"
        (theirs,) = network.eval().detectAndCompute(as_batch(pixels))
        centres = (torch.round(theirs["keypoints"] / ratio) + 0.5) * ratio - 0.5
        assert_alike(extractor("xfeat").extract(pixels), centres, theirs["descriptors"], theirs["scores"])


@pytest.mark.slow
@torch.inference_mode()
def test_dedode_is_kornias(untrained_file: Callable[[str], str], no_network: None) -> None:
    weights = untrained_file("dedode-b")
    network = build("dedode-b")  # kornia's constructor takes a minute
    network.load_state_dict(untrained("dedode-b"))
    network.normalizer = kornia.enhance.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # ImageNet's
    pixels = noise(96, 72)
    keypoints, scores, descriptors = network.eval()(as_batch(pixels), n=300)
    unit = descriptors[0] / descriptors[0].norm(dim=1, keepdim=True)
    found = extractor("dedode-b", weights=weights).extract(pixels)
    assert_alike(found, keypoints[0] - 0.5, unit, scores[0])
    np.testing.assert_allclose(found.keypoints, np.round(found.keypoints), atol=1e-4)  # pixel centres


@torch.inference_mode()
def test_keynet_is_kornias(untrained_file: Callable[[str], str], no_network: None) -> None:
    """kornia's keypoint u * W / W_l of a level is the pixel whose centre is (u + 0.5) * W / W_l - 0.5."""
    ours = extractor("keynet-hardnet", weights=untrained_file("keynet-hardnet"), max_keypoints=120)
    tensors = untrained("keynet-hardnet")
    orienter = feature.LAFOrienter(angle_detector=feature.OriNet(False))
    detector = feature.KeyNetDetector(False, 120, ori_module=orienter)
    network = feature.LocalFeature(detector, feature.LAFDescriptor(feature.HardNet(False)))
    network.load_state_dict(tensors)
    pixels = cv2.cvtColor(noise(192, 160), cv2.COLOR_RGB2GRAY)
    frames, responses, descriptors = network.eval()(torch.from_numpy(pixels)[None, None].float() / 255)
    filled = feature.laf_is_filled(frames)[0]
    frames, responses, descriptors = frames[:, filled], responses[:, filled], descriptors[:, filled]
    level_px = feature.get_laf_scale(frames)[0, :, 0] / KEYNET_SCALE
    found = ours.extract(pixels)
    assert_alike(found, frames[0, :, :, 2] + 0.5 * level_px - 0.5, descriptors[0], responses[0])
    assert found.scales is not None
    assert found.oris is not None
    assert len(set(np.round(found.scales, 1))) > 1, "of several levels"
    half_sides = found.scales * 24 / 2  # of what the descriptor sees
    pixel = (found.keypoints + 0.5) / (half_sides / KEYNET_SCALE)[:, None] - 0.5
    assert np.median(np.abs(pixel - np.round(pixel))) < 0.1, "whole pixels of their levels"
    turned = np.stack([np.cos(found.oris), np.sin(found.oris)], axis=1) * half_sides[:, None]
    np.testing.assert_allclose(turned, frames[0, :, :, 0].numpy(), atol=1e-2)  # the image of the patch's x axis


@pytest.mark.slow
@torch.inference_mode()
def test_doghardnet_describes_as_kornia(untrained_file: Callable[[str], str], no_network: None) -> None:
    """kornia samples the same squares in another way, so that descriptors are alike, not the same."""
    weights = untrained_file("doghardnet")
    pixels = cv2.cvtColor(noise(160, 120), cv2.COLOR_RGB2GRAY)
    found = extractor("doghardnet", weights=weights, max_keypoints=None, precision="fp32").extract(pixels)
    hardnet = feature.HardNet(False)
    hardnet.load_state_dict(untrained("doghardnet"))
    assert found.scales is not None
    assert found.oris is not None
    frames = feature.laf_from_center_scale_ori(
        torch.from_numpy(found.keypoints)[None],
        12.0 * torch.from_numpy(found.scales)[None, :, None, None],
        -torch.rad2deg(torch.from_numpy(found.oris))[None, :, None],
    )
    grey = torch.from_numpy(pixels)[None, None].float() / 255
    theirs = feature.LAFDescriptor(hardnet.eval())(grey, frames)[0].numpy()
    reach = 12.0 * np.sqrt(2) * found.scales
    xy = found.keypoints
    inside = ((xy > reach[:, None]) & (xy < [160, 120] - reach[:, None])).all(axis=1)
    cosines = (theirs * found.descriptors).sum(axis=1)[inside]
    assert inside.sum() > 20
    assert np.median(cosines) > 0.98
    shuffled = (theirs[inside] * np.roll(found.descriptors[inside], 1, axis=0)).sum(axis=1)
    assert np.median(shuffled) < np.median(cosines) - 0.01


def test_the_authors_modes() -> None:
    needs_package("aliked-t16")
    pixels = noise(128, 96)
    everything = extractor("aliked-t16", max_keypoints=10_000).extract(pixels)
    best = extractor("aliked-t16", max_keypoints=20).extract(pixels)
    assert len(best) == 20
    nearest = np.linalg.norm(best.keypoints[:, None] - everything.keypoints, axis=2).min(axis=1)
    assert nearest.max() < 1e-3
    assert best.scores.min() > np.sort(everything.scores)[-30]  # scores are those between the pixels, not ranked ones
    level = float(np.median(everything.scores))
    above = extractor("aliked-t16", max_keypoints=10_000, threshold=level).extract(pixels)
    assert 0 < len(above) < len(everything)
    assert len(extractor("aliked-t16", max_keypoints=10_000, nms_radius=6).extract(pixels)) < len(everything) / 2


def test_too_small_and_too_large(caplog: pytest.LogCaptureFixture) -> None:
    needs_package("aliked-t16")
    ours = extractor("aliked-t16", max_pixels=64 * 64)
    assert len(ours.extract(noise(MIN_SIDE_PX, MIN_SIDE_PX + 8))) > 0
    with caplog.at_level(logging.WARNING):
        assert len(ours.extract(noise(MIN_SIDE_PX - 1, 64))) == 0
    assert "an image of 31 x 64 px is too small for aliked-t16 (32 px): no features" in caplog.text
    with pytest.raises(BadInputError, match="an image of 100 x 80 px is too large for aliked-t16"):
        ours.extract(noise(100, 80))


def test_half_precision_is_for_a_gpu() -> None:
    with pytest.raises(UsageError, match="fp16 is for a GPU"):
        extractor("aliked-t16", precision="fp16").extract(noise(64, 64))


def test_without_kornia(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_package("aliked-t16")
    monkeypatch.setitem(__import__("sys").modules, "kornia.feature", None)
    with pytest.raises(UsageError, match=r"pip install 'featkit\[published\]'"):
        extractor("aliked-t16").extract(noise(64, 64))
    monkeypatch.setitem(__import__("sys").modules, "kornia.feature", object())  # an older one
    with pytest.raises(UsageError, match="this kornia has no ALIKED"):
        extractor("aliked-t16").extract(noise(64, 64))


def test_building_leaves_torch_alone() -> None:
    """Neither its random numbers nor its settings."""
    needs_package("aliked-t16")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tf32 = torch.backends.cudnn.allow_tf32
    extractor("aliked-t16").extract(noise(64, 64))
    assert torch.equal(torch.rand(3), expected)
    assert torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["aliked-n16rot", "disk", "xfeat"])
def test_a_batch_is_each_image_by_itself(name: str) -> None:
    needs_package(name)
    images = [noise(320, 256, seed) for seed in range(5)]
    together = extractor(name, "cuda").extract_batch(images)
    for pixels, found in zip(images, together, strict=True):
        for alone in (extractor(name, "cuda").extract(pixels), extractor(name, "cpu").extract(pixels)):
            assert_nearly(found, alone)


def assert_nearly(found: Features, expected: Features) -> None:
    """The same but for rounding, which may exchange keypoints of nearly one score at the end of the budget."""
    distances = np.linalg.norm(found.keypoints[:, None] - expected.keypoints[None], axis=2)
    nearest = distances.argmin(axis=1)
    same = distances.min(axis=1) < 0.01
    assert same.mean() > 0.98
    cosines = (found.descriptors * expected.descriptors[nearest]).sum(axis=1)[same]
    assert cosines.min() > 0.999
