"""SCFeat's error of the fundamental matrix (algorithm 1): all draws in one call beside a Python loop, in the same run.

    python benchmarks/fundamental_error.py [--pairs 2 8] [--draws 100] [--repeats 5] [--devices cpu cuda]

Each batch holds random scenes: 2,800 keypoints per image (what a 640 x 480 px image draws at first), of which those
pairs are good that lie within 2 px of each other's epipolar lines. Errors are taken of the same sets of eight, in units
of the image, and are the same (`largest_difference`):

    featkit           `set_errors`: all draws of all pairs of images at once
    loop, numpy       one draw after the other on the CPU, two singular value decompositions each
    loop, torch       the same with torch on the device, as the authors' code loops

Drawing the sets out of the match matrix is timed by itself: featkit's `draw_sets`; the loops list the good pairs of
each matrix once and choose eight of the list for each draw. `featkit_is_faster_by` says how the loops compare without
the drawing and with it. Rows are medians, turn about. Writes benchmarks/results/fundamental_error.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import write_result

from featkit.losses.scfeat_detection import match_matrix
from featkit.losses.scfeat_fundamental import FundamentalErrorConfig, draw_sets, set_errors

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from eight_point_loop import eight_point, smooth_l1
from synthetic_views import two_views

SIZE = (640, 480)
KEYPOINTS = 2800
GOOD_PX = 2.0
CONFIG = FundamentalErrorConfig()
INNER = 20  # calls of featkit at a time: a single one is too short for the clock
Run = Callable[[], Any]


def scenes(pairs: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Uniform keypoints of both images and the true matrices: near an epipolar line there is always some keypoint."""
    draw = torch.Generator().manual_seed(0)
    size = torch.tensor(SIZE, dtype=torch.float32)
    points = [(torch.rand(pairs, KEYPOINTS, 2, generator=draw) * size).floor().to(device) for _ in range(2)]
    matrices = np.stack([two_views(seed, 8, SIZE).fundamental for seed in range(pairs)])
    return points[0], points[1], torch.from_numpy(matrices).to(device)


def in_image_units(sets: torch.Tensor) -> torch.Tensor:
    """Points from the image's middle, in halves of its longer side."""
    return (sets - (torch.tensor(SIZE, dtype=sets.dtype, device=sets.device) - 1) / 2) / (max(SIZE) / 2)


def true_in_image_units(truths: torch.Tensor) -> torch.Tensor:
    """F of such points, of norm 1."""
    half, middle = max(SIZE) / 2, [(side - 1) / 2 for side in SIZE]
    to_pixels = truths.new_tensor([[half, 0, middle[0]], [0, half, middle[1]], [0, 0, 1]])
    moved = to_pixels.T @ truths @ to_pixels
    return moved / moved.norm(dim=(1, 2), keepdim=True)


def numpy_draws(good: np.ndarray, draws: int) -> Run:
    def run() -> list[np.ndarray]:
        rng, found = np.random.default_rng(0), []
        for one in good:
            places = np.argwhere(one)
            found += [places[rng.choice(len(places), 8, replace=False)] for _ in range(draws)]
        return found

    return run


def torch_draws(good: torch.Tensor, draws: int) -> Run:
    def run() -> list[torch.Tensor]:
        found = []
        for one in good:
            places = one.nonzero()
            found += [places[torch.randperm(len(places), device=good.device)[:8]] for _ in range(draws)]
        return found

    return run


def numpy_loop(sets0: np.ndarray, sets1: np.ndarray, truths: np.ndarray) -> Run:
    def run() -> np.ndarray:
        errors = np.empty(sets0.shape[:2])
        for pair, truth in enumerate(truths):
            for draw, (a, b) in enumerate(zip(sets0[pair], sets1[pair], strict=True)):
                found = eight_point(a, b)
                errors[pair, draw] = smooth_l1(-found if (found * truth).sum() < 0 else found, truth)
        return errors

    return run


def torch_similarity(points: torch.Tensor) -> torch.Tensor:
    mean = points.mean(0)
    scale = 2**0.5 / (points - mean).norm(dim=1).mean()
    similarity = torch.eye(3, dtype=points.dtype, device=points.device)
    similarity[0, 0] = similarity[1, 1] = scale
    similarity[:2, 2] = -scale * mean
    return similarity


