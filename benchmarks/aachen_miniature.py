"""Day and night of castle-P19 in the layout of Aachen Day-Night v1.1, by `featkit localize aachen`; time and memory.

    python benchmarks/aachen_miniature.py [rootsift scfeat NAME=WEIGHT ...] [--max-keypoints 2000 8000]

Each fourth photograph is a query by day, and again darkened, noised and shifted in colour by night; the others are the
reference model, with their true poses. Every pair is matched. Seconds and peak memory are of each stage by itself (the
kernel's high-water mark is set back between two; Linux only), in one process. From several budgets of keypoints:
1,000 images, 1,000 queries, all of v1.1 (6,697 images and 1,015 queries), and 100,000 images, at 20,000 keypoints
(`extrapolated` says how). Writes benchmarks/results/aachen_miniature.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import measure, write_result
from scfeat_scenes import label_of

from featkit.core.errors import FeatkitError
from featkit.io.lists import read_camera, read_poses, write_poses
from featkit.mapping.model import read_model

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))  # the miniature is the tests' own
SCENE = "posed/castle-P19"
EVERY = 4
KEYPOINTS = 20_000  # of the paper's setting
COVISIBLE, RETRIEVED = 20, 50  # pairs of an image of the map, and of a query, as hloc's lists have them
SIZES = {"1,000 images": (1000, 0), "1,000 queries": (0, 1000), "Aachen v1.1": (6697, 1015), "100,000": (100_000, 1000)}
MB = 1e6


def miniature(scene: Path, root: Path) -> tuple[Path, Path]:
    """Write the miniature; its root and its true poses. Tracks are those of the scene's own model."""
    from aachen_miniature import View, World, write_miniature

    poses = read_poses(scene / "poses.txt")
    names = sorted(poses)
    asked = names[EVERY - 1 :: EVERY]
    mapped = [name for name in names if name not in asked]
    model = read_model(scene / "sparse")
    place = {image.image_id: mapped.index(image.name) for image in model.images.values() if image.name in mapped}
    seen, points = [], []
    for point in model.points3D.values():
        elements = [element for element in point.track.elements if element.image_id in place]
        if len(elements) > 1:
            where = [model.images[e.image_id].points2D[e.point2D_idx].xy.tolist() for e in elements]
            seen.append([(place[e.image_id], x, y) for e, (x, y) in zip(elements, where, strict=True)])
            points.append(point.xyz)
    views = {name: View(scene / "images" / name, poses[name]) for name in names}
    world = World(
        [views[n] for n in mapped], [views[n] for n in asked], read_camera(scene / "camera.txt"), points, seen
    )
    made = write_miniature(root / "aachen", world)
    return made.root, write_poses(root / "truth.txt", made.truth)


def run_one(arguments: list[str], answer: Path) -> None:
    """In a process of its own: the command, with the peak memory of every stage of the pipeline."""
    from featkit.cli.main import app
    from featkit.core.config import load_pipeline

    peaks: dict[str, float] = {}
    grown: dict[str, float] = {}

    @contextlib.contextmanager
    def watched(stage: str, seconds: dict[str, float]) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
        before, started = _status("VmRSS"), time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - started
        peaks[stage] = _status("VmHWM")
        grown[stage] = round(peaks[stage] - before, 1)

    load_pipeline("aachen").timed = watched
    try:
        app(["localize", "aachen", *arguments, "-q"])
    except SystemExit as end:
        if end.code:
            raise
    answer.write_text(json.dumps({"peak_memory_mb": peaks, "grown_memory_mb": grown}))


