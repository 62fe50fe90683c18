"""`featkit reconstruct`: a folder of photographs -> a map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featkit.cli.common import Outcome, RunOptions, verb

HELP = """Make a map of a folder of photographs: features, pairs, matches, verified geometry, 3D model, report.

Example: `featkit reconstruct scene/ --camera-mode single`

Photographs lie in `scene/images/` or in `scene/` itself; everything is written to `scene/featkit/`. Stopped at any
moment, it goes on where it was when the same command is run again."""

MAPPING = "Mapping"
CAMERAS = "Cameras"


@verb
def command(
    scene: Annotated[Path, typer.Argument(help="Folder with images/, or of images.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where everything is written.", show_default="scene/featkit")
    ] = None,
    features: Annotated[str, typer.Option(help="Configuration by name, or a yaml file.")] = "rootsift",
    resize_max: Annotated[
        int | None, typer.Option(help="Longer side after resizing, px.", min=16, show_default="no resizing")
    ] = None,
    max_keypoints: Annotated[
        int | None, typer.Option(help="Never more keypoints per image.", min=1, show_default="the configuration's")
    ] = None,
    pairs: Annotated[
        str, typer.Option(help="auto, exhaustive, sequential, retrieval, or a pairs file.", rich_help_panel=MAPPING)
    ] = "auto",
    matcher: Annotated[str, typer.Option(help="Matcher by name.", rich_help_panel=MAPPING)] = "mutual",
    ratio: Annotated[
        float | None,
        typer.Option(help="Ratio test.", min=0.01, max=1, show_default="the matcher's", rich_help_panel=MAPPING),
    ] = None,
    mapper: Annotated[
        str, typer.Option(help="incremental, global or hierarchical.", rich_help_panel=MAPPING)
    ] = "incremental",
    reference: Annotated[
        Path | None,
        typer.Option(help="Triangulate with the poses of this COLMAP model or poses.txt.", rich_help_panel=MAPPING),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="poses.txt with true poses to compare with.", rich_help_panel=MAPPING)
    ] = None,
    camera_model: Annotated[
        str | None,
        typer.Option(help="COLMAP camera model.", show_default="SIMPLE_RADIAL", rich_help_panel=CAMERAS),
    ] = None,
    camera_params: Annotated[
        str | None,
        typer.Option(help="Known parameters, comma-separated.", show_default="EXIF", rich_help_panel=CAMERAS),
    ] = None,
    camera_mode: Annotated[
        str, typer.Option(help="single, per-folder or per-image.", rich_help_panel=CAMERAS)
    ] = "per-image",
    fix_intrinsics: Annotated[
        bool, typer.Option("--fix-intrinsics", help="Do not refine the cameras.", rich_help_panel=CAMERAS)
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that extract; 0: one per core.", min=0)] = 0,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Pass over images that cannot be read.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As map.verify.max_error_px=2; repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import make, merge, overrides
    from featkit.report.summary import map_table
    from featkit.resources import load_pipeline

    sfm = load_pipeline("sfm")
    camera: dict[str, Any] = {"mode": camera_mode, "refine": not fix_intrinsics}
    if camera_model is not None:
        camera["model"] = camera_model
    if camera_params is not None:
        camera["params"] = numbers(camera_params)
    values: dict[str, Any] = {
        "extract": {
            "features": features,
            "skip_broken": skip_broken,
            "workers": workers,
            "decode": {"resize_max": resize_max},
        },
        "pairs": pairs,
        "matcher": matcher,
        "map": {"mapper": mapper, "camera": camera, "verify": {"seed": run.seed}, "seed": run.seed},
        "seed": run.seed,
    }
    if max_keypoints is not None:
        values["extract"]["extractor"] = {"max_keypoints": max_keypoints}
    if ratio is not None:
        values["matching"] = {"ratio": ratio}
    config = make(sfm.SfmConfig, merge(values, overrides(settings or [])), where="reconstruct")
    result = sfm.run(config, scene, out, reference=reference, truth=truth, device=run.device, overwrite=overwrite)
    return Outcome(
        result.metrics,
        [f"map: {result.sparse / '0'}", f"report: {result.report}"],
        [map_table(result.metrics)],
    )


def numbers(text: str) -> list[float]:
    """Comma-separated numbers. Raises UsageError."""
    from featkit.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--camera-params {text!r}: numbers parted by commas, as 1200,960,540,0.01") from None
