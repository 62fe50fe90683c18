"""Rigs from files and folders: frames by equal names and close time stamps, compared with frames listed by hand."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from featkit.core.errors import BadInputError
from featkit.core.types import Pose
from featkit.geometry.poses import rotation_matrix
from featkit.mapping.rigs import RigConfig, describe_rigs, read_rigs, shared_camera_keys, usable_rigs

CONFIG = RigConfig()


def frames(given: str, names: list[str], config: RigConfig = CONFIG) -> list[tuple[list[str], list[set[str]]]]:
    return [
        ([camera.prefix for camera in rig.cameras], [set(frame.values()) for frame in rig.frames])
        for rig in read_rigs(given, names, config)
    ]


def write(path: Path, *prefixes: str) -> str:
    cameras = [{"image_prefix": prefix, "ref_sensor": not number} for number, prefix in enumerate(prefixes)]
    path.write_text(json.dumps([{"cameras": cameras}]))
    return str(path)


def test_sibling_folders_with_equal_names() -> None:
    names = ["cam0/1.jpg", "cam0/2.jpg", "cam1/1.png", "cam1/2.png"]
    assert frames("folders", names) == [
        (["cam0/", "cam1/"], [{"cam0/1.jpg", "cam1/1.png"}, {"cam0/2.jpg", "cam1/2.png"}])
    ]


def test_folder_names_in_file_names_and_nested_folders() -> None:
    names = [f"{camera}/{day}/{camera}_{k}.jpg" for camera in ("left", "right") for day in ("a", "b") for k in (1, 2)]
    [(prefixes, found)] = frames("folders", names)
    assert prefixes == ["left/", "right/"]
    assert found[0] == {"left/a/left_1.jpg", "right/a/right_1.jpg"}
    assert len(found) == 4


def test_folders_named_by_a_number_are_not_taken_out_of_the_names() -> None:
    names = [f"{camera}/{number:04d}.jpg" for camera in (0, 1) for number in range(12)]
    [(prefixes, found)] = frames("folders", names)
    assert prefixes == ["0/", "1/"]
    assert found == [{f"0/{number:04d}.jpg", f"1/{number:04d}.jpg"} for number in range(12)]


@pytest.mark.parametrize(
    ("folders", "stem"),
    [(("l", "r"), "frame_"), (("a", "b"), "frame_"), (("A", "B"), "DATA"), (("img", "ref"), "img"), (("e", "f"), "")],
)
def test_folder_names_within_words_of_the_file_names(folders: tuple[str, str], stem: str) -> None:
    names = [f"{folder}/{stem}{number:04d}.jpg" for folder in folders for number in range(3)]
    [(prefixes, found)] = frames("folders", names)
    assert prefixes == [f"{folder}/" for folder in folders]
    assert found == [{f"{folder}/{stem}{number:04d}.jpg" for folder in folders} for number in range(3)]


def test_folder_names_joined_to_a_number() -> None:
    names = [f"{folder}/{folder}{number:04d}.jpg" for folder in ("left", "right") for number in range(3)]
    [(_, found)] = frames("folders", names)
    assert found[2] == {"left/left0002.jpg", "right/right0002.jpg"}


def test_one_rig_per_session() -> None:
    names = [f"s{s}/{camera}/{k}{s}.jpg" for s in (1, 2) for camera in ("x", "y") for k in (1, 2)]
    found = frames("folders", [*names, "alone/9.jpg"])
    assert [prefixes for prefixes, _ in found] == [["s1/x/", "s1/y/"], ["s2/x/", "s2/y/"]]


def test_the_folder_with_the_most_photographs_is_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    """Photographs without a counterpart and photographs on no rig are reported."""
    names = ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg", "c/7.jpg", "8.jpg"]
    with caplog.at_level(logging.WARNING, "featkit"):
        [(prefixes, found)] = frames("folders", names)
    assert prefixes == ["b/", "a/"]
    assert found[2] == {"b/3.jpg"}
    assert "2 photographs are on no rig: c/7.jpg, 8.jpg" in caplog.text
    assert "1 of 3 frames are incomplete, such as those of b/3.jpg" in caplog.text


def test_folders_without_a_rig_are_refused() -> None:
    with pytest.raises(BadInputError, match="no sibling folders"):
        frames("folders", ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"])
    with pytest.raises(BadInputError, match="no sibling folders"):
        frames("folders", ["1.jpg", "2.jpg"])


def test_frames_by_nearest_time_stamp() -> None:
    """Nanoseconds at 20 Hz: a difference of 2 ms is one frame, 20 ms is not (limit: a quarter of 50 ms)."""
    start, step = 1403636579763555584, 50_000_000
    left = [f"left/{start + k * step}.png" for k in range(4)]
    late = [2_000_000, -3_000_000, 20_000_000, 1_000_000]
    right = [f"right/{start + k * step + late[k]}.png" for k in range(4)]
    [(prefixes, found)] = frames("folders", left + right)
    assert prefixes == ["left/", "right/"]
    assert {left[0], right[0]} in found
    assert sorted(len(frame) for frame in found) == [1, 1, 2, 2, 2]
    strict = CONFIG.model_copy(update={"max_time_share": 0.03})
    [(_, some)] = frames("folders", left + right, CONFIG.model_copy(update={"max_time_share": 0.05}))
    assert sum(len(frame) == 2 for frame in some) == 2
    with pytest.raises(BadInputError, match="no sibling folders"):
        frames("folders", left + right, strict)


def test_only_the_nearest_photograph_joins_a_frame() -> None:
    left = [f"l/{1000000000 + 100 * k}.png" for k in range(3)]
    right = ["r/1000000009.png", "r/1000000003.png", "r/1000000103.png"]
    [(_, found)] = frames("folders", left + right)
    assert {left[0], right[1]} in found
    assert {right[0]} in found


def test_rig_file_in_colmaps_format(tmp_path: Path) -> None:
    """Quaternions are w x y z; the longest matching prefix is used."""
    quarter = [np.sqrt(0.5), 0, np.sqrt(0.5), 0]
    cameras = [
        {"image_prefix": "cam1", "cam_from_rig_rotation": quarter, "cam_from_rig_translation": [1, 2, 3]},
        {"image_prefix": "cam10", "cam_from_rig_rotation": [1, 0, 0, 0], "cam_from_rig_translation": [0, 0, 0]},
        {
            "image_prefix": "cam2/",
            "ref_sensor": True,
            "camera_model_name": "SIMPLE_PINHOLE",
            "camera_params": [9, 5, 4],
        },
    ]
    path = tmp_path / "rig.json"
    path.write_text(json.dumps([{"cameras": cameras}]))
    names = ["cam1/1.jpg", "cam10/1.jpg", "cam2/1.jpg"]
    [rig] = read_rigs(str(path), names, CONFIG)
    assert [camera.prefix for camera in rig.cameras] == ["cam2/", "cam1", "cam10"]
    assert rig.is_known
    assert shared_camera_keys([rig]) == {"cam1/1.jpg": "cam1", "cam10/1.jpg": "cam10", "cam2/1.jpg": "cam2/"}
    [read] = pycolmap.read_rig_config(path)
    for mine in rig.cameras[1:]:
        theirs = next(camera for camera in read.cameras if camera.image_prefix == mine.prefix).cam_from_rig
        assert isinstance(mine.cam_from_rig, Pose)
        assert rotation_matrix(mine.cam_from_rig.qvec) == pytest.approx(theirs.rotation.matrix(), abs=1e-12)
        assert mine.cam_from_rig.tvec == pytest.approx(theirs.translation)
    assert rig.cameras[0].intrinsics == ("SIMPLE_PINHOLE", (9.0, 5.0, 4.0))
    (tmp_path / "metrics.json").write_text(json.dumps({"registered": 3, "rig_config": [{"cameras": cameras}]}))
    assert describe_rigs(read_rigs(str(tmp_path / "metrics.json"), names, CONFIG)) == describe_rigs([rig])


def test_usable_rigs_drop_unreadable_photographs() -> None:
    names = [f"{camera}/{k}.jpg" for camera in ("a", "b", "c") for k in (1, 2)]
    rigs = read_rigs("folders", names, CONFIG)
    assert usable_rigs(rigs, names) == rigs
    [rig] = usable_rigs(rigs, ["a/1.jpg", "c/1.jpg", "c/2.jpg"])
    assert [camera.prefix for camera in rig.cameras] == ["a/", "c/"]
    assert rig.frames == ({0: "a/1.jpg", 1: "c/1.jpg"}, {1: "c/2.jpg"})
    with pytest.raises(BadInputError, match="no photograph of the reference camera 'a/' can be used"):
        usable_rigs(rigs, ["b/1.jpg", "c/1.jpg"])


def test_description_contains_every_number(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b/1.jpg"]
    plain = write(tmp_path / "plain.json", "a/", "b/")
    seen = {
        describe_rigs(read_rigs(plain, names, CONFIG)),
        describe_rigs(read_rigs(plain, [*names, "a/2.jpg"], CONFIG)),
    }
    for shift in (0.0, 1e-12):
        rig = json.loads(Path(plain).read_text())
        rig[0]["cameras"][1] |= {"cam_from_rig_rotation": [1, 0, 0, 0], "cam_from_rig_translation": [1 + shift, 0, 0]}
        (tmp_path / "other.json").write_text(json.dumps(rig))
        seen.add(describe_rigs(read_rigs(str(tmp_path / "other.json"), names, CONFIG)))
    assert len(seen) == 4


def test_a_rig_file_of_many_cameras(tmp_path: Path) -> None:
    """Prefixes are compared in one pass: 20,000 times 20,000 take minutes."""
    path = tmp_path / "rig.json"
    cameras = [{"image_prefix": f"{number}/", "ref_sensor": number == 0} for number in range(20_000)]
    path.write_text(json.dumps([{"cameras": cameras}]))
    started = time.monotonic()
    with pytest.raises(BadInputError, match="no photograph's name starts with '1/'"):
        read_rigs(str(path), ["0/a.jpg"], RigConfig())
    assert time.monotonic() - started < 10
