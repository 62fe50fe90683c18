"""Batches on the device: the same ones however they are read, and in spite of reading ahead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featkit.data.augment import AugmentConfig
from featkit.data.patch_set import PatchSet
from featkit.data.samplers import BatchPlan, PairSampler, usable_classes
from featkit.training.patch_feed import Draw, PatchFeed, fits
from featkit.training.run_folder import picklable

CPU = torch.device("cpu")


def draw_of(data: PatchSet) -> Draw:
    sampler = PairSampler(usable_classes(data.classes), 12, np.random.default_rng(0))
    return Draw(sampler, AugmentConfig(rotation_deg=5, quarter_turns=0.75), np.random.default_rng(1))


def feed_of(data: PatchSet, where: str) -> PatchFeed:
    return PatchFeed(data.patches, draw_of(data), CPU, lambda plan: slice(0, len(plan.patches)), where)


def test_patches_on_the_device_and_read_ahead_are_the_same(textures: PatchSet) -> None:
    near, far = feed_of(textures, "device"), feed_of(textures, "host")
    assert near.on_device
    assert not far.on_device
    for _ in range(8):
        one, other = near.next(), far.next()
        assert torch.equal(one.pixels, other.pixels)
        assert np.array_equal(one.transforms, other.transforms)
        assert np.array_equal(one.pixels.numpy(), textures.patches[one.plan.patches])
    far.close()
    assert far.waited_s > 0


@pytest.mark.parametrize("where", ["device", "host"])
def test_a_state_is_that_of_the_batch_handed_out(textures: PatchSet, where: str) -> None:
    """Reading ahead has drawn more batches by then; they are drawn again."""
    whole = feed_of(textures, where)
    for _ in range(4):
        whole.next()
    again = feed_of(textures, where)
    again.restore(picklable(whole.state()))
    for _ in range(4):
        one, other = whole.next(), again.next()
        assert torch.equal(one.pixels, other.pixels)
        assert np.array_equal(one.transforms, other.transforms)
    whole.close()
    again.close()


def test_a_process_reads_its_own_part(textures: PatchSet) -> None:
    def second_half(plan: BatchPlan) -> slice:
        return slice(len(plan.patches) // 2, None)

    part = PatchFeed(textures.patches, draw_of(textures), CPU, second_half, "device")
    assert torch.equal(part.next().pixels, feed_of(textures, "device").next().pixels[12:])


def test_what_goes_wrong_while_reading_ahead_is_raised_where_the_batch_is_asked_for(textures: PatchSet) -> None:
    class Broken:
        shape = textures.patches.shape

        def __len__(self) -> int:
            return len(textures)

        def __getitem__(self, index: np.ndarray) -> np.ndarray:
            raise OSError("the disk is gone")

    feed = PatchFeed(Broken(), draw_of(textures), CPU, lambda plan: slice(None), "host")
    with pytest.raises(OSError, match="the disk is gone"):
        feed.next()
    feed.close()


def test_patches_go_to_the_device_when_they_fit(textures: PatchSet) -> None:
    class Huge:
        shape = (10**10, 64, 64)

        def __len__(self) -> int:
            return 10**10

        def __getitem__(self, index: np.ndarray) -> np.ndarray:
            raise AssertionError

    assert fits(textures.patches, CPU)
    assert not fits(Huge(), CPU)
