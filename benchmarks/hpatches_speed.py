"""Seconds and peak memory of `featkit eval hpatches` once features exist, over more and more sequences.

    python benchmarks/hpatches_speed.py [--data ../shared/data/oxford-affine] [--features rootsift] [--repeats 3]

Features are extracted first and kept. Then, for one sequence, all, twice, four and eight times all (the same ones under
other names; 5 pairs each), matches are made and scored anew, start-up, pictures and page included. "growth": peak
memory of eight times the sequences over that of four times: both are more images than the match stage keeps. Writes
benchmarks/results/hpatches_speed.json.
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
TIMES = (1, 2, 4, 8)


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
        work, data = Path(temporary) / "eval", Path(temporary) / "data"
        names = copied(arguments.data.resolve(), data)
        evaluate(arguments, data, work, [])
        rows = []
        whole = len(names) // TIMES[-1]
        for count in (1, *(whole * times for times in TIMES)):
            runs = [evaluate(arguments, data, work, names[:count]) for _ in range(arguments.repeats)]
            overall = json.loads(runs[0].stdout)["methods"][0]["groups"]["overall"]
            rows.append(
                {
                    "sequences": count,
                    "pairs": overall["pairs"],
                    "mean_features": overall["features"],
                    "seconds": round(statistics.median(run.seconds for run in runs), 2),
                    "peak_memory_mb": statistics.median(run.peak_memory_mb for run in runs),
                }
            )
            print(rows[-1], flush=True)
    return {"rows": rows, "growth": round(rows[-1]["peak_memory_mb"] / rows[-2]["peak_memory_mb"], 3)}


def copied(source: Path, data: Path) -> list[str]:
    """Every sequence eight times, each copy under a name of its own."""
    sequences = sorted(folder.name for folder in source.iterdir() if folder.is_dir())
    data.mkdir()
    names = []
    for copy in range(TIMES[-1]):
        for sequence in sequences:
            names.append(f"{sequence}{copy}")
            (data / names[-1]).symlink_to(source / sequence)
    return names


def evaluate(arguments: argparse.Namespace, data: Path, work: Path, sequences: list[str]) -> Finished:
    """One run with the features that are there, and no matches."""
    for matches in work.glob("predictions/*/*"):
        if matches.is_dir():
            shutil.rmtree(matches)
    command = [sys.executable, "-m", "featkit", "eval", "hpatches", "--root", str(data), "--out", str(work)]
    command += ["--features", arguments.features, "--max-keypoints", str(arguments.max_keypoints), "--json", "--quiet"]
    return measure([*command, *(["--sequences", ",".join(sequences)] if sequences else [])])


if __name__ == "__main__":
    main()
