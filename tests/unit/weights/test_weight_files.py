"""Weights: files and the manifest, by name and by path, whole and damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featkit.api.weights import show_weights
from featkit.core.errors import BadInputError, NotWritableError, UsageError
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.weights import manifest
from featkit.weights.files import (
    LARGEST_BYTES,
    learned_scenes,
    load_patch_network,
    quantise_to_8_bits,
    read_metadata_patch_files,
    save_patch_network,
    scenes_metadata,
)
from featkit.weights.manifest import WeightInfo, add_row, find_weights, listed, manifest_rows, sha256_of

NETWORKS: dict[str, dict[str, Any]] = {
    "hynet": {"architecture": "hynet"},
    "l2net": {"architecture": "l2net"},
    "doap": {"architecture": "l2net", "spatial_transformer": True},
    "doap-binary": {"architecture": "l2net", "spatial_transformer": True, "bits": 256},
}
EVERY = pytest.mark.parametrize("name", NETWORKS)


def make_network(name: str) -> PatchNetwork:
    """In eval mode, BatchNorm with statistics of its own."""
    made = PatchNetwork(PatchNetworkConfig(**NETWORKS[name]), torch.Generator().manual_seed(0))
    for layer in made.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        made(patches(made))
    return made.eval()


def patches(network: PatchNetwork, count: int = 16) -> Tensor:
    side = network.input_px
    return torch.rand((count, 1, side, side), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of featkit's own weights with one in it, "sharp"."""
    folder = tmp_path / "house"
    monkeypatch.setattr(manifest, "resource_dir", lambda name: folder)
    path = save_patch_network(folder / "sharp.safetensors", make_network("l2net"))
    add_row(row_of(path, "sharp"), folder)
    return folder


def row_of(path: Path, name: str, **fields: Any) -> WeightInfo:
    config = json.loads(read_metadata_patch_files(path)["config"])
    size = path.stat().st_size
    return WeightInfo(name=name, file=path.name, sha256=sha256_of(path), bytes=size, config=config, **fields)


@EVERY
def test_what_is_saved_loads(name: str, tmp_path: Path) -> None:
    network = make_network(name)
    path = save_patch_network(tmp_path / "new" / "w.safetensors", network, {"recipe": "r", "step": "12"})
    loaded, row = load_patch_network(path)
    assert row is None
    assert not loaded.training
    assert loaded.config == network.config
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    with torch.inference_mode():
        before, after = network(patches(network)), loaded(patches(network))
    if network.is_binary:
        assert ((before.raw > 0) == (after.raw > 0)).float().mean() > 0.99
    else:
        torch.testing.assert_close(after.descriptor, before.descriptor, rtol=0, atol=1e-3)
    assert read_metadata_patch_files(path).items() >= {"recipe": "r", "step": "12"}.items()
    assert path.stat().st_size <= LARGEST_BYTES
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


def test_what_weights_were_trained_on(house: Path, tmp_path: Path) -> None:
    """By the manifest, also for a copy; by the file; by the summary of a run of an earlier version; or unknown."""
    add_row(row_of(house / "sharp.safetensors", "sharp", scenes=["church", "tree"]), house)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((house / "sharp.safetensors").read_bytes())
    network = make_network("hynet")
    own = save_patch_network(tmp_path / "own.safetensors", network, scenes_metadata(["mine"]))
    unknown = save_patch_network(tmp_path / "unknown.safetensors", network)
    best = save_patch_network(tmp_path / "best.safetensors", network)
    assert learned_scenes(best) == frozenset()
    (tmp_path / "summary.json").write_text(json.dumps({"data": {"name": "d", "scenes": ["old"]}}))
    assert [set(learned_scenes(one)) for one in ("sharp", copy, own, unknown, best)] == [
        *({"church", "tree"}, {"church", "tree"}, {"mine"}, set(), {"old"})
    ]
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"summary.json: does not say what the weights were trained on"):
        learned_scenes(best)
    with pytest.raises(BadInputError, match=r"broken.safetensors: does not say"):
        learned_scenes(save_patch_network(tmp_path / "broken.safetensors", network, {"scenes": "7"}))


