"""The papers' ETH rows: one map per scene, descriptor and ratio test, all from the same DoG keypoints.

    python benchmarks/eth_descriptors.py [--scene fountain-P11 ...] [--features rootsift dog+hynet ...]
                                         [--ratio 0.8 none] [--work DIR] [--again]

Photographs at full size, COLMAP's budget of 8192 features, the scene's true camera, exhaustive pairs, mutual nearest
neighbours, incremental mapping; errors are against the true cameras after one similarity. RootSIFT is extracted first
and its keypoints are what the patch networks describe; they stay in DIR. Every map that is done is a row in
benchmarks/results/eth_descriptors.json at once: stopped, the same command goes on with what is missing, and pieces may
be run one by one (of features that were stopped half-way, `extract` counts the seconds of the last piece). The ratio
of binary descriptors is that of Hamming distances. A weight that has changed is a new row in place of the
old one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import RESULTS, measure, origin
from scenes import featkit_command, judged

from featkit.core.errors import FeatkitError
from featkit.core.registry import Method
from featkit.features.base import Extractor
from featkit.features.patches import DetectedKeypoints, Patches
from featkit.features.stage import DetectedImage, ExtractConfig, describe_one, extraction_method, run
from featkit.images.listing import file_digest, list_images
from featkit.images.read import decode
from featkit.io.features import append_features, open_features

HERE = Path(__file__).resolve().parent
RESULT = RESULTS / "eth_descriptors.json"
SCENES = ("fountain-P11", "Herz-Jesu-P8")
NETWORKS = ("hardnet", "hynet", "adasample", "doap", "doap-binary", "sdgmnet")
FEATURES = ("sift", "rootsift", *(f"dog+{name}" for name in NETWORKS))
KEYPOINTS_OF = "rootsift"


@dataclass(frozen=True)
class Extracted:
    """features.h5 of a scene, and the seconds that it took beside (for patch networks: after) the detection."""

    path: Path
    weights_sha256: str
    keypoints_per_image: float
    seconds: float


def extracted(name: str, scene: Path, work: Path) -> Extracted:
    """The features of a scene by a configuration; whatever is done already is not done again."""
    method = extraction_method(ExtractConfig(features=name))
    path = work / scene.name / f"{Path(name).stem}.h5"
    timing = path.with_suffix(".seconds")
    sha256 = method.weights_sha256
    if path.exists() and not _made_by(path, sha256):
        path.unlink()
        timing.unlink(missing_ok=True)
    started = time.perf_counter()
    if isinstance(method.built, Patches):
        detected = extracted(KEYPOINTS_OF, scene, work).path
        started = time.perf_counter()
        _describe(method, scene / "images", detected, path)
    else:
        run(method, scene / "images", path)
    before = float(timing.read_text()) if timing.exists() else 0.0
    seconds = before + time.perf_counter() - started
    if not timing.exists():
        timing.write_text(f"{seconds}\n")
    with open_features(path) as store:
        counts = [store.count(image) for image in store.names()]
    return Extracted(path, sha256, sum(counts) / len(counts), before or seconds)


def _made_by(path: Path, weights_sha256: str) -> bool:
    with open_features(path) as store:
        return store.attributes().get("weights_sha256", "") == weights_sha256


def _describe(method: Method[Extractor], images: Path, detected: Path, output: Path) -> None:
    """features.h5 as `featkit extract` would write it, from keypoints that are there already.

    Photographs that have to be turned or resized would need their keypoints mapped; the scenes have none.
    """
    with open_features(detected) as keypoints, append_features(output, method.config, method.weights_sha256) as out:
        for name in list_images(images):
            source = file_digest(images / name)
            if out.has(name) and out.source(name) == source:
                continue
            image = decode(images / name, method.config.decode)
            begun = DetectedKeypoints(image.pixels, keypoints.read(name))
            out.write(name, describe_one(method, DetectedImage(images / name, image, begun)), source)


def mapped(name: str, ratio: str, scene: Path, work: Path) -> dict[str, Any]:
    """One row: the scene mapped with those features."""
    features = extracted(name, scene, work)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        output = Path(folder)
        shutil.copyfile(features.path, output / "features.h5")
        command = featkit_command(scene, output)
        command += ["--features", name, "--pairs", "exhaustive", "--ratio", "1" if ratio == "none" else ratio]
        finished = measure(command)
        report = json.loads(finished.stdout.splitlines()[-1])
        row = judged(sorted(path for path in (output / "sparse").iterdir() if path.is_dir()), scene)
    stages = {stage: round(seconds, 2) for stage, seconds in report["seconds"].items()}
    stages["extract"] = round(features.seconds, 2)
    return {
        "scene": scene.name,
        "features": Path(name).stem,
        "ratio": ratio,
        "weights_sha256": features.weights_sha256,
        "keypoints_per_image": round(features.keypoints_per_image, 1),
        **row,
        "stage_seconds": stages,
        "seconds": round(sum(stages.values()), 2),
        "commit": origin()["commit"],
        "date": origin()["date"],
    }


def rows_so_far() -> list[dict[str, Any]]:
    return json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []


def keep(row: dict[str, Any], published: dict[str, Any]) -> None:
    """Write the row into the result file, in place of an older one of the same kind."""
    rows = [old for old in rows_so_far() if key(old) != key(row)] + [row]
    order = {name: index for index, name in enumerate(FEATURES)}
    rows.sort(key=lambda r: (r["scene"], order.get(r["features"], len(order)), r["features"], r["ratio"]))
    RESULTS.mkdir(exist_ok=True)
    part = RESULT.with_suffix(".part")
    result = {**origin(), "published": published, "rows": rows}
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(part, RESULT)


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["scene"], row["features"], row["ratio"]


def is_done(name: str, ratio: str, scene: str) -> bool:
    """Whether there is a row, made with the weight that lies there now."""
    sha256 = extraction_method(ExtractConfig(features=name)).weights_sha256
    wanted = (scene, Path(name).stem, ratio)
    return any(key(row) == wanted and row["weights_sha256"] == sha256 for row in rows_so_far())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "eth")
    parser.add_argument("--reference", type=Path, default=HERE.parent.parent / "shared" / "reference")
    parser.add_argument("--scene", nargs="*", default=SCENES)
    parser.add_argument("--features", nargs="*", default=FEATURES, help="names in configs/, or yaml files")
    parser.add_argument("--ratio", nargs="*", default=("0.8", "none"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "featkit-eth-descriptors")
    parser.add_argument("--again", action="store_true", help="also what is done")
    arguments = parser.parse_args()
    published = json.loads((arguments.reference / "eth_scenes.json").read_text(encoding="utf-8"))
    failed = False
    for scene in arguments.scene:
        for name in arguments.features:
            for ratio in arguments.ratio:
                try:
                    if is_done(name, ratio, scene) and not arguments.again:
                        continue
                    (arguments.work / scene).mkdir(parents=True, exist_ok=True)
                    row = mapped(name, ratio, arguments.data / scene, arguments.work)
                except (FeatkitError, RuntimeError) as error:  # the other rows do not wait for this one
                    print(f"{scene} {name} ratio {ratio}: {error}", file=sys.stderr, flush=True)
                    failed = True
                    continue
                keep(row, published)
                print(
                    f"{scene} {row['features']} ratio {ratio}: {row['registered']} / {row['images']} images,"
                    f" {row['points']} points, track {row['track_length']:.2f},"
                    f" {row['reprojection_px']:.3f} px, {row['centre_error_mm_mean']:.2f} mm, {row['seconds']:.0f} s",
                    flush=True,
                )
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
