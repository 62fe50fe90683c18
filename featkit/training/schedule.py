"""The learning rate as a function of the share of the training that is done, so that any budget keeps its shape."""

from __future__ import annotations

import math
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


class Cosine(Config):
    """Rises linearly, then falls along half a cosine (Loshchilov and Hutter: SGDR, 2017, eq. 5, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    rise: float = Field(0.01, ge=0, lt=1)
    """Share of the training in which the rate rises from 0."""
    end: float = Field(0.01, ge=0, le=1)
    """Factor at the end."""

    def factor(self, share: float) -> float:
        if share < self.rise:
            return share / self.rise
        done = (share - self.rise) / (1 - self.rise)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2


Schedule = Annotated[Constant | Linear | Halve | Steps | Cosine, Field(discriminator="kind")]
