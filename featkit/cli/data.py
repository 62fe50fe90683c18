"""`featkit data ...`: patches to train and test descriptors with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli import fetch, options
from featkit.cli.common import Outcome, RunOptions, verb

HELP = "Make, pack and fetch the data that descriptors are trained and tested on."
PATCHES_HELP = """Cut patches of the same points out of all photographs of mapped scenes, in UBC PhotoTour's format.

Example: `featkit data patches scenes/church scenes/bridge --out patches/buildings`

A scene is a folder with images/ and a COLMAP model in sparse/, or one that `featkit reconstruct` has mapped. With the
patches come test pairs, half of them matching."""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown")


@verb
def patches(
    scenes: Annotated[list[Path], typer.Argument(metavar="SCENE...", help="Folders of mapped scenes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    max_patches: Annotated[
        int | None, typer.Option(help="Of each scene, by whole points.", min=2, show_default="all")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the photographs.", show_default="the scene's licence file")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that detect; 0: one per core.", min=0)] = 0,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import make, merge, overrides
    from featkit.data.scene_patches import PatchesConfig, check_output, make_patches
    from featkit.mapping.tracks import mapped_scenes

    values = merge(overrides(settings or []), options.given(max_patches=max_patches, workers=workers))
    config = make(PatchesConfig, values, where="data patches")
    check_output(out, overwrite)
    summary = make_patches(config, mapped_scenes(scenes, licence), out, run.seed, overwrite)
    pairs = summary["test_pairs"]
    lines = [
        f"{name}: {c['patches']:,} patches of {c['classes']:,} points"
        f" ({c['patches_own']:,} where they were matched, {c['patches_extra']:,} found again elsewhere)"
        for name, c in summary["scenes"].items()
    ]
    lines.append(
        f"{out}: {summary['patches']:,} patches of {summary['classes']:,} points,"
        f" {pairs['matching'] + pairs['other']:,} test pairs ({pairs['matching']:,} matching)"
    )
    return Outcome({"out": str(out), **summary}, lines)


app.command("patches", help=PATCHES_HELP, no_args_is_help=True)(patches)
app.command("fetch", help=fetch.HELP, no_args_is_help=True)(fetch.command)
