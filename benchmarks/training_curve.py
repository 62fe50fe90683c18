"""Score against patches seen: the versions of a shipped patch network in this repository's history, on Oxford.

    python benchmarks/training_curve.py sdgmnet hynet [--data ../shared/data/oxford-affine] [--max-keypoints 2000]

Each commit that changed weights/NAME.safetensors gives a version; of those with equally many patches in their manifest
the latest counts. Each is measured as `oxford_mma.py` does, as the weight of `dog+NAME`.

--skip: a commit whose weights did not record yet how large their patches were. --patches: how many patches a version
has seen whose manifest does not say. --work keeps features and matches, so that a stopped run goes on; versions that
the result already has are not measured again. Writes benchmarks/results/training_curve.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import RESULTS, write_result
from oxford_mma import row_of

ROOT = Path(__file__).resolve().parent.parent
NAME = "training_curve"
KEPT = ("weights_sha256", "mean_features", "mean_matches", "mma_score", "map", "protocol", "matcher")


def git(*arguments: str) -> bytes:
    """The output of a git command in the checkout."""
    return subprocess.run(["git", *arguments], capture_output=True, check=True, cwd=ROOT).stdout


def versions(name: str, folder: Path, skip: list[str], counts: dict[str, int]) -> list[tuple[dict[str, Any], Path]]:
    """Every version of a weight, the fewest patches first: what its manifest says, and its file in `folder`."""
    found: dict[int, tuple[dict[str, Any], Path]] = {}
    commits = git("log", "--reverse", "--format=%h %as", "--", f"weights/{name}.safetensors").decode().splitlines()
    for commit, date in (line.split() for line in commits):
        if commit in skip:
            continue
        manifest = json.loads(git("show", f"{commit}:weights/manifest.json"))
        row = next(row for row in manifest["weights"] if row["name"] == name)
        file = folder / f"{name}-{commit}.safetensors"
        file.write_bytes(git("show", f"{commit}:weights/{name}.safetensors"))
        patches = row["training"].get("patches") or counts.get(commit)
        if patches is None:
            sys.exit(f"{name} of {commit}: how many patches has it seen? --patches {commit}=NUMBER, or --skip {commit}")
        about = {"name": name, "commit": commit, "date": date, "patches": patches}
        about |= {"magnification": row["config"].get("magnification", 12.0), "weights_sha256": row["sha256"]}
        found[patches] = (about, file)
    return [found[patches] for patches in sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "oxford-affine")
    parser.add_argument("--work", type=Path, help="folder of features and matches, kept")
    parser.add_argument("--max-keypoints", type=int, default=2000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--skip", nargs="*", default=[], metavar="COMMIT")
    parser.add_argument("--patches", nargs="*", default=[], metavar="COMMIT=NUMBER")
    parser.set_defaults(sequences=None, resize_max=None)
    arguments = parser.parse_args()
    counts = {commit: int(number) for commit, number in (given.split("=") for given in arguments.patches)}
    result = RESULTS / f"{NAME}.json"
    old = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    known = {row["weights_sha256"]: row for row in old.get("rows", [])}
    if old.get("max_keypoints") != arguments.max_keypoints:
        known = {}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.names:
            for about, file in versions(name, Path(temporary), arguments.skip, counts):
                row = known.get(about["weights_sha256"])
                if row is None:
                    measured = row_of(f"dog+{name}={file}", arguments, arguments.work or Path(temporary))
                    row = {**about, **{key: measured[key] for key in KEPT}}
                rows.append(row)
                print(f"{name}, {row['patches']:,} patches: MMAScore {100 * row['mma_score']:.2f}", flush=True)
    measured_rows = {"unit": "shares in [0, 1]", "max_keypoints": arguments.max_keypoints, "rows": rows}
    print(write_result(NAME, measured_rows))


if __name__ == "__main__":
    sys.exit(main())
