"""`featkit localize` and `serve`: photographs found in a map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from featkit.api import localization as api
from featkit.cli import app as options
from featkit.cli.app import Outcome, RunOptions, verb
from featkit.cli.command import command
from featkit.core.config import overrides
from featkit.core.errors import UsageError
from featkit.data.aachen import query_names
from featkit.localization.stage import check_submission, file_name
from featkit.report.maps import recall_table

# ----------------------------------------------------------------------------------------------------------------------
# `featkit localize aachen`: poses of Aachen Day-Night's queries, from any features.


LOCALIZE_AACHEN_HELP = """\
Aachen Day-Night, v1.1 or v1.0: its reference model triangulated with any features, and its queries' poses.

Example: `featkit localize aachen --root data/aachen --features scfeat --setting aachen-scfeat`

The root is what `featkit data fetch aachen` leaves, or the published folders. --queries night: the local-feature
challenge, whose list of pairs is matched when it is there; day-night: all queries, with hloc's lists. Without a list,
images of the map are matched by shared points and queries by retrieval. Settings: aachen, aachen-scfeat (SCFeat, Tables
IV and V), aachen-scfeat-n1-e100, -n3-e030, -n3-e050, -n5n3-e050 (the other rows of Table V), aachen-posfeat; each with
-side at its end reads the paper's NMS size as a side instead of a radius (docs/scfeat.md). Writes the submission for
visuallocalization.net; --check FILE only says whether a submission is a valid one."""


@verb
def localize_aachen_command(
    root: Annotated[Path | None, typer.Option(help="Folder of the data set (required).", show_default=False)] = None,
    version: Annotated[str, typer.Option(help="Of the data set: 1.1 or 1.0.")] = "1.1",
    queries: Annotated[str, typer.Option(help="night or day-night.")] = "night",
    features: options.FeatureNames = "rootsift",
    weights: options.OneWeight = None,
    setting: options.Setting = "aachen",
    db_pairs: Annotated[
        Path | None, typer.Option(help="Pairs of images of the map.", show_default="the published list")
    ] = None,
    query_pairs: Annotated[
        Path | None, typer.Option(help="Pairs: query, image of the map.", show_default="the published list")
    ] = None,
    retrieval: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Pair queries by global descriptors, hloc's layout; twice: map's, queries'.",
            show_default="the published list",
        ),
    ] = None,
    max_keypoints: options.MaxKeypoints = None,
    resize_max: options.ResizeMax = None,
    workers: options.Workers = 0,
    skip_broken: options.SkipBroken = False,
    truth: Annotated[Path | None, typer.Option(help="True poses of the queries: prints the recall.")] = None,
    check: Annotated[Path | None, typer.Option(help="Only check this submission.", show_default="none")] = None,
    settings: options.BenchmarkSettings = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of features and results.", show_default="ROOT/featkit")
    ] = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:

    from featkit.cli.eval import outcome_of
    from featkit.evaluation.aachen import AachenBenchmark
    from featkit.evaluation.benchmark import Work, evaluate
    from featkit.report.benchmarks import Written

    if root is None:
        raise UsageError("--root: the folder of Aachen Day-Night (a map in a folder named aachen is ./aachen)")
    if check is not None:
        return _check(root, version, check)
    lists = {"db_pairs": db_pairs, "query_pairs": query_pairs, "retrieval": retrieval or (), "truth": truth}
    benchmark = AachenBenchmark.configured(
        overrides(settings or []),
        seed=run.seed,
        device=run.device,
        setting=setting,
        version=version,
        queries=queries,
        skip_broken=skip_broken,
        **lists,
    )
    work = Work(out or root / "featkit", overwrite)
    written = Written.of(work.folder / benchmark.place)
    written.refuse_foreign()
    reading = {"weights": weights, "max_keypoints": max_keypoints, "resize_max": resize_max, "workers": workers}
    return outcome_of(evaluate(benchmark, [root], features, work, **reading), written)


def _check(root: Path, version: str, path: Path) -> Outcome:
    """Whether a submission names queries only, each once, with poses that are poses."""

    conditions = query_names(root, version)
    checked = check_submission(path, [name for names in conditions.values() for name in names])
    checked.raise_problems()
    counts = {
        condition: {"queries": len(names), "localized": sum(file_name(name) in checked.poses for name in names)}
        for condition, names in conditions.items()
    }
    shares = ", ".join(f"{c['localized']} of {c['queries']} of the {name}" for name, c in counts.items())
    return Outcome({"valid": True, "conditions": counts}, [f"{path}: a valid submission; poses of {shares}"])


# ----------------------------------------------------------------------------------------------------------------------
# `featkit localize`


LOCALIZE_HELP = """Find the poses of new photographs in a map.

Example: `featkit localize scene/ --queries new_photographs/`

Writes poses.txt (`name qw qx qy qz tx ty tz`, world to camera; only queries that were localized) and poses.json
(inliers, uncertainty, and the reason of every failure).

Benchmarks by name, with options of their own: `featkit localize aachen --help` (a map in a folder of that name is
./aachen)."""
BENCHMARKS: dict[str, tuple[Callable[..., None], str]] = {"aachen": (localize_aachen_command, LOCALIZE_AACHEN_HELP)}


class LocalizeCommand(TyperCommand):
    """`localize MAP ...`; where the first word is the name of a benchmark, that one's command takes the rest."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        benchmark = BENCHMARKS.get(args[0]) if args else None
        if benchmark is None:
            return super().make_context(info_name, args, parent, **extra)
        command = typer.main.get_command(_app(*benchmark))
        return command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


def _app(command: Callable[..., None], text: str) -> typer.Typer:
    """A benchmark's command by itself."""
    app = typer.Typer(
        rich_markup_mode="markdown",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command(help=text, no_args_is_help=True)(command)
    return app


@command(api.localize)
def localize_command(result: Any) -> Outcome:
    tables = [recall_table(result.metrics)] if "recall" in result.metrics else []
    failed = [f"not localized: {q.name}: {q.reason}" for q in result.results if q.pose is None]
    summary = f"{result.output / 'poses.txt'}: {result.metrics['localized']} of {result.metrics['queries']} queries"
    if result.metrics["uncertain"]:
        summary += f", {len(result.metrics['uncertain'])} of them uncertain"
    return Outcome(result.metrics, [*failed, summary, f"report: {result.report}"], tables)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit serve`: a map that answers photographs over HTTP.


SERVE_HELP = """Localize photographs over HTTP: POST one to /localize, get its pose, inliers and uncertainty as json.

Example: `featkit serve scene/`, then `curl --data-binary @photo.jpg http://127.0.0.1:8000/localize`

With `?intrinsics=MODEL width height params...` (URL-encoded) the photograph's camera is known. A photograph that cannot
be localized is answered with the reason (status 200); one that cannot be read with 400, a too large one with 413.
/healthz says that the map is loaded, /openapi.json describes everything. There is no password: it listens on this
machine only, unless --host says otherwise. Needs `pip install "featkit[serve]"`."""


@command(api.serve)
def serve_command(address: str) -> Outcome:
    return Outcome({"address": address}, [f"{address}: stopped"])
