"""HPatches and RomePatches as training data: what is read, DOAP's and AdaSample's recipes, which runs are tested."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from in_process import refused, results, run
from synthetic_patches import SEQUENCES, write_hpatches, write_rome
from textures import textured_patches

from featkit.core.config import merged_values
from featkit.core.errors import BadInputError, UsageError
from featkit.core.registry import resolve
from featkit.data.hpatches import read_hpatches, read_rome
from featkit.data.patch_set import PatchSet
from featkit.data.phototour import read_phototour, write_phototour
from featkit.data.training_patches import PatchDataConfig, read_training_patches
from featkit.losses.hardnet import HardNetLoss
from featkit.training.distributed import launch
from featkit.training.patch import PatchTask
from featkit.training.patch_config import PatchTraining

SPLITS = {
    "a": {"train": ["i_two", "v_one", "v_two"], "test": ["i_one"]},
    "b": {"train": ["i_one", "v_two"], "test": ["i_two", "v_one"]},
    "view": {"test": ["v_one", "v_two"]},
}
SHORT = ("--device", "cpu", "--steps", 2, "--set", "held_out.every=1", "--set", "held_out.pairs=10")
SMALL = {"batch_size": 32, "steps": 2, "held_out": {"every": 1.0, "pairs": 10}}


@pytest.fixture(scope="module")
def hpatches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `featkit data fetch hpatches` leaves it."""
    root = write_hpatches(tmp_path_factory.mktemp("hpatches"))
    splits = root / "hpatches-benchmark" / "tasks" / "splits" / "splits.json"
    splits.parent.mkdir(parents=True)
    splits.write_text(json.dumps(SPLITS))
    return root


@pytest.fixture(scope="module")
def rome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rome(tmp_path_factory.mktemp("rome"), groups=30, size=10)


def recipe(name: str, **changes: Any) -> PatchTraining:
    config = resolve("task", name, merged_values(SMALL, changes)).own
    assert isinstance(config, PatchTraining)
    return config


def prepared(name: str, data: PatchSet, **changes: Any) -> PatchTask:
    task = PatchTask(recipe(name, **changes), "cpu")
    task.prepare(data, launch("cpu", 1, "fp32"))
    return task


# --- what is read ---


def test_hpatches_is_the_training_part_of_a_split(hpatches: Path) -> None:
    for path in (hpatches, hpatches / "hpatches-release"):
        found = read_training_patches([path])
        assert found.name == "hpatches-a"
        assert found.scene_names == ("i_two", "v_one", "v_two")
        assert np.bincount(found.scenes).tolist() == [16 * SEQUENCES[name] for name in found.scene_names]
        assert (np.bincount(found.classes) == 16).all()
    data = read_hpatches(hpatches)
    np.testing.assert_array_equal(found.patches[found.classes == 0][7], data.patches("i_two", "h2")[0])
    other = read_training_patches([hpatches], PatchDataConfig(hpatches_split="b"))
    assert other.scene_names == ("i_one", "v_two")
    assert PatchTask.identity_of(other) != PatchTask.identity_of(found)
    assert PatchTask.identity_of(read_training_patches([hpatches])) == PatchTask.identity_of(found)
    assert read_training_patches([hpatches], PatchDataConfig(hpatches_split="full")).scene_names == tuple(SEQUENCES)
    with pytest.raises(BadInputError, match="split 'view' has no sequence to train on"):
        read_training_patches([hpatches], PatchDataConfig(hpatches_split="view"))
    with pytest.raises(UsageError, match=r"split 'c': .* has a, b, view"):
        read_training_patches([hpatches], PatchDataConfig(hpatches_split="c"))


def test_the_file_of_splits_may_be_elsewhere(hpatches: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"a": {"train": ["i_one"], "test": ["v_one"]}}))
    config = PatchDataConfig(hpatches_splits_file=str(file))
    assert read_training_patches([hpatches], config).scene_names == ("i_one",)


def test_rome_is_one_of_its_halves(rome: Path) -> None:
    for part in ("train", "test"):
        found = read_training_patches([rome], PatchDataConfig(rome_part=part))  # type: ignore[arg-type]
        wanted = read_rome(rome, part)  # type: ignore[arg-type]
        assert (found.name, found.scene_names) == (f"rome-{part}", (f"rome-{part}",))
        np.testing.assert_array_equal(found.patches[np.arange(300)], wanted.patches)
        np.testing.assert_array_equal(found.classes, wanted.labels)


