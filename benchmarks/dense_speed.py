"""Images per second and peak memory of SCFeat, decode and store included, beside its bare network, ALIKED and DISK.

    python benchmarks/dense_speed.py [--networks scfeat-s scfeat] [--sizes 640x480 1600x1200] [--repeats 5]
                                     [--images 8] [--devices cpu cuda] [--photos FOLDER] [--out NAME]

Per device, network and size: `network` is one forward of what featkit runs (FrozenSCFeat, uint8 image to maps and
scores); `as written` the same network as it was trained, in NCHW, as the authors run theirs; `extract` the real stage
on JPEG files of that size, `share_of_network` its rate over that of the forward. On a GPU also the forward of a batch.
kornia's ALIKED and DISK run beside them at 640x480. All take turns; rows are medians. Peak memory is that of a process
of its own that extracts two images (on a GPU: of the allocator, in the forward). Speed does not depend on the weights,
so random ones serve; every method gives 2048 keypoints an image. Writes benchmarks/results/dense_speed.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import kornia
import kornia.feature
import numpy as np
import torch
from machine import measure, write_result

from featkit.core.registry import Method
from featkit.features import stage as extract
from featkit.features.base import Extractor
from featkit.features.fast.scfeat import FrozenSCFeat
from featkit.features.stage import ExtractConfig, extraction_method
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.weights.files import load_scfeat_network, save_scfeat_network

HERE = Path(__file__).resolve().parent
ENCODERS = {"scfeat": "resnet50", "scfeat-s": "resnet18"}
KEYPOINTS = 2048
PEER_SIZE = (640, 480)
BATCH = 16
Run = Callable[[], Any]


def photographs(folder: Path, size: tuple[int, int], count: int, out: Path) -> Path:
    """`count` JPEG files of that size, cut from the middle of the folder's photographs."""
    width, height = size
    out.mkdir(parents=True)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".ppm"})
    for index in range(count):
        photo = cv2.imread(str(files[index % len(files)]))
        scale = max(width / photo.shape[1], height / photo.shape[0])
        photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
        photo = cv2.resize(photo[max(top, 0) :, max(left, 0) :][:height, :width], size)
        cv2.imwrite(str(out / f"{index:03}.jpg"), photo, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return out


def pixels_of(path: Path) -> np.ndarray:
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


def as_written(network: SCFeatNetwork, pixels: np.ndarray, device: torch.device) -> Run:
    """The network's own forward, without any of featkit's ways to run it faster."""
    plain = load_copy(network).to(device, memory_format=torch.contiguous_format)
    plain._normalised = lambda images: (images - plain.mean) / plain.std  # type: ignore[method-assign]

    @torch.inference_mode()
    def run() -> None:
        images = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].contiguous().float() / 255
        plain(images)

    return run


def load_copy(network: SCFeatNetwork) -> SCFeatNetwork:
    copy = SCFeatNetwork(network.config)
    copy.load_state_dict(network.state_dict())
    return copy.eval()


def peers(pixels: np.ndarray, device: torch.device) -> dict[str, Run]:
    """kornia's ALIKED and DISK on one image, keypoints included."""
    image = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float() / 255
    aliked = kornia.feature.ALIKED(max_num_keypoints=KEYPOINTS, detection_threshold=0.0).to(device).eval()
    disk = kornia.feature.DISK().to(device).eval()

    @torch.inference_mode()
    def run_aliked() -> None:
        aliked(image)

    @torch.inference_mode()
    def run_disk() -> None:
        disk(image, n=KEYPOINTS, pad_if_not_divisible=True)

    return {"kornia ALIKED": run_aliked, "kornia DISK": run_disk}


def stage(method: Method[Extractor], folder: Path, scratch: Path) -> Run:
    """The extract stage on the whole folder, anew each time."""

    def run() -> None:
        extract.run(method, folder, scratch / "features.h5", overwrite=True)

    return run


