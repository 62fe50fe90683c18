"""Which scenes are found below a folder, in which layouts, and what is said of those that are not there."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from featkit.core.errors import BadInputError
from featkit.evaluation.eth_scenes import SCENES, find_scenes, known_scene

NAMES = [scene.name for scene in SCENES]


def make_scene(folder: Path, images: int = 2, inside: str = "images") -> Path:
    place = folder / inside
    place.mkdir(parents=True, exist_ok=True)
    for number in range(images):
        cv2.imwrite(str(place / f"{number:04d}.png"), np.full((20, 30), 9 * number, np.uint8))
    return folder


def test_the_benchmark_has_nine_scenes() -> None:
    assert NAMES == [
        "fountain-P11", "Herz-Jesu-P8", "South-Building", "Madrid_Metropolis", "Gendarmenmarkt", "Tower_of_London",
        "Alamo", "Roman_Forum", "Cornell",
    ]  # fmt: skip
    for scene in SCENES:
        assert scene.source.startswith("http")


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        ("Fountain", "fountain-P11"),
        ("fountain_p11", "fountain-P11"),
        ("Herzjesu", "Herz-Jesu-P8"),
        ("Tower of London", "Tower_of_London"),
        ("ArtsQuad_dataset", "Cornell"),
    ],
)
def test_other_names_mean_the_same(name: str, scene: str) -> None:
    known = known_scene(name)
    assert known is not None
    assert known.name == scene


def test_layouts_of_the_downloads(tmp_path: Path) -> None:
    """images/ with a database beside, images in the folder itself, and an archive's long path."""
    make_scene(tmp_path / "Fountain", 11)
    (tmp_path / "Fountain" / "database.db").write_bytes(b"SQLite format 3\x00")
    make_scene(tmp_path / "south-building", 3, inside=".")
    deep = tmp_path / "home" / "wilsonkl" / "projects" / "SfM_Init" / "dataset_images" / "Gendarmenmarkt"
    make_scene(deep, 2)
    make_scene(tmp_path / "mine", 2)
    found = find_scenes(tmp_path)
    assert [scene.name for scene in found.scenes] == ["fountain-P11", "South-Building", "Gendarmenmarkt"]
    assert [scene.images.name for scene in found.scenes] == ["images", "south-building", "images"]
    assert [scene.is_whole for scene in found.scenes] == [True, False, False]
    assert [scene.name for scene in found.missing] == [n for n in NAMES if n not in {s.name for s in found.scenes}]
    assert found.scenes[0].names[0] == "0000.png"
    assert found.scenes[0].camera is None
    assert found.scenes[0].truth is None
    (mine,) = find_scenes(tmp_path, ["mine"]).scenes
    assert (mine.name, mine.known, mine.is_whole) == ("mine", None, False)
    both = find_scenes(tmp_path, ["fountain-P11", "mine", "Fountain"])
    assert [scene.name for scene in both.scenes] == ["fountain-P11", "mine"]


def test_a_scene_in_part_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_scene(tmp_path / "Herz-Jesu-P8", 5)
    with caplog.at_level(logging.WARNING, logger="featkit"):
        find_scenes(tmp_path)
    assert "5 images, the benchmark has 8" in caplog.text


def test_truth_of_images_that_are_there(tmp_path: Path) -> None:
    folder = make_scene(tmp_path / "Herzjesu", 3)
    (folder / "camera.txt").write_text("PINHOLE 30 20 25 25 15 10\n")
    (folder / "poses.txt").write_text("".join(f"000{i}.png 1 0 0 0 {i} 0 0\n" for i in (1, 2, 7)))
    (scene,) = find_scenes(tmp_path).scenes
    assert scene.truth is not None
    assert list(scene.truth) == ["0001.png", "0002.png"]
    assert scene.camera is not None
    assert scene.camera.params == (25, 25, 15, 10)
    (folder / "poses.txt").write_text("other.png 1 0 0 0 0 0 0\n")
    with pytest.raises(BadInputError, match="names none of the 3 images"):
        find_scenes(tmp_path)
    (folder / "poses.txt").unlink()
    (folder / "camera.txt").write_text("PINHOLE 30 20 25\n")
    with pytest.raises(BadInputError, match=r"camera\.txt:1"):
        find_scenes(tmp_path)


def test_what_is_missing_is_named_with_its_source(tmp_path: Path) -> None:
    make_scene(tmp_path / "Alamo")
    with pytest.raises(BadInputError) as asked:
        find_scenes(tmp_path, ["Alamo", "South-Building", "nowhere"])
    assert "'South-Building', 'nowhere'" in str(asked.value)
    assert "South-Building.zip" in str(asked.value)
    assert "there are: Alamo" in str(asked.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError) as none:
        find_scenes(tmp_path / "empty")
    for scene in SCENES:
        assert scene.name in str(none.value)
        assert scene.source in str(none.value)
    with pytest.raises(BadInputError, match="no such folder; get fountain-P11"):
        find_scenes(tmp_path / "gone")
    with pytest.raises(BadInputError, match="--scenes Alamo"):
        find_scenes(tmp_path / "Alamo")
    (tmp_path / "upper").mkdir()
    (tmp_path / "Alamo").rename(tmp_path / "upper" / "Alamo")
    with pytest.raises(BadInputError, match=r"there are some in .*upper"):
        find_scenes(tmp_path)
    with pytest.raises(BadInputError, match="no scene"):
        find_scenes(tmp_path / "upper", [".."])


@pytest.mark.parametrize(("images", "words"), [(0, "no images in it"), (1, "only one image, '0000.png'")])
def test_an_empty_scene_and_one_of_one_image(images: int, words: str, tmp_path: Path) -> None:
    make_scene(tmp_path / "fountain-P11", images)
    for wanted in ([], ["Fountain"]):
        with pytest.raises(BadInputError) as error:
            find_scenes(tmp_path, wanted)
        assert words in str(error.value)
        assert "has 11: https://" in str(error.value)
