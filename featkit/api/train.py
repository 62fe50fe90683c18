"""Train a patch descriptor from patches or SCFeat from posed pairs; measure which pairs are informative."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from featkit.api.options import Device, Option, Out, Overwrite, Param, with_options
from featkit.core.config import Config, merged_values
from featkit.core.errors import UsageError
from featkit.core.registry import resolve
from featkit.core.runtime import torch_device
from featkit.data.posed_format import read_scene_list
from featkit.data.posed_pairs import read_posed_pairs
from featkit.data.training_patches import read_training_patches
from featkit.io.atomic import refuse_foreign
from featkit.report.training import informativeness_report, stages_report, training_report
from featkit.training.distributed import launch
from featkit.training.informativeness import InformativenessConfig, along_training, sample_pairs
from featkit.training.patch import train_descriptor
from featkit.training.patch_config import PatchTraining
from featkit.training.scfeat import STAGES, ScfeatData, ScfeatStages
from featkit.training.scfeat_task import ScfeatTraining, photo_folders
from featkit.training.task import seconds_of
from featkit.weights.manifest import find_weights

RECIPE = "the recipe's"
RunFolder = Annotated[Path, Param("--out", "-o", help="Folder of the run.")]
Devices = Annotated[
    int | None,
    Param(help="Number of processes on this machine, one device each.", low=1, unset="1, or torchrun's"),
]


class PatchRecipe(Config):
    """How to train a patch descriptor."""

    config: str = "hynet"
    """Recipe by name, or a yaml file."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Changes to the recipe."""


class ScfeatRecipe(Config):
    """How to train SCFeat."""

    config: str = "scfeat-s"
    """Recipe by name, or a yaml file."""
    steps: int | None = Field(None, ge=1, le=10**9)
    """Training steps of the description stage; other stages in proportion. None: the recipe's."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Changes to the recipe."""


def length_options(of: type[Config]) -> dict[str, Option]:
    """Options shared by all trainings."""
    precision = "fp32, bf16, or auto: bf16 if a short measurement shows that it is faster."
    kept = "the recipe's, else auto; a resumed run keeps its own"
    return {
        "budget": Option("training.budget", of=of, help="Training time: 90s, 30min, 2h.", unset="the recipe's steps"),
        "precision": Option("training.precision", of=of, help=precision, unset=kept),
        "seed": Option("training.seed", of=of),
    }


@dataclass(frozen=True)
class TrainedDescriptor:
    """Result of training a patch descriptor. first: whether this process reports (rank 0)."""

    summary: dict[str, Any]
    out: Path
    report: Path | None
    first: bool


