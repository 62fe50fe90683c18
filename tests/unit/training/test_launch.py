"""Which processes there are: what torchrun says, what --devices says, and where they contradict each other."""

from __future__ import annotations

import pytest

from featkit.core import runtime as environment
from featkit.core.errors import UsageError
from featkit.core.runtime import torch_device
from featkit.training.distributed import check_devices, launch

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch):
    """`started(RANK="9")`: the environment that torchrun makes, with changes; None takes a variable away."""
    for name in (*TORCHRUN, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def start(**changes: str | None) -> None:
        for name, value in {**TORCHRUN, "LOCAL_WORLD_SIZE": "4", **changes}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return start


def test_what_torchrun_says(started) -> None:
    assert environment.launched() is None
    assert environment.is_reporter()
    started()
    assert environment.launched() == environment.Launched(rank=5, size=8, local_rank=1, local_size=4)
    assert environment.launched().nodes == 2
    assert not environment.is_reporter()
    started(LOCAL_RANK="0")
    assert environment.is_reporter(), "one on every node"
    started(RANK=None)
    assert environment.launched() is None, "a process of Lightning's own"
    started(LOCAL_RANK=None)
    assert environment.launched() is None, "a container that knows its number is not one of several processes"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"RANK": "8"}, "RANK=8, WORLD_SIZE=8"),
        ({"RANK": "first"}, "RANK='first': not a number"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK=4 of 4"),
        ({"LOCAL_WORLD_SIZE": "3"}, "the same --nproc-per-node"),
    ],
    ids=str,
)
def test_environments_that_cannot_be(started, changes: dict[str, str], says: str) -> None:
    started(**changes)
    with pytest.raises(UsageError, match=says):
        environment.launched()


def test_devices_beside_torchrun(started) -> None:
    cpu = torch_device("cpu")
    assert check_devices(None, "cpu", cpu, None) == 1
    assert check_devices(None, "cpu", cpu, 3) == 3
    started()
    by = environment.launched()
    assert check_devices(by, "cpu", cpu, None) == 4
    assert check_devices(by, "cpu", cpu, 4) == 4
    with pytest.raises(UsageError, match=r"--devices 2: torchrun has started 4 process\(es\) on this node"):
        launch("cpu", 2)
    with pytest.raises(UsageError, match="at least one"):
        launch("cpu", 0)
