"""Relative poses of a map against the definition written out pair by pair; the edges of what can go wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from featkit.core.types import Pose
from featkit.evaluation.eth_scores import map_pose_errors
from featkit.evaluation.metrics import error_auc
from featkit.geometry.poses import camera_centre, look_at, quaternion, rotation_matrix
from featkit.mapping.align import transform_pose

THRESHOLDS = (1.0, 3.0, 5.0, 10.0)


def cameras(count: int, seed: int = 0) -> dict[str, Pose]:
    """Cameras on an arc that look at the middle, by name."""
    rng = np.random.default_rng(seed)
    angles = np.linspace(-0.8, 0.8, count)
    centres = np.stack([6 * np.sin(angles), -6 * np.cos(angles), rng.uniform(-0.5, 0.5, count)], axis=1)
    up = np.array([0.0, 0.0, 1.0])
    return {f"{i:02d}.jpg": look_at(centre, rng.normal(0, 0.1, 3), up) for i, centre in enumerate(centres)}


def shaken(poses: dict[str, Pose], degrees: float, seed: int = 1) -> dict[str, Pose]:
    """Turned and moved a little, each in its own way, by up to that much."""
    rng = np.random.default_rng(seed)
    moved = {}
    for name, pose in poses.items():
        axis = rng.normal(0, 1, 3)
        half = math.radians(rng.uniform(0, degrees)) / 2
        turn = np.concatenate([[math.cos(half)], math.sin(half) * axis / np.linalg.norm(axis)])
        rotation = rotation_matrix(turn) @ rotation_matrix(pose.qvec)
        centre = camera_centre(pose) + rng.normal(0, 0.02 * degrees, 3)
        moved[name] = Pose(quaternion(rotation), -rotation @ centre)
    return moved


def slow_error(found: dict[str, Pose], truth: dict[str, Pose], first: str, second: str) -> float:
    """By homogeneous matrices, and arc cosines of traces and of dot products."""
    if first not in found or second not in found:
        return math.inf
    relative = []
    for poses in (truth, found):
        matrices = []
        for name in (first, second):
            matrix = np.eye(4)
            matrix[:3, :3] = rotation_matrix(poses[name].qvec)
            matrix[:3, 3] = poses[name].tvec
            matrices.append(matrix)
        relative.append(matrices[1] @ np.linalg.inv(matrices[0]))
    cosine = (np.trace(relative[0][:3, :3].T @ relative[1][:3, :3]) - 1) / 2
    directions = [matrix[:3, 3] / math.sqrt(sum(value**2 for value in matrix[:3, 3])) for matrix in relative]
    both = (cosine, float(sum(a * b for a, b in zip(*directions, strict=True))))
    return max(math.degrees(math.acos(max(-1.0, min(1.0, value)))) for value in both)


def slow_auc(errors: list[float], threshold: float, steps: int = 200_000) -> float:
    """Mean over the errors up to the threshold of the share of pairs, on a fine grid, straight between the pairs."""
    reached = sorted(error for error in errors if error < threshold)
    xs, ys = [0.0, *reached, threshold], [0.0, *((i + 1) / len(errors) for i in range(len(reached)))]
    ys.append(ys[-1])
    grid = (np.arange(steps) + 0.5) * threshold / steps
    return float(np.interp(grid, xs, ys).mean()) if reached else 0.0


@pytest.mark.parametrize("lost", [(), ("03.jpg",), ("00.jpg", "05.jpg", "06.jpg")])
def test_errors_and_areas_are_the_definitions(lost: tuple[str, ...]) -> None:
    truth = cameras(7)
    found = {name: pose for name, pose in shaken(truth, 4.0).items() if name not in lost}
    found["not of the truth.jpg"] = found["01.jpg"]
    measured = map_pose_errors(found, truth)
    names = sorted(truth)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    expected = [slow_error(found, truth, *pair) for pair in pairs]
    assert [(measured.names[a], measured.names[b]) for a, b in measured.index.tolist()] == pairs
    np.testing.assert_allclose(measured.error_deg, expected, rtol=1e-6)
    assert np.median(measured.error_deg) > 0.5 or lost
    left = len(truth) - len(lost)
    assert measured.failed == len(pairs) - left * (left - 1) // 2
    areas = error_auc(measured.error_deg, THRESHOLDS)
    assert areas == pytest.approx([slow_auc(expected, threshold) for threshold in THRESHOLDS], abs=2e-4)
    assert areas[3] > 0.1


def test_an_exact_map_in_another_frame_and_scale() -> None:
    truth = cameras(9)
    turn = rotation_matrix(np.array([0.4, -0.3, 0.8, 0.2]))
    similarity = np.concatenate([0.01 * turn, [[700.0], [-3.0], [20.0]]], axis=1)
    found = {name: transform_pose(pose, similarity) for name, pose in truth.items()}
    measured = map_pose_errors(found, truth)
    assert len(measured.error_deg) == 36
    assert measured.error_deg.max() < 1e-6
    assert error_auc(measured.error_deg, THRESHOLDS) == pytest.approx([1.0] * 4, abs=1e-6)


def test_the_larger_angle_counts_and_a_mirrored_baseline_is_wrong() -> None:
    """One camera turned where it stands, by 10 degrees; then all centres mirrored at the middle: 180 degrees."""
    truth = cameras(3)
    half = math.radians(10) / 2
    turned = dict(truth)
    rotation = rotation_matrix(np.array([math.cos(half), 0.0, 0.0, math.sin(half)])) @ rotation_matrix(
        truth["02.jpg"].qvec
    )
    turned["02.jpg"] = Pose(quaternion(rotation), -rotation @ camera_centre(truth["02.jpg"]))
    errors = map_pose_errors(turned, truth).error_deg
    assert errors[0] == pytest.approx(0, abs=1e-6)
    assert errors[1:] == pytest.approx([10.0, 10.0])
    mirrored = {name: Pose(pose.qvec, -pose.tvec) for name, pose in truth.items()}
    assert map_pose_errors(mirrored, truth).error_deg == pytest.approx([180.0] * 3)


def test_nothing_found_and_all_wrong() -> None:
    truth = cameras(5)
    nothing = map_pose_errors({}, truth)
    assert nothing.failed == len(nothing.error_deg) == 10
    assert error_auc(nothing.error_deg, THRESHOLDS) == (0.0, 0.0, 0.0, 0.0)
    wrong = map_pose_errors(dict(zip(truth, reversed(truth.values()), strict=True)), truth)
    assert wrong.failed == 0
    assert wrong.error_deg.min() > 10
    assert error_auc(wrong.error_deg, THRESHOLDS) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("count", [0, 1])
def test_no_pair_at_all(count: int) -> None:
    truth = cameras(5)
    few = dict(list(truth.items())[:count])
    measured = map_pose_errors(truth, few)
    assert measured.index.shape == (0, 2)
    assert error_auc(measured.error_deg, THRESHOLDS) == (0.0, 0.0, 0.0, 0.0)


def test_two_cameras_in_one_place() -> None:
    """True ones are judged by rotation alone; found ones that should be apart have failed."""
    truth = cameras(3)
    centre = camera_centre(truth["00.jpg"])
    beside = rotation_matrix(truth["01.jpg"].qvec)
    together = {**truth, "01.jpg": Pose(truth["01.jpg"].qvec, -beside @ centre)}
    exact = map_pose_errors(truth, together).error_deg
    assert exact[0] < 1e-6
    assert exact[2] > 1  # from the place that is not the true one
    assert map_pose_errors(together, together).error_deg.max() < 1e-6
    collapsed = map_pose_errors(together, truth)
    assert collapsed.failed == 1
    assert math.isinf(collapsed.error_deg[0])
