"""SIFT of a patch against Lowe's formula written out, and distances against plain counting."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from featkit.core.errors import UsageError
from featkit.evaluation.metrics import distance_matrix, indexed_distances, pair_distances
from featkit.evaluation.patches import PatchDescriber, SiftPatchConfig, describe_by_sift, describe_used, patch_describer
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.weights.files import load_patch_network, save_patch_network


def textures(count: int, side: int = 64) -> np.ndarray:
    rng = np.random.default_rng(side)
    noise = rng.normal(0, 1, (count, side, side))
    smooth = np.stack([cv2.GaussianBlur(patch, (0, 0), side / 20) for patch in noise])
    return (128 + 400 * smooth).clip(0, 255).astype(np.uint8)


def slow_sift(patch: np.ndarray, blur: float) -> np.ndarray:
    """Lowe (2004), section 6, pixel by pixel: 4 x 4 cells that cover the patch, 8 orientations (y upwards)."""
    side = len(patch)
    smooth = cv2.GaussianBlur(patch.astype(np.float64), (0, 0), math.sqrt(blur**2 - 0.5**2))
    histogram = np.zeros((4, 4, 8))
    for y in range(1, side - 1):
        for x in range(1, side - 1):
            dx, dy = smooth[y, x + 1] - smooth[y, x - 1], smooth[y - 1, x] - smooth[y + 1, x]
            u, v = (x - (side - 1) / 2) / (side / 4), (y - (side - 1) / 2) / (side / 4)  # in cells from the centre
            weight = math.hypot(dx, dy) * math.exp(-(u * u + v * v) / (2 * 2**2))
            angle = math.atan2(dy, dx) * 8 / (2 * math.pi) % 8
            for row in range(4):
                for column in range(4):
                    near = max(0, 1 - abs(v + 1.5 - row)) * max(0, 1 - abs(u + 1.5 - column))
                    if near:
                        low = int(angle) % 8
                        histogram[row, column, low] += near * weight * (1 - angle + int(angle))
                        histogram[row, column, (low + 1) % 8] += near * weight * (angle - int(angle))
    unit = histogram.ravel() / np.linalg.norm(histogram)
    cut = np.minimum(unit, 0.2)
    return cut / np.linalg.norm(cut)


@pytest.mark.parametrize("side", [64, 65, 51])
def test_sift_of_a_patch_is_lowes(side: int) -> None:
    patches = textures(3, side)
    found = describe_by_sift(patches, SiftPatchConfig(root=False))
    for patch, descriptor in zip(patches, found, strict=True):
        expected = slow_sift(patch, SiftPatchConfig().blur_px)
        assert expected @ descriptor > 0.998


def test_rootsift_is_the_root_of_sift() -> None:
    patches = textures(5)
    sift = describe_by_sift(patches, SiftPatchConfig(root=False))
    root = describe_by_sift(patches, SiftPatchConfig(root=True))
    np.testing.assert_allclose(root, np.sqrt(sift / sift.sum(axis=1, keepdims=True)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(root, axis=1), 1, atol=1e-5)


def test_sift_is_upright() -> None:
    """A patch turned by 90 degrees to the left has the same values, in cells and orientations turned as well."""
    patches = textures(4)
    plain, turned = (describe_by_sift(p, SiftPatchConfig()) for p in (patches, np.rot90(patches, axes=(1, 2))))
    cells = np.rot90(plain.reshape(-1, 4, 4, 8), axes=(1, 2))
    np.testing.assert_allclose(turned.reshape(-1, 4, 4, 8), np.roll(cells, 2, axis=3), atol=0.03)
    assert (plain * turned).sum(axis=1).max() < 0.95


def test_sift_is_of_the_whole_patch() -> None:
    patch = textures(1)[0]
    edge = patch.copy()
    edge[:, :6] = 255 - edge[:, :6]  # only its outermost pixels
    changed = describe_by_sift(np.stack([patch, edge]), SiftPatchConfig())
    assert changed[0] @ changed[1] < 0.999


def test_a_patch_without_gradients_has_a_descriptor_of_zeros() -> None:
    flat = np.full((1, 64, 64), 77, np.uint8)
    for root in (True, False):
        assert not describe_by_sift(flat, SiftPatchConfig(root=root)).any()


def test_more_patches_than_one_batch_stay_in_order() -> None:
    patches = textures(4)[np.arange(1100) % 4]
    found = describe_by_sift(patches, SiftPatchConfig(threads=3))
    np.testing.assert_array_equal(found, describe_by_sift(patches[:4], SiftPatchConfig())[np.arange(1100) % 4])
    assert describe_by_sift(patches[:0], SiftPatchConfig()).shape == (0, 128)


def test_methods_by_name() -> None:
    patches = textures(2)
    for name, root in (("sift", False), ("rootsift", True)):
        method = patch_describer(name, "cpu")
        assert method.name == name
        np.testing.assert_array_equal(method.describe(patches), describe_by_sift(patches, SiftPatchConfig(root=root)))
    with pytest.raises(UsageError, match="rootsfit"):
        patch_describer("rootsfit", "cpu")


@pytest.mark.parametrize("bits", [0, 64])
def test_a_network_by_its_path(tmp_path: Path, bits: int) -> None:
    """What the network itself says of the patches at its own size."""
    network = PatchNetwork(PatchNetworkConfig(architecture="l2net", bits=bits), torch.Generator().manual_seed(0)).eval()
    path = save_patch_network(tmp_path / "net.safetensors", network)
    patches = textures(7)
    found = patch_describer(str(path), "cpu").describe(patches)
    small = patches.reshape(7, 32, 2, 32, 2).mean(axis=(2, 4)) / 255
    loaded, _ = load_patch_network(path, "cpu")
    with torch.no_grad():
        expected = loaded(torch.as_tensor(small, dtype=torch.float32)[:, None]).descriptor.numpy()
    if bits:
        assert found.tolist() == np.packbits(expected > 0, axis=1).tolist()
    else:
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_only_what_is_used_is_described() -> None:
    patches = textures(10)
    asked: list[int] = []
    method = PatchDescriber(
        "means", lambda p: (asked.append(len(p)), p[np.arange(len(p))].mean(axis=(1, 2)))[1][:, None], {}
    )
    first, second = np.array([7, 7, 2]), np.array([2, 9, 7])
    rows, (a, b) = describe_used(method, patches, [first, second])
    assert asked == [3]
    np.testing.assert_allclose(rows[a, 0], patches[first].mean(axis=(1, 2)))
    np.testing.assert_allclose(rows[b, 0], patches[second].mean(axis=(1, 2)))


def test_euclidean_distances() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(5, 7)).astype(np.float32)
    plain = [math.dist(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    np.testing.assert_allclose(pair_distances(a, b), plain, rtol=1e-12)
    whole = distance_matrix(a, b[:3])
    np.testing.assert_allclose(whole, [[math.dist(x, y) for y in b[:3].tolist()] for x in a.tolist()], rtol=1e-7)
    assert distance_matrix(a, a).diagonal().max() < 1e-6


def test_hamming_distances() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (6, 32), dtype=np.uint8), rng.integers(0, 256, (6, 32), dtype=np.uint8)
    plain = [[sum(bin(x ^ y).count("1") for x, y in zip(p, q, strict=True)) for q in b.tolist()] for p in a.tolist()]
    assert distance_matrix(a, b).tolist() == plain
    assert pair_distances(a, b).tolist() == np.diagonal(plain).tolist()
    index0, index1 = rng.integers(0, 6, 50), rng.integers(0, 6, 50)
    assert indexed_distances(a, index0, index1).tolist() == distance_matrix(a, a)[index0, index1].tolist()
    assert indexed_distances(a, index0[:0], index1[:0]).shape == (0,)
