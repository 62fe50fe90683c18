"""pairs.txt, poses.txt, intrinsics: what they take, what they refuse, and that nothing else ever comes out."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featkit.core.config import Config, digest
from featkit.core.errors import BadInputError, FeatkitError, NotWritableError
from featkit.core.types import Pair, Pose
from featkit.io import artifact
from featkit.io.artifact import write_stamp, write_text
from featkit.io.atomic import is_stamped, read_lines, read_stamp
from featkit.io.camera_models import camera_models
from featkit.io.lists import (
    Intrinsics,
    describe_pairs,
    parse_intrinsics,
    read_camera,
    read_intrinsics_list,
    read_pairs,
    read_poses,
    write_pairs,
    write_poses,
)

MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Made(Config):
    value: int = 1


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "file.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_pairs(tmp_path: Path) -> None:
    text = "\ufeff# a comment\n\na.jpg b.jpg\n  b.jpg   c.jpg  \r\nb.jpg a.jpg\na.jpg b.jpg\nx y.jpg\tz.jpg\n"
    assert read_pairs(file(tmp_path, text)) == [
        Pair("a.jpg", "b.jpg"),
        Pair("b.jpg", "c.jpg"),
        Pair("x y.jpg", "z.jpg"),
    ]


def test_directed_pairs(tmp_path: Path) -> None:
    path = file(tmp_path, "a b\nb a\na a\na b\n")
    assert read_pairs(path, directed=True) == [Pair("a", "b"), Pair("b", "a"), Pair("a", "a")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b\na\n", ":2: two image names"),
        ("a b c\n", ":1: two image names"),
        ("a\tb\tc\n", "two image names"),
        ("a\t \tb", "two image names"),
        ("x y\n\na a\n", ":3: 'a' is paired with itself"),
        ("# only\n", "no pairs in it"),
        ("", "no pairs in it"),
    ],
)
def test_wrong_pairs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        read_pairs(file(tmp_path, text))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        read_pairs(tmp_path / "none")
    with pytest.raises(BadInputError, match="is a folder"):
        read_pairs(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfea b")
    with pytest.raises(BadInputError, match="not a UTF-8"):
        read_pairs(tmp_path / "bytes")


def test_pairs_describe_themselves(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.txt", [Pair("a", "b")], Made(value=3), {"images": 2})
    assert path.read_text() == "a b\n"
    described = describe_pairs(path)
    assert described is not None
    assert (described["fingerprint"], described["config"], described["images"]) == (
        Made(value=3).fingerprint(), {"value": 3}, 2,
    )  # fmt: skip
    assert describe_pairs(tmp_path / "other.txt") is None
    (tmp_path / "bad.json").write_text("{")
    assert describe_pairs(tmp_path / "bad.txt") is None


NAMES = st.text(min_size=1, max_size=12)


@MANY
@given(st.lists(st.tuples(NAMES, NAMES).filter(lambda p: p[0] != p[1]), min_size=1, max_size=4))
def test_pairs_come_back_or_are_refused(tmp_path: Path, names: list[tuple[str, str]]) -> None:
    """Never other names, and never fewer: a `#`, a line separator or a space at an end would change the file."""
    pairs = [Pair(a, b) for a, b in names]
    try:
        path = write_pairs(tmp_path / "pairs.txt", pairs)
    except BadInputError:
        return
    assert read_pairs(path, directed=True) == list(dict.fromkeys(pairs))


@pytest.mark.parametrize("name", ["#1.jpg", "a\tb", "a\nb", " a", "a ", "a\u2028b", "a\x85b", "", "\ufeffa"])
def test_names_that_would_be_lost_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match="rename"):
        write_pairs(tmp_path / "pairs.txt", [Pair(name, "b.jpg")])


def test_other_spaces_are_part_of_a_name(tmp_path: Path) -> None:
    """macOS writes a narrow no-break space into the names of screenshots."""
    pairs = [Pair("at 1.00\u202fPM.png", "b.png"), Pair("b\u3000c.png", "b\xa0c.png")]
    for listed in (pairs, pairs[1:]):
        assert read_pairs(write_pairs(tmp_path / "pairs.txt", listed)) == listed


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    """Linux hands over a file name in another encoding with surrogates in it."""
    name = os.fsdecode(b"caf\xe9.jpg")
    with pytest.raises(BadInputError, match="not UTF-8"):
        write_pairs(tmp_path / "pairs.txt", [Pair("a.jpg", "b.jpg"), Pair(name, "b.jpg")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reader", [read_pairs, read_poses, read_camera, read_intrinsics_list])
@MANY
@given(data=st.one_of(st.binary(max_size=80), st.text(alphabet="ab1. -\t\n#e", max_size=80).map(str.encode)))
def test_any_file_is_read_or_bad_input(reader, tmp_path: Path, data: bytes) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "any.txt"
    path.write_bytes(data)
    with contextlib.suppress(BadInputError):
        assert reader(path)


NUMBERS = st.one_of(
    st.floats().map(repr), st.integers().map(str), st.sampled_from(["", "nan", "1e999", "१", "0x1", "1_0"])
)


@MANY
@given(st.sampled_from([*camera_models(), "NONE"]), st.lists(NUMBERS, max_size=15))
def test_any_intrinsics_are_read_or_bad_input(model: str, numbers: list[str]) -> None:
    try:
        camera = parse_intrinsics(" ".join([model, *numbers]), "here")
    except BadInputError as error:
        assert str(error).startswith("here")  # noqa: PT017
        return
    assert camera.width > 0
    assert np.all(np.isfinite(camera.params))


@MANY
@given(NAMES, st.lists(NUMBERS, min_size=5, max_size=8))
def test_any_pose_line_is_read_or_bad_input(tmp_path: Path, name: str, numbers: list[str]) -> None:
    path = tmp_path / "poses.txt"
    path.write_text(f"{name} {' '.join(numbers)}\n", encoding="utf-8")
    try:
        poses = read_poses(path)
    except BadInputError:
        return
    for pose in poses.values():
        assert np.linalg.norm(pose.qvec) == pytest.approx(1)
        assert np.all(np.isfinite(pose.tvec))


def test_poses_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {}
    for name in ("a.jpg", "my photo/b c.jpg", "ü.png"):
        q = rng.normal(size=4)
        rows[name] = Pose(q / np.linalg.norm(q), rng.normal(size=3) * 1000)
    read = read_poses(write_poses(tmp_path / "poses.txt", rows))
    assert list(read) == list(rows)
    for name, pose in rows.items():
        assert read[name].qvec == pytest.approx(pose.qvec, abs=1e-9)
        assert read[name].tvec == pytest.approx(pose.tvec, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1 0 0 0 1 2", "expected `name qw"),
        ("a 1 0 0 0 1 2 x", ":1: expected numbers"),
        ("a 1 0 0 0 1 2 nan", "not finite"),
        ("a 3 0 0 0 1 2 3", "has length 3"),
        ("a 0 0 0 0 1 2 3", "has length 0"),
        ("a 1 0 0 0 1 2 3\na 1 0 0 0 1 2 3", ":2: 'a' already has a pose"),
        ("#", "no poses"),
    ],
)
def test_wrong_poses(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        read_poses(file(tmp_path, text))


def test_a_quaternion_is_normalised(tmp_path: Path) -> None:
    pose = read_poses(file(tmp_path, "a 0.9 0 0.9 0 1 2 3"))["a"]
    assert pose.qvec == pytest.approx([0.5**0.5, 0, 0.5**0.5, 0])


def test_intrinsics(tmp_path: Path) -> None:
    text = (
        "a.jpg PINHOLE 800 600 700 700 400 300\n"
        "my photo.jpg SIMPLE_RADIAL 80 60 70 40 30 -0.1\n"
        "t.jpg\tPINHOLE\t8 6 7 7 4 3\n"
    )
    read = read_intrinsics_list(file(tmp_path, text))
    assert read == {
        "a.jpg": Intrinsics("PINHOLE", 800, 600, (700, 700, 400, 300)),
        "my photo.jpg": Intrinsics("SIMPLE_RADIAL", 80, 60, (70, 40, 30, -0.1)),
        "t.jpg": Intrinsics("PINHOLE", 8, 6, (7, 7, 4, 3)),
    }
    assert read_camera(file(tmp_path, "# c\nPINHOLE 8 6 7 7 4 3\n")).width == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg PINHOLE 800 600 700 700 400", "takes width, height and 4 parameters .*; 5 numbers"),
        ("a.jpg PINHOL 800 600 700 700 400 300", "no camera model 'PINHOL'"),
        ("a.jpg PINHOLE 800.5 600 700 700 400 300", "must be integers"),
        ("a.jpg PINHOLE 0 600 700 700 400 300", "must be positive"),
        ("a.jpg PINHOLE 800 600 -700 700 400 300", "must be positive"),
        ("a.jpg PINHOLE 800 600 700 700 inf 300", "finite"),
        ("a.jpg", "expected `name MODEL"),
        ("a.jpg PINHOLE 8 6 7 7 4 3\na.jpg PINHOLE 8 6 7 7 4 3", ":2: 'a.jpg' already has intrinsics"),
        ("a.jpg PINHOLE 800 600 3 700 400 300", "fx = 3 px is implausible for an image of 800 x 600"),
        ("a.jpg PINHOLE 800 600 700 700 900 300", "principal point cx,cy = 900,300 is outside"),
        (
            "a.jpg SIMPLE_RADIAL 800 600 700 400 300 1006",
            "k = 1006 is not a plausible distortion.*takes width, height, f, cx, cy, k",
        ),
        ("a.jpg PINHOLE 800 9999999999 700 700 400 300", "positive, up to 1,000,000"),
        ("\n", "no intrinsics"),
    ],
)
def test_wrong_intrinsics(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        read_intrinsics_list(file(tmp_path, text))


def test_the_models_have_pycolmaps_numbers() -> None:
    """The counts of COLMAP's documentation ("Camera Models"), beside what pycolmap says."""
    documented = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8, "FULL_OPENCV": 12}
    documented |= {"OPENCV_FISHEYE": 8, "RADIAL_FISHEYE": 5, "FOV": 5, "THIN_PRISM_FISHEYE": 12}
    models = camera_models()
    assert {name: len(models[name].params) for name in documented} == documented
    assert [name for name in documented if models[name].is_fisheye] == documented_fisheye()
    opencv = models["OPENCV"]
    assert (opencv.focal, opencv.centre, opencv.distortion) == ((0, 1), (2, 3), (4, 5, 6, 7))


