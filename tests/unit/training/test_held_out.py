"""The held-out part: whole scenes or classes, never trained with, measured by matching."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from textures import textured_patches

from featkit.core.errors import BadInputError, UsageError
from featkit.data.patch_set import ClassIndex, PatchSet, union
from featkit.data.samplers import usable_classes
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.training.patch import ValidationPairs, held_out_scores, split_classes, validation_pairs
from featkit.training.patch_config import HeldOut


def members(index: ClassIndex) -> set[int]:
    return {int(p) for s, c in zip(index.starts, index.counts, strict=True) for p in index.members[s : s + c]}


def split(data: PatchSet, config: HeldOut, seed: int = 0) -> tuple[ClassIndex, ClassIndex]:
    return split_classes(data, usable_classes(data.classes), config, seed)


def with_images(data: PatchSet) -> PatchSet:
    """View v of every class of a scene is in the scene's image v."""
    view = np.arange(len(data)) % 3
    return replace(data, images=data.scenes * 3 + view)


def test_classes_are_on_one_side_and_the_seed_decides(textures: PatchSet) -> None:
    """Both scenes are larger than the share: classes of both are left out."""
    train, out = split(textures, HeldOut(share=0.2), 3)
    assert len(out) == 30
    assert len(train) == 120
    assert members(train) & members(out) == set()
    assert members(train) | members(out) == set(range(len(textures)))
    assert members(split(textures, HeldOut(share=0.2), 3)[1]) == members(out)
    assert members(split(textures, HeldOut(share=0.2), 4)[1]) != members(out)
    with pytest.raises(BadInputError, match="too few"):
        split(textured_patches(3), HeldOut())


def test_whole_scenes_are_left_out_where_they_fit() -> None:
    data = textured_patches(100, scenes=20)
    train, out = split(data, HeldOut(share=0.16))
    scenes = [set(data.scenes[sorted(members(side))]) for side in (train, out)]
    assert not scenes[0] & scenes[1]
    assert len(scenes[1]) == 3
    other = split(data, HeldOut(share=0.16), 1)[1]
    assert set(data.scenes[sorted(members(other))]) != scenes[1]


def test_a_scene_of_several_sets_is_one_scene_and_scenes_without_pairs_of_images_are_passed_over() -> None:
    first = with_images(textured_patches(120, scenes=6))
    both = union([first, with_images(textured_patches(120, seed=1, scenes=6))])
    config = HeldOut(share=0.2, min_shared=20)
    out = sorted(members(split(both, config)[1]))
    names = [both.scene_names[scene] for scene in both.scenes[out]]
    assert len(set(names)) == 1
    assert len(set(both.scenes[out])) == 2
    assert len(out) == 2 * 20 * 3
    lone = replace(first, images=np.where(first.scenes == 4, first.images, np.arange(len(first)) + 100))
    out = sorted(members(split(lone, config)[1]))
    assert set(lone.scenes[out]) == {4}, "only its images share 20 classes"


def test_named_scenes_are_left_out(textures: PatchSet) -> None:
    train, out = split(textures, HeldOut(scenes=("scene1",)))
    assert set(textures.scenes[sorted(members(out))]) == {1}
    assert set(textures.scenes[sorted(members(train))]) == {0}
    with pytest.raises(UsageError, match=r"held_out\.scenes: no scene 'scene7' in the data; it has scene0, scene1"):
        split(textures, HeldOut(scenes=("scene7",)))
    with pytest.raises(BadInputError, match="too few"):
        split(textures, HeldOut(scenes=("scene0", "scene1")))


def labels_of(data: PatchSet, pairs: ValidationPairs, what: np.ndarray) -> np.ndarray:
    where = {pixels.tobytes(): number for number, pixels in enumerate(data.patches)}  # type: ignore[call-overload]
    return what[[where[pixels.tobytes()] for pixels in pairs.pixels]]


def check_pairs(data: PatchSet, pairs: ValidationPairs, held_out: ClassIndex) -> None:
    count = len(pairs.others)
    classes, scenes = labels_of(data, pairs, data.classes), labels_of(data, pairs, data.scenes)
    assert len(pairs.pixels) == 2 * count
    assert set(classes) <= set(data.classes[sorted(members(held_out))])
    np.testing.assert_array_equal(classes[:count], classes[count:])
    assert (classes[:count] != classes[pairs.others]).all()
    np.testing.assert_array_equal(scenes[:count], scenes[pairs.others])
    for start, end in zip([0, *pairs.ends[:-1]], pairs.ends, strict=True):
        assert len(set(classes[start:end])) == end - start >= 2, "no class twice in a pair of images"


