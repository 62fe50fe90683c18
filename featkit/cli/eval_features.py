"""`featkit eval hpatches`, `oxford`, `pose`, `eth` and `localization`: benchmarks that extract features of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featkit.cli import app as options
from featkit.cli import eval_common
from featkit.cli.app import Outcome, RunOptions
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
from featkit.core.config import load_pipeline, make, merge, overrides
from featkit.core.errors import UsageError
from featkit.core.registry import Method, resolve, setting_of
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.evaluation.eth import EthBenchmark, EthConfig, evaluate_eth
from featkit.evaluation.eth_scenes import find_scenes
from featkit.evaluation.hpatches import MatchingConfig, evaluate_matching
from featkit.evaluation.oxford import OxfordConfig, evaluate_precision
from featkit.evaluation.pose import RelativePoseConfig, evaluate_poses
from featkit.evaluation.pose_pairs import PosedScene, ScenePairs, choose_pairs, keep_pairs, read_scenes
from featkit.evaluation.predictions import Predictions, predict
from featkit.evaluation.published import published
from featkit.evaluation.sequences import SequenceSet, read_sequences
from featkit.report import (
    eth as eval_eth_pages,
)
from featkit.report import (
    localization as eval_localization_pages,
)
from featkit.report import (
    matching as pages,
)
from featkit.report import (
    pose as eval_pose_pages,
)

# ----------------------------------------------------------------------------------------------------------------------
# `featkit eval hpatches` and `featkit eval oxford`: features on image sequences with known homographies.


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
    refuse_results(out / "hpatches")
    config = make(MatchingConfig, overrides(settings or []), where="eval hpatches")
    asked = Asked(features, weights, max_keypoints, resize_max, workers, overwrite, engine)
    by = resolve("matcher", matcher, options.given(ratio=ratio), run.device).ready()
    methods = methods_of(asked, run.device)
    data = read_sequences(root, names_in(sequences), all_sequences)
    scores = [evaluate_matching(data, _predicted_sequences(one, data, asked, out, by), config) for one in methods]
    matched = {"name": by.name, **by.config.result_fields()}
    results = {
        **_described_sequences("hpatches", data, config.result_fields()),
        "matcher": matched,
        "methods": [score.as_json() for score in scores],
        "published": {"on_these_pairs": data.is_hpatches, **published("hpatches_mma").model_dump(mode="json")},
    }
    folder = out / "hpatches"
    described = {"benchmark": config.result_fields(), "matcher": matched}
    described |= {score.name: score.predictions.method.described() for score in scores}
    report = pages.matching_report(data, scores, config, described)
    tables = [pages.score_table(scores, data, config), pages.sequence_table(scores), pages.published_tables(data)[0]]
    return finished(results, folder, report, tables, pages.matching_ranking(scores, data, config))


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
    refuse_results(out / "oxford")
    config = make(OxfordConfig, overrides(settings or []), where="eval oxford")
    asked = Asked(features, weights, max_keypoints, resize_max, workers, overwrite, engine)
    methods = methods_of(asked, run.device)
    data = read_sequences(root, names_in(sequences), all_sequences)
    scores = [evaluate_precision(data, _predicted_sequences(one, data, asked, out), config) for one in methods]
    results = {
        **_described_sequences("oxford", data, config.result_fields()),
        "methods": [score.as_json() for score in scores],
    }
    folder = out / "oxford"
    described = {"benchmark": config.result_fields()}
    described |= {score.name: score.predictions.method.described() for score in scores}
    report = pages.precision_report(data, scores, described)
    return finished(results, folder, report, [pages.precision_table(scores)], pages.precision_ranking(scores, data))


def _predicted_sequences(
    method: Method[Any], data: SequenceSet, asked: Asked, out: Path, matcher: Method[Any] | None = None
) -> Predictions:
    pairs = [pair.pair for pair in data.pairs()]
    return predict(
        method, data.root, data.image_names(), out / "predictions", matcher, pairs,
        overwrite=asked.overwrite, engine=asked.engine or LOCAL,
    )  # fmt: skip


def _described_sequences(benchmark: str, data: SequenceSet, config: dict[str, Any]) -> dict[str, Any]:
    return {
        **made_by(benchmark),
        "root": str(data.root),
        "sequences": [sequence.name for sequence in data.sequences],
        "left_out": list(data.left_out),
        "pairs": len(data.pairs()),
        "config": config,
    }


# ----------------------------------------------------------------------------------------------------------------------
# `featkit eval pose`: relative pose of image pairs with known cameras.


POSE_HELP = """Relative pose AUC at 5, 10 and 20 degrees on pairs with known cameras, in the way of MegaDepth-1500.

