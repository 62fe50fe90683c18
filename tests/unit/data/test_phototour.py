"""UBC PhotoTour's format: written, read by others, read from others, and everything that can be wrong with it."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from featkit.core.errors import BadInputError, NotWritableError
from featkit.data.patch_set import PatchSet, union
from featkit.data.phototour import (
    MAPPED,
    PER_BITMAP,
    MappedPatches,
    TestPairs,
    create_bitmaps,
    find_pairs,
    read_image_ids,
    read_phototour,
    read_phototour_pairs,
    write_info,
    write_phototour,
    write_phototour_pairs,
    write_scenes,
)

COUNT = 300  # a full bitmap and a part of a second one


def random_set(count: int = COUNT, seed: int = 0) -> PatchSet:
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (count, 64, 64), dtype=np.uint8)
    classes = np.sort(rng.integers(0, max(1, count // 3), count))
    return PatchSet("set", patches, classes, (classes % 2).astype(np.int64), ("even", "odd"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_phototour(tmp_path / "set", random_set())


def test_what_is_written_is_read(folder: Path) -> None:
    wanted, got = random_set(), read_phototour(folder)
    assert got.name == "set"
    assert got.patches.shape == (COUNT, 64, 64)
    assert len(got) == len(got.patches) == COUNT
    np.testing.assert_array_equal(got.patches[np.arange(COUNT)], wanted.patches)
    np.testing.assert_array_equal(got.classes, wanted.classes)
    np.testing.assert_array_equal(got.scenes, wanted.scenes)
    assert got.scene_names == wanted.scene_names


def test_patches_come_in_the_order_asked(folder: Path) -> None:
    index = np.array([299, 0, 257, 255, 256, 0])
    patches = random_set().patches
    np.testing.assert_array_equal(read_phototour(folder).patches[index], patches[index])
    mask = np.zeros(COUNT, bool)
    mask[[7, 280]] = True
    np.testing.assert_array_equal(read_phototour(folder).patches[mask], patches[[7, 280]])
    assert read_phototour(folder).patches[np.zeros(0, int)].shape == (0, 64, 64)


@pytest.mark.parametrize("index", [COUNT, 511, -1])
def test_there_is_no_patch_beyond_the_last(folder: Path, index: int) -> None:
    """The second bitmap has room for 512; a negative index would silently be another patch."""
    with pytest.raises(IndexError):
        read_phototour(folder).patches[np.array([index])]


def test_opencv_sees_rows_of_sixteen_from_the_top_left(folder: Path) -> None:
    bitmap = cv2.imread(str(folder / "patches0000.bmp"), cv2.IMREAD_UNCHANGED)
    assert bitmap.shape == (1024, 1024)
    patches = random_set().patches
    for number in (0, 15, 16, 37, 255):
        y, x = number // 16 * 64, number % 16 * 64
        np.testing.assert_array_equal(bitmap[y : y + 64, x : x + 64], patches[number])
    assert cv2.imread(str(folder / "patches0001.bmp"), cv2.IMREAD_UNCHANGED)[192:].max() == 0  # 44 patches: 3 rows


def test_bitmaps_of_another_program_are_read(tmp_path: Path) -> None:
    mosaic = np.random.default_rng(3).integers(0, 256, (1024, 1024), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "patches0000.bmp"), mosaic)
    write_info(tmp_path, np.arange(256) // 2, np.zeros(256, int))
    got = read_phototour(tmp_path).patches[np.array([0, 17])]
    np.testing.assert_array_equal(got, [mosaic[:64, :64], mosaic[64:128, 64:128]])


def test_bitmaps_stored_from_the_top_are_read(folder: Path) -> None:
    path = folder / "patches0000.bmp"
    data = path.read_bytes()
    height = (-1024).to_bytes(4, "little", signed=True)
    rows = np.frombuffer(data[1078:], np.uint8).reshape(1024, 1024)[::-1]
    path.write_bytes(data[:22] + height + data[26:1078] + rows.tobytes())
    np.testing.assert_array_equal(read_phototour(folder).patches[np.arange(COUNT)], random_set().patches)


def test_only_the_files_of_the_patches_are_touched(folder: Path) -> None:
    """Mapped, not read: patches changed on disk are changed in the set."""
    patches = read_phototour(folder).patches
    with pytest.raises(BadInputError, match="not made by featkit"):
        create_bitmaps(folder, COUNT)
    for path in folder.glob("*.bmp"):
        path.unlink()
    bitmaps = create_bitmaps(folder, COUNT)
    bitmaps[np.array([299])] = np.full((1, 64, 64), 9, np.uint8)
    assert (patches[np.array([299])] == 9).all()


def test_more_bitmaps_than_a_process_may_open(folder: Path, tmp_path: Path) -> None:
    """UBC's own sets have up to 2,475 of them, and 1,024 open files are a common limit."""
    many = tmp_path / "many"
    many.mkdir()
    paths = [many / f"patches{number:04d}.bmp" for number in range(MAPPED + 100)]
    for number, path in enumerate(paths):
        os.link(folder / f"patches{number % 2:04d}.bmp", path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + MAPPED + 20, hard))
    try:
        patches = MappedPatches(paths, PER_BITMAP * len(paths))
        everywhere = np.random.default_rng(0).permutation(PER_BITMAP * len(paths))[:4000]
        found = patches[everywhere]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    two = MappedPatches(paths[:2], 2 * PER_BITMAP)
    np.testing.assert_array_equal(found, two[everywhere % (2 * PER_BITMAP)])


