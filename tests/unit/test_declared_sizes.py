"""Files that announce more than they hold: refused by what is there, before any memory is taken."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import resource
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from featkit.core.config import read_yaml
from featkit.core.errors import BadInputError
from featkit.data.patch_pack import read_patch_data
from featkit.data.tree import open_tree
from featkit.data.unpack import unpack
from featkit.engine.plan import read_codebook, read_vectors
from featkit.io.atomic import LONGEST, read_json, read_lines
from featkit.io.foreign_arrays import read_npz
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.weights.files import PATCH_FORMAT, load_patch_network, read_tensors, save_patch_network, write_tensors


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """A gigabyte more than there is now: what allocates what a header says fails, and is seen to."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(BadInputError) as caught:
        call()
    assert words in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
    assert "memory" not in str(caught.value)


# Weights


def test_a_network_of_four_million_bits(tmp_path: Path) -> None:
    """The config in a header would make a last layer of 128 x 8 x 8 x 4 million numbers, 131 GB."""
    network = PatchNetwork(PatchNetworkConfig(architecture="hynet", bits=256))
    path = save_patch_network(tmp_path / "w.safetensors", network)
    load_patch_network(path)
    metadata, tensors = read_tensors(path)
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), "bits": 4_000_000})
    path.unlink()
    write_tensors(path, tensors, metadata)
    refused(lambda: load_patch_network(path), "bits: Input should be less than or equal to 65536")


def test_a_step_of_another_size(tmp_path: Path) -> None:
    """A row of 60,000 numbers with 60,000 steps would become 3.6 billion numbers."""
    tensors = {"a": torch.zeros((1, 60_000), dtype=torch.int8), "a.step": torch.ones(60_000)}
    path = write_tensors(tmp_path / "w.safetensors", tensors, {"format": PATCH_FORMAT})
    refused(lambda: read_tensors(path), "one step per row")


def test_a_header_longer_than_its_file(tmp_path: Path) -> None:
    for length in (1 << 40, 90_000_000, 1 << 63):
        (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a":1}')
        refused(lambda: read_tensors(tmp_path / "w.safetensors"), "not a safetensors file")
    deep = b'{"__metadata__":' + b"[" * 100_000
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)
    refused(lambda: read_tensors(tmp_path / "w.safetensors"), "not a safetensors file")


# Archives


def pax_bomb() -> bytes:
    """The header of an entry whose extended header is 1.5 GB of zeros, as a stream of its first parts."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1_500_000_000
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_a_header_of_gigabytes_in_an_archive(tmp_path: Path, suffix: str) -> None:
    openers = {"": open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    path = tmp_path / f"a.tar{suffix}"
    with openers[suffix](path, "wb") as file:
        file.write(pax_bomb() + bytes(40 << 20))
    refused(lambda: unpack(path, tmp_path / "out"), "a header of 1,5")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_honest_archive(tmp_path: Path, form: str) -> None:
    name = f"{'long' * 60}/a.txt"  # a name that has such a header
    with tarfile.open(tmp_path / "a", form, format=tarfile.PAX_FORMAT) as archive:
        for each, content in ((name, b"x" * 3_000_000), ("b.txt", b"b")):
            info = tarfile.TarInfo(each)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert unpack(tmp_path / "a", tmp_path / "out") == 2
    assert (tmp_path / "out" / name).stat().st_size == 3_000_000


# Arrays in zips


def npy_of(shape: tuple[int, ...], dtype: str = "<i4", data: bytes = b"") -> bytes:
    """The header of an array of that shape, and whatever follows it."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize("shape", [(1 << 40, 2), (400_000_000, 2), (1 << 62, 2)])
def test_arrays_with_lying_shapes(tmp_path: Path, shape: tuple[int, int]) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("basis", "names", "vectors"):
            archive.writestr(f"{name}.npy", npy_of(shape, data=bytes(64)))
    refused(lambda: read_npz(tmp_path / "a.npz", "a.npz", ["basis"]), "does not have the size that its header states")
    refused(lambda: read_codebook(tmp_path / "a.npz"), "does not have the size that its header states")
    refused(lambda: list(read_vectors([tmp_path / "a.npz"])), "does not have the size that its header states")


