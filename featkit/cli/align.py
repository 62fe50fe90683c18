"""`featkit align`: a model in metres, by GPS, by known camera centres, or by one distance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb

HELP = """Give a map its metric scale and orientation: the whole model moved by one similarity.

Example: `featkit align scene/ --gps --out scene/metric`

`--gps`: x east, y north, z up in metres, from the photographs' EXIF or a csv. `--references FILE`: onto known camera
centres, `name x y z` a line. `--distance IMG_A IMG_B METRES`: only scaled, so that the two cameras are so far apart.
GPS errs most in height: `--level` does without, for a survey flown at one height. Positions that do not fit the model's
shape are found and left out; every residual is printed, and written with the origin to alignment.json beside the
model."""


@verb
def command(
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
    from featkit.config import make, merge, overrides
    from featkit.errors import UsageError
    from featkit.mapping import metric
    from featkit.mapping.similarity import SimilarityConfig
    from featkit.report.alignment import alignment_lines, alignment_table

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
    from featkit.errors import UsageError
    from featkit.geometry.wgs84 import Geodetic, is_on_earth

    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not is_on_earth(*numbers[:2]) or not all(abs(n) < 1e9 for n in numbers):
        raise UsageError(f"--origin {text!r}: latitude, longitude and maybe altitude, as 47.3769,8.5417,408")
    return Geodetic(*numbers)
