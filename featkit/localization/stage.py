"""The localize stage: a map, query features and matches -> poses.txt and poses.json.

A query that fails is absent from poses.txt; poses.json gives the reason. No pose is ever made up.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float

from featkit import __version__
from featkit.core.config import Config, Count
from featkit.core.errors import BadInputError, EmptyResultError, blaming
from featkit.core.log import progress
from featkit.core.types import Pose
from featkit.geometry.pixels import to_colmap
from featkit.geometry.poses import camera_centre
from featkit.images.exif import some_names
from featkit.io.artifact import write_described
from featkit.io.atomic import read_json, read_lines, read_stamp
from featkit.io.features import FeatureStore, open_features
from featkit.io.lists import Intrinsics, format_poses, parse_intrinsics, read_pairs
from featkit.io.matches import MatchStore, open_matches
from featkit.localization.absolute_pose import MapPoints, MatchSource, PoseConfig, PoseEstimate, estimate_pose
from featkit.localization.queries import QueryCamera, query_camera
from featkit.mapping.cameras import CameraConfig, to_intrinsics
from featkit.mapping.model import poses_digest, read_model
from featkit.mapping.outcome import stronger_features, warn_if_few

LOGGER = logging.getLogger(__name__)


class LocalizeConfig(Config):
    """From 2D-3D matches to poses."""

    num_retrieved: Count = 20
    """Number of map images that each query is matched with."""
    pose: PoseConfig = PoseConfig()
    """Estimation of a pose from 2D-3D matches."""
    camera: CameraConfig = CameraConfig()
    """Cameras of queries without given intrinsics."""


@dataclass(frozen=True)
class QueryResult:
    """Result of one query: its pose, or the reason why there is none."""

    name: str
    reason: str
    keypoints: int
    retrieved: int
    matches_3d: int
    intrinsics: Intrinsics | None
    intrinsics_source: str
    estimate: PoseEstimate | None = None
    uncertain: str = ""
    """Why the pose is unreliable; empty if it is not."""

    @property
    def pose(self) -> Pose | None:
        return None if self.reason or self.estimate is None else self.estimate.pose


def run(
    config: LocalizeConfig,
    model: Path,
    map_features: Path,
    images: Path,
    query_features: Path,
    pairs: Path | None,
    matches: Path | None,
    output: Path,
    *,
    names: Sequence[str],
    intrinsics: dict[str, Intrinsics] | None = None,
    may_fail: bool = False,
) -> list[QueryResult]:
    """Localize queries, write output/poses.txt and output/poses.json, and return every query's result.

    model: folder of a COLMAP model built from `map_features`. images: folder of the queries. pairs: query first, map
    image second; None (with matches None) if no query could be paired. Raises BadInputError, and, unless `may_fail`,
    EmptyResultError if no query was localized (after writing poses.json).
    """
    partners: dict[str, list[str]] = {name: [] for name in names}
    for pair in read_pairs(pairs, directed=True) if pairs is not None else ():
        partners.setdefault(pair.name0, []).append(pair.name1)
    results = []
    with ExitStack() as stack:
        map_store = stack.enter_context(open_features(map_features))
        query_store = stack.enter_context(open_features(query_features))
        extractor = map_store.extractor
        match_store = None if matches is None else stack.enter_context(open_matches(matches, query_store, map_store))
        points = MapPoints(read_model(model), map_store)
        registered_names = set(points.names())
        with progress("localize", len(names), "queries") as advance:
            for name in names:
                usable = [partner for partner in partners[name] if partner in registered_names]
                result = _localize_stored_query(
                    config, name, points, images, query_store, usable, match_store, intrinsics
                )
                results.append(result)
                advance(1)
    write_results(results, config, model, output, images)
    if not may_fail:
        refuse_none(results, images, output, map_features)
        warn_if_few("localize", sum(result.pose is not None for result in results), len(results), extractor)
    return results


def refuse_none(results: Sequence[QueryResult], images: Path, output: Path, map_features: Path) -> None:
    """Raise EmptyResultError if no query was localized."""
    if all(result.pose is None for result in results):
        with open_features(map_features) as store:
            extractor = store.extractor
        other = f"; a map with {stronger_features(extractor)} may help" if stronger_features(extractor) else ""
        raise EmptyResultError(
            f"{images}: none of {len(results)} queries localized; reasons: {output}/poses.json{other}"
        )


def _localize_stored_query(
    config: LocalizeConfig,
    name: str,
    points: MapPoints,
    images: Path,
    queries: FeatureStore,
    partners: list[str],
    matches: MatchStore | None,
    intrinsics: dict[str, Intrinsics] | None,
) -> QueryResult:
    if not queries.has(name):
        return without_features(name, images)
    query = query_camera(name, images, config.camera, intrinsics, points.model)
    return localize_query(config.pose, name, query, queries.keypoints(name), partners, matches, points)


def without_features(name: str, images: Path) -> QueryResult:
    """The result of a query that could not be extracted."""
    reason = "the image cannot be read" if (images / name).is_file() else "there is no such image"
    return QueryResult(name, reason, 0, 0, 0, None, "")


def query_facts(name: str, query: QueryCamera, keypoints: int, partners: Sequence[str]) -> tuple[dict[str, Any], str]:
    """What is known of a query before it is localized, as fields of `QueryResult`; why it cannot be, "" if it can."""
    facts: dict[str, Any] = {
        "name": name,
        "keypoints": keypoints,
        "retrieved": len(partners),
        "intrinsics": to_intrinsics(query.camera),
        "intrinsics_source": query.source,
    }
    if keypoints == 0:
        return facts, "no keypoint found in the image"
    return facts, "" if partners else "it is paired with no map image"


def localize_query(
    config: PoseConfig,
    name: str,
    query: QueryCamera,
    keypoints: Float[np.ndarray, "n 2"],
    partners: list[str],
    matches: MatchSource | None,
    points: MapPoints,
) -> QueryResult:
    """Localize one query from its matches with the map images `partners`. keypoints: in the pixels of its file."""
    facts, reason = query_facts(name, query, len(keypoints), partners if matches is not None else ())
    if reason or matches is None:
        return QueryResult(reason=reason, matches_3d=0, **facts)
    index, ids = points.correspondences(name, keypoints, partners, matches)
    return _estimate_from_matches(config, points, query, keypoints, index, ids, facts)


def _estimate_from_matches(
    config: PoseConfig,
    points: MapPoints,
    query: QueryCamera,
    keypoints: np.ndarray,
    index: np.ndarray,
    ids: np.ndarray,
    facts: dict[str, Any],
) -> QueryResult:
    facts["matches_3d"] = len(index)
    if len(index) < config.min_inliers:
        reason = f"{len(index)} matches with points of the map, {config.min_inliers} are needed"
        return QueryResult(reason=reason, **facts)
    points2d = to_colmap(keypoints.astype(np.float64))[index]
    refine = query.source == "guess"
    estimate = estimate_pose(points2d, points.xyz(ids), query.camera, config, refine_focal=refine)
    if estimate is None:
        return QueryResult(reason="RANSAC found no pose", **facts)
    facts["intrinsics"] = to_intrinsics(estimate.camera)
    inliers = int(estimate.inlier.sum())
    if inliers < config.min_inliers:
        reason = f"{inliers} inliers of {len(index)} matches, {config.min_inliers} are needed"
        return QueryResult(reason=reason, estimate=estimate, **facts)
    uncertain = points.uncertain(estimate, config)
    return QueryResult(reason="", estimate=estimate, uncertain=uncertain, **facts)


def write_results(results: Sequence[QueryResult], config: Config, model: Path, output: Path, images: Path) -> None:
    """Write poses.txt (localized queries only) and poses.json (all queries). Raises BadInputError, NotWritableError.

    model: the map in whose frame the poses are. poses.json identifies it, so that outdated poses can be recognised
    after the map was rebuilt. images: folder of the queries, recorded relative to `output`.
    """
    localized = {result.name: result.pose for result in results if result.pose is not None}
    described = {
        "featkit_version": __version__,
        "fingerprint": config.fingerprint(),
        "config": config.result_fields(),
        "map": poses_digest(model),
        "images": os.path.relpath(images.resolve(), output.resolve()),
        "queries": len(results),
        "localized": len(localized),
        "results": [query_summary(result) for result in results],
    }
    write_described(output / "poses.txt", format_poses(localized), described)
    LOGGER.info("localize: %d of %d queries", len(localized), len(results))
    if uncertain := [result for result in results if result.uncertain]:
        LOGGER.warning(
            "localize: %d of %d poses are uncertain: %s: %s%s",
            *(len(uncertain), len(localized), uncertain[0].name, uncertain[0].uncertain),
            f" (and {some_names([result.name for result in uncertain[1:]])})" if uncertain[1:] else "",
        )


@dataclass(frozen=True)
class StoredQuery:
    """One query of poses.json. pose: None if it was not localized; then `reason` says why.

    uncertain: why the pose is unreliable, or empty. camera: None if the image could not be read. numbers: the other
    fields of `describe`.
    """

    name: str
    pose: Pose | None
    reason: str
    uncertain: str
    camera: Intrinsics | None
    numbers: dict[str, Any]


@dataclass(frozen=True)
class StoredResults:
    """A folder with poses.json. map_digest: of the model that the poses are for (`poses_digest`).

    images: the folder of the queries; None if it was not recorded. max_error_px: largest residual of an inlier; None
    for poses that were not estimated by PnP.
    """

    folder: Path
    map_digest: str
    images: Path | None
    max_error_px: float | None
    queries: tuple[StoredQuery, ...]


def read_results(folder: Path) -> StoredResults:
    """What `write_results` wrote to a folder. Raises BadInputError."""
    path = folder / "poses.json"
    what, remedy = "the poses of `featkit localize`", "localize again"
    content = read_json(path, what, remedy)
    with blaming(path, what, remedy):
        images, limit = content.get("images"), content["config"].get("pose", {}).get("max_error_px")
        return StoredResults(
            folder,
            str(content["map"]),
            None if images is None else folder / str(images),
            None if limit is None else float(limit),
            tuple(_stored_query(row) for row in content["results"]),
        )


def _stored_query(row: dict[str, Any]) -> StoredQuery:
    """Raises ValueError and its like for what `describe` does not write."""
    name, reason, pose, camera = str(row["name"]), str(row["reason"] or ""), None, None
    if row["localized"]:
        pose = Pose(np.array(row["qvec"], np.float64), np.array(row["tvec"], np.float64))
        if pose.qvec.shape != (4,) or pose.tvec.shape != (3,) or not np.isfinite([*pose.qvec, *pose.tvec]).all():
            raise ValueError(f"{name!r} has an invalid pose")
    try:
        if "camera" in row:
            camera = parse_intrinsics(" ".join(map(str, row["camera"])), "its camera")
    except BadInputError as error:  # an estimated focal length may be far off
        pose, reason = None, reason or str(error)
    if pose is not None and camera is None:
        raise ValueError(f"{name!r} has no camera")
    numbers = {key: row.get(key) for key in NUMBERS if isinstance(row.get(key), str) or np.isfinite(row.get(key) or 0)}
    return StoredQuery(name, pose, reason, str(row["uncertain"] or ""), camera, numbers)


def is_of_another_map(poses: Path, model: Path) -> bool:
    """Whether poses.txt was computed in a map other than the current `model`; False if unknown or missing."""
    described = read_stamp(poses.with_suffix(".json")) or {}
    return poses.is_file() and "map" in described and described["map"] != poses_digest(model)


NUMBERS = (
    *("keypoints", "retrieved", "matches_3d", "inliers", "intrinsics_source", "residual_px", "median_px"),
    *("centre_std", "rotation_std_deg"),
)
"""Fields of `describe` besides a query's name, state, pose and camera."""