def torch_eight_point(points0: torch.Tensor, points1: torch.Tensor) -> torch.Tensor:
    """As `eight_point` of the tests, on the device of the points."""
    moves = [torch_similarity(points) for points in (points0, points1)]
    one = torch.ones_like(points0[:, :1])
    first, second = (
        torch.cat([points, one], 1) @ move.T for points, move in zip((points0, points1), moves, strict=True)
    )
    equations = (second[:, :, None] * first[:, None]).flatten(1)
    u, s, v = torch.linalg.svd(torch.linalg.svd(equations).Vh[-1].view(3, 3))
    s[2] = 0
    found = moves[1].T @ (u @ torch.diag(s) @ v) @ moves[0]
    return found / found.norm()


def torch_loop(sets0: torch.Tensor, sets1: torch.Tensor, truths: torch.Tensor) -> Run:
    def run() -> np.ndarray:
        errors = torch.empty(sets0.shape[:2], dtype=torch.float64, device=sets0.device)
        for pair in range(len(truths)):
            for draw in range(sets0.shape[1]):
                found = torch_eight_point(sets0[pair, draw], sets1[pair, draw])
                aligned = torch.where((found * truths[pair]).sum() < 0, -found, found)
                errors[pair, draw] = torch.nn.functional.smooth_l1_loss(aligned, truths[pair])
        return errors.cpu().numpy()

    return run


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def medians(
    runs: dict[str, Run], repeats: int, device: torch.device
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Milliseconds by name, turn about, after one call of each; and all of them."""
    for run in runs.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            inner = INNER if name == "featkit" else 1
            seconds = seconds_of(lambda run=run, inner=inner: [run() for _ in range(inner)], device) / inner
            found[name].append(round(1e3 * seconds, 3))
    return {name: statistics.median(values) for name, values in found.items()}, found


def on_batch(pairs: int, draws: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """All rows of one batch size on one device."""
    points0, points1, truths = scenes(pairs, device)
    good = match_matrix(points0, points1, truths, GOOD_PX)
    generator = torch.Generator().manual_seed(1)
    which, enough = draw_sets(good, draws, generator)
    assert enough.all()
    batch = torch.arange(pairs, device=device)[:, None, None]
    sets0, sets1 = points0[batch, which[..., 0]].double(), points1[batch, which[..., 1]].double()
    moved = in_image_units(sets0), in_image_units(sets1), true_in_image_units(truths)
    runs: dict[str, Run] = {
        "featkit": lambda: set_errors(sets0, sets1, truths, SIZE, CONFIG).cpu().numpy(),
        "loop, numpy": numpy_loop(*(values.cpu().numpy() for values in moved)),
        "loop, torch": torch_loop(*moved),
    }
    drawing: dict[str, Run] = {
        "featkit": lambda: draw_sets(good, draws, generator),
        "loop, numpy": numpy_draws(good.cpu().numpy(), draws),
        "loop, torch": torch_draws(good, draws),
    }
    errors = {name: run() for name, run in runs.items()}
    error_ms, all_errors = medians(runs, repeats, device)
    drawing_ms, all_drawing = medians(drawing, repeats, device)
    whole_ms = {name: error_ms[name] + drawing_ms[name] for name in runs}
    print(device, pairs, {name: f"{error_ms[name]:.2f} + {drawing_ms[name]:.2f} ms" for name in runs}, flush=True)
    rows = [
        {
            "method": name,
            "errors_ms": error_ms[name],
            "drawing_ms": drawing_ms[name],
            "errors_ms_all": all_errors[name],
            "drawing_ms_all": all_drawing[name],
            "featkit_is_faster_by": {
                "without_drawing": round(error_ms[name] / error_ms["featkit"], 1),
                "with_drawing": round(whole_ms[name] / whole_ms["featkit"], 1),
            },
            "largest_difference": float(np.abs(errors[name] - errors["featkit"]).max()),
            "smallest_error": errors[name].min(1).tolist(),
        }
        for name in runs
    ]
    return {"pairs": pairs, "draws": draws, "good_pairs": good.sum((1, 2)).tolist(), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[2, 8])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", nargs="*", default=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    arguments = parser.parse_args()
    devices = []
    for name in arguments.devices:
        device = torch.device(name)
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        batches = [on_batch(pairs, arguments.draws, arguments.repeats, device) for pairs in arguments.pairs]
        devices.append({"device": name, "where": where, "batches": batches})
    print(write_result("fundamental_error", {"image": f"{SIZE[0]} x {SIZE[1]} px", "devices": devices}))


if __name__ == "__main__":
    main()
