"""Features and matchers of other authors beside featkit's own: benchmarks, maps, poses, time and memory, in one run.

    python benchmarks/published.py [rootsift/mutual aliked-n16/lightglue ...] [--data ../shared/data] [--work DIR]

A row is FEATURES/MATCHER, every row with the same --max-keypoints and --resize-max. Oxford and EVD: `featkit eval
hpatches` (MMAScore, homography AUC). Maps: `featkit reconstruct` of --scenes; centres where the true cameras are known.
castle-P19 is also localized (each fourth photograph is a query). Pose: `featkit eval pose`, AUC by both estimators.
Times are CPU-seconds, since other programs on the machine change them little: of whole commands, and of one image and
one pair of castle-P19. --work keeps what is measured of each row, so that a stopped run goes on.
Writes benchmarks/results/published.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from machine import Finished, measure, write_result
from scenes import featkit_command, judged, localize

from featkit.core.errors import FeatkitError
from featkit.core.registry import resolve
from featkit.features.stage import ExtractConfig, extract_one, extraction_method
from featkit.images.read import DecodeConfig
from featkit.mapping.model import is_model

HERE = Path(__file__).resolve().parent
ROWS = (
    *("rootsift/mutual", "dog+hynet/mutual", "scfeat/mutual"),
    *("xfeat/mutual", "xfeat/lightglue", "disk/mutual", "disk/lightglue"),
    *("aliked-n16/mutual", "aliked-n16/lightglue", "aliked-n16rot/mutual", "aliked-n16rot/lightglue"),
)
SEQUENCES = {"oxford": "oxford-affine", "evd": "pairs/evd"}
SCENES = ("eth/fountain-P11", "posed/castle-P19", "sacre_coeur", "scenes/liberty")
LARGE = "scenes/liberty"  # a thousand pairs: only with the mutual matcher, unless --large
LOCALIZED = "posed/castle-P19"
COSTED = "posed/castle-P19"
POSED = ("posed/castle-P19", "eth/fountain-P11")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=ROWS, help="FEATURES/MATCHER")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--sequences", nargs="*", default=list(SEQUENCES), choices=list(SEQUENCES))
    parser.add_argument("--scenes", nargs="*", default=SCENES, help="folders of photographs, to be mapped")
    parser.add_argument(
        "--large", action="store_true", help="maps scenes/liberty with LightGlue, too: three quarters of an hour a row"
    )
    parser.add_argument("--posed", nargs="*", default=POSED, help="scenes with true poses, for relative poses")
    parser.add_argument("--max-keypoints", type=int, default=2048)
    parser.add_argument("--resize-max", type=int, default=1024, help="px of the longer side")
    parser.add_argument("--work", type=Path, help="where finished rows are kept; default: nowhere")
    arguments = parser.parse_args()
    try:
        rows = [kept_row(row, arguments) for row in arguments.rows]
    except (RuntimeError, FeatkitError) as error:
        sys.exit(str(error))
    asked = {"max_keypoints": arguments.max_keypoints, "resize_max": arguments.resize_max}
    print(write_result("published", {**asked, "rows": rows}))


def kept_row(row: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row; what --work has of it from an earlier run is not measured again."""
    features, _, matcher = row.partition("/")
    found: dict[str, Any] = {"features": features, "matcher": matcher or "mutual"}
    kept = None if arguments.work is None else arguments.work / f"{row.replace('/', '_')}.json"
    if kept is not None and kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
    maps, others = steps(found["features"], found["matcher"], arguments)
    for values, todo in ((found.setdefault("maps", {}), maps), (found, others)):
        for name, step in todo.items():
            if name in values:
                continue
            values[name] = step()
            print(f"{row}: {name}: {json.dumps(values[name])}", flush=True)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


Values = dict[str, Any]
Steps = dict[str, Callable[[], Values]]


