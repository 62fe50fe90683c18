"""`featkit reconstruct`, `align`, `export` and `demo`: maps made, placed and handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featkit.cli import app as options
from featkit.cli.app import Outcome, RunOptions, verb
from featkit.cli.engine import with_engine
from featkit.core.config import load_pipeline, make, merge, overrides
from featkit.core.errors import UsageError
from featkit.demo.scene import RenderedConfig
from featkit.engine.plan import EngineConfig
from featkit.geometry.poses import Geodetic, is_on_earth
from featkit.mapping import metric
from featkit.mapping.align import SimilarityConfig
from featkit.mapping.covisibility import CovisibleConfig, find_model
from featkit.mapping.export import export
from featkit.report.maps import alignment_lines, alignment_table, map_table, truth_table

# ----------------------------------------------------------------------------------------------------------------------
# `featkit reconstruct`: a folder of photographs -> a map.


RECONSTRUCT_HELP = """\
Make a map of a folder of photographs: features, pairs, matches, verified geometry, 3D model, report.

Example: `featkit reconstruct scene/ --camera-mode single`

Photographs lie in `scene/images/` or in `scene/` itself; everything is written to `scene/featkit/`. Stopped at any
moment, it goes on where it was when the same command is run again."""


@verb
@with_engine
def reconstruct_command(
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
    min_registered: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the photographs that must be in the map: fewer end with exit code 4.",
            rich_help_panel=options.MAPPING,
        ),
    ] = 0.0,
    workers: options.Workers = 0,
    skip_broken: options.SkipBroken = False,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    engine: EngineConfig,
    run: RunOptions,
) -> Outcome:
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
        "min_registered": min_registered,
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


# ----------------------------------------------------------------------------------------------------------------------
# `featkit align`: a model in metres, by GPS, by known camera centres, or by one distance.


ALIGN_HELP = """Give a map its metric scale and orientation: the whole model moved by one similarity.

Example: `featkit align scene/ --gps --out scene/metric`

`--gps`: x east, y north, z up in metres, from the photographs' EXIF or a csv. `--references FILE`: onto known camera
centres, `name x y z` a line. `--distance IMG_A IMG_B METRES`: only scaled, so that the two cameras are so far apart.
GPS errs most in height: `--level` does without, for a survey flown at one height. Positions that do not fit the model's
shape are found and left out; every residual is printed, and written with the origin to alignment.json beside the
model."""


@verb
def align_command(
    model: Annotated[Path, typer.Argument(help="COLMAP model, or a mapped scene.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model in metres.", show_default=False)],
    gps: Annotated[bool, typer.Option("--gps", help="Align to GPS positions.")] = False,
    gps_file: options.GpsFile = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The photographs, for their EXIF.", show_default="images/ beside the model"),
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            metavar="LAT,LON[,ALT]", help="Where east, north and up are 0.", show_default="the positions' median"
        ),
    ] = None,
    level: Annotated[
        bool, typer.Option("--level", help="Take no altitude from GPS: all cameras are at one height.")
    ] = False,
    references: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Camera centres, `name x y z` a line, metres.")
    ] = None,
    distance: Annotated[
        tuple[str, str, float] | None,
        typer.Option(metavar="IMG_A IMG_B METRES", help="Distance of two cameras.", show_default=False),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(metavar="METRES", help="Positions further off are not used.", show_default="from the residuals"),
    ] = None,
    settings: options.Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another model that featkit made.")] = False,
    *,
    run: RunOptions,
) -> Outcome:
    gps = gps or gps_file is not None
    if gps + (references is not None) + (distance is not None) != 1:
        raise UsageError("align takes one of --gps, --references FILE and --distance IMG_A IMG_B METRES")
    if not gps and (images is not None or origin is not None or level):
        raise UsageError("--images, --origin and --level go with --gps")
    target: metric.Target
    if distance is not None:
        target = metric.DistanceTarget(*distance)
    elif references is not None:
        target = metric.ReferencesTarget(references)
    else:
        target = metric.GpsTarget(images, gps_file, _origin(origin), level)
    changes = merge(options.given(max_error_m=max_error), overrides(settings or []))
    config = make(SimilarityConfig, changes, where="align")
    found = metric.align(config, model, target, out, seed=run.seed, overwrite=overwrite)
    tables = [] if found.fit is None else [alignment_table(found)]
    return Outcome({"out": str(out), **found.as_json()}, [*alignment_lines(found), f"model: {out}"], tables)


def _origin(text: str | None) -> Any:
    """A Geodetic of `LAT,LON[,ALT]`. Raises UsageError."""

    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not is_on_earth(*numbers[:2]) or not all(abs(n) < 1e9 for n in numbers):
        raise UsageError(f"--origin {text!r}: latitude, longitude and maybe altitude, as 47.3769,8.5417,408")
    return Geodetic(*numbers)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit export`: a map in the formats of other programs.


EXPORT_HELP = """Write a map for another program.

Example: `featkit export scene/ --format nerfstudio --out scene/nerf`

`nerfstudio`: transforms.json and the points, for NeRFs and Gaussian splats. `ply`: the points with their colours.
`text`: COLMAP's text model. `hloc`: the model, pairs by covisibility, the cameras as hloc's list of queries, and the
poses; features.h5 and matches.h5 of the map are in hloc's layout as they are."""


@verb
def export_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A reconstructed scene, or a sparse model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; with ply the file.")],
    form: Annotated[str, typer.Option("--format", help="nerfstudio, ply, text or hloc.", show_default=False)],
    images: Annotated[
        Path | None, typer.Option(help="nerfstudio: the map's photographs.", show_default="found near the map")
    ] = None,
    num: Annotated[
        int | None, typer.Option(help="hloc: images that each one is paired with.", min=1, show_default="20")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that featkit exported there.")] = False,
    *,
    run: RunOptions,
) -> Outcome:
    for option, value, belongs_to in (("--num", num, "hloc"), ("--images", images, "nerfstudio")):
        if value is not None and form != belongs_to:
            raise UsageError(f"{option} goes with --format {belongs_to}, not with {form}")
    pairs = CovisibleConfig() if num is None else CovisibleConfig(num_matched=num)
    done = export(form, find_model(model), out, images=images, pairs=pairs, overwrite=overwrite)
    data = {"out": str(out), "format": form, "images": done.images, "points": done.points, "notes": done.notes}
    summary = f"{out}: {done.images:,} images and {done.points:,} points"
    return Outcome(data | {"files": [str(path) for path in done.files]}, [*done.notes, summary])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit demo`: the whole flow on a rendered scene, against the exact truth.


DEMO_HELP = """Render a small 3D scene with exact cameras, map it, localize queries in it, and compare with the truth.

Example: `featkit demo --out featkit-demo`

Needs no data and no network; under a minute on two cores."""


@verb
def demo_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything.")] = Path("featkit-demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard existing output.")] = False,
    *,
    run: RunOptions,
) -> Outcome:
    demo = load_pipeline("demo")
    result = demo.run(demo.DemoConfig(scene=RenderedConfig(seed=run.seed)), out, device=run.device, overwrite=overwrite)
    return Outcome(result.metrics, [f"report: {result.report}"], [truth_table(result.metrics)])
