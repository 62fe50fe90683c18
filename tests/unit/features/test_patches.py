"""DoG keypoints are Sift's own; their descriptors are the network's for the squares around them, wherever computed."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from featkit.core.config import Config
from featkit.core.errors import UsageError
from featkit.core.types import Features
from featkit.features import stage as extract
from featkit.features.base import unpack_signs
from featkit.features.patches import Patches, PatchesConfig, resize_patches
from featkit.features.sift import Sift, SiftConfig
from featkit.features.stage import ExtractConfig, extraction_method
from featkit.images.patches import cut_patches
from featkit.io.features import open_features
from featkit.matching.mutual import MutualConfig, MutualMatcher
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.weights.files import load_patch_network, save_patch_network

Make = Callable[..., Patches]


@pytest.fixture(scope="module")
def weight(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The path of an untrained network's weights: already such a network tells patches apart."""
    folder = tmp_path_factory.mktemp("weights")

    def path(**config: Any) -> Path:
        made = folder / f"{PatchNetworkConfig(**config).fingerprint()}.safetensors"
        if not made.exists():
            draw = torch.Generator().manual_seed(0)
            network = PatchNetwork(PatchNetworkConfig(**config), draw).train()
            for layer in network.modules():
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.momentum = 1.0
            centres = torch.rand(64, 2, generator=draw) * torch.tensor([111.0, 87.0])
            sides = 20 + 40 * torch.rand(64, generator=draw)
            patches = cut_patches(torch.from_numpy(image(99)), centres, sides, sides, network.input_px)
            network(patches[:, None])
            save_patch_network(made, network.eval(), {})
        return made

    return path


@pytest.fixture(scope="module")
def make(weight: Callable[..., Path]) -> Make:
    def patches(network: dict[str, Any] | None = None, **config: Any) -> Patches:
        return Patches(PatchesConfig(weights=str(weight(**(network or {}))), **config), "cpu")

    return patches


def image(seed: int = 0, width: int = 112, height: int = 88) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width)), (0, 0), 2.5)
    return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


def assert_same(a: Features, b: Features) -> None:
    assert a.image_size == b.image_size
    for name in ("keypoints", "descriptors", "scores", "scales", "oris"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        assert np.array_equal(x, y), name


@pytest.mark.parametrize("changes", [{}, {"max_keypoints": 40}, {"upright": True}])
def test_the_keypoints_are_those_of_sift(make: Make, changes: dict[str, Any]) -> None:
    sift = Sift(SiftConfig(**changes)).extract(image())
    found = make(detector=SiftConfig(**changes)).extract(image())
    assert len(found) > 30
    for name in ("keypoints", "scores", "scales", "oris"):
        assert np.array_equal(getattr(found, name), getattr(sift, name))
    if changes.get("upright"):
        assert (found.oris == 0).all()


def test_max_keypoints_is_the_detectors(make: Make) -> None:
    limited = make(max_keypoints=25).extract(image())
    assert len(limited) == 25
    assert_same(limited, make(detector=SiftConfig(max_keypoints=25)).extract(image()))
    assert len(make(max_keypoints=25, detector=SiftConfig(max_keypoints=60)).extract(image())) == 25


@pytest.mark.parametrize(
    ("architecture", "cut_px", "magnification"), [("hynet", 64, 12.0), ("l2net", 0, 12.0), ("l2net", 64, 7.5)]
)
def test_descriptors_are_the_networks(make: Make, architecture: str, cut_px: int, magnification: float) -> None:
    extractor = make({"architecture": architecture}, cut_px=cut_px, magnification=magnification)
    found = extractor.extract(image())
    assert found.descriptors.dtype == np.float16
    centres, scales, oris = (torch.from_numpy(v) for v in (found.keypoints, found.scales, found.oris))
    cut = cut_patches(torch.from_numpy(image()), centres, magnification * scales, oris, cut_px or 32)
    network, _ = load_patch_network(extractor.config.weights, torch.device("cpu"))
    with torch.no_grad():
        expected = network(resize_patches(cut, 32)[:, None]).descriptor.numpy()
    assert np.abs(found.descriptors - expected).max() < 5e-4


def test_bits_are_packed(make: Make) -> None:
    found = make({"architecture": "l2net", "bits": 64}).extract(image())
    assert found.descriptors.dtype == np.uint8
    assert found.descriptors.shape == (len(found), 8)
    share = unpack_signs(found.descriptors).mean(axis=0)
    assert np.abs(share).max() < 1, "every bit tells some patches apart"


def test_a_spatial_transformer_sees_42_px(make: Make) -> None:
    found = make({"architecture": "l2net", "spatial_transformer": True}).extract(image())
    assert found.descriptors.shape == (len(found), 128)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("bits", [0, 64])
def test_a_turned_image_has_the_same_descriptors(make: Make, bits: int, turns: int) -> None:
    """A patch is turned by its keypoint's orientation, so matches of an image with itself turned are the right ones."""
    extractor = make({"architecture": "hynet", "bits": bits})
    pixels = image()
    upright, turned = extractor.extract(pixels), extractor.extract(np.rot90(pixels, turns).copy())
    found = MutualMatcher(MutualConfig(), "cpu").match([(upright, turned)])[0].as_index_pairs()
    x, y = upright.keypoints[found[:, 0]].T
    for _ in range(turns):
        x, y = y, (pixels.shape[1] - 1 if _ % 2 == 0 else pixels.shape[0] - 1) - x
    error = np.linalg.norm(np.stack([x, y], 1) - turned.keypoints[found[:, 1]], axis=1)
    assert len(found) > 0.5 * len(upright)
    assert (error < 1).mean() > 0.95


@pytest.mark.parametrize(("bits", "width", "kind"), [(0, 128, np.float16), (64, 8, np.uint8)])
def test_no_keypoints(make: Make, bits: int, width: int, kind: type) -> None:
    found = make({"bits": bits}).extract(np.full((50, 60), 99, np.uint8))
    assert found.descriptors.shape == (0, width)
    assert found.descriptors.dtype == kind


def test_the_hash_of_the_weight(make: Make) -> None:
    extractor = make()
    expected = hashlib.sha256(Path(extractor.config.weights).read_bytes()).hexdigest()
    assert extractor.weights_sha256 == expected


def test_a_missing_weight_is_one_clear_error(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), image())
    method = extraction_method(ExtractConfig(features="dog+sdgmnet"), {"weights": "no-such-weight"}, "cpu")
    with pytest.raises(UsageError, match="no-such-weight"):
        extract.run(method, tmp_path, tmp_path / "features.h5")
    assert not (tmp_path / "features.h5").exists()


