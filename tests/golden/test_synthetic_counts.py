"""With the pycolmap that is installed: two-view geometries that featkit writes are taken, and give every point."""

from pathlib import Path

import pycolmap
from synthetic_scene import IMAGES, POINTS, counted, write_scene


def test_every_point_is_mapped_and_triangulated(tmp_path: Path) -> None:
    found = counted(write_scene(tmp_path), tmp_path)
    assert found["pycolmap"] == pycolmap.__version__
    assert found["configs"] == ["CALIBRATED"], "a geometry without its kind is passed over by the mapper"
    assert found["mapped_images"] == IMAGES
    assert found["mapped_points"] > 0.98 * POINTS
    assert found["mapped_error_px"] < 0.01
    assert found["triangulated_points"] > 0.98 * POINTS
