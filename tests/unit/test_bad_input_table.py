"""docs/robustness.md, its table of bad input: every row has an exit code and names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
LINES = PAGE.partition("## Bad input")[2].splitlines()
ROWS = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in LINES if line.startswith("| ")][1:]
CODES = {"0", "1", "2", "3", "4", "5", "130", "143", "-"}


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])
def test_a_row_is_kept_by_its_test(row: list[str]) -> None:
    assert len(row) == 4
    assert set(re.split(r",\s*", row[2])) <= CODES
    named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", row[3])
    assert named, row[3]
    tree = ast.parse((ROOT / named[1]).read_text(encoding="utf-8"))
    assert named[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_table_is_whole() -> None:
    assert len(ROWS) > 40


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(tests/[\w/]+\.py::test_\w+)`", PAGE))))
def test_a_named_test_is_there(named: str) -> None:
    file, _, name = named.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(tests/[\w/]+\.py)`", PAGE))))
def test_a_promise_is_kept_by_a_file(path: str) -> None:
    assert (ROOT / path).is_file()
