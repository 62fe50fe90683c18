"""Tables and page of `featkit localize aachen`: day and night apart, what papers print beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featkit.evaluation.localization import THRESHOLDS, LocalizationScore
from featkit.evaluation.published_tables import published
from featkit.localization.localize import QueryResult
from featkit.mapping.database import count_verified
from featkit.mapping.model import read_model
from featkit.mapping.statistics import map_statistics
from featkit.report.content import Cell, Configuration, Headline, Item, Link, Report, Section, Table
from featkit.report.metrics import localization_metrics
from featkit.report.standings import Standing
from featkit.report.summary import seconds_table

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


def aachen_standings(measured: Mapping[str, dict[str, Any]]) -> list[Standing]:
    """Per condition: recall at the finest threshold where the truth is known, else the share that was localized."""
    found = []
    for name, metrics in measured.items():
        for condition, counted in metrics["conditions"].items():
            if "recall" in counted:
                value, measure = 100 * counted["recall"][NAMES[0]], f"Aachen {condition} {NAMES[0]}, %"
            else:
                value, measure = 100 * counted["localized"] / counted["queries"], f"Aachen {condition} localized, %"
            found.append(Standing(name, measure, value, "high"))
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
