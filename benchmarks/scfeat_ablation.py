"""SCFeat's ablations (paper, Table III), every row trained with the same small budget and measured on six sequences.

    python benchmarks/scfeat_ablation.py --data POSED --photos PHOTOS --runs RUNS --steps 2000 [--seeds 3] [--rows ...]
    python benchmarks/scfeat_ablation.py --data POSED --runs RUNS --start WEIGHTS --steps 300 [--seeds 3]

POSED: posed pairs (`featkit data posed-pairs`); PHOTOS: photographs for the warm-up. Each row is a training in
RUNS/seed-N/ROW, once for each seed. A row that has its first stages in common with the full one starts from those of
the same seed, so that rows that change the detection alone differ in it alone; rows that only extract differently are
not trained. Without the warm-up its batches are added to the description: every row has the same budget. Each stage
goes on with the last step of the one before, not with the best on held-out pairs: where that is the first, what a row
changes would not show. What is done is passed over, what was stopped goes on.

In the recipe, good pairs earn 1 and bad ones 0, without a regulariser: what the rewards are when L_fme is 0. The row
"error factor" has the paper's reward (eq. 19 to 21) as it is by default, "algorithm 1" with L_fme to the letter.
"PoSFeat's reward" is what the paper compares with: bad pairs earn -0.25, the regulariser is -0.001.

--start: the detection alone, --steps long, in all rows and seeds on the descriptors of these weights, whose detector is
not trained yet: those of a warm-up or a description. Only the rows that change nothing before the detection.

MMA as SCFeat's Table II has it (eq. 24), mutual nearest neighbours, on the Oxford affine sequences: of every row the
mean over the seeds, the standard deviation (n - 1), the least and the greatest. Scores of different heads have
different ranges, so no row has a threshold and all have the best --max-keypoints of an image. Writes
benchmarks/results/scfeat_ablation.json, with --start scfeat_ablation_detection.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from machine import write_result

from featkit.core.config import overrides
from featkit.core.registry import resolve
from featkit.training.scfeat_task import ScfeatTraining

HERE = Path(__file__).resolve().parent
STAGES = ("warm-up", "description", "detection")


@dataclass(frozen=True)
class Row:
    """settings: of the training. shared: stages taken from the full row. extraction: fields of the extractor."""

    name: str
    settings: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    extraction: tuple[tuple[str, Any], ...] = ()

    @property
    def of_detection(self) -> bool:
        """Whether nothing but the loss of the detection differs from the full row."""
        return self.is_trained and all(setting.startswith("detection.loss.") for setting in self.settings)

    @property
    def is_trained(self) -> bool:
        return self.shared != STAGES


FULL = Row("scfeat-s")  # the recipe
NO_WARM_UP = "w/o warm-up"
STILL = "{rotation_deg: 0, scale_max: 1, perspective: 0}"  # all of them: what is left out stays as the recipe has it
FACTOR = ("detection.loss.reward.error_factor=true", "detection.loss.regulariser=-0.001")
POSFEAT = ("detection.loss.reward.bad=-0.25", "detection.loss.regulariser=-0.001")
ROWS = (
    FULL,
    Row("error factor", FACTOR, STAGES[:2]),
    Row("algorithm 1", (*FACTOR, "detection.loss.error.pairs=good", "detection.loss.error.scale=image"), STAGES[:2]),
    Row("PoSFeat's reward", POSFEAT, STAGES[:2]),
    Row("PoSFeat's head and reward", (*POSFEAT, "network.head=posfeat"), STAGES[:2]),
    Row("w/o pruning", shared=STAGES, extraction=(("descriptor_map", "normalised"),)),
    Row("w/o cross norm.", ("network.cross_norm=false",)),
    Row("fusion norm.", shared=STAGES, extraction=(("normalisation", "fusion"),)),
    Row(NO_WARM_UP, ("warm_up=null",)),
    Row(
        "w/o turned views",
        (f"description.augmentation.views={STILL}", f"detection.augmentation.views={STILL}"),
        STAGES[:1],
    ),
)


def folder_of(runs: Path, row: Row, seed: int) -> Path:
    words = "".join(c if c.isalnum() else "-" for c in row.name.replace("w/o", "without").lower())
    return runs / f"seed-{seed}" / "-".join(part for part in words.split("-") if part)


def lengths(row: Row, steps: int, given: list[str], start: Path | None) -> list[str]:
    """Settings of the row's stages' lengths, when the full one has so many steps of description."""
    recipe = resolve("task", FULL.name, overrides(given)).own
    assert isinstance(recipe, ScfeatTraining)
    if start:
        return [f"detection.steps={steps}"]
    assert recipe.warm_up is not None
    full = recipe.scaled_to(steps)
    assert full.warm_up is not None
    if row.name == NO_WARM_UP:
        description = full.warm_up.steps + full.description.steps
        return [f"description.steps={description}", f"detection.steps={full.detection.steps}"]
    stages = {"warm_up": full.warm_up, "description": full.description, "detection": full.detection}
    return [f"{name}.steps={stage.steps}" for name, stage in stages.items()]


def settings_of(row: Row, arguments: argparse.Namespace) -> list[str]:
    return [*arguments.set, *lengths(row, arguments.steps, arguments.set, arguments.start), *row.settings]


def share(row: Row, runs: Path, seed: int) -> None:
    """Copy the stages that the row has in common with the full one; a copy that was stopped does not count."""
    for stage in row.shared:
        source, target = folder_of(runs, FULL, seed) / stage, folder_of(runs, row, seed) / stage
        if target.exists():
            continue
        if not is_done(source):
            sys.exit(f"{source}: is not finished, and {row.name!r} starts from it; train the row {FULL.name!r} first")
        part = target.with_name(f".{stage}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, part)
        part.rename(target)


def train(row: Row, seed: int, arguments: argparse.Namespace) -> Path:
    """The row's weight, trained if it is not there."""
    run = folder_of(arguments.runs, row if row.is_trained else FULL, seed)
    if not row.is_trained:
        return run / "last.safetensors"
    if not arguments.start:
        share(row, arguments.runs, seed)
    plain = [sys.executable, "-m", "featkit", "train", "scfeat", "--data", arguments.data, "--out", run]
    plain += ["--seed", seed]
    plain += ["--precision", arguments.precision]
    plain += [part for photos in arguments.photos for part in ("--photos", photos)]
    plain += [part for setting in settings_of(row, arguments) for part in ("--set", setting)]
    plain += ["--start", arguments.start] if arguments.start else []
    for stage in STAGES[-1:] if arguments.start else STAGES[row.name == NO_WARM_UP :]:
        if not is_done(run / stage):
            subprocess.run([str(part) for part in (*plain, "--stage", stage)], check=True)
            keep_last(run / stage)
    return run / "last.safetensors"


