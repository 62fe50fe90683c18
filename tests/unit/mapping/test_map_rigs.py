"""The rigs of a map: prefixes of their cameras, by record or by folder; frames of photographs that are added."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from featkit.core.errors import BadInputError
from featkit.mapping.map_rigs import (
    AddedFrame,
    SameRigConfig,
    added_frames,
    check_sizes_on_rigs,
    prefixes_of,
    recorded_prefixes,
    rig_metrics,
    shared_rigs,
)
from featkit.mapping.rigs import RigConfig

FRAMES = 3


def model(pattern: str = "cam{camera}/{frame:04d}.jpg") -> pycolmap.Reconstruction:
    """Three frames of two cameras; the last one is without the photograph of the second."""
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 2, FRAMES, 20
    made = pycolmap.synthesize_dataset(options)
    found = pycolmap.Reconstruction()
    for camera in made.cameras.values():
        found.add_camera(camera)
    for rig in made.rigs.values():
        found.add_rig(rig)
    for number, frame in enumerate(made.frames[frame_id] for frame_id in sorted(made.frames)):
        kept = pycolmap.Frame()
        kept.frame_id, kept.rig_id, kept.rig_from_world = frame.frame_id, frame.rig_id, frame.rig_from_world
        images = [made.images[data.id] for data in frame.image_ids]
        images = [image for image in images if number < FRAMES - 1 or image.camera_id == 1]
        for image in images:
            kept.add_data_id(image.data_id)
        found.add_frame(kept)
        for image in images:
            name = pattern.format(camera=image.camera_id - 1, frame=number)
            added = pycolmap.Image(name=name, camera_id=image.camera_id, image_id=image.image_id)
            added.frame_id = frame.frame_id
            found.add_image(added)
    return found


def frame_of(map_model: pycolmap.Reconstruction, name: str) -> int:
    return next(image.frame_id for image in map_model.images.values() if image.name == name)


def test_prefixes_are_the_record_s_or_folders(tmp_path: Path) -> None:
    assert prefixes_of(model()) == {1: "cam0/", 2: "cam1/"}
    assert prefixes_of(model("cam{camera}/data/{frame:04d}.jpg")) == {1: "cam0/data/", 2: "cam1/data/"}
    in_one_folder = model("all/{camera}_{frame:04d}.jpg")
    assert prefixes_of(in_one_folder) == {}
    (tmp_path / "metrics.json").write_text(json.dumps(rig_metrics(in_one_folder, ["all/0_", "all/1_", "all/"])))
    recorded = recorded_prefixes(tmp_path / "sparse" / "0")
    assert recorded == ["all/0_", "all/1_"]
    assert prefixes_of(in_one_folder, recorded) == {1: "all/0_", 2: "all/1_"}
    (tmp_path / "metrics.json").write_text('{"rig_config": [{"cameras": [1, {"image_prefix": null}]}, 2]}')
    assert recorded_prefixes(tmp_path / "sparse" / "0") == []
    assert recorded_prefixes(tmp_path / "elsewhere" / "sparse" / "0") == []


def test_frames_of_new_photographs() -> None:
    known = model()
    names = ["cam0/0003.jpg", "cam1/0003.png", "cam1/0002.jpg", "cam1/0001.png", "cam0/0009.jpg", "other/0004.jpg"]
    found = added_frames(known, prefixes_of(known), names, RigConfig())
    assert found == [
        AddedFrame(1, frame_of(known, "cam0/0002.jpg"), {2: "cam1/0002.jpg"}),
        AddedFrame(1, None, {1: "cam0/0003.jpg", 2: "cam1/0003.png"}),
        AddedFrame(1, None, {1: "cam0/0009.jpg"}),
    ]
    assert added_frames(known, {}, names, RigConfig()) == []
    [again] = added_frames(known, prefixes_of(known), ["cam1/0002.jpg"], RigConfig(), gone=["cam0/0002.jpg"])
    assert again.frame_id is None


def test_times_that_are_close_are_one_frame() -> None:
    """Nanoseconds; the second camera is 7 ms behind, of 100 ms from one frame to the next."""
    known = model("cam{camera}/16000000000000000{frame}{camera}.jpg")
    times = [1_700_000_000_000_000_000 + number * 100_000_000 for number in range(4)]
    names = [f"cam0/{time}.jpg" for time in times] + [f"cam1/{times[k] + 7_000_000}.jpg" for k in (1, 3)]
    assert [len(frame.images) for frame in added_frames(known, prefixes_of(known), names, RigConfig())] == [1, 2, 1, 2]


def test_a_photograph_of_another_size_is_not_of_that_camera(tmp_path: Path) -> None:
    known = model()
    frames = [AddedFrame(1, None, {1: "cam0/0003.jpg", 2: "cam1/0003.jpg"})]
    for name, size in (("cam0", (1024, 768)), ("cam1", (768, 1024))):
        (tmp_path / name).mkdir()
        Image.new("L", size).save(tmp_path / name / "0003.jpg")
    with pytest.raises(BadInputError, match=r"cam1/0003.jpg: is 768 x 1024, and the map's camera of 'cam1/'"):
        check_sizes_on_rigs(known, prefixes_of(known), frames, tmp_path)
    Image.new("L", (1024, 768)).save(tmp_path / "cam1" / "0003.jpg")
    check_sizes_on_rigs(known, prefixes_of(known), frames, tmp_path)


def turned_by(degrees: float, moved: float, map_model: pycolmap.Reconstruction) -> None:
    """Turn and move the second camera in its rig."""
    [rig] = map_model.rigs.values()
    [(sensor, relation)] = rig.non_ref_sensors.items()
    turn = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, np.radians(degrees), 0])), np.array([moved, 0, 0]))
    rig.set_sensor_from_rig(sensor, turn * relation)


def both(second: pycolmap.Reconstruction, *recorded: str) -> tuple[dict[int, int], dict[int, int], set[int]]:
    first = model()
    prefixes = prefixes_of(first), prefixes_of(second, recorded)
    found = shared_rigs(first, second, prefixes, SameRigConfig())
    return found.rigs, found.cameras, found.free


def test_rigs_of_two_maps(caplog: pytest.LogCaptureFixture) -> None:
    """One of one file; estimated twice and nearly the same; turned, moved, of another lens or name."""
    caplog.set_level("INFO", "featkit")
    assert both(model()) == ({1: 1}, {1: 1, 2: 2}, set())
    estimated = model()
    turned_by(0.3, 0, estimated)
    assert both(estimated) == ({1: 1}, {1: 1, 2: 2}, {1})
    assert caplog.text == ""
    other = model()
    turned_by(2, 0, other)
    assert both(other)[0] == {}
    assert "the rig of cam0/, cam1/ is not the same in both maps: a camera is turned by 2 degrees" in caplog.text
    longest = np.linalg.norm(next(iter(model().rigs[1].non_ref_sensors.values())).inverse().translation)
    for share, same in ((0.1, True), (0.3, False)):
        moved = model()
        turned_by(0, share * longest, moved)
        assert (both(moved)[0] == {1: 1}) == same
    for factor, same in ((1.02, True), (1.1, False)):
        zoomed = model()
        zoomed.cameras[2].focal_length *= factor
        assert (both(zoomed)[0] == {1: 1}) == same
    assert "calibrations of a camera are" in caplog.text
    assert both(model("left{camera}/{frame:04d}.jpg"))[0] == {}
    assert "the second map's rig (left0/, left1/) is none of the first map's; both are kept" in caplog.text
