"""The UBC-style table of patch descriptors: six combinations of training and test set, beside the papers' rows.

    python benchmarks/patch_table.py RUNS [RUNS2 ...] --data patches/liberty patches/buildings patches/aerial \
                                     [--epochs last best]

RUNS holds trainings as RUNS/SET/METHOD, as `patch_runs.py` makes them; further folders, or METHOD-s1, are other seeds
of the same. Every weight, of the last and of the best epoch by held-out classes of its own training set, is tested on
the two sets that it was not trained on; SIFT and RootSIFT on all. Numbers once measured are kept in RUNS/scores.json:
the command can be stopped and run again. Writes benchmarks/results/patch_table.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from feature_tables import ANYWHERE, patch_lines
from machine import write_result

from featkit.core.errors import FeatkitError
from featkit.data.download import digests
from featkit.evaluation.patches import SiftPatchConfig, patch_describer
from featkit.evaluation.published import published
from featkit.evaluation.ubc import PatchMethod, UbcScore, UbcSet, evaluate_pairs, find_runs, read_ubc, ubc_table

BASELINES = ("sift", "rootsift")
ORDER = (*BASELINES, "hardnet", "hynet", "adasample", "doap", "doap-binary", "sdgmnet")
EPOCHS = ("last", "best")


@dataclass
class Kept:
    """Scores by weight and test set, on disk after each one."""

    path: Path
    scores: dict[str, float]

    @staticmethod
    def read(path: Path) -> Kept:
        return Kept(path, json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})

    def add(self, key: str, value: float) -> None:
        self.scores[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.scores, indent=1) + "\n", encoding="utf-8")


def measured(sets: list[UbcSet], methods: list[PatchMethod], device: str, kept: Kept) -> list[UbcScore]:
    """FPR95 of every method on every set but its own."""
    identity = {one.name: digests(one.pairs_file).sha256[:16] for one in sets}
    scores = []
    for method in methods:
        weight = Path(method.weight)
        if weight.is_file():
            of = digests(weight).sha256[:16]
        else:
            of = f"{method.weight} {SiftPatchConfig(root=method.weight == 'rootsift').fingerprint()}"
        for data in sets:
            if data.name == method.train:
                continue
            key = f"{of} on {data.name} {identity[data.name]}"
            if key not in kept.scores:
                started = time.perf_counter()
                kept.add(key, evaluate_pairs(data, patch_describer(method.weight, device)))
                seconds = time.perf_counter() - started
                row = " ".join(
                    part for part in (method.name, method.variant, method.train and f"from {method.train}") if part
                )
                print(f"{row} on {data.name}: {100 * kept.scores[key]:.3f} % ({seconds:.0f} s)", flush=True)
            value = kept.scores[key]
            scores.append(UbcScore(method.name, method.train, method.variant, data.name, value, len(data.pairs)))
    return scores


def seeds_together(scores: list[UbcScore]) -> list[dict[str, Any]]:
    """A row per method and epoch: per column the mean over seeds in %, and their deviation where there are several."""
    table = ubc_table(scores)
    found: dict[tuple[str, str], list[tuple[float | None, ...]]] = {}
    for name, variant, values in table.rows:
        found.setdefault((name, variant.partition(",")[0]), []).append(values)
    rows = []
    for (name, epoch), seeds in found.items():
        row: dict[str, Any] = {
            "method": name,
            "epoch": epoch or ANYWHERE,
            "seeds": len(seeds),
            "fpr95": {},
            "deviation": {},
        }
        for column, head in enumerate(table.columns):
            values = [100 * v for seed in seeds if (v := seed[column]) is not None]
            label = f"{head[0] or ANYWHERE} -> {head[1]}"
            row["fpr95"][label] = fmean(values) if values else None
            if len(values) > 1:
                row["deviation"][label] = stdev(values)
        means = [100 * mean for seed in seeds if (mean := table.mean(seed)) is not None]
        row["mean"] = fmean(means) if means else None
        if len(means) > 1:
            row["deviation"]["mean"] = stdev(means)
        rows.append(row)
    place = {name: number for number, name in enumerate(ORDER)}
    return sorted(rows, key=lambda row: (place.get(row["method"], len(ORDER)), row["method"], row["epoch"] == "best"))


def trainings(runs: Path, sets: Sequence[str]) -> list[dict[str, Any]]:
    """What each run on one of the sets says of itself."""
    rows = []
    for path in sorted(path for name in sets for path in runs.glob(f"{name}/*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        kept = ("recipe", "steps", "patches", "seconds", "device", "last", "best", "versions")
        row = {"run": str(path.parent.relative_to(runs.parent)), "seed": summary.get("config", {}).get("seed")}
        rows.append({**row, **{key: summary.get(key) for key in kept}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--epochs", nargs="+", choices=EPOCHS, default=EPOCHS)
    parser.add_argument("--pairs", help="name of the file of test pairs in each folder")
    arguments = parser.parse_args()
    try:
        sets = [read_ubc(folder, arguments.pairs) for folder in arguments.data]
        methods = [PatchMethod(name, "", "", name) for name in BASELINES]
        for number, folder in enumerate(arguments.runs):
            found = find_runs(folder, arguments.epochs)
            found = [one for one in found if one.train in {data.name for data in sets}]
            methods += [replace(one, variant=f"{one.variant}, folder {number}") if number else one for one in found]
        scores = measured(sets, methods, arguments.device, Kept.read(arguments.runs[0] / "scores.json"))
    except FeatkitError as error:
        sys.exit(str(error))
    data = {
        one.name: {
            "patches": len(one.patch_set),
            "pairs": len(one.pairs),
            "matching": int(one.pairs.match.sum()),
            "pairs_file": one.pairs_file.name,
            "scenes": list(one.patch_set.scene_names),
        }
        for one in sets
    }
    result = {
        "unit": "FPR95, %",
        "data": data,
        "rows": seeds_together(scores),
        "scores": [asdict(score) for score in scores],
        "trainings": [row for folder in arguments.runs for row in trainings(folder, [one.name for one in sets])],
        "published": published("ubc").model_dump(mode="json"),
    }
    print("\n".join(patch_lines(result)))
    print(write_result("patch_table", result))


if __name__ == "__main__":
    main()
