"""Ways to run SCFeat's dense network on a CPU: CPU seconds an image, start-up, memory, and how far maps are apart.

    python benchmarks/dense_ways.py [--cases scfeat-s:640x480 ...] [--threads 1 2] [--repeats 3]
                                    [--ways engine plain openvino openvino-bf16 compile] [--out NAME]

engine: what featkit runs (features/fast). plain: the network as it is written, channels last. openvino: the same,
converted in memory and compiled for the image's size, float32. openvino-bf16: with bfloat16 allowed. compile:
torch.compile (minutes to compile; by name only). They alternate in one process; rows are medians of its CPU seconds,
which other programs on the machine change little. Start-up is what comes before the first image: conversion and
compilation, in CPU seconds. Differences are against `plain`. Keypoints: those of plain's 2048 best that a way lacks.
Peak memory is that of a process of its own that runs one way once. `scfeat-s` has its shipped weights; `scfeat`, which
has none, random ones. Needs the package openvino for its ways. Writes
benchmarks/results/dense_ways.json after each case, so that a run that was stopped leaves the cases it got to.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from machine import write_result
from published_speed import resident_mb
from torch import Tensor, nn

from featkit.features.fast.scfeat import FrozenSCFeat
from featkit.features.scfeat import find_keypoints
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.weights.files import load_scfeat_network
from featkit.weights.manifest import find_weights

CASES = ("scfeat-s:640x480", "scfeat-s:1600x1200", "scfeat:640x480", "scfeat:1600x1200")
WAYS = ("engine", "plain", "openvino", "openvino-bf16", "compile")
KEYPOINTS = 2048
Maps = tuple[np.ndarray, np.ndarray]
Run = Callable[[], Maps]


def network_of(name: str) -> SCFeatNetwork:
    if name == "scfeat-s":
        return load_scfeat_network(find_weights(name)).eval()
    return SCFeatNetwork(SCFeatNetworkConfig(), torch.Generator().manual_seed(0)).eval()


def photograph(file: Path, size: str) -> np.ndarray:
    width, height = (int(part) for part in size.split("x"))
    return np.ascontiguousarray(cv2.resize(cv2.imread(str(file))[..., ::-1], (width, height)))


def by_torch(network: SCFeatNetwork, pixels: np.ndarray, way: str) -> Run:
    fast = way == "engine"
    frozen = FrozenSCFeat(network, torch.device("cpu"), fast=fast, compiled=way == "compile")
    given = torch.from_numpy(pixels)[None]

    def run() -> Maps:
        found = frozen(given)
        return found.descriptors.numpy(), found.scores.numpy()

    if way == "compile":
        run()
    return run


class _Converted(nn.Module):
    def __init__(self, network: SCFeatNetwork):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps, scores = self.network(images.permute(0, 3, 1, 2).float() / 255)
        return maps.descriptors, scores


def by_openvino(network: SCFeatNetwork, pixels: np.ndarray, way: str) -> Run:
    import openvino

    shape = openvino.PartialShape([1, *pixels.shape])
    example = torch.zeros((1, 128, 128, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(_Converted(network), example_input=example, input=[shape])
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if way.endswith("bf16") else "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def run() -> Maps:
        found = request.infer([pixels[None]], share_inputs=True)
        return found[0], found[1]

    return run


def made(way: str, network: SCFeatNetwork, pixels: np.ndarray) -> Run:
    return (by_openvino if way.startswith("openvino") else by_torch)(network, pixels, way)


def cpu_seconds() -> float:
    """Of this process and of those that it waited for (a compiler's)."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def keypoints(scores: np.ndarray) -> np.ndarray:
    found = find_keypoints(torch.from_numpy(np.ascontiguousarray(scores))[0, 0], 0.0, 3, 1, KEYPOINTS)
    return found.points.numpy()


def measured(name: str, size: str, ways: list[str], repeats: int, photo: Path) -> list[dict[str, Any]]:
    """Rows of one network, size and number of threads, in this process."""
    network, pixels = network_of(name), photograph(photo, size)
    runs, start_up = {}, {}
    for way in ways:
        before = cpu_seconds()
        runs[way] = made(way, network, pixels)
        start_up[way] = round(cpu_seconds() - before, 2)
    results = {way: run() for way, run in runs.items()}
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(repeats):
        for way, run in runs.items():
            started = time.process_time()
            run()
            seconds[way].append(time.process_time() - started)
    engine = statistics.median(seconds["engine"]) if "engine" in seconds else None
    wanted = keypoints(results["plain"][1]) if "plain" in results else None
    rows = []
    for way, values in seconds.items():
        median = statistics.median(values)
        row: dict[str, Any] = {"way": way, "cpu_seconds": round(median, 3)}
        row |= {"cpu_seconds_all": [round(value, 3) for value in values], "start_up_cpu_seconds": start_up[way]}
        if engine is not None:
            row["over_engine"] = round(median / engine, 2)
        if wanted is not None:
            plain, found = results["plain"], results[way]
            row["descriptor_map_error"] = float(np.abs(found[0] - plain[0]).max())
            row["score_error"] = float(np.abs(found[1] - plain[1]).max())
            distances = np.linalg.norm(wanted[:, None] - keypoints(found[1])[None], axis=2).min(1)
            row["keypoints_lacking"] = int((distances > 0.01).sum())
        rows.append(row)
    return rows


def in_process(arguments: argparse.Namespace, case: str, threads: int, memory_of: str = "") -> Any:
    """The last line that a process of its own prints, as it is measured with this number of threads."""
    command = [sys.executable, __file__, "--cases", case, "--threads", str(threads), "--child"]
    command += ["--repeats", str(arguments.repeats), "--photo", str(arguments.photo)]
    command += ["--ways", *([memory_of] if memory_of else arguments.ways), *(["--memory"] if memory_of else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def child(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads[0])
    name, size = arguments.cases[0].split(":")
    if not arguments.memory:
        print(json.dumps(measured(name, size, arguments.ways, arguments.repeats, arguments.photo)))
        return
    made(arguments.ways[0], network_of(name), photograph(arguments.photo, size))()
    print(round(resident_mb("VmHWM"), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photo = Path(__file__).resolve().parents[2] / "shared" / "data" / "sacre_coeur" / "02928139_3448003521.jpg"
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES, help="network:size")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--ways", nargs="*", default=list(WAYS[:-1]), choices=WAYS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--photo", type=Path, default=photo)
    parser.add_argument("--child", action="store_true", help="measure here and print")
    parser.add_argument("--memory", action="store_true", help="of a child: print its peak memory in MB")
    parser.add_argument("--out", default="dense_ways", help="name of the result")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    results = []
    for case in arguments.cases:
        for threads in arguments.threads:
            rows = in_process(arguments, case, threads)
            if threads == arguments.threads[0]:
                for row in rows:
                    row["peak_memory_mb"] = in_process(arguments, case, threads, row["way"])
            network, size = case.split(":")
            results.append({"network": network, "size": size, "threads": threads, "rows": rows})
            print(json.dumps(results[-1]), flush=True)
            result = {"openvino": importlib.metadata.version("openvino"), "keypoints": KEYPOINTS, "results": results}
            print(write_result(arguments.out, result))


if __name__ == "__main__":
    main()
