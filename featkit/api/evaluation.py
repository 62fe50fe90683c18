"""Evaluate features and descriptors on one benchmark, or on all that the available data allow."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from featkit import __version__
from featkit.api.options import Device, Overwrite, Param, RandomSeed, parse_settings, with_options
from featkit.core.content import Table
from featkit.core.errors import FeatkitError, UsageError
from featkit.core.registry import Method
from featkit.data.hpatches import find_splits
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.evaluation.aachen import AachenBenchmark
from featkit.evaluation.benchmark import Benchmark, ImageBenchmark, Result, Work, method_names, names_in, run_benchmark
from featkit.evaluation.datasets import AvailableData, available_data, learned_by, not_learned_from, patch_method
from featkit.evaluation.eth import EthBenchmark
from featkit.evaluation.hpatches import Hpatches
from featkit.evaluation.hpatches_patches import HpatchesPatches
from featkit.evaluation.localization import Localization
from featkit.evaluation.oxford import Oxford
from featkit.evaluation.pose import RelativePoses
from featkit.evaluation.ubc import Rome, Ubc
from featkit.report.benchmarks import BenchmarkFiles, PagePart, all_report, failed_table, ranking_table

LOGGER = logging.getLogger(__name__)
OUT = Path("featkit-eval")
BENCHMARKS: dict[str, type[Benchmark[Any, Any]]] = {
    "hpatches": Hpatches,
    "oxford": Oxford,
    "eth": EthBenchmark,
    "localization": Localization,
    "pose": RelativePoses,
    "ubc": Ubc,
    "patches": HpatchesPatches,
    "rome": Rome,
    "aachen": AachenBenchmark,
}
READING = ("weights", "max_keypoints", "resize_max", "workers")  # options of `ImageBenchmark.methods`
READING_PATCHES = ("runs",)
ALL_BENCHMARKS = [name for name in BENCHMARKS if name != "aachen"]  # what `evaluate_all` runs


@dataclass(frozen=True)
class Evaluated:
    """Results of one or all benchmarks. results: by title. numbers: as in results.json."""

    results: dict[str, Result]
    numbers: dict[str, Any]
    tables: list[Table]
    lines: list[str]


def evaluate(
    benchmark: str,
    data: Path | str | Sequence[Path | str],
    features: str | None = None,
    *,
    out: Path | str | None = None,
    report: Path | str | None = None,
    setting: str = "",
    settings: Mapping[str, Any] | Sequence[str] | None = None,
    overwrite: bool = False,
    engine: EngineConfig = LOCAL,
    device: str = "auto",
    seed: int = 0,
    **options: Any,
) -> Evaluated:
    """Evaluate features on a benchmark and write the results, as `featkit eval NAME` does.

    benchmark: a name in `BENCHMARKS`. data: its folder, or several if the benchmark takes several. features:
    comma-separated names; None: the benchmark's default. out: folder for predictions, results.json and report.html
    (default featkit-eval, for Aachen DATA/featkit); for patch benchmarks the json file, with `report` as the page.
    setting: name of a paper's setting, if the benchmark has several. settings: changes to its configuration. options:
    the other options of its command, by the same names (max_keypoints, resize_max, ratio, ...).

    Raises UsageError for an unknown name, value or option, BadInputError for missing or damaged data.
    """
    cls = BENCHMARKS.get(benchmark)
    if cls is None:
        raise UsageError(f"no benchmark {benchmark!r}; one of {', '.join(BENCHMARKS)}")
    roots = [Path(data)] if isinstance(data, str | Path) else [Path(one) for one in data]
    if len(roots) != 1 and not cls.several:
        raise UsageError(f"{benchmark}: takes one folder of data, not {len(roots)}")
    of_images = issubclass(cls, ImageBenchmark)
    known = {*cls.options(), *(READING if of_images else READING_PATCHES)}
    if unknown := sorted(options.keys() - known):
        raise UsageError(f"{benchmark}: no option {unknown[0]!r}; one of {', '.join(sorted(known))}")
    own = {option: options.pop(option) for option in cls.options() if option in options}
    chosen = cls.configured(parse_settings(settings), seed=seed, device=device, setting=setting, **own)
    default = roots[0] / "featkit" if cls is AachenBenchmark else OUT
    folder = Path(out) if out is not None and of_images else default
    written = (
        BenchmarkFiles.in_folder(folder / chosen.place)
        if of_images
        else BenchmarkFiles(_optional_path(out), _optional_path(report))
    )
    written.refuse_foreign()
    result = run_benchmark(chosen, roots, features or cls.default_features, Work(folder, overwrite, engine), **options)
    numbers = result.as_json()
    lines = [*result.lines, *written.write(numbers, result.page())]
    return Evaluated({benchmark: result}, numbers, list(result.tables), lines)


def _optional_path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)


# ----------------------------------------------------------------------------------------------------------------------
# All benchmarks that the available data allow, in one page.


@dataclass(frozen=True)
class BenchmarkRun:
    """One benchmark to run on some data. out: folder of its predictions and results.

    options: for its class. reading: options for its `methods`. names: method names in the joint ranking, where they
    differ. many: whether it runs on several data sets, which its title then omits.
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
        """Heading of its part of the page."""
        return self.name if self.many else f"{self.name}: {self.roots[0].name}"

    @property
    def written(self) -> BenchmarkFiles:
        """Its result files."""
        return BenchmarkFiles.in_folder(self.out / self.name)

    def run(self, common: dict[str, Any]) -> Result:
        """Run the benchmark and write its results. common: options of `evaluate`. Raises featkit's errors."""
        where: dict[str, Any] = {"out": self.out}
        if not issubclass(BENCHMARKS[self.name], ImageBenchmark):
            where = {"out": self.written.numbers, "report": self.written.report}
        done = evaluate(self.name, self.roots, self.features, **where, **self.reading, **self.options, **common)
        return done.results[self.name]


