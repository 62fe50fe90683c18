"""The text file that visuallocalization.net takes: `name qw qx qy qz tx ty tz` a line, and what is wrong with one.

name: the file's name alone, without folders. The pose is world to camera: a unit quaternion and the translation (not
the centre), in the frame of the reference model. A query without a pose has no line (the README of Aachen Day-Night).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from featkit import __version__
from featkit.errors import BadInputError
from featkit.store.artifact import write_described
from featkit.store.poses import format_poses
from featkit.store.text import read_lines
from featkit.types import Pose

FIELDS = 8
UNIT_TOLERANCE = 1e-3  # of a quaternion's length: what six digits after the point can be off, and some more
SHOWN = 3  # mistakes in an error's one line


@dataclass(frozen=True)
class SubmissionCheck:
    """What a submission holds. poses: by file name. problems: `line N: what is wrong`, in the order of the file."""

    path: Path
    poses: dict[str, Pose]
    problems: tuple[str, ...]

    def raise_problems(self) -> None:
        """Raise BadInputError, with the first few, when there are any."""
        if self.problems:
            more = f"; and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
            raise BadInputError(f"{self.path}: not a valid submission: {'; '.join(self.problems[:SHOWN])}{more}")


def file_name(name: str) -> str:
    """`query/night/nexus5x/IMG.jpg` -> `IMG.jpg`."""
    return PurePosixPath(name).name


def by_file_name(names: Iterable[str]) -> dict[str, str]:
    """File name -> name. Raises BadInputError when two names have one file name."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(file_name(name), name)
        if other != name:
            raise BadInputError(f"{name!r} and {other!r} have one file name; a submission cannot tell them apart")
    return found


def submission_name(version: str, method: str) -> str:
    """The name that the benchmark asks for, of Aachen "1.0" or "1.1"."""
    return f"Aachen_{'v1_1_' if version == '1.1' else ''}eval_[featkit-{method}].txt"


def write_submission(path: Path, poses: Mapping[str, Pose]) -> Path:
    """Write the poses of the queries that were localized, in their order. Raises BadInputError, NotWritableError."""
    by_file_name(poses)
    text = format_poses({file_name(name): pose for name, pose in poses.items()})
    return write_described(path, text, {"kind": "poses", "featkit_version": __version__, "localized": len(poses)})


def check_submission(path: Path, queries: Iterable[str]) -> SubmissionCheck:
    """Hold a submission against the names of all queries (with or without folders).

    Raises BadInputError when the file cannot be read; what is wrong in it is in the result.
    """
    known = by_file_name(queries)
    poses: dict[str, Pose] = {}
    problems = []
    for number, line in read_lines(path):
        problem, name, pose = _read(line, known)
        if problem is None and name in poses:
            problem = f"{name!r} is in it twice"
        if problem is not None or pose is None:
            problems.append(f"line {number}: {problem}")
        else:
            poses[name] = pose
    if not poses and not problems:
        problems.append("no pose in it")
    return SubmissionCheck(path, poses, tuple(problems))


def _read(line: str, known: Mapping[str, str]) -> tuple[str | None, str, Pose | None]:
    """What is wrong with a line (None: nothing), the name in it, and the pose."""
    fields = line.split()
    name = fields[0]
    if len(fields) != FIELDS:
        return f"{len(fields)} fields, {FIELDS} are needed: name qw qx qy qz tx ty tz", name, None
    if "/" in name or "\\" in name:
        return f"{name!r} has a folder; only the file's name is wanted", name, None
    if name not in known:
        return f"{name!r} is no query", name, None
    try:
        values = np.array([float(field) for field in fields[1:]])
    except ValueError:
        return "seven numbers are needed behind the name", name, None
    if not np.all(np.isfinite(values)):
        return "a number is not finite", name, None
    length = float(np.linalg.norm(values[:4]))
    if abs(length - 1.0) > UNIT_TOLERANCE:
        return f"the quaternion of {name!r} has length {length:.4g}, not 1", name, None
    return None, name, Pose(values[:4] / length, values[4:])
