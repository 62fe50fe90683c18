"""Models read without their keypoints, compared with pycolmap's complete reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from aachen_miniature import tracks_of

from featkit.core.errors import BadInputError
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.covisibility import covisible_pairs
from featkit.mapping.model import read_model
from featkit.mapping.reference import read_light_reference, read_light_tracks, read_reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic model of several cameras. Never written to."""
    pycolmap.set_random_seed(3)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 3, 1, 3, 50
    model = pycolmap.synthesize_dataset(options)
    place = tmp_path_factory.mktemp("model")
    model.write(str(place))
    return place


def test_same_content_as_pycolmap(folder: Path) -> None:
    ours, whole = read_light_reference(folder), read_reference(folder, CameraConfig())
    assert ours.poses.keys() == whole.poses.keys()
    assert len(ours.poses) == 9
    assert ours.camera_ids == whole.camera_ids
    assert ours.cameras is not None
    assert whole.cameras is not None
    assert ours.cameras.keys() == whole.cameras.keys()
    assert len(ours.cameras) == 3
    for camera_id, camera in ours.cameras.items():
        other = whole.cameras[camera_id]
        assert (camera.model_name, camera.width, camera.height) == (other.model_name, other.width, other.height)
        assert camera.params.tolist() == other.params.tolist()
    for name, pose in ours.poses.items():
        same_sign = np.sign(pose.qvec @ whole.poses[name].qvec)
        np.testing.assert_allclose(same_sign * pose.qvec, whole.poses[name].qvec, atol=1e-12)
        np.testing.assert_allclose(pose.tvec, whole.poses[name].tvec, atol=1e-12)
    tracks, other_tracks = read_light_tracks(folder), tracks_of(read_model(folder))
    assert tracks.names == other_tracks.names
    assert len(tracks.images) == len(other_tracks.images) > 100
    assert sorted(np.diff(tracks.starts)) == sorted(np.diff(other_tracks.starts))
    keys = [[pair.key() for pair in covisible_pairs(found, 4)] for found in (tracks, other_tracks)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_truncated_files_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (folder / name).read_bytes()
    read = read_light_tracks if name == "points3D.bin" else read_light_reference
    for size in (0, 7, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(BadInputError, match=f"{name}: cut off"):
            read(tmp_path)
    (tmp_path / name).write_bytes(b"\xff" * 64)
    with pytest.raises(BadInputError, match=name):
        read(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BadInputError, match="no such file"):
        read(tmp_path)


@pytest.mark.parametrize("form", ["bin", "txt"])
def test_a_name_that_is_not_utf_8(form: str, folder: Path, tmp_path: Path) -> None:
    """Latin-1, as in names from old cameras or archives."""
    model = read_model(folder)
    (model.write if form == "bin" else model.write_text)(str(tmp_path))
    name, path = model.images[1].name, tmp_path / f"images.{form}"
    data = path.read_bytes()
    assert data.count(name.encode()) == 1
    path.write_bytes(data.replace(name.encode(), b"\xe9t\xe9" + name.encode()[3:]))
    expected = r"the name of image 1, '\\xe9t\\xe9.*', is not UTF-8; rename"
    with pytest.raises(BadInputError, match=expected) as error:
        read_model(tmp_path)
    str(error.value).encode()
    if form == "bin":
        with pytest.raises(BadInputError, match=expected):
            read_light_reference(tmp_path)
        with pytest.raises(BadInputError, match=expected):
            read_light_tracks(tmp_path)
