"""Aachen Day-Night, step by step: triangulate the reference model with any features, and localize the queries in it.

`featkit localize aachen` runs this for v1.0 and v1.1: for the night queries of the local-feature challenge (whose image
pairs are given) and for hloc's setting (day and night). Copy it, change what you like, and run it:
`python aachen.py data/aachen`.

    OUT/predictions/database, query/NAME-FINGERPRINT/features.h5, MATCHER-.../matches.h5    shared by all settings
    OUT/VERSION-QUERIES/NAME-FINGERPRINT/        pairs, database.db, sparse/, poses.txt, the submission, report.html
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featkit.core import log
from featkit.core.config import digest
from featkit.core.errors import BadInputError
from featkit.core.log import timed
from featkit.core.types import Pair, Pose
from featkit.data.aachen import (
    AachenFiles,
    PairLists,
    database_pairs,
    find_aachen,
    place_images,
    published_lists,
    query_pairs,
    read_queries,
    with_features,
)
from featkit.evaluation.aachen import (
    AachenBenchmark,
    AachenConfig,
    BothSides,
    condition_table,
    covisible_list,
    read_aachen_reference,
    read_truth,
    score_conditions,
)
from featkit.evaluation.benchmark import predict
from featkit.evaluation.metrics import LocalizationScore, score_localization
from featkit.io.artifact import write_text
from featkit.io.atomic import refuse_foreign
from featkit.io.lists import read_pairs, write_pairs
from featkit.localization import registration
from featkit.localization import stage as localize
from featkit.localization.queries import pair_queries, pair_queries_given
from featkit.localization.stage import QueryResult, by_file_name, check_submission, submission_name, write_submission
from featkit.mapping import stage as map_stage
from featkit.mapping.model import refuse_other_models
from featkit.mapping.reference import Reference
from featkit.mapping.scene import MapFiles
from featkit.mapping.verify import build_database
from featkit.matching import stage as matching
from featkit.report.localization import MatchFiles, aachen_metrics, localization_report


@dataclass(frozen=True)
class AachenResult:
    """One method's poses. scores: by condition ("day", "night"), if ground truth is available."""

    name: str
    output: Path
    submission: Path
    report: Path
    results: list[QueryResult]
    scores: dict[str, LocalizationScore]
    metrics: dict[str, Any]


