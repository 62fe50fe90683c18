"""`featkit plan`: a stage cut into shards for a job array."""

from __future__ import annotations

from typing import Annotated

import typer

from featkit.errors import UsageError

HELP = """Cut a stage into shards that any machine can work: extract, pairs, match or verify, each with its own options.

Example: `featkit plan --shards 64 extract images/ --out feats.h5 --features scfeat`

Work one with `featkit run PLAN --shard I` (of SLURM: `sbatch --array=0-63`, I = `$SLURM_ARRAY_TASK_ID`). The planned
command, run again without `plan`, or `featkit run PLAN`, joins them. All machines must see the same files."""
SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False}  # what follows is the stage's own
STAGES = ("extract", "pairs", "match", "verify")


def command(
    context: typer.Context,
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="STAGE ARGUMENTS...", help="extract, pairs, match or verify, and its arguments."),
    ],
    shards: Annotated[int, typer.Option(help="How many; 0: by their size.", min=0)] = 0,
) -> None:
    from featkit.cli.common import fail

    stage, *rest = arguments
    if stage not in STAGES:
        fail(UsageError(f"featkit plan: {stage!r} cannot be planned; one of {', '.join(STAGES)}"))
    root = context.find_root().command
    verb = root.get_command(context, stage)  # type: ignore[attr-defined]
    asked = ["--shards", str(shards)] if shards else []
    with verb.make_context(f"featkit {stage}", [*rest, *asked, "--engine", "plan"]) as inner:
        verb.invoke(inner)
