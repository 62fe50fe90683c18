"""`featkit eval ...` and `featkit localize aachen`: evaluate features and descriptors on standard benchmarks.

All commands are generated: a benchmark's options are the keyword arguments of its class, with its defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from featkit.api.evaluation import BENCHMARKS, OUT, Evaluated, evaluate, evaluate_all
from featkit.cli import app as options
from featkit.cli.app import Outcome, RunOptions, verb
from featkit.cli.command import command, with_engine
from featkit.cli.pages import Commands
from featkit.core.config import Config
from featkit.data.aachen import query_names
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.evaluation.benchmark import Benchmark, ImageBenchmark
from featkit.evaluation.localization import HeldOutConfig
from featkit.evaluation.pose_pairs import PosePairsConfig
from featkit.localization.stage import check_submission, file_name

ALL_HELP = """Run every benchmark that the available data allow and report them on one page.

Example: `featkit eval all --data data/ --features rootsift,dog+hynet,scfeat`

Data sets are recognised by their layout, anywhere below --data. Each benchmark runs with its own defaults, like
`featkit eval NAME`, and writes its own OUT/NAME; OUT/report.html shows all of them, OUT/results.json the numbers. Data
that an evaluated shipped network was trained on are left out. A benchmark that fails is listed and the others
continue."""
HPATCHES_HELP = """Image matching: mean matching accuracy (MMA) at 1 to 10 px, MMAScore, homographies.

Example: `featkit eval hpatches --root data/hpatches --features rootsift,scfeat`

The root holds sequences of any length in HPatches' (also EVD's) or in Oxford's layout. D2-Net's protocol: mutual
nearest neighbours, 108 sequences. For homographies: AUC of the corner error, and the share of pairs with an estimate.
Features and matches are kept in OUT/predictions; tables and pictures are in OUT/hpatches/report.html."""
OXFORD_HELP = """Matching mAP of descriptors by nearest neighbour, per sequence and mean (DOAP, Fig. 6).

Example: `featkit eval oxford --root data/oxford-affine --features sift,rootsift,dog+hynet`

The root holds sequences in Oxford's or in HPatches' layout. Features are kept in OUT/predictions, shared with
`featkit eval hpatches`; the tables are in OUT/oxford/report.html."""
ETH_HELP = """\
ETH local-feature benchmark: maps of its scenes; registered images, points, track lengths, errors.

Example: `featkit eval eth --root data/eth --features rootsift,dog+hynet --setting eth-sdgmnet`