def test_a_folder_without_scenes_is_one_scene(folder: Path) -> None:
    (folder / "scenes.txt").unlink()
    got = read_phototour(folder)
    assert got.scene_names == ("set",)
    assert not got.scenes.any()
    assert got.images is None


def test_scenes_are_those_of_the_images(tmp_path: Path) -> None:
    write_phototour(tmp_path, random_set(4), images=np.array([2, 0, 1, 2]))
    (tmp_path / "info.txt").unlink()
    write_info(tmp_path, np.array([5, 5, 9, 9]), np.array([2, 0, 1, 2]))
    write_scenes(tmp_path, [("b", "x.jpg"), ("a", "y z.jpg"), ("b", "w.jpg")])
    got = read_phototour(tmp_path)
    assert [got.scene_names[i] for i in got.scenes] == ["b", "b", "a", "b"]
    np.testing.assert_array_equal(read_image_ids(tmp_path), [2, 0, 1, 2])


def overwrite(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)  # type: ignore[func-returns-value]


def cut_off(folder: Path) -> None:
    path = folder / "patches0001.bmp"
    path.write_bytes(path.read_bytes()[:-1])


def of_size(*shape: int) -> Callable[[Path], None]:
    return lambda folder: cv2.imwrite(str(folder / "patches0000.bmp"), np.zeros(shape, np.uint8))  # type: ignore[return-value]


