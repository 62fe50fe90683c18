"""SCFeat's training in its stages: each starts from the one before, goes on to the bit, and says what is wrong."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from posed_scenes import make_scene
from typer.testing import CliRunner

from featkit.cli.main import app
from featkit.core.config import Config, make, merged_values
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.core.runtime import Stopped
from featkit.core.types import Features
from featkit.data.posed_pairs import read_posed_pairs
from featkit.io.features import append_features
from featkit.losses.base import LossResult
from featkit.models.scfeat import SCFeatNetwork
from featkit.training.run_folder import load_checkpoint, read_metrics
from featkit.training.scfeat import STAGES, ScfeatData, ScfeatStages
from featkit.training.scfeat_stages import DescriptionTask
from featkit.training.scfeat_task import DenseTask, ScfeatTraining
from featkit.weights.files import load_scfeat_network, save_scfeat_network

pytestmark = pytest.mark.slow
CANVAS = {"canvas": {"width": 96, "height": 64}}
STAGE = {"steps": 4, "batch_size": 1, "log_every": 1, "held_out": {"every": 0.5, "pairs": 2}, "pictures": 1}
TINY: dict[str, Any] = {
    "network": {
        "encoder": "resnet18",
        "decoder_channels": (8, 8),
        "side_channels": 8,
        "descriptor_channels": 16,
        "norm_groups": 4,
        "detector_feature_channels": 4,
        "detector_image_channels": 4,
        "detector_merged_channels": 4,
    },
    "warm_up": {**STAGE, "augmentation": CANVAS},
    "description": {**STAGE, "augmentation": CANVAS},
    "detection": {**STAGE, "augmentation": CANVAS},
}
TIMES = {"pairs_per_s", "photographs_per_s", "wait_share"}


def recipe(**changes: Any) -> ScfeatTraining:
    return make(ScfeatTraining, merged_values(TINY, changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ScfeatData:
    root = tmp_path_factory.mktemp("posed")
    make_scene(root, images=5)
    return ScfeatData("made", read_posed_pairs(root), (root,))


def rows(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(run / "metrics.csv")]


@pytest.fixture(scope="module")
def whole(data: ScfeatData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    run = tmp_path_factory.mktemp("whole")
    ScfeatStages(recipe(), "cpu").run(data, run, name="tiny")
    return run


def test_every_stage_starts_from_the_one_before(whole: Path) -> None:
    for stage in STAGES:
        first = [] if stage == "warm-up" else [0]  # what the stage before has learned is measured before it changes
        assert [row["step"] for row in rows(whole / stage)] == [*first, *range(1, STAGE["steps"] + 1)]
        assert list((whole / stage / "pictures").glob("*.jpg")) or stage == "warm-up"
    for before, stage in itertools.pairwise(STAGES):
        start, learned = whole / before / "best.safetensors", whole / stage / "last.safetensors"
        old, new = (load_scfeat_network(path).state_dict() for path in (start, learned))
        changed = {name for name, value in new.items() if not torch.equal(value, old[name])}
        assert changed
        detector = {name.startswith("detector.") for name in changed}
        assert detector == {stage == "detection"}, "backbone and bridge are learned first, then frozen"
    assert (whole / "best.safetensors").read_bytes() == (whole / "detection" / "best.safetensors").read_bytes()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_training_goes_on_to_the_bit(
    stage: str, data: ScfeatData, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DenseTask.step

    def step_and_die(task: DenseTask[Any], share: float) -> Any:
        if task.name == stage and share == 0.5:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(task, share)

    monkeypatch.setattr(DenseTask, "step", step_and_die)
    with pytest.raises(Stopped, match="stopped at step 3 of 4"):
        ScfeatStages(recipe(), "cpu").run(data, tmp_path, name="tiny")
    monkeypatch.undo()
    ScfeatStages(recipe(), "cpu").run(data, tmp_path, name="tiny")
    for each in STAGES:
        assert rows(tmp_path / each) == rows(whole / each)
    assert (tmp_path / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_stages_by_name(data: ScfeatData, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stages = ScfeatStages(recipe(warm_up=None), "cpu")
    with pytest.raises(UsageError, match=r"description: the stage description comes first and is not there"):
        stages.run(data, tmp_path, stages=["detection"])
    with caplog.at_level("WARNING", "featkit"):
        (done,) = stages.run(data, tmp_path, stages=["description"])
    assert done.summary["data"]["start"] == "random"
    assert "random weights; give --encoder-weights FILE (ImageNet), or a warm_up stage" in caplog.text
    caplog.clear()
    (done,) = stages.run(data, tmp_path, stages=["detection"])
    assert done.summary["data"]["start"] == "description"
    assert "random weights" not in caplog.text
    other = ScfeatStages(recipe(warm_up=None, data={"max_rotation_deg": 70}), "cpu")
    with pytest.raises(UsageError, match=r"another configuration \(data.max_rotation_deg: 80.0 -> 70.0\)"):
        other.run(data, tmp_path, stages=["description"])


def test_how_pairs_are_read_is_part_of_what_learns_from_them(data: ScfeatData, tmp_path: Path) -> None:
    stages = ScfeatStages(recipe(data={"origin": "centre"})).configured()
    assert [stage.result_fields().get("data", {}).get("origin") for stage in stages.values()] == [None, *["centre"] * 2]
    root = data.photos[0]
    for setting, says in (("data.max_rotation_deg=0.001", "no pair is left"), ("data.min_side_px=95", "than 95 px")):
        command = ["train", "scfeat", "--data", str(root), "--out", str(tmp_path), "--set", setting]
        ran = CliRunner().invoke(app, command)
        assert (ran.exit_code, says in " ".join(ran.output.split())) == (3, True), ran.output


def test_the_average_is_what_is_measured_exported_and_gone_on_with(
    data: ScfeatData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the formula, step by step, beside a run without it; a kill in between changes nothing."""
    decay = 0.6
    plain = recipe(warm_up=None, description={"held_out": {"every": 1.0}})
    kept: list[dict[str, torch.Tensor]] = []
    step = torch.optim.Adam.step

    def noted(optimiser: torch.optim.Adam, *rest: Any) -> Any:
        made = step(optimiser, *rest)
        kept.append({n: p.detach().clone() for n, p in current[0].network.named_parameters()})
        return made

    current: list[Any] = []
    prepare = DescriptionTask.prepare

    def seen(task: DescriptionTask, *rest: Any) -> None:
        prepare(task, *rest)
        current[:] = [task]
        kept.append({n: p.detach().clone() for n, p in task.network.named_parameters()})

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    monkeypatch.setattr(DescriptionTask, "prepare", seen)
    ScfeatStages(plain, "cpu").run(data, tmp_path / "plain", stages=["description"])
    monkeypatch.undo()
    expected = kept[0]
    for number, now in enumerate(kept[1:], start=1):
        past = min(decay, number / (number + 10))
        expected = {name: past * expected[name] + (1 - past) * value for name, value in now.items()}
    averaged = recipe(warm_up=None, description={"held_out": {"every": 1.0}, "average": decay})

    def stop(task: DenseTask[Any], share: float) -> Any:
        if share == 0.5:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain_step(task, share)

    plain_step = DenseTask.step
    monkeypatch.setattr(DenseTask, "step", stop)
    with pytest.raises(Stopped):
        ScfeatStages(averaged, "cpu").run(data, tmp_path / "averaged", stages=["description"])
    monkeypatch.undo()
    ScfeatStages(averaged, "cpu").run(data, tmp_path / "averaged", stages=["description"])
    for weight in ("last", "best"):
        found = load_scfeat_network(tmp_path / "averaged" / "description" / f"{weight}.safetensors").state_dict()
        for name, value in expected.items():
            assert torch.allclose(found[name], value, atol=2e-3, rtol=2e-3), name  # the file is float16
    losses = [[row.get("loss") for row in rows(tmp_path / run / "description")] for run in ("plain", "averaged")]
    assert losses[0] == losses[1], "the average does not change what is learned"


