"""The `featkit` command, and the one place where code is loaded late: a verb's module comes when the verb is called.

`featkit --help` lists the verbs by the lines below, in half a second. With a module come pycolmap, torch and more.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer import rich_utils
from typer.core import TyperCommand, TyperGroup

from featkit import __version__
from featkit.core import runtime
from featkit.core.errors import one_line

ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True)
class Verb:
    """A verb by the names of its function (or of its Typer app of several), and its help's first line.

    settings, cls: names of what Typer takes as `context_settings` and `cls`. bare: runs without arguments.
    """

    module: str
    function: str
    line: str
    help: str | None = None
    settings: str | None = None
    cls: str | None = None
    bare: bool = False


VERBS = {
    "reconstruct": Verb(
        "maps",
        "reconstruct_command",
        "Make a map of a folder of photographs: features, pairs, matches, verified geometry, 3D model, report.",
        "RECONSTRUCT_HELP",
    ),
    "localize": Verb(
        "localize",
        "localize_command",
        "Find the poses of new photographs in a map.",
        "LOCALIZE_HELP",
        cls="LocalizeCommand",
    ),
    "extend": Verb(
        "maps",
        "extend_command",
        "Register new photographs in a map that is there; its frame and its ids stay.",
        "EXTEND_HELP",
    ),
    "merge": Verb(
        "maps",
        "merge_command",
        "Make one map of two that show parts of one place, in the frame of the first.",
        "MERGE_HELP",
    ),
    "align": Verb(
        "maps",
        "align_command",
        "Give a map its metric scale and orientation: the whole model moved by one similarity.",
        "ALIGN_HELP",
    ),
    "frames": Verb(
        "stages", "frames_command", "Take sharp frames with a target overlap out of a video.", "FRAMES_HELP"
    ),
    "extract": Verb("stages", "extract_command", "Extract local features of all images of a folder.", "EXTRACT_HELP"),
    "features": Verb(
        "weights",
        "features_command",
        "List the local features and matchers: what each is, its data, licence, weights, measured speed and score.",
        "FEATURES_HELP",
        bare=True,
    ),
    "pairs": Verb("stages", "pairs_command", "Choose which images to match.", "PAIRS_HELP"),
    "match": Verb("stages", "match_command", "Match the features of image pairs.", "MATCH_HELP"),
    "verify": Verb(
        "stages",
        "verify_command",
        "Verify matches geometrically, and write a COLMAP database that any mapper takes.",
        "VERIFY_HELP",
    ),
    "view": Verb(
        "view",
        "view_command",
        "Look at a map in a browser: points, cameras, photographs, matches and tracks.",
        "VIEW_HELP",
    ),
    "export": Verb("maps", "export_command", "Write a map for another program.", "EXPORT_HELP"),
    "serve": Verb(
        "localize",
        "serve_command",
        "Localize photographs over HTTP: POST one to /localize, get its pose, inliers and uncertainty as json.",
        "SERVE_HELP",
    ),
    "run": Verb(
        "stages",
        "run_command",
        "Run shards of a plan: one, or all that are left, which are then joined.",
        "RUN_HELP",
    ),
    "info": Verb(
        "doctor",
        "info_command",
        "Describe a file, folder or configuration: what it is, how much it holds, which configuration made it.",
        "INFO_HELP",
    ),
    "doctor": Verb(
        "doctor",
        "doctor_command",
        "Check the installation: what is missing and how to get it; then run the main job on a tiny scene.",
        "DOCTOR_HELP",
        bare=True,
    ),
    "demo": Verb(
        "maps",
        "demo_command",
        "Render a small 3D scene with exact cameras, map it, localize queries in it, and compare with the truth.",
        "DEMO_HELP",
        bare=True,
    ),
    "plan": Verb(
        "stages",
        "plan_command",
        "Cut a stage into shards that any machine can run: extract, pairs, match or verify, each with its own options.",
        "PLAN_HELP",
        settings="PLAN_SETTINGS",
    ),
    "store": Verb("stores", "store_app", "Check, repair and merge features and matches files."),
    "data": Verb("data", "data_app", "Make, pack and fetch the data that descriptors are trained and tested on."),
    "train": Verb("train", "train_app", "Train features."),
    "inspect": Verb("train", "inspect_app", "Inspect what was trained."),
    "eval": Verb(
        "eval",
        "eval_app",
        "Evaluate features and descriptors on the field's benchmarks: matching, maps, poses, patches.",
    ),
    "weights": Verb(
        "weights",
        "weights_app",
        "List trained weights, fetch and import published ones, export a training's, or any as ONNX.",
    ),
}


class LateCommand(TyperCommand):
    """A verb as the list shows it; what it takes and does is loaded when it is called."""

    def __init__(self, name: str, verb: Verb):
        super().__init__(name, help=verb.line, add_help_option=False)
        self.verb = verb

    def load(self) -> Any:
        """The command, or the group of commands, itself."""
        return _loaded(str(self.name), self.verb)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent, **extra)


@functools.cache
def _loaded(name: str, verb: Verb) -> Any:
    module = _imported(f"featkit.cli.{verb.module}")
    found = getattr(module, verb.function)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)
        group.name = name
        return group
    single = typer.Typer(rich_markup_mode="markdown", add_completion=False, pretty_exceptions_enable=False)
    settings = getattr(module, verb.settings) if verb.settings else None
    cls = getattr(module, verb.cls) if verb.cls else None
    text = getattr(module, str(verb.help))
    single.command(name, cls=cls, help=text, no_args_is_help=not verb.bare, context_settings=settings)(found)
    return typer.main.get_command(single)


def _imported(module: str) -> Any:
    """The module. A signal that comes meanwhile ends the command with one line, as at any later moment."""
    with runtime.stoppable(lambda request: None) as request:
        try:
            return importlib.import_module(module)
        except KeyboardInterrupt:
            request.reported = True
            if runtime.is_reporter():
                print(f"featkit: {runtime.STOPPED}", file=sys.stderr)
            raise typer.Exit(request.exit_code) from None


class Verbs(TyperGroup):
    """All verbs, none of them loaded."""

    def __init__(self, **given: Any):
        super().__init__(**given)
        self.commands = {name: LateCommand(name, verb) for name, verb in VERBS.items()}


app = typer.Typer(
    cls=Verbs,
    name="featkit",
    help="From photographs to a map and to poses: local features run, trained and proven.",
    epilog="Exit codes: 0 done, 2 usage, 3 bad input, 4 empty result, 5 not writable, 130 or 143 stopped.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings=HELP_OPTIONS,
)


def _version(value: bool) -> None:
    if value:
        print(f"featkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The `featkit` command; `featkit.__main__` starts it."""
    _open_streams()
    try:
        code = typer.main.get_command(app).main(standalone_mode=False)
    except typer.Abort:
        code = 1
    except ClickException as error:  # of click, or of Typer's own copy of it: a wrong option, a missing argument
        code = _usage_error(error)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: Any) -> int:
    """Show what is wrong with the command line, as json too where that is asked for; the exit code."""
    words = sys.argv[1:]
    if "--json" in (words[: words.index("--")] if "--" in words else words):
        print(json.dumps({"error": one_line(error.format_message()), "exit_code": error.exit_code}))
    if hasattr(error, "message"):
        error.message = one_line(error.message)
    with contextlib.suppress(OSError):
        rich_utils.rich_format_error(error)
    return int(error.exit_code)


def _open_streams() -> None:
    """Where the shell has closed a standard stream (`2>&-`), what is written to it goes nowhere.

    Otherwise the next file that is opened would get its number, and the system's libraries would write into that.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115 for good
            setattr(sys, name, stream)
