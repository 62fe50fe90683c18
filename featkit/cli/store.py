"""`featkit store`: features and matches files looked after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb
from featkit.errors import BadInputError

HELP = "Check, repair and merge features and matches files."
CHECK_HELP = """Read every item of a features or matches file, and say which are damaged.

Example: `featkit store check feats.h5`

Ends with exit code 3 when one is."""
REPAIR_HELP = """Leave out what is damaged or missing; the command that made the file then makes it anew.

Example: `featkit store repair feats.h5`"""
MERGE_HELP = """Make one file of several of the same configuration, such as the shards of an index.

Example: `featkit store merge feats.h5 --out whole.h5`"""
NAMED = 5  # broken items that are printed

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown")
StoreFile = Annotated[Path, typer.Argument(help="A features or matches file.")]


@verb
def check(store: StoreFile, *, run: RunOptions) -> Outcome:
    from featkit.store import maintain

    found = maintain.check(store)
    error = None
    if found.broken:
        listed = "; ".join(f"{name!r}: {reason}" for name, reason in found.broken[:NAMED])
        more = f"; and {len(found.broken) - NAMED} more" if len(found.broken) > NAMED else ""
        error = BadInputError(
            f"{store}: {len(found.broken)} of {len(found.broken) + len(found.whole)} items are broken ({listed}{more});"
            f" `featkit store repair {store}` leaves them out"
        )
    data = {"kind": found.kind, "whole": len(found.whole), "broken": dict(found.broken), "shards": found.shards}
    where = f" in {found.shards} shards" if found.shards else ""
    return Outcome(data, [f"{store}: {found.kind}, {len(found.whole):,} whole items{where}"], error=error)


@verb
def repair(store: StoreFile, *, run: RunOptions) -> Outcome:
    from featkit.store import maintain

    found = maintain.check(store)
    if found.broken:
        maintain.repair(store, found)
    data = {"kept": len(found.whole), "left_out": dict(found.broken)}
    lines = [f"{name}: left out: {reason}" for name, reason in found.broken[:NAMED]]
    return Outcome(data, [*lines, f"{store}: {len(found.whole):,} items kept, {len(found.broken):,} left out"])


@verb
def merge(
    stores: Annotated[list[Path], typer.Argument(help="Files of one configuration, or an index.")],
    out: options.Out,
    link: Annotated[bool, typer.Option("--link", help="An index that leads to them, which then must stay.")] = False,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.store import maintain

    count = maintain.merge(stores, out, link=link, overwrite=overwrite)
    return Outcome({"out": str(out), "items": count}, [f"{out}: {count:,} items of {len(stores)} files"])


for name, command, text in (
    ("check", check, CHECK_HELP),
    ("repair", repair, REPAIR_HELP),
    ("merge", merge, MERGE_HELP),
):
    app.command(name, help=text, no_args_is_help=True)(command)
