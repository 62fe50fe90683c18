"""`featkit localize`: a map + photographs -> their poses. `featkit localize aachen`: those of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from featkit.cli import localize_aachen, options
from featkit.cli.common import Outcome, RunOptions, verb
from featkit.errors import UsageError

HELP = """Find the poses of new photographs in a map.

Example: `featkit localize scene/ --queries new_photographs/`

Writes poses.txt (`name qw qx qy qz tx ty tz`, world to camera; only queries that were localized) and poses.json
(inliers, uncertainty, and the reason of every failure).

Benchmarks by name, with options of their own: `featkit localize aachen --help` (a map in a folder of that name is
./aachen)."""
BENCHMARKS: dict[str, ModuleType] = {"aachen": localize_aachen}


class LocalizeCommand(TyperCommand):
    """`localize MAP ...`; where the first word is the name of a benchmark, that one's command takes the rest."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        benchmark = BENCHMARKS.get(args[0]) if args else None
        if benchmark is None:
            return super().make_context(info_name, args, parent, **extra)
        command = typer.main.get_command(_app(benchmark.command, benchmark.HELP))
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


@verb
def command(
    map_folder: Annotated[Path, typer.Argument(metavar="MAP", help="A reconstructed scene, or its sparse model.")],
    queries: Annotated[Path, typer.Option(help="Folder of photographs to localize.")],
    intrinsics: Annotated[
        Path | None, typer.Option(help="`name MODEL width height params...` a line; only these are localized.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the poses.", show_default="MAP/featkit/localize")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="The map's features.h5.", show_default="found beside the map")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="Pairs file: query, map image.", show_default="retrieval")] = None,
    retrieval: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Pair by global descriptors of map and queries in hloc's layout; twice: one file each."
        ),
    ] = None,
    num: Annotated[int | None, typer.Option(help="Map images retrieved per query.", min=1, show_default="20")] = None,
    matcher: options.Matcher = "mutual",
    camera_model: options.CameraModel = None,
    camera_params: options.CameraParams = None,
    workers: options.Workers = 0,
    truth: Annotated[Path | None, typer.Option(help="True poses (of the map's images too): prints the recall.")] = None,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import make, merge, overrides
    from featkit.report.summary import recall_table
    from featkit.resources import load_pipeline

    if retrieval and pairs:
        raise UsageError("--retrieval makes the pairs; it does not go with --pairs")
    pipeline = load_pipeline("localize")
    camera = options.camera_fields(camera_model, camera_params)
    localize = {"pose": {"seed": run.seed}, "camera": camera, **options.given(num_retrieved=num)}
    values = {"localize": localize, "matcher": matcher, "workers": workers, "seed": run.seed}
    config = make(pipeline.LocalizationConfig, merge(values, overrides(settings or [])), where="localize")
    result = pipeline.run(
        config,
        map_folder,
        queries,
        out,
        intrinsics=intrinsics,
        features=features,
        pairs=pairs,
        retrieval=retrieval or (),
        truth=truth,
        device=run.device,
        overwrite=overwrite,
    )
    tables = [recall_table(result.metrics)] if "recall" in result.metrics else []
    failed = [f"not localized: {q.name}: {q.reason}" for q in result.results if q.pose is None]
    summary = f"{result.output / 'poses.txt'}: {result.metrics['localized']} of {result.metrics['queries']} queries"
    return Outcome(result.metrics, [*failed, summary, f"report: {result.report}"], tables)
