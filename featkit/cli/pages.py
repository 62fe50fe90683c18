"""How the help pages of all commands look: usage lines, flags without a type, Typer's settings. Imports Typer alone."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command whose usage line is that of docs/cli.md: `featkit export MODEL [OPTIONS]`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [one for one in self.params if one.param_type_name == "argument"]
        named = [str(one.metavar) if one.required else f"[{one.metavar}]" for one in arguments]
        return [*named, "[OPTIONS]"] if self.allow_interspersed_args else ["[OPTIONS]", *named]

    def get_help_option(self, ctx: Any) -> Any:
        return _without_type(super().get_help_option(ctx))


class Group(TyperGroup):
    """A command with commands of its own."""

    def get_help_option(self, ctx: Any) -> Any:
        return _without_type(super().get_help_option(ctx))


def _without_type(flag: Any) -> Any:
    """A flag that Typer made; its help then shows no type."""
    if flag is not None:
        flag.metavar = ""
    return flag


class Commands(typer.Typer):
    """Typer with featkit's settings. help: of the group; with "" there is one command, which takes its place."""

    def __init__(self, help: str = "") -> None:
        super().__init__(
            cls=Group,
            help=help,
            no_args_is_help=bool(help),
            add_completion=False,
            rich_markup_mode="markdown",
            pretty_exceptions_enable=False,
            context_settings=HELP_OPTIONS,
        )

    def command(self, name: str | None = None, *, cls: Any = None, **given: Any) -> Any:
        return super().command(name, cls=cls or Command, **given)
