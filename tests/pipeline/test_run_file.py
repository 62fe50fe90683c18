"""`featkit reconstruct --save-config` and `--config`: a saved run gives the same bytes in another folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from in_process import refused, results, run

MODEL = ("cameras.bin", "images.bin", "points3D.bin")


@pytest.fixture(scope="module")
def ran(small_rendered: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene mapped with many options, and its run.yaml."""
    scene = Path(shutil.copytree(small_rendered.images.parent, tmp_path_factory.mktemp("run") / "scene"))
    results(
        "reconstruct", scene, "--max-keypoints", 700, "--ratio", 0.9, "--seed", 3, "--camera-mode", "single",
        "--pairs", "sequential", "--set", "pairing.overlap=4", "--set", "map.verify.max_error_px=3",
        "--truth", scene / "truth" / "poses.txt", "--workers", 1, "--save-config",
    )  # fmt: skip
    return scene


def test_same_bytes_in_another_folder(ran: Path, tmp_path: Path) -> None:
    saved = ran / "featkit" / "run.yaml"
    content = yaml.safe_load(saved.read_text())
    assert content["arguments"] == {"truth": "../truth/poses.txt"}
    assert content["config"]["extract"]["extractor"]["max_keypoints"] == 700
    assert content["config"]["map"]["verify"]["seed"] == content["config"]["seed"] == 3
    other = Path(shutil.copytree(ran / "images", tmp_path / "other" / "images")).parent
    found = results("reconstruct", other, "--config", saved)
    for name in MODEL:
        same = (ran / "featkit" / "sparse" / "0" / name).read_bytes()
        assert (other / "featkit" / "sparse" / "0" / name).read_bytes() == same, name
    assert found["truth"]["cameras"] == 6


def test_second_run_does_nothing_and_options_override(ran: Path) -> None:
    output = ran / "featkit"
    before = {path: path.stat().st_mtime_ns for path in (output / "database.db", output / "sparse.json")}
    results("reconstruct", ran, "--config", output / "run.yaml", "--save-config")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    out = output.with_name("changed")
    results("reconstruct", ran, "-o", out, "--config", output / "run.yaml", "--pairs", "exhaustive", "--save-config")
    config = yaml.safe_load((out / "run.yaml").read_text())["config"]
    assert config["pairs"] == "exhaustive"
    assert "overlap" not in config["pairing"]
    assert config["matching"]["ratio"] == 0.9
    assert config["extract"]["extractor"]["max_keypoints"] == 700


def test_an_option_with_its_default_goes_over_the_file(ran: Path) -> None:
    out = ran / "defaults"
    options = ("--camera-mode", "per-image", "--seed", 0, "--ratio", 0.8)
    results("reconstruct", ran, "-o", out, "--config", ran / "featkit" / "run.yaml", *options, "--save-config")
    config = yaml.safe_load((out / "run.yaml").read_text())["config"]
    assert config.get("seed", 0) == 0
    assert config["map"]["camera"]["mode"] == "per-image"
    assert config["matching"].get("ratio", 0.8) == 0.8
    assert config["extract"]["extractor"]["max_keypoints"] == 700


def test_a_handwritten_configuration_and_errors(ran: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    command = ("reconstruct", ran, "-q", "-o", tmp_path / "out", "--config", plain)
    refused(run(*command), 3, "plain.yaml: no such configuration file")
    plain.write_text("matcherr: mutual\n")
    refused(run(*command), 2, "unknown key 'matcherr'", "did you mean 'matcher'")
    plain.write_text("map: {verify: {max_error_px: -1}}\n")
    refused(run(*command), 2, "max_error_px")
    plain.write_text("command: localize\nconfig: {}\n")
    refused(run(*command), 3, "is a run of `featkit localize`, not of `featkit reconstruct`")
    plain.write_text("command: reconstruct\nconfig: []\n")
    refused(run(*command), 3, "are mappings of names to values")
    for arguments, words in (
        ('truth: "a\\0b"', "truth is a path"),
        ("truth: 5", "truth is a path"),
        ("trth: a", "'trth'"),
    ):
        plain.write_text(f"command: reconstruct\nconfig: {{}}\narguments: {{{arguments}}}\n")
        refused(run(*command), 3, "plain.yaml", words)
    plain.write_text("command: reconstruct\nconfig: {}\nmatcher: lightglue\n")
    refused(run(*command), 3, "plain.yaml: 'matcher' is no part of a saved run")
    plain.write_text("command: reconstruct\nconfig: {}\narguments: {truth: gone.txt}\n")
    refused(run(*command), 3, "gone.txt: no such file")
    assert not (tmp_path / "out" / "sparse").exists()
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "run.yaml").write_text("mine: 1\n")
    refused(
        run("reconstruct", ran, "-q", "-o", tmp_path / "out", "--save-config"), 3, "run.yaml: was not made by featkit"
    )
    assert (tmp_path / "out" / "run.yaml").read_text() == "mine: 1\n"
