"""`featkit eval hpatches` and `featkit eval oxford`: features on image sequences with known homographies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb
from featkit.errors import UsageError

if TYPE_CHECKING:
    from featkit.evaluation.predictions import MatchRule, Method, Predictions
    from featkit.evaluation.sequences import SequenceSet

HPATCHES_HELP = """Image matching: mean matching accuracy (MMA) at 1 to 10 px, MMAScore, homography AUC.

Example: `featkit eval hpatches --root data/hpatches --features rootsift,scfeat`

The root holds sequences in HPatches' or in the Oxford layout. D2-Net's protocol: mutual nearest neighbours, 108
sequences. Features and matches are kept in OUT/predictions, table and pictures are OUT/hpatches/report.html."""
OXFORD_HELP = """Matching mAP of descriptors by nearest neighbour, per sequence and mean (DOAP, Fig. 6).

Example: `featkit eval oxford --root data/oxford-affine --features sift,rootsift,dog+hynet`

The root holds sequences in the Oxford or in HPatches' layout. Features are kept in OUT/predictions, shared with
`featkit eval hpatches`; the tables are OUT/oxford/report.html."""

Root = Annotated[Path, typer.Option(help="Folder of sequences.", show_default=False)]
FeatureNames = Annotated[
    str, typer.Option("--features", help="Configurations by name or path; comma-separated.", metavar="NAME,...")
]
SequenceNames = Annotated[
    str | None, typer.Option("--sequences", help="Only these, comma-separated.", metavar="NAME,...", show_default="all")
]
AllSequences = Annotated[bool, typer.Option("--all-sequences", help="Also HPatches' 8 that are left out as too large.")]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder of predictions and results.")]
Weights = Annotated[
    str | None,
    typer.Option(help="Trained weight by name, or a .safetensors file; for one --features.", show_default="its own"),
]
BenchmarkSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change any field of the benchmark; repeatable."),
]


@dataclass(frozen=True)
class Asked:
    """What both verbs are asked for: features, and how they are extracted."""

    features: str
    weights: str | None
    max_keypoints: int | None
    resize_max: int | None
    workers: int
    overwrite: bool


@verb
def hpatches(
    root: Root,
    features: FeatureNames = "rootsift",
    weights: Weights = None,
    matcher: Annotated[str, typer.Option(help="Matcher by name, or a yaml file.")] = "mutual-nn",
    ratio: Annotated[
        float | None,
        typer.Option(help="Ratio test on both sides.", min=0.01, max=1, show_default="the matcher's"),
    ] = None,
    sequences: SequenceNames = None,
    all_sequences: AllSequences = False,
    max_keypoints: options.MaxKeypoints = None,
    resize_max: options.ResizeMax = None,
    workers: options.Workers = 0,
    settings: BenchmarkSettings = None,
    out: OutFolder = Path("featkit-eval"),
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import make, overrides
    from featkit.evaluation.hpatches_matching import MatchingConfig, evaluate_matching
    from featkit.evaluation.predictions import MatchRule
    from featkit.evaluation.published_tables import published
    from featkit.evaluation.sequences import read_sequences
    from featkit.report import matching_benchmark as pages

    config = make(MatchingConfig, overrides(settings or []), where="eval hpatches")
    asked = Asked(features, weights, max_keypoints, resize_max, workers, overwrite)
    rule = MatchRule.resolve(matcher, options.given(ratio=ratio), run.device)
    methods = _methods(asked, run.device)
    data = read_sequences(root, _names(sequences), all_sequences)
    scores = [evaluate_matching(data, _predicted(one, data, asked, out, rule), config) for one in methods]
    matched = {"name": rule.name, **rule.config.result_fields()}
    results = {
        **_described("hpatches", data, config.result_fields()),
        "matcher": matched,
        "methods": [score.as_json() for score in scores],
        "published": {"on_these_pairs": data.is_hpatches, **published("hpatches_mma").model_dump(mode="json")},
    }
    folder = out / "hpatches"
    described = {"benchmark": config.result_fields(), "matcher": matched}
    described |= {score.name: score.predictions.method.described() for score in scores}
    report = pages.write_matching_report(folder / "report.html", data, scores, config, described)
    tables = [pages.score_table(scores, data, config), pages.sequence_table(scores), pages.published_tables(data)[0]]
    return _outcome(results, folder, report, tables)


@verb
def oxford(
    root: Root,
    features: FeatureNames = "sift,rootsift",
    weights: Weights = None,
    sequences: SequenceNames = None,
    all_sequences: AllSequences = False,
    max_keypoints: options.MaxKeypoints = None,
    resize_max: options.ResizeMax = None,
    workers: options.Workers = 0,
    settings: BenchmarkSettings = None,
    out: OutFolder = Path("featkit-eval"),
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import make, overrides
    from featkit.evaluation.oxford_matching import OxfordConfig, evaluate_precision
    from featkit.evaluation.sequences import read_sequences
    from featkit.report import matching_benchmark as pages

    config = make(OxfordConfig, overrides(settings or []), where="eval oxford")
    asked = Asked(features, weights, max_keypoints, resize_max, workers, overwrite)
    methods = _methods(asked, run.device)
    data = read_sequences(root, _names(sequences), all_sequences)
    scores = [evaluate_precision(data, _predicted(one, data, asked, out), config) for one in methods]
    results = {
        **_described("oxford", data, config.result_fields()),
        "methods": [score.as_json() for score in scores],
    }
    folder = out / "oxford"
    described = {"benchmark": config.result_fields()}
    described |= {score.name: score.predictions.method.described() for score in scores}
    report = pages.write_precision_report(folder / "report.html", data, scores, described)
    return _outcome(results, folder, report, [pages.precision_table(scores)])


def method_names(features: str) -> list[str]:
    """Names parted by commas, each once. Raises UsageError when there is none."""
    names = _names(features)
    if not names:
        raise UsageError("--features: names parted by commas, as rootsift,hynet")
    return names


def _names(text: str | None) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def _methods(asked: Asked, device: str) -> list[Method]:
    from featkit.evaluation.predictions import Method
    from featkit.features.extract import ExtractConfig, ExtractJob
    from featkit.images.decode import DecodeConfig

    names = method_names(asked.features)
    if asked.weights is not None and len(names) > 1:
        raise UsageError(f"--weights goes with one --features, not with {len(names)}")
    changes = options.given(max_keypoints=asked.max_keypoints, weights=asked.weights)
    methods = []
    for name in names:
        config = ExtractConfig(features=name, decode=DecodeConfig(resize_max=asked.resize_max), workers=asked.workers)
        label = name if asked.weights is None else f"{name} ({Path(asked.weights).stem})"
        methods.append(Method(label, ExtractJob.resolve(config, changes, device)))
    return methods


def _predicted(
    method: Method, data: SequenceSet, asked: Asked, out: Path, rule: MatchRule | None = None
) -> Predictions:
    from featkit.evaluation.predictions import predict

    pairs = [pair.pair for pair in data.pairs()]
    return predict(method, data.root, data.image_names(), out / "predictions", rule, pairs, asked.overwrite)


def _described(benchmark: str, data: SequenceSet, config: dict[str, Any]) -> dict[str, Any]:
    from featkit import __version__

    return {
        "benchmark": benchmark,
        "featkit_version": __version__,
        "root": str(data.root),
        "sequences": [sequence.name for sequence in data.sequences],
        "left_out": list(data.left_out),
        "pairs": len(data.pairs()),
        "config": config,
    }


def _outcome(results: dict[str, Any], folder: Path, report: Path, tables: list[Any]) -> Outcome:
    import json

    from featkit.store.text import write_text

    written = write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    return Outcome(results, [f"{written}: all numbers", f"{report}: curves and pictures"], tables)