def test_a_pull_holds_the_descriptors_where_they_were(data: ScfeatData, tmp_path: Path) -> None:
    first = {"optimiser": {"kind": "adam", "learning_rate": 1e-3}, "steps": 12, "freeze_norms": True}
    moved = {}
    for pull in (1e-9, 1e4):
        run = tmp_path / str(pull)
        stages = ScfeatStages(recipe(description={**first, "pull": pull}, warm_up={"steps": 2}), "cpu")
        stages.run(data, run, stages=["warm-up", "description"])
        pulls = [row["pull"] for row in rows(run / "description") if "pull" in row]
        assert abs(pulls[0]) < 1e-5, "with frozen norms both networks are the same at first"
        moved[pull] = pulls[-1]
    assert moved[1e4] < 0.5 * moved[1e-9]


def test_a_teacher_is_imitated_and_its_detector_goes_on(data: ScfeatData, tmp_path: Path) -> None:
    root = data.photos[0]
    rng = np.random.default_rng(0)
    mean = rng.normal(size=16)  # what a few steps can learn
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    with append_features(tmp_path / "teacher.h5", Config()) as store:
        for name in names:
            height, width = cv2.imread(str(root / name)).shape[:2]
            keypoints = (rng.random((60, 2)) * (width - 1, height - 1)).astype(np.float32)
            descriptors = (mean + rng.normal(0, 0.1, (60, 16))).astype(np.float32)
            store.write(name, Features(keypoints, descriptors, rng.random(60).astype(np.float32), (width, height)))
    taught = ScfeatData("made", data.pairs, data.photos, (tmp_path / "teacher.h5",))
    warm_up = {"steps": 30, "batch_size": 2, "teacher": {"score_share": 1.0}}
    stages = ScfeatStages(recipe(warm_up=warm_up), "cpu")
    stages.run(taught, tmp_path / "run", stages=["warm-up", "description"])
    found = rows(tmp_path / "run" / "warm-up")
    for name in ("teacher_distance", "teacher_score_entropy"):
        values = [row[name] for row in found if name in row]
        assert np.mean(values[-8:]) < np.mean(values[:8]), name
    start, learned = (
        load_scfeat_network(tmp_path / "run" / stage / "best.safetensors").state_dict()
        for stage in ("warm-up", "description")
    )
    fresh = SCFeatNetwork(recipe().network, torch.Generator().manual_seed(0)).state_dict()
    assert torch.equal(start["detector.feature.weight"], learned["detector.feature.weight"])
    assert not torch.allclose(learned["detector.feature.weight"], fresh["detector.feature.weight"], atol=1e-3)
    with pytest.raises(UsageError, match="give its features of the photographs by --teacher"):
        stages.run(data, tmp_path / "none", stages=["warm-up"])
    with pytest.raises(UsageError, match="--teacher: this recipe has none"):
        ScfeatStages(recipe(), "cpu").run(taught, tmp_path / "plain", stages=["warm-up"])
    longer = ScfeatStages(recipe(warm_up=warm_up, network={"descriptor_channels": 32}), "cpu")
    with pytest.raises(BadInputError, match="16 values and the network's 32"):
        longer.run(taught, tmp_path / "other", stages=["warm-up"])


