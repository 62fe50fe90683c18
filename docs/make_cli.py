"""docs/cli.md, made of the commands themselves.

python docs/make_cli.py            # write it
python docs/make_cli.py --check    # exit 1 when it is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    pieces = ["COMMAND ..."] if hasattr(command, "commands") else command.collect_usage_pieces(None)
    usage = " ".join(["featkit", name, *pieces])
    text = _prose(command.help or command.short_help or "")
    table = f"\n{_table(own)}" if own else ""
    return f"\n{level} featkit {name}\n\n    {usage}\n\n{text}\n{table}"


def _table(options: list[Any]) -> str:
    rows = [f"| {_names(one)} | {_cell(getattr(one, 'help', None) or '')} | {_default(one)} |" for one in options]
    return "\n".join(["| option | what | default |", "|---|---|---|", *rows]) + "\n"


def _argument(one: Any) -> str:
    return str(one.metavar) if one.required else f"[{one.metavar}]"


def _names(one: Any) -> str:
    names = _argument(one) if one.param_type_name == "argument" else ", ".join(sorted(one.opts, key=len, reverse=True))
    values = "" if one.param_type_name == "argument" else one.metavar
    return f"`{names} {values}".rstrip().replace("|", r"\|") + "`"


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
    return "" if value == "" or inspect.isclass(value) or "Sentinel" in repr(value) else f"`{value}`"


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
