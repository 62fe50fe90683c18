import cv2
import numpy as np
import pytest

from featkit.geometry.pixels import apply_affine, compose, from_colmap, resize_affine, to_colmap


def test_the_half_pixel() -> None:
    points = np.array([[0, 0], [799, 599]], np.float32)
    assert to_colmap(points).tolist() == [[0.5, 0.5], [799.5, 599.5]]
    assert to_colmap(points).dtype == np.float32
    assert np.array_equal(from_colmap(to_colmap(points)), points)


@pytest.mark.parametrize(
    ("old", "new"), [((800, 600), (400, 300)), ((7, 5), (3, 11)), ((1, 1), (9, 9)), ((5, 5), (5, 5))]
)
def test_resize_against_a_slow_reference(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Continuous coordinates with the corner at 0 scale; centres lie half a pixel inside."""
    affine = resize_affine(old, new)
    for x in range(old[0] if old[0] < 20 else 3):
        for y in range(old[1] if old[1] < 20 else 3):
            slow = [(x + 0.5) * new[0] / old[0] - 0.5, (y + 0.5) * new[1] / old[1] - 0.5]
            assert apply_affine(affine, np.array([[x, y]], float))[0] == pytest.approx(slow, abs=1e-12)


def test_resize_keeps_corners_of_the_image() -> None:
    corners = np.array([[-0.5, -0.5], [799.5, 599.5]])
    assert apply_affine(resize_affine((800, 600), (123, 77)), corners) == pytest.approx(
        np.array([[-0.5, -0.5], [122.5, 76.5]])
    )


@pytest.mark.parametrize("size", [(120, 90), (97, 71), (240, 180), (360, 270)])
def test_resize_against_opencv(size: tuple[int, int]) -> None:
    """The centroid of a blob moves as the affine map says."""
    y, x = np.mgrid[:180, :240].astype(np.float64)
    centre = np.array([[130.3, 71.7]])
    blob = np.exp(-((x - centre[0, 0]) ** 2 + (y - centre[0, 1]) ** 2) / (2 * 8.0**2))
    small = cv2.resize(blob, size, interpolation=cv2.INTER_AREA if size[0] <= 240 else cv2.INTER_LINEAR)
    v, u = np.mgrid[: size[1], : size[0]]
    found = np.array([(small * u).sum(), (small * v).sum()]) / small.sum()
    assert found == pytest.approx(apply_affine(resize_affine((240, 180), size), centre)[0], abs=0.01)


def test_compose_applies_first_then_second() -> None:
    rng = np.random.default_rng(0)
    first, second, points = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), rng.normal(size=(9, 2))
    assert apply_affine(compose(second, first), points) == pytest.approx(
        apply_affine(second, apply_affine(first, points))
    )
    there, back = resize_affine((7, 5), (31, 3)), resize_affine((31, 3), (7, 5))
    assert compose(back, there) == pytest.approx(np.eye(3)[:2], abs=1e-12)


def test_affine_keeps_type() -> None:
    assert apply_affine(np.eye(3)[:2], np.zeros((0, 2), np.float32)).dtype == np.float32