def patch_pack(path: Path, labels: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pack.json", json.dumps({"format": 1, "sets": {"s": {}}}))
        archive.writestr("s/set.json", json.dumps({"side": 256, "scene_of_image": ["s"]}))
        archive.writestr("s/labels.npy", labels)
        archive.writestr("s/tile0000", b"x")
    return path


def test_a_pack_with_more_labels_than_patches(tmp_path: Path) -> None:
    """A megabyte of zeros, deflated to a kilobyte, would be labels of 8.6 GB of patches."""
    count = 131_072
    path = patch_pack(tmp_path / "p.zip", npy_of((count, 2), data=bytes(8 * count)))
    assert path.stat().st_size < 10_000
    refused(lambda: read_patch_data(path), "131,072 labels but 1 mosaics")
    path = patch_pack(tmp_path / "q.zip", npy_of((1 << 40, 2)))
    refused(lambda: read_patch_data(path), "does not have the size that its header states")
    path = patch_pack(tmp_path / "r.zip", npy_of((1,), "|O", b"\x80\x04N."))
    refused(lambda: read_patch_data(path), "array of objects")


def test_damaged_zips_are_one_line(tmp_path: Path) -> None:
    whole = patch_pack(tmp_path / "p.zip", npy_of((1, 2), data=bytes(8))).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 6):
            damaged[place] = generator.integers(256)
        (tmp_path / "d.zip").write_bytes(damaged)
        with pytest.raises(BadInputError):
            read_patch_data(tmp_path / "d.zip")
        try:
            tree = open_tree(tmp_path / "d.zip")
            for name in tree.names():
                tree.read(name)
        except BadInputError:
            continue


# Texts


def test_a_list_of_zeros_larger_than_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "pairs.txt").open("wb") as file:
        file.write(b"a.jpg b.jpg\n")
        file.truncate(8 << 30)
    refused(lambda: list(read_lines(tmp_path / "pairs.txt")), "pairs.txt:2: not a text file")
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(8 << 30)
    refused(lambda: read_json(tmp_path / "x.json", "a plan", "make it again"), "256 MiB")
    os.truncate(tmp_path / "x.json", 0)
    with (tmp_path / "x.yaml").open("wb") as file:
        file.truncate(8 << 30)
    refused(lambda: read_yaml(tmp_path / "x.yaml"), "no configuration is that large")


def test_lines_are_counted_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff# c\r\na b\n\n c\x0cd\u2028e\r f".encode())
    assert list(read_lines(path)) == [(2, "a b"), (4, "c"), (5, "d"), (6, "e"), (7, "f")]
    path.write_bytes(b"x" * LONGEST + b"\ny")
    assert [number for number, _ in read_lines(path)] == [1, 2]
    path.write_bytes(b"a\n" + b"x" * (LONGEST + 1))
    refused(lambda: list(read_lines(path)), "a.txt:2: not a text file")


# Nested deeper than Python calls


def test_nested_too_deeply(tmp_path: Path) -> None:
    for name, text in (("x.json", "[" * 200_000), ("x.yaml", "[" * 20_000)):
        (tmp_path / name).write_text(text)
    refused(lambda: read_json(tmp_path / "x.json", "a plan", "make it again"), "x.json: not a plan")
    refused(lambda: read_yaml(tmp_path / "x.yaml"), "x.yaml: not a yaml file")


def test_aliases_that_multiply_or_contain_themselves(tmp_path: Path) -> None:
    """400 bytes of yaml that stand for 9^9 values, as a list and as merged keys; a list inside of itself."""
    lists = "x: [&a0 [1,1,1,1,1,1,1,1,1]" + "".join(f", &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))
    keys = "a: &a0 {x: 1}\n" + "".join(f"b: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10))
    for text in (f"{lists}]\nfeatures: *a9\n", keys, "features: &a [*a]\n", "&a\nextract: *a\n"):
        (tmp_path / "x.yaml").write_text(text)
        refused(lambda: read_yaml(tmp_path / "x.yaml"), "x.yaml: not a yaml file (more than 100,000 values")
    (tmp_path / "x.yaml").write_text("a: &a {b: [1, 2]}\nc: {<<: *a, d: 3}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"b": [1, 2]}, "c": {"b": [1, 2], "d": 3}}


def test_devices_have_no_end() -> None:
    endless = Path("/dev/zero")
    refused(lambda: read_yaml(endless), "/dev/zero: not a file but a pipe or a device")
    refused(lambda: read_json(endless, "a rig file", "write it"), "/dev/zero: not a file but a pipe or a device")
