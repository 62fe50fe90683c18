"""Patches trained per second and the share of the time spent waiting for them, beside kornia's HyNet alone.

    python benchmarks/training.py --data PATCHES/liberty [--pairs 256] [--steps 20] [--rounds 5] [--device cpu]

featkit makes whole training steps: patches drawn, read and warped, network, loss, backward, optimiser. kornia's HyNet
makes a forward and a backward of as many patches that lie on the device already, under the simplest loss. Turn about,
`--steps` each; medians over the rounds. Patches are once on the device and once read from the disk's files ahead.
Writes benchmarks/results/training.json (training_cuda.json for a GPU).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import kornia
import torch
from machine import write_result

from featkit.core.registry import resolve
from featkit.data.phototour import read_phototour
from featkit.training.config import build_optimiser
from featkit.training.distributed import launch
from featkit.training.patch import PatchTask

BEFORE = 2  # steps that are not counted


class Featkit:
    """featkit's training, some steps at a time."""

    def __init__(self, data: Any, pairs: int, where: str, device: str, precision: str):
        changes = {"batch_size": pairs, "patches_on": where, "precision": precision, "steps": 1_000_000}
        config = resolve("task", "hynet", changes).own
        self.task = PatchTask(config, device)
        self.task.prepare(data, launch(device, 1, precision))
        self.optimiser = build_optimiser(config.optimiser, self.task.parameter_groups())

    def steps(self, count: int) -> tuple[float, float]:
        """Seconds that they took, and of them waiting for patches."""
        waited, started = self.task.waited_s(), time.perf_counter()
        for _ in range(count):
            self.optimiser.zero_grad(set_to_none=True)
            self.task.step(0.5).loss.item()  # waits for the device
            self.optimiser.step()
        return time.perf_counter() - started, self.task.waited_s() - waited


class KorniaAlone:
    """kornia's HyNet, forward and backward of one batch that stays where it is."""

    def __init__(self, patches: int, device: str, precision: str):
        self.network = kornia.feature.HyNet(pretrained=False).to(device).train()
        self.batch = torch.rand(patches, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    def steps(self, count: int) -> tuple[float, float]:
        started = time.perf_counter()
        for _ in range(count):
            self.network.zero_grad(set_to_none=True)
            with self.autocast:
                loss = self.network(self.batch).float().square().sum()
            loss.backward()
            loss.item()
        return time.perf_counter() - started, 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="patches as `featkit data patches` makes them")
    parser.add_argument("--pairs", type=int, default=256, help="in a batch")
    parser.add_argument("--steps", type=int, default=20, help="timed together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    arguments = parser.parse_args()
    data = read_phototour(arguments.data)
    where = (arguments.device, arguments.precision)
    runs: dict[str, Featkit | KorniaAlone] = {
        "featkit, patches on the device": Featkit(data, arguments.pairs, "device", *where),
        "featkit, patches read ahead": Featkit(data, arguments.pairs, "host", *where),
        "kornia, forward and backward": KorniaAlone(2 * arguments.pairs, *where),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        run.steps(BEFORE)
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            took[name].append(run.steps(arguments.steps))
    patches = 2 * arguments.pairs * arguments.steps
    rows = []
    for name, parts in took.items():
        seconds = statistics.median(part[0] for part in parts)
        share = statistics.median(waited / spent for spent, waited in parts)
        rows.append(
            {
                "method": name,
                "patches_per_s": round(patches / seconds, 1),
                "wait_share": round(share, 4),
                "patches_per_s_all": [round(patches / spent, 1) for spent, _ in parts],
            }
        )
    for row in rows:
        row["over_kornia"] = round(row["patches_per_s"] / rows[-1]["patches_per_s"], 3)
        print(row, flush=True)
    for run in runs.values():
        if isinstance(run, Featkit):
            run.task.close()
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} threads"
    result = {
        "network": "HyNet",
        "pairs": arguments.pairs,
        "steps": arguments.steps,
        "precision": arguments.precision,
        "device": device,
        "kornia": kornia.__version__,
        "data": f"{data.name}, {len(data)} patches",
        "rows": rows,
    }
    print(write_result("training" if arguments.device == "cpu" else "training_cuda", result))


if __name__ == "__main__":
    main()
