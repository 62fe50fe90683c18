"""CPU seconds an image of ALIKED, DISK and XFeat: as featkit runs them, and kornia's networks called by hand.

    python benchmarks/published_speed.py [--networks aliked-n16 ...] [--sizes 640x480 1600x1200] [--repeats 5]
                                         [--threads 1] [--keypoints 2048] [--photo FILE] [--out NAME]

Both take the same float image and the authors' weights, alternate in one process, and rows are medians of the process's
CPU seconds, which other programs on the machine change little. `keypoints_in_one_alone`: of both sets, those without
another one within 1e-3 px; `descriptor_error`: largest difference over the keypoints of both. Peak memory is that of a
process of its own that runs one of them once, less what it had before. Writes benchmarks/results/published_speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import kornia
import numpy as np
import torch
from machine import write_result
from torch import Tensor

from featkit.core.registry import resolve
from featkit.features.published_networks import load_network
from featkit.weights.catalogue import load_published

NETWORKS = ("aliked-n16", "aliked-n16rot", "aliked-t16", "disk", "xfeat")
ALIKE_PX = 1e-3
Found = tuple[np.ndarray, np.ndarray]
Run = Callable[[], Found]


def photograph(file: Path, size: str) -> np.ndarray:
    width, height = (int(part) for part in size.split("x"))
    return np.ascontiguousarray(cv2.resize(cv2.imread(str(file))[..., ::-1], (width, height)))


def ours(name: str, pixels: np.ndarray, keypoints: int) -> Run:
    """featkit's extractor, without the thread that it runs its network in."""
    extractor: Any = resolve("extractor", name, {"max_keypoints": keypoints}, "cpu").built
    extractor._start_thread()
    return lambda: (lambda found: (found.keypoints, found.descriptors))(extractor._run_batch([pixels])[0])


def by_hand(name: str, pixels: np.ndarray, keypoints: int) -> Run:
    """kornia's network with the options that give the same features."""
    options: dict[str, Any] = {}
    if name.startswith("aliked"):
        options = {"max_num_keypoints": keypoints, "detection_threshold": 0.0}
    elif name == "xfeat":
        options = {"top_k": keypoints}
    network = load_network(name, load_published(name, ""), **options)

    @torch.inference_mode()
    def run() -> Found:
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().contiguous() / 255
        if name == "xfeat":
            (found,) = network.detectAndCompute(image)  # type: ignore[operator]
            return _arrays(found["keypoints"], found["descriptors"])
        if name == "disk":
            (disk,) = network(image, n=keypoints, pad_if_not_divisible=True)
            return _arrays(disk.keypoints, disk.descriptors)
        (aliked,) = network(image)
        return _arrays(aliked.keypoints, aliked.descriptors)

    return run


def _arrays(keypoints: Tensor, descriptors: Tensor) -> Found:
    return keypoints.float().numpy(), descriptors.numpy()


def compared(found: Found, expected: Found, name: str, pixels: np.ndarray) -> dict[str, Any]:
    """How far the two sets of features are apart."""
    points = found[0]
    if name == "xfeat":  # whose pixel frame featkit corrects
        sides = np.array(pixels.shape[1::-1])
        scale = sides // 32 * 32 / sides
        points = points - (0.5 / scale - 0.5)
    distances = np.linalg.norm(points[:, None] - expected[0][None], axis=2)
    nearest, same = distances.argmin(1), distances.min(1) < ALIKE_PX
    error = np.abs(found[1][same] - expected[1][nearest[same]]).max()
    return {
        "keypoints": len(points),
        "keypoints_in_one_alone": int((~same).sum() + (distances.min(0) >= ALIKE_PX).sum()),
        "keypoint_error_px": float(distances.min(1)[same].max()),
        "descriptor_error": float(error),
    }


def one(name: str, size: str, pixels: np.ndarray, arguments: argparse.Namespace) -> dict[str, Any]:
    runs = {make.__name__: make(name, pixels, arguments.keypoints) for make in (ours, by_hand)}
    results, taken = in_turn(runs, arguments.repeats)
    row = {
        "network": name,
        "size": size,
        "threads": arguments.threads,
        **taken,
        "peak_memory_mb": {method: memory(name, size, method, arguments) for method in runs},
        **compared(results["ours"], results["by_hand"], name, pixels),
    }
    print(json.dumps({key: value for key, value in row.items() if key != "cpu_seconds_all"}), flush=True)
    return row


def in_turn(runs: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `ours` and `by_hand` return, and a row's entries of their CPU-seconds; each first call is not timed."""
    results = {method: run() for method, run in runs.items()}
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    for _ in range(repeats):
        for method, run in runs.items():
            started = time.process_time()
            run()
            seconds[method].append(round(time.process_time() - started, 4))
    medians = {method: statistics.median(values) for method, values in seconds.items()}
    rate = round(medians["by_hand"] / medians["ours"], 3)
    return results, {"cpu_seconds": medians, "cpu_seconds_all": seconds, "rate_over_kornia": rate}


def memory(name: str, size: str, method: str, arguments: argparse.Namespace) -> float:
    """Of a process of its own."""
    command = [sys.executable, __file__, "--memory-of", method, "--networks", name, "--sizes", size]
    command += ["--threads", str(arguments.threads), "--keypoints", str(arguments.keypoints)]
    done = subprocess.run([*command, "--photo", str(arguments.photo)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_memory(arguments: argparse.Namespace) -> None:
    pixels = photograph(arguments.photo, arguments.sizes[0])
    run = {"ours": ours, "by_hand": by_hand}[arguments.memory_of](arguments.networks[0], pixels, arguments.keypoints)
    print(added_mb(run))


def added_mb(run: Callable[[], Any]) -> float:
    """Peak memory of a call, less what this process has before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_mb("VmRSS")
    run()
    return round(resident_mb("VmHWM") - before, 1)


def resident_mb(which: str) -> float:
    """Of this process by Linux: VmRSS now, VmHWM at the peak. (getrusage also counts the parent before the fork.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(which))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photo = Path(__file__).resolve().parents[2] / "shared" / "data" / "sacre_coeur" / "02928139_3448003521.jpg"
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--sizes", nargs="*", default=["640x480", "1600x1200"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keypoints", type=int, default=2048)
    parser.add_argument("--photo", type=Path, default=photo)
    parser.add_argument("--memory-of", choices=["ours", "by_hand"], help="print one peak memory in MB, and no more")
    parser.add_argument("--out", default="published_speed", help="name of the result")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print_memory(arguments)
        return
    rows = []
    for size in arguments.sizes:
        pixels = photograph(arguments.photo, size)
        for name in arguments.networks:
            rows.append(one(name, size, pixels, arguments))
            print(write_result(arguments.out, {"kornia": kornia.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