def keep_last(stage: Path) -> None:
    """Let the next stage start from the last step: it reads the file `best` where there is no checkpoint."""
    shutil.copy(stage / "last.safetensors", stage / "best.safetensors")
    (stage / "checkpoint.pt").unlink()


def is_done(stage: Path) -> bool:
    return (stage / "summary.json").is_file() and not (stage / "checkpoint.pt").exists()


def measure(row: Row, seed: int, weight: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """MMAScore of the row's features, of all sequences and of each."""
    place = arguments.runs / "features" / folder_of(Path(), row, seed)
    place.mkdir(parents=True, exist_ok=True)
    features = place / "scfeat.yaml"
    values = {"extractor": "scfeat", "weights": str(weight.resolve()), **dict(row.extraction)}
    values |= {"threshold": 0.0, "max_keypoints": arguments.max_keypoints}
    features.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "featkit", "eval", "hpatches", "--root", arguments.sequences]
    command += ["--features", features, "--out", place / "eval", "--json"]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return compact(json.loads(done.stdout.splitlines()[-1])["methods"][0])


def compact(method: dict[str, Any]) -> dict[str, Any]:
    overall = method["groups"]["overall"]
    return {
        **{key: overall[key] for key in ("mma_score", "features", "matches")},
        "sequences": {name: one["mma_score"] for name, one in method["sequences"].items()},
    }


def spread(scores: list[float]) -> dict[str, float]:
    """Mean, standard deviation, least and greatest of the seeds."""
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    found = {"mean": statistics.mean(scores), "deviation": deviation, "min": min(scores), "max": max(scores)}
    return {name: round(value, 6) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--photos", type=Path, nargs="+", default=[])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights whose descriptors all rows have: detection alone")
    parser.add_argument(
        "--steps",
        type=int,
        default=2000,
        help="of description, the other stages in proportion; with --start of detection",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row, with seeds 0, 1, ...")
    parser.add_argument("--precision", default="fp32", help="of all trainings")
    parser.add_argument("--max-keypoints", type=int, default=2048, help="of an image")
    parser.add_argument("--sequences", type=Path, default=HERE.parent.parent / "shared" / "data" / "oxford-affine")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all trainings")
    arguments = parser.parse_args()
    possible = [row for row in ROWS if row.of_detection or not arguments.start]
    asked = [row for row in possible if row.name in (arguments.rows or [row.name for row in possible])]
    if len(asked) < len(arguments.rows or []):
        parser.error(f"--start: only the rows {', '.join(row.name for row in possible)}")
    found: dict[str, list[dict[str, Any]]] = {row.name: [] for row in asked}
    for seed in range(arguments.seeds):
        for row in asked:
            print(f"== {row.name}, seed {seed}", flush=True)
            weight = train(row, seed, arguments)
            summary = json.loads((weight.parent / "summary.json").read_text(encoding="utf-8"))
            trained = {"seconds": summary["seconds"], "stages": [one["steps"] for one in summary["stages"]]}
            found[row.name].append({"seed": seed, **trained, **measure(row, seed, weight, arguments)})
    rows = [
        {
            "row": row.name,
            "settings": row.settings,
            "mma_score": spread([one["mma_score"] for one in found[row.name]]),
            "seeds": found[row.name],
        }
        for row in asked
    ]
    for row in rows:
        score = row["mma_score"]
        print(f"{row['row']:28}{100 * score['mean']:6.1f} +- {100 * score['deviation']:.1f}")
    given = {"steps": arguments.steps, "settings": arguments.set, "max_keypoints": arguments.max_keypoints}
    print(write_result("scfeat_ablation_detection" if arguments.start else "scfeat_ablation", {**given, "rows": rows}))


if __name__ == "__main__":
    main()
