"""`featkit eval ...`: features and descriptors on the field's benchmarks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from featkit import __version__
from featkit.cli import app as options
from featkit.cli import eval_common, eval_features
from featkit.cli.app import Outcome, RunOptions, verb
from featkit.cli.engine import with_engine
from featkit.cli.eval_common import method_names
from featkit.core.config import make, overrides
from featkit.core.errors import FeatkitError, UsageError
from featkit.core.registry import Method
from featkit.data.hpatches import find_splits, read_hpatches, read_rome, read_split
from featkit.engine.plan import EngineConfig
from featkit.evaluation import hpatches_patches
from featkit.evaluation.datasets import AvailableData, available_data, not_learned_from, patch_method
from featkit.evaluation.hpatches_patches import HPatchesConfig, evaluate_hpatches
from featkit.evaluation.patches import UbcMethod, describer, evaluate_rome, evaluate_ubc, find_runs, read_ubc, ubc_table
from featkit.evaluation.published import published
from featkit.io.artifact import write_text
from featkit.io.atomic import refuse_foreign
from featkit.report.content import Table
from featkit.report.ranking import BenchmarkPage, Ranked, all_report, failed_table, ranking_table

LOGGER = logging.getLogger(__name__)
# ----------------------------------------------------------------------------------------------------------------------
# `featkit eval all`: every benchmark that the available data allows, in one page.


ALL_HELP = """Every benchmark that the data at hand allows, in one page.

Example: `featkit eval all --data data/ --features rootsift,dog+hynet,scfeat`

Data sets are told by their layout, wherever they lie below --data. Each benchmark runs with its own defaults, as
`featkit eval NAME` does, and writes its own OUT/NAME; OUT/report.html holds them all, OUT/results.json the numbers.
Scenes and patches that a shipped weight was trained on are left out. A benchmark that fails is named, and the others
go on."""
BENCHMARKS = ("hpatches", "oxford", "eth", "localization", "pose", "ubc", "patches", "rome")


@dataclass(frozen=True)
class Planned:
    """One benchmark to run. folder: of its results. root: the one data set that it takes, if it takes one.

    names: what its methods are called among all, where that differs.
    """

    name: str
    root: Path | None
    folder: Path
    run: Callable[..., Outcome]
    options: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Of its part of the page."""
        return self.name if self.root is None else f"{self.name}: {self.root.name}"


def everything(
    data: Annotated[Path, typer.Option(help="Folder that holds data sets, at any depth.", show_default=False)],
    features: eval_common.FeatureNames = "rootsift",
    only: Annotated[
        str | None,
        typer.Option(help=f"Only these of {', '.join(BENCHMARKS)}.", metavar="NAME,...", show_default="all"),
    ] = None,
    max_keypoints: options.MaxKeypoints = None,
    resize_max: options.ResizeMax = None,
    workers: options.Workers = 0,
    out: eval_common.OutFolder = Path("featkit-eval"),
    overwrite: options.Overwrite = False,
    engine: EngineConfig | None = None,
    *,
    run: RunOptions,
) -> Outcome:
    wanted = _wanted(only)
    eval_common.refuse_results(out)
    asked = eval_common.Asked(features, None, max_keypoints, resize_max, workers, overwrite, engine)
    methods = eval_common.methods_of(asked, run.device)
    extraction = {
        "features": features,
        "max_keypoints": max_keypoints,
        **options.given(resize_max=resize_max),
        "workers": workers,
        "overwrite": overwrite,
        "engine": engine,
    }
    planned = [one for one in _planned(available_data(data), methods, extraction, out) if one.name in wanted]
    if not planned:
        raise UsageError(f"--only {only}: the data in {data} allow none of these")
    outcomes, failed = _run(planned, run)
    ranking = [
        replace(standing, method=one.names.get(standing.method, standing.method))
        for one, outcome in outcomes
        for standing in outcome.ranking
    ]
    summary = ranking_table(ranking, [method.name for method in methods])
    results = {
        **eval_common.made_by("all"),
        "data": str(data),
        "methods": [method.described() for method in methods],
        "standings": [vars(standing) for standing in ranking],
        "benchmarks": {one.title: outcome.data for one, outcome in outcomes},
        "failed": failed,
    }
    pages = [_page(one, outcome, out) for one, outcome in outcomes]
    page = all_report(summary, pages, failed, {one.name: one.described() for one in methods})
    tables = [summary, *([failed_table(failed)] if failed else [])]
    return eval_common.finished(results, out, page, tables, ranking)


