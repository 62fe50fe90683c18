"""Registry of losses and their configurations by name."""

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
    """Build the loss of a configuration, with initial running statistics."""
    return LOSSES[config.name](config)


def scaled_to_budget(config: LossConfig, steps: int, pairs: int) -> LossConfig:
    """The configuration with its running statistics scaled to a training of `steps` batches of `pairs` pairs.

    Only SDGMNet's statistics scale: see `SdgmLossConfig.scaled_to`.
    """
    return config.scaled_to(steps, pairs) if isinstance(config, SdgmLossConfig) else config
