"""Contract of all registered extractors; see featkit/features/base.py."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from freed import is_freed
from published_weights import needs_package, untrained
from safetensors.torch import save_file

from featkit.core.config import Config
from featkit.core.registry import resolve
from featkit.core.types import Features
from featkit.features.base import Extractor
from featkit.features.published import KEYNET_SCALE, KEYNET_SIGMA, Dedode, KeynetHardnet
from featkit.weights.catalogue import catalogue

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PATCH_NETWORKS = {"dog+sdgmnet": {"architecture": "hynet"}, "dog+doap-binary": {"architecture": "l2net", "bits": 256}}
"""Patch descriptors tested with untrained networks; the others differ from these only in their weights."""
DENSE_NETWORKS = {"scfeat": {"encoder": "resnet18"}}
UNTRAINED_PUBLISHED = ("dedode-b", "keynet-hardnet", "doghardnet")
"""Published networks whose weights are in no package, tested with random weights. The others need their package."""


def _extractors() -> list[str]:
    named = {p.stem: yaml.safe_load(p.read_text(encoding="utf-8")).get("extractor") for p in CONFIGS.glob("*.yaml")}
    return sorted(name for name, target in named.items() if target and (target != "patches" or name in PATCH_NETWORKS))


NAMES = _extractors()
ARRAYS = ("keypoints", "descriptors", "scores", "scales", "oris")


@pytest.fixture(scope="module", params=NAMES)
def extractor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name = request.param
    changes: dict[str, Any] = {}
    if name in PATCH_NETWORKS:  # fewer keypoints are enough
        weight = _untrained(name, tmp_path_factory.mktemp("weights"))
        changes = {"weights": weight, "detector": {"peak_threshold": 0.05}}
    if name in DENSE_NETWORKS:
        changes = {"weights": _untrained_dense(name, tmp_path_factory.mktemp("weights")), "threshold": 0.5}
    if name in catalogue():
        changes = _published(name, tmp_path_factory.mktemp("weights"))
    return resolve("extractor", name, changes, "cpu").built


def _untrained(name: str, folder: Path) -> str:
    """A file with random weights for a configuration's network."""
    import torch

    from featkit.models.patch import PatchNetwork, PatchNetworkConfig
    from featkit.weights.files import save_patch_network

    network = PatchNetwork(PatchNetworkConfig(**PATCH_NETWORKS[name]), torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    save_patch_network(folder / f"{name}.safetensors", network, {})
    return str(folder / f"{name}.safetensors")


def _untrained_dense(name: str, folder: Path) -> str:
    """The same for a dense network, with a detector that depends more on the image than on the untrained features."""
    import torch

    from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
    from featkit.weights.files import save_scfeat_network

    config = SCFeatNetworkConfig(**DENSE_NETWORKS[name])  # type: ignore[arg-type]
    network = SCFeatNetwork(config, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        network.detector.merge.weight[:, : config.detector_feature_channels] *= 0.3
    return str(save_scfeat_network(folder / f"{name}.safetensors", network))


def _published(name: str, folder: Path) -> dict[str, Any]:
    """A published network with few keypoints. Skipped without kornia 0.9 or the package with its weights."""
    if name not in UNTRAINED_PUBLISHED:
        needs_package(name)
        return {"max_keypoints": 500}
    pytest.importorskip("kornia", "0.9")
    save_file(untrained(name), folder / f"{name}.safetensors")
    return {"weights": str(folder / f"{name}.safetensors"), "max_keypoints": 150}


def image(extractor: Extractor, seed: int = 0, width: int = 220, height: int = 160) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (height, width, 3) if extractor.colour else (height, width)
    noise = cv2.GaussianBlur(rng.normal(size=shape), (0, 0), 2.5)
    return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


def skip_if_slow(extractor: Any) -> None:
    """Skip slow networks, whose code is the same for all published networks."""
    if isinstance(extractor, Dedode):
        pytest.skip("two VGG-19 on a CPU, untrained: the other published networks stand for it")


def assert_same(a: Features, b: Features) -> None:
    assert (a.image_size, a.uncertainty_px) == (b.image_size, b.uncertainty_px)
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == y.dtype
            assert x.tobytes() == y.tobytes(), name


def test_attributes(extractor: Any) -> None:
    assert issubclass(type(extractor).Config, Config)
    assert isinstance(type(extractor).colour, bool)
    assert isinstance(extractor.holds_gil, bool)
    assert isinstance(extractor.weights_sha256, str)
    type(extractor).Config()  # every field has a default


def test_shapes_and_types(extractor: Any) -> None:
    pixels = image(extractor)
    found = extractor.extract(pixels)
    n = len(found)
    assert n > 50
    assert found.image_size == (220, 160)
    assert found.keypoints.shape == (n, 2)
    assert found.keypoints.dtype == np.float32
    assert found.descriptors.shape[0] == n
    assert found.descriptors.dtype in (np.float16, np.float32, np.uint8)
    if found.descriptors.dtype != np.uint8:  # packed bits have no length
        assert np.abs(np.linalg.norm(found.descriptors.astype(float), axis=1) - 1).max() < 0.02
    for name in ("scores", "scales", "oris"):
        values = getattr(found, name)
        if values is not None:
            assert values.shape == (n,)
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
    if found.scales is not None:
        assert found.scales.min() > 0
    if found.oris is not None:
        assert np.abs(found.oris).max() <= 2 * np.pi + 1e-5
    assert found.uncertainty_px > 0


def test_keypoints_are_inside_the_image(extractor: Any) -> None:
    for width, height in [(220, 160), (97, 131)]:
        found = extractor.extract(image(extractor, 1, width, height))
        assert (found.keypoints >= -0.5).all()
        assert (found.keypoints <= [width - 0.5, height - 0.5]).all()


def test_the_same_pixels_give_the_same_features(extractor: Any) -> None:
    pixels = image(extractor)
    before = pixels.copy()
    first = extractor.extract(pixels)
    assert np.array_equal(pixels, before), "the image is left as it was"
    extractor.extract(image(extractor, 5, 150, 190))
    assert_same(extractor.extract(pixels), first)
    another = [type(extractor)(extractor.config, "cpu")]
    assert_same(another[0].extract(pixels), first)
    assert is_freed(another), "no cycle keeps the network in memory"


def test_a_read_only_image(extractor: Any) -> None:
    pixels = image(extractor)
    pixels.flags.writeable = False
    assert len(extractor.extract(pixels)) > 0


def test_a_strided_view_of_an_image(extractor: Any) -> None:
    """Rows need not be contiguous."""
    wide = image(extractor, 2, 300, 160)
    view = wide[:, 40:260]
    assert_same(extractor.extract(view), extractor.extract(np.ascontiguousarray(view)))


def test_an_image_without_texture_has_no_features(extractor: Any) -> None:
    found = extractor.extract(np.full_like(image(extractor), 77))
    assert len(found) == 0
    assert found.keypoints.shape == (0, 2)
    assert found.keypoints.dtype == np.float32
    assert found.descriptors.shape == (0, extractor.extract(image(extractor)).descriptors.shape[1])
    assert found.scores.shape == (0,)
    assert found.image_size == (220, 160)


def test_small_images(extractor: Any) -> None:
    for width, height in [(1, 1), (3, 20), (20, 3), (8, 8)]:
        found = extractor.extract(image(extractor, 3, 220, 160)[:height, :width].copy())
        assert found.image_size == (width, height)


def test_extraction_is_thread_safe(extractor: Any) -> None:
    skip_if_slow(extractor)
    images = [image(extractor, seed, 200 + 8 * seed, 150) for seed in range(4)]
    alone = [extractor.extract(pixels) for pixels in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(extractor.extract, images * 2))
    for found, expected in zip(together, alone * 2, strict=True):
        assert_same(found, expected)


def test_a_shifted_image_shifts_its_keypoints(extractor: Any) -> None:
    """In a crop at integer pixels, most keypoints away from the border are found again at the shifted positions."""
    skip_if_slow(extractor)
    if getattr(extractor.config, "scales", (1.0,)) != (1.0,):
        pytest.skip("a shift by whole pixels is none in the resized images")
    pixels = image(extractor, 4, 320, 256)  # multiples of 32, before and after: XFeat resizes others
    whole, part = extractor.extract(pixels), extractor.extract(pixels[32:, 32:].copy())
    is_inner = np.all((whole.keypoints > 90) & (whole.keypoints < [240, 180]), axis=1)
    inner = whole.keypoints[is_inner] - 32
    nearest = np.linalg.norm(inner[:, None] - part.keypoints[None], axis=2).min(axis=1)
    assert len(inner) > 10
    within, most = 0.25, 0.8
    if isinstance(extractor, KeynetHardnet):  # whole pixels of a pyramid's levels, which are cut elsewhere in the crop
        within, most = 0.75 * whole.scales[is_inner] / (KEYNET_SIGMA * KEYNET_SCALE), 0.7
    assert (nearest < within).mean() > most