def _run(planned: list[Planned], run: RunOptions) -> tuple[list[tuple[Planned, Outcome]], dict[str, str]]:
    """What each came to, and the messages of those that failed. Raises the first error when all failed."""
    outcomes: list[tuple[Planned, Outcome]] = []
    failed: dict[str, FeatkitError] = {}
    for one in planned:
        LOGGER.info("== %s", one.title)
        try:
            outcomes.append((one, one.run(**one.options, run=run)))
        except FeatkitError as error:
            LOGGER.warning("%s: %s", one.title, error)
            failed[one.title] = error
    if not outcomes:
        raise next(iter(failed.values()))
    return outcomes, {title: str(error) for title, error in failed.items()}


def _wanted(only: str | None) -> tuple[str, ...]:
    """Names of benchmarks. Raises UsageError for an unknown one."""
    names = eval_common.names_in(only)
    for name in names:
        if name not in BENCHMARKS:
            raise UsageError(f"--only: no benchmark {name!r}; one of {', '.join(BENCHMARKS)}")
    return tuple(names) or BENCHMARKS


def _planned(
    found: AvailableData, methods: list[Method[Any]], extraction: dict[str, Any], out: Path
) -> Iterator[Planned]:
    """What the data allow: a benchmark that takes several roots once, another once per root."""

    for root, folder in _folder_of_each(found.sequences, out):
        options = {"root": root, "out": folder, **extraction}
        yield Planned("hpatches", root, folder / "hpatches", eval_features.hpatches, options)
        yield Planned("oxford", root, folder / "oxford", eval_features.oxford, options)
    for root, folder in _folder_of_each(list(dict.fromkeys(scene.parent for scene in found.eth)), out):
        yield Planned("eth", root, folder / "eth", eval_features.eth, {"root": root, "out": folder, **extraction})
    weights = [method.weights_sha256 for method in methods]
    posed = [*found.eth, *found.localization, *not_learned_from(found.models, weights)]
    if found.localization:
        options = {"root": found.localization, "out": out, **extraction}
        yield Planned("localization", None, out / "localization", eval_features.localization, options)
    if posed:
        yield Planned("pose", None, out / "pose", eval_features.pose, {"root": posed, "out": out, **extraction})
    yield from _of_patches(found, methods, not_learned_from(found.patches, weights), out)


def _of_patches(found: AvailableData, methods: list[Method[Any]], sets: list[Path], out: Path) -> Iterator[Planned]:
    """Benchmarks of patch descriptors: for SIFT, RootSIFT, and the networks of features that describe patches."""

    names = {name: method.name for method in methods if (name := patch_method(method)) is not None}
    if not names:
        return
    described = {"features": ",".join(names)}
    if sets:
        options = {"data": sets, "out": out / "ubc" / "results.json", **described}
        yield Planned("ubc", None, out / "ubc", ubc, options, names)
    for root, folder in _folder_of_each(found.hpatches, out):
        split = {} if find_splits(root) else {"split": "full"}
        options = {"root": root, "out": folder / "patches" / "results.json", **split, **described}
        yield Planned("patches", root, folder / "patches", patches, options, names)
    for root, folder in _folder_of_each(found.rome, out):
        options = {"root": root, "out": folder / "rome" / "results.json", **described}
        yield Planned("rome", root, folder / "rome", rome, options, names)