def _status(key: str) -> float:
    """A line of /proc/self/status, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 / MB, 1)


def localized(features: str, keypoints: int, root: Path, truth: Path, options: list[str]) -> dict[str, Any]:
    """One row: recall by day and night, seconds and memory by stage, and counts."""
    name, _, weight = features.partition("=")
    with tempfile.TemporaryDirectory() as work:
        command = ["--root", str(root), "--queries", "day-night", "--truth", str(truth), "--features", name]
        command += [
            "--out",
            work,
            "--workers",
            "1",
            "--max-keypoints",
            str(keypoints),
            *options,
            *(["--weights", weight] if weight else []),
        ]
        answer = Path(work) / "peaks.json"
        finished = measure([sys.executable, __file__, "--one", str(answer), *command])
        memory = json.loads(answer.read_text())
        (row,) = json.loads((Path(work) / "1.1-day-night" / "results.json").read_text())["rows"]
        counts = _keypoints(Path(work))
    return {
        **label_of(features),
        "max_keypoints": keypoints,
        "conditions": row["conditions"],
        "map": {key: row["map"][key] for key in ("registered", "points", "track_length", "verified_pairs")},
        **counts,
        "seconds": {stage: round(value, 3) for stage, value in row["seconds"].items()},
        **memory,
        "process_peak_memory_mb": finished.peak_memory_mb,
    }


def _keypoints(out: Path) -> dict[str, Any]:
    """Images, keypoints and pairs of both sides."""
    from featkit.io.features import open_features
    from featkit.io.lists import read_pairs

    found: dict[str, Any] = {}
    lists = {"database": "pairs-db.txt", "query": "pairs-query.txt"}
    for side, listed in lists.items():
        (features,) = out.glob(f"predictions/{side}/*/features.h5")
        with open_features(features) as store:
            counts = [store.count(name) for name in store.names()]
        (pairs,) = out.glob(f"1.1-day-night/*/{listed}")
        found[side] = {
            "images": len(counts),
            "keypoints_per_image": round(sum(counts) / len(counts), 1),
            "pairs": len(read_pairs(pairs, directed=side == "query")),
        }
    return found


def extrapolated(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Hours by stage and GB of the map, at `KEYPOINTS` keypoints an image, for each of `SIZES`, on this machine.

    rows: one method with several budgets of keypoints. Extraction takes the same for each image; a pair is matched in
    a + b k0 k1 for its numbers of keypoints; verification of a pair, triangulation and its memory of an image, and
    localization by a pair take a + b k. A map has `COVISIBLE` pairs an image, a query `RETRIEVED`.
    """
    largest = max(rows, key=lambda row: row["database"]["keypoints_per_image"])
    k0 = [row["database"]["keypoints_per_image"] for row in rows]
    k1 = [row["query"]["keypoints_per_image"] for row in rows]
    product = [a * b for a, b in zip(k0, k1, strict=True)]
    square = [k**2 for k in k0]

    def each(stage: str, side: str, unit: str, key: str = "seconds") -> list[float]:
        return [row[key][stage] / row[side][unit] for row in rows]

    extract = [
        largest["seconds"][f"extract {s}"] / largest[t]["images"]
        for s, t in (("database", "database"), ("queries", "query"))
    ]
    match = _at(square, each("match database", "database", "pairs"), KEYPOINTS**2)
    match_query = _at(product, each("match queries", "query", "pairs"), KEYPOINTS**2)
    verify = _at(k0, each("verify", "database", "pairs"), KEYPOINTS)
    triangulate = _at(k0, each("triangulate", "database", "images"), KEYPOINTS)
    localize = _at(k1, each("localize", "query", "pairs"), KEYPOINTS)
    memory_mb = _at(k0, each("triangulate", "database", "images", "grown_memory_mb"), KEYPOINTS)
    result = {}
    for name, (images, queries) in SIZES.items():
        stages = {
            "extract database": extract[0] * images,
            "extract queries": extract[1] * queries,
            "match database": match * images * COVISIBLE,
            "match queries": match_query * queries * RETRIEVED,
            "verify": verify * images * COVISIBLE,
            "triangulate": triangulate * images,
            "localize": localize * queries * RETRIEVED,
        }
        hours = {stage: round(value / 3600, 2) for stage, value in stages.items()}
        total = round(sum(stages.values()) / 3600, 2)
        result[name] = {**hours, "total": total, "map_gb": round(memory_mb * images / 1e3, 1)}
    return result


def _at(x: list[float], y: list[float], where: float) -> float:
    """The line through measured values at another place; in proportion to the last one when there is only one place."""
    if max(x) - min(x) < 0.05 * max(x):
        return y[-1] * where / max(x[-1], 1.0)
    slope, start = np.polyfit(x, y, 1)
    return float(max(start, 0.0) + max(slope, 0.0) * where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", nargs="*", default=["rootsift", "scfeat"], help="NAME or NAME=WEIGHT")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--setting", default="aachen")
    parser.add_argument("--max-keypoints", nargs="+", type=int, default=[2000, 4000, 8000])
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    options = ["--setting", arguments.setting]
    rows: list[dict[str, Any]] = []
    sizes: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as work:
            root, truth = miniature(arguments.data / SCENE, Path(work))
            for features in arguments.features:
                own = [localized(features, k, root, truth, options) for k in sorted(arguments.max_keypoints)]
                rows += own
                sizes.append({**label_of(features), **extrapolated(own)})
                print(json.dumps([*own, sizes[-1]], indent=1), flush=True)
    except (FeatkitError, RuntimeError) as error:
        sys.exit(str(error))
    result = {"scene": SCENE, "setting": arguments.setting, "rows": rows}
    result |= {"extrapolated_to_keypoints": KEYPOINTS, "sizes": SIZES, "extrapolated": sizes}
    if not arguments.no_write:
        print(write_result("aachen_miniature", result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run_one(sys.argv[3:], Path(sys.argv[2]))
    else:
        main()
