"""The pages of localization: one run, `featkit eval localization`, `featkit localize aachen`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from featkit.core.config import Config
from featkit.core.registry import Method
from featkit.core.types import Pose
from featkit.evaluation.metrics import THRESHOLDS, LocalizationScore
from featkit.evaluation.published import published
from featkit.localization.stage import QueryResult
from featkit.mapping.align import transform_pose
from featkit.mapping.cameras import to_camera
from featkit.mapping.database import count_verified
from featkit.mapping.model import Model, map_statistics, read_model
from featkit.mapping.scene import MapFiles
from featkit.report.content import (
    Cell,
    Configuration,
    Curve,
    Curves,
    Headline,
    Item,
    Link,
    Report,
    Scene3D,
    Section,
    Table,
)
from featkit.report.maps import (
    configuration,
    localization_metrics,
    moved_scene,
    posed_camera,
    recall_table,
    seconds_table,
)
from featkit.report.page import write_report
from featkit.report.ranking import Ranked

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
) -> Path:
    """Write report.html of a localization and return it.

    truth: true poses, drawn beside the estimated ones. truth_from_map: similarity that everything is drawn after.
    title: instead of the queries' folder. first: items above the recall.
    """
    tables: list[Item] = [*first, *([recall_table(metrics)] if "recall" in metrics else [])]
    sections = [
        Section("3D", items=[_scene(read_model(found.model), results, truth, truth_from_map)]),
        Section("Result", items=[*tables, seconds_table(metrics)]),
        Section("Queries", items=[_query_table(metrics, results)]),
        Section("Made by", items=[configuration(config)]),
    ]
    headlines = [Headline("Localized", f"{metrics['localized']} / {metrics['queries']}", hint="queries")]
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


def _scene(
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
            cameras.append(posed_camera(result.name, transform_pose(result.pose, similarity), camera, "query"))
        if truth and result.name in truth:
            cameras.append(posed_camera(result.name, truth[result.name], camera, "truth"))
    return Scene3D(scene.points, scene.colours, cameras)


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
    columns.append("failed because")
    rows: list[list[Cell]] = []
    for result in results:
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
        rows.append([*row, result.reason])
    failed = {number for number, result in enumerate(results) if result.pose is None}
    return Table("Queries", columns, rows, note="± is one standard deviation, from the covariance.", highlight=failed)


# ----------------------------------------------------------------------------------------------------------------------
# Tables and page of `featkit eval localization`.


MM = 1e3


class Localized(Protocol):
    """A method on a scene. mapping, localization: metrics as `reconstruct` and `localize` write them."""

    method: Method
    scene: str
    report: Path
    mapping: dict[str, Any]
    localization: dict[str, Any]


def localization_table(scores: Sequence[Localized]) -> Table:
    """A row per scene and method: the map, recall in %, medians in mm and degrees."""
    thresholds = list(scores[0].localization["recall"])
    columns = ["scene", "method", "map images", "points", "queries", "localized"]
    columns += [*thresholds, "median mm", "median deg"]
    rows: list[list[Cell]] = []
    for score in scores:
        found = score.localization
        row: list[Cell] = [score.scene, score.method.name, score.mapping["registered"], score.mapping["points"]]
        row += [found["judged"], found["localized"], *(100 * found["recall"][each] for each in thresholds)]
        metres = found["median_m"]
        rows.append([*row, None if metres is None else MM * metres, found["median_deg"]])
    return Table(
        "Localization", columns, rows, "The truth in metres; a query without a pose is wrong at every threshold."
    )


def localization_ranking(scores: Sequence[Localized]) -> list[Ranked]:
    """Recall at the strictest threshold in %, and the median errors."""
    found = []
    for score in scores:
        of_it, name = score.localization, score.method.name
        threshold, recall = next(iter(of_it["recall"].items()))
        metres = of_it["median_m"]
        found += [
            Ranked(name, f"{score.scene} within {threshold}, %", 100 * recall, "high"),
            Ranked(name, f"{score.scene} median, mm", None if metres is None else MM * metres, "low"),
            Ranked(name, f"{score.scene} median, deg", of_it["median_deg"], "low"),
        ]
    return found


def localization_benchmark_report(folder: Path, scores: Sequence[Localized], described: dict[str, Any]) -> Report:
    """The page: recall, errors of all queries, and each localization's own page. folder: that it will lie in."""
    scenes = list(dict.fromkeys(score.scene for score in scores))
    by_scene = {scene: [score for score in scores if score.scene == scene] for scene in scenes}
    best = max(scores, key=lambda score: tuple(score.localization["recall"].values()))
    threshold, share = next(iter(best.localization["recall"].items()))
    pages: list[list[Cell]] = [[s.scene, Link(s.method.name, s.report.relative_to(folder).as_posix())] for s in scores]
    return Report(
        title="Localization of left-out photographs",
        subtitle=", ".join(scenes),
        headlines=[Headline(f"best within {threshold}", 100 * share, "%", f"{best.method.name}, {best.scene}")],
        sections=[
            Section("Recall", items=[localization_table(scores)]),
            Section("Errors", items=[_errors(scene, of_it) for scene, of_it in by_scene.items()]),
            Section("Queries", items=[_queries(scene, of_it) for scene, of_it in by_scene.items()]),
            Section("Pages", "Each with its map and queries in 3D.", [Table("", ["scene", "method"], pages)]),
            Section("Configuration", items=_configurations(described)),
        ],
    )


