"""The files in weights/ are intact, small, documented, and usable by name."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from featkit.core.config import resource_dir
from featkit.core.types import Features
from featkit.features.patches import DetectedKeypoints, Patches, PatchesConfig
from featkit.features.scfeat import Scfeat, ScfeatConfig
from featkit.matching.mutual import MutualConfig, MutualMatcher
from featkit.weights.manifest import find_weights, manifest_rows, sha256_of

PATCH_NETWORKS = ("adasample", "doap", "doap-binary", "hardnet", "hynet", "sdgmnet")
MOST_BYTES, MOST_IN_ALL = {"patch": 3e6, "scfeat": 10e6}, 16e6


def test_every_recipe_has_weights() -> None:
    shipped = {row.name for row in manifest_rows()}
    assert shipped >= {*PATCH_NETWORKS, "scfeat-s"}
    files = {path.name for path in resource_dir("weights").glob("*.safetensors")}
    assert files == {row.file for row in manifest_rows()}, "files and manifest.json name the same weights"


def test_weights_are_small() -> None:
    rows = manifest_rows()
    assert all(row.bytes <= MOST_BYTES[row.kind] for row in rows)
    assert sum(row.bytes for row in rows) <= MOST_IN_ALL


@pytest.mark.parametrize("name", [row.name for row in manifest_rows()])
def test_manifest_row_records_the_origin(name: str) -> None:
    row = next(row for row in manifest_rows() if row.name == name)
    path = find_weights(name)
    assert sha256_of(path) == row.sha256
    assert path.stat().st_size == row.bytes
    assert row.recipe
    assert row.commit
    assert row.data
    assert row.licence
    assert row.scores
    assert {"steps", "seconds", "device"} <= set(row.training)


@pytest.mark.parametrize("name", PATCH_NETWORKS)
def test_patch_networks_distinguish_places(name: str) -> None:
    """Patches of a texture match those of a darker, noisy, slightly larger and tilted view."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.normal(size=(400, 400)).astype(np.float32), (0, 0), 2.5)
    texture = 128 + 40 * texture / texture.std()
    slanted = np.array([[1.15, 0.15, -40.0], [-0.05, 1.05, 5.0]], np.float32)
    seen = 0.7 * cv2.warpAffine(texture, slanted, (400, 400))
    places = rng.uniform(80, 320, (200, 2)).astype(np.float32)
    extractor = Patches(PatchesConfig(weights=name), "cpu")
    found = []
    for view, points in ((texture, places), (seen, places @ slanted[:, :2].T + slanted[:, 2])):
        pixels = np.clip(view + rng.normal(0, 4, view.shape), 0, 255).astype(np.uint8)
        nothing, one = np.zeros((200, 0), np.float16), np.ones(200, np.float32)
        keypoints = Features(points, nothing, one, (400, 400), scales=3 * one, oris=0 * one)
        found.append(extractor.describe(DetectedKeypoints(pixels, keypoints)))
    matches = MutualMatcher(MutualConfig(ratio=0.95), "cpu").match([(found[0], found[1])])[0].matches0
    assert (matches == np.arange(200)).mean() > 0.9


def test_scfeat_matches_a_changed_view() -> None:
    """Its keypoints in a texture match those in a darker, noisy and tilted view."""
    rng = np.random.default_rng(1)
    fine, coarse = (cv2.GaussianBlur(rng.normal(size=(360, 360)), (0, 0), sigma) for sigma in (1.5, 6))
    texture = np.clip(128 + 30 * fine / fine.std() + 20 * coarse / coarse.std(), 0, 255).astype(np.uint8)
    slanted = np.array([[1.1, 0.12, -30.0], [-0.06, 1.05, 4.0]], np.float32)
    seen = np.clip(0.7 * cv2.warpAffine(texture, slanted, (360, 360)) + rng.normal(0, 4, (360, 360)), 0, 255)
    images = [np.repeat(image.astype(np.uint8)[..., None], 3, axis=2) for image in (texture, seen)]
    a, b = (Scfeat(ScfeatConfig(), "cpu").extract(image) for image in images)
    matches = MutualMatcher(MutualConfig(ratio=None), "cpu").match([(a, b)])[0].matches0
    found = np.flatnonzero(matches >= 0)
    there = a.keypoints[found] @ slanted[:, :2].T + slanted[:, 2]
    right = np.linalg.norm(there - b.keypoints[matches[found]], axis=1) < 3
    assert right.sum() > 300
    assert right.mean() > 0.9
