"""What a matched pair of keypoints earns in SCFeat's detection training.

    r(x_i, y_j) = (1 - tanh L_fme) P_m(x_i, y_j) - tanh(L_fme) (-P_m(x_i, y_j))                              (eq. 20)

Read literally the last factor is minus P_m: bad pairs earn nothing and good ones always exactly 1, L_fme cancels. So
-P_m is read as "not P_m", as the authors' code has it:

    good pair (P_m true):    1 - tanh L_fme        the better the matches determine F, the nearer to 1
    bad pair  (P_m false):     - tanh L_fme        the worse they do, the more a bad pair costs

That is r = P_m - tanh L_fme: the error is a baseline, the reward that a pair must exceed to be encouraged. L_fme:
fundamental_error.py, the same for all pairs of keypoints of two images. Where it is not defined, or without the error
factor (the paper's ablation), the constants `good` and `bad`: PoSFeat's +1 and -0.25.

Where L_fme is next to 0 (about 1e-5 with the pairs and the scale of algorithm 1) this is the reward 1 or 0 and no
regulariser, which `error_factor: false, good: 1, bad: 0` with a regulariser of 0 gives exactly: that is the control of
benchmarks/scfeat_ablation.py, beside which an effect of the factor has to show. "Without the error factor" alone
changes two more things, -0.25 for bad pairs and a regulariser of -0.001.

Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (2).
Shapes: P_m (b, n, m), L_fme (b,) -> (b, n, m). No gradients.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from featkit.config import Config
from featkit.losses.scfeat.fundamental_error import FundamentalError


class RewardConfig(Config):
    error_factor: bool = True
    """Whether rewards depend on L_fme (paper); without it they are PoSFeat's."""
    good: float = 1.0
    """Reward of a good pair without L_fme (PoSFeat's code, from DISK)."""
    bad: float = -0.25
    """Reward of a bad pair without L_fme (PoSFeat's code, from DISK)."""
    regulariser: Literal["tanh", "error"] = "tanh"
    """What stands for L_fme in eq. 21's regulariser. tanh: tanh L_fme (authors' code), so that it never exceeds
    PoSFeat's. error: L_fme (paper), without a bound where errors are pixels over a tolerance."""


@torch.no_grad()
def rewards(good: Bool[Tensor, "b n m"], error: FundamentalError, config: RewardConfig) -> Float[Tensor, "b n m"]:
    """r above for every pair of keypoints."""
    factor = error.value.tanh()
    known = error.defined if config.error_factor else torch.zeros_like(error.defined)
    of_good = torch.where(known, 1 - factor, config.good)[:, None, None]
    of_bad = torch.where(known, -factor, config.bad)[:, None, None]
    return torch.where(good, of_good, of_bad)


def regulariser_factor(error: FundamentalError, config: RewardConfig) -> Float[Tensor, " b"]:
    """What eq. 21 multiplies its regulariser with: tanh L_fme or L_fme, or 1 without it (PoSFeat)."""
    known = error.defined if config.error_factor else torch.zeros_like(error.defined)
    return torch.where(known, error.value.tanh() if config.regulariser == "tanh" else error.value, 1.0)
