"""Names of a store's items: as a walk over everything in the file finds them."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from featkit.io import h5

NAMES = ["b.jpg", "a/2.jpg", "a/10.jpg", "a/b/c d.jpg", "ä/ö.jpg", "z"]


def walked(file: h5py.File, dataset: str) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Group) and dataset in item else None)
    return sorted(found)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "store.h5"
    with h5py.File(path, "w") as file:
        for name in NAMES:
            group = file.create_group(name)
            group["keypoints"], group["scores"] = [1.0], [1.0]
        file.create_group("empty/inner")
        file.create_group("other")["something"] = [1]
        file["loose"] = [1]
    return path


def test_all_items_are_listed(stored: Path) -> None:
    with h5.reading(stored) as file:
        assert h5.groups_with(file, "keypoints") == walked(file, "keypoints") == sorted(NAMES)
        assert h5.groups_with(file, "something") == ["other"]
        assert h5.groups_with(file, "nothing") == []


def test_an_item_whose_mark_is_damaged_is_left_out(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(item: h5py.Group, name: str) -> int:
        if item.name == "/a/2.jpg":
            raise OSError("bad object header")
        return 1

    monkeypatch.setattr(h5, "attribute", damaged)
    with h5py.File(stored) as file:
        found = [name for name, _ in h5.groups(file, "keypoints", whole=True)]
    assert sorted(found) == sorted({*NAMES} - {"a/2.jpg"})


def test_one_look_tells_whether_an_item_is_whole(stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        for name, value in (("b.jpg", 1), ("a/2.jpg", 0), ("a/10.jpg", [1, 1])):
            file[name].attrs[h5.COMPLETE] = value
        whole = [h5.is_complete(file, name) for name in (*NAMES[:4], "loose", "a/b", "absent", "")]
    assert whole == [True, False, False, False, False, False, False, False]
