"""`featkit eval pose`: relative pose of image pairs with known cameras."""

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
    refuse_results,
)
from featkit.errors import UsageError

if TYPE_CHECKING:
    from featkit.engine.base import EngineConfig
    from featkit.evaluation.pose_pairs import ScenePairs
    from featkit.evaluation.pose_scenes import PosedScene
    from featkit.evaluation.predictions import MatchRule, Method, Predictions

HELP = """Relative pose AUC at 5, 10 and 20 degrees on pairs with known cameras, in the way of MegaDepth-1500.

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
    from featkit.config import make, merge, overrides
    from featkit.evaluation.pose_pairs import choose_pairs, keep_pairs
    from featkit.evaluation.pose_scenes import read_scenes
    from featkit.evaluation.predictions import MatchRule
    from featkit.evaluation.relative_pose import RelativePoseConfig, evaluate_poses
    from featkit.report import pose_benchmark as pages

    if pairs is not None and len(root) > 1:
        raise UsageError(f"--pairs goes with one --root, not with {len(root)}")
    refuse_results(out / "pose")
    values = {"seed": run.seed, "pairs": options.given(max_pairs=max_pairs)}
    config = make(RelativePoseConfig, merge(values, overrides(settings or [])), where="eval pose")
    rule = MatchRule.resolve(matcher, options.given(ratio=ratio), run.device)
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
            scene.name: _predicted(method, scene, chosen[scene.name], rule, out, overwrite) for scene in scenes
        }
        scores.append(evaluate_poses(scenes, measured, predictions, config))
    matched = {"name": rule.name, **rule.config.result_fields()}
    results = {
        **made_by("pose"),
        "scenes": [_described(scene, chosen[scene.name]) for scene in scenes],
        "config": config.result_fields(),
        "matcher": matched,
        "methods": [score.as_json() for score in scores],
    }
    described = {"benchmark": config.result_fields(), "matcher": matched}
    described |= {score.name: score.method.described() for score in scores}
    report = pages.pose_report(scenes, chosen, scores, config, described)
    by_scene = [pages.scene_table(scores, config)] if len(scenes) > 1 else []
    tables = [pages.pairs_table(scenes, chosen), pages.auc_table(scores, config), pages.error_table(scores), *by_scene]
    return finished(results, out / "pose", report, tables, pages.pose_standings(scores, config))


def _predicted(
    method: Method, scene: PosedScene, chosen: ScenePairs, rule: MatchRule, out: Path, overwrite: bool
) -> Predictions:
    from featkit.evaluation.predictions import predict

    names = sorted({name for pair in chosen.pairs for name in (pair.name0, pair.name1)})
    return predict(method, scene.images, names, out / "predictions" / scene.name, rule, chosen.pairs, overwrite)


def _described(scene: PosedScene, chosen: ScenePairs) -> dict[str, Any]:
    return {
        "name": scene.name,
        "images": str(scene.images),
        "truth": str(scene.truth),
        "pairs": len(chosen.pairs),
        "chosen_by": chosen.rule,
        "found": chosen.found,
        "drawn": chosen.drawn,
    }
