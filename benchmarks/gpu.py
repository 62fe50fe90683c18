"""How fast featkit's inner loops are on one device, and how near to what the device can do.

    python benchmarks/gpu.py [--device cuda] [--minutes 7] [--only dense matching patches training]

First the device itself: multiply-adds per second of large matrix products in each precision, and bytes per second of a
large copy. Then, each with random weights, descriptors or patches of the real shapes:

    dense      images/s of SCFeat's network, 640 x 480 and 1600 x 1200, one image and a batch
    matching   pairs/s of mutual nearest neighbours, 2,048 and 8,192 descriptors of 128 numbers
    patches    patches/s of L2-Net and HyNet
    training   steps/s of HyNet with its loss and optimiser, 512 patches a step

A row's `floor_s` is the longer of two times: its FLOP (counted by torch) at the product's rate, and its compulsory
bytes (inputs, outputs and weights, each once) at the copy's. `of_floor` is that over the measured median. No file of
data is needed, nor kornia, nor pycolmap. Each kind of work gets its share of --minutes. Writes
benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from machine import write_result
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from featkit.core.types import Features
from featkit.features.fast.scfeat import FrozenSCFeat
from featkit.features.patches import FrozenNetwork
from featkit.losses.base import PairBatch
from featkit.losses.hynet import HyNetLoss, HyNetLossConfig
from featkit.matching.mutual import MutualConfig, MutualMatcher
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = ((640, 480), (1600, 1200))
KEYPOINTS = (2048, 8192)
PATCHES = 1024
FEWEST, MOST = 3, 50  # timed repeats of a row
Run = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """One row to be measured. items: what `run` does at once. bytes: of inputs, outputs, weights. flop: 0: counted."""

    kind: str
    name: str
    unit: str
    items: int
    precision: str
    bytes: int
    run: Run
    flop: int = 0


@dataclass(frozen=True)
class Device:
    """flop_per_s: by precision, a multiply-add being two. bytes_per_s: read and written together."""

    device: torch.device
    flop_per_s: dict[str, float]
    bytes_per_s: float

    @staticmethod
    def measured(device: torch.device) -> Device:
        side = 8192 if device.type == "cuda" else 1024
        rates = {}
        for name, dtype in PRECISIONS.items():
            if device.type == "cpu" and name != "fp32":
                continue
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            a = torch.randn(side, side, device=device, dtype=dtype)
            rates[name] = 2 * side**3 / statistics.median(seconds(partial(torch.mm, a, a), device, 2.0))
        torch.backends.cuda.matmul.allow_tf32 = False
        block = torch.empty(2**28 if device.type == "cuda" else 2**25, device=device, dtype=torch.uint8)
        copied = torch.empty_like(block)
        moved = 2 * block.numel() / statistics.median(seconds(lambda: copied.copy_(block), device, 2.0))
        return Device(device, rates, moved)

    def rate(self, precision: str) -> float:
        """FLOP/s that the work may reach: on a GPU, convolutions in fp32 compute in TF32 as torch is set up to."""
        return self.flop_per_s.get("tf32" if precision == "fp32" else precision, self.flop_per_s["fp32"])


def seconds(run: Run, device: torch.device, limit_s: float) -> list[float]:
    """Times of single calls, after two to warm up."""
    for _ in range(2):
        run()
    _wait(device)
    took: list[float] = []
    started = time.perf_counter()
    while len(took) < FEWEST or (len(took) < MOST and time.perf_counter() - started < limit_s):
        before = time.perf_counter()
        run()
        _wait(device)
        took.append(time.perf_counter() - before)
    return took


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def size_of(*things: Tensor | nn.Module) -> int:
    """Bytes of tensors, and of networks' parameters."""
    tensors = [t for thing in things for t in (thing.parameters() if isinstance(thing, nn.Module) else (thing,))]
    return sum(t.numel() * t.element_size() for t in tensors)


