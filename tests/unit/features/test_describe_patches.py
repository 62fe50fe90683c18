"""The frozen network equals the trained one; a descriptor does not depend on the batch it was computed in."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from featkit.core.runtime import threads_on_cores, torch_cores
from featkit.features.patches import FrozenNetwork, describe_patches, resize_patches
from featkit.images.patches import KeypointPatches, PatchPyramid
from featkit.models.patch import PatchNetwork, PatchNetworkConfig

CPU = torch.device("cpu")
CONFIGS = {
    "l2net": PatchNetworkConfig(architecture="l2net"),
    "sosnet-input": PatchNetworkConfig(architecture="l2net", input_norm="variance", input_eps=1e-5),
    "hynet": PatchNetworkConfig(architecture="hynet"),
    "transformer": PatchNetworkConfig(architecture="l2net", spatial_transformer=True),
    "binary": PatchNetworkConfig(architecture="l2net", bits=64),
    "binary-hynet": PatchNetworkConfig(architecture="hynet", bits=64),
}


def trained(config: PatchNetworkConfig) -> PatchNetwork:
    """Random weights, no parameter left where it starts, statistics of some batches."""
    draw = torch.Generator().manual_seed(0)
    network = PatchNetwork(config, draw)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=draw)
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
        network.train()
        for _ in range(2):
            network(torch.rand(32, 1, network.input_px, network.input_px, generator=draw))
    return network.eval()


def patches(n: int, side: int, seed: int = 0) -> np.ndarray:
    draw = torch.Generator().manual_seed(seed)
    noise = torch.rand(n, 1, side + 4, side + 4, generator=draw)
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1)[:, 0]
    low, high = smooth.amin((1, 2), keepdim=True), smooth.amax((1, 2), keepdim=True)
    return ((smooth - low) / (high - low) * 255).to(torch.uint8).numpy()


@pytest.fixture(scope="module", params=CONFIGS)
def network(request: pytest.FixtureRequest) -> PatchNetwork:
    return trained(CONFIGS[request.param])


def test_the_frozen_network_equals_the_trained_one(network: PatchNetwork) -> None:
    given = torch.as_tensor(patches(40, network.input_px)).float() / 255
    with torch.no_grad():
        raw, descriptor = network(given[:, None])
        found = FrozenNetwork(network, CPU)(given)
    expected = raw if network.is_binary else descriptor
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max().clamp_min(1)
    assert descriptor.std(dim=0).min() > 1e-3, "the descriptors differ from patch to patch"


def test_half_precision_is_near(network: PatchNetwork) -> None:
    given = torch.as_tensor(patches(24, network.input_px)).float() / 255
    with torch.no_grad():
        exact = torch.nn.functional.normalize(FrozenNetwork(network, CPU)(given))
        near = torch.nn.functional.normalize(FrozenNetwork(network, CPU, "bf16")(given))
    assert 1e-6 < (near - exact).abs().max() < 0.05
    assert (near * exact).sum(1).min() > 0.99


def test_a_frozen_network_keeps_its_weights() -> None:
    network = trained(CONFIGS["hynet"])
    frozen, given = FrozenNetwork(network, CPU), torch.as_tensor(patches(8, 32)).float() / 255
    with torch.no_grad():
        before = frozen(given)
        for parameter in network.parameters():
            parameter.mul_(1.5).add_(0.1)
        network.trunk.norm.running_mean += 1  # type: ignore[union-attr,operator]
        assert torch.equal(frozen(given), before)


def test_what_comes_out(network: PatchNetwork) -> None:
    given = patches(37, 64)
    found = describe_patches(network, given, "cpu")
    resized = torch.as_tensor(given).float()[:, None] / 255
    resized = torch.nn.functional.interpolate(resized, size=(network.input_px,) * 2, mode="bilinear")
    with torch.no_grad():
        raw, descriptor = network(resized)
    if network.is_binary:
        assert found.dtype == np.uint8
        assert found.shape == (37, 8)
        clear = (raw.abs() > 1e-4).numpy()
        assert clear.mean() > 0.99
        assert (np.unpackbits(found, axis=1) == (raw > 0).numpy())[clear].all()
    else:
        assert found.dtype == np.float32
        assert np.abs(found - descriptor.numpy()).max() < 1e-5
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5


def test_the_other_patches_do_not_matter(network: PatchNetwork) -> None:
    """To the last bit: the network always sees whole batches."""
    given = patches(21, 64)
    together = describe_patches(network, given, "cpu", batch_size=8)
    assert np.array_equal(describe_patches(network, given[::-1].copy(), "cpu", batch_size=8)[::-1], together)
    for i in (0, 11, 20):
        assert np.array_equal(describe_patches(network, given[i : i + 1], "cpu", batch_size=8), together[i : i + 1])


def test_the_batch_size_changes_rounding_only(network: PatchNetwork) -> None:
    given = patches(40, 64)
    one, many = (describe_patches(network, given, "cpu", batch_size=size) for size in (1, 32))
    if network.is_binary:
        assert (np.unpackbits(one, axis=1) != np.unpackbits(many, axis=1)).mean() < 0.001
    else:
        assert np.abs(one - many).max() < 1e-6


def test_the_number_of_threads_does_not_matter() -> None:
    network, given, before = trained(CONFIGS["hynet"]), patches(40, 32), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = describe_patches(network, given, "cpu", batch_size=8)
        torch.set_num_threads(3)
        assert np.array_equal(describe_patches(network, given, "cpu", batch_size=8), alone)
        assert torch.get_num_threads() == 3, "left as it was"
    finally:
        torch.set_num_threads(before)


def test_the_network_is_left_as_it_is() -> None:
    network = trained(CONFIGS["l2net"]).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = describe_patches(network, patches(9, 32), "cpu")
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert np.array_equal(describe_patches(network.eval(), patches(9, 32), "cpu"), found)


def test_patches_in_every_form(tmp_path: Path) -> None:
    network, given = trained(CONFIGS["l2net"]), patches(50, 64)
    expected = describe_patches(network, given, "cpu")
    np.save(tmp_path / "patches.npy", given)
    assert np.array_equal(describe_patches(network, np.load(tmp_path / "patches.npy", mmap_mode="r"), "cpu"), expected)
    assert np.array_equal(describe_patches(network, torch.as_tensor(given), "cpu"), expected)
    shares = torch.as_tensor(given).float() / 255
    assert np.array_equal(describe_patches(network, shares, "cpu"), expected)
    assert np.array_equal(describe_patches(FrozenNetwork(network, CPU), shares, "cpu"), expected)


def test_patches_of_an_image() -> None:
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(200, 300, generator=draw)
    centres = torch.rand(70, 2, generator=draw) * torch.tensor([299.0, 199.0])
    sides, oris = 20 + 100 * torch.rand(70, generator=draw), 6 * torch.rand(70, generator=draw)
    pyramid, network = PatchPyramid(image), trained(CONFIGS["hynet"])
    lazily = describe_patches(network, KeypointPatches(pyramid, centres, sides, oris, 64), "cpu")
    assert np.abs(lazily - describe_patches(network, pyramid.cut(centres, sides, oris, 64), "cpu")).max() < 1e-5


@pytest.mark.parametrize("name", ["hynet", "binary"])
def test_no_patches(name: str) -> None:
    found = describe_patches(trained(CONFIGS[name]), np.zeros((0, 64, 64), np.uint8), "cpu")
    assert found.shape == ((0, 8) if name == "binary" else (0, 128))
    assert found.dtype == (np.uint8 if name == "binary" else np.float32)


def test_a_constant_patch_is_described(network: PatchNetwork) -> None:
    flat = np.repeat(np.array([0, 128, 255], np.uint8), 32 * 32).reshape(3, 32, 32)
    assert np.isfinite(describe_patches(network, flat, "cpu", batch_size=3)).all()


@pytest.mark.parametrize(("side", "out_px"), [(64, 32), (65, 32), (64, 42), (32, 32), (32, 64)])
def test_resizing_is_bilinear_with_half_pixel_centres(side: int, out_px: int) -> None:
    cv2 = pytest.importorskip("cv2")
    given = patches(5, side)
    expected = [cv2.resize(p.astype(np.float32) / 255, (out_px, out_px), interpolation=cv2.INTER_LINEAR) for p in given]
    assert np.abs(resize_patches(torch.as_tensor(given), out_px).numpy() - np.stack(expected)).max() < 1e-5


def test_64_to_32_is_the_mean_of_four() -> None:
    given = patches(3, 64).astype(np.float32) / 255
    expected = (given[:, ::2, ::2] + given[:, 1::2, ::2] + given[:, ::2, 1::2] + given[:, 1::2, 1::2]) / 4
    assert np.abs(resize_patches(torch.as_tensor(given), 32).numpy() - expected).max() < 1e-6


def test_callers_at_the_same_time_leave_torch_its_cores() -> None:
    """The one that began last does not restore the share that it found."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    opened, closed = threading.Event(), threading.Event()
    seen: dict[str, int] = {}

    def second() -> None:
        with threads_on_cores("second", 8, cores_each=1):
            opened.set()
            closed.wait(10)
            seen["while divided"] = torch_cores()

    def later() -> None:
        seen["afterwards"] = torch.get_num_threads()

    try:
        other = threading.Thread(target=second)
        with threads_on_cores("first", 8) as pool:
            other.start()
            assert opened.wait(10)
            assert set(pool.map(lambda _: torch.get_num_threads(), range(6))) == {1}
        closed.set()
        other.join(10)
        fresh = threading.Thread(target=later)
        fresh.start()
        fresh.join(10)
    finally:
        torch.set_num_threads(before)
    assert seen == {"while divided": 3, "afterwards": 3}
