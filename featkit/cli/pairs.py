"""`featkit pairs`: images or features.h5 -> pairs.txt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb

HELP = """Choose which images to match.

Example: `featkit pairs feats.h5 --method retrieval --num 20 --out pairs.txt`

`exhaustive` and `sequential` also take a folder of images; `retrieval` compares the descriptors in feats.h5 (VLAD).
With --retrieval FILE images are compared by anybody's global descriptors: an h5 file with a group per image that holds
`global_descriptor`, as hloc writes for NetVLAD and others."""


@verb
def command(
    source: Annotated[Path, typer.Argument(help="Folder of images, or feats.h5.")],
    out: options.Out,
    method: Annotated[str, typer.Option(help="auto, exhaustive, sequential or retrieval.")] = "auto",
    num: Annotated[
        int | None, typer.Option(help="Images each one is paired with.", min=1, show_default="the configuration's")
    ] = None,
    retrieval: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Global descriptors in hloc's layout; twice for two files."),
    ] = None,
    settings: options.Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of another origin.")] = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import overrides
    from featkit.errors import UsageError
    from featkit.pairing import stage
    from featkit.pairing.given import given_retrieval
    from featkit.registry import configured
    from featkit.store.pairs import read_pairs

    changes = overrides(settings or [])
    number_of = {"retrieval": "num_matched", "sequential": "overlap"}
    if retrieval:
        if method not in {"auto", "retrieval"}:
            raise UsageError(f"--retrieval compares descriptors; it does not go with --method {method}")
        method = "retrieval"
    if num is not None:
        if method not in number_of:
            raise UsageError(f"--num goes with {' or '.join(number_of)}, not with {method}")
        changes[number_of[method]] = num
    if method == "auto" and changes:
        raise UsageError("--set goes with a named --method")
    chosen: str | stage.Method = "auto"
    if retrieval:
        chosen = given_retrieval(retrieval, changes)
    elif method != "auto":
        chosen = configured("pairing", method, changes)
    stage.run(chosen, source, out, seed=run.seed, device=run.device, overwrite=overwrite)
    pairs = read_pairs(out)
    images = len({name for pair in pairs for name in (pair.name0, pair.name1)})
    return Outcome(
        {"out": str(out), "pairs": len(pairs), "images": images, "method": method},
        [f"{out}: {len(pairs):,} pairs of {images:,} images"],
    )
