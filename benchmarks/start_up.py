"""How long commands take to start, and to see that all is done already; and what importing torch costs them.

    python benchmarks/start_up.py [--scene ../shared/data/sacre_coeur] [--repeats 7]

Whole processes, in turn; medians. torch is imported as featkit does it (`core.imports`), and as Python does. Writes
benchmarks/results/start_up.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from machine import Finished, measure, write_result

SCENE = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "sacre_coeur"
FEATKIT = [sys.executable, "-m", "featkit"]
PLAIN = "import torch"
AHEAD = "import gc; from featkit.core.imports import import_module; import_module('torch'); gc.freeze()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=SCENE, help="a folder of photographs")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        finished_map = [*FEATKIT, "reconstruct", str(arguments.scene), "--out", f"{work}/map", "--quiet"]
        measure(finished_map)
        commands = {
            "featkit --help": [*FEATKIT, "--help"],
            "featkit reconstruct --help": [*FEATKIT, "reconstruct", "--help"],
            "featkit reconstruct, of a finished map": finished_map,
            "import torch, by Python": [sys.executable, "-c", PLAIN],
            "import torch, by featkit": [sys.executable, "-c", AHEAD],
        }
        runs: dict[str, list[Finished]] = {name: [] for name in commands}
        for _ in range(arguments.repeats):
            for name, command in commands.items():
                runs[name].append(measure(command))
    rows = [
        {
            "what": name,
            "seconds": round(statistics.median(one.seconds for one in found), 3),
            "seconds_all": [round(one.seconds, 3) for one in found],
            "cpu_s": round(statistics.median(one.cpu_seconds for one in found), 2),
        }
        for name, found in runs.items()
    ]
    print(write_result("start_up", {"scene": arguments.scene.name, "rows": rows}))


if __name__ == "__main__":
    main()