def test_a_list_of_scenes_is_what_is_learned_from(tmp_path: Path) -> None:
    """In all stages, the warm-up's photographs included; it is part of the configuration of what is read."""
    root = tmp_path / "MegaDepth"
    for seed, name in enumerate(("0001", "0002", "0003")):
        make_scene(root, name, images=4, seed=seed)
    (tmp_path / "list.txt").write_text("# the training scenes\n0003\n\n0001/ # twice\n0001\n")
    once = {"steps": 1, "held_out": {"every": 1.0, "pairs": 1}, "workers": 0}
    recipe_file = tmp_path / "tiny.yaml"
    values = merged_values(TINY, {"task": "scfeat", **dict.fromkeys(("warm_up", "description", "detection"), once)})
    values["network"] = {key: list(v) if isinstance(v, tuple) else v for key, v in values["network"].items()}
    recipe_file.write_text(yaml.safe_dump(values))
    command = ["train", "scfeat", "--data", str(root), "--config", str(recipe_file), "--device", "cpu", "--json"]
    ran = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "some"), "--scenes", str(tmp_path / "list.txt")])
    assert ran.exit_code == 0, ran.output
    summaries = json.loads(ran.stdout)["stages"]
    assert summaries["warm-up"]["data"]["photographs"] == 8
    for stage in STAGES:
        assert summaries[stage]["data"]["scenes"] == ["0001", "0003"], stage
        assert summaries[stage]["config"]["precision"] == "fp32"
    assert summaries["description"]["data"]["pairs"] == 12
    assert summaries["description"]["config"]["data"]["scenes"] == ["0003", "0001"]
    for text, code, says in (
        ("0009\n", 3, "none of the 1 listed scenes exists"),
        ("# none\n", 3, "no scene in it"),
    ):
        (tmp_path / "list.txt").write_text(text)
        ran = CliRunner().invoke(app, [*command, "--out", str(tmp_path), "--scenes", str(tmp_path / "list.txt")])
        assert (ran.exit_code, says in " ".join(ran.output.split())) == (code, True), ran.output