@with_options(None)
def evaluate_all(
    *,
    data: Annotated[Path, Param("--data", help="Folder that holds data sets, at any depth.", unset=False)],
    features: Annotated[
        str, Param("--features", metavar="NAME,...", help="Configurations by name or path; comma-separated.")
    ] = "rootsift",
    only: Annotated[
        str | None, Param("--only", metavar="NAME,...", help=f"Only these of {', '.join(ALL_BENCHMARKS)}.", unset="all")
    ] = None,
    max_keypoints: Annotated[
        int | None, Param(help="Maximum keypoints per image.", low=1, unset="the configuration's")
    ] = None,
    resize_max: Annotated[
        int | None, Param(help="Longer side after resizing, px.", low=16, unset="no resizing")
    ] = None,
    workers: Annotated[int, Param(help="Number of extraction processes; 0: one per core.", low=0)] = 0,
    out: Annotated[Path, Param("--out", "-o", help="Folder of predictions and results.")] = OUT,
    overwrite: Overwrite = False,
    engine: EngineConfig = LOCAL,
    device: Device = "auto",
    seed: RandomSeed = 0,
) -> Evaluated:
    """Run every benchmark that the data in a folder allow and report them on one page, as `featkit eval all` does.

    A benchmark that fails is listed and the others continue. Raises UsageError if there is no benchmark to run, or
    the first error if all fail.
    """
    wanted = _selected_benchmarks(only)
    written = BenchmarkFiles.in_folder(out)
    written.refuse_foreign()
    reading: dict[str, Any] = {"max_keypoints": max_keypoints, "resize_max": resize_max, "workers": workers}
    methods = ImageBenchmark[Any](device=device).methods(method_names(features), **reading)
    planned = [
        one for one in _plan_benchmarks(available_data(data), methods, features, reading, out) if one.name in wanted
    ]
    if not planned:
        raise UsageError(f"--only {only}: the data in {data} allow none of these")
    results, failed = _run_all(planned, {"overwrite": overwrite, "engine": engine, "device": device, "seed": seed})
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
    parts = [
        PagePart(one.title, found, (one.written.report or out).relative_to(out).as_posix()) for one, found in results
    ]
    lines = written.write(numbers, all_report(summary, parts, failed, {one.name: one.described() for one in methods}))
    return Evaluated(
        {plan.title: found for plan, found in results},
        numbers,
        [summary, *([failed_table(failed)] if failed else [])],
        lines,
    )


def _run_all(
    planned: list[BenchmarkRun], common: dict[str, Any]
) -> tuple[list[tuple[BenchmarkRun, Result]], dict[str, str]]:
    """Results of the benchmarks, and the error messages of those that failed. Raises the first error if all failed."""
    results: list[tuple[BenchmarkRun, Result]] = []
    failed: dict[str, FeatkitError] = {}
    for one in planned:
        LOGGER.info("== %s", one.title)
        try:
            results.append((one, one.run(common)))
        except FeatkitError as error:
            LOGGER.warning("%s: %s", one.title, error)
            failed[one.title] = error
    if not results:
        raise next(iter(failed.values()))
    return results, {title: str(error) for title, error in failed.items()}


def _selected_benchmarks(only: str | None) -> list[str]:
    """Names of the benchmarks to run. Raises UsageError for an unknown one."""
    names = names_in(only)
    for name in names:
        if name not in ALL_BENCHMARKS:
            raise UsageError(f"--only: no benchmark {name!r}; one of {', '.join(ALL_BENCHMARKS)}")
    return names or ALL_BENCHMARKS


def _plan_benchmarks(
    found: AvailableData, methods: list[Method[Any]], features: str, reading: dict[str, Any], out: Path
) -> Iterator[BenchmarkRun]:
    """The benchmarks that the data allow: one run for all roots if the benchmark takes several, else one per root."""
    for root, folder in _output_folders(found.sequences, out):
        for benchmark in ("hpatches", "oxford"):
            yield BenchmarkRun(benchmark, [root], folder, features, reading)
    for root, folder in _output_folders(list(dict.fromkeys(scene.parent for scene in found.eth)), out):
        yield BenchmarkRun("eth", [root], folder, features, reading)
    learned = {scene for method in methods for scene in learned_by(method)}
    posed = [*found.eth, *found.localization, *not_learned_from(found.models, learned)]
    if found.localization:
        yield BenchmarkRun("localization", found.localization, out, features, reading, many=True)
    if posed:
        sized = reading if reading["resize_max"] else {**reading, "resize_max": RelativePoses.resize_max}
        yield BenchmarkRun("pose", posed, out, features, sized, many=True)
    # Patch descriptors: SIFT, RootSIFT, and the networks of features that describe patches.
    names = {name: method.name for method in methods if (name := patch_method(method)) is not None}
    if not names:
        return
    sets, of_patches = not_learned_from(found.patches, learned), ",".join(names)
    if sets:
        yield BenchmarkRun("ubc", sets, out, of_patches, {}, many=True, names=names)
    for root, folder in _output_folders(found.hpatches, out):
        split = {} if find_splits(root) else {"split": "full"}
        yield BenchmarkRun("patches", [root], folder, of_patches, {}, options=split, names=names)
    for root, folder in _output_folders(found.rome, out):
        yield BenchmarkRun("rome", [root], folder, of_patches, {}, names=names)


def _output_folders(roots: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """Each root with its output folder: `out`, or a subfolder each if there are several roots."""
    names = [root.name for root in roots]
    labels = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]
    return [(root, out if len(roots) == 1 else out / label) for root, label in zip(roots, labels, strict=True)]
