"""`featkit match`: features.h5 + pairs.txt -> matches.h5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb
from featkit.cli.engine_options import with_engine

if TYPE_CHECKING:
    from featkit.engine.base import EngineConfig

HELP = """Match the features of image pairs.

Example: `featkit match feats.h5 pairs.txt --out matches.h5 --ratio 0.8`

Stopped at any moment, it goes on where it was when the same command is run again."""


@verb
@with_engine
def command(
    features: Annotated[Path, typer.Argument(help="The features file.")],
    pairs: Annotated[Path, typer.Argument(help="The pairs file.")],
    out: options.Out,
    matcher: options.Matcher = "mutual",
    ratio: options.Ratio = None,
    min_score: Annotated[
        float | None, typer.Option(help="Smallest similarity of a match.", min=-1, max=1, show_default="none")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs at a time; changes no result.", min=1, show_default="the configuration's")
    ] = None,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    engine: EngineConfig,
    run: RunOptions,
) -> Outcome:
    from featkit.config import overrides
    from featkit.engine import stages
    from featkit.matching import match
    from featkit.store.matches import open_matches
    from featkit.store.pairs import read_pairs

    changes = overrides(settings or []) | options.given(ratio=ratio, min_score=min_score, batch_size=batch_size)
    built, config = match.resolve(matcher, changes, run.device)
    stages.match(engine, matcher, built, config, features, pairs, out, device=run.device, overwrite=overwrite)
    with open_matches(out) as store:
        counts = [store.read(pair).count for pair in read_pairs(pairs)]
    data = {"out": str(out), "pairs": len(counts), "matches": sum(counts)}
    return Outcome(data, [f"{out}: {sum(counts):,} matches of {len(counts):,} pairs"])