def test_sets_of_different_sizes_are_joined_at_the_smallest(hpatches: Path, rome: Path, tmp_path: Path) -> None:
    """HardNet++ learns from Liberty and HPatches together."""
    write_phototour(tmp_path / "liberty", textured_patches(30))
    liberty = read_phototour(tmp_path / "liberty")
    both = read_training_patches([tmp_path / "liberty", hpatches])
    assert both.name == "liberty+hpatches-a"
    assert both.patches.shape[1:] == (64, 64)
    assert both.scene_names == (*liberty.scene_names, "i_two", "v_one", "v_two")
    assert len(np.unique(both.classes)) == 30 + 9 + 13 + 8
    first = read_hpatches(hpatches).patches("i_two", "ref")[0]
    index = np.array([len(liberty), 0])
    read = both.patches[index]
    np.testing.assert_array_equal(read[0], cv2.resize(first, (64, 64), interpolation=cv2.INTER_AREA))
    np.testing.assert_array_equal(read[1], liberty.patches[np.array([0])][0])
    assert read_training_patches([hpatches, rome]).patches.shape[1:] == (51, 51)


# --- recipes ---


def test_doap_on_hpatches_takes_whole_groups_of_all_sequences(hpatches: Path) -> None:
    data = read_training_patches([hpatches])
    task = prepared("doap-hpatches", data, network={"spatial_transformer": False})
    try:
        task.step(0.0)
        batch = task.batch_arrays()["patches"]
    finally:
        task.close()
    assert len(batch) == 32
    assert np.unique(data.classes[batch], return_counts=True)[1].tolist() == [16, 16]
    assert task.parameter_groups()[0]["lr"] == pytest.approx(0.1 * 32 / 1024)
    config = recipe("doap-hpatches")
    assert [config.schedule.factor(epoch / 32) for epoch in (0, 9.9, 10, 20, 30, 31.9)] == pytest.approx(
        [1, 1, 0.1, 0.01, 0.001, 0.001]
    )


@pytest.mark.slow
def test_doap_with_label_mining_takes_two_sequences_and_ignores_look_alikes(hpatches: Path) -> None:
    data = read_training_patches([hpatches])
    changes = {
        "batch_size": 64,
        "sampler": {"label_mining": {"clusters": 6}},
        "network": {"spatial_transformer": False},
    }
    task = prepared("doap-hpatches-lm", data, **changes)
    try:
        for _ in range(3):
            task.step(0.0)
            batch = task.batch_arrays()["patches"]
            assert np.unique(data.scenes[batch], return_counts=True)[1].tolist() == [32, 32]
        mined = task._mined_labels
        assert mined is not None
        ignored = mined.ignored(batch, data.classes[batch]).numpy()
    finally:
        task.close()
    same_scene = data.scenes[batch][:, None] == data.scenes[batch][None]
    same_point = data.classes[batch][:, None] == data.classes[batch][None]
    assert ignored.any()
    assert not ignored[~same_scene | same_point].any(), "other sequences and the point's own patches always count"
    assert not ignored[same_scene & ~same_point].all(), "far clusters of a sequence are non-matches"
    full = recipe("doap-hpatches-lm")
    assert (full.sampler.label_mining.clusters, full.sampler.label_mining.percentile) == (100, 20)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["doap-rome", "doap-binary-rome"])
def test_every_group_of_rome_leads_a_batch_once_an_epoch(rome: Path, name: str) -> None:
    data = read_training_patches([rome])
    task = prepared(name, data, held_out={"share": 0.1})
    groups = 27  # 30, less those held out
    try:
        plans = [task.feed.next().plan for _ in range(2 * groups)]
    finally:
        task.close()
    leaders = [plan.labels[0] for plan in plans]
    assert len(set(leaders[:groups])) == len(set(leaders[groups:])) == groups
    followers = {label for plan in plans[:groups] for label in plan.labels[10:]}
    assert all(len(set(plan.labels)) == 3 and len(plan.labels) == 30 for plan in plans)
    assert len(followers) > 0.6 * groups
    config = recipe(name)
    assert (config.network.dropout, config.optimiser.weight_decay) == (0.5, 5e-4)
    assert not config.network.spatial_transformer
    assert config.network.bits == (256 if "binary" in name else 0)


