"""`featkit train scfeat`: runs the stages in order, each in its own resumable run folder."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featkit.core.errors import UsageError
from featkit.data.posed_pairs import PosedPairs
from featkit.io.artifact import write_bytes, write_text
from featkit.io.atomic import refuse_foreign
from featkit.models.resnet import load_encoder_weights
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.training.distributed import World, launch
from featkit.training.loop import Trained, train
from featkit.training.run_folder import load_checkpoint
from featkit.training.scfeat_stages import DescriptionTask, DetectionTask, WarmUpTask
from featkit.training.scfeat_task import (
    DenseTask,
    PhotoData,
    PosedData,
    PosedTraining,
    ScfeatTraining,
    StageTraining,
    Start,
    scene_of,
)
from featkit.training.task import LEAST_S, seconds_of
from featkit.weights.files import check_size, learned_scenes, load_scfeat_network

LOGGER = logging.getLogger(__name__)
WARM_UP, DESCRIPTION, DETECTION = STAGES = ("warm-up", "description", "detection")
TASKS: dict[str, type[DenseTask[Any]]] = {WARM_UP: WarmUpTask, DESCRIPTION: DescriptionTask, DETECTION: DetectionTask}
BEST, LAST, SUMMARY = "best.safetensors", "last.safetensors", "summary.json"
NAMED = 5  # maximum photograph sources whose names are joined in the records; beyond it the data's name is used
HEAD_FIELDS = tuple(name for name in SCFeatNetworkConfig.model_fields if name.startswith(("head", "detector_")))


@dataclass(frozen=True)
class ScfeatData:
    """Training data. photos: for the warm-up, folders or zips of photographs."""

    name: str
    pairs: PosedPairs
    photos: tuple[Path, ...] = ()
    teacher_files: tuple[Path, ...] = ()
    """Teacher features for each of `photos`, for a warm-up with a teacher."""


class ScfeatStages:
    """SCFeat's training: built from its configuration, run on data."""

    Config = ScfeatTraining

    def __init__(self, config: ScfeatTraining, device: str = "auto"):
        self.config, self.device = config, device

    def configured(self) -> dict[str, StageTraining]:
        """The complete configurations of the stages by name, in order.

        Raises UsageError if a stage's share of the budget is zero or too short.
        """
        config = self.config
        optional_stages = {WARM_UP: config.warm_up, DESCRIPTION: config.description, DETECTION: config.detection}
        stages = {name: stage for name, stage in optional_stages.items() if stage is not None}
        shares = sum(stage.share for stage in stages.values())
        if config.budget and not all(stage.share > 0 for stage in stages.values()):
            raise UsageError("--budget: every stage needs a `share` of it above 0")
        complete: dict[str, StageTraining] = {}
        for name, stage in stages.items():
            overrides: dict[str, Any] = {"network": config.network, "seed": config.seed, "timeout_s": config.timeout_s}
            if isinstance(stage, PosedTraining):
                overrides["data"] = config.data
            if config.budget:
                seconds = seconds_of(config.budget) * stage.share / shares
                if seconds < LEAST_S:
                    raise UsageError(
                        f"--budget {config.budget!r}: too short: {name} gets {seconds:.3g} s of it; {LEAST_S:g} s at"
                        f" least, so {LEAST_S * shares / stage.share:.0f} s for all stages"
                    )
                overrides["budget"] = f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.2f}s"
            if config.precision is not None:
                overrides["precision"] = config.precision
            complete[name] = stage.model_copy(update=overrides)
        return complete

    def run(
        self,
        data: ScfeatData,
        output: Path,
        *,
        name: str = "",
        encoder_weights: Path | None = None,
        stages: Sequence[str] = STAGES,
        world: World | None = None,
        overwrite: bool = False,
    ) -> list[Trained]:
        """Train the named stages in order, each in OUT/<stage>, starting from the best network of the previous stage.

        The first one starts from the configuration's `start`, else from encoder_weights (a ResNet checkpoint), else at
        random; with `start`, earlier stages are not needed.

        world: None for the processes started by torchrun, or this one, on this object's device. The last stage's
        networks are copied to OUT/best.safetensors and OUT/last.safetensors. Raises UsageError if a required earlier
        stage is missing, and the errors of `train`.
        """
        results = []
        world = world or launch(self.device, timeout_s=self.config.timeout_s)
        if world.is_first:
            refuse_foreign(*(output / name for name in (BEST, LAST, SUMMARY, "report.html")))
        start, network = world.from_first(lambda: self.initial_weights(encoder_weights))
        self.config = self.config.model_copy(update={"network": network})
        for stage, config in self.configured().items():
            initial, folder = start, output / stage
            if stage in stages:
                stage_data = self._stage_data(stage, data, initial)
                LOGGER.info("%s: %d %s, starts from %s", stage, stage_data.count, TASKS[stage].unit, initial.origin)
                results.append(train(TASKS[stage], config, stage_data, folder, world, name=name, overwrite=overwrite))
            result = world.from_first(functools.partial(self._read_stage_result, folder))
            if result is not None:
                start = result
            elif (
                not self.config.start
                and stage not in stages
                and any(later in stages for later in STAGES[STAGES.index(stage) + 1 :])
            ):
                raise UsageError(
                    f"{folder}: the stage {stage} comes first and is not there; run it, or all (no --stage)"
                )
        if results and results[-1].is_first:
            _write_final_output(results, output)
        return results

    def initial_weights(self, encoder_weights: Path | None) -> tuple[Start, SCFeatNetworkConfig]:
        """The first stage's initial weights, and the network they belong to.

        Raises UsageError for an unknown name and for two kinds of weights, BadInputError for an unusable file.
        """
        if not self.config.start:
            return self._encoder_start(encoder_weights), self.config.network
        if encoder_weights is not None:
            raise UsageError("--start and --encoder-weights: give one of them; --start has an encoder")
        network = load_scfeat_network(self.config.start)
        scenes = tuple(sorted(learned_scenes(self.config.start)))
        return Start(dict(network.state_dict()), Path(self.config.start).name, scenes), network.config

    def _encoder_start(self, path: Path | None) -> Start:
        if path is None:
            return Start()
        network = SCFeatNetwork(self.config.network)
        load_encoder_weights(network, path)
        prefix = "backbone.encoder."
        values = {key: value for key, value in network.state_dict().items() if key.startswith(prefix)}
        return Start(values, path.name)

    def _read_stage_result(self, folder: Path) -> Start | None:
        return self.start_from(folder) if (folder / BEST).is_file() else None

    def start_from(self, folder: Path) -> Start:
        """The best backbone and bridge of a stage, from its checkpoint, or rounded from its weights file without one.

        The detector is included only if the run starts with one, or a teacher trains it in the warm-up; otherwise only
        the last stage trains it.
        Raises BadInputError for a network of another size.
        """
        network = load_scfeat_network(folder / BEST)
        other_head = {name: getattr(network.config, name) for name in HEAD_FIELDS}
        check_size(network.config, self.config.network.model_copy(update=other_head), folder / BEST)
        state = load_checkpoint(folder / "checkpoint.pt")
        values = network.state_dict() if state is None else state["progress"]["best_network"]
        warm_up = self.config.warm_up
        detector_is_taught = warm_up is not None and warm_up.teacher is not None and warm_up.teacher.score > 0
        same_head = all(getattr(self.config.network, name) == value for name, value in other_head.items())
        with_detector = (detector_is_taught or bool(self.config.start)) and same_head
        learned = {
            key: value.clone() for key, value in values.items() if with_detector or not key.startswith("detector.")
        }
        return Start(learned, folder.name, tuple(sorted(learned_scenes(folder / BEST))))

    def _stage_data(self, stage: str, data: ScfeatData, start: Start) -> PhotoData | PosedData:
        if stage != WARM_UP:
            if not start.values:
                LOGGER.warning(
                    "%s: the %s encoder starts from random weights; give --encoder-weights FILE (ImageNet), or a"
                    " warm_up stage, as in the recipe scfeat-s",
                    stage,
                    self.config.network.encoder,
                )
            return PosedData(data.name, data.pairs, start)
        if not data.photos:
            raise UsageError("the warm-up learns from photographs: give --photos, or leave it out: --set warm_up=null")
        taught = self.config.warm_up is not None and self.config.warm_up.teacher is not None
        if taught and not data.teacher_files:
            raise UsageError(
                "the warm-up has a teacher: give its features of the photographs by --teacher FILE, as"
                " `featkit extract PHOTOS --features aliked-n16rot --out FILE` writes them"
            )
        if data.teacher_files and not taught:
            raise UsageError(
                "--teacher: this recipe has none; take --config scfeat-s-taught, or --set warm_up.teacher={}"
            )
        named = dict.fromkeys(scene_of(path) for path in data.photos)
        name = "+".join(named) if len(named) <= NAMED else data.name
        return PhotoData(name, data.photos, start, data.teacher_files)


def _write_final_output(results: list[Trained], output: Path) -> None:
    """Write the last stage's networks and a summary of all stages to the run's folder."""
    last = results[-1].folder
    for weights in (BEST, LAST):
        write_bytes(output / weights, (last / weights).read_bytes())
    summaries = [path for stage in STAGES if (path := output / stage / "summary.json").is_file()]
    stages = [json.loads(path.read_text(encoding="utf-8")) for path in summaries]
    summary = {**stages[-1], "seconds": round(sum(stage["seconds"] for stage in stages), 1), "stages": stages}
    write_text(output / SUMMARY, json.dumps(summary, indent=1) + "\n")
