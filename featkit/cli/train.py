"""`featkit train` and `inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featkit.api import train as api
from featkit.cli.app import Outcome
from featkit.cli.command import command
from featkit.cli.pages import Commands
from featkit.report.training import informativeness_table, training_table

# ----------------------------------------------------------------------------------------------------------------------
# `featkit train`: patches -> patch descriptor; posed image pairs -> SCFeat.


TRAIN_HELP = "Train features."
PATCH_HELP = """Train a patch descriptor: hardnet, hardnet-frn, hynet, sdgmnet, adasample, doap or doap-binary; on
HPatches adasample-hpatches, doap-hpatches and doap-hpatches-lm, on RomePatches doap-rome and doap-binary-rome.

Example: `featkit train patch --config hynet --data patches/liberty --out runs/hynet --budget 30min`

The format of `--data` is detected: PhotoTour's, a pack, hpatches-release, RomePatches. For HPatches, the training part
of split a is used (`--set data.hpatches_split=b`).

The paper's schedule is scaled to --steps or --budget. If stopped, even by SIGKILL, run the same command again to resume
from the last checkpoint. The run's folder holds best.safetensors, last.safetensors, metrics.csv and report.html."""

SCFEAT_HELP = """Train SCFeat from camera poses: description, then detection; with some recipes a warm-up first.

Example: `featkit train scfeat --data posed/mine --out runs/mine --budget 2h`

Recipes: scfeat-s (ResNet-18, with a warm-up), scfeat-paper (ResNet-50, from --encoder-weights). If stopped, run the
same command again to resume. The run's folder holds best.safetensors, report.html and a folder for each stage."""

train_app = Commands(TRAIN_HELP)


@command(api.train_patch)
def patch(done: api.TrainedDescriptor) -> Outcome:
    if not done.first:
        return Outcome(done.summary, silent=True)
    lines = [f"weights: {done.out / 'best.safetensors'}", f"report: {done.report}"]
    return Outcome(done.summary, lines, [training_table(done.summary)])


@command(api.train_scfeat)
def scfeat(done: api.TrainedStages) -> Outcome:
    data = {"stages": done.summaries}
    if done.report is None:
        return Outcome(data, silent=not done.first)
    lines = [f"weights: {done.out / 'best.safetensors'}", f"report: {done.report}"]
    return Outcome(data, lines, [training_table(summary) for summary in done.summaries.values()])


train_app.command("scfeat", help=SCFEAT_HELP, no_args_is_help=True)(scfeat)
train_app.command("patch", help=PATCH_HELP, no_args_is_help=True)(patch)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit inspect informativeness`: which pairs a network would learn from.


INSPECT_HELP = "Inspect a training run."
INFORMATIVENESS_HELP = """Test whether the distance within a pair predicts its gradient (AdaSample, figure 3).

Example: `featkit inspect informativeness --run runs/adasample --data patches/liberty --out informativeness.html`

For every network in the run's folder: the correlation over pairs of matching distance and gradient norm."""

inspect_app = Commands(INSPECT_HELP)


@command(api.informativeness)
def informativeness(done: tuple[Path, Any]) -> Outcome:
    report, along = done
    rows = [
        {"network": snapshot.name, "step": snapshot.step, "pearson": found.pearson, "spearman": found.spearman}
        for snapshot, found in along
    ]
    outcome = {"report": str(report), "pairs": len(along[-1][1].distances), "networks": rows}
    return Outcome(outcome, [f"report: {report}"], [informativeness_table(along)])


inspect_app.command("informativeness", help=INFORMATIVENESS_HELP, no_args_is_help=True)(informativeness)