def query_summary(result: QueryResult) -> dict[str, Any]:
    """One query as json values; lengths in map units, angles in degrees."""
    plain: dict[str, Any] = {
        "name": result.name,
        "localized": result.pose is not None,
        "reason": result.reason or None,
        "uncertain": result.uncertain or None,
        "keypoints": result.keypoints,
        "retrieved": result.retrieved,
        "matches_3d": result.matches_3d,
        "inliers": 0 if result.estimate is None else int(result.estimate.inlier.sum()),
        "intrinsics_source": result.intrinsics_source,
    }
    if result.intrinsics is not None:
        camera = result.intrinsics
        plain["camera"] = [camera.model, camera.width, camera.height, *camera.params]
    if result.pose is not None and result.estimate is not None:
        estimate = result.estimate
        plain |= {
            "qvec": [float(v) for v in result.pose.qvec],
            "tvec": [float(v) for v in result.pose.tvec],
            "centre": [float(v) for v in camera_centre(result.pose)],
            "residual_px": estimate.residual_px,
            "median_px": estimate.median_px,
            "centre_std": estimate.centre_std if np.isfinite(estimate.centre_std) else None,
            "rotation_std_deg": estimate.rotation_std_deg if np.isfinite(estimate.rotation_std_deg) else None,
        }
    return plain