def run(
    benchmark: AachenBenchmark,
    files: AachenFiles,
    queries: str,
    features: BothSides,
    output: Path,
    *,
    lists: PairLists | None = None,
    retrieval: Sequence[Path] = (),
    truth: Path | None = None,
    overwrite: bool = False,
) -> AachenResult:
    """Localize a set of queries ("night", "day-night"). Steps that are complete and up to date are skipped.

    lists: pairs to match; by default the available published ones. retrieval: files of global descriptors (hloc's
    layout), by which map images are retrieved for queries without listed pairs. truth: poses.txt in the reference
    model's frame (names with or without folders). Raises featkit's errors.
    """
    config, matcher, device = benchmark.config, benchmark.by, benchmark.device
    lists = lists or published_lists(files, queries)
    reference = read_aachen_reference(files)
    conditions = read_queries(files)
    cameras = {name: camera for known in conditions.values() for name, camera in known.items()}
    mapped, names = list(reference.poses), list(cameras)
    by_file_name(names)  # fails early if the submission could not be written
    true_poses = None if truth is None else _truth(truth, names)
    images = place_images(files, [*mapped, *names], output / f"images-{files.version}")
    listed = None if lists.database is None else database_pairs(lists.database, set(mapped))
    asked = None if lists.queries is None else query_pairs(lists.queries, set(names), set(mapped))
    place = output / f"{files.version}-{queries}" / f"{features.database.file_name}-{_fingerprint(config, features)}"
    written = ("database.db", "database.json", "sparse.json", "poses.txt", "poses.json", "report.html", "metrics.json")
    refuse_foreign(*(place / name for name in (*written, "queries.db", "queries.json")))
    refuse_other_models(place / "sparse")
    seconds: dict[str, float] = {}

    with timed("extract database", seconds):
        database_features = predict(
            features.database, images, mapped, output / "predictions" / "database", overwrite=overwrite
        ).features
    with timed("extract queries", seconds):
        query_features = predict(
            features.query, images, names, output / "predictions" / "query", overwrite=overwrite
        ).features
    made = Triangulated(files, reference, listed, images, database_features, place)
    database, found = _triangulate(benchmark, made, output, seconds, overwrite)
    with timed("pair queries", seconds):
        query_list = _query_pairs(config, asked, retrieval, query_features, names, found, device)
    with timed("match queries", seconds):
        by_both = digest(matcher.config.fingerprint(), features.database.fingerprint)
        query_matches = None if query_list is None else matching.run(
            matcher, database_features, query_list,
            query_features.parent / f"matches-{by_both}" / "matches.h5",
            query_features=query_features, overwrite=overwrite,
        )  # fmt: skip
    with timed("localize", seconds):
        of_map = (found.model, database_features, images, query_features, query_list, query_matches, place)
        if config.poses_by == "registration":
            results = registration.run(config.registration, config.localize, *of_map, names=names, intrinsics=cameras)
        else:
            results = localize.run(config.localize, *of_map, names=names, intrinsics=cameras)
    poses = {result.name: result.pose for result in results if result.pose is not None}
    submission = write_submission(place / submission_name(files.version, features.database.file_name), poses)
    check_submission(submission, names).raise_problems()
    by_condition = {condition: list(known) for condition, known in conditions.items()}
    scores = {} if true_poses is None else score_conditions(poses, true_poses, by_condition)
    score = None if true_poses is None else score_localization(poses, true_poses, names)
    beside = None
    if config.poses_by == "pnp" and query_list is not None and query_matches is not None:
        beside = MatchFiles(query_features, query_list, query_matches)
    with timed("report", seconds):
        metrics = aachen_metrics(found.model, database, results, by_condition, scores, score, seconds)
        metrics["pairs"] = {"database": str(lists.database or "covisible"), "queries": _origin(lists, retrieval)}
        report = localization_report(
            config, metrics, results, found, images, place / "report.html", true_poses,
            title=f"Aachen v{files.version}, {queries}: {features.name}", first=[condition_table(metrics)],
            matched=beside,
        )  # fmt: skip
    metrics["config"], metrics["features"] = config.result_fields(), features.described()
    write_text(place / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    return AachenResult(features.name, place, submission, report, results, scores, metrics)


@dataclass(frozen=True)
class Triangulated:
    """What the map is triangulated from: the reference's poses, listed pairs (None: its covisible ones), images and
    features; and the folder for it.
    """

    files: AachenFiles
    reference: Reference
    listed: list[Pair] | None
    images: Path
    features: Path
    place: Path


def _triangulate(
    benchmark: AachenBenchmark, made: Triangulated, output: Path, seconds: dict[str, float], overwrite: bool
) -> tuple[Path, MapFiles]:
    """Match, verify and triangulate the map images with the reference's poses; the database and the map."""
    config, matcher, files, place = benchmark.config, benchmark.by, made.files, made.place
    with timed("pair database", seconds):
        covisible = output / f"pairs-db-covisible-{files.version}.txt"
        listed = made.listed
        wanted = read_pairs(covisible_list(files, config.covisible, covisible)) if listed is None else listed
        pairs = write_pairs(place / "pairs-db.txt", with_features(wanted, made.features))
    with timed("match database", seconds):
        matched = made.features.parent / f"matches-{matcher.config.fingerprint()}" / "matches.h5"
        matches = matching.run(matcher, made.features, pairs, matched, overwrite=overwrite)
    with timed("verify", seconds):
        database = build_database(
            map_stage.database_config(config.map), made.images, made.features, pairs, matches,
            place / "database.db", names=list(made.reference.poses), reference=made.reference, overwrite=overwrite,
        )  # fmt: skip
    with timed("triangulate", seconds):
        sparse = map_stage.build_map(
            config.map, made.images, database, place / "sparse", reference=made.reference, overwrite=overwrite
        )
    return database, MapFiles(place, sparse / "0", made.features)


def _query_pairs(
    config: AachenConfig,
    asked: list[Pair] | None,
    retrieval: Sequence[Path],
    query_features: Path,
    names: Sequence[str],
    found: MapFiles,
    device: str,
) -> Path | None:
    """Pairs (query, map image): listed ones, by given descriptors, or by those of the features."""
    if asked is not None:
        return write_pairs(found.folder / "pairs-query.txt", with_features(asked, query_features, found.features))
    number, output = config.localize.num_retrieved, found.folder / "pairs-query-retrieved.txt"
    if retrieval:
        return pair_queries_given(retrieval, query_features, names, found, number, output)
    return pair_queries(query_features, names, found, config.retrieval, number, output, config.seed, device)


def _origin(lists: PairLists, retrieval: Sequence[Path]) -> str:
    """Source of the queries' pairs."""
    return str(lists.queries or " ".join(map(str, retrieval)) or "retrieved")


def _fingerprint(config: AachenConfig, features: BothSides) -> str:
    return digest(config.fingerprint(), features.fingerprint)


def _truth(path: Path, names: list[str]) -> dict[str, Pose]:
    poses = read_truth(path, names)
    if not poses:
        raise BadInputError(f"{path}: names none of the {len(names)} queries")
    return poses


if __name__ == "__main__":  # worker processes import this file: only the main one may run it
    log.setup()
    data = find_aachen(Path(sys.argv[1]), "1.1", "night")
    setting = AachenBenchmark(AachenConfig())
    print(run(setting, data, "night", setting.method("rootsift"), data.root / "featkit").submission)