def documented_fisheye() -> list[str]:
    return ["OPENCV_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE"]


def test_write_text_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "old", owned=True)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(NotWritableError, match="No space left"):
        write_text(path, "new", owned=True)
    assert path.read_text() == "old"
    monkeypatch.undo()
    monkeypatch.setattr(artifact, "open_part", full)
    with pytest.raises(NotWritableError):
        write_text(path, "new", owned=True)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert write_text(path, "new", owned=True).read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_write_text_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritableError):
        write_text(tmp_path / "file" / "x.txt", "text")


@MANY
@given(st.text(st.characters(), max_size=30))
def test_any_text_is_written_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.txt"
    with contextlib.suppress(FeatkitError):
        write_text(path, text, owned=True)
        assert path.read_bytes() == text.encode()


def test_lines_are_counted_from_one(tmp_path: Path) -> None:
    assert list(read_lines(file(tmp_path, "# c\n\n a \nb"))) == [(3, "a"), (4, "b")]


def test_stamps(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert not is_stamped(path, Made(), "in")
    write_stamp(path, Made(), "in", kind="map")
    assert is_stamped(path, Made(), "in")
    assert not is_stamped(path, Made(value=2), "in")
    assert not is_stamped(path, Made(), "other")
    assert json.loads(path.read_text())["kind"] == "map"
    for broken in ("", "[]", "{"):
        path.write_text(broken)
        assert read_stamp(path) is None
    assert digest("ab", "c") != digest("a", "bc")
