"""`featkit info`: what a file or folder is."""

from __future__ import annotations

from typing import Annotated

import typer

from featkit.cli.common import Outcome, RunOptions, verb

HELP = """Say what something is, how much of it there is, and which configuration made it.

Example: `featkit info scene/featkit/features.h5`

Takes a features or matches file, a pairs or poses file, a COLMAP model, a mapped scene, a folder of images, a weight, a
yaml file, or the name of a configuration."""


@verb
def command(
    what: Annotated[str, typer.Argument(metavar="ANYTHING", help="A path, or the name of a configuration.")],
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.report.describe import as_lines, describe

    found = describe(what)
    return Outcome(found, as_lines(found))
