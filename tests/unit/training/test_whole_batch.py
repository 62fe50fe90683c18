"""Gradients of a whole batch that is described in parts."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from featkit.losses.base import LossResult, PairBatch
from featkit.losses.hynet import HyNetLoss, HyNetLossConfig
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.training.distributed import World
from featkit.training.whole_batch import PartOfDropout, backward, compiled, random_state, split_trunk_head


class OneProcess:
    """What Fabric says of a single process on the CPU."""

    device = torch.device("cpu")
    global_rank = 0
    world_size = 1

    def autocast(self) -> object:
        return torch.autocast("cpu", enabled=False)


def network_of(**config: object) -> PatchNetwork:
    return PatchNetwork(PatchNetworkConfig(**config), torch.Generator().manual_seed(0)).train()


def patches_of(count: int, side: int = 32) -> Tensor:
    return torch.rand((count, 1, side, side), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "hynet"},
        {"architecture": "l2net"},
        {"architecture": "l2net", "spatial_transformer": True},
        {"architecture": "hynet", "bits": 16},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_trunk_and_head_are_the_network(config: dict, training: bool) -> None:
    network = network_of(**config).train(training)
    patches = patches_of(5, network.input_px)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(2)
    expected = network(patches)
    after = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(before)
    trunk, head = split_trunk_head(network)
    torch.manual_seed(2)
    found = head(trunk(patches))
    assert torch.equal(found.raw, expected.raw)
    assert torch.equal(found.descriptor, expected.descriptor)
    assert all(torch.equal(value, after[name]) for name, value in network.state_dict().items())
    assert set(network.state_dict()) == set(before), "the network itself is whole"


def gradients(network: PatchNetwork, patches: Tensor, chunk: int) -> tuple[dict[str, Tensor], float, dict[str, Tensor]]:
    """Gradients, loss and buffers after one step's backward, and torch's generator moved as by one forward."""
    trunk, head = split_trunk_head(network)
    loss = HyNetLoss(HyNetLossConfig())

    def loss_of(features: Tensor) -> LossResult:
        found = head(features)
        pairs = (found.descriptor[0::2], found.descriptor[1::2], found.raw[0::2], found.raw[1::2])
        return loss(PairBatch(*pairs), 0.0)

    network.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    result = backward(trunk, network, patches, len(patches), loss_of, World(OneProcess()), chunk)
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return found, result.loss.item(), dict(network.named_buffers())


def test_one_part_is_plain_backpropagation() -> None:
    network = network_of(dropout=0.3)
    patches = patches_of(12)
    found, loss, _ = gradients(network, patches, 0)
    other = network_of(dropout=0.3)
    torch.manual_seed(5)
    described = other(patches)
    pairs = (described.descriptor[0::2], described.descriptor[1::2], described.raw[0::2], described.raw[1::2])
    expected = HyNetLoss(HyNetLossConfig())(PairBatch(*pairs), 0.0).loss
    expected.backward()
    assert loss == expected.item()
    for name, parameter in other.named_parameters():
        assert (found[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_chunks_give_the_gradient_of_the_whole_batch() -> None:
    """HyNet, without dropout: exactly the loss and gradient of describing all at once."""
    patches = patches_of(14)
    whole, loss, buffers = gradients(network_of(dropout=0.0), patches, 0)
    chunked, chunked_loss, chunked_buffers = gradients(network_of(dropout=0.0), patches, 5)
    assert chunked_loss == pytest.approx(loss, abs=1e-6)
    assert whole.keys() == chunked.keys()
    for name, gradient in whole.items():
        assert (gradient - chunked[name]).norm() <= 1e-5 * gradient.norm(), name
    for name, buffer in buffers.items():
        assert torch.allclose(buffer, chunked_buffers[name], atol=1e-6), name


def test_dropout_is_the_same_in_both_passes_over_a_chunk() -> None:
    """The loss is linear in the features here, so the gradient is known from the masks of the first pass alone."""
    network = network_of(dropout=0.5)
    patches = patches_of(8)
    trunk, _ = split_trunk_head(network)
    torch.manual_seed(5)
    expected = 0.0
    for part in patches.split(3):
        expected = expected + trunk(part).sum()
    network.zero_grad(set_to_none=True)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    after = random_state(torch.device("cpu"))["cpu"]
    network.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    backward(trunk, network, patches, 8, lambda f: LossResult(f.sum()), World(OneProcess()), 3)
    assert torch.equal(random_state(torch.device("cpu"))["cpu"], after)
    for name, gradient in wanted.items():
        found = dict(network.named_parameters())[name].grad
        assert (gradient - found).norm() <= 1e-5 * gradient.norm(), name


def test_the_second_pass_leaves_batchnorms_statistics_alone() -> None:
    network = network_of(architecture="l2net", dropout=0.0)
    patches = patches_of(8)
    gradients(network, patches, 4)
    other = network_of(architecture="l2net", dropout=0.0)
    trunk, _ = split_trunk_head(other)
    with torch.no_grad():
        for part in patches.split(4):
            trunk(part)
    inner = [name for name, _ in other.named_buffers() if name.endswith("running_var")][:-1]
    assert len(inner) == 6
    for name in inner:
        assert torch.allclose(dict(network.named_buffers())[name], dict(other.named_buffers())[name]), name
    assert all(module.momentum == 0.1 for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))


PROCESSES = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_whole_batch import network_of, patches_of
from featkit.losses.base import LossResult, PairBatch
from featkit.losses.hynet import HyNetLoss, HyNetLossConfig
from featkit.training.whole_batch import backward, split_trunk_head
from featkit.training.distributed import launch

world = launch("cpu", int(sys.argv[3]))
network = network_of(dropout=0.0)
trunk, head = split_trunk_head(network)
loss = HyNetLoss(HyNetLossConfig())
patches = patches_of(10)

def loss_of(features):
    found = head(features)
    pairs = (found.descriptor[0::2], found.descriptor[1::2], found.raw[0::2], found.raw[1::2])
    return loss(PairBatch(*pairs), 0.0)

result = backward(trunk, network, patches[world.part(10)], 10, loss_of, world, 2)
assert world.any(world.rank == world.size - 1) and not world.any(False)
assert world.from_first(lambda: world.rank + 7) == 7
gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
buffers = torch.cat([b.flatten().float() for b in network.buffers()])
torch.save([result.loss.detach(), gradient, buffers], f"{sys.argv[1]}.{world.size}.{world.rank}")
"""


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    command = [sys.executable, str(script), str(tmp_path / "out"), str(Path(__file__).parent), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    network = network_of(dropout=0.0)
    wanted, loss, buffers = gradients(network, patches_of(10), 0)
    gradient = torch.cat([wanted[name].flatten() for name, _ in network.named_parameters()])
    for rank in (0, 1):
        found_loss, found, found_buffers = torch.load(tmp_path / f"out.2.{rank}")
        assert float(found_loss) == pytest.approx(loss, abs=1e-6)
        assert (found - gradient).norm() <= 1e-5 * gradient.norm()
        assert torch.allclose(found_buffers, torch.cat([b.flatten().float() for b in buffers.values()]), atol=1e-6)


def test_a_compiler_leaves_the_shared_layers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their state changes from call to call, and other processes take part in it."""
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    network = network_of(dropout=0.5)
    trunk, _ = split_trunk_head(network, several=True)
    [dropout] = [module for module in trunk.modules() if isinstance(module, PartOfDropout)]
    dropout.start(slice(0, 8), 8)
    compiled(trunk, trunk)(patches_of(8))
    assert seen
    assert not [name for name in seen if "dropout" in name]
