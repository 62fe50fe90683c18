"""Which library does the heavy products: faiss when it can be imported, else torch. The results are the same.

faiss and torch are imported inside functions: importing featkit.retrieval must stay cheap.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

from featkit.errors import UsageError

Backend = Literal["auto", "faiss", "torch"]


def choose_backend(backend: Backend, device: str = "auto") -> Literal["faiss", "torch"]:
    """The library to use. "auto" is faiss when importable, except when `device` asks for a GPU (faiss runs on the CPU).

    Raises UsageError when faiss is asked for and not installed.
    """
    installed = importlib.util.find_spec("faiss") is not None
    if backend == "faiss" and not installed:
        raise UsageError("backend 'faiss' is not installed; pip install faiss-cpu, or set backend=torch")
    if backend == "auto":
        return "faiss" if installed and not device.startswith("cuda") else "torch"
    return backend


def torch_device(device: str) -> str:
    """The device the torch backend runs on; "auto" is the first GPU when there is one. Raises UsageError."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device!r}: torch sees no GPU here; use cpu or auto")
    return device
