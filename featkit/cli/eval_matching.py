"""`featkit eval hpatches` and `featkit eval oxford`: features on image sequences with known homographies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions
from featkit.cli.eval_common import (
    Asked,
    BenchmarkSettings,
    FeatureNames,
    OutFolder,
    Weights,
    finished,
    made_by,
    methods_of,
    names_in,
    refuse_results,
)

if TYPE_CHECKING:
    from featkit.engine.base import EngineConfig
    from featkit.evaluation.predictions import MatchRule, Method, Predictions
    from featkit.evaluation.sequences import SequenceSet

HPATCHES_HELP = """Image matching: mean matching accuracy (MMA) at 1 to 10 px, MMAScore, homographies.

Example: `featkit eval hpatches --root data/hpatches --features rootsift,scfeat`

The root holds sequences of any length in HPatches' (also EVD's) or in the Oxford layout. D2-Net's protocol: mutual
nearest neighbours, 108 sequences. Homographies: their AUC, and the share of the pairs in which one is found. Features
and matches are kept in OUT/predictions, table and pictures are OUT/hpatches/report.html."""
OXFORD_HELP = """Matching mAP of descriptors by nearest neighbour, per sequence and mean (DOAP, Fig. 6).

Example: `featkit eval oxford --root data/oxford-affine --features sift,rootsift,dog+hynet`

The root holds sequences in the Oxford or in HPatches' layout. Features are kept in OUT/predictions, shared with
`featkit eval hpatches`; the tables are OUT/oxford/report.html."""

Root = Annotated[Path, typer.Option(help="Folder of sequences.", show_default=False)]
SequenceNames = Annotated[
    str | None, typer.Option("--sequences", help="Only these, comma-separated.", metavar="NAME,...", show_default="all")
]
AllSequences = Annotated[bool, typer.Option("--all-sequences", help="Also HPatches' 8 that are left out as too large.")]


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
    engine: EngineConfig | None = None,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import make, overrides
    from featkit.evaluation.hpatches_matching import MatchingConfig, evaluate_matching
    from featkit.evaluation.predictions import MatchRule
    from featkit.evaluation.published_tables import published
    from featkit.evaluation.sequences import read_sequences
    from featkit.report import matching_benchmark as pages

    refuse_results(out / "hpatches")
    config = make(MatchingConfig, overrides(settings or []), where="eval hpatches")
    asked = Asked(features, weights, max_keypoints, resize_max, workers, overwrite, engine)
    rule = MatchRule.resolve(matcher, options.given(ratio=ratio), run.device)
    methods = methods_of(asked, run.device)
    data = read_sequences(root, names_in(sequences), all_sequences)
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
    report = pages.matching_report(data, scores, config, described)
    tables = [pages.score_table(scores, data, config), pages.sequence_table(scores), pages.published_tables(data)[0]]
    return finished(results, folder, report, tables, pages.matching_standings(scores, data, config))


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
    engine: EngineConfig | None = None,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import make, overrides
    from featkit.evaluation.oxford_matching import OxfordConfig, evaluate_precision
    from featkit.evaluation.sequences import read_sequences
    from featkit.report import matching_benchmark as pages

    refuse_results(out / "oxford")
    config = make(OxfordConfig, overrides(settings or []), where="eval oxford")
    asked = Asked(features, weights, max_keypoints, resize_max, workers, overwrite, engine)
    methods = methods_of(asked, run.device)
    data = read_sequences(root, names_in(sequences), all_sequences)
    scores = [evaluate_precision(data, _predicted(one, data, asked, out), config) for one in methods]
    results = {
        **_described("oxford", data, config.result_fields()),
        "methods": [score.as_json() for score in scores],
    }
    folder = out / "oxford"
    described = {"benchmark": config.result_fields()}
    described |= {score.name: score.predictions.method.described() for score in scores}
    report = pages.precision_report(data, scores, described)
    return finished(results, folder, report, [pages.precision_table(scores)], pages.precision_standings(scores, data))


def _predicted(
    method: Method, data: SequenceSet, asked: Asked, out: Path, rule: MatchRule | None = None
) -> Predictions:
    from featkit.evaluation.predictions import predict

    pairs = [pair.pair for pair in data.pairs()]
    return predict(method, data.root, data.image_names(), out / "predictions", rule, pairs, asked.overwrite)


def _described(benchmark: str, data: SequenceSet, config: dict[str, Any]) -> dict[str, Any]:
    return {
        **made_by(benchmark),
        "root": str(data.root),
        "sequences": [sequence.name for sequence in data.sequences],
        "left_out": list(data.left_out),
        "pairs": len(data.pairs()),
        "config": config,
    }
