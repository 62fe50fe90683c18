"""SCFeat on the command line: from a map to trained weights that map another scene."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from warped_sequences import homographies

from featkit.core.config import make
from featkit.demo.scene import RenderedConfig, render_scene
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.training.run_folder import read_metrics
from featkit.weights.files import save_scfeat_network

Command = Callable[..., Any]
NETWORK = {
    "encoder": "resnet18",
    "decoder_channels": [32, 32],
    "side_channels": 32,
    "descriptor_channels": 64,
    "norm_groups": 8,
    "detector_feature_channels": 8,
    "detector_image_channels": 8,
    "detector_merged_channels": 8,
}
CANVAS = "augmentation.canvas={width: 160, height: 128, zoom_max: 2.5}"
VIEWS = "augmentation.views={rotation_deg: 15, scale_max: 1.2, perspective: 0}"
# The recipe's turns over the whole circle, its nights and its averages are for trainings of hours.
EASY = ("augmentation.photometric.probability=0", "average=0")
LAST = "detection"


class Learned(NamedTuple):
    """run: the training's folder. trained, untrained: weights of the same network. other: an unseen scene."""

    run: Path
    trained: Path
    untrained: Path
    other: Any


@pytest.fixture(scope="module")
def learned(featkit_command: Command, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """A scene with exact poses is triangulated, turned into pairs, and trained on."""
    folder = tmp_path_factory.mktemp("scfeat")
    small = {"width": 400, "height": 300, "num_queries": 0, "texel_m": 0.012}
    scene = render_scene(make(RenderedConfig, {**small, "num_map": 10}), folder / "learned")
    other = render_scene(make(RenderedConfig, {**small, "num_map": 6, "seed": 7}), folder / "other")
    params = ",".join(map(str, scene.intrinsics.params))
    camera = ("--camera-model", "PINHOLE", "--camera-params", params, "--camera-mode", "single")
    options = ("--quiet", "--device", "cpu")
    root = scene.images.parent
    for command in (
        ("reconstruct", root, *camera, "--reference", root / "truth" / "poses.txt", "--max-keypoints", 1000),
        ("data", "posed-pairs", root, "--out", folder / "posed"),
        (
            "train", "scfeat", "--data", folder / "posed", "--out", folder / "run",
            *(word for name, value in NETWORK.items() for word in ("--set", f"network.{name}={value}")),
            *(word for stage in ("warm_up", "description", "detection")
              for word in ("--set", f"{stage}.{CANVAS}", "--set", f"{stage}.batch_size={2 if stage == LAST else 4}")),
            *(word for stage in ("description", LAST) for word in ("--set", f"{stage}.{VIEWS}")),
            *(word for stage in ("warm_up", "description", LAST)
              for easy in EASY for word in ("--set", f"{stage}.{easy}")),
            "--set", "warm_up.augmentation.views={rotation_deg: 30, scale_max: 1.5, perspective: 0.1}",
            "--set", "warm_up.fused_share=0", "--set", "description.pull=0", "--set", "description.freeze_norms=false",
            "--set", "warm_up.steps=110", "--set", "description.steps=60", "--set", "detection.steps=12",
            "--set", "description.optimiser.learning_rate=5e-4",
        ),
    ):  # fmt: skip
        ran = featkit_command(*command, *(options if command[0] != "data" else options[:1]), timeout_s=1500)
        assert ran.code == 0, ran.err
    network = SCFeatNetwork(make(SCFeatNetworkConfig, NETWORK), torch.Generator().manual_seed(0)).eval()
    untrained = save_scfeat_network(folder / "untrained.safetensors", network)
    return Learned(folder / "run", folder / "run" / "best.safetensors", untrained, other)


def features_config(weight: Path, folder: Path) -> Path:
    """Write a configuration with these weights. After a short training few scores exceed the default threshold."""
    path = folder / f"{weight.stem}.yaml"
    path.write_text(f"extractor: scfeat\nweights: {weight}\nthreshold: 0\n")
    return path


def test_losses_decrease(learned: Learned) -> None:
    """In the stages with a loss; the detector has a reward instead."""
    for stage in ("warm-up", "description"):
        losses = [row["loss"] for row in read_metrics(learned.run / stage / "metrics.csv") if "loss" in row]
        fifth = max(1, len(losses) // 5)
        assert np.mean(losses[-fifth:]) < 0.9 * np.mean(losses[:fifth]), (stage, losses)


def test_trained_weights_match_an_unseen_scene(learned: Learned, featkit_command: Command, tmp_path: Path) -> None:
    for name, photograph in zip(("a", "b"), sorted(learned.other.images.iterdir()), strict=False):
        folder = tmp_path / "sequences" / name
        folder.mkdir(parents=True)
        pixels = cv2.imread(str(photograph))[70:230, 100:300]
        cv2.imwrite(str(folder / "img1.png"), pixels)
        for number, homography in enumerate(homographies(len(name), strength=0.8), start=2):
            cv2.imwrite(str(folder / f"img{number}.png"), cv2.warpPerspective(pixels, homography, (200, 160)))
            np.savetxt(folder / f"H1to{number}p", homography)
    score = {}
    for weight in (learned.untrained, learned.trained):
        ran = featkit_command(
            "eval", "hpatches", "--root", tmp_path / "sequences", "--features", features_config(weight, tmp_path),
            "--out", tmp_path / weight.stem, "--max-keypoints", 300, "--device", "cpu", "--json", "-q",
        )  # fmt: skip
        assert ran.code == 0, ran.err
        score[weight.stem] = ran.json()["methods"][0]["groups"]["overall"]["mma_score"]
    assert score["best"] > score["untrained"] + 0.05, score


def test_trained_weights_map_an_unseen_scene(learned: Learned, featkit_command: Command, tmp_path: Path) -> None:
    root = learned.other.images.parent
    params = ",".join(map(str, learned.other.intrinsics.params))
    ran = featkit_command(
        "reconstruct", root, "--features", features_config(learned.trained, tmp_path), "--max-keypoints", 2000,
        "--camera-model", "PINHOLE", "--camera-params", params, "--camera-mode", "single", "--fix-intrinsics",
        "--truth", root / "truth" / "poses.txt", "--device", "cpu", "--json", "-q",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = ran.json()
    assert found["registered"] == 6, found
