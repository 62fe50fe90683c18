"""What all verbs share: the common options, one-line errors with their exit codes, and results as text or json."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from featkit.core import log, runtime
from featkit.core.errors import FeatkitError, NotWritableError, ProcessLostError, UsageError, one_line, printable, said


@dataclass(frozen=True)
class RunOptions:
    """Options that every verb takes."""

    json: bool
    verbose: int
    quiet: bool
    device: str
    seed: int
    debug: bool


@dataclass
class Outcome:
    """What a verb ends with: `data` for --json, `tables` and `lines` for people.

    page, standings: of a benchmark, for the page over all of them. error: said after all else, with its exit code.
    """

    data: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    tables: list[Any] = field(default_factory=list)  # featkit.report.content.Table
    page: Any = None  # featkit.report.content.Report
    ranking: list[Any] = field(default_factory=list)  # featkit.report.ranking.Standing
    error: FeatkitError | None = None
    silent: bool = False  # another process shows it


ELSEWHERE = "choose a place you can write to"
UNWRITABLE = {  # what the system says of a place, and what to do about it
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.EROFS: ELSEWHERE,
    errno.ENOSPC: "free some and run the same command again",
    errno.EDQUOT: "free some and run the same command again",
    errno.EFBIG: "allow larger files (ulimit -f) and run the same command again",
}
WIDE = 200  # columns of a table that is written to a file
PANEL = "Common options"
COMMON: dict[str, Any] = {
    "json": Annotated[bool, typer.Option("--json", help="Print one json object.", rich_help_panel=PANEL)],
    "verbose": Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="More verbose (COLMAP's log too).", rich_help_panel=PANEL)
    ],
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.", rich_help_panel=PANEL)],
    "device": Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=PANEL)],
    "seed": Annotated[int, typer.Option(help="Random seed.", min=0, rich_help_panel=PANEL)],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=PANEL)],
}
DEFAULTS = RunOptions(json=False, verbose=0, quiet=False, device="auto", seed=0, debug=False)


def verb(function: Callable[..., Outcome]) -> Callable[..., None]:
    """Make a Typer command of a function that takes `run: RunOptions` and returns an Outcome."""
    own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "run"]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=getattr(DEFAULTS, name))
        for name, annotation in COMMON.items()
    ]

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        run = RunOptions(**{name: kwargs.pop(name) for name in COMMON})
        _execute(functools.partial(function, *args, **kwargs, run=run), run)

    del command.__wrapped__  # Typer would look through it for the signature
    command.__signature__ = inspect.Signature(own + common)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in own + common}
    return command


def _execute(function: Callable[[], Outcome], run: RunOptions) -> None:
    log.setup(-1 if run.quiet else run.verbose)
    with runtime.stoppable(functools.partial(_report_the_end, run=run)) as request:
        try:
            outcome = function()
            _show(outcome, run)
        except BrokenPipeError:  # whoever read the output has enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (Exception, KeyboardInterrupt) as error:
            if request and not isinstance(error, runtime.Stopped | ProcessLostError):  # whatever the signal made of it
                message, code = runtime.STOPPED, request.exit_code
            else:
                message, code = _message_of(error, run)
            request.reported = True
            if _reported_elsewhere(error, bool(request)):
                raise typer.Exit(code) from None
            _fail(message, code, run)
        else:
            if outcome.error is not None:
                request.reported = True
                _end(str(outcome.error), outcome.error.exit_code)


def _message_of(error: BaseException, run: RunOptions) -> tuple[str, int]:
    """One line, and the exit code. Raises the error itself where its traceback is asked for."""
    if isinstance(error, FeatkitError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return runtime.STOPPED, 130
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {UNWRITABLE[error.errno]}", NotWritableError.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; fewer --workers, or --resize-max, take less", 1
    if run.debug:
        raise error
    what = f"{type(error).__name__}: {said(error) if str(error) else 'no message'}"
    return f"unexpected {what}; run again with --debug for the traceback, and report it", 1


def _reported_elsewhere(error: BaseException, stopped: bool) -> bool:
    """Whether another process of the same training says it."""
    if isinstance(error, FeatkitError) and error.reported is not None:
        return error.reported
    return (stopped or isinstance(error, FeatkitError | KeyboardInterrupt)) and not runtime.is_reporter()


def _report_the_end(request: runtime.StopRequest, run: RunOptions) -> None:
    """What is said when native code would not stop. The main thread may hold Python's own streams."""
    if not runtime.is_reporter():
        return
    if run.json:
        answer = {"error": runtime.STOPPED, "exit_code": request.exit_code}
        os.write(1, f"{json.dumps(answer)}\n".encode())
    cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar hides it
    os.write(2, f"{cursor}featkit: {runtime.STOPPED}\n".encode())


def fail(error: FeatkitError) -> NoReturn:
    """End the command with an error."""
    _end(str(error), error.exit_code)


