"""Maps and poses by SCFeat beside those by RootSIFT, at the same size, in one run.

    python benchmarks/scfeat_scenes.py [scfeat rootsift NAME=WEIGHT ...] [--data ../shared/data] [--resize-max 1600]

The ETH scenes are mapped with their true camera, errors against the true poses after one similarity; castle-P19 is
mapped with the true poses of every image but each fourth, and those are localized. Writes
benchmarks/results/scfeat_scenes.json.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import measure, write_result
from scenes import LOCALIZED, featkit_command, judged, localize

from featkit.core.errors import FeatkitError

HERE = Path(__file__).resolve().parent
DIGITS = 16  # of a sha256
MAPPED = ("eth/fountain-P11", "eth/Herz-Jesu-P8")


def options_of(features: str, resize_max: int) -> list[str]:
    """features: NAME or NAME=WEIGHT."""
    name, _, weight = features.partition("=")
    return ["--features", name, "--resize-max", str(resize_max), *(["--weights", weight] if weight else [])]


def label_of(features: str) -> dict[str, str]:
    """What its rows are called. weight: first digits of the file's sha256, or the name of one that is shipped."""
    name, _, weight = features.partition("=")
    path = Path(weight)
    if weight and path.is_file():
        weight = hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]
    return {"features": name, **({"weight": weight} if weight else {})}


def mapped(features: str, scene: Path, resize_max: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as output:
        finished = measure(featkit_command(scene, Path(output), options_of(features, resize_max)))
        row = judged(sorted((Path(output) / "sparse").iterdir()), scene)
    return {**row, "seconds": round(finished.seconds, 1), "peak_memory_mb": finished.peak_memory_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", nargs="*", default=["rootsift", "scfeat"], help="NAME or NAME=WEIGHT")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--resize-max", type=int, default=1600, help="px of the longer side")
    arguments = parser.parse_args()
    rows, localization = [], []
    try:
        for features in arguments.features:
            label = label_of(features)
            for name in MAPPED:
                rows.append(label | {"scene": name} | mapped(features, arguments.data / name, arguments.resize_max))
                print(rows[-1], flush=True)
            options = options_of(features, arguments.resize_max)
            localization.append(label | localize(LOCALIZED, arguments.data / LOCALIZED, options))
            print(localization[-1], flush=True)
    except (FeatkitError, RuntimeError) as error:
        sys.exit(str(error))
    result = {"resize_max": arguments.resize_max, "rows": rows, "localization": localization}
    print(write_result("scfeat_scenes", result))


if __name__ == "__main__":
    main()
