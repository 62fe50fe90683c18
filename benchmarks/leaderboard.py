"""Every feature on every benchmark that the measuring data allow: one table, by one command (`make benchmarks`).

    python benchmarks/leaderboard.py [rootsift dog+hynet scfeat ...] [--data ../shared/data] [--resize-max 1600]

`featkit eval all` on the Oxford sequences, the ETH scenes, castle-P19 (localization), relative poses on both, and the
FPR95 of patches that `featkit data patches` cuts from castle-P19's own model; no weight was trained on any of them.
Photographs are resized (Oxford's are smaller), and every image gives its best --max-keypoints at most. Keypoints per
second are of the ETH scenes: decoding, detection, description and writing. --work keeps what is done: a stopped run
goes on, then without these speeds. Writes benchmarks/results/leaderboard.json.

--update, for weights that changed: measures only the named features and replaces their rows, except their speeds, which
compare only within one run. The commit and the date of each replaced feature are recorded under `updated`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import RESULTS, commit, measure, write_result

HERE = Path(__file__).resolve().parent
FEATURES = (
    "rootsift",
    *(f"dog+{name}" for name in ("hardnet", "hynet", "adasample", "doap", "doap-binary", "sdgmnet")),
    "scfeat",
)
MEASURED = ("oxford-affine", "eth", "posed")  # folders of --data
PATCHES_OF = "posed/castle-P19"
SPEED = "keypoints/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", nargs="*", default=FEATURES, help="names in configs/")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--resize-max", type=int, default=1600, help="px of the longer side")
    parser.add_argument("--max-keypoints", type=int, default=4096, help="of an image: equal terms, and time")
    parser.add_argument("--only", help="benchmarks by name, comma-separated")
    parser.add_argument("--update", action="store_true", help="replace the rows of the named features only")
    parser.add_argument("--work", type=Path, help="keeps features, maps and pages")
    arguments = parser.parse_args()
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            work = (arguments.work or Path(temporary)).resolve()
            data = gathered(arguments.data, work)
            fresh = not (work / "eval").exists()
            found, memory_mb = run(arguments, data, work)
    except RuntimeError as error:
        sys.exit(str(error))
    result = {
        "features": list(arguments.features),
        "resize_max": arguments.resize_max,
        "max_keypoints": arguments.max_keypoints,
        "standings": [*found["standings"], *(speeds(found) if fresh else [])],
        "failed": found["failed"],
        "weights_sha256": {method["name"]: method["weights_sha256"] for method in found["methods"]},
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mb": memory_mb,
    }
    print(write_result("leaderboard", updated(result) if arguments.update else result))


def updated(new: dict[str, Any]) -> dict[str, Any]:
    """The present file with the rows of `new`, which must have been measured in the same way."""
    old = json.loads((RESULTS / "leaderboard.json").read_text())
    for key in ("resize_max", "max_keypoints"):
        if old[key] != new[key]:
            sys.exit(f"leaderboard.json has {key} {old[key]}, this run {new[key]}")
    known = {(row["method"], row["measure"]) for row in old["standings"]}
    measures = {measure for _, measure in known} - {SPEED}  # a column of a few features alone compares nothing
    rows = {(row["method"], row["measure"]): row for row in new["standings"] if row["measure"] in measures}
    old["standings"] = [rows.get((row["method"], row["measure"]), row) for row in old["standings"]]
    old["standings"] += [row for key, row in rows.items() if key not in known]
    old["features"] += [name for name in new["features"] if name not in old["features"]]
    old["weights_sha256"] |= new["weights_sha256"]
    old["failed"] = {name: why for name, why in old["failed"].items() if name not in new["features"]} | new["failed"]
    record = {"commit": commit(), "date": datetime.date.today().isoformat(), "seconds": new["seconds"]}
    old["updated"] = old.get("updated", {}) | dict.fromkeys(new["features"], record)
    return old


def gathered(data: Path, work: Path) -> Path:
    """A folder with the measuring data, and with patches cut from one of its scenes."""
    folder = work / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in MEASURED:
        link = folder / name
        if not link.exists():
            link.symlink_to((data / name).resolve(), target_is_directory=True)
    patches = folder / "patches" / Path(PATCHES_OF).name
    if not patches.exists():
        command = [sys.executable, "-m", "featkit", "data", "patches", str(data / PATCHES_OF), "--out", str(patches)]
        measure([*command, "--quiet"])
    return folder


def run(arguments: argparse.Namespace, data: Path, work: Path) -> tuple[dict[str, Any], float]:
    """What `featkit eval all` prints, and its memory in MB."""
    command = [sys.executable, "-m", "featkit", "eval", "all", "--data", str(data), "--out", str(work / "eval")]
    command += ["--features", ",".join(arguments.features), "--resize-max", str(arguments.resize_max)]
    command += ["--max-keypoints", str(arguments.max_keypoints)]
    command += ["--only", arguments.only] if arguments.only else []
    finished = measure([*command, "--json", "--quiet"])
    return json.loads(finished.stdout), finished.peak_memory_mb


def speeds(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Keypoints per second on the ETH scenes, as standings."""
    total: dict[str, tuple[float, float]] = {}
    for row in found["benchmarks"].get("eth: eth", {}).get("rows", []):
        keypoints, seconds = total.get(row["name"], (0.0, 0.0))
        keypoints += row["keypoints_per_image"] * row["images"]
        total[row["name"]] = keypoints, seconds + row["seconds"]["extract"]
    return [
        {"method": name, "measure": SPEED, "value": keypoints / seconds, "better": "high"}
        for name, (keypoints, seconds) in total.items()
    ]


if __name__ == "__main__":
    main()