def _fail(message: str, code: int, run: RunOptions) -> None:
    if run.debug:
        import traceback

        traceback.print_exc()
    if run.json:
        report_as_json(message, code)
    _end(message, code)


def report_as_json(message: str, code: int) -> None:
    """Print an error as `--json` has it."""
    print(json.dumps({"error": one_line(message), "exit_code": code}, ensure_ascii=False))


def _end(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody reads it, or its disk is full: the exit code says the same
        print(f"featkit: {one_line(message)}", file=sys.stderr)
    raise typer.Exit(code)


def _show(outcome: Outcome, run: RunOptions) -> None:
    if outcome.silent:
        return
    if run.json:
        print(json.dumps(outcome.data, allow_nan=False, default=_plain), flush=True)
        return
    if run.quiet:
        return
    for table in outcome.tables:
        print_table(table)
    for line in outcome.lines:
        print(printable(line, keep="\n"), flush=True)


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    return str(value)


def print_table(content: Any) -> None:
    """Print a report table to the terminal; numbers stand right."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(content.title), title_justify="left", header_style="bold")
    for index, column in enumerate(content.columns):
        numeric = all(isinstance(row[index], int | float | None) for row in content.rows)
        table.add_column(escape(column), justify="right" if numeric else "left")
    for row in content.rows:
        table.add_row(*(escape(printable(cell_text(value), keep="\n")) for value in row))
    console = Console()
    if not console.is_terminal:  # a file has no width: nothing is cut
        console = Console(width=WIDE)
    console.print(table)
    if content.note:
        print(content.note)


def cell_text(value: Any) -> str:
    """A table's cell as text: four significant digits, "-" for nothing."""
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# ----------------------------------------------------------------------------------------------------------------------
# Options that several verbs take, each written once.


CAMERAS = "Cameras"
MAPPING = "Mapping"

Features = Annotated[str, typer.Option(help="By name (`featkit features` lists them), or a yaml file.")]
ResizeMax = Annotated[
    int | None, typer.Option(help="Longer side after resizing, px.", min=16, show_default="no resizing")
]
MaxKeypoints = Annotated[
    int | None, typer.Option(help="Maximum keypoints per image.", min=1, show_default="the configuration's")
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weights by name, or a file (.safetensors; .pth of a published network).",
        show_default="the configuration's",
    ),
]
Workers = Annotated[int, typer.Option(help="Processes that extract; 0: one per core.", min=0)]
Masks = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Masks named as COLMAP's (a/b.jpg.png of a/b.jpg): no keypoint where one is zero."
    ),
]
IgnoreAlpha = Annotated[bool, typer.Option("--ignore-alpha", help="Keypoints in transparent pixels too.")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Pass over images that cannot be read.")]
Matcher = Annotated[str, typer.Option(help="Matcher by name, or a yaml file.", rich_help_panel=MAPPING)]
Ratio = Annotated[
    float | None,
    typer.Option(
        help="Ratio test on both sides; 1: none.",
        min=0.01,
        max=1,
        show_default="the matcher's",
        rich_help_panel=MAPPING,
    ),
]
CameraModel = Annotated[
    str | None, typer.Option(help="COLMAP camera model.", show_default="SIMPLE_RADIAL", rich_help_panel=CAMERAS)
]
CameraParams = Annotated[
    str | None,
    typer.Option(help="Known parameters, comma-separated.", show_default="EXIF", rich_help_panel=CAMERAS),
]
GpsFile = Annotated[
    Path | None,
    typer.Option(metavar="CSV", help="Positions, `name,lat,lon[,alt]` a line.", show_default="the photographs' EXIF"),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change any field of the configuration; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Discard existing output.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]


def given(**values: Any) -> dict[str, Any]:
    """Only the options that were given: the others keep the configuration's defaults."""
    return {name: value for name, value in values.items() if value is not None}


def addresses(urls: list[str] | None) -> dict[str, str]:
    """`["a=http://x"]` as addresses by file name. Raises UsageError."""
    pairs = [text.partition("=") for text in urls or []]
    if not all(equals and address for _, equals, address in pairs):
        raise UsageError("--url: FILE=ADDRESS, as liberty=http://example.org/liberty.zip")
    return {file: address for file, _, address in pairs}


def decode_fields(resize_max: int | None, ignore_alpha: bool) -> dict[str, Any]:
    """Fields of a DecodeConfig."""
    return {"resize_max": resize_max} | ({"min_alpha": 0} if ignore_alpha else {})


def camera_fields(model: str | None, params: str | None) -> dict[str, Any]:
    """Fields of a CameraConfig. Raises UsageError for parameters that are no numbers."""
    try:
        numbers = None if params is None else [float(part) for part in params.split(",")]
    except ValueError:
        raise UsageError(f"--camera-params {params!r}: numbers separated by commas, as 1200,960,540,0.01") from None
    return given(model=model, params=numbers)
