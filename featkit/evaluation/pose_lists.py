"""Posed pairs as MegaDepth-1500 is handed round: text files beside a folder of images.

pairs_calibrated.txt (glue-factory, and SuperGlue's lists): a pair a line, `name0 name1 K0 K1 R t` or `... K0 K1 T`,
matrices row by row (9, 9 and 9 + 3 or 16 numbers); SuperGlue's has two rotations (0 to 3) after the names.
views.txt (glue-factory since 2025): an image a line, `name R t MODEL width height params...`, world to camera; its
pairs are in pairs.txt. Intrinsics are for COLMAP's pixels in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from featkit.errors import BadInputError
from featkit.evaluation.pose_error import RelativePose
from featkit.geometry.poses import quaternion
from featkit.store.poses import Intrinsics, parse_intrinsics
from featkit.store.text import read_lines
from featkit.types import Pair, Pose

CALIBRATED, VIEWS = "pairs_calibrated.txt", "views.txt"
LENGTHS = {30: 0, 34: 0, 36: 2}  # numbers of a line -> how many stand before the matrices
SAME_CAMERA = 1e-4  # relative: how far the intrinsics of an image may differ from one line to another
ROTATION_TOLERANCE = 1e-3  # of R^T R from the identity: the lists are written with few digits
LINE = "expected `name0 name1 K0 K1 R t`, 9 + 9 + 9 + 3 numbers (or 9 + 9 + 16) after the names"


@dataclass(frozen=True)
class CalibratedPairs:
    """Pairs in the order of the file with their relative poses, and the intrinsics of every image they name."""

    poses: dict[Pair, RelativePose]
    intrinsics: dict[str, Intrinsics]


def read_calibrated_pairs(path: Path) -> CalibratedPairs:
    """Read pairs_calibrated.txt; a pair listed twice counts once. Sizes of images are not in it: they stand as 0.

    Raises BadInputError.
    """
    poses: dict[Pair, RelativePose] = {}
    intrinsics: dict[str, Intrinsics] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        fields = line.split()
        skipped = LENGTHS.get(len(fields) - 2)
        if skipped is None:
            raise BadInputError(f"{where}: {LINE}; {max(len(fields) - 2, 0)} are there")
        values = _numbers(fields[2 + skipped :], where)
        pair = Pair(fields[0], fields[1])
        if pair.name0 == pair.name1:
            raise BadInputError(f"{where}: {pair.name0!r} is paired with itself; remove the line")
        for name, matrix in ((pair.name0, values[:9]), (pair.name1, values[9:18])):
            camera = _pinhole(matrix.reshape(3, 3), where)
            if not np.allclose(intrinsics.setdefault(name, camera).params, camera.params, rtol=SAME_CAMERA):
                raise BadInputError(f"{where}: {name!r} has other intrinsics in a line above; an image has one camera")
        rest = values[18:]
        pose = rest.reshape(4, 4)[:3] if len(rest) == 16 else np.column_stack([rest[:9].reshape(3, 3), rest[9:]])
        poses.setdefault(pair, RelativePose(_rotation(pose[:, :3], where), pose[:, 3]))
    if not poses:
        raise BadInputError(f"{path}: no pairs in it")
    return CalibratedPairs(poses, intrinsics)


def read_views(path: Path) -> tuple[dict[str, Pose], dict[str, Intrinsics]]:
    """World-to-camera poses and intrinsics of views.txt, by image name. Raises BadInputError."""
    poses: dict[str, Pose] = {}
    intrinsics: dict[str, Intrinsics] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        name, *fields = line.split()
        if len(fields) < 13 or name in poses:
            what = "listed before" if name in poses else "expected `name R t MODEL width height params...`"
            raise BadInputError(f"{where}: {name!r}: {what}")
        values = _numbers(fields[:12], where)
        poses[name] = Pose(quaternion(_rotation(values[:9].reshape(3, 3), where)), values[9:])
        intrinsics[name] = parse_intrinsics(" ".join(fields[12:]), where)
    if not poses:
        raise BadInputError(f"{path}: no images in it")
    return poses, intrinsics


def _numbers(fields: list[str], where: str) -> Float[np.ndarray, " n"]:
    try:
        values = np.array([float(field) for field in fields])
    except ValueError:
        raise BadInputError(f"{where}: what follows the names are not all numbers") from None
    if not np.isfinite(values).all():
        raise BadInputError(f"{where}: a number is not finite")
    return values


def _pinhole(matrix: Float[np.ndarray, "3 3"], where: str) -> Intrinsics:
    (fx, skew, cx), (below, fy, cy), last = matrix.tolist()
    if fx <= 0 or fy <= 0 or skew or below or last != [0, 0, 1]:
        raise BadInputError(f"{where}: K is not that of a pinhole camera without skew")
    return Intrinsics("PINHOLE", 0, 0, (fx, fy, cx, cy))


def _rotation(matrix: Float[np.ndarray, "3 3"], where: str) -> Float[np.ndarray, "3 3"]:
    if not (np.abs(matrix.T @ matrix - np.eye(3)).max() <= ROTATION_TOLERANCE and np.linalg.det(matrix) > 0):
        raise BadInputError(f"{where}: R is not a rotation (row by row)")
    left, _, right = np.linalg.svd(matrix)  # the nearest rotation: the digits of a text file leave it not quite one
    return left @ right
