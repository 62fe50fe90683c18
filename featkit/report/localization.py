"""The report of a localization, and its metrics on Aachen Day-Night."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from featkit.core.config import Config
from featkit.core.content import (
    Cell,
    Gallery,
    Headline,
    Item,
    Report,
    Scene3D,
    Section,
    Table,
    Thumbnail,
)
from featkit.core.errors import BadInputError
from featkit.core.types import Pose
from featkit.evaluation.aachen import NAMES
from featkit.evaluation.metrics import LocalizationScore
from featkit.evaluation.pictures import moved_scene, posed_camera, seconds_table
from featkit.images.thumbnails import thumbnail
from featkit.io.features import FeatureStore, open_features
from featkit.io.lists import read_pairs
from featkit.io.matches import open_matches
from featkit.localization.absolute_pose import PartnerMatches, partner_matches
from featkit.localization.stage import QueryResult
from featkit.mapping.align import transform_pose
from featkit.mapping.cameras import to_camera
from featkit.mapping.database import count_verified
from featkit.mapping.model import Model, map_statistics, point_ids, read_model
from featkit.mapping.photographs import existing_photographs
from featkit.mapping.scene import MapFiles
from featkit.report.maps import configuration, localization_metrics, recall_table
from featkit.report.page import write_report
from featkit.report.tables import spread

# ----------------------------------------------------------------------------------------------------------------------
# The report of a localization: the queries in the map, and a table of all of them with the reasons of failures.


def localization_report(
    config: Config,
    metrics: dict[str, Any],
    results: list[QueryResult],
    found: MapFiles,
    queries: Path,
    output: Path,
    truth: dict[str, Pose] | None = None,
    truth_from_map: Float[np.ndarray, "3 4"] | None = None,
    title: str | None = None,
    first: Sequence[Item] = (),
    matched: MatchFiles | None = None,
) -> Path:
    """Write report.html of a localization and return it.

    truth: true poses, drawn in addition to the estimated ones. truth_from_map: similarity transform applied to the 3D
    scene. title: replaces the name of the queries' folder. first: items above the recall. matched: files needed to show
    queries with the map images they matched.
    """
    tables: list[Item] = [*first, *([recall_table(metrics)] if "recall" in metrics else [])]
    model = read_model(found.model)
    sections = [
        Section("3D", items=[_localization_scene(model, results, truth, truth_from_map)]),
        Section("Queries", items=[_query_table(metrics, results)]),
    ]
    if matched is not None:
        pictures = query_pictures(model, results, found, queries, matched)
        sections.append(Section("Queries and the map images they matched", ABOUT_PICTURES, pictures))
    sections += [
        Section("Result", items=[*tables, seconds_table(metrics)]),
        Section("Configuration", items=[configuration(config)]),
    ]
    headlines = _query_headlines(metrics, results)
    if "recall" in metrics:
        headlines += [
            Headline(f"Within {threshold}", f"{100 * share:.1f}", "%") for threshold, share in metrics["recall"].items()
        ]
    report = Report(
        title or f"{queries.resolve().name} in the map",
        f"Localized by featkit {metrics['featkit_version']}",
        headlines,
        sections,
    )
    return write_report(report, output)


def _query_headlines(metrics: dict[str, Any], results: Sequence[QueryResult]) -> list[Headline]:
    estimates = [result.estimate for result in results if result.pose is not None and result.estimate is not None]
    uncertain = sum(bool(result.uncertain) for result in results)
    headlines = [Headline("Localized", f"{metrics['localized']} / {metrics['queries']}", hint="queries")]
    if estimates:
        headlines += [
            Headline("Uncertain", uncertain, hint="poses; see the table"),
            Headline("Inliers", round(float(np.median([one.inlier.sum() for one in estimates]))), hint="median"),
            Headline("Residual", f"{np.median([one.median_px for one in estimates]):.2f}", "px", hint="median"),
        ]
    return headlines


def _localization_scene(
    model: Model, results: list[QueryResult], truth: dict[str, Pose] | None, truth_from_map: np.ndarray | None
) -> Scene3D:
    similarity = np.eye(3, 4) if truth_from_map is None else truth_from_map
    scene = moved_scene(model, similarity)
    cameras = list(scene.cameras)
    for result in results:
        if result.intrinsics is None:
            continue
        camera = to_camera(result.intrinsics)
        if result.pose is not None:
            group = "uncertain query" if result.uncertain else "query"
            cameras.append(posed_camera(result.name, transform_pose(result.pose, similarity), camera, group))
        if truth and result.name in truth:
            cameras.append(posed_camera(result.name, truth[result.name], camera, "truth"))
    return Scene3D(scene.points, scene.colours, cameras)


# ----------------------------------------------------------------------------------------------------------------------
# Each query next to the map images it was matched with.


ABOUT_PICTURES = (
    "On the left the query, then the map images with the most inliers. Dots are matches with points of the map: "
    "inliers and outliers of the estimated pose."
)
MOST_QUERIES = 24  # maximum number of queries shown; failed and uncertain ones first
PARTNERS = 5  # map images shown per query
THUMBNAIL_PX = 280  # longer side


@dataclass(frozen=True)
class MatchFiles:
    """Files with the queries' features, their pairs with map images, and the matches."""

    features: Path
    pairs: Path
    matches: Path


