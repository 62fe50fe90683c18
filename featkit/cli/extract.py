"""`featkit extract`: images -> features.h5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb
from featkit.cli.engine_options import with_engine

if TYPE_CHECKING:
    from featkit.engine.base import EngineConfig

HELP = """Extract local features of all images of a folder.

Example: `featkit extract images/ --out feats.h5 --features rootsift --resize-max 1600`

Pixels that are masked (--masks) or transparent have no keypoints. Stopped at any moment, it goes on where it was when
the same command is run again."""


@verb
@with_engine
def command(
    images: Annotated[Path, typer.Argument(help="Folder of images (searched recursively).")],
    out: options.Out,
    features: options.Features = "rootsift",
    resize_max: options.ResizeMax = None,
    max_keypoints: options.MaxKeypoints = None,
    weights: options.Weights = None,
    masks: options.Masks = None,
    ignore_alpha: options.IgnoreAlpha = False,
    workers: options.Workers = 0,
    skip_broken: options.SkipBroken = False,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    engine: EngineConfig,
    run: RunOptions,
) -> Outcome:
    from featkit.config import overrides
    from featkit.engine import stages
    from featkit.features import extract
    from featkit.images.decode import DecodeConfig
    from featkit.store.features import open_features

    config = extract.ExtractConfig(
        features=features,
        decode=DecodeConfig(**options.decode_fields(resize_max, ignore_alpha)),
        workers=workers,
        skip_broken=skip_broken,
        masks=masks,
    )
    changes = overrides(settings or []) | options.given(max_keypoints=max_keypoints, weights=weights)
    job = extract.ExtractJob.resolve(config, changes, run.device)
    stages.extract(engine, job, images, out, overwrite=overwrite)
    with open_features(out) as store:
        counts = [store.count(name) for name in store.names()]
    data = {"out": str(out), "images": len(counts), "keypoints": sum(counts), "features": features}
    return Outcome(data, [f"{out}: {sum(counts):,} keypoints of {len(counts):,} images"])
