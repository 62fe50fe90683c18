"""Shared by all commands: common options, one-line errors with exit codes, and results as text or json."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

import typer
from typer.models import ArgumentInfo

from featkit.api.options import MAPPING, FieldOption, Option, param_of, shown_value
from featkit.core import log, runtime
from featkit.core.config import Config, Seed, make
from featkit.core.errors import FeatkitError, NotWritableError, ProcessLostError, message_of, one_line, printable


@dataclass(frozen=True)
class RunOptions:
    """Options common to all commands. given: names of all parameters of the command that the user gave."""

    json: bool
    verbose: int
    quiet: bool
    device: str
    seed: int
    debug: bool
    given: frozenset[str] = frozenset()


class Seeded(Config):
    """Range and default of --seed."""

    seed: Seed = 0
    """Random seed."""


@dataclass
class Outcome:
    """Result of a command: `data` for --json, `tables` and `lines` as text.

    error: reported after the rest; sets the exit code.
    """

    data: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    tables: list[Any] = field(default_factory=list)  # featkit.core.content.Table
    error: FeatkitError | None = None
    silent: bool = False  # another process reports it


ELSEWHERE = "choose a place you can write to"
UNWRITABLE = {  # system error -> what to do about it
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.EROFS: ELSEWHERE,
    errno.ENOSPC: "free some and run the same command again",
    errno.EDQUOT: "free some and run the same command again",
    errno.EFBIG: "allow larger files (ulimit -f) and run the same command again",
}


def typer_option(one: FieldOption) -> Any:
    """The Typer annotation of an option made from a configuration field."""
    names = [f"--{one.name.replace('_', '-')}"] if one.kind is bool else []
    more: dict[str, Any] = {} if one.metavar is None else {"metavar": one.metavar}
    if one.unset is not None:
        more["show_default"] = one.unset
    if one.choices:
        more["autocompletion"] = _completion(one.choices)
    kind = one.kind | None if one.default is None else one.kind
    return Annotated[kind, typer.Option(*names, help=one.help, rich_help_panel=one.option.panel, **more)]


def typer_parameter(one: inspect.Parameter) -> inspect.Parameter:
    """A parameter of a featkit.api function, annotated for Typer."""
    shown = param_of(one)
    assert shown is not None, f"{one.name}: not annotated with a Param"
    kind = list[str] | None if one.name == "settings" else get_args(one.annotation)[0]
    described: dict[str, Any] = {"help": shown.help, "metavar": shown.metavar, "rich_help_panel": shown.panel}
    ends: dict[str, Any] = {"min": shown.low, "max": shown.high, "show_default": shown.unset}
    required = one.default is one.empty and one.kind is not one.KEYWORD_ONLY and not shown.names
    make_info: Any = typer.Argument if required else functools.partial(typer.Option, *shown.names, **ends)
    info = make_info(**described)
    return one.replace(kind=one.KEYWORD_ONLY, annotation=Annotated[kind, info])


def _completion(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Shell completion for a fixed set of choices."""

    def matching(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return matching


WIDE = 200  # columns of a table that is not written to a terminal
PANEL = "Common options"
COMMON: dict[str, Any] = {
    "json": Annotated[bool, typer.Option("--json", help="Print one json object.", rich_help_panel=PANEL)],
    "verbose": Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="More verbose (COLMAP's log too).", rich_help_panel=PANEL)
    ],
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.", rich_help_panel=PANEL)],
    "device": Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=PANEL)],
    "seed": typer_option(FieldOption.of("seed", Option("seed", panel=PANEL), Seeded)),
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=PANEL)],
}
DEFAULTS = RunOptions(json=False, verbose=0, quiet=False, device="auto", seed=Seeded().seed, debug=False)


def verb(function: Callable[..., Outcome]) -> Callable[..., None]:
    """Make a Typer command from a function that takes `run: RunOptions` and returns an Outcome."""
    own = [_shown(p) for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "run"]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=getattr(DEFAULTS, name))
        for name, annotation in COMMON.items()
    ]
    common = [_shown(one) for one in common]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        context: typer.Context = kwargs.pop("context")
        given = frozenset(name for name in context.params if not _is_default(context, name))
        run = RunOptions(**{name: kwargs.pop(name) for name in COMMON}, given=given)
        _execute(functools.partial(function, *args, **kwargs, run=run), run)

    del command.__wrapped__  # Typer would take its signature instead
    command.__signature__ = inspect.Signature([*own, *common, context])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*own, *common, context]}
    return command