def test_loading_draws_nothing(tmp_path: Path) -> None:
    path = save_patch_network(tmp_path / "w.safetensors", make_network("l2net"))
    before = torch.get_rng_state()
    load_patch_network(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_matrices_are_halved_and_the_rest_is_not(tmp_path: Path) -> None:
    tensors = load_file(save_patch_network(tmp_path / "w.safetensors", make_network("hynet")))
    assert {tensor.dtype for tensor in tensors.values() if tensor.ndim > 1} == {torch.float16}
    assert {tensor.dtype for tensor in tensors.values() if tensor.ndim < 2} == {torch.float32}
    assert not any("num_batches" in name for name in tensors)


@EVERY
def test_a_loaded_network_saves_to_the_same_tensors(name: str, tmp_path: Path) -> None:
    first = save_patch_network(tmp_path / "a.safetensors", make_network(name))
    again = save_patch_network(tmp_path / "b.safetensors", load_patch_network(first)[0])
    assert first.read_bytes() == again.read_bytes()


def test_the_same_network_and_metadata_give_the_same_bytes(tmp_path: Path) -> None:
    network = make_network("hynet")
    words = {letter: letter for letter in "abcdefgh"}
    written = {save_patch_network(tmp_path / str(n), network, words).read_bytes() for n in range(5)}
    assert len(written) == 1


def test_large_values_survive_half_precision(tmp_path: Path) -> None:
    network = make_network("l2net")
    weight = network.get_parameter("trunk.features.0.weight")
    weight.data.mul_(1e6)
    loaded, _ = load_patch_network(save_patch_network(tmp_path / "w.safetensors", network))
    assert torch.equal(loaded.get_parameter("trunk.features.0.weight"), weight)


def test_8_bits_keep_every_row_to_a_254th_of_its_range() -> None:
    weight = (
        torch.randn((5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1, 50, 0, 1])[:, None, None, None]
    )
    values, step = quantise_to_8_bits(weight)
    error = (values * step[:, None, None, None] - weight).abs().amax(dim=(1, 2, 3))
    largest = weight.abs().amax(dim=(1, 2, 3))
    assert values.dtype == torch.int8
    assert (error <= largest / 254 * 1.001).all()
    assert values.abs().amax(dim=(1, 2, 3)).tolist() == [127, 127, 127, 0, 127]


def test_broken_values_are_not_written(tmp_path: Path) -> None:
    network = make_network("hynet")
    network.get_parameter("trunk.convolutions.2.bias").data[3] = float("inf")
    with pytest.raises(BadInputError, match=r"'trunk\.convolutions\.2\.bias' contains NaN or infinity"):
        save_patch_network(tmp_path / "w.safetensors", network)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotWritableError, match="file"):
        save_patch_network(tmp_path / "file" / "w.safetensors", make_network("l2net"))


def test_by_name(house: Path) -> None:
    network, row = load_patch_network("sharp")
    assert find_weights("sharp") == house / "sharp.safetensors"
    assert row == listed("sharp") == manifest_rows()[0]
    assert network.config.architecture == "l2net"
    assert load_patch_network(house / "sharp.safetensors")[1] is None


def test_an_unknown_name_gets_the_nearest_one(house: Path) -> None:
    for name, hint in (("sharpp", "did you mean 'sharp'?"), ("zzz", "there are: sharp")):
        with pytest.raises(UsageError) as caught:
            load_patch_network(name)
        assert str(caught.value) == f"no weights named {name!r}; {hint}"
    for path in ("zzz.safetensors", "some/where", str(house)):
        with pytest.raises(BadInputError, match="no such weights file"):
            find_weights(path)
    with pytest.raises(UsageError):
        find_weights("n" * 5000)


