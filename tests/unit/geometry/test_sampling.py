"""Maps are read where the one pixel convention says."""

import pytest
import torch

from featkit.geometry.batched import from_grid, sample_map, to_grid


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_ramp_is_read_at_its_place(scale: int) -> None:
    width, height = 32, 24
    x = (torch.arange(width // scale) + 0.5) * scale - 0.5  # pixels of the image at the map's centres
    y = (torch.arange(height // scale) + 0.5) * scale - 0.5
    ramp = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])[None]  # (1, 2, h, w): its own coordinates
    points = torch.tensor([[[3.5, 7.25], [20.0, 11.0], [15.1, 9.9]]])
    torch.testing.assert_close(sample_map(ramp, points, (width, height)), points)


def test_pixels_are_read_exactly() -> None:
    image = torch.rand(2, 3, 5, 7)
    points = torch.tensor([[[0.0, 0.0], [6.0, 4.0]], [[3.0, 2.0], [5.0, 1.0]]])
    found = sample_map(image, points, (7, 5))
    torch.testing.assert_close(found[0, 1], image[0, :, 4, 6])
    torch.testing.assert_close(found[1, 1], image[1, :, 1, 5])


def test_outside_is_the_border_or_zero() -> None:
    image = torch.rand(1, 1, 4, 4)
    far = torch.tensor([[[-20.0, 1.0]]])
    assert sample_map(image, far, (4, 4), "zeros").item() == 0
    torch.testing.assert_close(sample_map(image, far, (4, 4))[0, 0, 0], image[0, 0, 1, 0])


def test_there_and_back() -> None:
    points = torch.rand(3, 9, 2, dtype=torch.float64) * 100
    torch.testing.assert_close(from_grid(to_grid(points, (640, 480)), (640, 480)), points)
