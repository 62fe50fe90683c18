"""Tables and page of `featkit eval localization`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from featkit.evaluation.predictions import Method
from featkit.report.content import Cell, Configuration, Curve, Curves, Headline, Item, Link, Report, Section, Table
from featkit.report.standings import Standing

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


def localization_standings(scores: Sequence[Localized]) -> list[Standing]:
    """Recall at the strictest threshold in %, and the median errors."""
    found = []
    for score in scores:
        of_it, name = score.localization, score.method.name
        threshold, recall = next(iter(of_it["recall"].items()))
        metres = of_it["median_m"]
        found += [
            Standing(name, f"{score.scene} within {threshold}, %", 100 * recall, "high"),
            Standing(name, f"{score.scene} median, mm", None if metres is None else MM * metres, "low"),
            Standing(name, f"{score.scene} median, deg", of_it["median_deg"], "low"),
        ]
    return found


def localization_report(folder: Path, scores: Sequence[Localized], described: dict[str, Any]) -> Report:
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
