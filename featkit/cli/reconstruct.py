"""`featkit reconstruct`: a folder of photographs -> a map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb
from featkit.cli.engine_options import with_engine

if TYPE_CHECKING:
    from featkit.engine.base import EngineConfig

HELP = """Make a map of a folder of photographs: features, pairs, matches, verified geometry, 3D model, report.

Example: `featkit reconstruct scene/ --camera-mode single`

Photographs lie in `scene/images/` or in `scene/` itself; everything is written to `scene/featkit/`. Stopped at any
moment, it goes on where it was when the same command is run again."""


@verb
@with_engine
def command(
    scene: Annotated[Path, typer.Argument(help="Folder with images/, or of images.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where everything is written.", show_default="scene/featkit")
    ] = None,
    features: options.Features = "rootsift",
    resize_max: options.ResizeMax = None,
    max_keypoints: options.MaxKeypoints = None,
    pairs: Annotated[
        str,
        typer.Option(
            help="auto, exhaustive, sequential, retrieval, gps, poses, covisible, or a pairs file.",
            rich_help_panel=options.MAPPING,
        ),
    ] = "auto",
    gps_file: options.GpsFile = None,
    matcher: options.Matcher = "mutual",
    ratio: options.Ratio = None,
    mapper: Annotated[
        str, typer.Option(help="incremental, global or hierarchical.", rich_help_panel=options.MAPPING)
    ] = "incremental",
    reference: Annotated[
        Path | None,
        typer.Option(help="Triangulate with the poses of this model or poses.txt.", rich_help_panel=options.MAPPING),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="poses.txt with true poses to compare with.", rich_help_panel=options.MAPPING)
    ] = None,
    camera_model: options.CameraModel = None,
    camera_params: options.CameraParams = None,
    camera_mode: Annotated[
        str, typer.Option(help="single, per-folder or per-image.", rich_help_panel=options.CAMERAS)
    ] = "per-image",
    intrinsics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="`name MODEL width height params...` a line, or a .csv; others are inferred.",
            rich_help_panel=options.CAMERAS,
        ),
    ] = None,
    fix_intrinsics: Annotated[
        bool, typer.Option("--fix-intrinsics", help="Do not refine the cameras.", rich_help_panel=options.CAMERAS)
    ] = False,
    weights: options.Weights = None,
    masks: options.Masks = None,
    ignore_alpha: options.IgnoreAlpha = False,
    workers: options.Workers = 0,
    skip_broken: options.SkipBroken = False,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    engine: EngineConfig,
    run: RunOptions,
) -> Outcome:
    from featkit.config import make, merge, overrides
    from featkit.errors import UsageError
    from featkit.report.summary import map_table
    from featkit.resources import load_pipeline

    if gps_file is not None and pairs != "gps":
        raise UsageError(f"--gps-file goes with --pairs gps, not with {pairs}")
    if engine.name == "plan":
        raise UsageError("one stage at a time is planned: extract, match, verify")
    sfm = load_pipeline("sfm")
    camera = options.camera_fields(camera_model, camera_params)
    camera |= {"mode": camera_mode, "refine": not fix_intrinsics}
    values = {
        "extract": {
            "features": features,
            "extractor": options.given(max_keypoints=max_keypoints, weights=weights),
            "decode": options.decode_fields(resize_max, ignore_alpha),
            "workers": workers,
            "skip_broken": skip_broken,
            "masks": masks,
        },
        "pairs": pairs,
        "pairing": options.given(file=gps_file),
        "matcher": matcher,
        "matching": options.given(ratio=ratio),
        "map": {"mapper": mapper, "camera": camera, "verify": {"seed": run.seed}, "seed": run.seed},
        "seed": run.seed,
    }
    config = make(sfm.SfmConfig, merge(values, overrides(settings or [])), where="reconstruct")
    result = sfm.run(
        config,
        scene,
        out,
        reference=reference,
        truth=truth,
        intrinsics=intrinsics,
        device=run.device,
        overwrite=overwrite,
        engine=engine,
    )
    lines = [f"map: {result.sparse / '0'}", f"report: {result.report}"]
    return Outcome(result.metrics, lines, [map_table(result.metrics)])
