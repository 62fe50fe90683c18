"""Which library does the heavy products: faiss when it can be imported, else torch. The results are the same.

faiss and torch are imported inside functions: importing featkit.retrieval must stay cheap.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

from featkit.device import torch_device
from featkit.errors import UsageError

Backend = Literal["auto", "faiss", "torch"]


def choose_backend(backend: Backend, device: str = "auto") -> Literal["faiss", "torch"]:
    """The library to use. "auto" is faiss when importable, except when `device` asks for a GPU (faiss runs on the CPU).

    Raises UsageError when faiss is asked for and not installed, or for a device that is not there.
    """
    installed = importlib.util.find_spec("faiss") is not None
    if backend == "faiss" and not installed:
        raise UsageError("backend 'faiss' is not installed; pip install faiss-cpu, or set backend=torch")
    if backend == "auto":
        backend = "faiss" if installed and not device.startswith("cuda") else "torch"
    if backend == "faiss" and device not in {"auto", "cpu"}:
        torch_device(device)  # faiss needs none, but a wrong name is refused all the same
    return backend
