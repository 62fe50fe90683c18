"""`featkit eval ubc`, `patches` and `rome`: patch descriptors on the patches of the papers' benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions
from featkit.cli.eval_common import method_names

if TYPE_CHECKING:
    from featkit.evaluation.ubc import UbcMethod

UBC_HELP = """FPR95 on the test pairs of PhotoTour sets (UBC's own, or made with `featkit data patches`).

Example: `featkit eval ubc --data patches/liberty --data patches/aerial --features rootsift,sdgmnet`

With --runs, a folder of trainings SET/METHOD, every weight is tested on all sets but its own."""
PATCHES_HELP = """HPatches' three tasks: verification, matching, retrieval.

Example: `featkit eval patches --root data/hpatches --split a --features rootsift,hynet`

The official task files are used where they are found; otherwise tasks are drawn by the same rules. With --runs, a
folder of trainings SET/METHOD, the best and the last weight of each has a row; a run that was trained on sequences of
the test part is left out."""
ROME_HELP = """Patch retrieval on RomePatches: mean AP of 1,000 queries, of the training set and of the test set.

Example: `featkit eval rome --root data/rome --features rootsift,doap`

With --runs, a folder of trainings SET/METHOD, the best and the last weight of each has a row."""

Methods = Annotated[
    str,
    typer.Option("--features", help="sift, rootsift, weights by name or path; comma-separated.", metavar="NAME,..."),
]
ResultFile = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write the results as json.", show_default="no file")
]
Published = Annotated[bool, typer.Option("--published", help="Show what papers print below.")]


Runs = Annotated[Path | None, typer.Option(help="Folder of trainings, SET/METHOD.", show_default="none")]


def ubc(
    data: Annotated[list[Path], typer.Option(help="Folder in PhotoTour's format; repeatable.", show_default=False)],
    features: Methods = "sift,rootsift",
    runs: Runs = None,
    pairs: Annotated[
        str | None,
        typer.Option(help="Name of the file of test pairs in each folder.", show_default="the largest m50_*"),
    ] = None,
    published: Published = False,
    out: ResultFile = None,
    *,
    run: RunOptions,
) -> Outcome:
    from dataclasses import asdict

    from featkit.evaluation.patch_describers import describer
    from featkit.evaluation.ubc import evaluate_ubc, read_ubc, ubc_table
    from featkit.report.content import Table

    _refuse_foreign(out)
    sets = [read_ubc(folder, pairs) for folder in data]
    scores = evaluate_ubc(sets, _methods(features, runs), lambda weight: describer(weight, run.device))
    found = ubc_table(scores)
    heads = [f"{train} -> {test}" if train else test for train, test in found.columns]
    rows = [
        [name, variant or "-", *(_percent(value) for value in values), _percent(found.mean(values))]
        for name, variant, values in found.rows
    ]
    note = "; ".join(f"{one.name}: {len(one.pairs):,} pairs of {one.pairs_file.name}" for one in sets)
    tables = [Table("FPR95, %", ["method", "weight", *heads, "mean"], rows, note)]
    results = {"scores": [asdict(score) for score in scores]}
    standings = _standings({str(row[0]): {"mean FPR95, %": row[-1]} for row in rows}, "low")
    return _outcome(results, tables + (_published("ubc") if published else []), out, standings)


def patches(
    root: Annotated[Path, typer.Option(help="Folder of hpatches-release.", show_default=False)],
    features: Methods = "sift,rootsift",
    runs: Runs = None,
    split: Annotated[str, typer.Option(help="Split of splits.json (a, b, c, view, illum), or full.")] = "a",
    splits: Annotated[Path | None, typer.Option(help="The splits.json.", show_default="found near --root")] = None,
    tasks: Annotated[Path | None, typer.Option(help="Folder of task files.", show_default="found near --root")] = None,
    write_tasks: Annotated[
        Path | None, typer.Option(help="Write drawn tasks here, as the official files.", show_default="nowhere")
    ] = None,
    settings: options.Settings = None,
    published: Published = False,
    out: ResultFile = None,
    *,
    run: RunOptions,
) -> Outcome:
    import numpy as np

    from featkit.config import make, overrides
    from featkit.data.hpatches import read_hpatches, read_split
    from featkit.evaluation import hpatches_tasks
    from featkit.evaluation.hpatches_patches import HPatchesConfig, evaluate_hpatches
    from featkit.evaluation.patch_describers import describer
    from featkit.report.content import Table

    _refuse_foreign(out)
    config = make(HPatchesConfig, overrides(settings or []), where="eval patches")
    data = read_hpatches(root)
    chosen = read_split(data, split, splits)["test"]
    generator = np.random.default_rng(run.seed)
    wanted = hpatches_tasks.find_or_draw(data, chosen, split, tasks, config.drawn, generator)
    if write_tasks is not None:
        hpatches_tasks.write_tasks(write_tasks, split, wanted)
    results: dict[str, Any] = {
        "split": split,
        "tasks_from": wanted.source,
        "config": config.result_fields(),
        "scores": {},
    }
    methods, left_out = _not_trained_on(_methods(features, runs), set(chosen))
    rows = []
    columns = ("verification_ap", "verification_auc", "matching", "retrieval")
    for method in methods:
        scores = evaluate_hpatches(data, chosen, wanted, describer(method.weight, run.device), config)
        results["scores"][method.label] = scores.as_json()
        rows.append([method.label, *(_percent(scores.means.get(column)) for column in columns)])
    results["left_out"] = left_out
    heads = ["method", "verification mAP", "verification AUC", "matching mAP", "retrieval mAP"]
    note = "; ".join([f"tasks: {wanted.source}", *(f"left out: {name} ({why})" for name, why in left_out.items())])
    tables = [Table(f"HPatches, split {split}, %", heads, rows, note)]
    standings = _standings({str(row[0]): dict(zip(heads[1:], row[1:], strict=True)) for row in rows}, "high")
    return _outcome(results, tables + (_published("hpatches_patches") if published else []), out, standings)


def rome(
    root: Annotated[Path, typer.Option(help="Folder of the .mat files.", show_default=False)],
    features: Methods = "sift,rootsift",
    runs: Runs = None,
    published: Published = False,
    out: ResultFile = None,
    *,
    run: RunOptions,
) -> Outcome:
    from dataclasses import asdict

    from featkit.data.rome import read_rome
    from featkit.evaluation.patch_describers import describer
    from featkit.evaluation.rome import evaluate_rome
    from featkit.report.content import Table

    _refuse_foreign(out)
    sets = {"train": read_rome(root, "train"), "test": read_rome(root, "test")}
    results: dict[str, Any] = {}
    rows = []
    for method in _methods(features, runs):
        describe = describer(method.weight, run.device)
        scores = {part: evaluate_rome(data, describe) for part, data in sets.items()}
        results[method.label] = {part: asdict(score) for part, score in scores.items()}
        rows.append([method.label, *(_percent(score.mean_ap) for score in scores.values())])
    tables = [Table("RomePatches, mAP, %", ["method", *sets], rows)]
    standings = _standings({str(row[0]): {"RomePatches test mAP, %": row[-1]} for row in rows}, "high")
    return _outcome({"scores": results}, tables + (_published("rome") if published else []), out, standings)


def _methods(features: str, runs: Path | None) -> list[UbcMethod]:
    """Those that are named, then the weights of a folder of trainings. Raises UsageError, BadInputError."""
    from featkit.evaluation.ubc import UbcMethod, find_runs

    named = [UbcMethod(name, "", "", name) for name in method_names(features)]
    return named + (find_runs(runs) if runs is not None else [])


def _not_trained_on(methods: list[UbcMethod], tested: set[str]) -> tuple[list[UbcMethod], dict[str, str]]:
    """The methods whose training had none of the tested scenes; and why each of the others is left out."""
    kept, left_out = [], {}
    for method in methods:
        shared = sorted(method.learned_scenes() & tested)
        if shared:
            left_out[method.label] = f"trained on {shared[0]}" + (f" and {len(shared) - 1} more" if shared[1:] else "")
        else:
            kept.append(method)
    return kept, left_out


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _published(benchmark: str) -> list[Any]:
    from featkit.evaluation.published_tables import published
    from featkit.report.content import Table

    known = published(benchmark)
    heads = [column if isinstance(column, str) else " -> ".join(column) for column in known.columns]
    return [
        Table(
            f"{table.paper}: {table.where}", ["as published", *heads], [[row.name, *row.values] for row in table.rows]
        )
        for table in known.tables
    ]


def _standings(values: dict[str, dict[str, Any]], better: Literal["high", "low"]) -> list[Any]:
    from featkit.report.standings import Standing

    return [Standing(name, measure, value, better) for name, row in values.items() for measure, value in row.items()]


def _refuse_foreign(out: Path | None) -> None:
    """Raise BadInputError, before the work, when the results would replace a file of somebody else's."""
    from featkit.store.stamp import refuse_foreign

    if out is not None:
        refuse_foreign(out)


def _outcome(results: dict[str, Any], tables: list[Any], out: Path | None, standings: list[Any]) -> Outcome:
    import json

    from featkit import __version__
    from featkit.store.artifact import write_text

    if out is not None:
        write_text(out, json.dumps({"featkit_version": __version__, **results}, indent=1) + "\n")
    return Outcome(results, [f"{out}: all numbers"] if out is not None else [], tables, standings=standings)