def query_pictures(
    model: Model, results: Sequence[QueryResult], found: MapFiles, queries: Path, matched: MatchFiles
) -> list[Item]:
    """One row per query: the query and the map images with the most inliers. Missing photographs are left out."""
    partners: dict[str, list[str]] = {}
    for pair in read_pairs(matched.pairs, directed=True):
        partners.setdefault(pair.name0, []).append(pair.name1)
    images = {image.name: image for image in model.images.values() if image.has_pose}
    near = existing_photographs(found.model, sorted(images))
    doubtful = [r for r in results if r.keypoints and (r.pose is None or r.uncertain)]
    others = [r for r in results if r.pose is not None and not r.uncertain]
    left = max(MOST_QUERIES // 2, MOST_QUERIES - len(others))
    shown = [doubtful[i] for i in spread(len(doubtful), left)]
    shown += [others[i] for i in spread(len(others), MOST_QUERIES - len(shown))]
    items: list[Item] = []
    with (
        open_features(matched.features) as query_store,
        open_features(found.features) as map_store,
        open_matches(matched.matches, query_store, map_store) as matches,
    ):
        for result in shown:
            names = [name for name in partners.get(result.name, ()) if name in images]
            rows = partner_matches(result.name, names, matches, lambda name: point_ids(images[name]))
            row = _query_row(result, queries, rows, query_store, map_store, near)
            items.append(replace(row, key=not items))
    return items


def _query_row(
    result: QueryResult,
    queries: Path,
    rows: Sequence[PartnerMatches],
    query_store: FeatureStore,
    map_store: FeatureStore,
    near: Mapping[str, Path],
) -> Gallery:
    every = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *(row.seen for row in rows)]), axis=0)
    kept = np.zeros(len(every), bool) if result.estimate is None else result.estimate.inlier  # of `every`, in order
    inliers = {(int(k), int(point)) for k, point in every[kept]}
    flags = [np.array([(int(k), int(point)) in inliers for k, point in row.seen], bool) for row in rows]
    keypoints, grey_range = query_store.keypoints(result.name), map_store.intensity_range
    caption = f"{len(inliers)} inliers of {len(every)} matches" if not result.reason else f"failed: {result.reason}"
    own = _match_thumbnail(
        queries / result.name, keypoints[every[:, 0]], kept, caption, grey_range, bool(result.reason)
    )
    best = sorted(range(len(rows)), key=lambda i: (-int(flags[i].sum()), i))
    others = [
        _match_thumbnail(
            near[rows[i].name],
            map_store.keypoints(rows[i].name)[rows[i].of_map],
            flags[i],
            f"{rows[i].name}: {int(flags[i].sum())} inliers of {len(flags[i])}",
            grey_range,
        )
        for i in best
        if rows[i].name in near
    ][:PARTNERS]
    note = f"uncertain: {result.uncertain}" if result.uncertain else ""
    return Gallery(result.name, [one for one in (own, *others) if one is not None], note)


