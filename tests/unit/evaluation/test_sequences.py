"""Sequences are read whole or refused with what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from warped_sequences import write_tiny

from featkit.core.errors import BadInputError
from featkit.evaluation.sequences import TOO_LARGE, read_homography, read_sequences


@pytest.mark.parametrize("oxford", [True, False])
def test_both_layouts_read_alike(tmp_path: Path, oxford: bool) -> None:
    names = ("boat", "bark") if oxford else ("v_adam", "i_dome")
    for name in names:
        write_tiny(tmp_path, name, oxford)
    (tmp_path / "not a sequence").mkdir()
    matrix = tmp_path / names[0] / ("H1to4p" if oxford else "H_1_4")
    matrix.write_text("  2.5e0 0 1\r\n 0 3 -4\r\n 1e-4 0 1\r\n")
    data = read_sequences(tmp_path)
    assert [one.name for one in data.sequences] == sorted(names)
    first = next(one for one in data.sequences if one.name == names[0])
    assert [path.name for path in first.images] == [f"img{n}.png" if oxford else f"{n}.ppm" for n in range(1, 7)]
    assert first.type == ("" if oxford else "viewpoint")
    pairs = list(first.pairs())
    assert [pair.number for pair in pairs] == [2, 3, 4, 5, 6]
    np.testing.assert_array_equal(pairs[2].homography, [[2.5, 0, 1], [0, 3, -4], [1e-4, 0, 1]])
    assert pairs[2].pair.name0 == first.image_names[0]
    assert pairs[2].pair.name1 == first.image_names[3]
    assert len(data.image_names()) == 12
    assert not data.is_hpatches


def test_large_sequences_are_left_out_of_hpatches(tmp_path: Path) -> None:
    root = tmp_path / "hpatches-sequences-release"
    for name in ("i_dc", "i_dome", "v_talent"):
        write_tiny(root, name, oxford=False)
    data = read_sequences(tmp_path)  # the release's own folder is found
    assert [one.name for one in data.sequences] == ["i_dome"]
    assert data.left_out == ("i_dc", "v_talent")
    assert len(read_sequences(tmp_path, all_sequences=True).sequences) == 3
    chosen = read_sequences(tmp_path, ["i_dc"])
    assert [one.name for one in chosen.sequences] == ["i_dc"]
    assert len(TOO_LARGE) == 8
    assert sum(name.startswith("i_") for name in TOO_LARGE) == 57 - 52


def test_papers_numbers_are_of_just_their_sequences(tmp_path: Path) -> None:
    for number in range(52):
        write_tiny(tmp_path, f"i_{number:02}", oxford=False)
    for number in range(56):
        write_tiny(tmp_path, f"v_{number:02}", oxford=False)
    data = read_sequences(tmp_path)
    assert data.is_hpatches
    assert len(data.pairs()) == 540
    assert not read_sequences(tmp_path, ["i_00"]).is_hpatches
    for name in ("6.ppm", "H_1_6"):
        (tmp_path / "v_07" / name).unlink()
    assert not read_sequences(tmp_path).is_hpatches, "one pair fewer than the papers'"


@pytest.mark.parametrize("oxford", [True, False])
@pytest.mark.parametrize("images", [2, 3, 12])
def test_sequences_of_any_length(tmp_path: Path, images: int, oxford: bool) -> None:
    write_tiny(tmp_path, "adam", oxford, images)
    write_tiny(tmp_path, "bark", oxford)
    (tmp_path / "adam" / ("img2021.png" if oxford else "2021.png")).write_bytes(b"numbered apart: not of the sequence")
    short, six = read_sequences(tmp_path).sequences
    assert len(short.images) == images
    assert short.homographies.shape == (images - 1, 3, 3)
    assert [pair.number for pair in short.pairs()] == list(range(2, images + 1))
    assert [pair.pair.name1 for pair in short.pairs()] == list(short.image_names[1:])
    assert len(six.images) == 6
    assert len(read_sequences(tmp_path).pairs()) == images - 1 + 5


def test_a_sequence_is_as_long_as_its_last_homography_or_image(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "adam", oxford=False, images=3)
    (folder / "H_1_3").unlink()
    with pytest.raises(BadInputError, match="adam/H_1_3 is missing"):
        read_sequences(tmp_path)
    (folder / "H_1_4").write_text("1 0 0 0 1 0 0 0 1")
    with pytest.raises(BadInputError, match=r"adam/4.ppm is missing; adam/H_1_3 is missing"):
        read_sequences(tmp_path)


def test_one_error_names_all_that_is_missing_or_broken(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "bark")
    other = write_tiny(tmp_path, "v_wall", oxford=False)
    (folder / "img3.png").unlink()
    (folder / "img5.png").write_bytes(b"no image")
    (folder / "H1to2p").unlink()
    (folder / "H1to4p").write_text("1 0 0 0 1 0 0 0")
    (other / "H_1_6").write_text("1 0 zero\n0 1 0\n0 0 1")
    with pytest.raises(BadInputError) as caught:
        read_sequences(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "bark/img3.png is missing",
        "bark/img5.png is not an image",
        "bark/H1to2p is missing",
        "bark/H1to4p holds 8 numbers instead of 9",
        "v_wall/H_1_6 is not made of numbers",
        "featkit data fetch",
    ):
        assert words in message


def test_an_empty_sequence_is_refused(tmp_path: Path) -> None:
    (tmp_path / "i_empty").mkdir()
    with pytest.raises(
        BadInputError, match=r"i_empty/1.ppm is missing; i_empty/2.ppm is missing; i_empty/H_1_2 is missing;"
    ):
        read_sequences(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 0 0 0 1 0 0 0 nan", "not finite"),
        ("1 2 3 2 4 6 0 0 1", "not a homography"),
        ("0 0 0 0 0 0 0 0 0", "not a homography"),
        ("1 0 0 0 1 0 1 0 0", "not a homography"),
        ("1 0 0 0 1 0 0 0 1 0", "10 numbers"),
        ("", "0 numbers"),
    ],
)
def test_a_broken_homography_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "H1to2p"
    path.write_text(text)
    with pytest.raises(BadInputError, match=words):
        read_homography(path)


def test_a_homography_far_from_the_origin_is_one(tmp_path: Path) -> None:
    """Strong zoom and a large shift have a small determinant for their norm."""
    path = tmp_path / "H1to2p"
    path.write_text("0.05 0 4000\n0 0.05 3000\n0 0 1\n")
    assert read_homography(path)[0, 2] == 4000


def test_what_is_no_folder_of_sequences(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, "bark")
    for root, words in (
        (tmp_path / "nothing", "no such folder"),
        (folder / "img1.png", "is a file"),
        (folder, "is one sequence; name the folder it lies in"),
    ):
        with pytest.raises(BadInputError, match=words):
            read_sequences(root)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadInputError, match="featkit data fetch hpatches-sequences"):
        read_sequences(empty)
    with pytest.raises(BadInputError, match=r"no sequence 'graf'; there are: bark"):
        read_sequences(tmp_path, ["graf"])
