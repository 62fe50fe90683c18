"""`featkit eval pose`'s measure against the protocol of MegaDepth-1500 written out plainly, on made-up matches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import poselib
import pytest
from pose_worlds import SIZE, World, make_world, store

from featkit.core.types import Pair
from featkit.evaluation.benchmark import Predictions
from featkit.evaluation.pose import PoseScore, RelativePoseConfig, evaluate_poses
from featkit.evaluation.pose_pairs import PosedScene

PAIRS = tuple(Pair(f"{a:02d}.png", f"{b:02d}.png") for a in range(5) for b in range(a + 1, 5))
WITHOUT_MATCHES, FEW_MATCHES, WRONG_MATCHES = PAIRS[1], PAIRS[4], PAIRS[7]


def noisy_matches(world: World) -> tuple[dict[str, np.ndarray], dict[Pair, np.ndarray]]:
    """Keypoints with noise, 30 % wrong matches; a pair without any, one with four, one with wrong ones only."""
    rng = np.random.default_rng(11)
    keypoints = {name: world.seen(name) + rng.normal(0, 0.4, (len(world.points), 2)) for name in world.poses}
    matches = {}
    for pair in PAIRS:
        index = np.arange(len(world.points))
        wrong = rng.permutation(len(index))[: len(index) if pair == WRONG_MATCHES else 60]
        index[wrong] = rng.permutation(index[wrong])
        index[rng.permutation(len(index))[:20]] = -1
        if pair == WITHOUT_MATCHES:
            index[:] = -1
        if pair == FEW_MATCHES:
            index[:4], index[4:] = range(4), -1
        matches[pair] = index
    return keypoints, matches


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(2, cameras=5)


@pytest.fixture(scope="module")
def scene(world: World, tmp_path_factory: pytest.TempPathFactory) -> PosedScene:
    return world.write(tmp_path_factory.mktemp("arc") / "arc")


@pytest.fixture(scope="module")
def predictions(world: World, tmp_path_factory: pytest.TempPathFactory) -> Predictions:
    return store(*noisy_matches(world), tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def scored(scene: PosedScene, predictions: Predictions) -> PoseScore:
    return evaluate_poses([scene], {"arc": PAIRS}, {"arc": predictions})


def plain_estimates(world: World, points0: np.ndarray, points1: np.ndarray) -> dict[str, tuple | None]:
    """(R, t) of both estimators, called the way SuperGlue, LoFTR and glue-factory call them: on pixels and K."""
    if len(points0) < 5:
        return {"poselib": None, "opencv": None}
    camera = {
        "model": "SIMPLE_PINHOLE", "width": SIZE[0], "height": SIZE[1],
        "params": [world.focal, world.centre[0] - 0.5, world.centre[1] - 0.5],
    }  # fmt: skip
    pose, _ = poselib.estimate_relative_pose(points0, points1, camera, camera, {"max_epipolar_error": 1.0})
    k = np.array([[world.focal, 0, world.centre[0] - 0.5], [0, world.focal, world.centre[1] - 0.5], [0, 0, 1]])
    normal = [(points - k[[0, 1], [2, 2]]) / k[[0, 1], [0, 1]] for points in (points0, points1)]
    essential, mask = cv2.findEssentialMat(
        *normal, np.eye(3), method=cv2.RANSAC, prob=0.99999, threshold=0.5 / world.focal
    )
    _, rotation, translation, _ = cv2.recoverPose(essential, *normal, np.eye(3), mask=mask)
    return {"poselib": (pose.R, pose.t), "opencv": (rotation, translation[:, 0])}


def plain_error(found: tuple | None, truth: tuple) -> tuple[float, float]:
    if found is None:
        return math.inf, math.inf
    cosine = (np.trace(found[0].T @ truth[0]) - 1) / 2
    across = np.dot(found[1], truth[1]) / (np.linalg.norm(found[1]) * np.linalg.norm(truth[1]))
    turn, swing = (math.degrees(math.acos(min(1, max(-1, value)))) for value in (cosine, across))
    return turn, min(swing, 180 - swing)


def plain_precision(world: World, truth: tuple, points0: np.ndarray, points1: np.ndarray) -> float:
    """Share of matches whose squared distances to the epipolar lines add up to less than 1e-4 (normalised units)."""
    x, y, z = truth[1] / np.linalg.norm(truth[1])
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ truth[0]
    right = 0
    for p0, p1 in zip(points0, points1, strict=True):
        a, b = (np.array([*((p + 0.5 - world.centre) / world.focal), 1.0]) for p in (p0, p1))
        line1, line0 = essential @ a, essential.T @ b
        value = float(b @ line1) ** 2
        right += value / (line1[0] ** 2 + line1[1] ** 2) + value / (line0[0] ** 2 + line0[1] ** 2) < 1e-4
    return right / len(points0) if len(points0) else 0.0


def plain_auc(errors: list[float], threshold: float) -> float:
    """The area under the polygon of (error, share), summed over 20,000 strips."""
    ordered = sorted(errors)
    corners = [(0.0, 0.0)] + [(e, (i + 1) / len(ordered)) for i, e in enumerate(ordered) if e < threshold]
    corners.append((threshold, corners[-1][1]))
    strips = (np.arange(20_000) + 0.5) / 20_000 * threshold
    return float(np.mean(np.interp(strips, *zip(*corners, strict=True))))


def test_every_pair_against_the_protocol(world: World, scored: PoseScore) -> None:
    keypoints, matches = noisy_matches(world)
    errors: dict[str, list[float]] = {"poselib": [], "opencv": []}
    for score, pair in zip(scored.pairs, PAIRS, strict=True):
        index = matches[pair]
        used = np.flatnonzero(index >= 0)
        points0 = keypoints[pair.name0][used].astype(np.float32).astype(float)
        points1 = keypoints[pair.name1][index[used]].astype(np.float32).astype(float)
        truth = world.true_pose(pair)
        assert score.pair == pair
        assert score.matches == len(used)
        assert score.precision == pytest.approx(plain_precision(world, truth, points0, points1), abs=1e-9)
        for name, found in plain_estimates(world, points0, points1).items():
            wanted = plain_error(found, truth)
            got = score.errors[name]
            if pair == WRONG_MATCHES:  # any pose; the least rounding makes another of it
                assert got.deg > 5
            else:
                assert (got.rotation_deg, got.translation_deg) == pytest.approx(wanted, abs=0.02), name
            errors[name].append(got.deg)
    assert scored.pairs[0].errors["poselib"].deg < 1
    for name, values in errors.items():
        whole = scored.overall.estimators[name]
        assert whole.auc == pytest.approx([plain_auc(values, t) for t in (5, 10, 20)], abs=1e-3)
        assert whole.failed == sum(math.isinf(value) for value in values) >= 2


def test_pairs_without_a_pose_are_infinitely_wrong(scored: PoseScore) -> None:
    by_pair = {score.pair: score for score in scored.pairs}
    for pair, matches in ((WITHOUT_MATCHES, 0), (FEW_MATCHES, 4)):
        score = by_pair[pair]
        assert score.matches == matches
        assert all(math.isinf(error.deg) and error.inliers == 0 for error in score.errors.values())
        assert score.as_json()["estimators"]["opencv"]["rotation_deg"] is None
    assert by_pair[WITHOUT_MATCHES].precision == 0
    most = (len(PAIRS) - 2) / len(PAIRS)
    assert all(auc < most for score in scored.overall.estimators.values() for auc in score.auc)


def test_means_and_medians(scored: PoseScore) -> None:
    whole = scored.overall
    assert whole.matches == pytest.approx(np.mean([score.matches for score in scored.pairs]))
    assert whole.precision == pytest.approx(np.mean([score.precision for score in scored.pairs]))
    assert whole.keypoints == 200
    for name, one in whole.estimators.items():
        of_it = [score.errors[name] for score in scored.pairs]
        assert one.inliers == pytest.approx(np.mean([error.inliers for error in of_it]))
        assert sum(error.rotation_deg < one.median_rotation_deg for error in of_it) == 4
        assert sum(error.deg < one.median_deg for error in of_it) == 4
    assert scored.scenes["arc"] == whole


@pytest.mark.parametrize("k1", [-0.15, 0.2])
def test_a_lens_does_not_change_the_poses(world: World, scored: PoseScore, k1: float, tmp_path: Path) -> None:
    """The same noisy rays, photographed through a lens that distorts: precision and poses stay."""
    keypoints, matches = noisy_matches(world)
    bent = {}
    for name, points in keypoints.items():
        plane = (points + 0.5 - world.centre) / world.focal
        stretch = 1 + k1 * (plane**2).sum(axis=1, keepdims=True)
        bent[name] = plane * stretch * world.focal + world.centre - 0.5
    scene = replace(world, k1=k1).write(tmp_path / "arc")
    found = evaluate_poses([scene], {"arc": PAIRS}, {"arc": store(bent, matches, tmp_path)})
    for straight, through_lens in zip(scored.pairs, found.pairs, strict=True):
        assert through_lens.precision == pytest.approx(straight.precision, abs=0.006)  # one match at the threshold
        if straight.pair != WRONG_MATCHES:
            for name, error in straight.errors.items():
                assert through_lens.errors[name].deg == pytest.approx(error.deg, abs=0.02)


def test_images_without_keypoints(world: World, scene: PosedScene, tmp_path: Path) -> None:
    keypoints, _ = noisy_matches(world)
    keypoints["00.png"] = np.zeros((0, 2))
    pair = PAIRS[0]
    found = evaluate_poses([scene], {"arc": [pair]}, {"arc": store(keypoints, {pair: np.zeros(0)}, tmp_path)})
    assert found.pairs[0].keypoints == (0, 200)
    assert found.overall.estimators["poselib"].auc == (0.0, 0.0, 0.0)
    assert found.overall.estimators["poselib"].as_json()["median_deg"] is None


def test_whose_pixels_thresholds_are_in(world: World, scene: PosedScene, tmp_path: Path) -> None:
    """Features of images reduced to a quarter: 1 px there is 4 px of the file, so more matches are inliers."""
    keypoints, matches = noisy_matches(world)
    rng = np.random.default_rng(5)
    noisier = {name: points + rng.normal(0, 1, points.shape) for name, points in keypoints.items()}
    made = store(noisier, matches, tmp_path, resize_max=160)
    scores = {
        pixels: evaluate_poses(
            [scene], {"arc": PAIRS[:1]}, {"arc": made}, RelativePoseConfig(threshold_pixels=pixels)
        ).pairs[0]
        for pixels in ("resized", "original")
    }
    for name in ("poselib", "opencv"):
        assert scores["resized"].errors[name].inliers > 1.3 * scores["original"].errors[name].inliers
    assert scores["resized"].precision == scores["original"].precision


def test_the_sign_of_the_translation(world: World, scene: PosedScene, predictions: Predictions) -> None:
    """With points in front of both cameras the sign is right, so asking for it changes nothing here."""
    config = RelativePoseConfig(signed_translation=True)
    signed = evaluate_poses([scene], {"arc": PAIRS[:1]}, {"arc": predictions}, config)
    free = evaluate_poses([scene], {"arc": PAIRS[:1]}, {"arc": predictions})
    assert signed.pairs == free.pairs
