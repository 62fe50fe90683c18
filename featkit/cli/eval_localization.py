"""`featkit eval localization`: photographs of scenes with true poses, found in maps of the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featkit.cli import eval_common, options
from featkit.cli.common import Outcome, RunOptions

if TYPE_CHECKING:
    from featkit.engine.base import EngineConfig

HELP = """Recall of localization: photographs of a scene, found in a map of the others.

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
    from featkit.config import make
    from featkit.report import localization_benchmark as pages
    from featkit.resources import load_pipeline

    eval_common.refuse_results(out / "localization")
    held_out = load_pipeline("held_out")
    values = {"every": every, "matcher": matcher, "matching": options.given(ratio=ratio), "seed": run.seed}
    config = make(held_out.HeldOutConfig, values, where="eval localization")
    asked = eval_common.Asked(features, weights, max_keypoints, resize_max, workers, overwrite, engine)
    methods = eval_common.methods_of(asked, run.device)
    scenes = [held_out.read_scene(folder, config) for folder in root]
    folder = out / "localization"
    scores = [
        held_out.run(config, scene, method, folder, predictions=out / "predictions", overwrite=overwrite)
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
    report = pages.localization_report(folder, scores, described)
    tables, standings = [pages.localization_table(scores)], pages.localization_standings(scores)
    return eval_common.finished(results, folder, report, tables, standings)
