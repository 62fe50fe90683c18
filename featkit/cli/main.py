"""The `featkit` command. Help imports neither torch nor pycolmap: verbs import what they need when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from featkit.cli import (
    align,
    data,
    demo,
    doctor,
    eval,
    export,
    extract,
    features,
    info,
    inspect,
    localize,
    match,
    pairs,
    plan,
    reconstruct,
    run,
    serve,
    store,
    train,
    verify,
    weights,
)

app = typer.Typer(
    name="featkit",
    help="From photographs to a map and to poses: local features run, trained and proven.",
    epilog="Exit codes: 0 done, 2 usage, 3 bad input, 4 nothing came out, 5 not writable, 130 or 143 stopped.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS = (
    *(reconstruct, localize, align, extract, features, pairs, match, verify),
    *(export, serve, run, info, doctor, demo),
)
for module in VERBS:
    name = module.__name__.rpartition(".")[2]
    kind = localize.LocalizeCommand if module is localize else None
    app.command(name, cls=kind, help=module.HELP, no_args_is_help=module not in (demo, doctor, features))(
        module.command
    )
app.command("plan", help=plan.HELP, no_args_is_help=True, context_settings=plan.SETTINGS)(plan.command)
app.add_typer(store.app, name="store")
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(inspect.app, name="inspect")
app.add_typer(eval.app, name="eval")
app.add_typer(weights.app, name="weights")


def _version(value: bool) -> None:
    if value:
        from featkit import __version__

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
    """Entry point of the console script."""
    app()