def test_description_alone_learns(data: ScfeatData, tmp_path: Path) -> None:
    changes = {"steps": 80, "batch_size": 2, "optimiser": {"kind": "adam", "learning_rate": 1e-3}}
    ScfeatStages(recipe(warm_up=None, description=changes), "cpu").run(data, tmp_path, stages=["description"])
    losses = [row["loss"] for row in rows(tmp_path / "description")]
    assert len(losses) == 80
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10]), losses


def test_the_encoder_may_come_from_elsewhere(data: ScfeatData, tmp_path: Path) -> None:
    stages = ScfeatStages(recipe(warm_up=None), "cpu")
    other = SCFeatNetwork(recipe().network, torch.Generator().manual_seed(9))
    torch.save(other.backbone.encoder.state_dict(), tmp_path / "resnet18.pth")
    start, network = stages.initial_weights(tmp_path / "resnet18.pth")
    assert network == recipe().network
    assert start.origin == "resnet18.pth"
    assert torch.equal(start.values["backbone.encoder.conv1.weight"], other.backbone.encoder.conv1.weight)
    assert all(name.startswith("backbone.encoder.") for name in start.values)


def test_it_goes_on_from_weights_with_their_network_and_detector(data: ScfeatData, tmp_path: Path) -> None:
    """Of a size that is not the recipe's, with no stage before; the description stage leaves the detector alone."""
    other = SCFeatNetwork(recipe(network={"side_channels": 16}).network, torch.Generator().manual_seed(9)).eval()
    file = tmp_path / "mine.safetensors"
    save_scfeat_network(file, other, {"scenes": json.dumps(["attic"])})
    stages = ScfeatStages(
        recipe(start=str(file), description={"optimiser": {"kind": "sgd", "learning_rate": 1e-9}}), "cpu"
    )
    run = tmp_path / "run"
    (described,) = stages.run(data, run, stages=["description"])
    assert described.summary["data"]["start"] == "mine.safetensors"
    assert "attic" in described.summary["data"]["scenes"]
    learned = load_scfeat_network(run / "best.safetensors").state_dict()
    norms = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in other.state_dict().items():
        if not name.endswith(norms):
            torch.testing.assert_close(learned[name], value, atol=1e-3, rtol=0, msg=name)
    detector = {name for name in other.state_dict() if name.startswith("detector.")}
    assert detector <= set(stages.start_from(run / "description").values)
    (detected,) = stages.run(data, run, stages=["detection"])
    assert detected.summary["data"]["start"] == "description"


