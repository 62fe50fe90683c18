"""Keypoints described per second, patch cutting included: featkit beside kornia in one run, on the CPU and a GPU.

    python benchmarks/describe_speed.py [--image FILE] [--keypoints 8192] [--repeats 5] [--devices cpu cuda] [--drawn]

Both sides get one photograph (uint8, in main memory), its DoG keypoints and HyNet with the same weights, and give
float32 descriptors in main memory, turn about; rows are medians. kornia runs `extract_patches_from_pyramid` and HyNet
as its `get_laf_descriptors` does (all patches at once), and also in batches of several sizes, of which the fastest is
kept. featkit cuts at 32 px as kornia does (the row whose descriptors are compared), and at 64 px as its extractor does.
--drawn takes random keypoints, so that pycolmap need not be there. Writes benchmarks/results/describe_speed.json
(describe_speed_cuda.json without the CPU).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia.feature
import numpy as np
import torch
from machine import write_result

from featkit.core.types import Features
from featkit.features.patches import FrozenNetwork, Precision, describe_patches
from featkit.images.patches import KeypointPatches, PatchPyramid
from featkit.images.read import DecodeConfig, decode
from featkit.models.patch import FrnTlu, PatchNetwork, PatchNetworkConfig

HERE = Path(__file__).resolve().parent
MAGNIFICATION = 12.0
BATCHES = {"cpu": (32, 64, 256), "cuda": (2048,)}
Run = Callable[[], np.ndarray]


def detected(pixels: np.ndarray, count: int) -> Features:
    """The image's DoG keypoints."""
    from featkit.features.sift import Sift, SiftConfig

    return Sift(SiftConfig(max_keypoints=count)).extract(pixels)


def drawn(pixels: np.ndarray, count: int) -> Features:
    """Random keypoints, most of them small, as detected ones are."""
    rng = np.random.default_rng(0)
    size = pixels.shape[1], pixels.shape[0]
    places = rng.uniform(0, size, (count, 2)).astype(np.float32)
    scales = (1.6 * 2 ** rng.exponential(1.0, count).clip(max=5)).astype(np.float32)
    oris = rng.uniform(-np.pi, np.pi, count).astype(np.float32)
    return Features(places, np.zeros((count, 1), np.float32), np.ones(count, np.float32), size, scales, oris)


def networks() -> tuple[PatchNetwork, torch.nn.Module]:
    """HyNet of both sides with the same random weights, and statistics as a trained one has them."""
    draw = torch.Generator().manual_seed(0)
    ours = PatchNetwork(PatchNetworkConfig(architecture="hynet"), draw).train()
    with torch.no_grad():
        for _ in range(20):
            ours(torch.rand(64, 1, 32, 32, generator=draw))
    theirs = kornia.feature.HyNet(pretrained=False)
    with torch.no_grad():
        for values, given in zip(theirs.parameters(), _in_their_order(ours), strict=True):
            values.copy_(given.view_as(values))
        for name in ("running_mean", "running_var"):
            getattr(theirs.layer7[2], name).copy_(getattr(ours.trunk.norm, name))
    return ours.eval(), theirs.eval()


def _in_their_order(network: PatchNetwork) -> list[torch.Tensor]:
    def of(layer: FrnTlu) -> list[torch.Tensor]:
        return [layer.scale, layer.bias, layer.tau]

    trunk = network.trunk
    values = of(trunk.first)
    for convolution, activation in zip(trunk.convolutions, trunk.activations, strict=True):
        values += [convolution.weight, convolution.bias, *of(activation)]
    return [*values, trunk.last.weight]


def featkit_run(
    network: PatchNetwork, pixels: np.ndarray, found: Features, device: torch.device, precision: Precision, cut_px: int
) -> Run:
    frozen = FrozenNetwork(network, device, precision)

    def run() -> np.ndarray:
        image = torch.as_tensor(pixels).to(device)
        centres, scales, oris = (torch.as_tensor(v) for v in (found.keypoints, found.scales, found.oris))
        patches = KeypointPatches(PatchPyramid(image), centres, MAGNIFICATION * scales, oris, cut_px)
        return describe_patches(frozen, patches)

    return run


