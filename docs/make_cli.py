"""docs/cli.md, made of the commands themselves.

python docs/make_cli.py            # write it
python docs/make_cli.py --check    # exit 1 when it is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer

from featkit.cli.app import COMMON, PANEL
from featkit.cli.main import VERBS, app

PAGE = Path(__file__).resolve().parent / "cli.md"
HEAD = """# The command line

*Made by `python docs/make_cli.py` from the commands themselves; do not edit.*

"""
EXIT_CODES = """
Exit codes: 0 done, 1 unexpected, 2 wrong usage, 3 bad input, 4 empty result, 5 not writable, 130 Ctrl-C, 143 SIGTERM.
An error is one line that says what is wrong, where, and what to do. `--json` prints one object for programs.
"""


def page() -> str:
    """The text of docs/cli.md."""
    commands = list(_commands())
    common = [option for option in commands[0][1].params if option.name in COMMON]
    listed = "\n".join(f"| [`featkit {name}`](#{_anchor(name)}) | {_cell(verb.line)} |" for name, verb in VERBS.items())
    parts = [HEAD, f"| command | what it does |\n|---|---|\n{listed}\n", EXIT_CODES]
    parts += [f"\n## {PANEL}\n\nEvery command takes them.\n\n{_table(common)}"]
    return "".join([*parts, *(_section(name, command) for name, command in commands)])


def _commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, in the order of the help page; that of a group before those in it."""
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name in VERBS:
        command = verbs[name].load()
        yield name, command
        yield from ((f"{name} {inner}", one) for inner, one in getattr(command, "commands", {}).items())


def _section(name: str, command: Any) -> str:
    level = "#" * (2 + name.count(" "))
    own = [one for one in command.params if one.name not in {*COMMON, "help"}]
    arguments = [one for one in own if one.param_type_name == "argument"]
    usage = " ".join(["featkit", name, *(_argument(one) for one in arguments)])
    usage += " COMMAND ..." if hasattr(command, "commands") else " [OPTIONS]"
    text = _prose(command.help or command.short_help or "")
    table = f"\n{_table(own)}" if own else ""
    return f"\n{level} featkit {name}\n\n    {usage}\n\n{text}\n{table}"


def _table(options: list[Any]) -> str:
    rows = [f"| {_names(one)} | {_cell(getattr(one, 'help', None) or '')} | {_default(one)} |" for one in options]
    return "\n".join(["| option | what | default |", "|---|---|---|", *rows]) + "\n"


def _argument(one: Any) -> str:
    name = (one.metavar or one.name).upper()
    many = "..." if one.nargs != 1 else ""
    return f"{name}{many}" if one.required else f"[{name}{many}]"


def _names(one: Any) -> str:
    if one.param_type_name == "argument":
        return f"`{_argument(one)}`"
    names = ", ".join(sorted(one.opts, key=len, reverse=True))
    metavar = "" if one.is_flag or getattr(one, "count", False) else f" {one.metavar or _type(one)}"
    return f"`{names}{metavar}`".replace("|", r"\|")


def _type(one: Any) -> str:
    """What an option takes: choices, or the type's name with its range."""
    kinds = [kind for kind in (one.type_descriptor.annotation, *get_args(one.type_descriptor.annotation)) if kind]
    kind = next(kind for kind in reversed(kinds) if kind is not type(None))
    if issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    ends = [getattr(one.type_descriptor.parameter_info, end, None) for end in ("min", "max")]
    name = "TEXT" if kind is str else kind.__name__.upper()
    low, high = ("" if end is None else f"{end:g}" for end in ends)
    return name if ends == [None, None] else f"{name} {low}..{high}"


def _default(one: Any) -> str:
    shown = getattr(one, "show_default", None)
    if isinstance(shown, str):
        return shown
    if one.required:
        return "required"
    default = one.default() if callable(one.default) else one.default
    if default is None or default == [] or default is False:
        return ""
    value = getattr(default, "value", default)
    return "" if inspect.isclass(value) or "Sentinel" in repr(value) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("<", r"\<")


def _prose(text: str) -> str:
    """Help's paragraphs, each on a line of its own."""
    plain = inspect.cleandoc(text.replace("\b\n", "").replace("\f", ""))
    return "\n\n".join(" ".join(block.split()).replace("<", r"\<") for block in re.split(r"\n\s*\n", plain))


def _anchor(name: str) -> str:
    return "featkit-" + name.replace(" ", "-")


def main() -> None:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE}: out of date; run python docs/make_cli.py")


if __name__ == "__main__":
    main()
