"""Optimisers as configurations name them."""

from __future__ import annotations

from typing import Any

import torch

from featkit.training.base_config import Adam, Sgd


def build_optimiser(config: Sgd | Adam, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser of parameter groups that carry their learning rates as `lr`."""
    for group in groups:
        group["full_lr"] = group["lr"]  # what the schedule's factor is applied to
    if isinstance(config, Sgd):
        return torch.optim.SGD(
            groups, momentum=config.momentum, dampening=config.dampening, weight_decay=config.weight_decay
        )
    return torch.optim.Adam(groups, weight_decay=config.weight_decay)


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Every group learns at `factor` times its full rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_lr"] * factor