def test_where_to_start_from_is_checked_before_the_data(tmp_path: Path) -> None:
    command = ["train", "scfeat", "--data", str(tmp_path / "no"), "--out", str(tmp_path / "run"), "--start", "scfaet"]
    ran = CliRunner().invoke(app, command)
    assert (ran.exit_code, "no weights named 'scfaet'" in ran.output) == (2, True), ran.output
    with pytest.raises(UsageError, match="--start and --encoder-weights"):
        ScfeatStages(recipe(start="scfeat-s"), "cpu").initial_weights(tmp_path / "resnet18.pth")


def test_a_network_of_another_size_is_refused(tmp_path: Path) -> None:
    network = SCFeatNetwork(recipe(network={"side_channels": 16}).network)
    save_scfeat_network(tmp_path / "best.safetensors", network.eval(), {})
    with pytest.raises(BadInputError, match="side_channels 16, but 8"):
        ScfeatStages(recipe(), "cpu").start_from(tmp_path)


def test_a_loss_that_is_no_number_stops_it(data: ScfeatData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = DescriptionTask._loss

    def broken(task: DescriptionTask, batch: Any) -> LossResult:
        found = plain(task, batch)
        return LossResult(found.loss * (float("nan") if task.feed.state()["batches"] == 3 else 1.0), found.statistics)

    monkeypatch.setattr(DescriptionTask, "_loss", broken)
    with pytest.raises(EmptyResultError, match=r"step 3: the loss became nan; its batch is in .*bad_batch.npz"):
        ScfeatStages(recipe(warm_up=None), "cpu").run(data, tmp_path)
    state = load_checkpoint(tmp_path / "description" / "checkpoint.pt")
    assert state is not None
    assert all(torch.isfinite(value).all() for value in state["modules"]["network"].values())


def test_a_budget_is_shared() -> None:
    stages = ScfeatStages(
        recipe(budget="10min", warm_up={"share": 1}, description={"share": 2}, detection={"share": 1})
    )
    assert [stage.budget for stage in stages.configured().values()] == ["150s", "300s", "150s"]
    none = ScfeatStages(recipe(budget="10min", detection={"share": 0}))
    with pytest.raises(UsageError, match="share"):
        none.configured()
    short = ScfeatStages(recipe(budget="19s", description={"share": 2}, warm_up={"share": 1}, detection={"share": 1}))
    with pytest.raises(UsageError, match=r"warm-up gets 4\.75 s of it; 5 s at least, so 20 s for all"):
        short.configured()
    assert {stage.precision for stage in ScfeatStages(recipe()).configured().values()} == {"auto"}
    own = ScfeatStages(recipe(precision="bf16", warm_up={"precision": "fp32"})).configured()
    assert {stage.precision for stage in own.values()} == {"bf16"}
    scaled = recipe(detection={"steps": 2}).scaled_to(40)
    assert scaled.warm_up is not None
    assert (scaled.warm_up.steps, scaled.description.steps, scaled.detection.steps) == (40, 40, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warm_up": {"contrastive": 0}}, "contrastive: 0 needs a teacher"),
        ({"warm_up": {"loss": {"cell_px": 1000}}}, "loss.cell_px: 1000 is more than augmentation.canvas, 96 x 64 px"),
        ({"description": {"loss": {"cell_px": 65}}}, "loss.cell_px: 65 is more than augmentation.canvas, 96 x 64 px"),
        ({"detection": {"loss": {"policy": {"cell_px": 65}}}}, "loss.policy.cell_px: 65 is more than"),
    ],
)
def test_what_no_stage_could_train_with_is_refused_before_the_first(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(**changes)
