"""The learning rate as a function of the share of the training that is done, so that any budget keeps its shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from featkit.config import Config


class Constant(Config):
    """The learning rate stays (HyNet's code)."""

    kind: Literal["constant"] = "constant"

    def factor(self, share: float) -> float:
        return 1.0


class Linear(Config):
    """Falls linearly to zero (HardNet's code; DOAP, appendix D)."""

    kind: Literal["linear"] = "linear"

    def factor(self, share: float) -> float:
        return 1.0 - share


class Halve(Config):
    """Halved each time a share of the training is over (SDGMNet, sec. IV: every 10 %)."""

    kind: Literal["halve"] = "halve"
    every: float = Field(0.1, gt=0, le=1)
    """Share of the training between two halvings."""

    def factor(self, share: float) -> float:
        return 0.5 ** int(share / self.every + 1e-9)


class Steps(Config):
    """Multiplied by a factor at given shares of the training (AdaSample: 0.1 at epochs 30, 60 and 80 of 90)."""

    kind: Literal["steps"] = "steps"
    at: tuple[float, ...] = (30 / 90, 60 / 90, 80 / 90)
    """Shares of the training."""
    gamma: float = Field(0.1, gt=0)
    """Factor at each of them."""

    def factor(self, share: float) -> float:
        return self.gamma ** sum(share >= place - 1e-9 for place in self.at)


Schedule = Annotated[Constant | Linear | Halve | Steps, Field(discriminator="kind")]