def _folder_of_each(roots: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each root with the folder of its results: `out`, or a folder in it for each of several."""
    names = [root.name for root in roots]
    labels = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
    return [(root, out if len(roots) == 1 else out / label) for root, label in zip(roots, labels, strict=True)]


def _page(one: Planned, outcome: Outcome, out: Path) -> BenchmarkPage:
    address = "" if outcome.page is None else (one.folder / "report.html").relative_to(out).as_posix()
    return BenchmarkPage(one.title, outcome.page, outcome.tables, address)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit eval ubc`, `patches` and `rome`: patch descriptors on the patches of the papers' benchmarks.


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
    ranking = _ranking({str(row[0]): {"mean FPR95, %": row[-1]} for row in rows}, "low")
    return _outcome(results, tables + (_published("ubc") if published else []), out, ranking)


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

    _refuse_foreign(out)
    config = make(HPatchesConfig, overrides(settings or []), where="eval patches")
    data = read_hpatches(root)
    chosen = read_split(data, split, splits)["test"]
    generator = np.random.default_rng(run.seed)
    wanted = hpatches_patches.find_or_draw(data, chosen, split, tasks, config.drawn, generator)
    if write_tasks is not None:
        hpatches_patches.write_tasks(write_tasks, split, wanted)
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
    ranking = _ranking({str(row[0]): dict(zip(heads[1:], row[1:], strict=True)) for row in rows}, "high")
    return _outcome(results, tables + (_published("hpatches_patches") if published else []), out, ranking)


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
    ranking = _ranking({str(row[0]): {"RomePatches test mAP, %": row[-1]} for row in rows}, "high")
    return _outcome({"scores": results}, tables + (_published("rome") if published else []), out, ranking)


def _methods(features: str, runs: Path | None) -> list[UbcMethod]:
    """Those that are named, then the weights of a folder of trainings. Raises UsageError, BadInputError."""

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
    known = published(benchmark)
    heads = [column if isinstance(column, str) else " -> ".join(column) for column in known.columns]
    return [
        Table(
            f"{table.paper}: {table.where}", ["as published", *heads], [[row.name, *row.values] for row in table.rows]
        )
        for table in known.tables
    ]


def _ranking(values: dict[str, dict[str, Any]], better: Literal["high", "low"]) -> list[Any]:
    return [Ranked(name, measure, value, better) for name, row in values.items() for measure, value in row.items()]


def _refuse_foreign(out: Path | None) -> None:
    """Raise BadInputError, before the work, when the results would replace a file of somebody else's."""

    if out is not None:
        refuse_foreign(out)


def _outcome(results: dict[str, Any], tables: list[Any], out: Path | None, ranking: list[Any]) -> Outcome:
    import json

    if out is not None:
        write_text(out, json.dumps({"featkit_version": __version__, **results}, indent=1) + "\n")
    return Outcome(results, [f"{out}: all numbers"] if out is not None else [], tables, ranking=ranking)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit eval`: the benchmarks by name.


EVAL_HELP = "Evaluate features and descriptors on the field's benchmarks: matching, maps, poses, patches."
COMMANDS: dict[str, tuple[Callable[..., Outcome], str]] = {
    "all": (everything, ALL_HELP),
    "hpatches": (eval_features.hpatches, eval_features.HPATCHES_HELP),
    "oxford": (eval_features.oxford, eval_features.OXFORD_HELP),
    "eth": (eval_features.eth, eval_features.ETH_HELP),
    "pose": (eval_features.pose, eval_features.POSE_HELP),
    "localization": (eval_features.localization, eval_features.LOCALIZATION_HELP),
    "ubc": (ubc, UBC_HELP),
    "patches": (patches, PATCHES_HELP),
    "rome": (rome, ROME_HELP),
}

eval_app = typer.Typer(help=EVAL_HELP, no_args_is_help=True, rich_markup_mode="markdown")
for name, (function, text) in COMMANDS.items():
    eval_app.command(name, help=text, no_args_is_help=True)(verb(with_engine(function)))
