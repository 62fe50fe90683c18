"""Published checkpoints: kornia's HardNet, SOSNet and HyNet with the same tensors describe alike."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia.feature
import pytest
import torch
from torch import Tensor, nn

from featkit.core.errors import BadInputError, UsageError
from featkit.weights.exchange import FIRST_KEYS, import_checkpoint

KORNIA = {"hardnet": kornia.feature.HardNet, "sosnet": kornia.feature.SOSNet, "hynet": kornia.feature.HyNet}
EVERY = pytest.mark.parametrize("name", KORNIA)


def patches(count: int = 8) -> Tensor:
    return torch.rand((count, 1, 32, 32), generator=torch.Generator().manual_seed(5))


def peer(name: str) -> nn.Module:
    """kornia's network with random values everywhere, also where networks start with 0 and 1."""
    made = KORNIA[name](pretrained=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, tensor in made.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if key.endswith("running_var"):
                tensor.copy_(1 + 0.5 * noise.abs())
            elif tensor.is_floating_point() and not key.endswith("eps"):
                tensor.add_(0.02 * noise)
    return made.eval()


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@EVERY
def test_the_same_tensors_describe_alike(name: str, tmp_path: Path) -> None:
    theirs = peer(name)
    ours = import_checkpoint(saved(tmp_path / "w.pth", theirs.state_dict()))
    assert not ours.training
    with torch.inference_mode():
        torch.testing.assert_close(ours(patches()).descriptor, theirs(patches()), rtol=0, atol=2e-5)


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "HardNet's, with the epoch": lambda state: {"epoch": 9, "state_dict": state},
    "of DataParallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "without BatchNorm's counters": lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    "in half precision": lambda state: {
        k: v.half() if v.is_floating_point() and v.ndim > 1 else v for k, v in state.items()
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@EVERY
def test_layouts_of_files(name: str, layout: str, tmp_path: Path) -> None:
    theirs = peer(name)
    plain = import_checkpoint(saved(tmp_path / "plain.pth", theirs.state_dict()), name)
    other = import_checkpoint(saved(tmp_path / "other.pth", LAYOUTS[layout](theirs.state_dict())))
    assert other.config == plain.config
    with torch.inference_mode():
        torch.testing.assert_close(other(patches()).descriptor, plain(patches()).descriptor, rtol=0, atol=2e-3)


@EVERY
def test_a_file_of_another_network_is_refused(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", peer(name).state_dict())
    for other in KORNIA.keys() - {name}:
        with pytest.raises(BadInputError, match=r"w\.pth: not the weights of .* it lacks"):
            import_checkpoint(path, other)


@EVERY
def test_damaged_states_are_refused(name: str, tmp_path: Path) -> None:
    whole, first = peer(name).state_dict(), FIRST_KEYS[name]
    last = [key for key, tensor in whole.items() if tensor.ndim == 4][-1]
    for state, problem in (
        ({k: v for k, v in whole.items() if k != last}, "lacks"),
        ({**whole, "extra.weight": torch.zeros(3)}, "the network does not have 'extra.weight'"),
        ({**whole, first: torch.zeros(32, 3, 3, 3)}, r"shape \(32, 3, 3, 3\), not \(32, 1, 3, 3\)"),
        ({**whole, last: whole[last] * float("nan")}, "NaN or infinity"),
        ({**whole, "epoch": 7}, "'epoch' is a int, not a tensor"),
        ({**whole, 1: torch.zeros(2)}, "1 is no name of a tensor"),
    ):
        with pytest.raises(BadInputError, match=problem):
            import_checkpoint(saved(tmp_path / "w.pth", state))


def test_a_learned_eps_is_refused(tmp_path: Path) -> None:
    state = {**peer("hynet").state_dict(), "layer3.1.eps": torch.tensor([2e-5])}
    with pytest.raises(BadInputError, match=r"eps' is not FRN's fixed 1e-06"):
        import_checkpoint(saved(tmp_path / "w.pth", state))


class Harmful:
    """What a pickle may do to whoever loads it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_is_not_tensors_is_refused_and_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"state_dict": Harmful(tmp_path / "ran")})
    with pytest.raises(BadInputError, match=r"w\.pth: a pickle that is not tensors"):
        import_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "w.pth", peer("hardnet").state_dict()).read_bytes()
    files = {
        "empty": b"",
        "text": b"features.0.weight",
        "cut": whole[: len(whole) // 2],
        "zip": b"PK\x03\x04" + b"0" * 99,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInputError, match=f"{name}: ") as caught:
            import_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInputError, match="a pipe or a device"):
        import_checkpoint(tmp_path / "pipe")
    for path, problem in (
        (tmp_path / "none.pth", "no such file"),
        (tmp_path, "not a checkpoint"),
        (saved(tmp_path / "list.pth", [torch.zeros(3)]), "contains a list"),
        (saved(tmp_path / "other.pth", {"conv.weight": torch.zeros(3)}), "neither HardNet, SOSNet nor HyNet"),
        (saved(tmp_path / "nothing.pth", {}), "neither HardNet, SOSNet nor HyNet"),
    ):
        with pytest.raises(BadInputError, match=problem):
            import_checkpoint(path)


def test_an_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hardnet, sosnet, hynet"):
        import_checkpoint(tmp_path / "w.pth", "hardnet8")
