"""Samplers: which patches make a batch, how often, and that they go on to the bit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from featkit.core.errors import BadInputError, UsageError
from featkit.data.patch_set import ClassIndex
from featkit.data.samplers import (
    AdaSampler,
    GroupSampler,
    PairSampler,
    Sampler,
    choose_positives,
    distance_weights,
    distances_from_anchor,
    usable_classes,
)
from featkit.training.run_folder import picklable

SIZES = [2, 3, 2, 5, 2, 4, 9, 2, 2, 3, 2]


def classes_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Labels of patches of classes with these sizes, shuffled."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 7, sizes))


def generator(seed: int = 3) -> np.random.Generator:
    return np.random.default_rng(seed)


def index_of(sizes: list[int]) -> tuple[np.ndarray, ClassIndex]:
    labels = classes_of(sizes)
    return labels, usable_classes(labels)


def test_a_pair_is_two_distinct_patches_of_one_class_and_no_class_comes_twice() -> None:
    labels, index = index_of(SIZES)
    sampler = PairSampler(index, 7, generator())
    for _ in range(200):
        pairs = sampler.draw().patches.reshape(-1, 2)
        assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert len(set(labels[pairs[:, 0]])) == 7


@pytest.mark.parametrize("batch", [1, 4, 7, 11])
def test_every_class_has_its_turn_once_per_pass(batch: int) -> None:
    labels, index = index_of(SIZES)
    sampler = PairSampler(index, batch, generator())
    drawn = np.concatenate([labels[sampler.draw().patches[::2]] for _ in range(len(SIZES) * 6)])
    for start in range(0, len(drawn) - len(SIZES) + 1, len(SIZES)):
        assert len(set(drawn[start : start + len(SIZES)])) == len(SIZES)
    passes = drawn.reshape(-1, len(SIZES))
    assert len({tuple(one) for one in passes[:6]}) > 3, "the passes are shuffled"


def of_images(labels: np.ndarray, images: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, images, len(labels))


def test_a_share_of_the_batch_is_of_one_image() -> None:
    labels, index = index_of([4] * 200)
    images = of_images(labels, 3)
    sampler = PairSampler(index, 60, generator(), 0.25, images)
    starts = set()
    for _ in range(100):
        pairs = sampler.draw().patches.reshape(-1, 2)
        assert (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert len(set(labels[pairs[:, 0]])) == 60
        assert len(set(images[pairs[:15, 0]])) == 1
        assert len(set(images[pairs[:15, 1]])) > 1
        starts.add(int(images[pairs[0, 0]]))
    assert starts == {0, 1, 2}
    few = PairSampler(index, 60, generator(), 0.25, of_images(labels, 100))  # some 8 classes an image
    counts = [len(set(of_images(labels, 100)[few.draw().patches[:30:2]])) for _ in range(20)]
    assert min(counts) >= 2
    assert max(counts) <= 6, "whole images, not patches of all"


def test_every_class_still_has_its_turn_once_per_pass() -> None:
    labels, index = index_of([3] * 90)
    sampler = PairSampler(index, 20, generator(), 0.25, of_images(labels, 4))
    drawn = [set(labels[sampler.draw().patches]) for _ in range(60)]
    for first in range(47):
        seen = set().union(*drawn[first : first + 13])  # more than two passes of 90 / 15 batches
        assert len(seen) == 90


def test_without_known_images_batches_are_the_plain_ones() -> None:
    labels, index = index_of(SIZES)
    plain = PairSampler(index, 7, generator())
    for images in (None, np.full(len(labels), -1)):
        sampler = PairSampler(index, 7, generator(), 0.5, images)
        plain = PairSampler(index, 7, generator())
        for _ in range(5):
            np.testing.assert_array_equal(sampler.draw().patches, plain.draw().patches)


def test_second_patches_of_one_image_pairs_are_uniform() -> None:
    """A class of four, one of them in the image: each other one is drawn as often."""
    index = usable_classes(np.zeros(4, int))
    sampler = PairSampler(index, 1, generator(), 1.0, np.array([5, -1, -1, -1]))
    pairs = np.array([sampler.draw().patches for _ in range(3000)])
    assert (pairs[:, 0] == 0).all()
    assert np.abs(np.bincount(pairs[:, 1], minlength=4) - [0, 1000, 1000, 1000]).max() < 110


def test_all_ordered_pairs_of_a_class_are_equally_likely() -> None:
    _, index = index_of([4])
    sampler = PairSampler(index, 1, generator())
    draws = 6000
    counts = dict.fromkeys(itertools.permutations(range(4), 2), 0)
    for _ in range(draws):
        counts[tuple(sampler.draw().patches.tolist())] += 1
    expected = draws / len(counts)
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 31.3  # 11 degrees of freedom, 0.1 %


def test_a_batch_larger_than_the_classes_is_refused() -> None:
    _, index = index_of(SIZES)
    with pytest.raises(UsageError, match=r"batch of 12 pairs .* there are only 11; use at most 11"):
        PairSampler(index, 12, generator())
    with pytest.raises(UsageError, match="12"):
        AdaSampler(index, 12, 15, 15, generator())
    with pytest.raises(UsageError, match="more than all groups have"):
        GroupSampler(index, 37, generator(), 16)


def test_classes_too_small_to_train_with_are_refused() -> None:
    assert len(usable_classes(np.array([1, 1, 2, 3, 3, 3]))) == 2
    with pytest.raises(BadInputError, match="no class has 2 patches"):
        usable_classes(np.array([1, 2, 3]))
    with pytest.raises(BadInputError, match="empty"):
        usable_classes(np.zeros(0, np.int64))


def test_groups_are_whole_and_fill_the_batch() -> None:
    labels, index = index_of(SIZES * 5)
    sizes = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    sampler = GroupSampler(index, 40, generator(), 6)
    for _ in range(100):
        patches = sampler.draw().patches
        assert 40 - 6 < len(patches) <= 40
        assert len(set(patches)) == len(patches)
        found, counts = np.unique(labels[patches], return_counts=True)
        assert [min(6, sizes[label]) for label in found] == counts.tolist()


def test_groups_have_their_turn_once_per_pass() -> None:
    labels, index = index_of(SIZES * 5)
    sampler = GroupSampler(index, 40, generator(), 6)
    order: list[int] = []
    while len(order) < 3 * len(index):
        plan = sampler.draw()
        order += [label for label, _ in itertools.groupby(labels[plan.patches].tolist())]
    assert all(len(set(order[i * 55 : (i + 1) * 55])) == 55 for i in range(3))


def test_every_group_leads_a_batch_once_per_pass_and_others_fill_it_at_random() -> None:
    labels, index = index_of([3] * 20)
    sampler = GroupSampler(index, 12, generator(), 16, fill_at_random=True)
    plans = [sampler.draw() for _ in range(40)]
    groups = [[label for label, _ in itertools.groupby(labels[plan.patches].tolist())] for plan in plans]
    assert all(len(set(one)) == len(one) == 4 for one in groups)
    assert len({one[0] for one in groups[:20]}) == len({one[0] for one in groups[20:]}) == 20
    counts = np.bincount([label // 7 for one in groups for label in one[1:]], minlength=20)
    assert counts.min() > 0
    assert counts.max() > counts.min(), "at random, not in turn"


def test_two_scenes_share_a_batch_by_halves() -> None:
    labels, index = index_of([3] * 60)
    class_scenes = np.arange(60) % 3
    sampler = GroupSampler(index, 24, generator(), 16, class_scenes)
    seen = set()
    for _ in range(60):
        scenes, counts = np.unique((labels[sampler.draw().patches] // 7) % 3, return_counts=True)
        assert counts.tolist() == [12, 12]
        seen.add(tuple(scenes))
    assert len(seen) == 3
    with pytest.raises(UsageError, match="two_scenes"):
        GroupSampler(index, 24, generator(), 16, np.zeros(60, int))


def test_classes_are_filled_with_copies_of_their_own_patches() -> None:
    labels, index = index_of(SIZES)
    sampler = AdaSampler(index, 11, 6, 6, generator())
    for _ in range(50):
        plan = sampler.draw()
        rows, filled = plan.patches.reshape(11, 6), plan.filled.reshape(11, 6)
        for row, copies in zip(rows, filled, strict=True):
            label = labels[row[0]]
            size = int((labels == label).sum())
            assert set(labels[row]) == {label}
            originals = row[~copies]
            assert len(set(originals)) == len(originals)
            assert len(originals) == size if size <= 6 else len(originals) == 6
            # copies are dealt out evenly: no patch is copied twice before all are copied once
            times = np.unique(row, return_counts=True)[1]
            assert times.max() - times.min() <= 1
    with pytest.raises(UsageError, match="candidates"):
        AdaSampler(index, 4, 6, 7, generator())


def test_the_anchor_of_adasample_is_any_patch_of_the_filled_class() -> None:
    _, index = index_of([3])
    sampler = AdaSampler(index, 1, 5, 4, generator())
    first = [sampler.draw() for _ in range(3000)]
    share_filled = np.mean([plan.filled[0] for plan in first])
    assert abs(share_filled - 2 / 5) < 0.04


@pytest.mark.parametrize("kind", ["pairs", "one image", "groups", "scenes", "adasample"])
def test_a_restored_sampler_draws_the_same_batches(kind: str) -> None:
    labels, index = index_of(SIZES * 3)

    def make() -> Sampler:
        if kind == "one image":
            return PairSampler(index, 9, generator(), 0.4, of_images(labels, 6))
        if kind == "pairs":
            return PairSampler(index, 9, generator())
        if kind == "adasample":
            return AdaSampler(index, 9, 8, 5, generator())
        scenes = np.arange(len(index)) % 3 if kind == "scenes" else None
        return GroupSampler(index, 16, generator(), 5, scenes)

    whole = make()
    for _ in range(5):
        whole.draw()
    again = make()
    again.restore(picklable(whole.state()))  # as a checkpoint gives it back
    for _ in range(20):
        one, other = whole.draw(), again.draw()
        assert (one.patches == other.patches).all()
        assert (one.chance == other.chance).all()
        assert (one.filled == other.filled).all()


def distances_of(n: int, candidates: int) -> torch.Tensor:
    return torch.rand((n, candidates), generator=torch.Generator().manual_seed(0)) + 0.05


def test_strength_zero_is_exactly_random_sampling() -> None:
    distances = distances_of(4000, 5)
    chance = torch.rand(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = choose_positives(distances, 0.0, chance)
    assert torch.equal(chosen, (chance * 5).long())
    assert torch.equal(chosen, choose_positives(distances.flip(1), 0.0, chance)), "distances play no part"
    assert distance_weights(distances[:, 0], 0.0, 0.01) is None


def test_infinite_strength_takes_the_most_distant() -> None:
    distances = distances_of(500, 7)
    chance = torch.rand(500, dtype=torch.float64)
    assert torch.equal(choose_positives(distances, math.inf, chance), distances.argmax(1))
    assert (choose_positives(distances, 1e6, chance) == distances.argmax(1)).float().mean() > 0.99


def test_positives_are_drawn_in_proportion_to_a_power_of_the_distance() -> None:
    """Eq. 13 against the plain formula, over a fine grid of chances."""
    distance = torch.tensor([0.2, 0.9, 0.5, 1.3])
    chance = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    chosen = choose_positives(distance.expand(20_000, 4), 2.5, chance)
    share = torch.bincount(chosen, minlength=4) / 20_000
    expected = distance**2.5 / (distance**2.5).sum()
    assert torch.allclose(share, expected, atol=1e-4)


def test_weights_are_inverse_distances() -> None:
    weights = distance_weights(torch.tensor([0.5, 1.0, 0.001]), 10.0, 0.1)
    assert weights is not None
    assert torch.allclose(weights, torch.tensor([2.0, 1.0, 10.0]))


def test_equal_candidates_are_still_chosen_among() -> None:
    chosen = choose_positives(torch.zeros(100, 4), 10.0, torch.linspace(0, 0.999, 100, dtype=torch.float64))
    assert set(chosen.tolist()) == {0, 1, 2, 3}


def test_distances_are_those_of_the_anchor() -> None:
    turn = torch.tensor([0.0, 0.3, 2.0, 3.1])
    rows = torch.stack([turn.cos(), turn.sin()], 1)[None]
    assert torch.allclose(distances_from_anchor(rows, "angular"), turn[None, 1:], atol=1e-3)
    assert torch.allclose(distances_from_anchor(rows, "euclidean"), 2 * (turn[None, 1:] / 2).sin(), atol=1e-6)
