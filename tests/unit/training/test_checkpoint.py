"""Checkpoints: whole or not at all, and read without running anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from featkit.core.errors import BadInputError, NotWritableError
from featkit.training.run_folder import load_checkpoint, save_checkpoint


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoint.pt"
    assert load_checkpoint(path) is None
    state = {
        "tensor": torch.rand(3),
        "array": np.arange(4),
        "nested": {"scalar": np.float64(0.1), "list": [1, 2.5, None, "x"], "big": 2**100},
    }
    save_checkpoint(path, state)
    found = load_checkpoint(path)
    assert found is not None
    assert torch.equal(found["tensor"], state["tensor"])
    assert found["array"].tolist() == [0, 1, 2, 3]
    assert found["nested"] == {"scalar": 0.1, "list": [1, 2.5, None, "x"], "big": 2**100}
    assert [entry.name for entry in path.parent.iterdir()] == ["checkpoint.pt"]


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("kind", ["evil", "evil pickle", "text", "empty", "cut", "tensor", "other"])
def test_what_is_no_checkpoint_is_refused_and_never_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    if kind == "evil":
        torch.save({"format": 1, "modules": Evil()}, path)
    elif kind == "evil pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "other":
        torch.save({"format": 77}, path)
    else:
        save_checkpoint(path, {"tensor": torch.rand(3000)})
        whole = path.read_bytes()
        path.write_bytes({"text": b"hello", "empty": b"", "cut": whole[: len(whole) // 2]}[kind])
    with pytest.raises(BadInputError, match=r"checkpoint\.pt: not a checkpoint .*--overwrite") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotWritableError, match="No space left on device"):
        save_checkpoint(path, {"step": 2})
    found = load_checkpoint(path)
    assert found is not None
    assert found["step"] == 1