def lines(count: int, line: str = "{0} 0") -> str:
    return "".join(line.format(i // 2) + "\n" for i in range(count))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no bitmap": (overwrite("patches0001.bmp", "hello"), r"patches0001.bmp: not a bitmap"),
    "an empty bitmap": (overwrite("patches0000.bmp", ""), r"patches0000.bmp: not a bitmap"),
    "cut off": (cut_off, r"patches0001.bmp: the file is cut off"),
    "of another size": (of_size(1024, 512), r"patches0000.bmp: 512 x 1024 pixels of 8 bits"),
    "in colour": (of_size(1024, 1024, 3), r"1024 x 1024 pixels of 24 bits"),
    "too few lines": (overwrite("info.txt", lines(256)), r"info.txt: 256 lines.* 2 bitmaps hold 257 to 512 patches"),
    "too many lines": (overwrite("info.txt", lines(513)), r"info.txt: 513 lines"),
    "words": (overwrite("info.txt", lines(10) + "1 one\n"), r"info.txt: line 11 is not a row of integers: '1 one'"),
    "fractions": (overwrite("info.txt", "1.5 0\n"), r"line 1 is not a row of integers"),
    "three columns": (overwrite("info.txt", "1 0\n1 0 0\n"), r"line 2 has 3 numbers, not 2"),
    "negative": (overwrite("info.txt", lines(299) + "-1 0\n"), r"info.txt: line 300 has a negative id"),
    "empty": (overwrite("info.txt", ""), r"info.txt: is empty"),
    "every class of one": (
        overwrite("info.txt", "".join(f"{i} 0\n" for i in range(300))),
        r"info.txt: no point has two patches",
    ),
    "no info": (lambda folder: (folder / "info.txt").unlink(), r"info.txt: no such file"),
    "a bitmap is missing": (
        lambda folder: (folder / "patches0001.bmp").rename(folder / "patches0002.bmp"),  # type: ignore[return-value]
        r"patches0001.bmp: missing",
    ),
    "too few scenes": (overwrite("scenes.txt", "only\t-\n"), r"scenes.txt: 1 lines, but info.txt has an image 1"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_wrong_is_said(folder: Path, kind: str) -> None:
    damage, message = BROKEN[kind]
    damage(folder)
    with pytest.raises(BadInputError, match=message):
        read_phototour(folder)


def test_folders_that_hold_no_patches(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no patches0000\.bmp in it"):
        read_phototour(tmp_path)
    with pytest.raises(BadInputError, match="no such folder"):
        read_phototour(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="is a file"):
        read_phototour(tmp_path / "file")
    with pytest.raises(NotWritableError):
        create_bitmaps(tmp_path / "file", 3)


def test_other_patch_sizes_are_refused(tmp_path: Path) -> None:
    small = PatchSet("s", np.zeros((2, 32, 32), np.uint8), np.zeros(2, int), np.zeros(2, int), ("s",))
    with pytest.raises(ValueError, match="64 x 64"):
        write_phototour(tmp_path, small)


def test_pairs_have_the_columns_of_the_official_files(folder: Path) -> None:
    patch_set = read_phototour(folder)
    same = int(np.flatnonzero(np.diff(patch_set.classes) == 0)[0])
    pairs = TestPairs(np.array([same, 0]), np.array([same + 1, 299]), np.array([True, False]))
    path = write_phototour_pairs(folder, pairs, patch_set.classes)
    assert path.name == "m50_2_2_0.txt"
    c = patch_set.classes
    assert path.read_text() == f"{same} {c[same]} 0 {same + 1} {c[same]} 0 0\n0 {c[0]} 0 299 {c[299]} 0 0\n"
    got = read_phototour_pairs(path, patch_set)
    assert len(got) == 2
    np.testing.assert_array_equal([got.index0, got.index1, got.match], [pairs.index0, pairs.index1, pairs.match])


def test_official_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m50_1000_1000_0.txt"
    path.write_text("55990 19870 0 55991 19870 0 0\n222535 81100 0 434451 155431 0 0\n")
    got = read_phototour_pairs(path)
    assert got.index0.tolist() == [55990, 222535]
    assert got.index1.tolist() == [55991, 434451]
    assert got.match.tolist() == [True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 {0} 0 300 {1} 0 0", "names patch 300; set has 300"),
        ("-1 {0} 0 3 {1} 0 0", "names patch -1"),
        ("0 {0} 0 299 {0} 0 0", "says patch 299 shows point"),
        ("0 {0} 0 299", "line 1 has 4 numbers, not 6 or 7"),
        ("0 {0} 0 299 x 0 0", "line 1 is not a row of integers"),
    ],
)
def test_pairs_that_do_not_belong_to_the_set(folder: Path, line: str, message: str) -> None:
    patch_set = read_phototour(folder)
    path = folder / "m50_1_1_0.txt"
    path.write_text(line.format(patch_set.classes[0], patch_set.classes[299]) + "\n")
    with pytest.raises(BadInputError, match=message):
        read_phototour_pairs(path, patch_set)


def test_the_official_pairs_come_first_then_the_largest(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no test pairs"):
        find_pairs(tmp_path)
    for count in (500, 4000, 500000):
        (tmp_path / f"m50_{count}_{count}_0.txt").touch()
    assert find_pairs(tmp_path).name == "m50_500000_500000_0.txt"
    (tmp_path / "m50_100000_100000_0.txt").touch()
    assert find_pairs(tmp_path).name == "m50_100000_100000_0.txt"


def test_the_recorded_magnification(folder: Path) -> None:
    assert read_phototour(folder).magnification is None
    (folder / "dataset.json").write_text('{"settings": {"magnification": 18}}')
    assert read_phototour(folder).magnification == 18.0
    (folder / "dataset.json").write_text('{"patches": 3}')
    assert read_phototour(folder).magnification is None


@pytest.mark.parametrize("text", ['{"settings": {"magnification": -3}}', '{"settings": {"magnification": "big"}}', "{"])
def test_a_wrong_record(folder: Path, text: str) -> None:
    (folder / "dataset.json").write_text(text)
    with pytest.raises(BadInputError, match=r"dataset\.json: .*make the patches again"):
        read_phototour(folder)


def test_patches_of_one_size_are_joined() -> None:
    large, small, unknown = (replace(random_set(), name=str(m), magnification=m) for m in (18.0, 12.0, None))
    assert union([large, unknown]).magnification == 18.0
    assert union([unknown, unknown]).magnification is None
    with pytest.raises(BadInputError, match=r"magnification: 18\.0: 18, 12\.0: 12"):
        union([large, unknown, small])
