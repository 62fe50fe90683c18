"""One file that holds everything a training needs to go on: written whole or not at all, read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featkit.errors import BadInputError, NotWritableError
from featkit.store.artifact import writing

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state (tensors, arrays, plain values) to disk, then move it to its place. Raises NotWritableError."""
    try:
        with writing(path, owned=True, sync=True) as file:  # another program's was refused when the run began
            torch.save(plain({"format": FORMAT, **state}), file)
    except (NotWritableError, RuntimeError) as error:  # torch says RuntimeError when the disk is full
        reason = str(error).splitlines()[0].removeprefix(f"{path}: ")
        raise NotWritableError(f"{path}: the checkpoint cannot be written ({reason}); the last one stays") from None


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state, on the CPU; None when there is no file. Raises BadInputError for anything but featkit's own."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInputError(
            f"{path}: not a checkpoint of featkit ({what[:120]}); start anew with --overwrite"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise BadInputError(f"{path}: not a checkpoint of this featkit; start anew with --overwrite")
    return state


def plain(value: Any) -> Any:
    """The value with numpy arrays as tensors and numpy scalars as Python's: what a safe reader takes."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    return value
