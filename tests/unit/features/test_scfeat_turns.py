"""SCFeat's descriptors of an image turned by quarters."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from featkit.core.types import Features
from featkit.features.scfeat import Scfeat, ScfeatConfig, rotate_points
from featkit.io.features import append_features, open_features
from featkit.matching.mutual import MutualConfig, MutualMatcher
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.weights.files import save_scfeat_network

EVERY_PIXEL = {"threshold": 0.0, "nms_window": 1, "border_px": 0, "refine": False, "max_keypoints": 1 << 20}


@pytest.fixture(scope="module")
def weight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = SCFeatNetwork(SCFeatNetworkConfig(encoder="resnet18"), torch.Generator().manual_seed(0)).eval()
    return save_scfeat_network(tmp_path_factory.mktemp("weights") / "s.safetensors", network)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(64, 80, 3)), (0, 0), 2.0)
    return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


def extracted(weight: Path, pixels: np.ndarray, turns: int) -> Features:
    return Scfeat(ScfeatConfig(weights=str(weight), turns=turns, **EVERY_PIXEL), "cpu").extract(pixels)


def in_rows(features: Features) -> Features:
    """Keypoints in the order of pixels."""
    return features.select(np.lexsort(features.keypoints.T))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4])
def test_points_go_where_their_pixels_go(quarters: int) -> None:
    image = np.arange(35).reshape(5, 7)
    rows, columns = np.mgrid[:5, :7].reshape(2, -1)
    points = rotate_points(torch.from_numpy(np.stack([columns, rows], axis=1)), image.shape, quarters).numpy()
    np.testing.assert_array_equal(np.rot90(image, quarters)[points[:, 1], points[:, 0]], np.arange(35))


@pytest.mark.slow
def test_the_first_quarter_is_the_plain_descriptor(weight: Path, pixels: np.ndarray) -> None:
    one, four = (in_rows(extracted(weight, pixels, turns)) for turns in (1, 4))
    np.testing.assert_array_equal(one.keypoints, four.keypoints)
    assert four.descriptors.shape == (64 * 80, 4 * 128)
    np.testing.assert_allclose(2 * four.descriptors[:, :128], one.descriptors, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(four.descriptors.astype(np.float32), axis=1), 1, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turned_photograph_matches_pixel_by_pixel(weight: Path, pixels: np.ndarray, quarters: int) -> None:
    """A network that has learned nothing tells turned images apart; with their turns it sees the same."""
    right = {}
    for turns in (1, 4):
        a, b = extracted(weight, pixels, turns), extracted(weight, np.rot90(pixels, quarters), turns)
        matches = MutualMatcher(MutualConfig(ratio=None), "cpu").match([(a, b)])[0].as_index_pairs()
        expected = rotate_points(torch.from_numpy(a.keypoints[matches[:, 0]]), pixels.shape[:2], quarters).numpy()
        right[turns] = (b.keypoints[matches[:, 1]] == expected).all(axis=1).sum() / len(a)
    assert right[4] > 0.9
    assert right[1] < 0.1


def test_the_file_knows_the_turns(weight: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    config = ScfeatConfig(weights=str(weight), turns=4)
    with append_features(tmp_path / "features.h5", config) as store:
        store.write("a.jpg", extracted(weight, pixels, 4))
        store.write("b.jpg", extracted(weight, pixels, 1))
    with open_features(tmp_path / "features.h5") as store:
        assert (store.read("a.jpg").turns, store.read("b.jpg").turns) == (4, 1)