def test_pairs_of_images_that_share_points_are_matched() -> None:
    data = with_images(textured_patches(120))
    _, out = split(data, HeldOut(scenes=("scene0",)))
    pairs = validation_pairs(data, out, HeldOut(min_shared=50, max_shared=40, pairs=100), 0)
    check_pairs(data, pairs, out)
    assert pairs.ends.tolist() == [40, 80, 100]
    assert data.images is not None
    images = labels_of(data, pairs, data.images)
    for start, end in ((0, 40), (40, 80), (80, 100)):
        assert len(set(images[start:end])) == len(set(images[100 + start : 100 + end])) == 1
    assert len({(images[0], images[100]), (images[40], images[140]), (images[80], images[180])}) == 3


def test_without_pairs_of_images_classes_of_a_scene_are_put_together(textures: PatchSet) -> None:
    _, out = split(textures, HeldOut(share=0.2))
    pairs = validation_pairs(textures, out, HeldOut(max_shared=10), 0)
    check_pairs(textures, pairs, out)
    assert pairs.ends[-1] == len(out) == 30
    assert np.diff(pairs.ends).max() <= 10
    few = validation_pairs(with_images(textures), out, HeldOut(min_shared=50, pairs=12), 0)
    check_pairs(textures, few, out)
    assert few.ends[-1] == 12


@pytest.mark.parametrize("bits", [0, 32])
def test_scores_are_measured_with_the_network_as_it_is_used(textures: PatchSet, bits: int) -> None:
    """Against a slow reference: running statistics, no dropout, Hamming distances of bits."""
    network = PatchNetwork(PatchNetworkConfig(bits=bits), torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand((16, 1, 32, 32)))
    _, out = split(textures, HeldOut(share=0.2))
    pairs = validation_pairs(textures, out, HeldOut(), 0)
    noise = np.random.default_rng(0).normal(0, 60, pairs.pixels.shape)  # textures alone are matched without an error
    pairs = replace(pairs, pixels=(pairs.pixels + noise).clip(0, 255).astype(np.uint8))
    found = held_out_scores(network, pairs, torch.device("cpu"))
    assert network.training
    network.eval()
    small = torch.from_numpy(pairs.pixels).float().reshape(-1, 1, 32, 2, 32, 2).mean((3, 5)) / 255
    described = network(small).descriptor.detach().double()
    described = (described > 0).double() if bits else described
    first, second = described.chunk(2)
    near, far = (first - second).norm(dim=1), (first - described[pairs.others]).norm(dim=1)
    limit = near.sort().values[int(np.ceil(0.95 * len(near))) - 1]
    assert found.fpr95 == pytest.approx(float((far <= limit + 1e-9).double().mean()), abs=0.04)
    aps = [slow_matching_ap(first[a:b], second[a:b]) for a, b in zip([0, *pairs.ends[:-1]], pairs.ends, strict=True)]
    assert 0.02 < found.matching_error < 0.98
    assert found.matching_error == pytest.approx(1 - np.mean(aps), abs=0.08 if bits else 0.02)


def slow_matching_ap(first: torch.Tensor, second: torch.Tensor) -> float:
    """HPatches' matching: one by one, precision and recall after every match, trapezoids between them."""
    distances = (first[:, None] - second[None]).norm(dim=2)
    matches = sorted((float(row.min()), int(row.argmin()) == number) for number, row in enumerate(distances))
    area, correct, recall, precision = 0.0, 0, 0.0, 1.0
    for rank, (_, right) in enumerate(matches, 1):
        correct += right
        area += (correct / len(first) - recall) * (correct / rank + precision) / 2
        recall, precision = correct / len(first), correct / rank
    return area


def test_textures_can_be_told_apart() -> None:
    """The synthetic patches are what they are taken for: views of one texture are alike, others are not."""
    data = textured_patches(20, seed=2)
    rows = data.patches.reshape(60, -1).astype(float)
    rows = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)
    likeness = rows @ rows.T / rows.shape[1]
    same = data.classes[:, None] == data.classes[None, :]
    assert np.median(likeness[same]) > 0.7 > 0.4 > np.median(likeness[~same])
