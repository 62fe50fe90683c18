"""A training's network becomes a weight: from the run's folder, its checkpoint, or a weights file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from featkit import export_weights
from featkit.cli.main import app
from featkit.core.errors import BadInputError, UsageError
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.training.patch_config import PatchTraining
from featkit.training.run_folder import save_checkpoint
from featkit.weights import manifest
from featkit.weights.exchange import WeightOrigin, export_weight
from featkit.weights.files import load_patch_network, save_patch_network
from featkit.weights.manifest import manifest_rows

CONFIG = PatchTraining(network=PatchNetworkConfig(architecture="l2net"))


def network(seed: int) -> PatchNetwork:
    return PatchNetwork(CONFIG.network, torch.Generator().manual_seed(seed)).eval()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was stopped: its checkpoint has network 1 as the last and network 2 as the best one."""
    folder = tmp_path / "run"
    progress = {"step": 90, "best_step": 60, "seconds": 12.5, "best_network": network(2).state_dict()}
    modules = {"network": network(1).state_dict(), "loss": {}}
    state = {"config": CONFIG.canonical_json(), "modules": modules, "progress": progress}
    save_checkpoint(folder / "checkpoint.pt", state)
    return folder


def finish(run: Path) -> None:
    """What a finished training leaves besides: networks 3 (last) and 4 (best), and the summary."""
    for seed, which in ((3, "last"), (4, "best")):
        words = {"recipe": "hardnet", "data": "liberty", "step": "90"}
        save_patch_network(run / f"{which}.safetensors", network(seed), words)
    summary = {
        "recipe": "hardnet",
        "steps": 90,
        "seconds": 13.0,
        "device": "cpu",
        "data": {"name": "liberty"},
        "last": {"step": 90, "validation_fpr95": 0.2},
        "best": {"step": 60, "validation_fpr95": 0.1},
    }
    (run / "summary.json").write_text(json.dumps(summary))


def assert_is(path: Path, seed: int) -> None:
    loaded, _ = load_patch_network(path)
    for name, parameter in network(seed).named_parameters():
        torch.testing.assert_close(loaded.get_parameter(name), parameter, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("which", "seed", "step"), [("best", 2, 60), ("last", 1, 90)])
def test_from_a_checkpoint(run: Path, tmp_path: Path, which: Any, seed: int, step: int) -> None:
    for source in (run, run / "checkpoint.pt"):
        row = export_weight(source, "sharp", tmp_path / "w.safetensors", which=which)
        assert_is(tmp_path / "w.safetensors", seed)
        assert row.training == {"step": step, "seconds": 12.5}


@pytest.mark.parametrize(("which", "seed", "fpr95"), [("best", 4, 0.1), ("last", 3, 0.2)])
def test_from_a_finished_run(run: Path, tmp_path: Path, which: Any, seed: int, fpr95: float) -> None:
    finish(run)
    row = export_weight(run, "sharp", tmp_path / "w.safetensors", which=which)
    assert_is(tmp_path / "w.safetensors", seed)
    assert (row.recipe, row.data, row.file, row.name) == ("hardnet", "liberty", "w.safetensors", "sharp")
    assert row.training["validation_fpr95"] == fpr95
    assert (row.training["seconds"], row.training["network"]) == (13.0, which)
    assert row.bytes == (tmp_path / "w.safetensors").stat().st_size
    assert PatchNetworkConfig(**row.config) == CONFIG.network


def test_what_is_said_goes_before_what_the_run_says(run: Path, tmp_path: Path) -> None:
    finish(run)
    origin = WeightOrigin(data="all of it", licence="CC0", scores={"fpr95_percent": 2.0})
    row = export_weight(run, "sharp", tmp_path / "w.safetensors", origin)
    assert (row.recipe, row.data, row.licence, row.scores) == ("hardnet", "all of it", "CC0", {"fpr95_percent": 2.0})
    again = export_weight(tmp_path / "w.safetensors", "blunt", tmp_path / "v.safetensors")
    assert (again.name, again.data, again.licence) == ("blunt", "all of it", "CC0")
    assert_is(tmp_path / "v.safetensors", 4)


