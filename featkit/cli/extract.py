"""`featkit extract`: images -> features.h5."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli.common import Outcome, RunOptions, verb

HELP = """Extract local features of all images of a folder.

Example: `featkit extract images/ --out feats.h5 --features rootsift --resize-max 1600`

Stopped at any moment, it goes on where it was when the same command is run again."""


@verb
def command(
    images: Annotated[Path, typer.Argument(help="Folder of images (searched recursively).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The features file to write.")],
    features: Annotated[str, typer.Option(help="Configuration by name, or a yaml file.")] = "rootsift",
    resize_max: Annotated[
        int | None, typer.Option(help="Longer side after resizing, px.", min=16, show_default="no resizing")
    ] = None,
    max_keypoints: Annotated[
        int | None, typer.Option(help="Never more keypoints per image.", min=1, show_default="the configuration's")
    ] = None,
    workers: Annotated[int, typer.Option(help="Workers; 0: one per core.", min=0)] = 0,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Pass over images that cannot be read.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the configuration; repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import overrides
    from featkit.features import extract
    from featkit.images.decode import DecodeConfig
    from featkit.store.features import open_features

    config = extract.ExtractConfig(
        features=features, decode=DecodeConfig(resize_max=resize_max), workers=workers, skip_broken=skip_broken
    )
    changes = overrides(settings or [])
    if max_keypoints is not None:
        changes["max_keypoints"] = max_keypoints
    job = extract.ExtractJob.resolve(config, changes, run.device)
    extract.run(job, images, out, overwrite=overwrite)
    with open_features(out) as store:
        counts = [store.count(name) for name in store.names()]
    data = {"out": str(out), "images": len(counts), "keypoints": sum(counts), "features": features}
    return Outcome(data, [f"{out}: {sum(counts):,} keypoints of {len(counts):,} images"])