# ----------------------------------------------------------------------------------------------------------------------
# Submission to visuallocalization.net: a text file with lines `name qw qx qy qz tx ty tz`, and its validation.
#
# name: file name without folders. The pose is world to camera: a unit quaternion and the translation (not the centre),
# in the frame of the reference model. A query without a pose has no line (README of Aachen Day-Night).


FIELDS = 8
UNIT_TOLERANCE = 1e-3  # of a quaternion's length: more than the rounding error of six decimals
SHOWN = 3  # problems listed in an error message


@dataclass(frozen=True)
class SubmissionCheck:
    """Content of a submission. poses: by file name. problems: `line N: what is wrong`, in the order of the file."""

    path: Path
    poses: dict[str, Pose]
    problems: tuple[str, ...]

    def raise_problems(self) -> None:
        """Raise BadInputError with the first few problems, if there are any."""
        if self.problems:
            more = f"; and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
            raise BadInputError(f"{self.path}: not a valid submission: {'; '.join(self.problems[:SHOWN])}{more}")


def file_name(name: str) -> str:
    """`query/night/nexus5x/IMG.jpg` -> `IMG.jpg`."""
    return PurePosixPath(name).name


def by_file_name(names: Iterable[str]) -> dict[str, str]:
    """File name -> name. Raises BadInputError if two names have the same file name."""
    names_by_file: dict[str, str] = {}
    for name in names:
        other = names_by_file.setdefault(file_name(name), name)
        if other != name:
            raise BadInputError(f"{name!r} and {other!r} have one file name; a submission cannot distinguish them")
    return names_by_file


