"""`featkit eval ...`: features and descriptors on the field's benchmarks.

One command for all of them: the options of a benchmark are the keyword arguments of its class, with its defaults.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from featkit import __version__
from featkit.cli import app as options
from featkit.cli.app import Outcome, RunOptions, verb
from featkit.cli.engine import with_engine
from featkit.core.config import Config, overrides
from featkit.core.errors import FeatkitError, UsageError
from featkit.core.registry import Method
from featkit.data.hpatches import find_splits
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.evaluation.benchmark import (
    Benchmark,
    ImageBenchmark,
    Result,
    Work,
    evaluate,
    method_names,
    names_in,
)
from featkit.evaluation.datasets import AvailableData, available_data, not_learned_from, patch_method
from featkit.evaluation.eth import EthBenchmark
from featkit.evaluation.hpatches import Hpatches
from featkit.evaluation.hpatches_patches import HpatchesPatches
from featkit.evaluation.localization import HeldOutConfig, Localization
from featkit.evaluation.oxford import Oxford
from featkit.evaluation.pose import RelativePoses
from featkit.evaluation.pose_pairs import PosePairsConfig
from featkit.evaluation.ubc import Rome, Ubc
from featkit.report.benchmarks import Shown, Written, all_report, failed_table, ranking_table

LOGGER = logging.getLogger(__name__)
OUT = Path("featkit-eval")
ALL_HELP = """Every benchmark that the available data allows, in one page.

Example: `featkit eval all --data data/ --features rootsift,dog+hynet,scfeat`

Data sets are told by their layout, wherever they lie below --data. Each benchmark runs with its own defaults, as
`featkit eval NAME` does, and writes its own OUT/NAME; OUT/report.html holds them all, OUT/results.json the numbers.
Scenes and patches that a shipped weight was trained on are left out. A benchmark that fails is named, and the others
go on."""
HPATCHES_HELP = """Image matching: mean matching accuracy (MMA) at 1 to 10 px, MMAScore, homographies.

Example: `featkit eval hpatches --root data/hpatches --features rootsift,scfeat`

The root holds sequences of any length in HPatches' (also EVD's) or in the Oxford layout. D2-Net's protocol: mutual
nearest neighbours, 108 sequences. Homographies: their AUC, and the share of the pairs in which one is found. Features
and matches are kept in OUT/predictions, table and pictures are OUT/hpatches/report.html."""
OXFORD_HELP = """Matching mAP of descriptors by nearest neighbour, per sequence and mean (DOAP, Fig. 6).

Example: `featkit eval oxford --root data/oxford-affine --features sift,rootsift,dog+hynet`

The root holds sequences in the Oxford or in HPatches' layout. Features are kept in OUT/predictions, shared with
`featkit eval hpatches`; the tables are OUT/oxford/report.html."""
ETH_HELP = """\
ETH local-feature benchmark: maps of its scenes from any features; registered images, points, tracks, errors.

Example: `featkit eval eth --root data/eth --features rootsift,dog+hynet --setting eth-sdgmnet`

