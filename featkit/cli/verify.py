"""`featkit verify`: features and matches -> a COLMAP database with two-view geometries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb
from featkit.cli.engine_options import with_engine

if TYPE_CHECKING:
    from featkit.engine.base import EngineConfig

HELP = """Verify matches geometrically, and write a COLMAP database that any mapper takes.

Example: `featkit verify images/ feats.h5 pairs.txt matches.h5 --out database.db --camera-mode single`

Stopped at any moment, it goes on where it was when the same command is run again."""


@verb
@with_engine
def command(
    images: Annotated[Path, typer.Argument(help="Folder of the images, for their cameras.")],
    features: Annotated[Path, typer.Argument(help="The features file.")],
    pairs: Annotated[Path, typer.Argument(help="The pairs file.")],
    matches: Annotated[Path, typer.Argument(help="The matches file.")],
    out: options.Out,
    camera_model: options.CameraModel = None,
    camera_params: options.CameraParams = None,
    camera_mode: Annotated[
        str, typer.Option(help="single, per-folder or per-image.", rich_help_panel=options.CAMERAS)
    ] = "per-image",
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    engine: EngineConfig,
    run: RunOptions,
) -> Outcome:
    from featkit.config import make, merge, overrides
    from featkit.engine import stages
    from featkit.mapping.cameras import check
    from featkit.mapping.database import database_counts
    from featkit.mapping.verified_database import DatabaseConfig, build_database

    camera = {**options.camera_fields(camera_model, camera_params), "mode": camera_mode}
    values = merge({"camera": camera, "verify": {"seed": run.seed}}, overrides(settings or []))
    config = make(DatabaseConfig, values, where="verify")
    check(config.camera)
    verifier = stages.verifier(engine)
    build_database(config, images, features, pairs, matches, out, overwrite=overwrite, verifier=verifier)
    counts = database_counts(out)
    said = f"{out}: {counts['verified_pairs']:,} verified pairs, {counts['inlier_matches']:,} inlier matches"
    return Outcome({"out": str(out), **counts}, [said])