def timed(runs: dict[str, Run], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every run, turn about, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def row(method: str, seconds: list[float], images: int) -> dict[str, Any]:
    median = statistics.median(seconds) / images
    print(f"{method}: {1 / median:.2f} images/s", flush=True)
    return {
        "method": method,
        "images_per_s": round(1 / median, 3),
        "seconds_per_image": round(median, 4),
        "seconds_all": [round(value, 4) for value in seconds],
    }


def extract_memory(weight: Path, folder: Path, device: str) -> float:
    """Peak memory in MB of a process that extracts the folder."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "featkit", "extract", str(folder), "--out", f"{scratch}/f.h5"]
        return measure([*command, "--features", "scfeat", "--weights", str(weight), "--device", device]).peak_memory_mb


def on_device(
    name: str, label: str, weight: Path, size: tuple[int, int], repeats: int, images: int, photos: Path
) -> dict[str, Any]:
    """All rows of one device, network and size."""
    device = torch.device(name)
    network = load_scfeat_network(weight)
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        folder = photographs(photos, size, images, scratch / "images")
        pixels = pixels_of(folder / "000.jpg")
        height, width = pixels.shape[:2]
        padded = np.pad(pixels, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
        frozen, given = FrozenSCFeat(network, device), torch.from_numpy(padded)[None]
        changes = {"weights": str(weight), "threshold": 0.0, "max_keypoints": KEYPOINTS}
        method = extraction_method(ExtractConfig(features="scfeat"), changes, name)
        runs: dict[str, Run] = {"network": lambda: frozen(given), "extract": stage(method, folder, scratch)}
        runs["as written"] = as_written(network, padded, device)
        if device.type == "cuda":
            runs[f"network, batch of {BATCH}"] = lambda: frozen(given.expand(BATCH, -1, -1, -1))
        if size == PEER_SIZE:
            runs |= peers(pixels, device)
        seconds = timed(runs, repeats, device)
        counts = {"extract": images, f"network, batch of {BATCH}": BATCH}
        rows = [row(f"{label} {method}", values, counts.get(method, 1)) for method, values in seconds.items()]
        two = photographs(photos, size, 2, scratch / "two")
        memory: dict[str, float] = {"extract_process_mb": extract_memory(weight, two, name)}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            frozen(given)
            memory["forward_gpu_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    speed = dict(zip(seconds, (entry["images_per_s"] for entry in rows), strict=True))
    return {
        "device": name,
        "where": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads",
        "network": label,
        "size": f"{width}x{height}",
        "share_of_network": round(speed["extract"] / speed["network"], 3),
        "extract_over_peers": {
            method: round(speed["extract"] / value, 2) for method, value in speed.items() if method != "extract"
        },
        "network_over_as_written": round(speed["network"] / speed["as written"], 2),
        "peak_memory": memory,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photos = HERE.parent.parent / "shared" / "data" / "eth" / "fountain-P11" / "images"
    parser.add_argument("--networks", nargs="*", default=list(ENCODERS)[::-1], choices=list(ENCODERS))
    parser.add_argument("--sizes", nargs="*", default=["640x480", "1600x1200"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=8, help="per run of the stage")
    parser.add_argument("--devices", nargs="*", default=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    parser.add_argument("--photos", type=Path, default=photos)
    parser.add_argument("--out", default="dense_speed", help="name of the result")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for label in arguments.networks:
            config = SCFeatNetworkConfig(encoder=ENCODERS[label])  # type: ignore[arg-type]
            network = SCFeatNetwork(config, torch.Generator().manual_seed(0)).eval()
            weight = save_scfeat_network(Path(folder) / f"{label}.safetensors", network)
            for text in arguments.sizes:
                width, height = (int(part) for part in text.split("x"))
                for device in arguments.devices:
                    print(f"{label}, {text}, {device}", flush=True)
                    images = arguments.images
                    found = on_device(
                        device, label, weight, (width, height), arguments.repeats, images, arguments.photos
                    )
                    results.append(found)
    result = {"kornia": kornia.__version__, "keypoints": KEYPOINTS, "results": results}
    print(write_result(arguments.out, result))


if __name__ == "__main__":
    main()
