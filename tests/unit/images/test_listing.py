from pathlib import Path

import pytest

from featkit.core.errors import BadInputError
from featkit.images.listing import list_images


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
