"""`featkit train` and `inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli import app as options
from featkit.cli.app import Outcome, RunOptions, verb
from featkit.core.config import make, merge, overrides
from featkit.core.errors import UsageError
from featkit.core.registry import resolve
from featkit.core.runtime import torch_device
from featkit.data.posed_format import read_scene_list
from featkit.data.posed_pairs import read_posed_pairs
from featkit.data.training_patches import read_training_patches
from featkit.io.atomic import refuse_foreign
from featkit.report.training import (
    informativeness_report,
    informativeness_table,
    stages_report,
    training_report,
    training_table,
)
from featkit.training.distributed import launch
from featkit.training.informativeness import InformativenessConfig, along_training, sample_pairs
from featkit.training.patch import train_patch
from featkit.training.patch_config import PatchTraining
from featkit.training.scfeat import STAGES, ScfeatData, ScfeatStages
from featkit.training.scfeat_task import ScfeatTraining, photo_folders
from featkit.training.task import seconds_of

# ----------------------------------------------------------------------------------------------------------------------
# `featkit train`: patches -> a patch descriptor; posed pairs of images -> SCFeat.


TRAIN_HELP = "Train features."
PATCH_HELP = """Train a patch descriptor: hardnet, hardnet-frn, hynet, sdgmnet, adasample, doap or doap-binary; for
HPatches adasample-hpatches, doap-hpatches and doap-hpatches-lm, for RomePatches doap-rome and doap-binary-rome.

Example: `featkit train patch --config hynet --data patches/liberty --out runs/hynet --budget 30min`

`--data` is told by its files: PhotoTour's format, a pack, hpatches-release, RomePatches. Of HPatches the training part
of split a is taken (`--set data.hpatches_split=b`).

The paper's schedule is fitted to --steps or --budget. Stopped at any moment, also by SIGKILL, the same command goes on
where the last checkpoint was. The run's folder holds best.safetensors, last.safetensors, metrics.csv, report.html."""

SCFEAT_HELP = """Train SCFeat from camera poses: description, then detection; a warm-up first where asked.

Example: `featkit train scfeat --data posed/mine --out runs/mine --budget 2h`

Recipes: scfeat-s (ResNet-18, with a warm-up), scfeat-paper (ResNet-50, from --encoder-weights). Stopped at any moment,
the same command goes on. The run's folder holds best.safetensors, report.html and a folder for each stage."""

Devices = Annotated[
    int | None,
    typer.Option(
        help="Processes on this machine, each with a device of its own.", min=1, show_default="1, or torchrun's"
    ),
]

Precision = Annotated[
    str | None,
    typer.Option(
        help="fp32, bf16, or auto: bf16 where a short measurement says that it is faster.",
        show_default="the recipe's, else auto; of a run that goes on its own",
    ),
]
Budget = Annotated[
    str | None, typer.Option(help="Length as a time: 90s, 30min, 2h.", show_default="the recipe's steps")
]

train_app = typer.Typer(help=TRAIN_HELP, no_args_is_help=True, rich_markup_mode="markdown")


