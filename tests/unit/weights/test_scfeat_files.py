"""SCFeat networks as files: whole, smaller than they want to be, damaged, of the other size; exported and listed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from featkit.cli.main import app
from featkit.core.errors import BadInputError, UsageError
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.training.run_folder import save_checkpoint
from featkit.weights import manifest
from featkit.weights.exchange import WeightOrigin, export_weight
from featkit.weights.files import (
    load_patch_network,
    load_scfeat_network,
    read_metadata_patch_files,
    save_patch_network,
    save_scfeat_network,
)
from featkit.weights.manifest import add_row, manifest_rows

SMALL = SCFeatNetworkConfig(encoder="resnet18")


def make(seed: int = 0, **config: Any) -> SCFeatNetwork:
    made = SCFeatNetworkConfig(**{"encoder": "resnet18", **config})
    return SCFeatNetwork(made, torch.Generator().manual_seed(seed)).eval()


@pytest.fixture(scope="module")
def network() -> SCFeatNetwork:
    return make()


@pytest.fixture(scope="module")
def file(network: SCFeatNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scfeat_network(tmp_path_factory.mktemp("w") / "s.safetensors", network, {"recipe": "r", "step": "7"})


def apart(a: SCFeatNetwork, b: SCFeatNetwork) -> float:
    """Largest difference of a matrix over its largest value."""
    pairs = ((p, b.get_parameter(name)) for name, p in a.named_parameters() if p.ndim > 1)
    return max(((p - q).abs().max() / p.abs().max()).item() for p, q in pairs)


def test_what_is_saved_loads(network: SCFeatNetwork, file: Path) -> None:
    before = torch.get_rng_state()
    loaded = load_scfeat_network(file)
    assert torch.equal(torch.get_rng_state(), before), "loading draws nothing"
    assert loaded.config == network.config
    assert not loaded.training
    assert 0 < apart(network, loaded) < 1e-3
    assert torch.equal(loaded.mean, network.mean)
    images = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images).scores, network(images).scores, rtol=0, atol=0.02)
    assert file.stat().st_size < 8_000_000
    assert (
        read_metadata_patch_files(file).items()
        >= {"recipe": "r", "step": "7", "format": "featkit scfeat network 1"}.items()
    )
    assert {tensor.dtype for tensor in load_file(file).values() if tensor.ndim > 1} == {torch.float16}


def test_the_same_network_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    words = {"recipe": "r", "step": "7"}
    again = save_scfeat_network(tmp_path / "a.safetensors", load_scfeat_network(file), words)
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("limit", [7.0, 5.0, 4.2])
def test_the_largest_matrices_take_8_bits_until_it_fits(
    network: SCFeatNetwork, file: Path, tmp_path: Path, limit: float
) -> None:
    path = save_scfeat_network(tmp_path / "w.safetensors", network, max_mb=limit)
    assert path.stat().st_size <= limit * 1e6
    tensors, whole = load_file(path), load_file(file)
    packed = {name for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    assert {name + ".step" for name in packed} == tensors.keys() - whole.keys()
    matrices = {name: whole[name].numel() for name in whole if whole[name].ndim > 1}
    smallest_packed = min(matrices[name] for name in packed)
    left = [name for name in matrices if name not in packed]
    assert all(matrices[name] <= smallest_packed for name in left), "largest first"
    spared = smallest_packed - 4 * 1024
    assert path.stat().st_size + spared > limit * 1e6, "and no more than it takes"
    assert 1e-3 < apart(network, load_scfeat_network(path)) < 1 / 254 * 1.01


def test_a_limit_that_cannot_be_kept(network: SCFeatNetwork, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"even 8 bits need 3\.\d MB, the limit is 2\.5 MB"):
        save_scfeat_network(tmp_path / "w.safetensors", network, max_mb=2.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_papers_network_stays_in_half_precision_unless_asked(tmp_path: Path) -> None:
    """10 MB are out of its reach: 8 bits would only make it worse."""
    large = make(encoder="resnet50")
    path = save_scfeat_network(tmp_path / "l.safetensors", large)
    assert 45e6 < path.stat().st_size < 47e6
    assert torch.int8 not in {tensor.dtype for tensor in load_file(path).values()}
    assert apart(large, load_scfeat_network(path)) < 1e-3
    with pytest.raises(BadInputError, match=r"contains scfeat \(resnet50\), but scfeat-s \(resnet18\) is requested"):
        load_scfeat_network(path, wanted=SMALL)


def test_patch_networks_keep_their_limit(tmp_path: Path) -> None:
    bits = PatchNetwork(PatchNetworkConfig(architecture="l2net", bits=256), torch.Generator().manual_seed(0))
    packed = load_file(save_patch_network(tmp_path / "a.safetensors", bits))
    assert [name for name, tensor in packed.items() if tensor.dtype == torch.int8] == ["trunk.features.19.weight"]
    free = load_file(save_patch_network(tmp_path / "b.safetensors", bits, max_mb=8))
    assert torch.int8 not in {tensor.dtype for tensor in free.values()}
    small = save_patch_network(tmp_path / "c.safetensors", bits, max_mb=2.45)
    assert small.stat().st_size <= 2.45e6


def test_only_the_one_that_is_wanted(file: Path) -> None:
    assert load_scfeat_network(file, wanted=SMALL).config == SMALL
    with pytest.raises(BadInputError, match=r"contains scfeat-s \(resnet18\), but scfeat \(resnet50\) is requested"):
        load_scfeat_network(file, wanted=SCFeatNetworkConfig())
    with pytest.raises(BadInputError, match="head scfeat, but posfeat is requested"):
        load_scfeat_network(file, wanted=SCFeatNetworkConfig(encoder="resnet18", head="posfeat"))


def test_files_of_something_else(file: Path, tmp_path: Path) -> None:
    patch = PatchNetwork(PatchNetworkConfig(architecture="l2net"), torch.Generator().manual_seed(0))
    other = save_patch_network(tmp_path / "p.safetensors", patch)
    with pytest.raises(BadInputError, match=r"not a scfeat network .*: featkit patch network 1"):
        load_scfeat_network(other)
    with pytest.raises(BadInputError, match=r"not a patch network .*: featkit scfeat network 1"):
        load_patch_network(file)
    tensors, metadata = load_file(file), read_metadata_patch_files(file)
    config, path = json.loads(metadata["config"]), tmp_path / "w.safetensors"
    large = SCFeatNetworkConfig().result_fields()
    for content, words, problem in (
        (tensors, {**metadata, "config": json.dumps(large)}, r"scfeat \(resnet50\): it lacks"),
        (tensors, {**metadata, "config": json.dumps({**config, "side_channels": 32})}, "has the shape"),
        (tensors, {**metadata, "config": json.dumps({**config, "side_channels": 33})}, "cannot be normalised"),
        (tensors, {**metadata, "config": json.dumps({**config, "encodr": "x"})}, "did you mean 'encoder'"),
        ({**tensors, "more": torch.zeros(1)}, metadata, "the network does not have 'more'"),
        ({**tensors, "bridge.scale.bias": torch.tensor([torch.nan])}, metadata, "NaN or infinity"),
    ):
        save_file(content, path, words)
        with pytest.raises(BadInputError, match=problem) as caught:
            load_scfeat_network(path)
        assert str(path) in str(caught.value)


def checkpoint(folder: Path) -> Path:
    """A run that was stopped: network 1 is the last, network 2 the best one."""
    progress = {"step": 90, "best_step": 60, "seconds": 12.5, "best_network": make(2).state_dict()}
    modules = {"network": make(1).state_dict(), "loss": {}}
    config = json.dumps({"network": SMALL.result_fields()})
    save_checkpoint(folder / "checkpoint.pt", {"config": config, "modules": modules, "progress": progress})
    return folder


def test_export_and_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = tmp_path / "house"
    monkeypatch.setattr(manifest, "resource_dir", lambda name: house)
    run = checkpoint(tmp_path / "run")
    row = export_weight(run, "scfeat-s", house / "s.safetensors", WeightOrigin(data="d", licence="CC0"), max_mb=5)
    add_row(row, house)
    assert (row.kind, row.bytes <= 5e6, row.training["step"]) == ("scfeat", True, 60)
    assert manifest_rows() == [row]
    assert SCFeatNetworkConfig(**row.config) == SMALL
    assert apart(make(2), load_scfeat_network("scfeat-s")) < 0.01
    last = export_weight(run, "last", tmp_path / "l.safetensors", which="last")
    assert apart(make(1), load_scfeat_network(tmp_path / "l.safetensors")) < 1e-3
    assert (last.bytes > 7e6, last.training["step"]) == (True, 90)
    again = export_weight(house / "s.safetensors", "again", tmp_path / "a.safetensors")
    assert (again.kind, again.data, again.licence) == ("scfeat", "d", "CC0")
    with pytest.raises(BadInputError, match="not a patch network"):
        load_patch_network("scfeat-s")


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = tmp_path / "house"
    monkeypatch.setattr(manifest, "resource_dir", lambda name: house)
    source = save_scfeat_network(tmp_path / "n.safetensors", make())
    words = ["export", str(source), "--name", "tiny", "--out", str(house / "t.safetensors"), "--add-to-manifest"]
    ran = CliRunner().invoke(app, ["weights", *words, "--max-mb", "5", "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout.splitlines()[0])["bytes"] <= 5e6
    ran = CliRunner().invoke(app, ["weights", *words, "--max-mb", "1", "--json"])
    assert ran.exit_code == 2
    assert "the limit is 1 MB" in ran.stdout
    listed = CliRunner().invoke(app, ["weights", "list"]).stdout
    assert "tiny" in listed
    assert "scfeat" in listed