def _errors(scene: str, scores: Sequence[Localized]) -> Item:
    """The share of queries up to a distance; failed ones are never reached."""
    curves = []
    for score in scores:
        metres = np.sort([error["m"] for error in score.localization["errors"].values()])
        share = 100 * np.arange(len(metres) + 1) / score.localization["judged"]
        steps = np.concatenate([[0.0], np.repeat(metres, 2)])
        curves.append(Curve(score.method.name, MM * steps, np.repeat(share, 2)[:-1]))
    return Curves(f"{scene}: queries found up to an error", "centre error, mm", "queries, %", curves)


def _queries(scene: str, scores: Sequence[Localized]) -> Table:
    """A row per query: centre error (mm) and rotation error (degrees) by each method."""
    columns = ["query", *(f"{score.method.name}, {unit}" for score in scores for unit in ("mm", "deg"))]
    names = sorted({name for s in scores for name in (*s.localization["errors"], *s.localization["failed"])})
    rows: list[list[Cell]] = []
    for name in names:
        row: list[Cell] = [name]
        for score in scores:
            error = score.localization["errors"].get(name)
            row += [None, None] if error is None else [MM * error["m"], error["deg"]]
        rows.append(row)
    return Table(scene, columns, rows)


def _configurations(described: dict[str, Any]) -> list[Item]:
    return [Configuration(title, json.dumps(values, indent=1)) for title, values in described.items()]


# ----------------------------------------------------------------------------------------------------------------------
# Tables and page of `featkit localize aachen`: day and night apart, what papers print beside it.


NAMES = [f"{metres:g} m, {degrees:g} deg" for metres, degrees in THRESHOLDS]
UPLOAD = "The queries' true poses are not public: upload the submission to https://www.visuallocalization.net."
NIGHT_QUERIES = {"1.1": 191, "1.0": 98}
UNLIKE = "Published rows: queries of the night of v1.1."


