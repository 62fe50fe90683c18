"""Features trained: a patch descriptor from patches, SCFeat from posed pairs; and what a training learns from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from featkit.api.options import Device, Option, Out, Overwrite, Shown, takes
from featkit.core.config import Config, merge
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
from featkit.training.patch import train_patch as run_patch_training
from featkit.training.patch_config import PatchTraining
from featkit.training.scfeat import STAGES, ScfeatData, ScfeatStages
from featkit.training.scfeat_task import ScfeatTraining, photo_folders
from featkit.training.task import seconds_of

RECIPE = "the recipe's"
RunFolder = Annotated[Path, Shown("--out", "-o", help="Folder of the run.")]
Devices = Annotated[
    int | None,
    Shown(help="Processes on this machine, each with a device of its own.", low=1, unset="1, or torchrun's"),
]


class PatchRecipe(Config):
    """Which training of a patch descriptor."""

    config: str = "hynet"
    """Recipe by name, or a yaml file."""
    training: dict[str, Any] = Field(default_factory=dict)
    """What differs from the recipe."""


class ScfeatRecipe(Config):
    """Which training of SCFeat."""

    config: str = "scfeat-s"
    """Recipe by name, or a yaml file."""
    steps: int | None = Field(None, ge=1, le=10**9)
    """Batches of description; others in proportion. None: the recipe's."""
    training: dict[str, Any] = Field(default_factory=dict)
    """What differs from the recipe."""


def length_options(of: type[Config]) -> dict[str, Option]:
    """The options of every training."""
    precision = "fp32, bf16, or auto: bf16 where a short measurement says that it is faster."
    kept = "the recipe's, else auto; of a run that goes on its own"
    return {
        "budget": Option(
            "training.budget", of=of, help="Length as a time: 90s, 30min, 2h.", unset="the recipe's steps"
        ),
        "precision": Option("training.precision", of=of, help=precision, unset=kept),
        "seed": Option("training.seed", of=of),
    }


@dataclass(frozen=True)
class Trained:
    """What a training of patches came to. first: whether this process is the one that reports."""

    summary: dict[str, Any]
    out: Path
    report: Path | None
    first: bool


@takes(
    PatchRecipe,
    "training",
    "recipe",
    config=Option("config"),
    steps=Option("training.steps", of=PatchTraining, unset="the paper's"),
    batch_size=Option("training.batch_size", of=PatchTraining, unset=RECIPE),
    start=Option("training.start", of=PatchTraining, unset="random numbers"),
    **length_options(PatchTraining),
)
def train_patch(
    *,
    data: Annotated[
        list[Path],
        Shown("--data", help="PhotoTour, HPatches or RomePatches folder, or a pack; several are joined.", unset=False),
    ],
    out: RunFolder,
    recipe: PatchRecipe,
    devices: Devices = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> Trained:
    """Train a patch descriptor; a run that was stopped goes on. Raises featkit's errors."""
    if recipe.training.get("steps") is not None and recipe.training.get("budget"):
        raise UsageError("--steps and --budget: give one of them")
    training = resolve("task", recipe.config, recipe.training).own
    if not isinstance(training, PatchTraining):
        raise UsageError(f"--config {recipe.config}: not the training of a patch descriptor")
    if training.budget:
        seconds_of(training.budget)  # refused before anything is read
    world = launch(device, devices, training.precision, training.timeout_s)
    with world.reported_once():
        patches = read_training_patches(data, training.data)
        trained = run_patch_training(training, patches, out, world=world, name=recipe.config, overwrite=overwrite)
    report = training_report(out) if trained.is_first else None
    return Trained(trained.summary, out, report, trained.is_first)


@dataclass(frozen=True)
class TrainedStages:
    """What the stages of SCFeat came to, by name. first: whether this process is the one that reports."""

    summaries: dict[str, dict[str, Any]]
    out: Path
    report: Path | None
    first: bool


@takes(
    ScfeatRecipe,
    "training",
    "recipe",
    config=Option("config"),
    steps=Option("steps"),
    **length_options(ScfeatTraining),
)
def train_scfeat(
    *,
    data: Annotated[
        Path,
        Shown(
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
        Shown(help="Photographs for the warm-up: folder or zip; repeatable.", unset="those of --data"),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        Shown(help="features.h5 by a teacher of each --photos, in order (recipe scfeat-s-taught).", unset=False),
    ] = None,
    scenes: Annotated[
        Path | None, Shown(metavar="FILE", help="Only these scenes of --data: one name a line.", unset="all")
    ] = None,
    stage: Annotated[
        list[str] | None,
        Shown(help="Only warm-up, description or detection; repeatable.", unset="all of the recipe"),
    ] = None,
    encoder_weights: Annotated[
        Path | None, Shown(help="ImageNet checkpoint of the ResNet, .pth or .safetensors.", unset=False)
    ] = None,
    devices: Devices = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> TrainedStages:
    """Train SCFeat from camera poses; a run that was stopped goes on. Raises featkit's errors."""
    if recipe.steps is not None and recipe.training.get("budget"):
        raise UsageError("--steps and --budget: give one of them")
    unknown = sorted(set(stage or []) - set(STAGES))
    if unknown:
        raise UsageError(f"--stage {unknown[0]}: there are {', '.join(STAGES)}")
    listed = {} if scenes is None else {"data": {"scenes": read_scene_list(scenes)}}
    training = resolve("task", recipe.config, merge(listed, recipe.training)).own
    if not isinstance(training, ScfeatTraining):
        raise UsageError(f"--config {recipe.config}: not a training of SCFeat")
    training = training if recipe.steps is None else training.scaled_to(recipe.steps)
    ScfeatStages(training, device).configured()  # a budget too short for a stage is refused before anything is read
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


@takes(InformativenessConfig, pairs=Option("measured"))
def informativeness(
    *,
    of_run: Annotated[Path, Shown("--run", help="Folder of a training.", unset=False)],
    data: Annotated[Path, Shown("--data", help="PhotoTour, HPatches or RomePatches folder, or a pack.", unset=False)],
    out: Out,
    config: InformativenessConfig,
    device: Device = "auto",
    seed: int = 0,
) -> tuple[Path, Any]:
    """How well the distance within a pair tells what the pair would teach. Returns the report and its numbers."""
    refuse_foreign(out)
    patches = read_training_patches([data])
    sample = sample_pairs(patches, config.pairs, np.random.default_rng(seed))
    along = along_training(of_run, sample, config, torch_device(device))
    return informativeness_report(along, config, of_run, patches.name, out), along
