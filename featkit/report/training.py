"""The reports of a training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featkit.core.content import (
    Cell,
    Configuration,
    Curve,
    Curves,
    Headline,
    Histogram,
    Item,
    Picture,
    Report,
    Section,
    Table,
)
from featkit.core.errors import BadInputError, blaming
from featkit.losses.sdgm import ANGLE_STATISTICS, POWER_STATISTICS
from featkit.report.page import write_report
from featkit.training.informativeness import Informativeness, InformativenessConfig, Snapshot
from featkit.training.run_folder import FIRST_COLUMNS, Row, RunFolder, read_metrics

# ----------------------------------------------------------------------------------------------------------------------
# The report of a training: curves, last and best network, data and configuration.


SHARES = (0.15, 0.35, 0.55, 0.75, 0.95)  # SDGMNet's tables II to IV: epochs 30, 70, 110, 150 and 190 of 200


@dataclass(frozen=True)
class Records:
    """The records of a finished training."""

    summary: dict[str, Any]
    rows: list[Row]
    configuration: str
    pictures: list[Path]


def read_records(run: Path) -> Records:
    """Read the records of a training. Raises BadInputError if the folder does not hold a finished training."""
    folder = RunFolder(run)
    if not folder.summary.is_file():
        raise BadInputError(
            f"{run}: not the folder of a finished training (no {folder.summary.name}); finish the training"
        )
    with blaming(run, "the folder of a finished training", "finish the training"):
        summary = json.loads(folder.summary.read_text(encoding="utf-8"))
        configuration = (run / "config.yaml").read_text(encoding="utf-8")
        return Records(summary, read_metrics(folder.metrics), configuration, sorted(folder.pictures.glob("*.jpg")))


def training_report(run: Path) -> Path:
    """Write report.html of a training and return it. Raises BadInputError if the folder does not hold one."""
    records = read_records(run)
    summary = records.summary
    data, unit = summary["data"], summary["unit"]
    report = Report(
        title=f"Training: {summary['recipe'] or summary['task']}",
        subtitle=f"{data['name']}: {data[unit]:,} {unit} of {len(data['scenes'])} scenes",
        headlines=headlines(summary),
        sections=training_sections(records),
    )
    return write_report(report, RunFolder(run).report)


def stages_report(run: Path, stages: Sequence[str]) -> Path:
    """Write report.html of a training in stages, each in its own folder; stages that were not run are left out."""
    found = {stage: read_records(run / stage) for stage in stages if RunFolder(run / stage).summary.is_file()}
    if not found:
        raise BadInputError(f"{run}: not the folder of a finished training (none of {', '.join(stages)} is there)")
    last = list(found.values())[-1].summary
    parts = [
        f"{stage}: {r.summary['steps']:,} steps in {r.summary['seconds'] / 60:.1f} min" for stage, r in found.items()
    ]
    report = Report(
        title=f"Training: {last['recipe'] or last['task']}",
        subtitle="; ".join(parts),
        headlines=headlines(last),
        sections=[section for stage, records in found.items() for section in training_sections(records, f"{stage}: ")],
    )
    return write_report(report, RunFolder(run).report)


def headlines(summary: dict[str, Any]) -> list[Headline]:
    """Best score, length, time."""
    best, score, unit = (summary[key] for key in ("best", "score", "unit"))
    value = score["factor"] * best[score["name"]]
    return [
        Headline(score["label"], value, score["unit"], f"best, at step {best['step']:,}"),
        Headline("steps", summary["steps"]),
        Headline(f"{unit} seen", summary[unit]),
        Headline("training", round(summary["seconds"] / 60, 1), "min", f"on {summary['device']}"),
    ]


def training_sections(records: Records, prefix: str = "") -> list[Section]:
    """Networks, curves, statistics, pictures and configuration of one training. prefix: start of every heading."""
    summary, rows = records.summary, records.rows
    sections = [
        Section("Networks", items=[training_table(summary)]),
        Section("Curves", items=metric_curves(rows, summary["score"], summary["unit"])),
        *statistics_sections(rows, {summary["score"]["name"], f"{summary['unit']}_per_s"}),
    ]
    if records.pictures:
        sections.append(Section("Pictures", items=[_picture(path) for path in records.pictures]))
    sections.append(Section("Configuration", items=[Configuration("config.yaml", records.configuration)]))
    return [replace(section, title=_title(prefix, section.title)) for section in sections]


def _title(prefix: str, title: str) -> str:
    return f"{prefix[:1].upper()}{prefix[1:]}{title[:1].lower()}{title[1:]}" if prefix else title


def _picture(path: Path) -> Picture:
    name, _, step = path.stem.rpartition("_")
    return Picture(f"{name}, step {int(step):,}", path.read_bytes())


def training_table(summary: dict[str, Any]) -> Table:
    """Last and best network separately, since the best one is selected and evaluated on the same pairs."""
    score = summary["score"]
    rows: list[list[Cell]] = [
        [which, summary[which]["step"], score["factor"] * summary[which][score["name"]]] for which in ("last", "best")
    ]
    note = "On the validation set, which also selected the best step."
    return Table("Training", ["network", "step", f"{score['label']} {score['unit']}"], rows, note=note)


def metric_curves(rows: list[Row], score: dict[str, Any], unit: str) -> list[Item]:
    """Loss, score, learning rate, gradient, speed and waiting over the steps."""
    found = [
        _chart(rows, "Loss", "loss", {"loss": "loss"}),
        _chart(
            rows,
            score["label"][:1].upper() + score["label"][1:],
            score["unit"],
            {score["name"]: score["label"]},
            score["factor"],
        ),
        _chart(rows, "Learning rate", "learning rate", {"learning_rate": "learning rate"}),
        _chart(rows, "Gradient", "norm over all parameters", {"gradient_norm": "gradient"}, log=True),
        _chart(rows, "Speed", f"{unit} per second", {f"{unit}_per_s": unit}),
        _chart(rows, "Waiting for data", "% of the time", {"wait_share": "waiting"}, 100.0),
    ]
    return [chart for chart in found if chart is not None]


def statistics_sections(rows: list[Row], shown_already: set[str]) -> list[Section]:
    """Statistics of the loss: SDGMNet's as in the paper's tables, AdaSample's average loss."""
    names = list(dict.fromkeys(key for row in rows for key in row if key not in {*FIRST_COLUMNS, *shown_already}))
    items: list[Item | None] = []
    if set(names) >= set(ANGLE_STATISTICS):
        items.append(_chart(rows, "Angles", "rad", ANGLE_STATISTICS))
        items.append(_chart(rows, "Power", "sum of weights", POWER_STATISTICS))
        items.append(statistics_table(rows))
        names = [name for name in names if name not in ANGLE_STATISTICS and name not in POWER_STATISTICS]
    items += [_chart(rows, name.replace("_", " "), name.replace("_", " "), {name: name}) for name in names]
    shown = [item for item in items if item is not None]
    return [Section("Statistics of the loss", items=shown)] if shown else []


