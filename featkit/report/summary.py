"""Small tables of metrics, the same in the terminal and in the report."""

from __future__ import annotations

from typing import Any

from featkit.report.content import Cell, Table


def map_table(metrics: dict[str, Any]) -> Table:
    """One row per model, the largest first."""
    columns = ["model", "registered", "points", "observations", "track", "error px"]
    rows: list[list[Cell]] = [
        [
            str(number),
            f"{model['registered']} / {model['images']}",
            model["points"],
            model["observations"],
            model["track_length"],
            model["reprojection_px"],
        ]
        for number, model in enumerate(metrics["models"])
    ]
    if "truth" in metrics:
        columns += ["centre mm", "rotation deg"]
        truth = metrics["truth"]
        for number, row in enumerate(rows):
            row += [1e3 * truth["centre_mean"], truth["rotation_deg_mean"]] if number == 0 else [None, None]
    return Table("Map", columns, rows)


def seconds_table(metrics: dict[str, Any]) -> Table:
    """Wall time of every stage."""
    rows: list[list[Cell]] = [[stage, round(seconds, 2)] for stage, seconds in metrics["seconds"].items()]
    rows.append(["total", round(sum(metrics["seconds"].values()), 2)])
    return Table("Time", ["stage", "seconds"], rows, note="A stage that was done already takes no time.")


def recall_table(metrics: dict[str, Any]) -> Table:
    """Recall at the thresholds, and medians."""
    columns = ["queries", "localized", *metrics["recall"], "median m", "median deg"]
    shares = [f"{100 * share:.1f} %" for share in metrics["recall"].values()]
    row: list[Cell] = [
        metrics["judged"],
        metrics["localized"],
        *shares,
        metrics["median_m"],
        metrics["median_deg"],
    ]
    return Table("Localization against the truth", columns, [row])


def camera_error_table(truth: dict[str, Any]) -> Table:
    """Errors of every camera of a map, in millimetres and degrees."""
    rows: list[list[Cell]] = [
        [name, 1e3 * error["centre"], error["rotation_deg"]] for name, error in truth["per_image"].items()
    ]
    return Table("Cameras against the truth", ["image", "centre error mm", "rotation error deg"], rows)
