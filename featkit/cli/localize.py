"""`featkit localize` and `serve`: photographs found in a map."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from featkit.api import localization as api
from featkit.cli.app import Outcome
from featkit.cli.command import command
from featkit.report.maps import recall_table

# ----------------------------------------------------------------------------------------------------------------------
# `featkit localize`


LOCALIZE_HELP = """Find the poses of new photographs in a map.

Example: `featkit localize scene/ --queries new_photographs/`

Writes poses.txt (`name qw qx qy qz tx ty tz`, world to camera; only queries that were localized) and poses.json
(inliers, uncertainty, and the reason of every failure).

Benchmarks by name, with options of their own: `featkit localize aachen --help` (a map in a folder of that name is
./aachen)."""
BENCHMARKS = ("aachen",)


class LocalizeCommand(TyperCommand):
    """`localize MAP ...`; where the first word is the name of a benchmark, that one's command takes the rest."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if not args or args[0] not in BENCHMARKS:
            return super().make_context(info_name, args, parent, **extra)
        from featkit.cli.eval import LOCALIZE_AACHEN_HELP, localize_aachen_command

        app = typer.Typer(
            rich_markup_mode="markdown",
            add_completion=False,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )
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
        summary += f", {len(result.metrics['uncertain'])} of them uncertain"
    return Outcome(result.metrics, [*lines, summary, f"report: {result.report}"], tables)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit serve`: a map that answers photographs over HTTP.


SERVE_HELP = """Localize photographs over HTTP: POST one to /localize, get its pose, inliers and uncertainty as json.

Example: `featkit serve scene/`, then `curl -F image=@photo.jpg http://127.0.0.1:8000/localize`

With `?intrinsics=MODEL width height params...` (URL-encoded) the photograph's camera is known. A photograph that cannot
be localized is answered with the reason (status 200); one that cannot be read with 400, a too large one with 413.
/healthz says that the map is loaded, /openapi.json describes everything. There is no password: it listens on this
machine only, unless --host says otherwise. Needs `pip install "featkit[serve]"`."""


@command(api.serve)
def serve_command(address: str) -> Outcome:
    return Outcome({"address": address}, [f"{address}: stopped"])
