"""The pinhole's picture of a photograph: pixels show what its camera says, nothing is missing, nothing aliases."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from posed_scenes import RadialLens

from featkit.data.undistort import Pinhole, pinhole_of, pinhole_picture
from featkit.images.read import DecodedImage, stored_from_upright, upright

SIZE = (300, 200)  # of the files
EXIF_TURNS = (1, 3, 6, 8)


def photograph(pixels: np.ndarray, tag: int = 1) -> DecodedImage:
    """A file with these pixels and an EXIF orientation, decoded."""
    size = pixels.shape[1], pixels.shape[0]
    return DecodedImage(np.ascontiguousarray(upright(pixels, tag)), size, stored_from_upright(size, tag))


def undistorted(image: DecodedImage, lens: RadialLens, max_side: int) -> tuple[Pinhole, np.ndarray]:
    pinhole = pinhole_of(lens, image.size, image.stored_from_pixels, max_side)
    return pinhole, pinhole_picture(image, lens, pinhole)


def ramps() -> np.ndarray:
    """A file whose colours say where a pixel lies: red is x, green is y."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.stack([x, y, 0 * x], axis=2).astype(np.float32)


@pytest.mark.parametrize("tag", EXIF_TURNS)
@pytest.mark.parametrize(("k1", "max_side"), [(0.0, 300), (-0.3, 300), (-0.3, 130), (0.25, 90), (0.1, 210)])
def test_every_pixel_shows_what_its_camera_says(k1: float, max_side: int, tag: int) -> None:
    lens = RadialLens(260.0, (152.0, 97.0), k1)
    pinhole, picture = undistorted(photograph(ramps(), tag), lens, max_side)
    width, height = pinhole.size
    assert max(pinhole.size) == max_side
    assert picture.shape == (height, width, 3)
    v, u = np.mgrid[:height, :width]
    rays = np.stack([u + 0.5, v + 0.5, np.ones_like(u)], axis=2).reshape(-1, 3) @ np.linalg.inv(pinhole.intrinsics).T
    expected = lens.project(rays @ pinhole.turn).reshape(height, width, 2)
    wrong = np.abs(picture[:, :, :2] - expected)[2:-2, 2:-2]
    assert wrong.max() < 0.02  # px of the file; OpenCV reads at places rounded to 1 / 32
    assert wrong.mean() < 0.01
    assert pinhole.intrinsics[0, 0] == pytest.approx(pinhole.intrinsics[1, 1], rel=0.02)


def test_without_lens_and_reduction_nothing_changes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    lens = RadialLens(260.0, (149.5, 99.5))
    pinhole, picture = undistorted(photograph(pixels), lens, 300)
    assert pinhole.size == SIZE
    np.testing.assert_allclose(pinhole.intrinsics, [[260, 0, 150], [0, 260, 100], [0, 0, 1]])
    np.testing.assert_array_equal(picture, pixels)


@pytest.mark.parametrize("tag", EXIF_TURNS)
@pytest.mark.parametrize("k1", [-0.3, 0.25])
def test_the_largest_rectangle_without_gaps(k1: float, tag: int) -> None:
    """The rays through the picture's border hit the file inside, and on every side somewhere just inside."""
    lens = RadialLens(260.0, (152.0, 97.0), k1)
    image = photograph(np.zeros((200, 300, 3), np.uint8), tag)
    pinhole = pinhole_of(lens, image.size, image.stored_from_pixels, 5000)
    share = np.linspace(0, 1, 200)
    reached = []
    for fixed in (0, 1):
        for end in (0.0, 1.0):
            corner = np.ones((200, 3))
            corner[:, fixed], corner[:, 1 - fixed] = end * pinhole.size[fixed], share * pinhole.size[1 - fixed]
            seen = lens.project(corner @ np.linalg.inv(pinhole.intrinsics).T @ pinhole.turn)
            gaps = np.stack([seen + 0.5, np.array(SIZE) - 0.5 - seen], axis=1)
            reached.append(gaps.reshape(-1, 4).min(axis=1).min())
    assert min(reached) > -0.05
    assert max(reached) < 1.0


def test_reducing_averages() -> None:
    """A chessboard of single pixels becomes grey; reading it at points would give stripes."""
    board = (np.indices((200, 300)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = photograph(np.repeat(board[:, :, None], 3, axis=2))
    for max_side, spread in ((100, 20), (75, 6), (40, 20)):
        _, picture = undistorted(image, RadialLens(260.0, (152.0, 97.0), -0.01), max_side)
        assert picture.mean() == pytest.approx(127.5, abs=2)
        assert picture.std() < spread


def test_reducing_is_the_mean_of_what_a_pixel_covers() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    _, picture = undistorted(photograph(pixels), RadialLens(260.0, (149.5, 99.5)), 75)
    expected = cv2.resize(pixels, (75, 50), interpolation=cv2.INTER_AREA)
    assert np.abs(picture.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("k1", [-2.5, 40.0])
def test_lenses_that_no_photograph_is_taken_with(k1: float) -> None:
    with pytest.raises(ValueError, match="lens distortion"):
        undistorted(photograph(np.zeros((200, 300, 3), np.uint8)), RadialLens(260.0, (149.5, 99.5), k1), 300)
