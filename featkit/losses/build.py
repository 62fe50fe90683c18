"""Configurations of losses by name, and the losses they stand for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from featkit.losses.angular_triplet import AngularTripletConfig, AngularTripletLoss
from featkit.losses.average_precision import AveragePrecisionConfig, AveragePrecisionLoss
from featkit.losses.base import PatchLoss
from featkit.losses.hardnet import HardNetLoss, HardNetLossConfig
from featkit.losses.hynet import HyNetLoss, HyNetLossConfig
from featkit.losses.sdgm import SdgmLoss, SdgmLossConfig

LossConfig = Annotated[
    HardNetLossConfig | HyNetLossConfig | SdgmLossConfig | AngularTripletConfig | AveragePrecisionConfig,
    Field(discriminator="name"),
]
LOSSES: dict[str, type[PatchLoss]] = {
    "hardnet": HardNetLoss,
    "hynet": HyNetLoss,
    "sdgm": SdgmLoss,
    "angular_triplet": AngularTripletLoss,
    "average_precision": AveragePrecisionLoss,
}


def build_loss(config: LossConfig) -> PatchLoss:
    """The loss of a configuration; its running statistics are at their start."""
    return LOSSES[config.name](config)


def scaled_to_budget(config: LossConfig, steps: int, pairs: int) -> LossConfig:
    """The configuration for a training of `steps` batches of `pairs` pairs: what a loss remembers shrinks with it.

    Only SDGMNet's statistics scale: see `SdgmLossConfig.scaled_to`.
    """
    return config.scaled_to(steps, pairs) if isinstance(config, SdgmLossConfig) else config
