"""`featkit train patch`: patches -> a patch descriptor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featkit.data.patch_set import PatchSet
from featkit.training.patch_config import PatchTraining
from featkit.training.patch_task import PatchTask
from featkit.training.train import Trained, train


def train_patch(config: PatchTraining, data: PatchSet, output: Path, **options: Any) -> Trained:
    """Train a patch descriptor. options and errors: those of `train`."""
    return train(PatchTask, config, data, output, **options)
