"""From a map and new images to their poses, step by step. `featkit localize` runs this.

Copy it, change what you like, and run it: `python localize.py scene/ new_photographs/`. Features of the queries are
extracted with the configuration of the map's features.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featkit.core import log
from featkit.core.config import Runtime, Seed, WorkerCount
from featkit.core.errors import BadInputError
from featkit.core.log import LOGGER, timed
from featkit.core.registry import resolve
from featkit.core.types import Pose
from featkit.evaluation.metrics import LocalizationScore, score_localization
from featkit.features import stage as extraction
from featkit.features.stage import config_of_features
from featkit.images.exif import some_names
from featkit.io.artifact import write_text
from featkit.io.atomic import refuse_foreign
from featkit.io.features import open_features, read_global_descriptors
from featkit.io.lists import Intrinsics, Spelling, read_intrinsics_list, read_pairs, read_poses, respelled
from featkit.io.shards import write_index
from featkit.localization import stage as localize
from featkit.localization.absolute_pose import MapPoints
from featkit.localization.queries import given_pairs, pair_queries, pair_queries_given
from featkit.localization.stage import LocalizeConfig, QueryResult
from featkit.mapping.align import similarity_to_truth, transform_pose
from featkit.mapping.cameras import check_camera_config, check_photographs
from featkit.mapping.model import read_model
from featkit.mapping.reference import poses_of_model
from featkit.mapping.scene import MapFiles, find_map, numbered_models, usable_images
from featkit.matching import stage as match
from featkit.matching.config import MatchWith
from featkit.report.localization import MatchFiles, localization_report
from featkit.report.maps import localization_metrics
from featkit.retrieval.vlad import VladConfig

WRITTEN = ("features.h5", "matches.h5", "poses.txt", "poses.json", "report.html", "metrics.json")


class LocalizationConfig(MatchWith):
    """Everything that determines the poses of queries, apart from the map."""

    retrieval: VladConfig = VladConfig()
    """Retrieval of map images for a query."""
    localize: LocalizeConfig = LocalizeConfig()
    """Pose estimation, and the queries' cameras."""
    keypoints: Runtime[Path | None] = None
    """File of the queries' keypoints, for a map of given keypoints. None: those that the features detect."""
    workers: Runtime[WorkerCount] = 0
    """Number of extraction processes; 0: one per core."""
    seed: Seed = 0
    """Random seed of the retrieval clustering."""


@dataclass(frozen=True)
class LocalizationResult:
    """Output locations, and the result of each query."""

    output: Path
    report: Path
    results: list[QueryResult]
    metrics: dict[str, Any]
    in_others: dict[str, Path] = field(default_factory=dict)
    """Queries localized only in another model of the map: the folder with their poses, in that model's frame."""


