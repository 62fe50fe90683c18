"""`featkit inspect informativeness`: what a training's networks would learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb

HELP = "Look into what was trained."
INFORMATIVENESS_HELP = """How well the distance within a pair tells what the pair would teach (AdaSample, figure 3).

Example: `featkit inspect informativeness --run runs/adasample --data patches/liberty --out informativeness.html`

For every network in the run's folder: the correlation, over pairs, of matching distance and norm of the gradient."""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown")


@verb
def informativeness(
    of_run: Annotated[Path, typer.Option("--run", help="Folder of a training.", show_default=False)],
    data: Annotated[
        Path, typer.Option(help="PhotoTour, HPatches or RomePatches folder, or a pack.", show_default=False)
    ],
    out: options.Out,
    measured: Annotated[
        int | None, typer.Option("--pairs", help="Pairs whose gradient is taken.", min=3, show_default="256")
    ] = None,
    settings: options.Settings = None,
    *,
    run: RunOptions,
) -> Outcome:
    import numpy as np

    from featkit.config import make, merge, overrides
    from featkit.data.training_patches import read_training_patches
    from featkit.device import torch_device
    from featkit.report.informativeness import informativeness_report, informativeness_table
    from featkit.store.stamp import refuse_foreign
    from featkit.training.informativeness import InformativenessConfig, along_training, sample_pairs

    refuse_foreign(out)
    config = make(InformativenessConfig, merge(options.given(measured=measured), overrides(settings or [])), "--set")
    patches = read_training_patches([data])
    sample = sample_pairs(patches, config.pairs, np.random.default_rng(run.seed))
    along = along_training(of_run, sample, config, torch_device(run.device))
    report = informativeness_report(along, config, of_run, patches.name, out)
    rows = [
        {"network": snapshot.name, "step": snapshot.step, "pearson": found.pearson, "spearman": found.spearman}
        for snapshot, found in along
    ]
    outcome = {"report": str(report), "pairs": len(along[-1][1].distances), "networks": rows}
    return Outcome(outcome, [f"report: {report}"], [informativeness_table(along)])


app.command("informativeness", help=INFORMATIVENESS_HELP, no_args_is_help=True)(informativeness)