The root holds scenes (fountain-P11, Herz-Jesu-P8, South-Building, Madrid_Metropolis, Gendarmenmarkt, Tower_of_London,
Alamo, Roman_Forum, Cornell, or any folder asked for by --scenes), each with images/ and, where the truth is known,
poses.txt and camera.txt. Settings: eth (the benchmark's), eth-scfeat-075, -080, -090, -092 (SCFeat, Table VII),
eth-sdgmnet (no ratio test), eth-posfeat; SCFeat's and PoSFeat's with -side at the end read the NMS size as a side
instead of a radius (docs/scfeat.md). Features and maps are kept in OUT/predictions; OUT/eth/report.html is the page."""
POSE_HELP = """Relative pose AUC at 5, 10 and 20 degrees on pairs with known cameras, in the way of MegaDepth-1500.

Example: `featkit eval pose --root scenes/castle --root scenes/fountain --features rootsift,dog+hynet`

A scene is images/ with true cameras beside it: sparse/ (any COLMAP model), poses.txt with camera.txt, or what
MegaDepth-1500 comes with, pairs_calibrated.txt. Known poses count before those of a model. Pairs are drawn evenly over
ranges of overlap (without a model: of viewing angle). Every pair is measured by two estimators, PoseLib and OpenCV,
since the choice moves results: compare numbers of one only. Features and matches are kept in OUT/predictions; curves
and pictures are OUT/pose/report.html."""
LOCALIZATION_HELP = """Recall of localization: photographs of a scene, found in a map of the others.

Example: `featkit eval localization --root castle-P19 --features rootsift,scfeat`

A scene is a folder with images/, poses.txt (true poses) and camera.txt. All photographs but each fourth are mapped with
their true poses, the others localized. Each map is kept in OUT/localization, with the report of its localization."""
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
BENCHMARKS: dict[str, tuple[type[Benchmark[Any, Any]], str]] = {
    "hpatches": (Hpatches, HPATCHES_HELP),
    "oxford": (Oxford, OXFORD_HELP),
    "eth": (EthBenchmark, ETH_HELP),
    "localization": (Localization, LOCALIZATION_HELP),
    "pose": (RelativePoses, POSE_HELP),
    "ubc": (Ubc, UBC_HELP),
    "patches": (HpatchesPatches, PATCHES_HELP),
    "rome": (Rome, ROME_HELP),
}

# ----------------------------------------------------------------------------------------------------------------------
# One benchmark: what it came to is written and shown in one way.


def command_of(cls: type[Benchmark[Any, Any]]) -> Callable[..., Outcome]:
    """The function behind `featkit eval NAME`."""
    own = [name for name, one in inspect.signature(cls).parameters.items() if one.kind is one.KEYWORD_ONLY]

    def command(*, run: RunOptions, **given: Any) -> Outcome:
        roots, features, out = given.pop(cls.data_option), given.pop("features"), given.pop("out")
        setting, settings = given.pop("setting", ""), overrides(given.pop("settings", None) or [])
        chosen = {name: given.pop(name) for name in own}
        work = Work(out or OUT, given.pop("overwrite", False), given.pop("engine", None) or LOCAL)
        written = Written.of(out / cls.name) if issubclass(cls, ImageBenchmark) else Written(out, given.pop("report"))
        written.refuse_foreign()
        benchmark = cls.configured(settings, seed=run.seed, device=run.device, setting=setting, **chosen)
        return outcome_of(evaluate(benchmark, roots if cls.several else [roots], features, work, **given), written)

    parameters = [*_parameters(cls), inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY, annotation=RunOptions)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__name__ = cls.name
    return command


def outcome_of(result: Result, written: Written) -> Outcome:
    """What a benchmark's command ends with; its files are written here. Raises NotWritableError."""
    numbers = result.as_json()
    return Outcome(numbers, [*result.lines, *written.write(numbers, result.page())], list(result.tables))


OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder of predictions and results.")]
OPTIONS: dict[str, Any] = {
    "weights": options.OneWeight,
    "max_keypoints": options.MaxKeypoints,
    "resize_max": options.ResizeMax,
    "workers": options.Workers,
    "settings": options.BenchmarkSettings,
    "overwrite": options.Overwrite,
    "engine": EngineConfig | None,
    "setting": options.Setting,
    "matcher": Annotated[str, typer.Option(help="Matcher by name, or a yaml file.")],
    "ratio": Annotated[
        float | None,
        typer.Option(help="Ratio test on both sides; 1: none.", min=0.01, max=1, show_default="the matcher's"),
    ],
    "sequences": Annotated[
        str | None, typer.Option(help="Only these, comma-separated.", metavar="NAME,...", show_default="all")
    ],
    "all_sequences": Annotated[
        bool, typer.Option("--all-sequences", help="Also HPatches' 8 that are left out as too large.")
    ],
    "scenes": Annotated[
        str | None,
        typer.Option(help="Only these, comma-separated.", metavar="NAME,...", show_default="the benchmark's"),
    ],
    "skip_broken": options.SkipBroken,
    "max_pairs": Annotated[
        int | None,
        typer.Option(help="Pairs drawn of each scene at most.", min=1, show_default=str(PosePairsConfig().max_pairs)),
    ],
    "every": Annotated[
        int | None,
        typer.Option(help="One photograph of so many is a query.", min=2, show_default=str(HeldOutConfig().every)),
    ],
    "runs": Annotated[Path | None, typer.Option(help="Folder of trainings, SET/METHOD.", show_default="none")],
    "split": Annotated[str, typer.Option(help="Split of splits.json (a, b, c, view, illum), or full.")],
    "splits": Annotated[Path | None, typer.Option(help="The splits.json.", show_default="found near --root")],
    "tasks": Annotated[Path | None, typer.Option(help="Folder of task files.", show_default="found near --root")],
    "write_tasks": Annotated[
        Path | None, typer.Option(help="Write drawn tasks here, as the official files.", show_default="nowhere")
    ],
    "published": Annotated[bool, typer.Option("--published", help="Show what papers print below.")],
    "report": Annotated[Path | None, typer.Option(help="Write the page as html.", show_default="no file")],
}
# What differs in one benchmark.
OWN: dict[tuple[str, str], Any] = {
    ("pose", "pairs"): Annotated[
        Path | None, typer.Option(help="Pairs file to measure, for one --root.", show_default="drawn")
    ],
    ("pose", "resize_max"): Annotated[
        int | None, typer.Option(help="Longer side after resizing, px; thresholds are in these pixels.", min=16)
    ],
    ("eth", "ratio"): Annotated[
        float | None,
        typer.Option(help="Ratio test on both sides; 1: none.", min=0.01, max=1, show_default="the setting's"),
    ],
    ("localization", "matcher"): Annotated[
        str | None, typer.Option(help="Matcher by name, or a yaml file.", show_default=HeldOutConfig().matcher)
    ],
    ("ubc", "pairs"): Annotated[
        str | None,
        typer.Option(help="Name of the file of test pairs in each folder.", show_default="the largest m50_*"),
    ],
}
DATA = {
    "hpatches": "Folder of sequences.",
    "oxford": "Folder of sequences.",
    "eth": "Folder of scenes.",
    "localization": "Scene with true poses; repeatable.",
    "pose": "Folder of a scene; repeatable.",
    "ubc": "Folder in PhotoTour's format; repeatable.",
    "patches": "Folder of hpatches-release.",
    "rome": "Folder of the .mat files.",
}


def _parameters(cls: type[Benchmark[Any, Any]]) -> Iterator[inspect.Parameter]:
    """The options of a benchmark's command, in the order of its help."""
    own = {name: one.default for name, one in inspect.signature(cls).parameters.items() if one.kind is one.KEYWORD_ONLY}
    where = typer.Option(help=DATA[cls.name], show_default=False)
    folders = Annotated[list[Path], where] if cls.several else Annotated[Path, where]
    yield inspect.Parameter(cls.data_option, inspect.Parameter.KEYWORD_ONLY, annotation=folders)
    settings = {} if cls.Config is Config else {"settings": None}
    setting = {"setting": cls.setting} if cls.setting else {}
    if issubclass(cls, ImageBenchmark):
        reading = {"max_keypoints": None, "resize_max": cls.resize_max, "workers": 0}
        defaults = {
            "features": cls.default_features, "weights": None, **setting, **own, **reading, **settings,
            "out": OUT, "overwrite": False, "engine": None,
        }  # fmt: skip
        annotations = {**OPTIONS, "features": options.FeatureNames, "out": OutFolder}
    else:
        defaults = {"features": cls.default_features, "runs": None, **own, **settings, "out": None, "report": None}
        names = typer.Option(
            "--features", help="sift, rootsift, weights by name or path; comma-separated.", metavar="NAME,..."
        )
        out = typer.Option("--out", "-o", help="Write the results as json.", show_default="no file")
        annotations = {**OPTIONS, "features": Annotated[str, names], "out": Annotated[Path | None, out]}
    for name, default in defaults.items():
        annotation = OWN[cls.name, name] if (cls.name, name) in OWN else annotations[name]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit eval all`: every benchmark that the available data allows, in one page.


@dataclass(frozen=True)
class Planned:
    """One benchmark to run on some data. out: folder of its predictions and results.

    options: of its class. reading: what its `methods` take. names: what its methods are called among all, where that
    differs. many: whether its data are several sets, which its title does not name.
    """

    name: str
    roots: Sequence[Path]
    out: Path
    features: str
    reading: dict[str, Any]
    many: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Of its part of the page."""
        return self.name if self.many else f"{self.name}: {self.roots[0].name}"

    @property
    def written(self) -> Written:
        """Its own files."""
        return Written.of(self.out / self.name)

    def run(self, run: RunOptions, overwrite: bool, engine: EngineConfig | None) -> Result:
        """Measure and write. Raises featkit's errors."""
        self.written.refuse_foreign()
        benchmark = BENCHMARKS[self.name][0].configured({}, seed=run.seed, device=run.device, **self.options)
        work = Work(self.out, overwrite, engine or LOCAL)
        result = evaluate(benchmark, self.roots, self.features, work, **self.reading)
        self.written.write(result.as_json(), result.page())
        return result


def everything(
    data: Annotated[Path, typer.Option(help="Folder that holds data sets, at any depth.", show_default=False)],
    features: options.FeatureNames = "rootsift",
    only: Annotated[
        str | None,
        typer.Option(help=f"Only these of {', '.join(BENCHMARKS)}.", metavar="NAME,...", show_default="all"),
    ] = None,
    max_keypoints: options.MaxKeypoints = None,
    resize_max: options.ResizeMax = None,
    workers: options.Workers = 0,
    out: OutFolder = OUT,
    overwrite: options.Overwrite = False,
    engine: EngineConfig | None = None,
    *,
    run: RunOptions,
) -> Outcome:
    wanted = _wanted(only)
    written = Written.of(out)
    written.refuse_foreign()
    reading: dict[str, Any] = {"max_keypoints": max_keypoints, "resize_max": resize_max, "workers": workers}
    methods = ImageBenchmark[Any](device=run.device).methods(method_names(features), **reading)
    planned = [one for one in _planned(available_data(data), methods, features, reading, out) if one.name in wanted]
    if not planned:
        raise UsageError(f"--only {only}: the data in {data} allow none of these")
    results, failed = _run(planned, run, overwrite, engine)
    ranking = [
        replace(one, method=plan.names.get(one.method, one.method)) for plan, found in results for one in found.ranking
    ]
    summary = ranking_table(ranking, [method.name for method in methods])
    numbers = {
        "benchmark": "all",
        "featkit_version": __version__,
        "data": str(data),
        "methods": [method.described() for method in methods],
        "standings": [vars(one) for one in ranking],
        "benchmarks": {plan.title: found.as_json() for plan, found in results},
        "failed": failed,
    }
    shown = [Shown(one.title, found, (one.written.report or out).relative_to(out).as_posix()) for one, found in results]
    lines = written.write(numbers, all_report(summary, shown, failed, {one.name: one.described() for one in methods}))
    return Outcome(numbers, lines, [summary, *([failed_table(failed)] if failed else [])])


def _run(
    planned: list[Planned], run: RunOptions, overwrite: bool, engine: EngineConfig | None
) -> tuple[list[tuple[Planned, Result]], dict[str, str]]:
    """What each came to, and the messages of those that failed. Raises the first error when all failed."""
    results: list[tuple[Planned, Result]] = []
    failed: dict[str, FeatkitError] = {}
    for one in planned:
        LOGGER.info("== %s", one.title)
        try:
            results.append((one, one.run(run, overwrite, engine)))
        except FeatkitError as error:
            LOGGER.warning("%s: %s", one.title, error)
            failed[one.title] = error
    if not results:
        raise next(iter(failed.values()))
    return results, {title: str(error) for title, error in failed.items()}


def _wanted(only: str | None) -> list[str]:
    """Names of benchmarks. Raises UsageError for an unknown one."""
    names = names_in(only)
    for name in names:
        if name not in BENCHMARKS:
            raise UsageError(f"--only: no benchmark {name!r}; one of {', '.join(BENCHMARKS)}")
    return names or list(BENCHMARKS)


def _planned(
    found: AvailableData, methods: list[Method[Any]], features: str, reading: dict[str, Any], out: Path
) -> Iterator[Planned]:
    """What the data allow: a benchmark that takes several roots once, another once per root."""
    for root, folder in _folder_of_each(found.sequences, out):
        for benchmark in ("hpatches", "oxford"):
            yield Planned(benchmark, [root], folder, features, reading)
    for root, folder in _folder_of_each(list(dict.fromkeys(scene.parent for scene in found.eth)), out):
        yield Planned("eth", [root], folder, features, reading)
    weights = [method.weights_sha256 for method in methods]
    posed = [*found.eth, *found.localization, *not_learned_from(found.models, weights)]
    if found.localization:
        yield Planned("localization", found.localization, out, features, reading, many=True)
    if posed:
        sized = reading if reading["resize_max"] else {**reading, "resize_max": RelativePoses.resize_max}
        yield Planned("pose", posed, out, features, sized, many=True)
    # Descriptors of patches: SIFT, RootSIFT, and the networks of features that describe patches.
    names = {name: method.name for method in methods if (name := patch_method(method)) is not None}
    if not names:
        return
    sets, of_patches = not_learned_from(found.patches, weights), ",".join(names)
    if sets:
        yield Planned("ubc", sets, out, of_patches, {}, many=True, names=names)
    for root, folder in _folder_of_each(found.hpatches, out):
        split = {} if find_splits(root) else {"split": "full"}
        yield Planned("patches", [root], folder, of_patches, {}, options=split, names=names)
    for root, folder in _folder_of_each(found.rome, out):
        yield Planned("rome", [root], folder, of_patches, {}, names=names)


def _folder_of_each(roots: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each root with the folder of its results: `out`, or a folder in it for each of several."""
    names = [root.name for root in roots]
    labels = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
    return [(root, out if len(roots) == 1 else out / label) for root, label in zip(roots, labels, strict=True)]


EVAL_HELP = "Evaluate features and descriptors on the field's benchmarks: matching, maps, poses, patches."
eval_app = typer.Typer(help=EVAL_HELP, no_args_is_help=True, rich_markup_mode="markdown")
eval_app.command("all", help=ALL_HELP, no_args_is_help=True)(verb(with_engine(everything)))
for name, (benchmark, text) in BENCHMARKS.items():
    eval_app.command(name, help=text, no_args_is_help=True)(verb(with_engine(command_of(benchmark))))