def _is_default(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is None or source.name in {"DEFAULT", "DEFAULT_MAP"}


def _shown(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter; its help shows what it takes as docs/cli.md does: "INT 1..", "PATH", nothing for a flag."""
    kind, info = get_args(parameter.annotation)
    low, high = info.min, info.max
    if low is not None or high is not None:  # checked here: Typer would show the range again, in its own way
        info.min, info.max, info.callback = None, None, _range_check(low, high)
    if info.metavar is None and isinstance(info, ArgumentInfo):
        info.metavar = parameter.name.upper() + "..." * (get_origin(kind) is list)
    elif info.metavar is None:
        while inner := get_args(kind):  # list[Path] | None
            kind = inner[0]
        info.metavar = "" if kind is bool or info.count else shown_value(kind, low, high)
    return parameter


def _range_check(low: float | None, high: float | None) -> Callable[[Any], Any]:
    """A Typer callback that refuses a number outside the range."""
    least, most = -math.inf if low is None else low, math.inf if high is None else high

    def checked(value: Any) -> Any:
        if value is not None and not least <= value <= most:
            ends = [f"at least {least:g}"] * (low is not None) + [f"at most {most:g}"] * (high is not None)
            raise typer.BadParameter(f"{value} is not {' and '.join(ends)}")
        return value

    return checked


def _execute(function: Callable[[], Outcome], run: RunOptions) -> None:
    log.setup(-1 if run.quiet else run.verbose)
    with runtime.stoppable(functools.partial(_report_stop, run=run)) as request:
        try:
            _ = make(Seeded, {"seed": run.seed}, where="--seed")
            outcome = function()
            _show(outcome, run)
        except BrokenPipeError:  # the reader of the output has closed it, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (Exception, KeyboardInterrupt) as error:
            if request and not isinstance(error, runtime.Stopped | ProcessLostError):  # an error caused by the signal
                message, code = runtime.STOPPED, request.exit_code
            else:
                message, code = _message_and_code(error, run)
            request.reported = True
            if _reported_elsewhere(error, bool(request)):
                raise typer.Exit(code) from None
            _fail(message, code, run)
        else:
            if outcome.error is not None:
                request.reported = True
                _end(str(outcome.error), outcome.error.exit_code)


def _message_and_code(error: BaseException, run: RunOptions) -> tuple[str, int]:
    """A one-line message and the exit code. With --debug, raises an unexpected error for its traceback."""
    if isinstance(error, FeatkitError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return runtime.STOPPED, 130
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {UNWRITABLE[error.errno]}", NotWritableError.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; use fewer --workers or a smaller --resize-max", 1
    if run.debug:
        raise error
    what = f"{type(error).__name__}: {message_of(error) if str(error) else 'no message'}"
    return f"unexpected {what}; run again with --debug for the traceback, and report it", 1


def _reported_elsewhere(error: BaseException, stopped: bool) -> bool:
    """Whether another process of the same training reports the error."""
    if isinstance(error, FeatkitError) and error.reported is not None:
        return error.reported
    return (stopped or isinstance(error, FeatkitError | KeyboardInterrupt)) and not runtime.is_reporter()


def _report_stop(request: runtime.StopRequest, run: RunOptions) -> None:
    """Report the end if native code did not stop, by file descriptor: the main thread may hold Python's streams."""
    if not runtime.is_reporter():
        return
    if run.json:
        answer = {"error": runtime.STOPPED, "exit_code": request.exit_code}
        os.write(1, f"{json.dumps(answer)}\n".encode())
    cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar hides it
    os.write(2, f"{cursor}featkit: {runtime.STOPPED}\n".encode())


def fail(error: FeatkitError) -> NoReturn:
    """Exit the command with an error."""
    _end(str(error), error.exit_code)


def _fail(message: str, code: int, run: RunOptions) -> None:
    if run.debug:
        import traceback

        traceback.print_exc()
    if run.json:
        report_as_json(message, code)
    _end(message, code)


def report_as_json(message: str, code: int) -> None:
    """Print an error in the format of `--json`."""
    print(json.dumps({"error": one_line(message), "exit_code": code}, ensure_ascii=False))


def _end(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # stderr is closed or its disk is full: the exit code still reports the error
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
    """Print a report table to the terminal, with numbers aligned right."""
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
    if not console.is_terminal:  # a file has no width: cut nothing
        console = Console(width=WIDE)
    console.print(table)
    if content.note:
        print(content.note)


def cell_text(value: Any) -> str:
    """A table cell as text: floats with four significant digits, "-" for None and NaN."""
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# ----------------------------------------------------------------------------------------------------------------------
# Options of commands that are not generated from a function by `featkit.cli.command`.


ResizeMax = Annotated[
    int | None, typer.Option(help="Longer side after resizing, px.", min=16, show_default="no resizing")
]
MaxKeypoints = Annotated[
    int | None, typer.Option(help="Maximum keypoints per image.", min=1, show_default="the configuration's")
]
Workers = Annotated[int, typer.Option(help="Number of extraction processes; 0: one per core.", min=0)]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Skip images that cannot be read.")]
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
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change any field of the configuration; repeatable."),
]
FeatureNames = Annotated[
    str, typer.Option("--features", help="Configurations by name or path; comma-separated.", metavar="NAME,...")
]
OneWeight = Annotated[
    str | None,
    typer.Option(
        help="Trained weights by name, or a .safetensors file; needs a single --features.", show_default="its own"
    ),
]
Setting = Annotated[str, typer.Option(help="Setting by name, or a yaml file.")]
BenchmarkSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change any field of the benchmark; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Discard existing output.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The file to write.")]
