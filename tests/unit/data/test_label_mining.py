"""Label mining: HOG, clusters of appearance, and the pairs that do not count."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from featkit.data.label_mining import (
    LabelMiningConfig,
    MinedLabels,
    centres_of,
    far_apart,
    hog,
    mine_labels,
    nearest_centre,
    patch_features,
)
from featkit.data.patch_set import PatchSet


def slow_hog(patch: np.ndarray) -> np.ndarray:
    """Pixel by pixel, cell by cell, from the description in the paper."""
    size, cells = len(patch), len(patch) // 8
    framed = np.pad(patch, 1, mode="edge")
    histogram = np.zeros((cells, cells, 18))
    for y in range(size):
        for x in range(size):
            dx = (framed[y + 1, x + 2] - framed[y + 1, x]) / 2
            dy = (framed[y + 2, x + 1] - framed[y, x + 1]) / 2
            direction = round(math.atan2(dy, dx) / (math.pi / 9)) % 18
            for cy in range(cells):
                for cx in range(cells):
                    near_y = 1 - abs(y - (8 * cy + 3.5)) / 8
                    near_x = 1 - abs(x - (8 * cx + 3.5)) / 8
                    if near_y > 0 and near_x > 0:
                        histogram[cy, cx, direction] += near_y * near_x * math.hypot(dx, dy)
    energy = np.pad(((histogram[..., :9] + histogram[..., 9:]) ** 2).sum(2), 1, mode="edge")
    features = np.zeros((31, cells, cells))
    for cy in range(cells):
        for cx in range(cells):
            signed = histogram[cy, cx]
            for number, (oy, ox) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                block = energy[cy + oy : cy + oy + 2, cx + ox : cx + ox + 2].sum()
                scale = 1 / math.sqrt(block + 1e-4)
                cut = np.minimum(signed * scale, 0.2)
                features[:18, cy, cx] += cut / 2
                features[18:27, cy, cx] += np.minimum((signed[:9] + signed[9:]) * scale, 0.2) / 2
                features[27 + number, cy, cx] = 0.2357 * cut.sum()
    return features.ravel()


def test_hog_is_that_of_the_slow_one() -> None:
    patch = np.random.default_rng(0).random((16, 16))
    ours = hog(torch.from_numpy(patch)[None].float())[0].numpy()
    assert ours.shape == (31 * 4,)
    assert np.abs(ours - slow_hog(patch)).max() < 1e-4


def test_features_are_2240_and_do_not_depend_on_the_size_of_a_patch() -> None:
    big = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    found = patch_features(big, np.array([2, 0]))
    assert found.shape == (2, 2240)
    assert torch.allclose(
        found[1, -256:].reshape(16, 16)[3, 5] * 255, torch.tensor(big[0, 12:16, 20:24].mean()).float()
    )
    assert patch_features(big[:, ::2, ::2].copy(), np.array([0])).shape == (1, 2240)


def test_kmeans_finds_clusters_that_lie_apart_and_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    centres = torch.from_numpy(rng.normal(size=(5, 8)) * 20).float()
    labels = np.arange(500) % 5
    points = centres[torch.from_numpy(labels)] + torch.from_numpy(rng.normal(size=(500, 8))).float()
    # Lloyd's algorithm may end in a poorer place; the best of a few starts finds the truth.
    runs = [centres_of(points, 5, np.random.default_rng(seed), 30) for seed in range(12)]
    costs = [float(torch.cdist(points, run).min(1).values.square().sum()) for run in runs]
    best = runs[int(np.argmin(costs))]
    assert torch.cdist(best, centres).min(1).values.max() < 0.5
    assert torch.equal(centres_of(points, 5, np.random.default_rng(3), 30), runs[3])
    assert len(centres_of(points[:3], 5, np.random.default_rng(0), 3)) == 3


def test_a_step_of_kmeans_never_raises_the_cost() -> None:
    points = torch.rand((200, 6), generator=torch.Generator().manual_seed(0))
    costs = [
        float(torch.cdist(points, centres_of(points, 8, np.random.default_rng(1), steps)).min(1).values.square().sum())
        for steps in range(1, 12)
    ]
    assert all(later <= earlier + 1e-5 for earlier, later in itertools.pairwise(costs))
    assert costs[-1] < costs[0]


def test_clusters_are_far_beyond_the_percentile_of_all_distances() -> None:
    places = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # distances 1, 2, 3, 4, 6, 7
    far = far_apart(places, 20.0)  # the 20th percentile is 2: one sixth of the way lies at 1, two at 2
    assert far.tolist() == [
        [False, False, True, True],
        [False, False, False, True],
        [True, False, False, True],
        [True, True, True, False],
    ]


def test_what_counts_as_non_match() -> None:
    far = np.zeros((2, 2, 2), bool)
    far[0] = [[False, True], [True, False]]
    mined = MinedLabels(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 0, 1]), far)
    patches, labels = np.array([0, 1, 2, 3, 4, 5]), np.array([10, 11, 12, 10, 13, 14])
    ignored = mined.ignored(patches, labels)
    expected = np.zeros((6, 6), bool)
    expected[0, 1] = expected[1, 3] = True  # one scene, other points, clusters alike
    expected[4, 5] = True  # its scene has no clusters that lie far apart
    assert ignored.tolist() == (expected | expected.T).tolist()


def test_alike_patches_of_a_scene_are_ignored_and_others_are_not() -> None:
    """A scene of two kinds of windows, each many times."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 256, (2, 8, 8)).repeat(8, axis=1).repeat(8, axis=2)
    kind = np.arange(60) % 2
    pixels = np.clip(kinds[kind] + rng.normal(0, 4, (60, 64, 64)), 0, 255).astype(np.uint8)
    data = PatchSet("windows", pixels, np.arange(60), np.zeros(60, np.int64), ("house",))
    mined = mine_labels(data, LabelMiningConfig(clusters=2, percentile=0))
    assert all((mined.clusters == mined.clusters[0]) == (kind == kind[0]))
    far = mine_labels(data, LabelMiningConfig(clusters=4, percentile=20))
    ignored = far.ignored(np.arange(60), data.classes).numpy()
    assert ignored[kind[:, None] == kind[None, :]].mean() > 0.3
    assert not ignored[kind[:, None] != kind[None, :]].any()


def test_nearest_is_the_nearest() -> None:
    points, centres = torch.rand(50, 4), torch.rand(7, 4)
    assert torch.equal(nearest_centre(points, centres), torch.cdist(points, centres).argmin(1))
