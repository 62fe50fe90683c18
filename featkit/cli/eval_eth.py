"""`featkit eval eth`: maps of the ETH local-feature benchmark's scenes, from any features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featkit.cli import eval_common, options
from featkit.cli.common import Outcome, RunOptions
from featkit.errors import UsageError

if TYPE_CHECKING:
    from featkit.engine.base import EngineConfig
    from featkit.evaluation.eth_benchmark import EthBenchmark
    from featkit.evaluation.predictions import Method

HELP = """ETH local-feature benchmark: maps of its scenes from any features; registered images, points, tracks, errors.

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
    from featkit.config import merge, overrides
    from featkit.evaluation.eth_benchmark import EthBenchmark, EthConfig
    from featkit.evaluation.eth_scenes import find_scenes
    from featkit.evaluation.eth_scores import evaluate_eth
    from featkit.registry import setting_of
    from featkit.report import eth_benchmark as pages

    eval_common.refuse_results(out / "eth")
    changes: dict[str, Any] = {
        "matching": options.given(ratio=ratio),
        "map": {"verify": {"seed": run.seed}, "seed": run.seed},
        "seed": run.seed,
    }
    config = setting_of("eth", setting, merge(changes, overrides(settings or [])))
    assert isinstance(config, EthConfig)
    benchmark = EthBenchmark(config, run.device)
    job = {"decode": {"resize_max": resize_max}, "workers": workers, "skip_broken": skip_broken}
    methods = _methods(benchmark, features, weights, options.given(max_keypoints=max_keypoints), job)
    if engine is not None:
        methods = [replace(method, engine=engine) for method in methods]
    data = find_scenes(root, eval_common.names_in(scenes))
    scores = evaluate_eth(benchmark, data.scenes, methods, out / "predictions", overwrite)
    matcher = {"name": benchmark.rule.name, **benchmark.rule.config.result_fields()}
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
        "published": pages.published_rows(data.scenes),
    }
    folder = out / "eth"
    report = pages.eth_report(data, scores, config, described)
    poses = pages.pose_table(scores, config)
    tables = [pages.score_table(scores), *([poses] if poses else []), *pages.beside_tables(data.scenes, scores)]
    return eval_common.finished(results, folder, report, tables, pages.eth_standings(scores))


def _methods(
    benchmark: EthBenchmark, features: str, weights: str | None, changes: dict[str, Any], job: dict[str, Any]
) -> list[Method]:
    names = eval_common.method_names(features)
    if weights is None:
        return [benchmark.method(name, changes=changes, **job) for name in names]
    if len(names) > 1:
        raise UsageError(f"--weights goes with one --features, not with {len(names)}")
    label = f"{names[0]} ({Path(weights).stem})"
    return [benchmark.method(names[0], label, {**changes, "weights": weights}, **job)]
