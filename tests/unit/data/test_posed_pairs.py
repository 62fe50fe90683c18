"""Reading posed pairs: exact geometry, every bad line one clear error."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from posed_scenes import MadeScene, make_scene

from featkit.core.config import digest
from featkit.core.errors import BadInputError
from featkit.data.posed_format import format_cameras
from featkit.data.posed_pairs import PosedConfig, PosedPairs, read_posed_pairs
from featkit.geometry.epipolar import epipolar_distances
from featkit.geometry.poses import rotation_angle_deg


@pytest.fixture
def scene(tmp_path: Path) -> MadeScene:
    return make_scene(tmp_path / "root")


def root_of(scene: MadeScene) -> Path:
    return scene.folder.parents[2]


def largest_distance(pairs: PosedPairs, scene: MadeScene) -> float:
    worst = 0.0
    for index, (_, first, second) in enumerate(pairs.pairs):
        found = epipolar_distances(pairs.fundamental01(index), scene.seen(first), scene.seen(second))
        worst = max(worst, *(float(d.max()) for d in found))
    return worst


def test_true_matches_lie_on_their_lines(scene: MadeScene) -> None:
    pairs = read_posed_pairs(root_of(scene))
    assert len(pairs) == 6
    assert largest_distance(pairs, scene) < 1e-6
    assert pairs.names(0) == ("a/dense0/000.png", "a/dense0/001.png")
    assert pairs.pixels(0, 1).shape == (120, 90, 3)
    assert largest_distance(read_posed_pairs(root_of(scene), PosedConfig(origin="centre")), scene) > 1e-2


def test_a_k_of_pixel_centres(scene: MadeScene) -> None:
    moved = scene.table.intrinsics - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
    rewrite(scene, intrinsics=moved)
    assert largest_distance(read_posed_pairs(root_of(scene), PosedConfig(origin="centre")), scene) < 1e-6


def test_every_place_to_start_from(scene: MadeScene, tmp_path: Path) -> None:
    folder = scene.folder
    for root, name in (
        (folder.parents[2].parent, "root/a/dense0"),
        (folder.parents[1], "dense0"),
        (folder.parent, "dense0"),
        (folder, "dense0"),
    ):
        found = read_posed_pairs(root)
        assert (len(found), found.scenes[0].name) == (6, name)
        assert found.pixels(0, 0).shape == (90, 120, 3)


def test_a_zip_reads_as_its_folder(scene: MadeScene, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root_of(scene)))
    folder, packed = read_posed_pairs(root_of(scene)), read_posed_pairs(archive)
    assert packed.names(3) == folder.names(3)
    np.testing.assert_array_equal(packed.fundamental01(3), folder.fundamental01(3))
    np.testing.assert_array_equal(packed.pixels(0, 2), folder.pixels(0, 2))
    assert read_posed_pairs(archive / "a").names(0)[0] == "dense0/000.png"


def rewrite(scene: MadeScene, **changes: np.ndarray) -> None:
    from dataclasses import replace

    (scene.folder / "img_cam.txt").write_text(format_cameras(replace(scene.table, **changes)))


def test_several_scenes(tmp_path: Path) -> None:
    scenes = [make_scene(tmp_path, name, seed=seed) for seed, name in enumerate("ba")]
    pairs = read_posed_pairs(tmp_path)
    assert [named.name for named in pairs.scenes] == ["a/dense0", "b/dense0"]
    assert np.bincount(pairs.pairs[:, 0]).tolist() == [6, 6]
    assert largest_distance(pairs.select(np.arange(6)), scenes[1]) < 1e-6


def test_names_with_spaces(scene: MadeScene) -> None:
    (scene.folder / "images" / "000.png").rename(scene.folder / "images" / "at noon.png")
    text = (scene.folder / "img_cam.txt").read_text().replace("000.png", "at noon.png")
    (scene.folder / "img_cam.txt").write_text(text)
    (scene.folder / "pairs.txt").write_text("at noon.png\t001.png\n\n# none\n002.png\t003.png\n")
    assert read_posed_pairs(root_of(scene)).names(0)[0] == "a/dense0/at noon.png"


def test_pairs_turned_too_far_are_left_out(scene: MadeScene) -> None:
    rotations = scene.table.rotations
    angles = [rotation_angle_deg(rotations[a], rotations[b]) for a in range(4) for b in range(a + 1, 4)]
    assert min(angles) < 25 < max(angles)
    found = read_posed_pairs(root_of(scene), PosedConfig(max_rotation_deg=25))
    assert len(found) == sum(angle <= 25 for angle in angles)
    with pytest.raises(BadInputError, match=r"no pair is left.*world to camera"):
        read_posed_pairs(root_of(scene), PosedConfig(max_rotation_deg=1))


def test_at_most_so_many_pairs(scene: MadeScene) -> None:
    config = PosedConfig(max_pairs=3)
    drawn = [read_posed_pairs(root_of(scene), config, seed).pairs for seed in range(8)]
    assert {len(pairs) for pairs in drawn} == {3}
    assert len({pairs.tobytes() for pairs in drawn}) > 2
    np.testing.assert_array_equal(read_posed_pairs(root_of(scene), config, 5).pairs, drawn[5])


def test_images_that_see_nothing_of_each_other(tmp_path: Path) -> None:
    """Two cameras side by side, the second turned by 79 degrees about the axis through both: no line reaches it."""
    scene = make_scene(tmp_path, images=2)
    angle = np.radians(79)
    tilted = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    rewrite(scene, rotations=np.stack([np.eye(3), tilted]), translations=np.array([[0.0, 0, 0], [1, 0, 0]]))
    with pytest.raises(BadInputError, match="do not overlap"):
        read_posed_pairs(root_of(scene))


def test_cameras_at_one_place_are_no_pair(scene: MadeScene) -> None:
    rotations, translations = scene.table.rotations.copy(), scene.table.translations.copy()
    centre = -rotations[0].T @ translations[0]
    translations[1] = -rotations[1] @ centre
    rewrite(scene, translations=translations)
    assert len(read_posed_pairs(root_of(scene))) == 5


def break_rotation(lines: list[list[str]]) -> None:
    lines[1][7] = str(float(lines[1][7]) + 0.01)


def break_handedness(lines: list[list[str]]) -> None:
    lines[1][7:10] = [str(-float(v)) for v in lines[1][7:10]]


def break_k(lines: list[list[str]]) -> None:
    lines[1][3:7] = [str(2 * float(v)) for v in lines[1][3:7]]


def break_size(lines: list[list[str]]) -> None:
    lines[1][1:3] = ["60", "60"]
    lines[1][5:7] = ["30", "30"]


def break_count(lines: list[list[str]]) -> None:
    lines[1].pop()


def break_number(lines: list[list[str]]) -> None:
    lines[1][4] = "f"


def break_focal(lines: list[list[str]]) -> None:
    lines[1][4] = "-100"


def break_finite(lines: list[list[str]]) -> None:
    lines[1][18] = "nan"


def break_name(lines: list[list[str]]) -> None:
    lines[1][0] = "gone.png"


def break_unique(lines: list[list[str]]) -> None:
    lines[1][0] = lines[0][0]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (break_rotation, "001.png.*not a rotation"),
        (break_handedness, "not a rotation"),
        (break_k, "K for another image size"),
        (break_size, "smaller than 64 px"),
        (break_count, "18 numbers"),
        (break_number, "is not a number"),
        (break_focal, "focal lengths positive"),
        (break_finite, "finite"),
        (break_name, "no image .*gone.png"),
        (break_unique, "already in line 1"),
    ],
)
def test_a_bad_camera_is_named_with_its_line(scene: MadeScene, damage: object, says: str) -> None:
    path = scene.folder / "img_cam.txt"
    lines = [line.split() for line in path.read_text().splitlines()]
    damage(lines)  # type: ignore[operator]
    path.write_text("".join(" ".join(line) + "\n" for line in lines))
    with pytest.raises(BadInputError, match=rf"img_cam.txt:2: .*{says}"):
        read_posed_pairs(root_of(scene))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "pairs.txt: no pairs"),
        ("000.png\n", "pairs.txt:1: two image names"),
        ("000.png 001.png\n000.png 004.png\n", "pairs.txt:2: '004.png' has no camera"),
        ("002.png 002.png\n", "pairs.txt:1: .*paired with itself"),
    ],
)
def test_bad_pairs(scene: MadeScene, text: str, says: str) -> None:
    (scene.folder / "pairs.txt").write_text(text)
    with pytest.raises(BadInputError, match=says):
        read_posed_pairs(root_of(scene))


def test_bad_folders(scene: MadeScene, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such folder"):
        read_posed_pairs(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match="featkit data posed-pairs"):
        read_posed_pairs(tmp_path / "empty")
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(BadInputError, match="copy it again"):
        read_posed_pairs(tmp_path / "no.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(BadInputError, match="nothing in inner"):
        read_posed_pairs(tmp_path / "other.zip" / "inner")
    (scene.folder / "pairs.txt").unlink()
    with pytest.raises(BadInputError, match=r"pairs.txt: no such file"):
        read_posed_pairs(root_of(scene))


def test_one_image_is_no_scene(tmp_path: Path) -> None:
    make_scene(tmp_path, images=1)
    with pytest.raises(BadInputError, match="only one image"):
        read_posed_pairs(tmp_path)


def test_broken_photographs_are_named_when_they_are_needed(scene: MadeScene) -> None:
    (scene.folder / "images" / "000.png").write_bytes(b"no image")
    cv2.imwrite(str(scene.folder / "images" / "001.png"), np.zeros((90, 120, 3), np.uint8))
    pairs = read_posed_pairs(root_of(scene))
    with pytest.raises(BadInputError, match=r"000.png: cannot be decoded"):
        pairs.pixels(0, 0)
    with pytest.raises(BadInputError, match=r"120 x 90 pixels, but its camera .* 90 x 120"):
        pairs.pixels(0, 1)


def test_boxes_are_of_the_pairs_they_were_written_with(scene: MadeScene) -> None:
    whole = read_posed_pairs(root_of(scene)).boxes
    np.testing.assert_array_equal(whole[0], [[-0.5, -0.5, 119.5, 89.5], [-0.5, -0.5, 89.5, 119.5]])
    text = (scene.folder / "pairs.txt").read_text()
    told = {"of_pairs": digest(text), "box0": [[1, 2, 3, 4]] * 6, "box1": [[5, 6, 7, 8]] * 6}
    (scene.folder / "pairs.json").write_text(json.dumps(told))
    np.testing.assert_array_equal(read_posed_pairs(root_of(scene)).boxes[2], [[1, 2, 3, 4], [5, 6, 7, 8]])
    (scene.folder / "pairs.txt").write_text("".join(reversed(text.splitlines(keepends=True))))
    assert read_posed_pairs(root_of(scene)).boxes[0, 0, 2] > 80
    (scene.folder / "pairs.json").write_text("{")
    assert read_posed_pairs(root_of(scene)).boxes[0, 0, 2] > 80


def test_links_to_scenes_are_followed_once(tmp_path: Path) -> None:
    """As people lay scenes out: 0001 and 0002 on another disk; links in a circle and to nowhere."""
    store, root = tmp_path / "disk", tmp_path / "root"
    for name in ("0001", "0002"):
        make_scene(store, name)
    root.mkdir()
    (root / "0001").symlink_to(store / "0001")
    (root / "again").symlink_to(store / "0001", target_is_directory=True)
    (root / "0002").mkdir()
    (root / "0002" / "dense0").symlink_to(store / "0002" / "dense0")
    (store / "0001" / "up").symlink_to(root)
    (root / "nowhere").symlink_to(tmp_path / "gone")
    pairs = read_posed_pairs(root)
    assert [named.name for named in pairs.scenes] == ["0001/dense0", "0002/dense0"]
    assert pairs.pixels(0, 0).shape == (90, 120, 3)
    (root / "0000").symlink_to(root / "real")
    make_scene(root, "real")
    assert read_posed_pairs(root).scenes[-1].name == "real/dense0", "a folder has its own name where it has one"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "pairs.txt").unlink(), "b/dense0/aligned/pairs.txt: no such file"),
        (lambda folder: (folder / "pairs.txt").write_text("# none\n\n"), "b/dense0/aligned/pairs.txt: no pairs in it"),
        (lambda folder: (folder / "img_cam.txt").write_text(""), "b/dense0/aligned/img_cam.txt: no images in it"),
        (
            lambda folder: (folder / "img_cam.txt").write_text((folder / "img_cam.txt").read_text().split("\n")[0]),
            "b/dense0/aligned/img_cam.txt: only one image in it",
        ),
    ],
)
def test_a_scene_with_nothing_to_learn_from_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, says: str
) -> None:
    scenes = {name: make_scene(tmp_path / "root", name, seed=seed) for seed, name in enumerate("abc")}
    damage(scenes["b"].folder)
    with caplog.at_level("WARNING", "featkit"):
        pairs = read_posed_pairs(tmp_path / "root")
    assert [named.name for named in pairs.scenes] == ["a/dense0", "c/dense0"]
    assert np.bincount(pairs.pairs[:, 0]).tolist() == [6, 6]
    assert largest_distance(pairs.select(np.arange(6, 12)), scenes["c"]) < 1e-6
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"passed over: {tmp_path / 'root' / says}")
    for name in "ac":
        shutil.rmtree(tmp_path / "root" / name)
    with pytest.raises(BadInputError, match=rf"{says}.*there is no other scene"):
        read_posed_pairs(tmp_path / "root")


def test_a_list_of_scenes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/0001", "train/0002", "train/0022", "test/0003"):
        make_scene(tmp_path, name)
    for wanted, found in (
        (("0002", "0001"), ["train/0001/dense0", "train/0002/dense0"]),
        (("test/0003",), ["test/0003/dense0"]),
        (("train", "0003/dense0"), ["test/0003/dense0", *(f"train/{n}/dense0" for n in ("0001", "0002", "0022"))]),
    ):
        pairs = read_posed_pairs(tmp_path, PosedConfig(scenes=wanted))
        assert [named.name for named in pairs.scenes] == found
    assert caplog.text == ""
    assert len(read_posed_pairs(tmp_path, PosedConfig(scenes=("0001", "9999"))).scenes) == 1
    assert "1 of the 2 listed scenes do not exist, such as 9999" in caplog.text
    with pytest.raises(BadInputError, match="none of the 2 listed scenes exists, such as '9998'"):
        read_posed_pairs(tmp_path, PosedConfig(scenes=("9998", "9999")))


@pytest.mark.parametrize("size", [(360, 270), (361, 269), (90, 68)])
def test_photographs_of_another_size_are_resized_to_their_cameras(tmp_path: Path, size: tuple[int, int]) -> None:
    """A spot of light where the large photograph sees a point lies where the camera of the table sees it."""
    scene = make_scene(tmp_path, size=(120, 90))
    place = (np.array([71.3, 38.8]) + 0.5) * np.array(size) / (120, 90) - 0.5
    y, x = np.mgrid[: size[1], : size[0]]
    light = 250 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * (size[0] / 40) ** 2))
    cv2.imwrite(str(scene.folder / "images" / "000.png"), np.repeat(light[..., None], 3, axis=2).round())
    pairs = read_posed_pairs(tmp_path)
    pixels = pairs.pixels(0, 0)[..., 0].astype(float)
    assert pixels.shape == (90, 120)
    y, x = np.mgrid[:90, :120]
    found = np.array([(x * pixels).sum(), (y * pixels).sum()]) / pixels.sum()
    np.testing.assert_allclose(found, [71.3, 38.8], atol=0.03)
    assert largest_distance(pairs, scene) < 1e-6


def test_photographs_that_were_cropped_are_refused(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, size=(120, 90))
    cv2.imwrite(str(scene.folder / "images" / "000.png"), np.zeros((90, 100, 3), np.uint8))
    with pytest.raises(BadInputError, match="100 x 90 pixels, but its camera has 120 x 90: cropped or rotated"):
        read_posed_pairs(tmp_path).pixels(0, 0)
    assert read_posed_pairs(tmp_path, PosedConfig(stretch_tolerance=0.25)).pixels(0, 0).shape == (90, 120, 3)
