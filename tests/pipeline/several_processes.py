"""Program that each process of test_torchrun.py runs: `torchrun several_processes.py FOLDER`.

All trainings happen in one world, since starting processes takes most of the time. The same functions are run by the
test itself, in one process.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from featkit.core.config import make, merged_values
from featkit.core.registry import resolve
from featkit.core.runtime import Stopped
from featkit.data.patch_set import PatchSet
from featkit.data.phototour import read_phototour
from featkit.data.posed_pairs import read_posed_pairs
from featkit.models.scfeat import DenseMaps
from featkit.training.patch import PatchTask, train_descriptor
from featkit.training.patch_config import PatchTraining
from featkit.training.scfeat import ScfeatData, ScfeatStages
from featkit.training.scfeat_stages import DetectionTask
from featkit.training.scfeat_task import DenseTask, ScfeatTraining

STEPS, STOP_AT = 20, 9
PLAIN = {"kind": "sgd", "learning_rate": 1e-5, "momentum": 0.9, "reference_batch": None}
# By plain gradients and slowly: a hardest negative of an untrained network is often one of two that differ by rounding,
# and Adam makes whole steps of gradients that are rounding alone.
PATCH: dict[str, Any] = {
    "batch_size": 8,
    "steps": STEPS,
    "log_every": 1,
    "held_out": {"every": 0.5, "pairs": 10},
    "optimiser": PLAIN,
}
CANVAS = {"canvas": {"width": 64, "height": 64}}
STAGE: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 2,
    "log_every": 1,
    "held_out": {"every": 1.0, "pairs": 1},
    "pictures": 0,
    "workers": 0,
    "augmentation": CANVAS,
    "optimiser": PLAIN,
}
WIDTHS = ("detector_feature_channels", "detector_image_channels", "detector_merged_channels", "side_channels")
SCFEAT: dict[str, Any] = {
    "network": {
        "encoder": "resnet18",
        "decoder_channels": (8, 8),
        "descriptor_channels": 16,
        "norm_groups": 2,
        **dict.fromkeys(WIDTHS, 4),
    },
    "warm_up": merged_values(STAGE, {"steps": 6}),
    "description": STAGE,
    "detection": merged_values(STAGE, {"steps": 10, "optimiser": {"learning_rate": 1e-3}}),
}


def patch_recipe(name: str, **changes: Any) -> PatchTraining:
    config = resolve("task", name, merged_values(PATCH, changes)).own
    assert isinstance(config, PatchTraining)
    return config


def train(name: str, data: PatchSet, output: Path, **changes: Any) -> None:
    train_descriptor(patch_recipe(name, **changes), data, output, name=name, device="cpu")


def train_and_stop(name: str, data: PatchSet, output: Path) -> None:
    """Like `train`, but the first process receives a stop signal during training."""
    plain = PatchTask.step

    def step_and_stop(task: PatchTask, share: float) -> Any:
        if task.world.is_first and share == STOP_AT / STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(task, share)

    PatchTask.step = step_and_stop  # type: ignore[method-assign]
    try:
        train(name, data, output)
    except (Stopped, SystemExit):
        pass
    else:
        raise AssertionError("it was not stopped")
    finally:
        PatchTask.step = plain  # type: ignore[method-assign]


class InFloat64:
    """Context in which SCFeat's network and losses compute in float64.

    In float32 a difference of 1e-7 in the start of one process grows to 1e-2 of a loss within 15 steps: line searches,
    and weights that are one over a deviation, enlarge what rounding makes of two sums instead of one.
    """

    def __enter__(self) -> None:
        self._plain = (DenseTask.__init__, DenseTask.images, DenseTask.describe, DetectionTask._score_maps)
        plain_init = DenseTask.__init__

        def init(task: DenseTask[Any], *arguments: Any) -> None:
            plain_init(task, *arguments)
            task.network.double()

        def scores(task: DetectionTask, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
            images = task.images(torch.cat([batch.images0, batch.images1]))
            with torch.no_grad():
                maps = task.describe(images)
            return task.network.detect(images, maps), maps.normalised

        replaced: Any = (init, lambda _, pixels: pixels.permute(0, 3, 1, 2).double() / 255, described, scores)
        self._set(*replaced)

    def __exit__(self, *_: object) -> None:
        self._set(*self._plain)

    def _set(self, init: Any, images: Any, describe: Any, scores: Any) -> None:
        DenseTask.__init__, DenseTask.images, DenseTask.describe = init, images, describe  # type: ignore[method-assign]
        DetectionTask._score_maps = scores  # type: ignore[method-assign]


def described(task: DenseTask[Any], images: torch.Tensor) -> DenseMaps:
    return task.network.describe(images)


def train_scfeat(posed: Path, output: Path) -> None:
    data = ScfeatData("made", read_posed_pairs(posed), (posed,))
    with InFloat64():
        ScfeatStages(make(ScfeatTraining, SCFEAT), "cpu").run(data, output, name="tiny")


def write_connected(folder: Path) -> None:
    """Whether this process has connections to the others, once featkit has left them at the end."""
    (folder / f"connected-{os.environ['RANK']}").write_text(str(torch.distributed.is_initialized()))


def main(folder: Path) -> None:
    atexit.register(write_connected, folder)  # called after what is registered later
    data = read_phototour(folder / "patches")
    train("hynet", data, folder / "two" / "hynet")
    train("hardnet", data, folder / "two" / "hardnet")
    train_scfeat(folder / "posed", folder / "two" / "scfeat")
    train("hynet", data, folder / "one-then-two")  # the test has stopped it in one process
    train_and_stop("hynet", data, folder / "two-then-one")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