def steps(features: str, matcher: str, arguments: argparse.Namespace) -> tuple[Steps, Steps]:
    """What a row is measured on: the maps, by scene, and all else."""
    options = ["--features", features, "--matcher", matcher]
    options += ["--max-keypoints", str(arguments.max_keypoints), "--resize-max", str(arguments.resize_max)]
    data = arguments.data
    scenes = [scene for scene in arguments.scenes if scene != LARGE or matcher != "lightglue" or arguments.large]
    maps: Steps = {scene: partial(on_scene, data / scene, options) for scene in scenes}
    others: Steps = {name: partial(on_sequences, data / SEQUENCES[name], options) for name in arguments.sequences}
    if LOCALIZED in arguments.scenes:
        others["localization"] = partial(localize, LOCALIZED, data / LOCALIZED, options)
    if arguments.posed:
        others["pose"] = partial(on_pairs, [data / scene for scene in arguments.posed], options)
    others["cost"] = partial(cost, features, matcher, data / COSTED, arguments)
    return maps, others


def cost(features: str, matcher: str, scene: Path, arguments: argparse.Namespace) -> Values:
    """Medians of CPU-seconds an image (decoded, extracted) and a pair, one at a time in a process with one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    config = ExtractConfig(features=features, decode=DecodeConfig(resize_max=arguments.resize_max))
    method = extraction_method(config, {"max_keypoints": arguments.max_keypoints}, "cpu")
    matching: Any = resolve("matcher", matcher, {}, "cpu").build()
    photographs = sorted((scene / "images").iterdir())
    extract_one(method, photographs[0])  # weights are read, kernels chosen
    of_image, found = timed(photographs, lambda photograph: extract_one(method, photograph))
    pairs = list(itertools.combinations(found, 2))[::4]
    matching.match([pairs[0]])
    of_pair, matched = timed(pairs, lambda pair: matching.match([pair]))
    return {
        "scene": COSTED,
        "images": len(of_image),
        "pairs": len(of_pair),
        "cpu_s_per_image": round(statistics.median(of_image), 4),
        "cpu_s_per_pair": round(statistics.median(of_pair), 4),
        "matches_per_pair": statistics.median(int((one.matches0 >= 0).sum()) for (one,) in matched),
    }


def timed(inputs: Sequence[Any], run: Callable[[Any], Any]) -> tuple[list[float], list[Any]]:
    """CPU-seconds of each call, and what it returned."""
    seconds, results = [], []
    for one in inputs:
        started = time.process_time()
        results.append(run(one))
        seconds.append(time.process_time() - started)
    return seconds, results


def evaluated(verb: str, roots: Sequence[Path], options: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """The one method of `featkit eval VERB`, and what the command took."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "featkit", "eval", verb, "--out", work, "--json", "--quiet", *options]
        for root in roots:
            command += ["--root", str(root)]
        finished = measure(command)
    (method,) = json.loads(finished.stdout)["methods"]
    return method, taken(finished)


def taken(finished: Finished) -> dict[str, float]:
    """Time and memory of a command."""
    return {"cpu_s": finished.cpu_seconds, "peak_memory_mb": finished.peak_memory_mb}


def on_sequences(root: Path, options: Sequence[str]) -> dict[str, Any]:
    """Matching accuracy on image pairs with known homographies."""
    method, cost = evaluated("hpatches", [root], options)
    overall = method["groups"]["overall"]
    kept = ("features", "matches", "mma_score", "homography_auc")
    return {**{name: overall[name] for name in kept}, **cost}


def on_pairs(roots: Sequence[Path], options: Sequence[str]) -> dict[str, Any]:
    """AUC of relative poses, by every estimator."""
    method, cost = evaluated("pose", roots, options)
    return {**method["overall"], **cost}


def on_scene(scene: Path, options: Sequence[str]) -> dict[str, Any]:
    """A map, or the reason why there is none."""
    with tempfile.TemporaryDirectory() as work:
        try:
            finished = measure(featkit_command(scene, Path(work), options))
        except RuntimeError as error:
            return {"failed": str(error).splitlines()[-1]}
        sparse = Path(work) / "sparse"
        row = judged([folder for folder in sorted(sparse.iterdir()) if is_model(folder)], scene)
    return {**row, **taken(finished)}


if __name__ == "__main__":
    main()
