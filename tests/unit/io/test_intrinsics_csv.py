"""Lists of intrinsics as a table."""

from pathlib import Path

import pytest

from featkit.core.errors import BadInputError
from featkit.io.lists import Intrinsics, read_intrinsics_list

PLAIN = Intrinsics("PINHOLE", 640, 480, (500.0, 501.0, 320.0, 240.0))
RADIAL = Intrinsics("SIMPLE_RADIAL", 640, 480, (500.0, 320.0, 240.0, -0.1))


@pytest.mark.parametrize("heading", ["", "name,model,width,height,params\n", "Image, Model ,w,h\n"])
def test_a_table_says_what_a_list_says(tmp_path: Path, heading: str) -> None:
    table, listed = tmp_path / "a.CSV", tmp_path / "a.txt"
    table.write_text(
        f"{heading}a.jpg,PINHOLE,640,480,500,501,320,240\n# by hand\n"
        '"b, two.jpg", SIMPLE_RADIAL,640,480,500,320,240,-0.1,,\n'
    )
    listed.write_text("a.jpg PINHOLE 640 480 500 501 320 240\nb, two.jpg SIMPLE_RADIAL 640 480 500 320 240 -0.1\n")
    assert read_intrinsics_list(table) == read_intrinsics_list(listed) == {"a.jpg": PLAIN, "b, two.jpg": RADIAL}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,model\n", "no intrinsics"),
        ("a.jpg,PINHOL,640,480,1,1,1,1\n", r"a\.csv:1: no camera model 'PINHOL'"),
        ("a.jpg,PINHOLE,640,480,1,1,1\n", r"a\.csv:1: PINHOLE takes"),
        (",PINHOLE,640,480,1,1,1,1\n", r"a\.csv:1: expected"),
        ("a.jpg PINHOLE 640 480 1 1 1 1\n", r"a\.csv:1: no camera model ''"),
        ('"a.jpg,PINHOLE\n', r"a\.csv: not a csv file"),
        (
            "a.jpg,PINHOLE,640,480,500,500,320,240\na.jpg,PINHOLE,640,480,500,500,320,240\n",
            r"a\.csv:2: 'a\.jpg' already has intrinsics",
        ),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(BadInputError, match=words):
        read_intrinsics_list(tmp_path / "a.csv")
