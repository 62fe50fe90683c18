import json
import logging
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from featkit.core.config import make
from featkit.core.errors import BadInputError
from featkit.demo.scene import RenderedConfig, render_scene
from featkit.images.listing import list_images, marked
from featkit.io.artifact import place_files, write_text
from featkit.training.run_folder import RunFolder


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_nested_sorted_and_without_the_rest(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/z.png", "a/b/c.tiff", "a b/ü.jpeg", "notes.txt", "a.h5", "noext", "Z.webp")
    touch(tmp_path, ".hidden.jpg", ".trash/x.jpg", "a/.thumbs/y.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert list_images(tmp_path) == ["Z.webp", "a b/ü.jpeg", "a/b/c.tiff", "a/z.png", "b.JPG"]


def test_a_hidden_parent_does_not_hide(tmp_path: Path) -> None:
    touch(tmp_path / ".cache" / "scene", "a.jpg")
    assert list_images(tmp_path / ".cache" / "scene") == ["a.jpg"]


def test_a_name_that_is_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    try:
        touch(tmp_path, "ok.jpg", "sub/caf\udce9.jpg")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(BadInputError, match=r"'sub/caf\\udce9\.jpg' is not UTF-8") as error:
        list_images(tmp_path)
    str(error.value).encode()  # can be printed anywhere
    assert "\n" not in str(error.value)


def test_nothing_to_list(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such folder"):
        list_images(tmp_path / "none")
    touch(tmp_path, "a.txt")
    with pytest.raises(BadInputError, match="no images in it"):
        list_images(tmp_path)
    with pytest.raises(BadInputError, match="is a file, not a folder"):
        list_images(tmp_path / "a.txt")


def picture(path: Path, mark: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix, np.full((8, 8, 3), 90, np.uint8))[1].tobytes()
    path.write_bytes(encoded if mark is None else marked(encoded, mark))


@pytest.mark.slow
def test_what_featkit_wrote_below_is_no_photograph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each of these is what a command leaves, written by the code that writes it."""
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "run_0000001.jpg")  # of that name, but taken
    write_text(tmp_path / "dataset" / "dataset.json", json.dumps({"featkit_version": "1"}))
    picture(tmp_path / "dataset" / "x" / "b.jpg")
    picture(tmp_path / "left" / "own.jpg")
    picture(tmp_path / "new" / "images" / "c.png")
    picture(tmp_path / "new" / "left" / "d.jpg")
    place_files(tmp_path / "new", tmp_path, kind="export")
    shutil.rmtree(tmp_path / "new")
    run = RunFolder(tmp_path / "training")
    run.pictures.mkdir(parents=True)
    run.add_pictures(7, {"matches": np.zeros((8, 8, 3), np.uint8)})
    render_scene(make(RenderedConfig, {"width": 32, "height": 32, "num_map": 2, "num_queries": 0}), tmp_path / "demo")
    with caplog.at_level(logging.WARNING, "featkit"):
        assert list_images(tmp_path) == ["a.jpg", "left/own.jpg", "run_0000001.jpg"]
    assert (
        "(written by featkit): dataset/, images/c.png, left/d.jpg, training/pictures/matches_0000007.jpg" in caplog.text
    )
    assert "(a scene that featkit rendered): demo/" in caplog.text
    assert list_images(tmp_path / "demo" / "images") == ["0000.jpg", "0001.jpg"]
    assert list_images(tmp_path / "dataset" / "x") == ["b.jpg"]


def test_what_the_user_keeps_beside_the_photographs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", "b/c.jpg", "b/d.jpg.png", "masks/a.jpg.png", "masks/b/c.jpg.png", "a.jpg.png")
    touch(tmp_path, "thumbnails/.nomedia", "thumbnails/a.jpg", "empty/.nomedia")
    touch(tmp_path, "dense/images/a.jpg", "dense/stereo/depth_maps/a.jpg.bin", "dense/sparse/cameras.bin")
    with caplog.at_level(logging.WARNING, "featkit"):
        assert list_images(tmp_path) == ["a.jpg", "b/c.jpg", "b/d.jpg.png"]
    assert "3 passed over (masks of photographs): a.jpg.png, masks/a.jpg.png, masks/b/c.jpg.png" in caplog.text
    assert "1 passed over (a folder with .nomedia): thumbnails/" in caplog.text
    assert "1 passed over (a dense workspace of COLMAP's): dense/" in caplog.text
    assert list_images(tmp_path / "dense") == ["images/a.jpg"]


def test_a_map_made_here_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", "featkit/features.h5")
    write_text(tmp_path / "featkit" / "sparse.json", json.dumps({"featkit_version": "1"}))
    with caplog.at_level(logging.WARNING, "featkit"):
        assert list_images(tmp_path) == ["a.jpg"]
    assert not caplog.text
