"""`featkit pairs`: images or features.h5 -> pairs.txt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb
from featkit.cli.engine_options import with_engine

if TYPE_CHECKING:
    from featkit.engine.base import EngineConfig

HELP = """Choose which images to match.

Example: `featkit pairs feats.h5 --method retrieval --num 20 --out pairs.txt`

`retrieval` compares the descriptors in feats.h5 (VLAD); all others also take a folder of images. `gps` pairs
photographs taken near each other, by their EXIF or a csv of `name,lat,lon[,alt]`; one without a position is paired with
all. `poses` pairs cameras of a COLMAP model that stand near each other and look the same way, `covisible` those that
see the most points in common.
With --retrieval FILE images are compared by anybody's global descriptors: an h5 file with a group per image that holds
`global_descriptor`, as hloc writes for NetVLAD and others."""


@verb
@with_engine
def command(
    source: Annotated[Path, typer.Argument(help="Folder of images, or feats.h5.")],
    out: options.Out,
    method: Annotated[
        str, typer.Option(help="auto, exhaustive, sequential, retrieval, gps, poses or covisible.")
    ] = "auto",
    num: Annotated[
        int | None, typer.Option(help="Images each one is paired with.", min=1, show_default="the configuration's")
    ] = None,
    retrieval: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Global descriptors in hloc's layout; twice for two files."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="gps: the photographs of feats.h5, for their EXIF.")
    ] = None,
    gps_file: options.GpsFile = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="poses, covisible: a COLMAP model or a mapped scene.")
    ] = None,
    settings: options.Settings = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make the pairs anew in any case.")] = False,
    *,
    engine: EngineConfig,
    run: RunOptions,
) -> Outcome:
    from featkit.config import overrides
    from featkit.engine.stages import describer
    from featkit.errors import UsageError
    from featkit.pairing import stage
    from featkit.pairing.base import Sources
    from featkit.pairing.given import given_retrieval
    from featkit.registry import configured
    from featkit.store.pairs import read_pairs

    changes = overrides(settings or [])
    near = {"gps": "num_matched", "poses": "num_matched", "covisible": "num_matched"}
    number_of = {"retrieval": "num_matched", "sequential": "overlap", **near}
    asked = [("--images", images, {"gps"}), ("--gps-file", gps_file, {"gps"}), ("--model", model, {*near} - {"gps"})]
    for option, path, methods in asked:
        if path is not None and method not in methods:
            raise UsageError(f"{option} goes with --method {' or '.join(sorted(methods))}, not with {method}")
    if gps_file is not None:
        changes["file"] = gps_file
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
    sources = Sources(images or (source if source.is_dir() else None), model)
    stage.run(
        chosen, source, out, seed=run.seed, device=run.device, overwrite=overwrite, sources=sources,
        describe=describer(engine, out),
    )  # fmt: skip
    pairs = read_pairs(out)
    paired = len({name for pair in pairs for name in (pair.name0, pair.name1)})
    return Outcome(
        {"out": str(out), "pairs": len(pairs), "images": paired, "method": method},
        [f"{out}: {len(pairs):,} pairs of {paired:,} images"],
    )