def dense(device: torch.device) -> Iterator[Work]:
    on_gpu = device.type == "cuda"
    for name, encoder in (("scfeat-s", "resnet18"), ("scfeat", "resnet50")):
        network = SCFeatNetwork(SCFeatNetworkConfig(encoder=encoder))
        for precision in ("fp32", "bf16") if on_gpu else ("fp32",):
            frozen = FrozenSCFeat(network, device, precision)  # type: ignore[arg-type]
            for width, height in SIZES if on_gpu else SIZES[:1]:
                for batch in (1, 16) if on_gpu else (1,):
                    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, device=device)
                    outputs = batch * height * width * 4 * (network.dimension // 16 + 1)
                    moved = size_of(images, network) + outputs
                    label = f"{name} {width} x {height}, batch {batch}"
                    yield Work("dense", label, "images", batch, precision, moved, partial(frozen, images))


def matching(device: torch.device) -> Iterator[Work]:
    matcher = MutualMatcher(MutualConfig(), str(device))
    generator = torch.Generator().manual_seed(0)
    for count in KEYPOINTS:
        pairs = []
        for _ in range(16 if device.type == "cuda" else 2):
            rows = nn.functional.normalize(torch.randn(2, count, 128, generator=generator), dim=2).numpy()
            both = (Features(one[:, :2].copy(), one, one[:, 0].copy(), (640, 480)) for one in rows)
            pairs.append(tuple(both))
        moved = len(pairs) * 2 * count * (128 * 4 + 8)
        flop = len(pairs) * 2 * count**2 * 128  # its threads are not seen by the counter
        run = partial(matcher.match, pairs)  # type: ignore[arg-type]
        yield Work("matching", f"{count} x 128, from and to the host", "pairs", len(pairs), "fp32", moved, run, flop)


def patches(device: torch.device) -> Iterator[Work]:
    batch = torch.rand(PATCHES, 32, 32, device=device)
    for architecture in ("l2net", "hynet"):
        network = PatchNetwork(PatchNetworkConfig(architecture=architecture)).eval()
        for precision in ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32",):
            frozen = FrozenNetwork(network, device, precision)  # type: ignore[arg-type]
            moved = size_of(batch, network) + PATCHES * 128 * 4
            yield Work("patches", architecture, "patches", PATCHES, precision, moved, partial(frozen, batch))


def training(device: torch.device) -> Iterator[Work]:
    pairs = 256
    network = PatchNetwork(PatchNetworkConfig(architecture="hynet")).to(device).train()
    loss = HyNetLoss(HyNetLossConfig())
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    batch = torch.rand(2 * pairs, 1, 32, 32, device=device)

    def step(autocast: bool) -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            found = network(batch)
        parts = (found.descriptor[:pairs], found.descriptor[pairs:], found.raw[:pairs], found.raw[pairs:])
        loss(PairBatch(*parts), 0.5).loss.backward()
        optimiser.step()

    for precision in ("fp32", "bf16") if device.type == "cuda" else ("fp32",):
        moved = size_of(batch) + 6 * size_of(network)  # weights, gradients and Adam's two moments, read and written
        yield Work("training", "hynet, 512 patches", "steps", 1, precision, moved, partial(step, precision == "bf16"))


KINDS: dict[str, Callable[[torch.device], Iterator[Work]]] = {
    "dense": dense,
    "matching": matching,
    "patches": patches,
    "training": training,
}


def measured(work: Work, device: Device, limit_s: float) -> dict[str, Any]:
    """A row: rate, FLOP, the floor, and how near it is."""
    with FlopCounterMode(display=False) as counter:
        work.run()
    took = statistics.median(seconds(work.run, device.device, limit_s))
    flop = work.flop or counter.get_total_flops()
    floor = max(flop / device.rate(work.precision), work.bytes / device.bytes_per_s)
    row = {key: value for key, value in vars(work).items() if key not in ("run", "unit", "flop")}
    row |= {f"{work.unit}_per_s": round(work.items / took, 3), "seconds": took, "flop": flop}
    row |= {"floor_s": floor, "of_floor": round(floor / took, 4)}
    print(f"{work.kind}: {work.name}, {work.precision}: {work.items / took:.1f} {work.unit}/s,", end=" ")
    print(f"{100 * row['of_floor']:.0f} % of the floor", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--out", default="gpu", help="name of the result file")
    arguments = parser.parse_args()
    device = Device.measured(torch.device(arguments.device))
    print({name: f"{rate / 1e12:.2f} TFLOP/s" for name, rate in device.flop_per_s.items()}, flush=True)
    works = [(kind, list(KINDS[kind](device.device))) for kind in arguments.only]
    rows = []
    for _, listed in works:
        limit = 60 * arguments.minutes / len(works) / len(listed) / 2  # the other half: warming up, counting
        rows += [measured(work, device, limit) for work in listed]
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} threads"
    result = {
        "device": name,
        "tflop_per_s": {name: round(rate / 1e12, 3) for name, rate in device.flop_per_s.items()},
        "gigabytes_per_s": round(device.bytes_per_s / 1e9, 1),
        "rows": rows,
    }
    print(write_result(arguments.out, result))


if __name__ == "__main__":
    main()