def test_adasample_on_hpatches_copies_nothing(hpatches: Path) -> None:
    data = read_training_patches([hpatches])
    task = prepared("adasample-hpatches", data, batch_size=8)
    try:
        task.step(0.0)
        plan = task.last.plan  # type: ignore[union-attr]
    finally:
        task.close()
    assert plan.columns == 16
    assert not plan.filled.any()
    assert all(len(set(row)) == 16 for row in plan.patches.reshape(8, 16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data_set", "changes"),
    [
        ("doap-hpatches", "hpatches", {"batch-size": 16 * 2}),
        ("doap-hpatches-lm", "hpatches", {"batch-size": 64, "sampler.label_mining.clusters": 4}),
        ("adasample-hpatches", "hpatches", {"batch-size": 8}),
        ("hardnet-frn", "hpatches", {"batch-size": 8}),
        ("doap-rome", "rome", {"batch-size": 40}),
        ("doap-binary-rome", "rome", {"batch-size": 40}),
    ],
)
def test_a_recipe_trains_from_the_release_as_it_is(
    name: str, data_set: str, changes: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(data_set)
    options = [("--batch-size", changes["batch-size"])]
    options += [("--set", f"{key}={value}") for key, value in changes.items() if "." in key]
    out = tmp_path / "run"
    arguments = ("--config", name, "--data", folder, "--out", out, *(part for pair in options for part in pair), *SHORT)
    summary = results("train", "patch", *arguments)
    data = read_training_patches([folder])
    assert summary["data"] == {
        "name": data.name,
        "patches": len(data),
        "scenes": list(data.scene_names),
        "identity": PatchTask.identity_of(data),
    }
    assert summary["steps"] == 2
    assert (out / "best.safetensors").is_file()
    if data_set == "hpatches" and name == "doap-hpatches":
        other = run("train", "patch", *arguments, "--set", "data.hpatches_split=b", "--quiet")
        refused(other, 2, "data.hpatches_split: a -> b", "--overwrite")


# --- HardNet's and the plain hinge with AdaSample's sampler ---


def test_the_sampler_measures_what_the_loss_compares(textures: PatchSet) -> None:
    """HT draws and weighs by Euclidean distance, AHT by angle: section 3.4."""
    found = {}
    for distance in ("angular", "euclidean"):
        sampler = {"class_size": 3, "candidates": 3, "strength": float("inf")}
        changes = {"batch_size": 8, "sampler": sampler, "loss": {"distance": distance}, "seed": 1}
        task = prepared("adasample", textures, **changes)
        try:
            found[distance] = float(task.step(0.0).statistics["sampled_distance"])
        finally:
            task.close()
    assert 0 < found["euclidean"] < found["angular"]  # the chord of the same pairs
    assert found["euclidean"] == pytest.approx(2 * np.sin(found["angular"] / 2), rel=0.02)


@pytest.mark.parametrize("strength", [0.0, 10.0])
def test_hardnet_takes_adasamples_batches(textures: PatchSet, strength: float) -> None:
    """Table 1's HardNet*: its loss on classes that are filled to 15 patches; with strength 0 at random."""
    changes = {
        "loss": {"name": "hardnet"},
        "sampler": {"class_size": 15, "candidates": 5, "strength": strength},
        "batch_size": 8,
    }
    task = prepared("adasample", textures, **changes)
    assert isinstance(task.loss, HardNetLoss)
    try:
        result = task.step(0.0)
    finally:
        task.close()
    assert float(result.statistics["exponent"]) == pytest.approx(strength)  # L_avg starts at the margin, 1
    assert float(result.statistics["average_loss"]) == float(task.loss.average_loss) != 1.0
    if strength == 0:  # weights of 1: the loss is the mean of the hinges
        assert float(task.loss.average_loss) == pytest.approx(0.99 + 0.01 * float(result.loss), abs=1e-6)


def test_hardnet_frn_learns_although_alike_patches_are_no_negatives(textures: PatchSet) -> None:
    """All but the start: a network that tells nothing apart yet would have no negative below 0.6 rad."""
    task = prepared("hardnet-frn", textures, batch_size=32)
    try:
        found = [float(task.step(0.0).statistics["negatives_found"]) for _ in range(2)]
    finally:
        task.close()
    assert min(found) == 1.0


# --- which runs are tested on HPatches and RomePatches ---


@pytest.mark.slow
def test_runs_have_a_row_each_and_none_is_tested_on_what_it_learned(tmp_path: Path) -> None:
    hpatches = write_hpatches(tmp_path / "hpatches", sequences={"i_one": 4, "i_two": 5, "v_one": 4, "v_two": 4})
    (hpatches / "splits.json").write_text(json.dumps(SPLITS))
    runs = tmp_path / "runs"
    for split in ("a", "b"):
        arguments = ("--data", hpatches, "--out", runs / f"hpatches-{split}" / "hynet", "--batch-size", 4)
        results("train", "patch", *arguments, "--set", f"data.hpatches_split={split}", *SHORT)
    tasks = ("--device", "cpu", "--set", 'tasks=["matching"]', "--set", "drawn.pairs=40")
    root = ("eval", "patches", "--root", hpatches, *tasks)
    found = results(*root, "--runs", runs, "--features", "sift")
    assert list(found["scores"]) == ["sift", "hpatches-a/hynet, best", "hpatches-a/hynet, last"]
    assert found["left_out"] == {f"hpatches-b/hynet, {which}": "trained on i_one" for which in ("best", "last")}
    alone = results(*root, "--features", runs / "hpatches-a/hynet/best.safetensors")
    assert [*alone["scores"].values()] == [found["scores"]["hpatches-a/hynet, best"]]
    rome = write_rome(tmp_path / "rome", groups=5, size=2)
    shown = run("eval", "rome", "--root", rome, "--features", "sift", "--runs", runs, "--device", "cpu").stdout
    for label in ("sift", "hpatches-a/hynet, best", "hpatches-b/hynet, last"):
        assert label in shown
    elsewhere = shutil.copy(runs / "hpatches-b" / "hynet" / "best.safetensors", tmp_path / "b.safetensors")
    assert list(results(*root, "--features", f"sift,{elsewhere}")["left_out"].values()) == ["trained on i_one"]
