"""`--device auto|cpu|cuda` as a torch device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featkit.errors import UsageError

if TYPE_CHECKING:
    import torch


def torch_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU when there is one. Raises UsageError when it is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: choose auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
    return device
