"""`featkit merge` on two parts of the rendered scene's map, compared with its exact truth; and one-line errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest
from in_process import refused, results, run

from featkit.io.lists import read_poses
from featkit.mapping.align import compare_with_truth
from featkit.mapping.grow import remove_images
from featkit.mapping.model import read_model

NAMES = [f"000{number}.jpg" for number in range(6)]


@pytest.fixture(scope="module")
def halves(mapped_scene: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene with models of photographs 0 to 3 and, in another frame, 2 to 5; and the latter alone as another map."""
    folder = Path(shutil.copytree(mapped_scene.folder, tmp_path_factory.mktemp("halves") / "scene"))
    sparse = folder / "featkit" / "sparse"
    for number, gone in ((1, NAMES[:2]), (0, NAMES[4:])):
        model = read_model(mapped_scene.output / "sparse" / "0")
        remove_images(model, set(gone), folder)
        if number:
            turn = pycolmap.Rotation3d(np.array([0.5, 1.0, -0.2])).matrix()
            model.transform(pycolmap.Sim3d(np.column_stack([0.3 * turn, [5.0, -2.0, 1.0]])))
        shutil.rmtree(sparse / str(number), ignore_errors=True)
        (sparse / str(number)).mkdir()
        model.write(str(sparse / str(number)))
    other = folder.parent / "other"
    other.mkdir()
    shutil.copy(folder / "featkit" / "features.h5", other / "features.h5")
    shutil.copytree(sparse / "1", other / "sparse" / "0")
    return folder


@pytest.mark.parametrize("second", ["scene/featkit/sparse/1", "other"])
def test_merged_cameras_are_at_their_true_poses(mapped_scene: Any, halves: Path, second: str, tmp_path: Path) -> None:
    """Two models of one run, and maps of two runs, merged in the frame of the first."""
    first = halves / "featkit" / "sparse" / "0"
    command = ("merge", first, halves.parent / second, "-o", tmp_path / "merged", "--fix-intrinsics")
    found = results(*command)
    assert found["common"] == NAMES[2:4]
    assert found["images"] == 6
    assert found["left_out"] == []
    assert found["agreeing_points"] > 100
    model, before = read_model(tmp_path / "merged" / "sparse" / "0"), read_model(first)
    truth = read_poses(halves / "truth" / "poses.txt")
    whole = compare_with_truth(read_model(mapped_scene.output / "sparse" / "0"), truth)
    assert compare_with_truth(model, truth).centre.max() < 1.5 * whole.centre.max() + 0.002
    centres = np.array([image.projection_center() for image in before.images.values()])
    for image_id, image in before.images.items():
        assert model.images[image_id].name == image.name
        moved = np.linalg.norm(model.images[image_id].projection_center() - image.projection_center())
        assert moved < 0.01 * np.ptp(centres, axis=0).max()
    stamp = (tmp_path / "merged" / "sparse.json").stat().st_mtime_ns
    assert results(*command)["images"] == 6
    assert (tmp_path / "merged" / "sparse.json").stat().st_mtime_ns == stamp


def test_failed_runs_keep_existing_files(halves: Path, tmp_path: Path) -> None:
    scene, out = halves / "featkit", tmp_path / "out"
    first, second = scene / "sparse" / "0", scene / "sparse" / "1"
    before = {path: path.read_bytes() for path in scene.rglob("*.bin")}
    ran = run("merge", first, second, "-q", "-o", out, "--min-points", 100_000)
    refused(ran, 4, "too little in common to be merged: 2 photographs", "consistent points (100000 are needed)")
    assert not (out / "sparse").exists()
    refused(run("merge", first, first, "-q", "-o", out), 3, "is the same model")
    refused(run("merge", first, second, "-q", "-o", scene), 3, "is one of the maps")
    alone = tmp_path / "alone"
    shutil.copytree(second, alone)
    refused(run("merge", first, alone, "-q", "-o", out), 3, "features.h5 it was made from is not beside it")
    strange = Path(shutil.copytree(halves.parent / "other", tmp_path / "strange"))
    with h5py.File(strange / "features.h5", "r+") as file:
        del file[NAMES[0]]
        file.copy(NAMES[1], NAMES[0])
    refused(
        run("merge", first, strange, "-q", "-o", tmp_path / "b"), 3, f"such as '{NAMES[0]}'", "are others than those"
    )
    assert {path: path.read_bytes() for path in scene.rglob("*.bin")} == before
