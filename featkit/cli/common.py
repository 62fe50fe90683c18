"""What all verbs share: the common options, one-line errors with their exit codes, and results as text or json."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

import typer

from featkit import launched, stopping
from featkit.errors import FeatkitError, NotWritableError, ProcessLostError


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
    standings: list[Any] = field(default_factory=list)  # featkit.report.standings.Standing
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
        int, typer.Option("-v", "--verbose", count=True, help="Say more (COLMAP's log too).", rich_help_panel=PANEL)
    ],
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="Say only what is wrong.", rich_help_panel=PANEL)],
    "device": Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=PANEL)],
    "seed": Annotated[int, typer.Option(help="Seed of everything random.", min=0, rich_help_panel=PANEL)],
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
    from featkit import log

    log.setup(-1 if run.quiet else run.verbose)
    with stopping.stoppable(functools.partial(_last_words, run=run)) as request:
        try:
            outcome = function()
            _show(outcome, run)
        except BrokenPipeError:  # whoever read the output has enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (Exception, KeyboardInterrupt) as error:
            if request and not isinstance(error, stopping.Stopped | ProcessLostError):  # whatever the signal made of it
                message, code = stopping.SAYING, request.exit_code
            else:
                message, code = _said_of(error, run)
            request.told = True
            if _said_elsewhere(error, bool(request)):
                raise typer.Exit(code) from None
            _fail(message, code, run)
        else:
            if outcome.error is not None:
                request.told = True
                _end(str(outcome.error), outcome.error.exit_code)


def _said_of(error: BaseException, run: RunOptions) -> tuple[str, int]:
    """One line, and the exit code. Raises the error itself where its traceback is asked for."""
    if isinstance(error, FeatkitError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return stopping.SAYING, 130
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {UNWRITABLE[error.errno]}", NotWritableError.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; fewer --workers, or --resize-max, take less", 1
    if run.debug:
        raise error
    what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return f"unexpected {what}; run again with --debug for the traceback, and report it", 1


def _said_elsewhere(error: BaseException, stopped: bool) -> bool:
    """Whether another process of the same training says it."""
    if isinstance(error, FeatkitError) and error.said is not None:
        return error.said
    return (stopped or isinstance(error, FeatkitError | KeyboardInterrupt)) and not launched.speaks()


def _last_words(request: stopping.StopRequest, run: RunOptions) -> None:
    """What is said when native code would not stop. The main thread may hold Python's own streams."""
    if not launched.speaks():
        return
    if run.json:
        answer = {"error": stopping.SAYING, "exit_code": request.exit_code}
        os.write(1, f"{json.dumps(answer)}\n".encode())
    cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar hides it
    os.write(2, f"{cursor}featkit: {stopping.SAYING}\n".encode())


def fail(error: FeatkitError) -> NoReturn:
    """End the command with an error."""
    _end(str(error), error.exit_code)


def _fail(message: str, code: int, run: RunOptions) -> None:
    if run.debug:
        import traceback

        traceback.print_exc()
    if run.json:
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False))
    _end(message, code)


def _end(message: str, code: int) -> NoReturn:
    print(f"featkit: {message}", file=sys.stderr)
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
        print(line, flush=True)


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
        table.add_row(*(escape(cell_text(value)) for value in row))
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