Example: `featkit eval pose --root scenes/castle --root scenes/fountain --features rootsift,dog+hynet`

A scene is images/ with true cameras beside it: sparse/ (any COLMAP model), poses.txt with camera.txt, or what
MegaDepth-1500 comes with, pairs_calibrated.txt. Known poses count before those of a model. Pairs are drawn evenly over
ranges of overlap (without a model: of viewing angle). Every pair is measured by two estimators, PoseLib and OpenCV,
since the choice moves results: compare numbers of one only. Features and matches are kept in OUT/predictions; curves
and pictures are OUT/pose/report.html."""


def pose(
    root: Annotated[list[Path], typer.Option(help="Folder of a scene; repeatable.", show_default=False)],
    features: FeatureNames = "rootsift",
    weights: Weights = None,
    matcher: Annotated[str, typer.Option(help="Matcher by name, or a yaml file.")] = "mutual-nn",
    ratio: Annotated[
        float | None,
        typer.Option(help="Ratio test on both sides.", min=0.01, max=1, show_default="the matcher's"),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Pairs file to measure, for one --root.", show_default="drawn")
    ] = None,
    max_pairs: Annotated[
        int | None, typer.Option(help="Pairs drawn of each scene at most.", min=1, show_default="300")
    ] = None,
    max_keypoints: options.MaxKeypoints = None,
    resize_max: Annotated[
        int | None, typer.Option(help="Longer side after resizing, px; thresholds are in these pixels.", min=16)
    ] = 1600,
    workers: options.Workers = 0,
    settings: BenchmarkSettings = None,
    out: OutFolder = Path("featkit-eval"),
    overwrite: options.Overwrite = False,
    engine: EngineConfig | None = None,
    *,
    run: RunOptions,
) -> Outcome:
    if pairs is not None and len(root) > 1:
        raise UsageError(f"--pairs goes with one --root, not with {len(root)}")
    refuse_results(out / "pose")
    values = {"seed": run.seed, "pairs": options.given(max_pairs=max_pairs)}
    config = make(RelativePoseConfig, merge(values, overrides(settings or [])), where="eval pose")
    by = resolve("matcher", matcher, options.given(ratio=ratio), run.device).ready()
    asked = Asked(features, weights, max_keypoints, resize_max, workers, overwrite, engine)
    methods = methods_of(asked, run.device)
    scenes = read_scenes(root)
    chosen = {scene.name: choose_pairs(scene, config.pairs, config.seed, pairs) for scene in scenes}
    for scene in scenes:
        keep_pairs(chosen[scene.name], config.pairs, config.seed, out / "predictions" / scene.name)
    measured = {name: one.pairs for name, one in chosen.items()}
    scores = []
    for method in methods:
        predictions = {
            scene.name: _predicted_pairs(method, scene, chosen[scene.name], asked, out, by) for scene in scenes
        }
        scores.append(evaluate_poses(scenes, measured, predictions, config))
    matched = {"name": by.name, **by.config.result_fields()}
    results = {
        **made_by("pose"),
        "scenes": [_described_pairs(scene, chosen[scene.name]) for scene in scenes],
        "config": config.result_fields(),
        "matcher": matched,
        "methods": [score.as_json() for score in scores],
    }
    described = {"benchmark": config.result_fields(), "matcher": matched}
    described |= {score.name: score.method.described() for score in scores}
    report = eval_pose_pages.pose_report(scenes, chosen, scores, config, described)
    by_scene = [eval_pose_pages.scene_table(scores, config)] if len(scenes) > 1 else []
    tables = [
        eval_pose_pages.pairs_table(scenes, chosen),
        eval_pose_pages.auc_table(scores, config),
        eval_pose_pages.error_table(scores),
        *by_scene,
    ]
    return finished(results, out / "pose", report, tables, eval_pose_pages.pose_ranking(scores, config))


def _predicted_pairs(
    method: Method[Any], scene: PosedScene, chosen: ScenePairs, asked: Asked, out: Path, matcher: Method[Any]
) -> Predictions:
    names = sorted({name for pair in chosen.pairs for name in (pair.name0, pair.name1)})
    return predict(
        method, scene.images, names, out / "predictions" / scene.name, matcher, chosen.pairs,
        overwrite=asked.overwrite, engine=asked.engine or LOCAL,
    )  # fmt: skip


def _described_pairs(scene: PosedScene, chosen: ScenePairs) -> dict[str, Any]:
    return {
        "name": scene.name,
        "images": str(scene.images),
        "truth": str(scene.truth),
        "pairs": len(chosen.pairs),
        "chosen_by": chosen.rule,
        "found": chosen.found,
        "drawn": chosen.drawn,
    }


# ----------------------------------------------------------------------------------------------------------------------
# `featkit eval eth`: maps of the ETH local-feature benchmark's scenes, from any features.


ETH_HELP = """\
ETH local-feature benchmark: maps of its scenes from any features; registered images, points, tracks, errors.