@with_options(
    PatchRecipe,
    "training",
    "recipe",
    config=Option("config"),
    steps=Option("training.steps", of=PatchTraining, unset="the paper's"),
    batch_size=Option("training.batch_size", of=PatchTraining, unset=RECIPE),
    start=Option("training.start", of=PatchTraining, unset="random initialisation"),
    **length_options(PatchTraining),
)
def train_patch(
    *,
    data: Annotated[
        list[Path],
        Param("--data", help="PhotoTour, HPatches or RomePatches folder, or a pack; several are joined.", unset=False),
    ],
    out: RunFolder,
    recipe: PatchRecipe,
    devices: Devices = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> TrainedDescriptor:
    """Train a patch descriptor; a run that was stopped is resumed. Raises featkit's errors."""
    if recipe.training.get("steps") is not None and recipe.training.get("budget"):
        raise UsageError("--steps and --budget: give one of them")
    training = resolve("task", recipe.config, recipe.training).own
    if not isinstance(training, PatchTraining):
        raise UsageError(f"--config {recipe.config}: not a recipe for a patch descriptor")
    if training.budget:
        seconds_of(training.budget)  # refuse an invalid time before reading any data
    world = launch(device, devices, training.precision, training.timeout_s)
    with world.reported_once():
        patches = read_training_patches(data, training.data)
        trained = train_descriptor(training, patches, out, world=world, name=recipe.config, overwrite=overwrite)
    report = training_report(out) if trained.is_first else None
    return TrainedDescriptor(trained.summary, out, report, trained.is_first)


@dataclass(frozen=True)
class TrainedStages:
    """Results of SCFeat's training stages. summaries: by stage. first: whether this process reports (rank 0)."""

    summaries: dict[str, dict[str, Any]]
    out: Path
    report: Path | None
    first: bool


@with_options(
    ScfeatRecipe,
    "training",
    "recipe",
    config=Option("config"),
    steps=Option("steps"),
    start=Option("training.start", of=ScfeatTraining, unset="random initialisation"),
    **length_options(ScfeatTraining),
)
def train_scfeat(
    *,
    data: Annotated[
        Path,
        Param(
            "--data",
            help="Posed pairs: MegaDepth in CAPS's layout, with LoFTR's or glue-factory's scene_info or DISK's"
            " dataset.json, or a pack.",
            unset=False,
        ),
    ],
    out: RunFolder,
    recipe: ScfeatRecipe,
    photos: Annotated[
        list[Path] | None,
        Param(help="Photographs for the warm-up: folder or zip; repeatable.", unset="those of --data"),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        Param(help="A teacher's features.h5 for each --photos, in order (recipe scfeat-s-taught).", unset=False),
    ] = None,
    scenes: Annotated[
        Path | None, Param(metavar="FILE", help="Use only these scenes of --data: one name per line.", unset="all")
    ] = None,
    stage: Annotated[
        list[str] | None,
        Param(help="Run only warm-up, description or detection; repeatable.", unset="all of the recipe"),
    ] = None,
    encoder_weights: Annotated[
        Path | None, Param(help="ImageNet checkpoint of the ResNet, .pth or .safetensors.", unset=False)
    ] = None,
    devices: Devices = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> TrainedStages:
    """Train SCFeat from camera poses; a run that was stopped is resumed. Raises featkit's errors."""
    if recipe.steps is not None and recipe.training.get("budget"):
        raise UsageError("--steps and --budget: give one of them")
    unknown = sorted(set(stage or []) - set(STAGES))
    if unknown:
        raise UsageError(f"--stage {unknown[0]}: there are {', '.join(STAGES)}")
    listed = {} if scenes is None else {"data": {"scenes": read_scene_list(scenes)}}
    training = resolve("task", recipe.config, merged_values(listed, recipe.training)).own
    if not isinstance(training, ScfeatTraining):
        raise UsageError(f"--config {recipe.config}: not a recipe for SCFeat")
    training = training if recipe.steps is None else training.scaled_to(recipe.steps)
    if training.start:
        find_weights(training.start)
    ScfeatStages(training, device).configured()  # refuse a budget too short for a stage before reading any data
    world = launch(device, devices, timeout_s=training.timeout_s)
    with world.reported_once():
        pairs = read_posed_pairs(data, training.data, training.seed)
        photographs = tuple(photos or photo_folders(data, pairs))
        trained = ScfeatStages(training, device).run(
            ScfeatData(data.stem, pairs, photographs, tuple(teacher or ())),
            out,
            name=Path(recipe.config).stem,
            encoder_weights=encoder_weights,
            stages=stage or STAGES,
            world=world,
            overwrite=overwrite,
        )
    summaries = {Path(one.folder).name: one.summary for one in trained}
    report = stages_report(out, STAGES) if world.is_first and trained else None
    return TrainedStages(summaries, out, report, world.is_first)


@with_options(InformativenessConfig, pairs=Option("measured"))
def informativeness(
    *,
    of_run: Annotated[Path, Param("--run", help="Folder of a training.", unset=False)],
    data: Annotated[Path, Param("--data", help="PhotoTour, HPatches or RomePatches folder, or a pack.", unset=False)],
    out: Out,
    config: InformativenessConfig,
    device: Device = "auto",
    seed: int = 0,
) -> tuple[Path, Any]:
    """Correlate the distance within a pair with the norm of its gradient. Returns the report and its numbers."""
    refuse_foreign(out)
    patches = read_training_patches([data])
    sample = sample_pairs(patches, config.pairs, np.random.default_rng(seed))
    along = along_training(of_run, sample, config, torch_device(device))
    return informativeness_report(along, config, of_run, patches.name, out), along