def statistics_table(rows: list[Row]) -> Table:
    """SDGMNet's statistics at the same fractions of the training as in the paper's tables II to IV."""
    steps = np.array([row["step"] for row in rows])
    at = [rows[int(np.abs(steps - share * steps[-1]).argmin())] for share in SHARES]
    body: list[list[Cell]] = [
        [symbol, *(row[name] for row in at)] for name, symbol in {**ANGLE_STATISTICS, **POWER_STATISTICS}.items()
    ]
    columns = ["statistic", *(f"step {int(row['step']):,}" for row in at)]
    return Table("Statistics during training", columns, body, note="Angles in rad; SDGMNet, tables II to IV.")


def _chart(
    rows: list[Row], title: str, unit: str, names: dict[str, str], factor: float = 1.0, log: bool = False
) -> Curves | None:
    """Columns of the metrics, by name, over the steps; None if they are empty."""
    curves = []
    for name, label in names.items():
        some = [(row["step"], factor * row[name]) for row in rows if name in row]
        if some:
            x, y = np.array(some).T
            curves.append(Curve(label, x, y))
    return Curves(title, "step", unit, curves, log) if curves else None


# ----------------------------------------------------------------------------------------------------------------------
# The report of `featkit inspect informativeness`: AdaSample's figure 3 for any training run.


