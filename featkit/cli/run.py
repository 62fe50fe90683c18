"""`featkit run`: shards of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli.common import Outcome, RunOptions, verb

HELP = """Work shards of a plan: one, or all that are left, which are then joined.

Example: `featkit run feats.h5.shards/1c9d0a7e5b3f2468 --shard 3`

A shard that is there is not worked again. One that is stopped leaves nothing half-written."""


@verb
def command(
    plan: Annotated[Path, typer.Argument(help="The folder that featkit plan printed.")],
    shard: Annotated[
        int | None, typer.Option(help="Only this one, from 0.", min=0, show_default="all that are left; then join")
    ] = None,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.engine.plan import join, read_plan, work_shard

    read = read_plan(plan)
    if shard is not None:
        work_shard(read, shard)
        data = {"shard": str(read.shard(shard)), "left": len(read.waiting())}
        return Outcome(data, [f"{read.shard(shard)}: done; {len(read.waiting())} of {len(read.sizes)} shards are left"])
    for number in read.waiting():
        work_shard(read, number)
    output = join(read)
    return Outcome({"out": str(output), "shards": len(read.sizes)}, [f"{output}: {len(read.sizes)} shards joined"])
