"""NVM files compared with exact synthetic models: poses and tracks; errors have line numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from aachen_miniature import tracks_of

from featkit.core.errors import BadInputError
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.reference import read_nvm, read_nvm_reference, read_reference

GOOD = """NVM_V3 FixedK 1 2 3 4

2
db/a b.jpg 800.5 0.6 0.0 0.8 0.0 1.0 2.0 3.0 -0.05 0

db/2.jpg\t800.5 1.2 0 0 0 -1 0 4 0 0

2
0.5 0.25 5 10 20 30 2 0 7 -3.5 4.5 1 9 1.5 2.5
0.1 0.2 6 0 0 0 1 1 3 0 0


0
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "model.nvm"
    path.write_text(text)
    return path


def synthetic(seed: int) -> pycolmap.Reconstruction:
    pycolmap.set_random_seed(seed)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs = options.num_cameras_per_rig = 1
    options.num_frames_per_rig = 5
    options.num_points3D = 40
    return pycolmap.synthesize_dataset(options)


def as_nvm(model: pycolmap.Reconstruction) -> str:
    """Write a model as NVM. Centres are solved for, not computed by inverting the reader's formula."""
    images = sorted(model.images.values(), key=lambda image: image.name)
    place = {image.image_id: index for index, image in enumerate(images)}
    lines = ["NVM_V3", "", str(len(images))]
    for image in images:
        matrix = image.cam_from_world().matrix()
        centre = np.linalg.solve(matrix[:, :3], -matrix[:, 3])
        x, y, z, w = image.cam_from_world().rotation.quat
        lines.append(" ".join([image.name, "500", *(f"{v:.15g}" for v in (w, x, y, z, *centre)), "0", "0"]))
    lines += ["", str(len(model.points3D))]
    for point in model.points3D.values():
        seen = [f"{place[e.image_id]} {e.point2D_idx} 0.5 0.5" for e in point.track.elements]
        lines.append(" ".join([*(f"{v:.12g}" for v in point.xyz), "1 2 3", str(len(seen)), *seen]))
    return "\n".join([*lines, "", "0", ""])


def test_a_handwritten_file(tmp_path: Path) -> None:
    """A name with a space, a tab, empty lines, a quaternion that is not normalised; centre to translation."""
    read = read_nvm(write(tmp_path, GOOD))
    assert list(read.poses) == ["db/a b.jpg", "db/2.jpg"]
    pose = read.poses["db/a b.jpg"]
    # w 0.6, y 0.8: about y by 2 acos(0.6), cos -0.28, sin 0.96; t = -R (1, 2, 3)
    np.testing.assert_allclose(pose.qvec, [0.6, 0, 0.8, 0])
    np.testing.assert_allclose(pose.tvec, [-(-0.28 * 1 + 0.96 * 3), -2, -(-0.96 * 1 - 0.28 * 3)])
    np.testing.assert_allclose(read.poses["db/2.jpg"].qvec, [1, 0, 0, 0])
    np.testing.assert_allclose(read.poses["db/2.jpg"].tvec, [1, 0, -4])
    assert read.tracks is not None
    assert read.tracks.starts.tolist() == [0, 2, 3]
    assert read.tracks.images.tolist() == [0, 1, 1]
    assert read_nvm(write(tmp_path, GOOD), with_points=False).tracks is None


