"""`featkit reconstruct --intrinsics`: cameras by image, from a list or a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from in_process import refused, results, run

from featkit.mapping.model import read_model


def listed(path: Path, scene: Path, focal_px: float | None = None, separator: str = " ") -> Path:
    model, *numbers = (scene / "truth" / "camera.txt").read_text().splitlines()[-1].split()
    if focal_px is not None:
        numbers[2:4] = [str(focal_px)] * 2
    names = sorted(image.name for image in (scene / "images").iterdir())
    path.write_text("".join(separator.join((name, model, *numbers)) + "\n" for name in names))
    return path


def test_the_map_has_the_listed_cameras(mapped_copy: Any, tmp_path: Path) -> None:
    """If the list changes, features and matches are kept, and database and map are made again."""
    scene = mapped_copy.folder
    command = (
        "reconstruct",
        scene,
        "--max-keypoints",
        1500,
        "--fix-intrinsics",
        "--truth",
        scene / "truth" / "poses.txt",
    )
    sparse = scene / "featkit" / "sparse" / "0"

    def cameras() -> set[tuple[float, ...]]:
        return {tuple(np.round(camera.params, 3)) for camera in read_model(sparse).cameras.values()}

    true = (360.0, 360.0, 200.0, 150.0)
    data = results(*command, "--intrinsics", listed(tmp_path / "list.txt", scene))
    assert cameras() == {true}
    assert len(read_model(sparse).cameras) == 6
    assert data["truth"]["centre_max"] < 0.005
    table = results(*command, "--intrinsics", listed(tmp_path / "list.csv", scene, separator=","))
    assert table["points"] == data["points"]
    longer = results(*command, "--intrinsics", listed(tmp_path / "list.txt", scene, 400.0))
    assert cameras() == {(400.0, 400.0, 200.0, 150.0)}
    assert longer["truth"]["centre_max"] > 5 * data["truth"]["centre_max"]


def test_usage_errors(mapped_copy: Any, tmp_path: Path) -> None:
    scene, path = mapped_copy.folder, tmp_path / "list.txt"
    command = ("reconstruct", scene, *mapped_copy.options, "-q", "--intrinsics")
    refused(run(*command, tmp_path / "nowhere.txt"), 3, "nowhere.txt", "no such file")
    path.write_text("elsewhere.jpg PINHOLE 400 300 360 360 200 150\n")
    refused(run(*command, path), 3, "lists none of the images", "0000.jpg")
    path.write_text("0000.jpg PINHOLE 400 300 360 360 200\n")
    refused(run(*command, path), 3, "list.txt:1", "PINHOLE takes")
    path.write_text("0000.jpg PINHOLE 300 400 360 360 150 200\n")
    refused(run(*command, path), 3, "'0000.jpg' is 400 x 300 as stored", "300 x 400")
    model = scene / "featkit" / "sparse" / "0"
    refused(run(*command, listed(path, scene), "--reference", model, "-o", tmp_path / "out"), 2, "--intrinsics")
