"""Train every recipe on every subset with one equal budget of patches: the runs behind `patch_table.py`.

    python benchmarks/patch_runs.py --data PATCHES --runs RUNS --patches 160000

PATCHES holds one folder per subset, made by `featkit data patches`, or is a pack of them (`featkit data pack`). Each
run is RUNS/<subset>/<recipe>, with -s<seed> for other seeds than 0. A run that is done is passed over, one that was
stopped goes on. The budget is counted in patches that the network learns from, not in seconds: it is the same on every
machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RECIPES = ("hardnet", "hynet", "adasample", "doap", "doap-binary", "sdgmnet")
SUBSETS = ("liberty", "buildings", "aerial")
UNION = "union"
PAIRED = 2  # patches of a pair; DOAP's batches are counted in patches
BY_PATCHES = ("doap", "doap-binary")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the subsets' folders")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--subsets", nargs="+", default=list(SUBSETS), help="or: union, all folders of --data together")
    parser.add_argument("--patches", type=int, default=160_000, help="that the network learns from")
    parser.add_argument("--batch", type=int, default=512, help="patches in a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="RECIPE:KEY=VALUE", help="a change of one recipe")
    arguments = parser.parse_args()
    for subset in arguments.subsets:
        for recipe in arguments.recipes:
            run = arguments.runs / subset / (f"{recipe}-s{arguments.seed}" if arguments.seed else recipe)
            print(f"== {run}", flush=True)
            subprocess.run(command(arguments, subset, recipe, run), check=True)


def command(arguments: argparse.Namespace, subset: str, recipe: str, run: Path) -> list[str]:
    """The command line that trains one run."""
    folders = [arguments.data / subset]
    if subset == UNION:
        is_pack = arguments.data.is_file()
        folders = [arguments.data] if is_pack else sorted(p for p in arguments.data.iterdir() if p.is_dir())
    batch = arguments.batch if recipe in BY_PATCHES else arguments.batch // PAIRED
    changes = [change.partition(":")[2] for change in arguments.set if change.partition(":")[0] in (recipe, "all")]
    return [
        *(sys.executable, "-m", "featkit", "train", "patch", "--config", recipe, "--out", str(run)),
        *(part for folder in folders for part in ("--data", str(folder))),
        *("--steps", str(arguments.patches // arguments.batch), "--batch-size", str(batch)),
        *("--seed", str(arguments.seed), "--precision", "fp32"),  # of all alike, whatever machine each is trained on
        *(part for change in changes for part in ("--set", change)),
    ]


if __name__ == "__main__":
    main()