def kornia_run(
    network: torch.nn.Module, pixels: np.ndarray, found: Features, device: torch.device, batch: int | None
) -> Run:
    """batch: None for all patches at once."""
    network = network.to(device)

    @torch.inference_mode()
    def run() -> np.ndarray:
        image = torch.as_tensor(pixels).to(device).float()[None, None] / 255
        centres, scales, oris = (torch.as_tensor(v).to(device) for v in (found.keypoints, found.scales, found.oris))
        radius = (MAGNIFICATION / 2 * scales).view(1, -1, 1, 1)
        lafs = kornia.feature.laf_from_center_scale_ori(centres[None], radius, -torch.rad2deg(oris).view(1, -1, 1))
        patches = kornia.feature.extract_patches_from_pyramid(image, lafs, 32)[0]
        return torch.cat([network(part) for part in patches.split(batch or len(patches))]).cpu().numpy()

    return run


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for it: on a CPU without them bfloat16 is slower than float32."""
    if device.type != "cpu":
        return torch.cuda.is_bf16_supported()
    try:
        return any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16"))
    except OSError:
        return False


def measured(runs: dict[str, Run], repeats: int, keypoints: int) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Rows of all runs, turn about, after one run each to warm up; and the descriptors of each."""
    descriptors = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, values in seconds.items():
        median = statistics.median(values)
        rows.append(
            {
                "method": name,
                "keypoints_per_s": round(keypoints / median, 1),
                "seconds": round(median, 4),
                "seconds_all": [round(value, 4) for value in values],
            }
        )
        print(f"{name}: {keypoints / median:.0f} keypoints/s", flush=True)
    return rows, descriptors


def on_device(name: str, pixels: np.ndarray, found: Features, repeats: int) -> dict[str, Any]:
    """All rows of one device, and how they compare."""
    device = torch.device(name)
    ours, theirs = networks()
    runs = {"kornia, all at once": kornia_run(theirs, pixels, found, device, None)}
    for batch in BATCHES[device.type]:
        runs[f"kornia, batches of {batch}"] = kornia_run(theirs, pixels, found, device, batch)
    precisions: list[Precision] = ["fp32"]
    precisions += ["fp16"] if device.type == "cuda" else []
    precisions += ["bf16"] if computes_in_bf16(device) else []
    for precision in precisions:
        for cut_px in (32, 64):
            label = f"featkit {precision}, cut at {cut_px} px"
            runs[label] = featkit_run(ours, pixels, found, device, precision, cut_px)
    rows, descriptors = measured(runs, repeats, len(found))
    speed = {row["method"]: row["keypoints_per_s"] for row in rows}
    peer, best = (
        "kornia, all at once",
        max((n for n in speed if n.startswith("kornia, batches")), key=speed.__getitem__),
    )
    for row in rows:
        method = row["method"]
        row["over_kornia"] = round(speed[method] / speed[peer], 2)
        row["over_kornia_in_its_best_batches"] = round(speed[method] / speed[best], 2)
        if method.startswith("featkit") and method.endswith("32 px"):
            row["largest_difference"] = float(np.abs(descriptors[method] - descriptors[peer]).max())
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return {"device": name, "where": where, "keypoints": len(found), "kornias_best": best, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = HERE.parent.parent / "shared" / "data" / "eth" / "fountain-P11" / "images"
    parser.add_argument("--image", type=Path, default=None)
    parser.add_argument("--keypoints", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--devices", nargs="*", default=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    parser.add_argument("--drawn", action="store_true", help="random keypoints instead of detected ones")
    arguments = parser.parse_args()
    image = arguments.image or sorted(default.iterdir())[0]
    pixels = decode(image, DecodeConfig()).pixels
    found = (drawn if arguments.drawn else detected)(pixels, arguments.keypoints)
    height, width = pixels.shape
    result: dict[str, Any] = {
        "image": f"{image.name}, {width} x {height} px",
        "kornia": kornia.__version__,
        "keypoints": "drawn" if arguments.drawn else "DoG",
        "devices": [on_device(name, pixels, found, arguments.repeats) for name in arguments.devices],
    }
    print(write_result("describe_speed" if "cpu" in arguments.devices else "describe_speed_cuda", result))


if __name__ == "__main__":
    main()
