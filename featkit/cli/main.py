"""The `featkit` command. A subcommand's module is imported only when it is called.

`featkit --help` lists the commands from the table below in half a second; the modules import pycolmap, torch and more.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from featkit import __version__
from featkit.cli.pages import HELP_OPTIONS, Commands, Group
from featkit.core import runtime
from featkit.core.errors import one_line
from featkit.core.imports import import_module

ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


@dataclass(frozen=True)
class Verb:
    """A command: its module, the name of its function (or Typer app), and the first line of its help.

    help: name of the help text in the module. settings, cls: names of Typer's `context_settings` and `cls` in the
    module. bare: runs without arguments.
    """

    module: str
    function: str
    line: str
    help: str | None = None
    settings: str | None = None
    cls: str | None = None
    value_type: bool = False


VERBS = {
    "reconstruct": Verb(
        "maps",
        "reconstruct_command",
        "Build a map from a folder of photographs: features, pairs, matches, verified geometry, 3D model, report.",
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
        "Register new photographs in an existing map; its coordinate frame and ids are kept.",
        "EXTEND_HELP",
    ),
    "merge": Verb(
        "maps",
        "merge_command",
        "Merge two maps of overlapping parts of a place, in the coordinate frame of the first.",
        "MERGE_HELP",
    ),
    "align": Verb(
        "maps",
        "align_command",
        "Give a map its metric scale and orientation by one similarity transform.",
        "ALIGN_HELP",
    ),
    "frames": Verb(
        "stages", "frames_command", "Take sharp frames with a target overlap out of a video.", "FRAMES_HELP"
    ),
    "extract": Verb("stages", "extract_command", "Extract local features of all images of a folder.", "EXTRACT_HELP"),
    "features": Verb(
        "weights",
        "features_command",
        "List the local features and matchers: method, training data, licence, weights, measured speed and score.",
        "FEATURES_HELP",
        value_type=True,
    ),
    "pairs": Verb("stages", "pairs_command", "Choose which images to match.", "PAIRS_HELP"),
    "match": Verb("stages", "match_command", "Match the features of image pairs.", "MATCH_HELP"),
    "verify": Verb(
        "stages",
        "verify_command",
        "Verify matches geometrically and write a COLMAP database for any mapper.",
        "VERIFY_HELP",
    ),
    "view": Verb(
        "view",
        "view_command",
        "View a map in a browser: points, cameras, photographs, matches and tracks.",
        "VIEW_HELP",
    ),
    "export": Verb("maps", "export_command", "Export a map for another program.", "EXPORT_HELP"),
    "serve": Verb(
        "localize",
        "serve_command",
        "Localize photographs over HTTP: POST one to /localize, get its pose, inliers and uncertainty as json.",
        "SERVE_HELP",
    ),
    "run": Verb(
        "stages",
        "run_plan_command",
        "Run one shard of a plan, or all remaining shards and join them.",
        "RUN_HELP",
    ),
    "info": Verb(
        "doctor",
        "info_command",
        "Describe a file, folder or configuration: its kind, its contents, and the configuration that made it.",
        "INFO_HELP",
    ),
    "doctor": Verb(
        "doctor",
        "doctor_command",
        "Check the installation: what is missing and how to get it; then run the main job on a tiny scene.",
        "DOCTOR_HELP",
        value_type=True,
    ),
    "demo": Verb(
        "maps",
        "demo_command",
        "Render a small 3D scene with exact cameras, map it, localize queries in it, and compare with the truth.",
        "DEMO_HELP",
        value_type=True,
    ),
    "plan": Verb(
        "stages",
        "plan_command",
        "Split a stage into shards that any machine can run: extract, pairs, match or verify, with its own options.",
        "PLAN_HELP",
        settings="PLAN_SETTINGS",
    ),
    "store": Verb("stores", "store_app", "Check, repair and merge features and matches files."),
    "data": Verb("data", "data_app", "Make, pack and fetch training and test data for descriptors."),
    "train": Verb("train", "train_app", "Train features."),
    "inspect": Verb("train", "inspect_app", "Inspect a training run."),
    "eval": Verb(
        "eval",
        "eval_app",
        "Evaluate features and descriptors on standard benchmarks: matching, maps, poses, patches.",
    ),
    "weights": Verb(
        "weights",
        "weights_app",
        "List trained weights, fetch and import published ones, export a training run's, or any network as ONNX.",
    ),
}


class LazyCommand(TyperCommand):
    """A command in the list; its options and code are loaded when it is called."""

    def __init__(self, name: str, verb: Verb):
        super().__init__(name, help=verb.line, add_help_option=False)
        self.verb = verb

    def load(self) -> Any:
        """The real command, or group of commands."""
        return _load_verb(str(self.name), self.verb)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent, **extra)


@functools.cache
def _load_verb(name: str, verb: Verb) -> Any:
    module = _import_module(f"featkit.cli.{verb.module}")
    found = getattr(module, verb.function)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)
        group.name = name
        return group
    single = Commands()
    settings = getattr(module, verb.settings) if verb.settings else None
    cls = getattr(module, verb.cls) if verb.cls else None
    text = getattr(module, str(verb.help))
    single.command(name, cls=cls, help=text, no_args_is_help=not verb.value_type, context_settings=settings)(found)
    return typer.main.get_command(single)


def _import_module(module: str) -> Any:
    """Import a module. A signal during the import ends the command with one line, as it does later."""
    with runtime.stoppable(lambda request: None) as request:
        try:
            return import_module(module)
        except KeyboardInterrupt:
            request.reported = True
            if runtime.is_reporter():
                print(f"featkit: {runtime.STOPPED}", file=sys.stderr)
            raise typer.Exit(request.exit_code) from None


class LazyGroup(Group):
    """All commands, loaded on use."""

    def __init__(self, **given: Any):
        super().__init__(**given)
        self.commands = {name: LazyCommand(name, verb) for name, verb in VERBS.items()}


app = typer.Typer(
    cls=LazyGroup,
    name="featkit",
    help="From photographs to maps and camera poses: run, train and evaluate local features.",
    epilog="Exit codes: 0 done, 1 unexpected, 2 usage, 3 bad input, 4 empty result, 5 not writable, 130, 143 stopped.",
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
        bool,
        typer.Option("--version", callback=_version, is_eager=True, metavar="", help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `featkit` command."""
    _open_streams()
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # it writes lines of its own about files that featkit reports
    try:
        code = typer.main.get_command(app).main(standalone_mode=False)
    except typer.Abort:
        code = 1
    except ClickException as error:  # from click, or from Typer's copy of it: a wrong option, a missing argument
        code = _usage_error(error)
    gc.freeze()  # the interpreter's last collection would look through every module that goes anyway
    sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: Any) -> int:
    """Report a usage error in one line, with --json also as json. Returns the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
        return int(error.exit_code)
    words = sys.argv[1:]
    message = error.format_message().rstrip(".")
    if "--json" in (words[: words.index("--")] if "--" in words else words):
        print(json.dumps({"error": one_line(message), "exit_code": error.exit_code}))
    context = getattr(error, "ctx", None)
    see = " See" if message.endswith("?") else "; see"
    where = "" if context is None else f"{see} {context.command_path} --help"
    with contextlib.suppress(OSError):
        print(f"featkit: {one_line(message)}{where}", file=sys.stderr)
    return int(error.exit_code)


def _open_streams() -> None:
    """Connect standard streams that the shell has closed (`2>&-`) to the null device.

    Otherwise the next opened file would get the stream's number, and system libraries would write into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115 stays open
            setattr(sys, name, stream)
