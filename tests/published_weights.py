"""Files of published networks for tests: a fake package that contains them, and untrained networks."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from featkit.features.published_networks import build
from featkit.weights.catalogue import AuthorsFile, PublishedNetwork, catalogue


def needs_package(name: str) -> None:
    """Skip the test if the package with a network's weights, or a kornia that has the network, is missing."""
    from featkit.features.published_networks import KORNIA_NAMES
    from featkit.weights.catalogue import packaged_files

    if not hasattr(pytest.importorskip("kornia.feature"), KORNIA_NAMES[name]):
        pytest.skip(f"this kornia has no {KORNIA_NAMES[name]}")
    if packaged_files(name) is None:
        pytest.skip(f"no package with the weights of {name}; `make test` installs them")


@cache
def untrained(name: str) -> dict[str, Tensor]:
    """The tensors of a network initialised with a fixed seed, under the names used in its files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(name)
        for tensor in network.state_dict().values():  # DeDoDe is built without values
            if tensor.ndim > 1:
                torch.nn.init.kaiming_normal_(tensor)
            else:
                tensor.zero_()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                if module.affine:
                    module.reset_parameters()
    return {key: tensor for key, tensor in network.state_dict().items() if key != "dkd.hw_grid"}


def put_package(site: Path, package: str, files: dict[str, bytes]) -> None:
    """Write an installed package with these files into `site`, which must be on sys.path."""
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    for name, content in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)
    importlib.invalidate_caches()


def in_catalogue(monkeypatch: pytest.MonkeyPatch, name: str, files: list[dict[str, Any]]) -> None:
    """Replace the files of one network in the catalogue."""
    row = catalogue()[name].model_copy(update={"files": [AuthorsFile(**file) for file in files]})
    changed: dict[str, PublishedNetwork] = {**catalogue(), name: row}
    monkeypatch.setattr("featkit.weights.catalogue.catalogue", lambda: changed)