def test_an_impossible_name_writes_nothing(run: Path, tmp_path: Path) -> None:
    for name in ("", "a/b", "../x", "a b"):
        with pytest.raises(UsageError, match="name"):
            export_weight(run, name, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(("form", "name"), [("onnx", "w.safetensors"), ("safetensors", "w.onnx"), ("onnx", "w")])
def test_a_file_is_named_by_its_format(form: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"--format {form}: --out .*; name a file \.{form}"):
        export_weights("hardnet", out=tmp_path / name, format=form, name="" if form == "onnx" else "x")
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_something_else(run: Path, tmp_path: Path) -> None:
    whole = torch.load(run / "checkpoint.pt", weights_only=True)
    progress = whole["progress"]
    other = CONFIG.model_copy(update={"network": PatchNetworkConfig(architecture="hynet")})
    for change, problem in (
        ({"modules": {}}, "not a checkpoint of `featkit train patch`"),
        ({"config": "{}"}, "not a checkpoint of `featkit train patch`"),
        ({"config": other.canonical_json()}, "'hynet'.* it lacks"),
        ({"progress": {**progress, "best_network": {}}}, "--which last"),
    ):
        save_checkpoint(run / "checkpoint.pt", {**whole, **change})
        with pytest.raises(BadInputError, match=problem):
            export_weight(run, "sharp", tmp_path / "w.safetensors", which="last" if "modules" in change else "best")
    with pytest.raises(BadInputError, match="no such file"):
        export_weight(tmp_path, "sharp", tmp_path / "w.safetensors")


def featkit(*words: str | Path, code: int = 0) -> Any:
    """What the command prints with --json."""
    ran = CliRunner().invoke(app, ["weights", *map(str, words), "--json"])
    assert ran.exit_code == code, ran.output
    return json.loads(ran.stdout.splitlines()[0])


def test_the_commands(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = tmp_path / "house"
    monkeypatch.setattr(manifest, "resource_dir", lambda name: house)
    (tmp_path / "scores.json").write_text('{"fpr95_percent": 1.25}')
    assert featkit("list")["weights"] == []
    made = featkit(
        *("export", run, "--name", "sharp", "--out", house / "s.safetensors", "--add-to-manifest", "--which", "last"),
        *("--licence", "CC0", "--commit", "abc", "--scores-json", tmp_path / "scores.json"),
    )
    assert featkit("list")["weights"] == [manifest_rows()[0].result_fields()]
    assert manifest_rows()[0].result_fields() == {key: value for key, value in made.items() if key != "out"}
    shown = featkit("show", "sharp")
    assert (shown["commit"], shown["scores"], shown["whole"]) == ("abc", {"fpr95_percent": 1.25}, True)
    assert featkit("show", house / "s.safetensors")["config"]["architecture"] == "l2net"
    assert "sharp" in CliRunner().invoke(app, ["weights", "list"]).stdout
    assert "did you mean 'sharp'?" in featkit("show", "shap", code=2)["error"]
    (tmp_path / "scores.json").write_text("[]")
    assert (
        "json object"
        in featkit(
            *("export", run, "--name", "x", "--out", tmp_path / "x", "--scores-json", tmp_path / "scores.json"), code=3
        )["error"]
    )


def test_importing_by_command(tmp_path: Path) -> None:
    state = {name.removeprefix("trunk."): tensor for name, tensor in network(5).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "hardnet.pth")
    done = featkit("import", tmp_path / "hardnet.pth")
    assert done["out"] == str(tmp_path / "hardnet.safetensors")
    assert_is(tmp_path / "hardnet.safetensors", 5)
    assert "lacks" in featkit("import", tmp_path / "hardnet.pth", "--architecture", "hynet", code=3)["error"]
