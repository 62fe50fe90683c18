"""`featkit store`: check, repair and merge features and matches files."""

from __future__ import annotations

from featkit.api import stores as api
from featkit.cli.app import Outcome
from featkit.cli.command import command
from featkit.cli.pages import Commands
from featkit.core.errors import BadInputError
from featkit.io.shards import Checked

STORE_HELP = "Check, repair and merge features and matches files."
CHECK_HELP = """Read every item of a features or matches file and list the damaged ones.

Example: `featkit store check feats.h5`

The exit code is 3 if any item is damaged."""
REPAIR_HELP = """Drop damaged and missing items; the command that made the file then makes only these again.

Example: `featkit store repair feats.h5`"""
MERGE_HELP = """Merge files made with the same configuration into one, such as the shards of an index.

Example: `featkit store merge feats.h5 --out whole.h5`"""
NAMED = 5  # maximum number of broken items to print

store_app = Commands(STORE_HELP)


@command(api.check_store)
def check_command(found: Checked) -> Outcome:
    error = None
    if found.broken:
        listed = "; ".join(f"{name!r}: {reason}" for name, reason in found.broken[:NAMED])
        more = f"; and {len(found.broken) - NAMED} more" if len(found.broken) > NAMED else ""
        error = BadInputError(
            f"{found.path}: {len(found.broken)} of {len(found.broken) + len(found.whole)} items are broken"
            f" ({listed}{more}); `featkit store repair {found.path}` leaves them out"
        )
    data = {"kind": found.kind, "whole": len(found.whole), "broken": dict(found.broken), "shards": found.shards}
    where = f" in {found.shards} shards" if found.shards else ""
    return Outcome(data, [f"{found.path}: {found.kind}, {len(found.whole):,} whole items{where}"], error=error)


@command(api.repair_store)
def repair_command(found: Checked) -> Outcome:
    data = {"kept": len(found.whole), "left_out": dict(found.broken)}
    lines = [f"{name}: left out: {reason}" for name, reason in found.broken[:NAMED]]
    return Outcome(data, [*lines, f"{found.path}: {len(found.whole):,} items kept, {len(found.broken):,} left out"])


@command(api.merge_stores)
def merge_stores_command(done: api.MergedStores) -> Outcome:
    line = f"{done.out}: {done.items:,} items of {done.stores} files"
    return Outcome({"out": str(done.out), "items": done.items}, [line])


for name, made, text in (
    ("check", check_command, CHECK_HELP),
    ("repair", repair_command, REPAIR_HELP),
    ("merge", merge_stores_command, MERGE_HELP),
):
    store_app.command(name, help=text, no_args_is_help=True)(made)
