"""`featkit localize` and `serve`: photographs found in a map."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from featkit.cli import app as options
from featkit.cli import eval_common
from featkit.cli.app import Outcome, RunOptions, verb
from featkit.core.config import load_pipeline, make, merge, overrides
from featkit.core.errors import UsageError
from featkit.core.registry import setting_of
from featkit.data.aachen import AachenFiles, find_aachen, published_lists, query_names
from featkit.localization.localizer import Localizer, LocalizerConfig
from featkit.localization.stage import check_submission, file_name
from featkit.report.maps import recall_table

if TYPE_CHECKING:
    from featkit.evaluation.aachen import AachenBenchmark, BothSides

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
    features: eval_common.FeatureNames = "rootsift",
    weights: eval_common.Weights = None,
    setting: Annotated[str, typer.Option(help="Setting by name, or a yaml file.")] = "aachen",
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
    settings: eval_common.BenchmarkSettings = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of features and results.", show_default="ROOT/featkit")
    ] = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from dataclasses import replace

    if root is None:
        raise UsageError("--root: the folder of Aachen Day-Night (a map in a folder named aachen is ./aachen)")
    if check is not None:
        return _check(root, version, check)
    benchmark = _benchmark(setting, settings or [], run)
    job = {"decode": {"resize_max": resize_max}, "workers": workers, "skip_broken": skip_broken}
    methods = _features(benchmark, features, weights, options.given(max_keypoints=max_keypoints), job)
    files = find_aachen(root, version, queries)
    if retrieval and query_pairs:
        raise UsageError("--retrieval makes the queries' pairs; it does not go with --query-pairs")
    lists = published_lists(files, queries, db_pairs, query_pairs)
    if retrieval:
        lists = replace(lists, queries=None)
    folder = out or root / "featkit"
    eval_common.refuse_results(folder / f"{version}-{queries}")
    done = [
        load_pipeline("aachen").run(
            benchmark,
            files,
            queries,
            method,
            folder,
            lists=lists,
            retrieval=retrieval or (),
            truth=truth,
            overwrite=overwrite,
        )
        for method in methods
    ]
    return _finished(done, files, queries, setting, benchmark, folder / f"{version}-{queries}")


def _benchmark(setting: str, settings: list[str], run: RunOptions) -> AachenBenchmark:
    from featkit.evaluation.aachen import AachenBenchmark, AachenConfig

    seeds: dict[str, Any] = {
        "map": {"verify": {"seed": run.seed}, "seed": run.seed},
        "localize": {"pose": {"seed": run.seed}},
        "seed": run.seed,
    }
    config = setting_of("aachen", setting, merge(seeds, overrides(settings)))
    assert isinstance(config, AachenConfig)
    return AachenBenchmark(config, run.device)


def _features(
    benchmark: AachenBenchmark, features: str, weights: str | None, changes: dict[str, Any], job: dict[str, Any]
) -> list[BothSides]:
    names = eval_common.method_names(features)
    if weights is None:
        return [benchmark.features(name, changes=changes, **job) for name in names]
    if len(names) > 1:
        raise UsageError(f"--weights goes with one --features, not with {len(names)}")
    label = f"{names[0]} ({Path(weights).stem})"
    return [benchmark.features(names[0], label, {**changes, "weights": weights}, **job)]


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


def _finished(
    done: list[Any], files: AachenFiles, queries: str, setting: str, benchmark: AachenBenchmark, folder: Path
) -> Outcome:
    from featkit.report import localization as pages

    measured = {result.name: result.metrics for result in done}
    links = {result.name: f"{result.output.name}/{result.report.name}" for result in done}
    whole = pages.is_whole(measured, files.version)
    tables = [pages.method_table(measured, links), pages.beside_table(measured, files.version, whole)]
    described = {setting: benchmark.config.result_fields()}
    described |= {result.name: result.metrics["features"] for result in done}
    results = {
        **eval_common.made_by("aachen"),
        "version": files.version,
        "queries": queries,
        "setting": setting,
        "config": benchmark.config.result_fields(),
        "rows": [{"name": result.name, "submission": str(result.submission), **result.metrics} for result in done],
        "published": pages.published_rows(),
    }
    title = f"Aachen Day-Night v{files.version}, {queries}"
    report = pages.aachen_report(title, measured, links, tables[-1], described)
    outcome = eval_common.finished(results, folder, report, tables, pages.aachen_ranking(measured))
    outcome.lines = [*(f"{result.submission}: to upload; {result.report}" for result in done), *outcome.lines]
    return outcome


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


@verb
def localize_command(
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


# ----------------------------------------------------------------------------------------------------------------------
# `featkit serve`: a map that answers photographs over HTTP.


SERVE_HELP = """Localize photographs over HTTP: POST one to /localize, get its pose, inliers and uncertainty as json.

