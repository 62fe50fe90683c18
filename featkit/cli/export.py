"""`featkit export`: a map in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli.common import Outcome, RunOptions, verb

HELP = """Write a map for another program.

Example: `featkit export scene/ --format nerfstudio --out scene/nerf`

`nerfstudio`: transforms.json and the points, for NeRFs and Gaussian splats. `ply`: the points with their colours.
`text`: COLMAP's text model. `hloc`: the model, pairs by covisibility, the cameras as hloc's list of queries, and the
poses; features.h5 and matches.h5 of the map are in hloc's layout as they are."""


@verb
def command(
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
    from featkit.errors import UsageError
    from featkit.mapping.covisibility import CovisibleConfig
    from featkit.mapping.export import export
    from featkit.mapping.tracks import find_model

    for option, value, belongs_to in (("--num", num, "hloc"), ("--images", images, "nerfstudio")):
        if value is not None and form != belongs_to:
            raise UsageError(f"{option} goes with --format {belongs_to}, not with {form}")
    pairs = CovisibleConfig() if num is None else CovisibleConfig(num_matched=num)
    done = export(form, find_model(model), out, images=images, pairs=pairs, overwrite=overwrite)
    data = {"out": str(out), "format": form, "images": done.images, "points": done.points, "notes": done.notes}
    summary = f"{out}: {done.images:,} images and {done.points:,} points"
    return Outcome(data | {"files": [str(path) for path in done.files]}, [*done.notes, summary])