Snapshots = Sequence[tuple[Snapshot, Informativeness]]
GROUPS = 32  # number of groups of neighbouring pairs; single pairs are too noisy for a curve
PUBLISHED = 0.8  # figure 3, right: "consistently greater"

ABOUT = """The informativeness of a pair is the norm of the gradient of its angular hinge triplet loss over all
parameters. AdaSample draws pairs by their matching distance instead, which is cheap; the correlation shows how well the
distance replaces the gradient norm. In the paper it stays above 0.8 during the whole training."""


def informativeness_report(along: Snapshots, config: InformativenessConfig, run: Path, data: str, path: Path) -> Path:
    """Write the page and return it. along: networks of one training, in order."""
    snapshot, last = along[-1]
    report = Report(
        title="Informativeness",
        subtitle=f"{run}, on {len(last.distances):,} pairs of {data}",
        headlines=[
            Headline("Correlation", round(last.pearson, 3), hint=f"{snapshot.name}; paper: above {PUBLISHED}"),
            Headline("Rank correlation", round(last.spearman, 3), hint="Spearman"),
            Headline("Pairs with a gradient", round(100 * last.active_share, 1), "%"),
        ],
        sections=[
            Section("During training", ABOUT, [*_correlation_curves(along), informativeness_table(along)]),
            Section(
                f"Pairs ({snapshot.name})",
                "Pairs sorted by their matching distance: the probability of drawing a pair if pairs are drawn by "
                "distance, and if they are drawn by gradient norm.",
                [draw_probabilities(last)],
            ),
            Section(
                "Distributions",
                items=[
                    Histogram("Matching distance", "rad", last.distances),
                    Histogram("Gradient norm", "norm", last.gradient_norms),
                ],
            ),
            Section("Configuration", items=[Configuration("informativeness", config.model_dump_json(indent=1))]),
        ],
    )
    return write_report(report, path)


def informativeness_table(along: Snapshots) -> Table:
    """Correlation, distances and norms by step."""
    rows: list[list[Cell]] = [
        [
            snapshot.name,
            snapshot.step,
            found.pearson,
            found.spearman,
            float(found.distances.mean()),
            float(found.gradient_norms.mean()),
            100 * found.active_share,
        ]
        for snapshot, found in along
    ]
    columns = ["network", "step", "Pearson", "Spearman", "mean distance", "mean gradient norm", "with a gradient %"]
    note = f"Matching distance and gradient norm per pair; AdaSample, figure 3: Pearson above {PUBLISHED}."
    return Table("Correlation", columns, rows, note)


def _correlation_curves(along: Snapshots) -> list[Curves]:
    """Pearson and Spearman correlation over the steps (figure 3, right); empty for fewer than two steps."""
    known = [(snapshot.step, found) for snapshot, found in along if snapshot.step is not None]
    if len(known) < 2:
        return []
    steps = np.array([step for step, _ in known], float)
    curves = [
        Curve("Pearson", steps, np.array([found.pearson for _, found in known])),
        Curve("Spearman", steps, np.array([found.spearman for _, found in known])),
    ]
    return [Curves("Distance and informativeness", "step", "correlation", curves)]


def draw_probabilities(found: Informativeness) -> Curves:
    """Probability of drawing a pair by distance and by informativeness (figure 3, left), averaged in groups."""
    order = np.argsort(found.distances, kind="stable")
    groups = np.array_split(order, min(GROUPS, len(order)))
    ends = np.cumsum([len(group) for group in groups])
    x = 100.0 * (ends - 0.5 * np.diff(np.r_[0, ends])) / len(order)
    curves = []
    for name, values in (("by distance", found.distances), ("by informativeness", found.gradient_norms)):
        share = values / max(float(values.sum()), np.finfo(float).tiny)
        curves.append(Curve(name, x, np.array([1000.0 * share[group].mean() for group in groups])))
    return Curves("Probability of a pair", "pairs by distance, %", "probability, thousandths", curves)