@pytest.mark.parametrize("seed", [0, 1])
def test_reference_equals_that_of_the_colmap_model(seed: int, tmp_path: Path) -> None:
    model = synthetic(seed)
    (tmp_path / "colmap").mkdir()
    model.write(str(tmp_path / "colmap"))
    (camera,) = model.cameras.values()
    params = " ".join(f"{value:.17g}" for value in camera.params)
    listed = tmp_path / "intrinsics.txt"
    names = [image.name for image in model.images.values()]
    listed.write_text(
        "".join(f"{n} {camera.model_name} {camera.width} {camera.height} {params}\n" for n in [*names, "more.jpg"])
    )
    ours = read_nvm_reference(write(tmp_path, as_nvm(model)), listed)
    other = read_reference(tmp_path / "colmap", CameraConfig())
    assert ours.poses.keys() == other.poses.keys()
    for name, pose in ours.poses.items():
        same_sign = np.sign(pose.qvec @ other.poses[name].qvec)
        np.testing.assert_allclose(same_sign * pose.qvec, other.poses[name].qvec, atol=1e-12)
        np.testing.assert_allclose(pose.tvec, other.poses[name].tvec, atol=1e-9)
        assert ours.cameras is not None
        assert ours.camera_ids is not None
        assert ours.cameras[ours.camera_ids[name]].params.tolist() == camera.params.tolist()
    tracks, expected = read_nvm(tmp_path / "model.nvm").tracks, tracks_of(model)
    assert tracks is not None
    assert tracks.names == expected.names
    assert tracks.starts.tolist() == expected.starts.tolist()
    assert tracks.images.tolist() == expected.images.tolist()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("NVM_V3 FixedK", "NVM_V3_R9T", "model.nvm:1: starts with"),
        ("NVM_V3 FixedK 1 2 3 4\n", "", "model.nvm:2: starts with"),
        ("\n2\ndb", "\ntwo\ndb", "model.nvm:3: the number of cameras expected, got 'two'"),
        ("\n2\ndb", "\n-2\ndb", "model.nvm:3: the number of cameras"),
        ("\n2\ndb", "\n99999999999\ndb", "model.nvm:3: the number of cameras"),
        ("\n2\ndb", "\n3\ndb", "model.nvm:8: expected `name focal"),
        (" -0.05 0\n", " 0\n", "model.nvm:4: expected"),
        ("800.5 0.6", "800.5 O.6", "model.nvm:4: expected 10 numbers"),
        ("800.5 0.6", "800.5 nan", "model.nvm:4: a number is not finite"),
        ("0.6 0.0 0.8", "0 0.0 0", "model.nvm:4: the quaternion of 'db/a b.jpg' has length 0"),
        ("db/2.jpg", "db/a b.jpg", "model.nvm:6: 'db/a b.jpg' is listed twice"),
        (" 2 0 7", " 3 0 7", "model.nvm:9: a point with 3 observations has 19 fields, there are 15"),
        (" 2 0 7", " 2 2 7", "model.nvm:9: seen by camera 2, there are 2"),
        (" 2 0 7", " 2 -1 7", "model.nvm:9: seen by camera -1"),
        (" 2 0 7", " 2 x 7", "model.nvm:9: expected `x y z"),
        ("0.1 0.2 6 0 0 0 1 1 3 0 0\n\n\n0\n", "", "model.nvm:9: the file ends before point 2 of 2"),
    ],
)
def test_errors_name_the_line(old: str, new: str, words: str, tmp_path: Path) -> None:
    assert old in GOOD
    with pytest.raises(BadInputError) as refused:
        read_nvm(write(tmp_path, GOOD.replace(old, new, 1)))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_wrong_files_and_incomplete_lists(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        read_nvm(tmp_path / "none.nvm")
    with pytest.raises(BadInputError, match="ends before the header"):
        read_nvm(write(tmp_path, "\n\n"))
    (tmp_path / "model.nvm").write_bytes(b"NVM_V3\n\n1\n\xff\xfe\n")
    with pytest.raises(BadInputError, match="not a UTF-8"):
        read_nvm(tmp_path / "model.nvm")
    listed = tmp_path / "list.txt"
    listed.write_text("db/2.jpg PINHOLE 4 4 1 1 2 2\n")
    with pytest.raises(BadInputError, match=r"no camera for 'db/a b.jpg', an image of model\.nvm"):
        read_nvm_reference(write(tmp_path, GOOD), listed)
