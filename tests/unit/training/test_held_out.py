"""The held-out part: whole classes, never trained with, measured by FPR95."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from textures import textured_patches

from featkit.data.patch_set import PatchSet
from featkit.data.samplers import usable_classes
from featkit.errors import BadInputError
from featkit.models.patch_network import PatchNetwork, PatchNetworkConfig
from featkit.training.held_out import held_out_fpr95, held_out_pairs, split_classes
from featkit.training.patch_config import HeldOut


def members(index: object) -> set[int]:
    return {int(p) for s, c in zip(index.starts, index.counts, strict=True) for p in index.members[s : s + c]}  # type: ignore[attr-defined]


def test_classes_are_on_one_side_and_the_seed_decides(textures: PatchSet) -> None:
    index = usable_classes(textures.classes)
    train, out = split_classes(index, HeldOut(share=0.2), 3)
    assert len(out) == 30
    assert len(train) == 120
    assert members(train) & members(out) == set()
    assert members(train) | members(out) == set(range(len(textures)))
    assert members(split_classes(index, HeldOut(share=0.2), 3)[1]) == members(out)
    assert members(split_classes(index, HeldOut(share=0.2), 4)[1]) != members(out)
    with pytest.raises(BadInputError, match="too few"):
        split_classes(usable_classes(np.repeat(np.arange(3), 2)), HeldOut(), 0)


def test_pairs_match_or_not_as_they_say(textures: PatchSet) -> None:
    _, out = split_classes(usable_classes(textures.classes), HeldOut(share=0.2), 0)
    pairs = held_out_pairs(textures.patches, out, HeldOut(share=0.2, pairs=25), 0)
    assert len(pairs.match) == 50
    assert pairs.match.sum() == 25
    where = {pixels.tobytes(): number for number, pixels in enumerate(textures.patches)}
    labels = textures.classes[[where[pixels.tobytes()] for pixels in pairs.pixels]]
    assert ((labels[pairs.index0] == labels[pairs.index1]) == pairs.match).all()
    assert (pairs.index0 != pairs.index1).all()


@pytest.mark.parametrize("bits", [0, 32])
def test_fpr95_is_measured_with_the_network_as_it_is_used(textures: PatchSet, bits: int) -> None:
    """Against a slow reference: running statistics, no dropout, Hamming distances of bits."""
    network = PatchNetwork(PatchNetworkConfig(bits=bits), torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand((16, 1, 32, 32)))
    _, out = split_classes(usable_classes(textures.classes), HeldOut(share=0.2), 0)
    pairs = held_out_pairs(textures.patches, out, HeldOut(share=0.2), 0)
    found = held_out_fpr95(network, pairs, torch.device("cpu"))
    assert network.training
    network.eval()
    small = torch.from_numpy(pairs.pixels).float().reshape(-1, 1, 32, 2, 32, 2).mean((3, 5)) / 255
    described = network(small).descriptor.detach().double()
    described = (described > 0).double() if bits else described
    distances = (described[pairs.index0] - described[pairs.index1]).norm(dim=1)
    limit = distances[: len(distances) // 2].sort().values[int(np.ceil(0.95 * len(distances) / 2)) - 1]
    assert found == pytest.approx(float((distances[len(distances) // 2 :] <= limit + 1e-9).double().mean()), abs=0.04)


def test_textures_can_be_told_apart() -> None:
    """The synthetic patches are what they are taken for: views of one texture are alike, others are not."""
    data = textured_patches(20, seed=2)
    rows = data.patches.reshape(60, -1).astype(float)
    rows = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)
    likeness = rows @ rows.T / rows.shape[1]
    same = data.classes[:, None] == data.classes[None, :]
    assert np.median(likeness[same]) > 0.7 > 0.4 > np.median(likeness[~same])
