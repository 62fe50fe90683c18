"""A training from start to end: it goes on to the bit, refuses what does not belong together, and stops well."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from textures import textured_patches

from featkit.core.config import merged_values
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.core.registry import resolve
from featkit.core.runtime import Stopped
from featkit.data.patch_set import PatchSet
from featkit.losses.base import LossResult
from featkit.losses.hynet import HyNetLoss
from featkit.training import loop as training
from featkit.training.distributed import launch
from featkit.training.informativeness import snapshots
from featkit.training.patch import PatchTask, train_descriptor
from featkit.training.patch_config import PatchTraining
from featkit.training.run_folder import load_checkpoint, read_metrics, save_checkpoint
from featkit.training.task import TrainingPlan
from featkit.weights.exchange import export_weight
from featkit.weights.files import learned_scenes, load_patch_network

RECIPES = ("hardnet", "hynet", "sdgmnet", "adasample", "doap", "doap-binary")
SMALL: dict[str, Any] = {"batch_size": 8, "steps": 6, "log_every": 1, "held_out": {"every": 0.5, "pairs": 10}}
TIMES = {"patches_per_s", "wait_share"}


def recipe(name: str = "hynet", **changes: Any) -> PatchTraining:
    values = merged_values(SMALL, changes)
    if name.startswith("adasample"):
        values = merged_values({"sampler": {"class_size": 5, "candidates": 4}}, values)
    config = resolve("task", name, values).own
    assert isinstance(config, PatchTraining)
    return config


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`killed_at(3, SIGTERM)`: the signal comes while step 4 is computed, once."""

    def plan(step: int, number: int) -> None:
        plain, left = PatchTask.step, [step]

        def step_and_die(task: PatchTask, share: float) -> Any:
            left[0] -= 1
            if left[0] == -1:
                os.kill(os.getpid(), number)
            return plain(task, share)

        monkeypatch.setattr(PatchTask, "step", step_and_die)

    return plan


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_stopped_training_goes_on_to_the_bit(name: str, textures: PatchSet, tmp_path: Path, killed_at: Any) -> None:
    whole = train_descriptor(recipe(name), textures, tmp_path / "whole", device="cpu")
    killed_at(3, signal.SIGTERM)
    with pytest.raises(Stopped, match=r"stopped at step 4 of 6, all is saved .* run the same command") as stopped:
        train_descriptor(recipe(name), textures, tmp_path / "cut", device="cpu")
    assert stopped.value.exit_code == 143
    cut = train_descriptor(recipe(name), textures, tmp_path / "cut", device="cpu")
    one, other = (load_checkpoint(tmp_path / run / "checkpoint.pt") for run in ("whole", "cut"))
    assert one is not None
    assert other is not None
    assert len(one["progress"]["history"]) == 6
    assert without_times(one["progress"]["history"]) == without_times(other["progress"]["history"])
    for part in ("network", "loss"):
        for key, value in one["modules"][part].items():
            assert torch.equal(value, other["modules"][part][key]), key
    assert torch.equal(one["random"]["cpu"], other["random"]["cpu"])
    assert whole.summary["best"] == cut.summary["best"]
    rows = read_metrics(tmp_path / "cut" / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert without_times(rows) == without_times(one["progress"]["history"])


@pytest.mark.slow
def test_interrupting_says_130_and_a_rebuilt_metrics_file_has_no_rows_beyond_the_checkpoint(
    textures: PatchSet, tmp_path: Path, killed_at: Any
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    killed_at(1, signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        train_descriptor(recipe(), textures, tmp_path, device="cpu")
    assert stopped.value.exit_code == 130
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(metrics.read_text() + "3,0.5,0.01\n")  # what a later row of a killed run would leave
    train_descriptor(recipe(), textures, tmp_path, device="cpu")
    assert [row["step"] for row in read_metrics(metrics)] == [1, 2, 3, 4, 5, 6]
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_a_stopped_run_exports_names_its_data(textures: PatchSet, tmp_path: Path, killed_at: Any) -> None:
    """Without its scenes, benchmarks would be run on what the network was trained on."""
    killed_at(3, signal.SIGTERM)
    with pytest.raises(Stopped):
        train_descriptor(recipe(), textures, tmp_path / "run", device="cpu", name="hynet")
    row = export_weight(tmp_path / "run", "half", tmp_path / "half.safetensors", which="last")
    assert textures.scene_names
    assert (row.recipe, row.data, row.scenes) == ("hynet", textures.name, textures.scene_names)
    assert row.training["step"] == 4


@pytest.mark.slow
def test_a_finished_run_does_nothing_and_another_configuration_is_refused(
    textures: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    short = {"steps": 2, "held_out": {"every": 1.0}}
    first = train_descriptor(recipe(**short), textures, tmp_path, device="cpu", name="hynet")
    monkeypatch.setattr(PatchTask, "step", lambda *_: pytest.fail("a step was taken"))
    with caplog.at_level("INFO", "featkit"):
        again = train_descriptor(recipe(**short), textures, tmp_path, device="cpu", name="hynet")
    assert "finished already" in caplog.text
    assert again.summary == first.summary
    with pytest.raises(UsageError, match=r"another configuration \(batch_size: 8 -> 6\).*--overwrite"):
        train_descriptor(recipe(**short, batch_size=6), textures, tmp_path, device="cpu")
    with pytest.raises(BadInputError, match=r"other data .*--overwrite"):
        train_descriptor(recipe(**short), textured_patches(150, seed=9), tmp_path, device="cpu")
    train_descriptor(recipe(**short, patches_on="host", save_every=1), textures, tmp_path, device="cpu")  # not a result
    monkeypatch.undo()
    anew = train_descriptor(recipe(**short, batch_size=6), textures, tmp_path, device="cpu", overwrite=True)
    assert anew.summary["config"]["batch_size"] == 6


def test_a_checkpoint_of_another_network_is_refused(textures: PatchSet, tmp_path: Path) -> None:
    config = recipe(steps=1)
    train_descriptor(config, textures, tmp_path, device="cpu")
    path = tmp_path / "checkpoint.pt"
    state = load_checkpoint(path)
    assert state is not None
    state["modules"]["network"].pop("trunk.last.weight")
    state["progress"]["step"] = 0
    save_checkpoint(path, state)
    with pytest.raises(BadInputError, match=r"checkpoint\.pt: of another network .*--overwrite"):
        train_descriptor(config, textures, tmp_path, device="cpu")


def check_bad_batch(folder: Path, data: PatchSet, step: int) -> None:
    batch = np.load(folder / "bad_batch.npz")
    labels = data.classes[batch["patches"]].reshape(-1, 2)
    assert batch["step"] == step
    assert (labels[:, 0] == labels[:, 1]).all()
    assert batch["transforms"].shape == (16, 2, 3)


def test_a_loss_that_is_no_number_stops_before_the_network_is_touched(
    textures: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = HyNetLoss.forward

    def poisoned(loss: HyNetLoss, batch: Any, progress: float) -> LossResult:
        result = plain(loss, batch, progress)
        return LossResult(result.loss * (float("nan") if progress >= 0.5 else 1.0), result.statistics)

    monkeypatch.setattr(HyNetLoss, "forward", poisoned)
    with pytest.raises(EmptyResultError, match=r"step 4: the loss became nan; its batch is in .*bad_batch\.npz"):
        train_descriptor(recipe(save_every=2), textures, tmp_path, device="cpu")
    check_bad_batch(tmp_path, textures, 4)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state is not None
    assert state["progress"]["step"] == 2
    monkeypatch.undo()
    assert train_descriptor(recipe(save_every=2), textures, tmp_path, device="cpu").summary["steps"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("saved_or_measured", [{"save_every": 1}, {"held_out": {"every": 0.025, "pairs": 10}}])
def test_a_broken_network_is_never_saved(textures: PatchSet, tmp_path: Path, saved_or_measured: dict[str, Any]) -> None:
    broken = {"learning_rate": 1e6, "reference_batch": None}
    config = recipe("hardnet", steps=40, optimiser=broken, **saved_or_measured)
    with pytest.raises(EmptyResultError, match=r"step \d+: .*bad_batch\.npz") as caught:
        train_descriptor(config, textures, tmp_path, device="cpu")
    check_bad_batch(tmp_path, textures, int(re.findall(r"step (\d+)", str(caught.value))[0]))
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state is not None
    assert all(torch.isfinite(value).all() for value in state["modules"]["network"].values())


def test_what_a_run_leaves_behind(textures: PatchSet, tmp_path: Path) -> None:
    config = recipe("sdgmnet", steps=4, held_out={"every": 0.25, "pairs": 10}, precision="fp32")
    trained = train_descriptor(config, textures, tmp_path, name="sdgmnet", device="cpu")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == json.loads(json.dumps(trained.summary))
    assert summary["patches"] == 4 * 16
    assert summary["last"]["step"] == 4
    rows = read_metrics(tmp_path / "metrics.csv")
    scores = [row["validation_matching_error"] for row in rows]
    assert summary["best"]["validation_matching_error"] == min(scores)
    assert summary["last"]["validation_matching_error"] == scores[-1]
    assert all(0 <= row["validation_fpr95"] <= 1 for row in rows)
    assert summary["best"]["step"] == 1 + max(np.flatnonzero(np.array(scores) == min(scores)))  # of equals the last
    assert {"positive_angle_mean", "positive_power"} <= set(rows[0])
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert stored.pop("task") == "patch"
    assert PatchTraining(**stored) == config
    assert any((tmp_path / "tensorboard").iterdir())


def stored_precisions(run: Path) -> list[str]:
    """Of config.yaml, summary.json and the checkpoint."""
    state = load_checkpoint(run / "checkpoint.pt")
    assert state is not None
    return [
        yaml.safe_load((run / "config.yaml").read_text())["precision"],
        json.loads((run / "summary.json").read_text())["config"]["precision"],
        json.loads(state["config"])["precision"],
    ]


@pytest.mark.slow
def test_a_run_keeps_the_precision_that_was_measured(
    textures: PatchSet,
    tmp_path: Path,
    killed_at: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Stopped and gone on with on a processor that would choose otherwise: to the bit what bf16 gives."""
    train_descriptor(recipe(precision="bf16"), textures, tmp_path / "whole", device="cpu")
    train_descriptor(recipe(precision="fp32"), textures, tmp_path / "float", device="cpu")
    monkeypatch.setattr(training, "plan", lambda kind, config, *_: TrainingPlan("bf16", config.steps))
    killed_at(3, signal.SIGTERM)
    with pytest.raises(Stopped):
        train_descriptor(recipe(), textures, tmp_path / "cut", device="cpu")
    monkeypatch.setattr(
        training, "plan", lambda kind, config, *_: TrainingPlan(config.precision.replace("auto", "fp32"), 6)
    )
    shutil.copytree(tmp_path / "cut", tmp_path / "again")
    train_descriptor(recipe(), textures, tmp_path / "cut", device="cpu")
    assert stored_precisions(tmp_path / "cut") == ["bf16"] * 3
    last = {run: (tmp_path / run / "last.safetensors").read_bytes() for run in ("whole", "float", "cut")}
    assert last["cut"] == last["whole"] != last["float"]
    assert "continues in" not in caplog.text
    with caplog.at_level("WARNING", "featkit"):
        train_descriptor(recipe(precision="fp32"), textures, tmp_path / "again", device="cpu")
    assert "again: continues in fp32, was started in bf16" in caplog.text
    assert stored_precisions(tmp_path / "again") == ["fp32"] * 3
    assert (tmp_path / "again" / "last.safetensors").read_bytes() not in last.values()
    train_descriptor(recipe(precision="bf16"), textures, tmp_path / "again", device="cpu")
    assert stored_precisions(tmp_path / "again") == ["fp32"] * 3, "what is finished stays as it was made"


def test_data_that_is_refused_is_refused_before_measuring(textures: PatchSet, tmp_path: Path) -> None:
    for values in ({"steps": 1000}, {"budget": "9s"}):
        with pytest.raises(UsageError, match="use at most"):
            train_descriptor(recipe(batch_size=600, **values), textures, tmp_path, device="cpu")


def test_a_short_training_is_in_float32(textures: PatchSet, tmp_path: Path) -> None:
    train_descriptor(recipe(steps=1), textures, tmp_path, device="cpu")
    assert stored_precisions(tmp_path) == ["fp32"] * 3


@pytest.mark.parametrize("name", ["hynet", "sdgmnet", "adasample"])
def test_losses_get_float32_vectors_of_exact_norm(
    name: str, textures: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 norms would be off by a thousandth."""
    seen = []
    plain = PatchTask._batch_loss

    def watched(task: PatchTask, features: torch.Tensor, *rest: Any) -> LossResult:
        found = task._head(features.detach())
        seen.append(
            (features.dtype, found.descriptor.dtype, float((found.descriptor.detach().norm(dim=1) - 1).abs().max()))
        )
        result = plain(task, features, *rest)
        seen.append(
            (result.loss.dtype, *(value.dtype for value in result.statistics.values() if value.is_floating_point()))
        )
        return result

    monkeypatch.setattr(PatchTask, "_batch_loss", watched)
    train_descriptor(recipe(name, precision="bf16", steps=1), textures, tmp_path, device="cpu")
    vectors, results = seen
    assert vectors[:2] == (torch.float32, torch.float32)
    assert vectors[2] < 1e-5
    assert set(results) == {torch.float32}


def test_bfloat16_trains_and_scores_float32_descriptors(textures: PatchSet, tmp_path: Path) -> None:
    trained = train_descriptor(recipe(precision="bf16", steps=2), textures, tmp_path, device="cpu")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert trained.summary["config"]["precision"] == "bf16"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hardnet", "hynet"])
def test_the_loss_falls_on_textures(name: str, tmp_path: Path) -> None:
    data = textured_patches(90, seed=4)
    config = recipe(name, steps=12, batch_size=16, held_out={"every": 1.0})
    train_descriptor(config, data, tmp_path, device="cpu")
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.csv")]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:2])


def test_a_quarter_of_a_recipes_batch_is_of_one_image(textures: PatchSet) -> None:
    images = textures.scenes * 3 + np.arange(len(textures)) % 3
    task = PatchTask(recipe("hynet", batch_size=24), "cpu")
    task.prepare(replace(textures, images=images), launch("cpu", 1, "fp32"))
    try:
        for _ in range(5):
            first = images[task.feed.next().plan.patches[::2]]
            assert len(set(first[:6])) == 1
            assert len(set(first[6:])) > 1
    finally:
        task.close()


def test_losses_and_samplers_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError, match="takes groups"):
        PatchTask(recipe("hynet", loss={"name": "average_precision"}), "cpu")
    with pytest.raises(UsageError, match="angular_triplet"):
        PatchTask(recipe("hynet", sampler={"kind": "adasample"}), "cpu")


def test_the_memory_of_sdgmnets_statistics_is_fitted_to_the_length() -> None:
    full = PatchTask(recipe("sdgmnet", steps=200_000, batch_size=1024), "cpu").loss.config
    assert full.statistics_memory == pytest.approx(0.999)
    assert full.power_start == pytest.approx(10_000)
    short = PatchTask(recipe("sdgmnet", steps=20_000, batch_size=256), "cpu").loss.config
    assert short.statistics_memory == pytest.approx(0.99)
    assert short.power_start == pytest.approx(2_500)
    given = recipe("sdgmnet", steps=20_000, scale_statistics=False)
    assert PatchTask(given, "cpu").loss.config.statistics_memory == 0.999


def test_the_learning_rate_scales_with_the_batch_where_a_reference_is_given() -> None:
    def rate(name: str, batch: int) -> float:
        return PatchTask(recipe(name, batch_size=batch), "cpu").parameter_groups()[0]["lr"]

    assert rate("doap", 1024) == pytest.approx(0.1)
    assert rate("doap", 256) == pytest.approx(0.025)
    assert rate("hynet", 256) == rate("hynet", 512) == 0.01


@pytest.mark.slow
def test_snapshots_are_the_network_along_the_training(textures: PatchSet, tmp_path: Path) -> None:
    train_descriptor(recipe(snapshots=3), textures, tmp_path, device="cpu")
    assert [path.name for path in sorted((tmp_path / "snapshots").iterdir())] == [
        f"step_{step:07d}.safetensors" for step in (2, 4, 6)
    ]
    assert {found.step for found in snapshots(tmp_path)} >= {0, 2, 4, 6}
    train_descriptor(recipe(), textures, tmp_path, device="cpu", overwrite=True)
    assert not (tmp_path / "snapshots").exists()


def first_gradient(config: PatchTraining, data: PatchSet) -> torch.Tensor:
    task = PatchTask(config, "cpu")
    task.prepare(data, launch("cpu", 1, "fp32"))
    try:
        task.step(0.0)
    finally:
        task.close()
    return torch.cat([p.grad.flatten() for p in task.network.parameters() if p.grad is not None])


def test_the_second_order_term_is_learned_from(textures: PatchSet) -> None:
    without, with_it = (first_gradient(recipe("hardnet", second_order_weight=w), textures) for w in (0.0, 1.0))
    assert (with_it - without).norm() > 0.01 * without.norm()


def test_the_second_order_term_takes_pairs() -> None:
    with pytest.raises(UsageError, match=r"second_order_weight: .* takes whole groups"):
        PatchTask(recipe("doap", second_order_weight=1.0), "cpu")


def test_mined_labels_change_what_is_learned(textures: PatchSet) -> None:
    """Patches of one scene that look too different from each other are left out as non-matches."""
    mining = {"clusters": 4, "percentile": 50.0}
    plain, mined = (
        first_gradient(recipe("doap", batch_size=32, sampler={"label_mining": value}), textures)
        for value in (None, mining)
    )
    assert (plain - mined).norm() > 0.01 * plain.norm()


def test_batches_of_two_scenes(textures: PatchSet) -> None:
    scenes = np.asarray(textures.scenes)
    task = PatchTask(recipe("doap", batch_size=32, sampler={"two_scenes": True}), "cpu")
    task.prepare(textures, launch("cpu", 1, "fp32"))
    try:
        task.step(0.0)
        assert len(np.unique(scenes[task.batch_arrays()["patches"]])) == 2
    finally:
        task.close()


def test_degraded_patches_are_learned_from(textures: PatchSet) -> None:
    plain, degraded = (
        first_gradient(recipe("hardnet", augmentation={"degraded": share}), textures) for share in (0, 1)
    )
    assert (degraded - plain).norm() > 0.01 * plain.norm()


def test_a_training_starts_from_trained_weights(textures: PatchSet, tmp_path: Path) -> None:
    """By a shipped name, whose scenes count as trained on from then on; by a run's file."""
    shipped = train_descriptor(
        recipe(start="hynet", steps=2, held_out={"every": 1.0}), textures, tmp_path / "a", device="cpu"
    )
    assert {"liberty", *textures.scene_names} <= set(shipped.summary["data"]["scenes"])
    assert shipped.summary["data"]["start"] == "hynet"
    assert read_metrics(tmp_path / "a" / "metrics.csv")[0]["step"] == 0  # measured before the first step too
    again = PatchTask(recipe(start=str(tmp_path / "a" / "last.safetensors")), "cpu").network
    expected = load_patch_network(tmp_path / "a" / "last.safetensors")[0].state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_what_the_start_knows_is_kept(textures: PatchSet, tmp_path: Path) -> None:
    """The size of its patches if the data do not say theirs, and its scenes, also of weights that are only a file."""
    short = {"steps": 2, "held_out": {"every": 1.0}}
    first = replace(textures, magnification=18.0, scene_names=tuple(f"first {n}" for n in textures.scene_names))
    train_descriptor(recipe(**short), first, tmp_path / "first", device="cpu")
    moved = Path(shutil.copy(tmp_path / "first" / "best.safetensors", tmp_path / "moved.safetensors"))
    train_descriptor(recipe(start=str(moved), **short), textures, tmp_path / "second", device="cpu")
    best = tmp_path / "second" / "best.safetensors"
    assert load_patch_network(best)[0].config.magnification == 18.0
    assert (
        export_weight(tmp_path / "second" / "checkpoint.pt", "x", tmp_path / "x.safetensors").config["magnification"]
        == 18.0
    )
    assert learned_scenes(best) == {*first.scene_names, *textures.scene_names}
    third = train_descriptor(
        recipe(start=str(best), **short), replace(textures, magnification=15.0), tmp_path / "third", device="cpu"
    )
    assert load_patch_network(tmp_path / "third" / "best.safetensors")[0].config.magnification == 15.0
    assert set(third.summary["data"]["scenes"]) == learned_scenes(best)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("doap", {"network": {"bits": 256}}, "network.bits: 256 needs the loss of binary descriptors"),
        ("hynet", {"network": {"bits": 256}}, "network.bits: 256 needs the loss of binary descriptors"),
        ("doap-binary", {"network": {"bits": 0}}, "loss.descriptor: binary needs a binary network"),
    ],
)
def test_bits_and_their_loss_go_together(name: str, changes: dict[str, Any], message: str) -> None:
    """A loss of unit rows has no gradient, or no meaning, for outputs of tanh."""
    with pytest.raises(UsageError, match=message):
        PatchTask(recipe(name, **changes), "cpu")


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(UsageError, match="start: hardnet is another network: architecture"):
        PatchTask(recipe("hynet", start="hardnet"), "cpu")
    with pytest.raises(UsageError, match="hynett"):
        PatchTask(recipe("hynet", start="hynett"), "cpu")


@pytest.mark.parametrize(("recorded", "expected"), [(18.0, 18.0), (None, 12.0)])
def test_weights_record_the_size_of_their_patches(
    textures: PatchSet, tmp_path: Path, recorded: float | None, expected: float
) -> None:
    train_descriptor(recipe(), replace(textures, magnification=recorded), tmp_path / "run", device="cpu")
    for place in ("best.safetensors", "last.safetensors"):
        assert load_patch_network(tmp_path / "run" / place)[0].config.magnification == expected
    for source in (tmp_path / "run", tmp_path / "run" / "checkpoint.pt"):
        row = export_weight(source, "sized", tmp_path / "sized.safetensors")
        assert row.config.get("magnification", 12.0) == expected
        assert load_patch_network(tmp_path / "sized.safetensors")[0].config.magnification == expected