def test_a_weight_of_ones_own(weight: Callable[..., Path]) -> None:
    """`--weights FILE`, with any of the configurations."""
    method = extraction_method(ExtractConfig(features="dog+hardnet"), {"weights": str(weight())}, "cpu")
    assert len(method.built.extract(image())) > 50
    assert method.config.extractor["weights"] == str(weight())


def test_what_decides_a_result() -> None:
    def fingerprint(**fields: Any) -> str:
        config: Config = PatchesConfig(**fields)
        return config.fingerprint()

    assert fingerprint(batch_size=7) == fingerprint()
    for change in ({"precision": "bf16"}, {"magnification": 10.0}, {"cut_px": 0}, {"weights": "doap"}):
        assert fingerprint(**change) != fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("two_steps", [False, True])
def test_several_processes_give_what_one_gives(
    weight: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_steps: bool
) -> None:
    """two_steps: workers detect and this process describes, as on a GPU."""
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index}.png"), image(index))
    changes = {"weights": str(weight()), "max_keypoints": 60}
    finished: list[Any] = []

    def count(self: Patches, detected: Any, describe: Any = Patches.describe) -> Features:
        finished.append(detected)
        return describe(self, detected)

    monkeypatch.setattr(Patches, "describe", count)
    for name, workers in (("one", 1), ("many", 2)):
        if workers == 2:
            monkeypatch.setattr(Patches, "two_steps", two_steps)
            finished.clear()
        method = extraction_method(ExtractConfig(features="dog+hynet", workers=workers), changes, "cpu")
        extract.run(method, tmp_path, tmp_path / f"{name}.h5")
    assert len(finished) == (4 if two_steps else 0), "described by this process"
    with open_features(tmp_path / "one.h5") as one, open_features(tmp_path / "many.h5") as many:
        assert one.names() == many.names() == [f"{index}.png" for index in range(4)]
        for image_name in one.names():
            assert_same(one.read(image_name), many.read(image_name))


@pytest.mark.slow
def test_patches_are_as_large_as_in_the_training(weight: Callable[..., Path], tmp_path: Path) -> None:
    usual, large = weight(), tmp_path / "large.safetensors"
    network, _ = load_patch_network(usual)
    network.config = network.config.model_copy(update={"magnification": 18.0})
    save_patch_network(large, network, {})

    def features(path: Path, magnification: float | None = None) -> Features:
        return Patches(PatchesConfig(weights=str(path), magnification=magnification), "cpu").extract(image())

    assert_same(features(large), features(usual, 18.0))
    assert_same(features(large, 12.0), features(usual))
    assert not np.array_equal(features(large).descriptors, features(usual).descriptors)
