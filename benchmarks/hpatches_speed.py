"""Seconds and peak memory of `featkit eval hpatches` once features exist, over more and more sequences.

    python benchmarks/hpatches_speed.py [--data ../shared/data/oxford-affine] [--features rootsift] [--repeats 3]

Features are extracted first and kept. Then, for 1, 2, ... all sequences (5 pairs each), matches are made and scored
anew, start-up, pictures and page included. "growth": peak memory of all over that of the largest single sequence; the
largest images decide it, not the number of pairs. Writes benchmarks/results/hpatches_speed.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import Finished, measure, write_result

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "oxford-affine")
    parser.add_argument("--features", default="rootsift")
    parser.add_argument("--max-keypoints", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    try:
        result = measured(arguments)
    except RuntimeError as error:
        sys.exit(str(error))
    print(write_result("hpatches_speed", {"features": arguments.features, **result}))


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows, and how memory grows."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        first = json.loads(evaluate(arguments, work, []).stdout)
        names = list(first["sequences"])
        singles = [evaluate(arguments, work, [name]).peak_memory_mb for name in names]
        rows = []
        for count in range(1, len(names) + 1):
            runs = [evaluate(arguments, work, names[:count]) for _ in range(arguments.repeats)]
            overall = json.loads(runs[0].stdout)["methods"][0]["groups"]["overall"]
            rows.append(
                {
                    "sequences": count,
                    "pairs": overall["pairs"],
                    "mean_features": overall["features"],
                    "seconds": statistics.median(run.seconds for run in runs),
                    "peak_memory_mb": statistics.median(run.peak_memory_mb for run in runs),
                }
            )
            print(rows[-1], flush=True)
    growth = rows[-1]["peak_memory_mb"] / max(singles)
    return {"rows": rows, "largest_single_mb": max(singles), "growth": round(growth, 3)}


def evaluate(arguments: argparse.Namespace, work: Path, sequences: list[str]) -> Finished:
    """One run with the features that are there, and no matches."""
    for matches in work.glob("predictions/*/*"):
        if matches.is_dir():
            shutil.rmtree(matches)
    command = [sys.executable, "-m", "featkit", "eval", "hpatches", "--root", str(arguments.data), "--out", str(work)]
    command += ["--features", arguments.features, "--max-keypoints", str(arguments.max_keypoints), "--json", "--quiet"]
    return measure([*command, *(["--sequences", ",".join(sequences)] if sequences else [])])


if __name__ == "__main__":
    main()
