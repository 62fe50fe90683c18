"""`featkit eval all`: every benchmark that the data at hand allows, in one page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featkit.cli import eval_common, eval_eth, eval_localization, eval_matching, eval_patches, eval_pose, options
from featkit.cli.common import Outcome, RunOptions
from featkit.errors import FeatkitError, UsageError

if TYPE_CHECKING:
    from featkit.engine.base import EngineConfig
    from featkit.evaluation.at_hand import DataAtHand
    from featkit.evaluation.predictions import Method
    from featkit.report.all_benchmarks import BenchmarkPage

LOGGER = logging.getLogger(__name__)
HELP = """Every benchmark that the data at hand allows, in one page.

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
    from featkit.evaluation.at_hand import data_at_hand
    from featkit.report.all_benchmarks import all_report, failed_table
    from featkit.report.standings import standings_table

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
    planned = [one for one in _planned(data_at_hand(data), methods, extraction, out) if one.name in wanted]
    if not planned:
        raise UsageError(f"--only {only}: the data in {data} allow none of these")
    outcomes, failed = _run(planned, run)
    standings = [
        replace(standing, method=one.names.get(standing.method, standing.method))
        for one, outcome in outcomes
        for standing in outcome.standings
    ]
    summary = standings_table(standings, [method.name for method in methods])
    results = {
        **eval_common.made_by("all"),
        "data": str(data),
        "methods": [method.described() for method in methods],
        "standings": [vars(standing) for standing in standings],
        "benchmarks": {one.title: outcome.data for one, outcome in outcomes},
        "failed": failed,
    }
    pages = [_page(one, outcome, out) for one, outcome in outcomes]
    page = all_report(summary, pages, failed, {one.name: one.described() for one in methods})
    tables = [summary, *([failed_table(failed)] if failed else [])]
    return eval_common.finished(results, out, page, tables, standings)


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


def _planned(found: DataAtHand, methods: list[Method], extraction: dict[str, Any], out: Path) -> Iterator[Planned]:
    """What the data allow: a benchmark that takes several roots once, another once per root."""
    from featkit.evaluation.at_hand import not_learned_from

    for root, folder in _apart(found.sequences, out):
        options = {"root": root, "out": folder, **extraction}
        yield Planned("hpatches", root, folder / "hpatches", eval_matching.hpatches, options)
        yield Planned("oxford", root, folder / "oxford", eval_matching.oxford, options)
    for root, folder in _apart(list(dict.fromkeys(scene.parent for scene in found.eth)), out):
        yield Planned("eth", root, folder / "eth", eval_eth.eth, {"root": root, "out": folder, **extraction})
    weights = [method.job.extractor.weights_sha256 for method in methods]
    posed = [*found.eth, *found.localization, *not_learned_from(found.models, weights)]
    if found.localization:
        options = {"root": found.localization, "out": out, **extraction}
        yield Planned("localization", None, out / "localization", eval_localization.localization, options)
    if posed:
        yield Planned("pose", None, out / "pose", eval_pose.pose, {"root": posed, "out": out, **extraction})
    yield from _of_patches(found, methods, not_learned_from(found.patches, weights), out)


def _of_patches(found: DataAtHand, methods: list[Method], sets: list[Path], out: Path) -> Iterator[Planned]:
    """Benchmarks of patch descriptors: for SIFT, RootSIFT, and the networks of features that describe patches."""
    from featkit.data.hpatches import find_splits
    from featkit.evaluation.at_hand import patch_method

    names = {name: method.name for method in methods if (name := patch_method(method)) is not None}
    if not names:
        return
    described = {"features": ",".join(names)}
    if sets:
        options = {"data": sets, "out": out / "ubc" / "results.json", **described}
        yield Planned("ubc", None, out / "ubc", eval_patches.ubc, options, names)
    for root, folder in _apart(found.hpatches, out):
        split = {} if find_splits(root) else {"split": "full"}
        options = {"root": root, "out": folder / "patches" / "results.json", **split, **described}
        yield Planned("patches", root, folder / "patches", eval_patches.patches, options, names)
    for root, folder in _apart(found.rome, out):
        options = {"root": root, "out": folder / "rome" / "results.json", **described}
        yield Planned("rome", root, folder / "rome", eval_patches.rome, options, names)


def _apart(roots: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each root with the folder of its results: `out`, or a folder in it for each of several."""
    names = [root.name for root in roots]
    labels = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
    return [(root, out if len(roots) == 1 else out / label) for root, label in zip(roots, labels, strict=True)]


def _page(one: Planned, outcome: Outcome, out: Path) -> BenchmarkPage:
    from featkit.report.all_benchmarks import BenchmarkPage

    address = "" if outcome.page is None else (one.folder / "report.html").relative_to(out).as_posix()
    return BenchmarkPage(one.title, outcome.page, outcome.tables, address)
