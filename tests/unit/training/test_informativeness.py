"""Per-pair gradient norms against one backward pass per pair through the whole batch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from featkit.core.errors import BadInputError, UsageError
from featkit.data.patch_set import PatchSet
from featkit.features.patches import resize_patches
from featkit.losses.angular_triplet import AngularTripletConfig
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.training.informativeness import (
    Informativeness,
    InformativenessConfig,
    along_training,
    correlation,
    informativeness,
    ranks,
    sample_pairs,
    snapshots,
    untrained,
)
from featkit.training.patch import PatchTask
from featkit.training.patch_config import PatchTraining
from featkit.weights.files import save_patch_network

CPU = torch.device("cpu")


def network_of(architecture: str = "l2net", **fields: object) -> PatchNetwork:
    config = PatchNetworkConfig(architecture=architecture, **fields)
    network = PatchNetwork(config, torch.Generator().manual_seed(0))
    with torch.no_grad():  # running statistics of BatchNorm that are not those of an untrained network
        network.train()(
            torch.rand(8, 1, network.input_px, network.input_px, generator=torch.Generator().manual_seed(1))
        )
    return network


def some_pairs(n: int = 6, side: int = 32) -> np.ndarray:
    """Pairs of noise, the first nearly equal, the last hardly alike."""
    rng = np.random.default_rng(0)
    noise = np.linspace(2, 60, n)[:, None, None, None] * rng.normal(size=(n, 2, side, side))
    return np.clip(rng.uniform(60, 190, (n, 1, side, side)) + noise, 0, 255).astype(np.uint8)


def reference(network: PatchNetwork, pairs: np.ndarray, config: AngularTripletConfig) -> tuple[list, list]:
    """Eq. 14 and 15 on descriptors of one forward pass; the gradient of each pair's term by itself."""
    network.eval()
    n = len(pairs)
    a = network(resize_patches(torch.from_numpy(pairs[:, 0]), network.input_px)[:, None]).descriptor
    p = network(resize_patches(torch.from_numpy(pairs[:, 1]), network.input_px)[:, None]).descriptor
    distances, norms = [], []
    for i in range(n):
        d_pos = torch.acos(a[i] @ p[i])
        d_neg = min(
            (torch.acos(x[i] @ x[j]) for j in range(n) if j != i for x in (a, p)), key=lambda d: float(d.detach())
        )
        loss = torch.relu(config.margin + d_pos**2 - d_neg**2)
        gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        distances.append(float(d_pos.detach()))
        norms.append(math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients)))
    return distances, norms


@pytest.mark.parametrize(
    ("architecture", "side"), [("l2net", 32), ("l2net", 64), ("hynet", 32)], ids=["l2net", "resized", "hynet"]
)
def test_distances_and_norms_are_those_of_each_pairs_own_loss(architecture, side) -> None:
    network, pairs = network_of(architecture), some_pairs(side=side)
    config = InformativenessConfig(loss=AngularTripletConfig(margin=1.5))
    found = informativeness(network.train(), pairs, config, CPU)  # dropout must not matter
    distances, norms = reference(network, pairs, config.loss)
    assert max(norms) > 1.2 * min(norms) > 0
    np.testing.assert_allclose(found.distances, distances, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.gradient_norms, norms, rtol=2e-3)


def test_fewer_gradients_with_negatives_from_all_pairs() -> None:
    network, pairs = network_of(), some_pairs()
    every = informativeness(network, pairs, InformativenessConfig(), CPU)
    some = informativeness(network, pairs, InformativenessConfig(measured=3), CPU)
    np.testing.assert_allclose(some.gradient_norms, every.gradient_norms[:3], rtol=1e-5)
    np.testing.assert_allclose(some.distances, every.distances[:3], rtol=1e-5)


def test_a_satisfied_triplet_teaches_nothing() -> None:
    network, pairs = network_of(), some_pairs()
    found = informativeness(network, pairs, InformativenessConfig(loss=AngularTripletConfig(margin=1e-6)), CPU)
    _, norms = reference(network, pairs, AngularTripletConfig(margin=1e-6))
    assert (found.gradient_norms == 0).any()
    np.testing.assert_array_equal(found.gradient_norms == 0, np.array(norms) == 0)
    assert found.active_share == pytest.approx(np.mean(np.array(norms) > 0))


def test_the_network_is_left_as_it_was() -> None:
    network = network_of()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    informativeness(network, some_pairs(), InformativenessConfig(), CPU)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_binary_descriptors_are_refused() -> None:
    with pytest.raises(UsageError, match="binary"):
        informativeness(network_of(bits=64), some_pairs(), InformativenessConfig(), CPU)