The root holds scenes (fountain-P11, Herz-Jesu-P8, South-Building, Madrid_Metropolis, Gendarmenmarkt, Tower_of_London,
Alamo, Roman_Forum, Cornell, or any folder given by --scenes), each with images/ and, if the true poses are known,
poses.txt and camera.txt. Settings: eth (the benchmark's), eth-scfeat-075, -080, -090, -092 (SCFeat, Table VII),
eth-sdgmnet (no ratio test), eth-posfeat; names of SCFeat's and PoSFeat's that end in -side take the NMS size as a side
length instead of a radius (docs/scfeat.md). Features and maps are kept in OUT/predictions; the report is
OUT/eth/report.html."""
POSE_HELP = """Relative pose AUC at 5, 10 and 20 degrees on pairs with known cameras, as in MegaDepth-1500.

Example: `featkit eval pose --root scenes/castle --root scenes/fountain --features rootsift,dog+hynet`

A scene is a folder with images/ and true cameras: sparse/ (any COLMAP model), poses.txt with camera.txt, or
MegaDepth-1500's pairs_calibrated.txt. poses.txt takes precedence over a model. Pairs are drawn evenly over ranges of
overlap (without a model: of viewing angle). Every pair is measured with two estimators, PoseLib and OpenCV; only
compare results of the same estimator. Features and matches are kept in OUT/predictions; curves and pictures are in
OUT/pose/report.html."""
LOCALIZATION_HELP = """Localization recall: some photographs of a scene, localized in a map of the others.

Example: `featkit eval localization --root castle-P19 --features rootsift,scfeat`

A scene is a folder with images/, poses.txt (true poses) and camera.txt. Every fourth photograph is a query; the others
are mapped with their true poses. Each map is kept in OUT/localization, with the report of its localization."""
UBC_HELP = """FPR95 on the test pairs of PhotoTour sets (UBC's own, or made with `featkit data patches`).

Example: `featkit eval ubc --data patches/church --data patches/aerial --features rootsift,sdgmnet`

A method is not tested on scenes that its weights were trained on, as far as the manifest or the file says. With --runs,
a folder of training runs SET/METHOD, each network is tested on all sets except the one it was trained on."""
PATCHES_HELP = """HPatches' three tasks: verification, matching, retrieval.

Example: `featkit eval patches --root data/hpatches --split a --features rootsift,hynet`

The official task files are used if found; otherwise tasks are drawn by the same rules. With --runs, a folder of
training runs SET/METHOD, the best and the last network of each run are evaluated; weights trained on sequences of the
test part are left out."""
ROME_HELP = """Patch retrieval on RomePatches: mean AP of 1,000 queries, for the training set and the test set.

Example: `featkit eval rome --root data/rome --features rootsift,doap`

With --runs, a folder of training runs SET/METHOD, the best and the last network of each run are evaluated."""
LOCALIZE_AACHEN_HELP = """\
Aachen Day-Night, v1.1 or v1.0: triangulate its reference model with any features and localize its queries.

Example: `featkit localize aachen --root data/aachen --features scfeat --setting aachen-scfeat`

The root is the output of `featkit data fetch aachen`, or the published folders. --queries night: the local-feature
challenge, with its list of pairs if present; day-night: all queries, with hloc's lists. Without a list, map images are
paired by shared points and queries by retrieval. Settings: aachen, aachen-scfeat (SCFeat, Tables IV and V),
aachen-scfeat-n1-e100, -n3-e030, -n3-e050, -n5n3-e050 (the other rows of Table V), aachen-posfeat; names that end in
-side take the paper's NMS size as a side length instead of a radius (docs/scfeat.md). Poses are estimated by PnP, in
the papers' settings by COLMAP's registration: --set poses_by=pnp or registration. Writes the submission for
visuallocalization.net; --check FILE only validates a submission."""
HELPS = {
    "hpatches": HPATCHES_HELP,
    "oxford": OXFORD_HELP,
    "eth": ETH_HELP,
    "localization": LOCALIZATION_HELP,
    "pose": POSE_HELP,
    "ubc": UBC_HELP,
    "patches": PATCHES_HELP,
    "rome": ROME_HELP,
}

# ----------------------------------------------------------------------------------------------------------------------
# One benchmark.


def benchmark_command(name: str) -> Callable[..., Outcome]:
    """The function behind `featkit eval NAME`."""
    cls = BENCHMARKS[name]

    def measure(*, run: RunOptions, **given: Any) -> Outcome:
        data, engine = given.pop(cls.data_option), given.pop("engine", None) or LOCAL
        return outcome_of(evaluate(name, data, **given, engine=engine, device=run.device, seed=run.seed))

    return _with_parameters(measure, name, list(_parameters(cls)))


def _with_parameters(
    function: Callable[..., Outcome], name: str, own: list[inspect.Parameter]
) -> Callable[..., Outcome]:
    parameters = [*own, inspect.Parameter("run", inspect.Parameter.KEYWORD_ONLY, annotation=RunOptions)]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {one.name: one.annotation for one in parameters}
    function.__name__ = name
    return function


def outcome_of(done: Evaluated) -> Outcome:
    """The Outcome of a benchmark."""
    return Outcome(done.numbers, done.lines, list(done.tables))


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
        str | None, typer.Option(help="Only these sequences, comma-separated.", metavar="NAME,...", show_default="all")
    ],
    "keypoints": Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Describe the keypoints in this features.h5 (featkit's or hloc's).",
            show_default="detected",
        ),
    ],
    "all_sequences": Annotated[
        bool, typer.Option("--all-sequences", help="Include HPatches' 8 sequences that are excluded as too large.")
    ],
    "scenes": Annotated[
        str | None,
        typer.Option(help="Only these scenes, comma-separated.", metavar="NAME,...", show_default="the benchmark's"),
    ],
    "skip_broken": options.SkipBroken,
    "max_pairs": Annotated[
        int | None,
        typer.Option(help="Maximum number of pairs per scene.", min=1, show_default=str(PosePairsConfig().max_pairs)),
    ],
    "every": Annotated[
        int | None,
        typer.Option(help="Every N-th photograph is a query.", min=2, show_default=str(HeldOutConfig().every)),
    ],
    "runs": Annotated[Path | None, typer.Option(help="Folder of training runs, SET/METHOD.", show_default="none")],
    "split": Annotated[str, typer.Option(help="Split of splits.json (a, b, c, view, illum), or full.")],
    "splits": Annotated[Path | None, typer.Option(help="The splits.json.", show_default="found near --root")],
    "tasks": Annotated[Path | None, typer.Option(help="Folder of task files.", show_default="found near --root")],
    "write_tasks": Annotated[
        Path | None,
        typer.Option(help="Write drawn tasks here, in the format of the official files.", show_default="not written"),
    ],
    "published": Annotated[bool, typer.Option("--published", help="Also show the figures published in papers.")],
    "report": Annotated[Path | None, typer.Option(help="Write the report page (html).", show_default="no file")],
}
RATIO_OF_SETTING = Annotated[
    float | None, typer.Option(help="Ratio test on both sides; 1: none.", min=0.01, max=1, show_default="the setting's")
]
# Options that differ in one benchmark: (benchmark, option) -> annotation.
OVERRIDES: dict[tuple[str, str], Any] = {
    ("pose", "pairs"): Annotated[
        Path | None, typer.Option(help="Pairs file to evaluate; needs a single --root.", show_default="drawn")
    ],
    ("pose", "resize_max"): Annotated[
        int | None, typer.Option(help="Longer side after resizing, px; thresholds are in pixels of this size.", min=16)
    ],
    ("eth", "ratio"): RATIO_OF_SETTING,
    ("aachen", "version"): Annotated[str, typer.Option(help="Version of the data set: 1.1 or 1.0.")],
    ("aachen", "queries"): Annotated[str, typer.Option(help="night or day-night.")],
    ("aachen", "db_pairs"): Annotated[
        Path | None, typer.Option(help="Pairs file of map images.", show_default="the published list")
    ],
    ("aachen", "query_pairs"): Annotated[
        Path | None, typer.Option(help="Pairs file: query, map image.", show_default="the published list")
    ],
    ("aachen", "retrieval"): Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Pair queries by global descriptors in hloc's layout; given twice: the map's and the queries'.",
            show_default="the published list",
        ),
    ],
    ("aachen", "truth"): Annotated[Path | None, typer.Option(help="True poses of the queries, to compute the recall.")],
    ("aachen", "ratio"): RATIO_OF_SETTING,
    ("aachen", "out"): Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of features and results.", show_default="ROOT/featkit")
    ],
    ("localization", "matcher"): Annotated[
        str | None, typer.Option(help="Matcher by name, or a yaml file.", show_default=HeldOutConfig().matcher)
    ],
    ("ubc", "pairs"): Annotated[
        str | None,
        typer.Option(help="Name of the test pairs file in each folder.", show_default="the largest m50_*"),
    ],
}
DEFAULT_DATA = {"aachen": Path("data/aachen")}
DATA_HELPS = {
    "aachen": "Folder of the data set.",
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
    """The options of a benchmark's command, in the order of the help."""
    own = cls.options()
    where = typer.Option(help=DATA_HELPS[cls.name], show_default=cls.name in DEFAULT_DATA)
    folders = Annotated[list[Path], where] if cls.several else Annotated[Path, where]
    first = DEFAULT_DATA.get(cls.name, inspect.Parameter.empty)
    yield inspect.Parameter(cls.data_option, inspect.Parameter.KEYWORD_ONLY, annotation=folders, default=first)
    settings = {} if cls.Config is Config else {"settings": None}
    setting = {"setting": cls.setting} if cls.setting else {}
    if issubclass(cls, ImageBenchmark):
        reading = {"max_keypoints": None, "resize_max": cls.resize_max, "workers": 0}
        defaults = {
            "features": cls.default_features, "weights": None, **setting, **own, **reading, **settings,
            "out": None if cls.name == "aachen" else OUT, "overwrite": False, "engine": None,
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
        annotation = OVERRIDES[cls.name, name] if (cls.name, name) in OVERRIDES else annotations[name]
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit eval all`: every benchmark that the available data allow, on one page.


@command(evaluate_all)
def all_command(done: Evaluated) -> Outcome:
    return outcome_of(done)


EVAL_HELP = "Evaluate features and descriptors on standard benchmarks: matching, maps, poses, patches."
eval_app = Commands(EVAL_HELP)
eval_app.command("all", help=ALL_HELP, no_args_is_help=True)(all_command)
for name, text in HELPS.items():
    eval_app.command(name, help=text, no_args_is_help=True)(verb(with_engine(benchmark_command(name))))


# ----------------------------------------------------------------------------------------------------------------------
# `featkit localize aachen`: localize Aachen Day-Night's queries, or check a submission.


def _aachen_command() -> Callable[..., Outcome]:
    made = benchmark_command("aachen")

    def measure_or_check(*, check: Path | None, **given: Any) -> Outcome:
        return made(**given) if check is None else _check_submission(given["root"], given["version"], check)

    kind = Annotated[Path | None, typer.Option(help="Only check this submission.", show_default="none")]
    own = [one for one in inspect.signature(made).parameters.values() if one.name not in ("run", "engine")]
    only_check = inspect.Parameter("check", inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=None)
    return _with_parameters(measure_or_check, "aachen", [*own, only_check])


def _check_submission(root: Path, version: str, path: Path) -> Outcome:
    """Check that a submission contains only queries, each once, with valid poses."""
    conditions = query_names(root, version)
    checked = check_submission(path, [name for names in conditions.values() for name in names])
    checked.raise_problems()
    counts = {
        condition: {"queries": len(names), "localized": sum(file_name(name) in checked.poses for name in names)}
        for condition, names in conditions.items()
    }
    shares = ", ".join(f"{c['localized']} of {c['queries']} {name} queries" for name, c in counts.items())
    return Outcome({"valid": True, "conditions": counts}, [f"{path}: a valid submission; poses of {shares}"])


localize_aachen_command = verb(_aachen_command())
