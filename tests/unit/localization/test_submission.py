"""Submissions: what is written is valid, and each kind of damage is named with its line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.core.errors import BadInputError
from featkit.core.types import Pose
from featkit.localization.stage import check_submission, submission_name, write_submission

QUERIES = ["query/day/nexus4/a.jpg", "query/night/nexus5x/b.jpg", "query/night/nexus5x/c.jpg"]
# The example of the benchmark's own README.
EXAMPLE = "a.jpg 0.00430040 -0.00971127 0.0871046 0.996143 724.38099 23.5118 180.934"


def test_what_is_written_is_valid(tmp_path: Path) -> None:
    pose = Pose(np.array([0.5, -0.5, 0.5, -0.5]), np.array([724.381, -23.5, 1e-7]))
    path = write_submission(tmp_path / submission_name("1.1", "x"), {QUERIES[1]: pose, QUERIES[0]: pose})
    assert path.name == "Aachen_v1_1_eval_[featkit-x].txt"
    assert submission_name("1.0", "x") == "Aachen_eval_[featkit-x].txt"
    first = path.read_text().splitlines()[0].split()
    assert first[0] == "b.jpg"
    assert [float(field) for field in first[1:]] == [0.5, -0.5, 0.5, -0.5, 724.381, -23.5, 1e-7]
    checked = check_submission(path, QUERIES)
    assert checked.problems == ()
    assert checked.poses.keys() == {"a.jpg", "b.jpg"}
    checked.raise_problems()


def test_the_benchmarks_own_example(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text(EXAMPLE)
    assert check_submission(tmp_path / "s.txt", QUERIES).problems == ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.jpg 1 0 0 0 1 2 3", "'a.jpg' is listed twice"),
        ("b.jpg 1 0 0 0 1 2", "7 fields, 8 are needed"),
        ("b.jpg 1 0 0 0 1 2 3 4", "9 fields"),
        ("d.jpg 1 0 0 0 1 2 3", "'d.jpg' is not a query"),
        ("query/night/nexus5x/b.jpg 1 0 0 0 1 2 3", "has a folder"),
        ("b.jpg 1 0 0 0 1 2 three", "seven numbers"),
        ("b.jpg 1 0 0 0 1 2 nan", "not finite"),
        ("b.jpg 1 0 0 0 inf 2 3", "not finite"),
        ("b.jpg 1 0 0 0.1 1 2 3", "length 1.005, not 1"),
        ("b.jpg 0 0 0 0 1 2 3", "length 0, not 1"),
    ],
)
def test_damage_is_named(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text(f"{EXAMPLE}\n\n{line}\nc.jpg 1 0 0 0 1 2 3\n")
    checked = check_submission(path, QUERIES)
    (problem,) = checked.problems
    assert problem.startswith("line 3: ")
    assert words in problem
    assert checked.poses.keys() == {"a.jpg", "c.jpg"}
    with pytest.raises(BadInputError, match="not a valid submission: line 3"):
        checked.raise_problems()


def test_more_than_a_line_can_hold_and_nothing_at_all(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text("x\n" * 5)
    with pytest.raises(BadInputError, match=r"line 3: .*; and 2 more$"):
        check_submission(path, QUERIES).raise_problems()
    path.write_text("\n")
    with pytest.raises(BadInputError, match="no pose in it"):
        check_submission(path, QUERIES).raise_problems()
    with pytest.raises(BadInputError, match="no such file"):
        check_submission(tmp_path / "none.txt", QUERIES)


def test_two_queries_of_one_file_name(tmp_path: Path) -> None:
    pose = Pose(np.array([1.0, 0, 0, 0]), np.zeros(3))
    with pytest.raises(BadInputError, match="one file name"):
        write_submission(tmp_path / "s.txt", {"day/a.jpg": pose, "night/a.jpg": pose})