Example: `featkit serve scene/`, then `curl -F image=@photo.jpg http://127.0.0.1:8000/localize`

With `?intrinsics=MODEL width height params...` (URL-encoded) the photograph's camera is known. A photograph that cannot
be localized is answered with the reason (status 200); one that cannot be read with 400, a too large one with 413.
/healthz says that the map is loaded, /openapi.json describes everything. There is no password: it listens on this
machine only, unless --host says otherwise. Needs `pip install "featkit[serve]"`."""
LOGGER = logging.getLogger("featkit.serve")
LOOPBACK = ("127.", "::1", "localhost")


@verb
def serve_command(
    map_folder: Annotated[Path, typer.Argument(metavar="MAP", help="A reconstructed scene, or its sparse model.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8000,
    features: Annotated[
        Path | None, typer.Option(help="The map's features.h5.", show_default="found beside the map")
    ] = None,
    num: Annotated[int | None, typer.Option(help="Map images retrieved per query.", min=1, show_default="20")] = None,
    matcher: options.Matcher = "mutual",
    points_only: Annotated[
        bool,
        typer.Option("--points-only", help="Match with the map's 3D points alone, each once: faster."),
    ] = False,
    camera_model: options.CameraModel = None,
    camera_params: options.CameraParams = None,
    max_mb: Annotated[float, typer.Option(help="Largest photograph, millions of bytes.", min=0.01)] = 32.0,
    max_megapixels: Annotated[float, typer.Option(help="Largest photograph, millions of pixels.", min=0.01)] = 50.0,
    timeout: Annotated[float, typer.Option(help="Seconds for one photograph, waiting included.", min=0.1)] = 60.0,
    threads: Annotated[int, typer.Option(help="Photographs worked on at once.", min=1)] = 2,
    settings: options.Settings = None,
    *,
    run: RunOptions,
) -> Outcome:
    try:
        import uvicorn

        from featkit.server import ServeConfig, create_app, uvicorn_config
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"fastapi", "uvicorn", "starlette"}:
            raise
        raise UsageError(f'featkit serve needs {error.name}; pip install "featkit[serve]"') from None

    limits = {"max_mb": max_mb, "max_megapixels": max_megapixels, "timeout_s": timeout, "threads": threads}
    serve = make(ServeConfig, limits, where="serve")
    camera = options.camera_fields(camera_model, camera_params)
    localize = {"pose": {"seed": run.seed}, "camera": camera, **options.given(num_retrieved=num)}
    values = {"localize": localize, "matcher": matcher, "points_only": points_only, "seed": run.seed}
    values = merge(values, overrides(settings or []))
    config = make(LocalizerConfig, values, where="localize")
    with _listening(host, port) as socket, Localizer(map_folder, config, features=features, device=run.device) as warm:
        where = _address(socket)
        if not host.startswith(LOOPBACK):
            LOGGER.warning("%s: whoever can reach this machine can send photographs; there is no password", where)
        socket.listen()  # before it is said to be ready: what comes now waits for the server's first turn
        LOGGER.info("ready: %s (%d images, %d points); Ctrl-C stops", where, warm.map_images, warm.map_points)
        server = uvicorn.Server(uvicorn_config(create_app(warm, serve), serve))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[socket])
        return Outcome({"address": where}, [f"{where}: stopped"])


def _listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before the map is loaded. Raises UsageError when it cannot be."""
    import socket

    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error.strerror}; choose another port or address") from None
    return bound


def _address(socket: Any) -> str:
    host, port, *_ = socket.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
