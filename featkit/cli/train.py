"""`featkit train`: patches -> a patch descriptor; posed pairs of images -> SCFeat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb

if TYPE_CHECKING:
    from featkit.data.patch_set import PatchSet

HELP = "Train features."
PATCH_HELP = """Train a patch descriptor: hardnet, hynet, sdgmnet, adasample, doap or doap-binary.

Example: `featkit train patch --config hynet --data patches/liberty --out runs/hynet --budget 30min`

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

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown")


@verb
def patch(
    data: Annotated[
        list[Path], typer.Option(help="PhotoTour folder or packed patches; several are joined.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    config: Annotated[str, typer.Option(help="Recipe by name, or a yaml file.")] = "hynet",
    steps: Annotated[int | None, typer.Option(help="Length in batches.", min=1, show_default="the paper's")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Length as a time: 90s, 30min, 2h.", show_default="the paper's steps")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pairs (DOAP: patches) in a batch.", min=2, show_default="the recipe's")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.", show_default="the recipe's")] = None,
    devices: Devices = None,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import merge, overrides
    from featkit.data.patch_set import union
    from featkit.errors import UsageError
    from featkit.registry import configured
    from featkit.report.training import training_report, training_table
    from featkit.training.launch import launch
    from featkit.training.patch_config import PatchTraining
    from featkit.training.train_patch import train_patch

    if steps is not None and budget is not None:
        raise UsageError("--steps and --budget: give one of them")
    given = options.given(steps=steps, budget=budget, batch_size=batch_size, precision=precision)
    changes = merge({**given, "seed": run.seed}, overrides(settings or []))
    _, recipe = configured("task", config, changes)
    if not isinstance(recipe, PatchTraining):
        raise UsageError(f"--config {config}: not the training of a patch descriptor")
    world = launch(run.device, devices, recipe.precision, recipe.timeout_s)
    with world.one_voice():
        sets = [_read(path) for path in data]
        patches = sets[0] if len(sets) == 1 else union(sets, "+".join(one.name for one in sets))
        trained = train_patch(
            recipe, patches, out, name=config, device=run.device, devices=devices, overwrite=overwrite
        )
    if not trained.is_first:
        return Outcome(trained.summary, silent=True)
    report = training_report(out)
    lines = [f"weights: {out / 'best.safetensors'}", f"report: {report}"]
    return Outcome(trained.summary, lines, [training_table(trained.summary)])


@verb
def scfeat(
    data: Annotated[Path, typer.Option(help="Posed pairs: MegaDepth in CAPS's layout, or a pack.", show_default=False)],
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
    budget: Annotated[
        str | None, typer.Option(help="Length as a time: 90s, 30min, 2h.", show_default="the recipe's steps")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.", show_default="the recipe's")] = None,
    devices: Devices = None,
    settings: options.Settings = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.config import merge, overrides
    from featkit.data.posed_pairs import read_posed_pairs
    from featkit.errors import UsageError
    from featkit.registry import configured
    from featkit.report.training import stages_report, training_table
    from featkit.training.launch import launch
    from featkit.training.scfeat.config import ScfeatTraining
    from featkit.training.scfeat.stages import STAGES, ScfeatData, ScfeatStages

    if steps is not None and budget is not None:
        raise UsageError("--steps and --budget: give one of them")
    unknown = sorted(set(stage or []) - set(STAGES))
    if unknown:
        raise UsageError(f"--stage {unknown[0]}: there are {', '.join(STAGES)}")
    given = options.given(budget=budget, precision=precision)
    changes = merge({**given, "seed": run.seed}, overrides(settings or []))
    _, recipe = configured("task", config, changes)
    if not isinstance(recipe, ScfeatTraining):
        raise UsageError(f"--config {config}: not a training of SCFeat")
    recipe = recipe if steps is None else recipe.scaled_to(steps)
    world = launch(run.device, devices, timeout_s=recipe.timeout_s)
    with world.one_voice():
        learned_from = ScfeatData(
            data.stem,
            read_posed_pairs(data, recipe.data, recipe.seed),
            tuple(photos or [data]),
            tuple(teacher or ()),
        )
        trained = ScfeatStages(recipe, run.device).run(
            learned_from,
            out,
            name=Path(config).stem,
            encoder_weights=encoder_weights,
            stages=stage or STAGES,
            devices=devices,
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


def _read(path: Path) -> PatchSet:
    if path.is_dir():
        from featkit.data.phototour import read_phototour

        return read_phototour(path)
    from featkit.data.patch_pack import read_patch_data

    return read_patch_data(path)


app.command("scfeat", help=SCFEAT_HELP, no_args_is_help=True)(scfeat)
app.command("patch", help=PATCH_HELP, no_args_is_help=True)(patch)
