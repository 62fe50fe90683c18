"""The report of `featkit inspect informativeness`: AdaSample's figure 3 for a training of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featkit.report.content import Cell, Configuration, Curve, Curves, Headline, Histogram, Report, Section, Table
from featkit.report.page import write_report
from featkit.training.informativeness import Informativeness, InformativenessConfig, Snapshot

Along = Sequence[tuple[Snapshot, Informativeness]]
GROUPS = 32  # neighbouring pairs are averaged in so many groups: a curve of single pairs is noise
PUBLISHED = 0.8  # figure 3, right: "consistently greater"

ABOUT = """Informativeness of a pair: the norm of the gradient of its angular hinge triplet loss over all parameters.
AdaSample draws pairs by their matching distance instead, which is cheap; the correlation says how good a stand-in it
is. The paper finds it above 0.8 along the whole training."""


def informativeness_report(along: Along, config: InformativenessConfig, run: Path, data: str, path: Path) -> Path:
    """Write the page and return it. along: networks of one training, in their order."""
    snapshot, last = along[-1]
    report = Report(
        title="Informativeness",
        subtitle=f"{run}, on {len(last.distances):,} pairs of {data}",
        headlines=[
            Headline("Correlation", round(last.pearson, 3), hint=f"{snapshot.name}; paper: above {PUBLISHED}"),
            Headline("of ranks", round(last.spearman, 3), hint="Spearman"),
            Headline("Pairs with a gradient", round(100 * last.active_share, 1), "%"),
        ],
        sections=[
            Section("Along the training", ABOUT, [*_curve(along), informativeness_table(along)]),
            Section(
                f"Pairs ({snapshot.name})",
                "Pairs in the order of their matching distance: what share of all draws would fall to a pair if it "
                "were drawn by its distance, and by the norm of its gradient.",
                [probabilities(last)],
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


def informativeness_table(along: Along) -> Table:
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


def _curve(along: Along) -> list[Curves]:
    """Pearson and Spearman over the steps (figure 3, right); nothing for a single step."""
    known = [(snapshot.step, found) for snapshot, found in along if snapshot.step is not None]
    if len(known) < 2:
        return []
    steps = np.array([step for step, _ in known], float)
    curves = [
        Curve("Pearson", steps, np.array([found.pearson for _, found in known])),
        Curve("Spearman", steps, np.array([found.spearman for _, found in known])),
    ]
    return [Curves("Distance and informativeness", "step", "correlation", curves)]


def probabilities(found: Informativeness) -> Curves:
    """Probabilities induced by distance and by informativeness (figure 3, left), in groups of neighbours."""
    order = np.argsort(found.distances, kind="stable")
    groups = np.array_split(order, min(GROUPS, len(order)))
    ends = np.cumsum([len(group) for group in groups])
    x = 100.0 * (ends - 0.5 * np.diff(np.r_[0, ends])) / len(order)
    curves = []
    for name, values in (("by distance", found.distances), ("by informativeness", found.gradient_norms)):
        share = values / max(float(values.sum()), np.finfo(float).tiny)
        curves.append(Curve(name, x, np.array([1000.0 * share[group].mean() for group in groups])))
    return Curves("Probability of a pair", "pairs by distance, %", "probability, thousandths", curves)
