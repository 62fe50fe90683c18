"""What runs on a CPU instead of kornia's networks gives their results, at any size and with any limit."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published_weights import untrained
from torch import Tensor

from featkit.features.published_cpu import CpuAliked, CpuDisk, DeformableConv, UnitMap, sample_bilinear, strict_maxima

feature = pytest.importorskip("kornia.feature")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(height: int, width: int) -> Tensor:
    small = torch.rand((1, 3, height // 3 + 1, width // 3 + 1), generator=torch.Generator().manual_seed(1))
    return F.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1)


def network(kind: Any, name: str, **options: Any) -> Any:
    made = kind(name, **options) if name.startswith("aliked") else kind(**options)
    made.load_state_dict(untrained(name), strict=False)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_strict_maxima(radius: int) -> None:
    """Against every window by itself, with plateaus."""
    scores = (3 * draw(23, 31)).round()
    scores[5, 5], scores[10:12, 20] = 50, 60
    expected = torch.zeros(23, 31, dtype=torch.bool)
    for y in range(radius, 23 - radius):
        for x in range(radius, 31 - radius):
            window = scores[y - radius : y + radius + 1, x - radius : x + radius + 1]
            expected[y, x] = (window >= scores[y, x]).sum() == 1
    assert torch.equal(strict_maxima(scores, radius), expected)
    assert expected[5, 5]
    assert not expected[10:12, 20].any()
    assert not strict_maxima(torch.ones(3, 2 * radius), radius).any()


def test_sampling_is_bilinear_and_zero_beyond() -> None:
    rows, points = draw(9, 12, 5), 8 * draw(300, 2, seed=1) + 4
    grid = 2 * points / torch.tensor([11, 8]) - 1
    expected = F.grid_sample(rows.permute(2, 0, 1)[None], grid[None, None], align_corners=True)[0, :, 0].T
    torch.testing.assert_close(sample_bilinear(rows, points), expected, rtol=0, atol=1e-5)
    assert (expected == 0).all(dim=1).any(), "points beyond"


def test_rows_of_the_unit_map() -> None:
    """Of the whole map, enlarged, joined and normalised as kornia does it."""
    levels = [draw(1, 8, 64 // step, 96 // step, seed=step) for step in (1, 2, 8, 32)]
    whole = torch.cat([F.interpolate(x, size=(64, 96), mode="bilinear", align_corners=True) for x in levels], dim=1)
    expected = F.normalize(whole, dim=1)[0, :, 5:61, 7:90].permute(1, 2, 0)
    last = [level.contiguous(memory_format=torch.channels_last) for level in levels]
    x, y = torch.arange(83).repeat(56)[:, None], torch.arange(56).repeat_interleave(83)[:, None]
    found = UnitMap(last, (5, 7, 56, 83)).at(x, y, torch.ones(x.shape)).view(56, 83, 32)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_deformable_convolution() -> None:
    block = network(feature.ALIKED, "aliked-t16").block3
    with torch.no_grad():
        block.conv1.offset_conv.bias.copy_(2 * draw(18))  # taps that lie anywhere, beyond the map too
    maps = draw(1, 16, 14, 19).contiguous(memory_format=torch.channels_last)
    expected = block.bn1(block.conv1(maps))
    torch.testing.assert_close(DeformableConv(block.conv1, block.bn1)(maps), expected, rtol=1e-4, atol=1e-4)


def matched(found: Tensor, expected: Tensor) -> Tensor:
    """For each expected keypoint the found one: the same set, whatever the order of equal scores."""
    assert len(found) == len(expected)
    distances = torch.cdist(expected, found, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distances.min(1).values < 1e-3).all()
    return distances.argmin(1)


@pytest.mark.parametrize("size", [(96, 128), (33, 70), (77, 32), (101, 131)])
@pytest.mark.parametrize("limits", [(200, 0.0, 2), (10_000, 0.0, 3), (50, 0.999, 2), (40, 0.3, 1)])
@torch.inference_mode()
def test_aliked(size: tuple[int, int], limits: tuple[int, float, int]) -> None:
    count, threshold, radius = limits
    theirs = network(
        feature.ALIKED, "aliked-t16", max_num_keypoints=count, detection_threshold=threshold, nms_radius=radius
    )
    (expected,) = theirs(image(*size))
    points, descriptors, scores = CpuAliked(theirs)(image(*size))
    order = matched(points, expected.keypoints)
    assert 0 < len(points) <= count
    torch.testing.assert_close(scores[order], expected.keypoint_scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(descriptors[order], expected.descriptors, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(96, 128), (33, 70), (64, 47)])
@pytest.mark.parametrize("limits", [(10_000, 1, -100.0), (60, 2, 0.0)])
@torch.inference_mode()
def test_disk(size: tuple[int, int], limits: tuple[int, int, float]) -> None:
    """With a radius of 1 px descriptors see beyond the image."""
    count, radius, threshold = limits
    theirs = network(feature.DISK, "disk")
    (expected,) = theirs(
        image(*size), n=count, window_size=2 * radius + 1, score_threshold=threshold, pad_if_not_divisible=True
    )
    points, descriptors, scores = CpuDisk(theirs)(image(*size), count, radius, threshold)
    assert 0 < len(points) <= count
    assert points.tolist() == expected.keypoints.tolist()
    torch.testing.assert_close(scores, expected.detection_scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(descriptors, expected.descriptors, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_nothing_to_find() -> None:
    """No maximum at all."""
    flat = torch.full((1, 3, 64, 64), 0.5)
    aliked = network(feature.ALIKED, "aliked-t16", max_num_keypoints=10, detection_threshold=0.0)
    for network_ in (aliked.block1, aliked.block2, aliked.block3, aliked.block4):
        for parameter in network_.parameters():
            parameter.zero_()
    points, descriptors, scores = CpuAliked(aliked)(flat)
    assert (points.shape, descriptors.shape, scores.shape) == ((0, 2), (0, 64), (0,))
    points, descriptors, scores = CpuDisk(network(feature.DISK, "disk"))(image(64, 64), 10, 2, 1e9)
    assert (points.shape, descriptors.shape, scores.shape) == ((0, 2), (0, 128), (0,))
    assert np.asarray(descriptors).dtype == np.float32
