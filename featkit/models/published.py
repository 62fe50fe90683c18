"""Networks that others published, as kornia has them: built without its downloads, filled with checked tensors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featkit.errors import UsageError
from featkit.weights.catalogue import PublishedWeights
from featkit.weights.tensor_files import fill

if TYPE_CHECKING:
    from torch import nn

CONSTANTS = ("dkd.hw_grid",)
"""Buffers of kornia's that a file need not have: they do not depend on training."""


def kornia_feature(*names: str) -> Any:
    """kornia's module of local features. Raises UsageError when it is missing, or too old for one of `names`."""
    try:
        module = importlib.import_module("kornia.feature")
    except ImportError as error:
        raise UsageError(f"published networks run on kornia ({error}); pip install 'featkit[published]'") from None
    if lacking := [name for name in names if not hasattr(module, name)]:
        raise UsageError(
            f"this kornia has no {lacking[0]}; it takes kornia 0.9 and Python 3.11: pip install 'featkit[published]'"
        )
    return module


def filled_network(build: Callable[[], nn.Module], weights: PublishedWeights, what: str) -> nn.Module:
    """A network in eval mode with all its tensors from a file, and no other ones. what: its name, for messages.

    Raises BadInputError for missing, unknown, misshapen or broken tensors.
    """
    import torch

    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then thrown away
        network = build()
    own = network.state_dict()
    constants = {name: own[name] for name in CONSTANTS if name in own}
    fill(network, constants | weights.tensors, weights.path, what)
    return network.eval().requires_grad_(False)
