"""Patches lie where the convention says, equal kornia's, and do not depend on the other keypoints."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from featkit.images.patches import KeypointPatches, PatchPyramid, cut_patches, halved

Keypoints = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def texture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(1, 1, height + 4, width + 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1)[0, 0]
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def keypoints(n: int, height: int, width: int, seed: int = 0) -> Keypoints:
    """Some of them reach over the border; sides from 8 to 700 px."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.rand(n, 2, generator=draw) * torch.tensor([width - 1.0, height - 1.0])
    return (
        centres,
        8 * torch.exp(torch.rand(n, generator=draw) * 4.5),
        (torch.rand(n, generator=draw) * 2 - 1) * math.pi,
    )


@pytest.mark.parametrize("out_px", [32, 42, 64])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (241, 333), (333, 200), (20, 50), (1, 9)])
def test_against_kornia(height: int, width: int, out_px: int) -> None:
    kornia = pytest.importorskip("kornia.feature")
    image, (centres, sides, oris) = texture(height, width), keypoints(300, height, width)
    lafs = kornia.laf_from_center_scale_ori(
        centres[None], (sides / 2).view(1, -1, 1, 1), -torch.rad2deg(oris).view(1, -1, 1)
    )
    expected = kornia.extract_patches_from_pyramid(image[None, None], lafs, out_px)[0, :, 0]
    found = cut_patches(image, centres, sides, oris, out_px)
    assert (found - expected).abs().max() < 1e-3
    assert found.std() > 0.05


def test_a_patch_of_its_own_size_is_a_crop() -> None:
    """Side 32 px at 32 px, upright: sample (i, j) is the pixel at centre + (j - 15.5, i - 15.5)."""
    image = texture(90, 120)
    found = cut_patches(image, torch.tensor([[50.5, 40.5]]), torch.tensor([32.0]), torch.tensor([0.0]), 32)[0]
    assert (found - image[25:57, 35:67]).abs().max() < 1e-5


def test_the_orientation_becomes_the_x_axis() -> None:
    """A ramp that rises along the keypoint's orientation (from +x towards +y) rises along the patch's columns."""
    angle = 0.7
    y, x = torch.meshgrid(torch.arange(100.0), torch.arange(100.0), indexing="ij")
    image = (x * math.cos(angle) + y * math.sin(angle)) / 150
    found = cut_patches(image, torch.tensor([[50.0, 48.0]]), torch.tensor([32.0]), torch.tensor([angle]), 32)[0]
    assert torch.allclose(found.diff(dim=1), torch.full((32, 31), 1 / 150), atol=1e-5)
    assert found.diff(dim=0).abs().max() < 1e-5


def test_a_quarter_turn_turns_the_patch() -> None:
    image, centre, side = texture(90, 90), torch.tensor([[44.0, 45.0]]), torch.tensor([40.0])
    upright, turned = (cut_patches(image, centre, side, torch.tensor([ori]), 32)[0] for ori in (0.0, math.pi / 2))
    assert (turned - torch.rot90(upright, 1)).abs().max() < 1e-4


def test_a_large_patch_is_smoothed_not_skipped() -> None:
    """One-pixel stripes seen from afar are grey."""
    image = (torch.arange(512) % 2).float().expand(512, 512)
    found = cut_patches(image, torch.tensor([[256.0, 256.0]]), torch.tensor([256.0]), torch.tensor([0.3]), 32)
    assert (found - 0.5).abs().max() < 0.01


def test_outside_the_image_the_border_goes_on() -> None:
    image = texture(60, 60)
    found = cut_patches(image, torch.tensor([[-200.0, 30.0]]), torch.tensor([32.0]), torch.tensor([0.0]), 32)[0]
    assert (found - image[:, :1][14:46].lerp(image[:, :1][15:47], 0.5)).abs().max() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97), (3, 5)])
def test_a_level_against_a_plain_sum(height: int, width: int) -> None:
    """Binomial blur with mirrored borders, then bilinear at the places (k + 0.5) * size / new size - 0.5."""
    image = texture(height, width).double().numpy()
    padded = np.pad(image, 2, mode="reflect")
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    blurred = sum(kernel[i, j] * padded[i : i + height, j : j + width] for i in range(5) for j in range(5))
    for axis, size in ((0, height), (1, width)):
        at = (np.arange(size // 2) + 0.5) * size / (size // 2) - 0.5
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, size - 1), np.expand_dims(at - low, 1 - axis)
        blurred = blurred.take(low, axis) * (1 - share) + blurred.take(high, axis) * share
    assert np.abs(halved(texture(height, width)).numpy() - blurred).max() < 1e-5


def test_bytes_are_shares_of_255() -> None:
    image, found = (texture(80, 90) * 255).to(torch.uint8), keypoints(20, 80, 90)
    assert torch.equal(cut_patches(image, *found, 32), cut_patches(image.float() / 255, *found, 32))


def test_the_other_keypoints_do_not_matter() -> None:
    image, (centres, sides, oris) = texture(300, 400), keypoints(600, 300, 400)
    together = cut_patches(image, centres, sides, oris, 32)
    pyramid = PatchPyramid(image)
    for i in (0, 17, 599):
        alone = pyramid.cut(centres[i : i + 1], sides[i : i + 1], oris[i : i + 1], 32)[0]
        assert (alone - together[i]).abs().max() < 1e-6


def test_patches_are_cut_as_they_are_indexed_by_any_thread() -> None:
    image, found = texture(300, 400), keypoints(300, 300, 400)
    patches = KeypointPatches(PatchPyramid(image), *found, 32)
    assert patches.shape == (300, 32, 32)
    index = [np.arange(start, 300, 7) for start in range(7)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(patches.__getitem__, index))
    whole = cut_patches(image, *found, 32)
    for chosen, part in zip(index, parts, strict=True):
        assert (part - whole[chosen]).abs().max() < 1e-6


@pytest.mark.parametrize("broken", range(4))
def test_a_keypoint_that_is_not_finite_gives_zeros(broken: int) -> None:
    image, (centres, sides, oris) = texture(100, 100), keypoints(3, 100, 100)
    whole = cut_patches(image, centres, sides, oris, 32)
    (centres[:, 0], centres[:, 1], sides, oris)[broken][1] = float("nan")
    found = cut_patches(image, centres, sides, oris, 32)
    assert (found[1] == 0).all()
    assert torch.equal(found[[0, 2]], whole[[0, 2]])


def test_no_keypoints() -> None:
    nothing = torch.zeros(0)
    assert cut_patches(texture(50, 50), torch.zeros(0, 2), nothing, nothing, 32).shape == (0, 32, 32)


@pytest.mark.parametrize("shape", [(3, 20, 20), (0, 5)])
def test_only_grey_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="grey image"):
        PatchPyramid(torch.zeros(shape))
