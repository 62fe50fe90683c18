"""CPU seconds a pair of LightGlue: as featkit runs it, and kornia's network called by hand.

    python benchmarks/lightglue_speed.py [--features aliked-n16 ...] [--keypoints 1024 2048 4096] [--repeats 3]
                                         [--threads 1] [--pairs sacre_coeur ...]

Both take the same features and weights, stop and prune as the weights' settings say, and alternate in one process; rows
are medians of the process's CPU seconds. Peak memory is that of a process of its own, less what it had before. The two
pairs of photographs: one that is easy (and stops early), one that is hard.
Writes benchmarks/results/lightglue_speed.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kornia
import numpy as np
import torch
from machine import write_result
from published_speed import added_mb, in_turn

from featkit.core.registry import resolve
from featkit.core.types import Features
from featkit.features.published_networks import load_network
from featkit.features.stage import ExtractConfig, extract_one, extraction_method
from featkit.images.read import DecodeConfig
from featkit.weights.catalogue import load_published

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NETWORKS = {"aliked-n16": "aliked-lightglue", "disk": "disk-lightglue", "xfeat": "xfeat-lighterglue"}
PAIRS = {
    "fountain-P11": ("eth/fountain-P11/images/0004.jpg", "eth/fountain-P11/images/0005.jpg"),
    "sacre_coeur": ("sacre_coeur/02928139_3448003521.jpg", "sacre_coeur/17295357_9106075285.jpg"),
}
Found = dict[tuple[int, int], float]
"""The score of each match."""


def features_of(name: str, pair: str, keypoints: int) -> tuple[Features, Features]:
    config = ExtractConfig(features=name, decode=DecodeConfig(resize_max=1024))
    method = extraction_method(config, {"max_keypoints": keypoints}, "cpu")
    a, b = (extract_one(method, DATA / photo) for photo in PAIRS[pair])
    return a, b


def ours(name: str, a: Features, b: Features) -> Callable[[], Found]:
    matcher: Any = resolve("matcher", "lightglue", {}, "cpu").build()

    def run() -> Found:
        (matches,) = matcher.match([(a, b)])
        return {
            (int(i), int(matches.matches0[i])): float(matches.scores0[i]) for i in np.flatnonzero(matches.matches0 >= 0)
        }

    return run


def by_hand(name: str, a: Features, b: Features) -> Callable[[], Found]:
    weights = NETWORKS[name]
    network: Any = load_network(weights, load_published(weights, ""))

    @torch.inference_mode()
    def run() -> Found:
        images = {}
        for key, features in (("image0", a), ("image1", b)):
            seen = features.as_seen()
            images[key] = {
                "keypoints": torch.tensor(seen.keypoints, dtype=torch.float32)[None],
                "descriptors": torch.tensor(np.asarray(seen.descriptors, np.float32))[None],
                "image_size": torch.tensor([seen.image_size]),
            }
        found = network(images)
        pairs, scores = found["matches"][0].tolist(), found["scores"][0].tolist()
        return {(i, j): score for (i, j), score in zip(pairs, scores, strict=True)}

    return run


def one(name: str, pair: str, keypoints: int, arguments: argparse.Namespace) -> dict[str, Any]:
    a, b = features_of(name, pair, keypoints)
    runs = {make.__name__: make(name, a, b) for make in (ours, by_hand)}
    results, taken = in_turn(runs, arguments.repeats)
    both = results["ours"].keys() & results["by_hand"].keys()
    row = {
        "network": NETWORKS[name],
        "keypoints": keypoints,
        "pair": pair,
        "threads": arguments.threads,
        **taken,
        "peak_memory_mb": {method: memory(name, pair, keypoints, method, arguments) for method in runs},
        "matches": len(results["ours"]),
        "matches_in_one_alone": len(results["ours"].keys() ^ results["by_hand"].keys()),
        "score_error": max((abs(results["ours"][key] - results["by_hand"][key]) for key in both), default=0.0),
    }
    print(json.dumps({key: value for key, value in row.items() if key != "cpu_seconds_all"}), flush=True)
    return row


def memory(name: str, pair: str, keypoints: int, method: str, arguments: argparse.Namespace) -> float:
    """Of a process of its own."""
    command = [sys.executable, __file__, "--memory-of", method, "--features", name, "--pairs", pair]
    command += ["--keypoints", str(keypoints), "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_memory(arguments: argparse.Namespace) -> None:
    name, (pair,), (keypoints,) = arguments.features[0], arguments.pairs, arguments.keypoints
    run = {"ours": ours, "by_hand": by_hand}[arguments.memory_of](name, *features_of(name, pair, keypoints))
    print(added_mb(run))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--keypoints", type=int, nargs="*", default=[1024, 2048, 4096])
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", choices=["ours", "by_hand"], help="print one peak memory in MB, and no more")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print_memory(arguments)
        return
    rows = [
        one(name, pair, keypoints, arguments)
        for name in arguments.features
        for pair in arguments.pairs
        for keypoints in arguments.keypoints
    ]
    print(write_result("lightglue_speed", {"kornia": kornia.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