def submission_name(version: str, method: str) -> str:
    """File name required by the benchmark, for Aachen "1.0" or "1.1"."""
    return f"Aachen_{'v1_1_' if version == '1.1' else ''}eval_[featkit-{method}].txt"


def write_submission(path: Path, poses: Mapping[str, Pose]) -> Path:
    """Write the poses of the localized queries, in their order. Raises BadInputError, NotWritableError."""
    by_file_name(poses)
    text = format_poses({file_name(name): pose for name, pose in poses.items()})
    return write_described(path, text, {"kind": "poses", "featkit_version": __version__, "localized": len(poses)})


def check_submission(path: Path, queries: Iterable[str]) -> SubmissionCheck:
    """Check a submission against the names of all queries (with or without folders).

    Raises BadInputError if the file cannot be read; problems in its content are part of the result.
    """
    names_by_file = by_file_name(queries)
    poses: dict[str, Pose] = {}
    problems = []
    for number, line in read_lines(path):
        problem, name, pose = _parse_pose_line(line, names_by_file)
        if problem is None and name in poses:
            problem = f"{name!r} is listed twice"
        if problem is not None or pose is None:
            problems.append(f"line {number}: {problem}")
        else:
            poses[name] = pose
    if not poses and not problems:
        problems.append("no pose in it")
    return SubmissionCheck(path, poses, tuple(problems))


def _parse_pose_line(line: str, known: Mapping[str, str]) -> tuple[str | None, str, Pose | None]:
    """The problem of a line (None if valid), its name, and its pose."""
    fields = line.split()
    name = fields[0]
    if len(fields) != FIELDS:
        return f"{len(fields)} fields, {FIELDS} are needed: name qw qx qy qz tx ty tz", name, None
    if "/" in name or "\\" in name:
        return f"{name!r} has a folder; only the file name is expected", name, None
    if name not in known:
        return f"{name!r} is not a query", name, None
    try:
        values = np.array([float(field) for field in fields[1:]])
    except ValueError:
        return "seven numbers are needed after the name", name, None
    if not np.all(np.isfinite(values)):
        return "a number is not finite", name, None
    length = float(np.linalg.norm(values[:4]))
    if abs(length - 1.0) > UNIT_TOLERANCE:
        return f"the quaternion of {name!r} has length {length:.4g}, not 1", name, None
    return None, name, Pose(values[:4] / length, values[4:])