def test_correlations() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    y = 0.5 * x + rng.normal(size=50)
    assert correlation(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert Informativeness(x, np.exp(3 * x)).spearman == pytest.approx(1.0)
    assert Informativeness(x, np.exp(3 * x)).pearson < 0.9
    assert math.isnan(correlation(x, np.ones(50)))
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]


def patch_set(classes: list[int]) -> PatchSet:
    numbers = np.arange(len(classes), dtype=np.uint8)
    patches = np.broadcast_to(numbers[:, None, None], (len(classes), 4, 4)).copy()
    return PatchSet("some", patches, np.array(classes), np.zeros(len(classes), int), ("one",))


def test_pairs_are_two_patches_of_different_classes() -> None:
    classes = [0, 0, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4]
    seen = set()
    for seed in range(200):
        pairs = sample_pairs(patch_set(classes), 3, np.random.default_rng(seed))
        assert pairs.shape == (3, 2, 4, 4)
        numbers = pairs[:, :, 0, 0].astype(int)
        assert (numbers[:, 0] != numbers[:, 1]).all()
        of_class = np.array(classes)[numbers]
        assert (of_class[:, 0] == of_class[:, 1]).all()
        assert len(set(of_class[:, 0])) == 3
        seen |= {tuple(pair) for pair in numbers.tolist()}
    assert len(seen) == 2 + 6 + 12 + 2  # every ordered pair of every class of two or more
    assert len(sample_pairs(patch_set(classes), 100, np.random.default_rng(0))) == 4


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(BadInputError, match="some: 1 classes of two patches or more; at least 3"):
        sample_pairs(patch_set([0, 0, 1, 2]), 3, np.random.default_rng(0))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no weights of a training"):
        snapshots(tmp_path)


def a_run(folder: Path, steps: dict[str, int], network: PatchNetworkConfig | None = None) -> PatchTraining:
    """A folder as a training leaves it: weights of differently drawn networks, and config.yaml."""
    training = PatchTraining(network=network or PatchNetworkConfig(architecture="l2net"), seed=5)
    values = {"task": "patch", **training.model_dump(mode="json")}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    for number, (name, step) in enumerate(steps.items()):
        weight = PatchNetwork(training.network, torch.Generator().manual_seed(number))
        (folder / name).parent.mkdir(exist_ok=True)
        save_patch_network(folder / name, weight, {"step": str(step)} if step else {})
    return training


def test_networks_of_a_run_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    names = {
        "snapshots/b.safetensors": 50,
        "snapshots/a.safetensors": 200,
        "best.safetensors": 100,
        "last.safetensors": 300,
    }
    a_run(tmp_path / "run", names)
    found = [(snapshot.name, snapshot.step) for snapshot in snapshots(tmp_path / "run")]
    assert found == [("untrained", 0), ("b", 50), ("best", 100), ("a", 200), ("last", 300)]


def test_one_weight_of_a_step_is_enough(tmp_path: Path) -> None:
    a_run(tmp_path / "run", {"best.safetensors": 300, "last.safetensors": 300})
    assert [snapshot.name for snapshot in snapshots(tmp_path / "run")] == ["untrained", "last"]
    a_run(tmp_path / "old", {"last.safetensors": 0})  # does not say its step
    assert [(s.name, s.step) for s in snapshots(tmp_path / "old")] == [("untrained", 0), ("last", None)]


def test_untrained_network_is_the_one_training_starts_with(tmp_path: Path) -> None:
    training = a_run(tmp_path / "run", {"last.safetensors": 1})
    start = PatchTask(training, "cpu").network.state_dict()
    found = untrained(tmp_path / "run").state_dict()
    assert all(torch.equal(start[name], value) for name, value in found.items())


def test_along_training_looks_at_the_same_pairs_with_each_network(tmp_path: Path) -> None:
    training = a_run(tmp_path / "run", {"last.safetensors": 10})
    pairs = some_pairs(4)
    along = along_training(tmp_path / "run", pairs, InformativenessConfig(), CPU)
    assert [snapshot.name for snapshot, _ in along] == ["untrained", "last"]
    start = PatchNetwork(training.network, torch.Generator().manual_seed(5))
    expected = informativeness(start, pairs, InformativenessConfig(), CPU)
    np.testing.assert_allclose(along[0][1].gradient_norms, expected.gradient_norms, rtol=1e-5)
    assert not np.allclose(along[1][1].gradient_norms, expected.gradient_norms, rtol=1e-2)