def aachen_metrics(
    model: Path,
    database: Path,
    results: Sequence[QueryResult],
    conditions: Mapping[str, Sequence[str]],
    scores: Mapping[str, LocalizationScore],
    score: LocalizationScore | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """metrics.json: as of a localization, with the map's statistics, and every condition by itself."""
    reconstruction = read_model(model)
    verified, inliers = count_verified(database)
    localized = {result.name for result in results if result.pose is not None}
    apart = {}
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
        apart[condition] = counted
    return {
        **localization_metrics(results, score, seconds),
        "conditions": apart,
        "map": {
            **asdict(map_statistics(reconstruction, reconstruction.num_images())),
            "verified_pairs": verified,
            "inlier_matches": inliers,
        },
    }


def condition_table(metrics: dict[str, Any]) -> Table:
    """Day and night of one method."""
    columns = ["queries", "of", "localized", *NAMES, "median m", "median deg"]
    rows = [[condition, *_counts(counted), *_recall(counted)] for condition, counted in metrics["conditions"].items()]
    return Table("Day and night", columns, rows, "" if "recall" in metrics else UPLOAD)


def method_table(measured: Mapping[str, dict[str, Any]], links: Mapping[str, str]) -> Table:
    """A row per method and condition. measured: metrics by method; links: address of each method's own page."""
    columns = ["method", "queries", "of", "localized", *NAMES, "median m", "median deg", "map points", "track"]
    rows: list[list[Cell]] = []
    for name, metrics in measured.items():
        label = Link(name, links[name]) if name in links else name
        for condition, counted in metrics["conditions"].items():
            points = [metrics["map"]["points"], metrics["map"]["track_length"]]
            rows.append([label, condition, *_counts(counted), *_recall(counted), *points])
    known = any("recall" in metrics for metrics in measured.values())
    return Table("Localized queries", columns, rows, "Recall in % of the queries." if known else UPLOAD)


def beside_table(measured: Mapping[str, dict[str, Any]], version: str, whole: bool) -> Table:
    """Our rows of the night above what papers print of v1.1. whole: whether the data is the real one, in numbers."""
    rows: list[list[Cell]] = []
    for name, metrics in measured.items():
        night = metrics["conditions"]["night"]
        rows.append([name, "here", f"{night['localized']} / {night['queries']}", *_recall(night)[: len(NAMES)]])
    ours = set(range(len(rows)))
    for row in published_rows():
        rows.append([row["method"], row["from"], None, *(row[name] for name in NAMES)])
    note = UNLIKE if version == "1.1" and whole else f"{UNLIKE} These are others: they do not compare."
    return Table("Night, beside what is published", ["method", "from", "localized", *NAMES], rows, note, ours)


def is_whole(measured: Mapping[str, dict[str, Any]], version: str) -> bool:
    """Whether the queries of the night are as many as the benchmark has."""
    counts = {metrics["conditions"]["night"]["queries"] for metrics in measured.values()}
    return counts == {NIGHT_QUERIES[version]}


def published_rows() -> list[dict[str, Any]]:
    """Everything that is printed, as plain values; recall in %."""
    return [
        {
            "method": row.name,
            "from": f"{table.paper.partition(' (')[0]}, {table.where.partition(';')[0]}",
            **dict(zip(NAMES, row.values, strict=True)),
        }
        for table in published("aachen").tables
        for row in table.rows
    ]


def aachen_ranking(measured: Mapping[str, dict[str, Any]]) -> list[Ranked]:
    """Per condition: recall at the finest threshold where the truth is known, else the share that was localized."""
    found = []
    for name, metrics in measured.items():
        for condition, counted in metrics["conditions"].items():
            if "recall" in counted:
                value, measure = 100 * counted["recall"][NAMES[0]], f"Aachen {condition} {NAMES[0]}, %"
            else:
                value, measure = 100 * counted["localized"] / counted["queries"], f"Aachen {condition} localized, %"
            found.append(Ranked(name, measure, value, "high"))
    return found


def aachen_report(
    title: str,
    measured: Mapping[str, dict[str, Any]],
    links: Mapping[str, str],
    beside: Table,
    described: dict[str, Any],
) -> Report:
    """The page over all methods. described: title -> plain values."""
    times: list[Item] = [_titled(seconds_table(metrics), name) for name, metrics in measured.items()]
    configurations = [Configuration(name, json.dumps(values, indent=1)) for name, values in described.items()]
    headlines = [
        Headline(f"{name}, {condition}", f"{counted['localized']} / {counted['queries']}", hint="queries localized")
        for name, metrics in measured.items()
        for condition, counted in metrics["conditions"].items()
    ]
    sections = [
        Section("Result", items=[method_table(measured, links)]),
        Section("As published", items=[beside]),
        Section("Time", items=times),
        Section("Configuration", items=configurations),
    ]
    return Report(title, "Localized by featkit", headlines, sections)


def _titled(table: Table, title: str) -> Table:
    return Table(f"{table.title}, {title}", table.columns, table.rows, table.note)


def _counts(counted: dict[str, Any]) -> list[Cell]:
    return [counted["queries"], counted["localized"]]


def _recall(counted: dict[str, Any]) -> list[Cell]:
    """Recall in %, and medians in metres and degrees; gaps without the truth."""
    if "recall" not in counted:
        return [None] * (len(NAMES) + 2)
    shares: list[Cell] = [round(100 * share, 1) for share in counted["recall"].values()]
    return [*shares, counted["median_m"], counted["median_deg"]]