Example: `featkit eval eth --root data/eth --features rootsift,dog+hynet --setting eth-sdgmnet`

The root holds scenes (fountain-P11, Herz-Jesu-P8, South-Building, Madrid_Metropolis, Gendarmenmarkt, Tower_of_London,
Alamo, Roman_Forum, Cornell, or any folder asked for by --scenes), each with images/ and, where the truth is known,
poses.txt and camera.txt. Settings: eth (the benchmark's), eth-scfeat-075, -080, -090, -092 (SCFeat, Table VII),
eth-sdgmnet (no ratio test), eth-posfeat; SCFeat's and PoSFeat's with -side at the end read the NMS size as a side
instead of a radius (docs/scfeat.md). Features and maps are kept in OUT/predictions; OUT/eth/report.html is the page."""


def eth(
    root: Annotated[Path, typer.Option(help="Folder of scenes.", show_default=False)],
    scenes: Annotated[
        str | None,
        typer.Option(help="Only these, comma-separated.", metavar="NAME,...", show_default="the benchmark's"),
    ] = None,
    features: eval_common.FeatureNames = "rootsift",
    weights: eval_common.Weights = None,
    setting: Annotated[str, typer.Option(help="Setting by name, or a yaml file.")] = "eth",
    ratio: Annotated[
        float | None,
        typer.Option(help="Ratio test on both sides; 1: none.", min=0.01, max=1, show_default="the setting's"),
    ] = None,
    max_keypoints: options.MaxKeypoints = None,
    resize_max: options.ResizeMax = None,
    workers: options.Workers = 0,
    skip_broken: options.SkipBroken = False,
    settings: eval_common.BenchmarkSettings = None,
    out: eval_common.OutFolder = Path("featkit-eval"),
    overwrite: options.Overwrite = False,
    engine: EngineConfig | None = None,
    *,
    run: RunOptions,
) -> Outcome:
    eval_common.refuse_results(out / "eth")
    changes: dict[str, Any] = {
        "matching": options.given(ratio=ratio),
        "map": {"verify": {"seed": run.seed}, "seed": run.seed},
        "seed": run.seed,
    }
    config = setting_of("eth", setting, merge(changes, overrides(settings or [])))
    assert isinstance(config, EthConfig)
    benchmark = EthBenchmark(config, run.device, engine or LOCAL)
    reading = {"decode": {"resize_max": resize_max}, "workers": workers, "skip_broken": skip_broken}
    methods = _methods(benchmark, features, weights, options.given(max_keypoints=max_keypoints), reading)
    data = find_scenes(root, eval_common.names_in(scenes))
    scores = evaluate_eth(benchmark, data.scenes, methods, out / "predictions", overwrite)
    matcher = {"name": benchmark.matcher.name, **benchmark.matcher.config.result_fields()}
    described = {setting: config.result_fields(), "matcher": matcher}
    described |= {method.name: method.described() for method in methods}
    results = {
        **eval_common.made_by("eth"),
        "root": str(root),
        "setting": setting,
        "config": config.result_fields(),
        "matcher": matcher,
        "pose_thresholds_deg": list(config.pose_thresholds_deg),
        "missing": {scene.name: scene.source for scene in data.missing},
        "rows": [score.as_json() for score in scores],
        "published": eval_eth_pages.published_rows(data.scenes),
    }
    folder = out / "eth"
    report = eval_eth_pages.eth_report(data, scores, config, described)
    poses = eval_eth_pages.pose_table(scores, config)
    tables = [
        eval_eth_pages.score_table(scores),
        *([poses] if poses else []),
        *eval_eth_pages.beside_tables(data.scenes, scores),
    ]
    return eval_common.finished(results, folder, report, tables, eval_eth_pages.eth_ranking(scores))


def _methods(
    benchmark: EthBenchmark, features: str, weights: str | None, changes: dict[str, Any], reading: dict[str, Any]
) -> list[Method[Any]]:
    names = eval_common.method_names(features)
    if weights is None:
        return [benchmark.method(name, changes=changes, **reading) for name in names]
    if len(names) > 1:
        raise UsageError(f"--weights goes with one --features, not with {len(names)}")
    label = f"{names[0]} ({Path(weights).stem})"
    return [benchmark.method(names[0], label, {**changes, "weights": weights}, **reading)]


# ----------------------------------------------------------------------------------------------------------------------
# `featkit eval localization`: photographs of scenes with true poses, found in maps of the others.


LOCALIZATION_HELP = """Recall of localization: photographs of a scene, found in a map of the others.

Example: `featkit eval localization --root castle-P19 --features rootsift,scfeat`

A scene is a folder with images/, poses.txt (true poses) and camera.txt. All photographs but each fourth are mapped with
their true poses, the others localized. Each map is kept in OUT/localization, with the report of its localization."""


def localization(
    root: Annotated[list[Path], typer.Option(help="Scene with true poses; repeatable.", show_default=False)],
    features: eval_common.FeatureNames = "rootsift",
    weights: eval_common.Weights = None,
    every: Annotated[int, typer.Option(help="One photograph of so many is a query.", min=2)] = 4,
    matcher: options.Matcher = "mutual",
    ratio: options.Ratio = None,
    max_keypoints: options.MaxKeypoints = None,
    resize_max: options.ResizeMax = None,
    workers: options.Workers = 0,
    out: eval_common.OutFolder = Path("featkit-eval"),
    overwrite: options.Overwrite = False,
    engine: EngineConfig | None = None,
    *,
    run: RunOptions,
) -> Outcome:
    eval_common.refuse_results(out / "localization")
    held_out = load_pipeline("held_out")
    values = {"every": every, "matcher": matcher, "matching": options.given(ratio=ratio), "seed": run.seed}
    config = make(held_out.HeldOutConfig, values, where="eval localization")
    asked = eval_common.Asked(features, weights, max_keypoints, resize_max, workers, overwrite, engine)
    methods = eval_common.methods_of(asked, run.device)
    scenes = [held_out.read_scene(folder, config) for folder in root]
    folder = out / "localization"
    scores = [
        held_out.run(
            config, scene, method, folder, predictions=out / "predictions", overwrite=overwrite, engine=engine or LOCAL
        )
        for scene in scenes
        for method in methods
    ]
    results = {
        **eval_common.made_by("localization"),
        "roots": [str(path) for path in root],
        "config": config.result_fields(),
        "rows": [score.as_json() for score in scores],
    }
    described = {"benchmark": config.result_fields(), **{one.name: one.described() for one in methods}}
    report = eval_localization_pages.localization_benchmark_report(folder, scores, described)
    tables, ranking = (
        [eval_localization_pages.localization_table(scores)],
        eval_localization_pages.localization_ranking(scores),
    )
    return eval_common.finished(results, folder, report, tables, ranking)
