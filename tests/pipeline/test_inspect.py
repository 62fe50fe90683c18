"""The command `featkit inspect informativeness`, and its usage errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from textures import textured_patches

from featkit.data.phototour import write_phototour
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.weights.files import save_patch_network

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phototour(tmp_path_factory.mktemp("patches"), textured_patches(20, views=2))


def a_run(folder: Path, **network: object) -> Path:
    config = PatchNetworkConfig(architecture="l2net", **network)
    folder.mkdir()
    values = {"task": "patch", "network": config.model_dump(mode="json")}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    weight = PatchNetwork(config, torch.Generator().manual_seed(1))
    save_patch_network(folder / "last.safetensors", weight, {"step": "10"})
    return folder


def test_report_of_a_training_run(patches: Path, tmp_path: Path, featkit_command: Command) -> None:
    run, page = a_run(tmp_path / "run"), tmp_path / "page.html"
    command = ("inspect", "informativeness", "--run", run, "--data", patches, "--out", page, "--device", "cpu")
    done = featkit_command(*command, "--pairs", 6, "--json")
    assert done.code == 0, done.err
    found = done.json()
    assert found["pairs"] == 6
    assert [(row["network"], row["step"]) for row in found["networks"]] == [("untrained", 0), ("last", 10)]
    assert all(-1 <= row["pearson"] <= 1 for row in found["networks"])
    assert "During training" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("what", "options", "code", "message"),
    [
        ("empty", (), 3, "no weights of a training"),
        ("binary", (), 2, "binary descriptor"),
        ("whole", ("--set", "pears=3"), 2, "did you mean 'pairs'"),
    ],
)
def test_usage_errors(
    what: str,
    options: tuple[str, ...],
    code: int,
    message: str,
    patches: Path,
    tmp_path: Path,
    featkit_command: Command,
) -> None:
    run = tmp_path / "run"
    if what == "empty":
        run.mkdir()
    else:
        a_run(run, bits=64 if what == "binary" else 0)
    done = featkit_command(
        "inspect", "informativeness", "--run", run, "--data", patches, "--out", tmp_path / "page.html", *options
    )
    assert done.code == code, done.err
    assert message in done.err
    assert not (tmp_path / "page.html").exists()