def _match_thumbnail(
    path: Path,
    points: Float[np.ndarray, "m 2"],
    inlier: Bool[np.ndarray, " m"],
    caption: str,
    grey_range: tuple[float, float] | None,
    highlight: bool = False,
) -> Thumbnail | None:
    """A photograph with its matches; None if it can no longer be read."""
    try:
        image = thumbnail(path, THUMBNAIL_PX, grey_range)
    except BadInputError:
        return None
    return Thumbnail(image.pixels, caption, image.pixels_from_file(points.astype(np.float64)), inlier, highlight)


# ----------------------------------------------------------------------------------------------------------------------
# The table of all queries.


def _query_table(metrics: dict[str, Any], results: list[QueryResult]) -> Table:
    columns = [
        "query",
        "keypoints",
        "2D-3D matches",
        "inliers",
        "residual px",
        "± centre",
        "± rotation deg",
        "intrinsics",
    ]
    errors = metrics.get("errors", {})
    if errors:
        columns += ["error m", "error deg"]
    reasons = [result.reason or (f"uncertain: {result.uncertain}" if result.uncertain else "") for result in results]
    if any(reasons):
        columns.append("reason for failure or uncertainty")
    rows: list[list[Cell]] = []
    for result, reason in zip(results, reasons, strict=True):
        estimate = result.estimate if result.pose is not None else None
        row: list[Cell] = [
            result.name,
            result.keypoints,
            result.matches_3d,
            0 if result.estimate is None else int(result.estimate.inlier.sum()),
            None if estimate is None else estimate.residual_px,
            None if estimate is None else estimate.centre_std,
            None if estimate is None else estimate.rotation_std_deg,
            result.intrinsics_source,
        ]
        if errors:
            error = errors.get(result.name, {})
            row += [error.get("m"), error.get("deg")]
        rows.append([*row, reason] if any(reasons) else row)
    failed = {number for number, result in enumerate(results) if result.pose is None}
    return Table(
        "All queries", columns, rows, note="± is one standard deviation, from the covariance.", highlight=failed
    )


# ----------------------------------------------------------------------------------------------------------------------
# metrics.json of a method on Aachen Day-Night: day and night separately.


def aachen_metrics(
    model: Path,
    database: Path,
    results: Sequence[QueryResult],
    conditions: Mapping[str, Sequence[str]],
    scores: Mapping[str, LocalizationScore],
    score: LocalizationScore | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """metrics.json: as for a localization, with the map's statistics and each condition separately."""
    reconstruction = read_model(model)
    verified, inliers = count_verified(database)
    localized = {result.name for result in results if result.pose is not None}
    by_condition = {}
    for condition, names in conditions.items():
        counted: dict[str, Any] = {"queries": len(names), "localized": sum(name in localized for name in names)}
        if condition in scores:
            found = scores[condition]
            counted |= {
                "judged": found.queries,
                "recall": dict(zip(NAMES, found.recall, strict=True)),
                "median_m": found.median_m if found.localized else None,
                "median_deg": found.median_deg if found.localized else None,
            }
        by_condition[condition] = counted
    return {
        **localization_metrics(results, score, seconds),
        "conditions": by_condition,
        "map": {
            **asdict(map_statistics(reconstruction, reconstruction.num_images())),
            "verified_pairs": verified,
            "inlier_matches": inliers,
        },
    }
