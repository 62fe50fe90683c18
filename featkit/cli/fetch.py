"""`featkit data fetch`: benchmark data from their authors' servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb

HELP = """Download a benchmark: phototour, hpatches, hpatches-sequences, rome or aachen.

Example: `featkit data fetch phototour --out data/phototour --only liberty`

Stopped or cut off at any moment, the same command goes on. Archives are checked and unpacked into --out. A file that
was got in another way is given with --archive, another address with --url."""


@verb
def command(
    name: Annotated[str, typer.Argument(help="The data set.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to put it in.")],
    only: Annotated[list[str] | None, typer.Option(help="This file only; repeatable.", show_default="all")] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE=ADDRESS", help="Another address of a file; repeatable.", show_default="the catalogue's"
        ),
    ] = None,
    archive: Annotated[
        list[Path] | None, typer.Option(help="A file that is on the disk; repeatable.", show_default="none")
    ] = None,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="Keep what was unpacked.")] = False,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from dataclasses import asdict

    from featkit.data.catalogue import data_set
    from featkit.data.fetch import FetchOptions, fetch

    wanted = data_set(name)
    urls = options.addresses(url)
    done = fetch(wanted, out, FetchOptions(urls, archive or [], only or [], keep_archives, overwrite))
    lines = [
        f"{file.path}: {'was there' if file.was_there else f'{file.size / 1e6:,.1f} MB from {file.source}'}"
        for file in done
    ]
    data = {"name": name, "files": [{**asdict(file), "path": str(file.path)} for file in done], "page": wanted.page}
    return Outcome(data, [*lines, f"{wanted.summary}; {wanted.page} ({wanted.terms})"])
