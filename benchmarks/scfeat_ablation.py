"""SCFeat's ablations (paper, Table III), every row trained with the same small budget and measured on six sequences.

    python benchmarks/scfeat_ablation.py --data POSED --photos PHOTOS --runs RUNS --steps 2000 [--rows ...]

POSED: posed pairs (`featkit data posed-pairs`); PHOTOS: photographs for the warm-up. Each row is a training in
RUNS/ROW; a row that shares its first stages with another one starts from those, and rows that only extract differently
are not trained. What is done is passed over, what was stopped goes on. MMA as SCFeat's Table II has it (eq. 24), mutual
nearest neighbours, on the Oxford affine sequences. Writes benchmarks/results/scfeat_ablation.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from machine import write_result

HERE = Path(__file__).resolve().parent
STAGES = ("warm-up", "description", "detection")


@dataclass(frozen=True)
class Row:
    """settings: of the training. shared: stages taken from the first row. extraction: fields of the extractor."""

    name: str
    settings: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    extraction: tuple[tuple[str, Any], ...] = ()

    @property
    def is_trained(self) -> bool:
        return self.shared != STAGES


FULL = "scfeat-s"
ROWS = (
    Row(FULL),
    Row("w/o error factor", ("detection.loss.reward.error_factor=false",), STAGES[:2]),
    Row("PoSFeat's head and reward", ("detection.loss.reward.error_factor=false", "network.head=posfeat"), STAGES[:2]),
    Row("w/o pruning", shared=STAGES, extraction=(("descriptor_map", "normalised"),)),
    Row("w/o cross norm.", ("network.cross_norm=false",)),
    Row("fusion norm.", shared=STAGES, extraction=(("normalisation", "fusion"),)),
    Row("w/o warm-up", ("warm_up=null",)),
    Row("w/o turned views", ("description.augmentation.views={}", "detection.augmentation.views={}"), STAGES[:1]),
)


def folder_of(runs: Path, row: Row) -> Path:
    words = "".join(c if c.isalnum() else "-" for c in row.name.replace("w/o", "without").lower())
    return runs / "-".join(part for part in words.split("-") if part)


def train(row: Row, arguments: argparse.Namespace) -> Path:
    """The row's weight, trained if it is not there."""
    run = folder_of(arguments.runs, row if row.is_trained else ROWS[0])
    if not row.is_trained:
        return run / "best.safetensors"
    for stage in row.shared:
        source = folder_of(arguments.runs, ROWS[0]) / stage
        if not (run / stage).exists():
            shutil.copytree(source, run / stage)
    command = [sys.executable, "-m", "featkit", "train", "scfeat", "--data", arguments.data, "--out", run]
    command += ["--steps", arguments.steps, *(part for photos in arguments.photos for part in ("--photos", photos))]
    command += [part for stage in STAGES if stage not in row.shared for part in ("--stage", stage)]
    command += [part for setting in (*arguments.set, *row.settings) for part in ("--set", setting)]
    subprocess.run([str(part) for part in command], check=True)
    return run / "best.safetensors"


def measure(row: Row, weight: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """MMA of the row's features on the sequences."""
    place = arguments.runs / "features" / folder_of(arguments.runs, row).name
    place.mkdir(parents=True, exist_ok=True)
    features = place / "scfeat.yaml"
    values = {"extractor": "scfeat", "weights": str(weight.resolve()), **dict(row.extraction)}
    features.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "featkit", "eval", "hpatches", "--root", arguments.sequences]
    command += ["--features", features, "--out", place / "eval", "--json"]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--photos", type=Path, nargs="+", default=[])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000, help="of description; the other stages in proportion")
    parser.add_argument("--sequences", type=Path, default=HERE.parent.parent / "shared" / "data" / "oxford-affine")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], default=[row.name for row in ROWS])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all trainings")
    arguments = parser.parse_args()
    rows = []
    for row in ROWS:
        if row.name not in arguments.rows:
            continue
        print(f"== {row.name}", flush=True)
        weight = train(row, arguments)
        summary = json.loads((weight.parent / "summary.json").read_text(encoding="utf-8"))
        trained = {"seconds": summary["seconds"], "stages": [one["steps"] for one in summary["stages"]]}
        rows.append({"row": row.name, "settings": row.settings, **trained, "mma": measure(row, weight, arguments)})
    print(write_result("scfeat_ablation", {"steps": arguments.steps, "settings": arguments.set, "rows": rows}))


if __name__ == "__main__":
    main()