def run(
    config: LocalizationConfig,
    map_folder: Path,
    queries: Path,
    output: Path | None = None,
    *,
    intrinsics: Path | None = None,
    features: Path | None = None,
    pairs: Path | None = None,
    retrieval: Sequence[Path] = (),
    truth: Path | None = None,
    number: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    only: Sequence[str] | None = None,
    extracted: Path | None = None,
) -> LocalizationResult:
    """Localize a folder of images in a map.

    map_folder: a scene, its featkit/ folder, or a sparse model next to its features. intrinsics: list of queries with
    their cameras; only these are localized. pairs: a file (query, map image). retrieval: files of global descriptors
    (hloc's layout) used for pairing instead of those of the map's features. truth: poses.txt for evaluation; if it has
    three or more images of the map, the map is first aligned to them by a similarity, since its frame and scale are
    arbitrary. number: which of the map's models; None: the largest, and queries that fail there are tried in the
    others, each with its own output folder (model-1/), since the models have no common frame. only: localize only these
    queries. extracted: features of the queries from an earlier call for another model. Raises featkit's errors.
    """
    found = find_map(map_folder, features, number)
    several = number is None and len(numbered_models(found.model)) > 1
    output = output or found.folder / ("localize" if not number else f"localize-{number}")
    refuse_foreign(*(output / name for name in WRITTEN), *([] if pairs else [output / "pairs.txt"]))
    true_poses = None if truth is None else read_poses(truth)
    names, readable, cameras = _read_queries(config, queries, intrinsics, only)
    if only is None:
        _check_given_files(found, features, queries, names, pairs, retrieval)
    extractor = extraction.extraction_method(
        config_of_features(found.features, config.workers, config.keypoints), device=device
    )
    matcher = resolve("matcher", config.matcher, config.matching, device).ready()
    seconds: dict[str, float] = {}

    if extracted is not None:
        write_index(output / "features.h5", [extracted], readable)
    with timed("extract", seconds):
        query_features = extraction.run(extractor, queries, output / "features.h5", readable, overwrite)
    with timed("retrieve", seconds):
        chosen = _pair(config, query_features, readable, found, output / "pairs.txt", pairs, retrieval, device)
    with timed("match", seconds):
        matches = None if chosen is None else match.run(
            matcher, found.features, chosen, output / "matches.h5",
            query_features=query_features, overwrite=overwrite,
        )  # fmt: skip
    with timed("localize", seconds):
        results = localize.run(
            config.localize, found.model, found.features, queries, query_features, chosen, matches, output,
            names=names, intrinsics=cameras, may_fail=only is not None or several,
        )  # fmt: skip
    others = {}
    failed = [result.name for result in results if result.pose is None and result.name in readable]
    if several and failed:
        with timed("other models", seconds):
            common = {
                "intrinsics": intrinsics, "features": features, "pairs": pairs, "retrieval": retrieval,
                "device": device, "overwrite": overwrite, "extracted": query_features,
            }  # fmt: skip
            others = _in_other_models(config, map_folder, found, queries, output, failed, common)
        if not others:
            localize.refuse_none(results, queries, output, found.features)
    score, moved_by = None, None
    if true_poses is not None:
        true_poses, moved_by, score = _compared(found.model, true_poses, results, names)
    with timed("report", seconds):
        metrics = localization_metrics(results, score, seconds)
        if others:
            metrics["in_other_models"] = {name: folder.name for name, folder in others.items()}
        ran = config.model_copy(update={"matching": matcher.config.result_fields()})
        matched = None if chosen is None or matches is None else MatchFiles(query_features, chosen, matches)
        report = localization_report(
            ran, metrics, results, found, queries, output / "report.html", true_poses, moved_by, matched=matched
        )  # fmt: skip
    write_text(output / "metrics.json", json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    return LocalizationResult(output, report, results, metrics, others)


def _check_given_files(
    found: MapFiles,
    features: Path | None,
    queries: Path,
    names: Sequence[str],
    pairs: Path | None,
    retrieval: Sequence[Path],
) -> None:
    """Check files given for the map and for pairing before any work. Raises BadInputError; warns of unknown queries."""
    with open_features(found.features) as store:
        if features is not None:
            MapPoints(read_model(found.model), store)  # checks that the model was made from them
        known = store.names()
    if retrieval:
        read_global_descriptors(retrieval, sorted(poses_of_model(found.model)))
    if pairs is None:
        return
    listed = read_pairs(pairs, True, (Spelling(lambda: names), Spelling(lambda: known)))
    unknown = sorted({pair.name0 for pair in listed} - set(names))
    if unknown and all(pair.name0 in unknown for pair in listed):
        raise BadInputError(
            f"{pairs}: no line begins with a query in {queries}, but with {some_names(unknown)}; each is a query, then"
            " an image of the map"
        )
    if unknown:
        LOGGER.warning("%s: %d names are not queries in %s: %s", pairs, len(unknown), queries, some_names(unknown))
    if others := sorted({pair.name1 for pair in listed} - set(known)):
        raise BadInputError(f"{pairs}: {some_names(others)}: no features in {found.features}; name images of the map")


def _read_queries(
    config: LocalizationConfig, queries: Path, intrinsics: Path | None, only: Sequence[str] | None
) -> tuple[list[str], list[str], dict[str, Intrinsics] | None]:
    """Names of the queries, those of them that can be read, and their listed cameras.

    A listed query without an image counts as failed.
    """
    cameras = None if intrinsics is None else read_intrinsics_list(intrinsics)
    check_camera_config(config.localize.camera)
    readable, _ = usable_images(queries, cameras)
    cameras = None if cameras is None else respelled(cameras, lambda: readable)
    check_photographs(config.localize.camera, queries, readable, cameras)
    names = readable if cameras is None else list(cameras)
    if only is not None:
        names, readable = ([name for name in listed if name in only] for listed in (names, readable))
    return names, readable, cameras


def _compared(
    folder: Path, truth: dict[str, Pose], results: Sequence[QueryResult], names: Sequence[str]
) -> tuple[dict[str, Pose], np.ndarray, LocalizationScore]:
    """True poses by name (map and queries), the similarity (3, 4) that aligns the map to them, and the score."""
    model = read_model(folder)
    truth = respelled(truth, lambda: [*names, *(image.name for image in model.images.values())])
    moved_by = similarity_to_truth(model, truth)
    poses = {r.name: transform_pose(r.pose, moved_by) for r in results if r.pose is not None}
    return truth, moved_by, score_localization(poses, truth, names)


def _in_other_models(
    config: LocalizationConfig,
    map_folder: Path,
    found: MapFiles,
    queries: Path,
    output: Path,
    failed: list[str],
    common: dict[str, Any],
) -> dict[str, Path]:
    """Localize queries in the map's other models, larger ones first. Returns each localized one's output folder."""
    others: dict[str, Path] = {}
    for number, model in sorted(numbered_models(found.model).items()):
        left = [name for name in failed if name not in others]
        if model == found.model or not left:
            continue
        place = output / f"model-{number}"
        done = run(config, map_folder, queries, place, number=number, only=left, **common)
        others |= {result.name: place for result in done.results if result.pose is not None}
    return others


def _pair(
    config: LocalizationConfig,
    query_features: Path,
    names: Sequence[str],
    found: MapFiles,
    output: Path,
    pairs: Path | None,
    retrieval: Sequence[Path],
    device: str,
) -> Path | None:
    """The pairs (query, map image): given ones, by given descriptors, or by descriptors from the map's own features."""
    number = config.localize.num_retrieved
    if pairs:
        return given_pairs(pairs, query_features, found.features, output)
    if retrieval:
        return pair_queries_given(retrieval, query_features, names, found, number, output)
    return pair_queries(query_features, names, found, config.retrieval, number, output, config.seed, device)


if __name__ == "__main__":  # worker processes import this file: only the main one may run it
    log.setup()
    print(run(LocalizationConfig(), Path(sys.argv[1]), Path(sys.argv[2])).output / "poses.txt")
