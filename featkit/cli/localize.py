"""`featkit localize` and `serve`: localize photographs in a map."""

from __future__ import annotations

from typing import Any

import typer

from featkit.api import localization as api
from featkit.cli.app import Outcome
from featkit.cli.command import command
from featkit.cli.pages import Command, Commands
from featkit.report.maps import recall_table

# ----------------------------------------------------------------------------------------------------------------------
# `featkit localize`


LOCALIZE_HELP = """Find the poses of new photographs in a map.

Example: `featkit localize scene/ --queries new_photographs/`

Writes poses.txt (`name qw qx qy qz tx ty tz`, world to camera; only queries that were localized) and poses.json
(inliers, uncertainty, and the reason of every failure).

The Aachen Day-Night benchmark is a command of its own: `featkit localize aachen --help` (for a map in a folder named
aachen, write ./aachen)."""
BENCHMARKS = ("aachen",)


class LocalizeCommand(Command):
    """`localize MAP ...`; if the first argument is a benchmark's name, its command handles the rest."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if not args or args[0] not in BENCHMARKS:
            return super().make_context(info_name, args, parent, **extra)
        from featkit.cli.eval import LOCALIZE_AACHEN_HELP, localize_aachen_command

        app = Commands()
        app.command(help=LOCALIZE_AACHEN_HELP)(localize_aachen_command)
        return typer.main.get_command(app).make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


@command(api.localize)
def localize_command(result: Any) -> Outcome:
    tables = [recall_table(result.metrics)] if "recall" in result.metrics else []
    in_others = result.in_others
    lines = [
        f"not localized: {q.name}: {q.reason}" for q in result.results if q.pose is None and q.name not in in_others
    ]
    lines += [f"in another model: {name}: {folder / 'poses.txt'}" for name, folder in in_others.items()]
    summary = f"{result.output / 'poses.txt'}: {result.metrics['localized']} of {result.metrics['queries']} queries"
    if result.metrics["uncertain"]:
        summary += f", {len(result.metrics['uncertain'])} uncertain"
    return Outcome(result.metrics, [*lines, summary, f"report: {result.report}"], tables)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit serve`: localize photographs over HTTP.


SERVE_HELP = """Localize photographs over HTTP: POST one to /localize, get its pose, inliers and uncertainty as json.

Example: `featkit serve scene/`, then `curl -F image=@photo.jpg http://127.0.0.1:8000/localize`

`?intrinsics=MODEL width height params...` (URL-encoded) gives the photograph's camera. The answer for a photograph that
cannot be localized is the reason (status 200); for one that cannot be read the status is 400, for one that is too large
413. /healthz reports that the map is loaded, /openapi.json describes the interface. There is no password: the server
listens on this machine only, unless --host is given. Needs `pip install "featkit[serve]"`."""


@command(api.serve)
def serve_command(address: str) -> Outcome:
    return Outcome({"address": address}, [f"{address}: stopped"])