def test_another_file_in_its_place_is_refused(house: Path) -> None:
    expected = sha256_of(house / "sharp.safetensors")
    network = make_network("l2net")
    network.get_parameter("trunk.features.0.weight").data[0, 0, 0, 0] += 0.1
    save_patch_network(house / "sharp.safetensors", network)
    with pytest.raises(BadInputError) as caught:
        load_patch_network("sharp")
    assert expected in str(caught.value)
    assert sha256_of(house / "sharp.safetensors") in str(caught.value)
    (house / "sharp.safetensors").unlink()
    with pytest.raises(BadInputError, match=r"the file of the weights 'sharp' is missing"):
        load_patch_network("sharp")


def test_the_manifest_keeps_one_row_per_name_in_order(house: Path) -> None:
    blurred = row_of(house / "sharp.safetensors", "blurred", licence="CC0", scores={"fpr95_percent": 1.5})
    add_row(blurred, house)
    add_row(row_of(house / "sharp.safetensors", "sharp", recipe="new"), house)
    assert [row.name for row in manifest_rows()] == ["blurred", "sharp"]
    assert [row.recipe for row in manifest_rows()] == ["", "new"]
    assert listed("blurred") == blurred
    written = json.loads((house / "manifest.json").read_text())["weights"][0]
    assert written["scores"] == {"fpr95_percent": 1.5}
    assert written["config"]["architecture"] == "l2net"


def test_a_damaged_manifest_is_named(house: Path) -> None:
    row = json.loads((house / "manifest.json").read_text())["weights"][0]
    for content in (
        "{",
        "[]",
        '{"weights": 3}',
        '{"weights": [1]}',
        json.dumps({"weights": [{**row, "sha256": "12"}]}),
        json.dumps({"weights": [{k: v for k, v in row.items() if k != "file"}]}),
    ):
        (house / "manifest.json").write_text(content)
        with pytest.raises(BadInputError, match=r"manifest\.json"):
            find_weights("sharp")
    (house / "manifest.json").unlink()
    assert manifest_rows() == []


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    whole = save_patch_network(tmp_path / "whole.safetensors", make_network("l2net")).read_bytes()
    path = tmp_path / "w.safetensors"
    for content in (b"", b"x" * 50, whole[:1000], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(BadInputError, match=r"w\.safetensors: not a safetensors file .*weights import"):
            load_patch_network(path)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(BadInputError, match="weights import"):
        load_patch_network(path)


def test_safetensors_of_something_else(tmp_path: Path) -> None:
    path = save_patch_network(tmp_path / "w.safetensors", make_network("l2net"))
    tensors, metadata = load_file(path), read_metadata_patch_files(path)
    config = json.loads(metadata["config"])
    last = "trunk.features.19.weight"
    for content, words, problem in (
        (tensors, {}, "no format"),
        (tensors, {**metadata, "format": "featkit patch network 9"}, "no format"),
        (tensors, {"format": metadata["format"]}, "does not describe the network"),
        (tensors, {**metadata, "config": "3"}, "does not describe the network"),
        (tensors, {**metadata, "config": json.dumps({**config, "bitz": 8})}, "'bitz'; did you mean 'bits'"),
        (tensors, {**metadata, "config": json.dumps({**config, "architecture": "l3net"})}, "architecture"),
        (tensors, {**metadata, "config": json.dumps({**config, "architecture": "hynet"})}, "'hynet'.* it lacks"),
        (tensors, {**metadata, "config": json.dumps({**config, "bits": 64})}, r"\(128, 128, 8, 8\), not \(64, 128"),
        ({k: v for k, v in tensors.items() if k != last}, metadata, f"lacks '{last}'"),
        ({**tensors, "more": torch.zeros(1)}, metadata, "the network does not have 'more'"),
        ({**tensors, last: tensors[last] * float("nan")}, metadata, "NaN or infinity"),
    ):
        save_file(content, path, words)
        with pytest.raises(BadInputError, match=problem) as caught:
            load_patch_network(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_metadata_that_are_no_json_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors", {"format": "x", "config": "{"})
    with pytest.raises(BadInputError, match=r"w\.safetensors: not a weights file .* make it again"):
        show_weights(str(tmp_path / "w.safetensors"))