@verb
def patch(
    data: Annotated[
        list[Path],
        typer.Option(
            help="PhotoTour, HPatches or RomePatches folder, or a pack; several are joined.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    config: Annotated[str, typer.Option(help="Recipe by name, or a yaml file.")] = "hynet",
    steps: Annotated[int | None, typer.Option(help="Length in batches.", min=1, show_default="the paper's")] = None,
    budget: Budget = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs (DOAP: patches) in a batch.", min=2, show_default="the recipe's")
    ] = None,
    precision: Precision = None,
    devices: Devices = None,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    if steps is not None and budget is not None:
        raise UsageError("--steps and --budget: give one of them")
    given = options.given(steps=steps, budget=budget, batch_size=batch_size, precision=precision)
    changes = merge({**given, "seed": run.seed}, overrides(settings or []))
    recipe = resolve("task", config, changes).own
    if not isinstance(recipe, PatchTraining):
        raise UsageError(f"--config {config}: not the training of a patch descriptor")
    if recipe.budget:
        seconds_of(recipe.budget)  # refused before anything is read
    world = launch(run.device, devices, recipe.precision, recipe.timeout_s)
    with world.reported_once():
        patches = read_training_patches(data, recipe.data)
        trained = train_patch(recipe, patches, out, world=world, name=config, overwrite=overwrite)
    if not trained.is_first:
        return Outcome(trained.summary, silent=True)
    report = training_report(out)
    lines = [f"weights: {out / 'best.safetensors'}", f"report: {report}"]
    return Outcome(trained.summary, lines, [training_table(trained.summary)])


@verb
def scfeat(
    data: Annotated[
        Path,
        typer.Option(
            help="Posed pairs: MegaDepth in CAPS's layout, with LoFTR's or glue-factory's scene_info or DISK's"
            " dataset.json, or a pack.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    photos: Annotated[
        list[Path] | None,
        typer.Option(help="Photographs for the warm-up: folder or zip; repeatable.", show_default="those of --data"),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            help="features.h5 by a teacher of each --photos, in order (recipe scfeat-s-taught).", show_default=False
        ),
    ] = None,
    scenes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only these scenes of --data: one name a line.", show_default="all"),
    ] = None,
    config: Annotated[str, typer.Option(help="Recipe by name, or a yaml file.")] = "scfeat-s",
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Only warm-up, description or detection; repeatable.", show_default="all of the recipe"),
    ] = None,
    encoder_weights: Annotated[
        Path | None, typer.Option(help="ImageNet checkpoint of the ResNet, .pth or .safetensors.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Batches of description; others in proportion.", min=1, show_default="the recipe's"),
    ] = None,
    budget: Budget = None,
    precision: Precision = None,
    devices: Devices = None,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    if steps is not None and budget is not None:
        raise UsageError("--steps and --budget: give one of them")
    unknown = sorted(set(stage or []) - set(STAGES))
    if unknown:
        raise UsageError(f"--stage {unknown[0]}: there are {', '.join(STAGES)}")
    given = options.given(budget=budget, precision=precision)
    if scenes is not None:
        given["data"] = {"scenes": read_scene_list(scenes)}
    changes = merge({**given, "seed": run.seed}, overrides(settings or []))
    recipe = resolve("task", config, changes).own
    if not isinstance(recipe, ScfeatTraining):
        raise UsageError(f"--config {config}: not a training of SCFeat")
    recipe = recipe if steps is None else recipe.scaled_to(steps)
    ScfeatStages(recipe, run.device).configured()  # a budget too short for a stage is refused before anything is read
    world = launch(run.device, devices, timeout_s=recipe.timeout_s)
    with world.reported_once():
        pairs = read_posed_pairs(data, recipe.data, recipe.seed)
        photographs = tuple(photos or photo_folders(data, pairs))
        learned_from = ScfeatData(data.stem, pairs, photographs, tuple(teacher or ()))
        trained = ScfeatStages(recipe, run.device).run(
            learned_from,
            out,
            name=Path(config).stem,
            encoder_weights=encoder_weights,
            stages=stage or STAGES,
            world=world,
            overwrite=overwrite,
        )
    summaries = {Path(one.folder).name: one.summary for one in trained}
    if not world.is_first:
        return Outcome({"stages": summaries}, silent=True)
    if not trained:
        return Outcome({"stages": summaries})
    report = stages_report(out, STAGES)
    lines = [f"weights: {out / 'best.safetensors'}", f"report: {report}"]
    return Outcome({"stages": summaries}, lines, [training_table(summary) for summary in summaries.values()])


train_app.command("scfeat", help=SCFEAT_HELP, no_args_is_help=True)(scfeat)
train_app.command("patch", help=PATCH_HELP, no_args_is_help=True)(patch)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit inspect informativeness`: what a training's networks would learn from.


INSPECT_HELP = "Inspect what was trained."
INFORMATIVENESS_HELP = """How well the distance within a pair tells what the pair would teach (AdaSample, figure 3).

Example: `featkit inspect informativeness --run runs/adasample --data patches/liberty --out informativeness.html`

For every network in the run's folder: the correlation, over pairs, of matching distance and norm of the gradient."""

inspect_app = typer.Typer(help=INSPECT_HELP, no_args_is_help=True, rich_markup_mode="markdown")


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


inspect_app.command("informativeness", help=INFORMATIVENESS_HELP, no_args_is_help=True)(informativeness)
