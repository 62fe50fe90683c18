"""How time, memory and disk of every stage grow with the number of images, and what a million would take.

    python benchmarks/scaling.py [--sizes 200 1000 3000] [--mappers incremental hierarchical global] [--limit-s 900]
                                 [--to-the-end 1000]

`survey.py` computes what a camera sees that flies over blocks of houses; its features go through featkit's own store,
and then retrieval pairs, matching, verification, mapping and the report run as `featkit reconstruct` runs them, each
in a process of its own. Seconds are those of the work, peak memory that of the process. A stage that takes longer than
--limit-s is stopped and says so. At the sizes of --to-the-end the incremental mapper is run once more with COLMAP's
tolerances, 0. Stores of --store-items images and pairs are opened, listed and looked through.
Growth is fitted over the sizes that ended: seconds = factor x images^exponent, memory = base + per 1,000 images; both
are carried on to a million. `on_paper` is the same for photographs of 2,048 keypoints and 40 pairs an image. --work
keeps what is done: a stopped run goes on. Writes benchmarks/results/scaling.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import measure, write_result
from scaling_fit import Assumptions, Row, described, extrapolated, fits, on_paper, unit_costs
from scaling_stages import OUTPUTS, clear
from survey import SurveyConfig

HERE = Path(__file__).resolve().parent
MAPPERS = ("incremental", "hierarchical", "global")
TO_THE_END = "map incremental, tolerance 0"
STARTUP_S = 60.0  # beyond the limit of a stage, for the imports and what is checked after it


def main() -> None:
    arguments = parsed()
    settings = {"survey": SurveyConfig(points_per_image=arguments.points).result_fields()}
    settings |= {"num_matched": arguments.num_matched, "leaf_max_images": arguments.leaf_max_images}
    try:
        with tempfile.TemporaryDirectory() as temporary:
            work = (arguments.work or Path(temporary)).resolve()
            run = Run(work, settings, arguments.limit_s)
            for images in arguments.sizes:
                run.size(images, arguments.mappers, images in arguments.to_the_end)
            search = run.row(0, "search", "search", work, {"dims": 4096, "num": arguments.num_matched})
            store = run.large_store(arguments.store_items) if arguments.store_items else None
    except RuntimeError as error:
        sys.exit(str(error))
    stages = list(OUTPUTS)
    asked = [row for row in run.rows if row["images"] in arguments.sizes]
    asked.sort(key=lambda row: (row["images"], stages.index(row["stage"])))
    found = fits(asked)
    keypoints = [row["keypoints"] / row["images"] for row in asked if "keypoints" in row]
    unit = None
    if keypoints and not run.stopped(search):
        dims = settings["survey"]["dims"]
        unit = unit_costs(asked, search, os.cpu_count() or 1, sum(keypoints) / len(keypoints), dims)
    result = {
        **settings,
        "limit_s": arguments.limit_s,
        "rows": asked,
        "search": search,
        "store": store,
        "growth": found,
        "extrapolated": extrapolated(found),
        "assumptions": described(Assumptions()),
        "unit_costs": unit,
        "on_paper": None if unit is None else on_paper(unit, Assumptions()),
    }
    print(write_result("scaling", result))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000, 3000], help="images")
    parser.add_argument("--mappers", nargs="+", choices=MAPPERS, default=MAPPERS)
    parser.add_argument("--points", type=int, default=SurveyConfig().points_per_image, help="in a frame, on average")
    parser.add_argument("--num-matched", type=int, default=20, help="images each one is paired with")
    parser.add_argument("--leaf-max-images", type=int, default=500, help="of a cluster of the hierarchical mapper")
    parser.add_argument("--limit-s", type=float, default=900.0, help="seconds of one stage, at most")
    parser.add_argument("--to-the-end", type=int, nargs="*", default=[1000], help="sizes also mapped at tolerance 0")
    parser.add_argument("--store-items", type=int, default=300_000, help="of the large stores; 0: none")
    parser.add_argument("--work", type=Path, help="keeps features, maps and what was measured")
    return parser.parse_args()


class Run:
    """Rows that are measured, one json file of them in `work`; what stands in it is not measured again."""

    def __init__(self, work: Path, settings: dict[str, Any], limit_s: float):
        self.work, self.settings, self.limit_s = work, settings, limit_s
        self.path = work / "rows.json"
        work.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = []
        if self.path.is_file():
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["settings"] != settings:
                raise RuntimeError(f"{self.path}: measured with other settings; name another --work")
            self.rows = kept["rows"]

    def size(self, images: int, mappers: list[str], to_the_end: bool) -> None:
        """All stages of one size; after one that was stopped, no other that needs it."""
        folder = self.work / str(images)
        survey = {**self.settings["survey"], "images": images}
        if self.stopped(self.row(images, "survey", "survey", folder, survey)):
            return
        paired = self.row(images, "pairs", "pairs", folder, {"num_matched": self.settings["num_matched"]})
        if self.stopped(paired):
            return
        for name in ("match", "verify"):
            if self.stopped(self.row(images, name, name, folder, {}, pairs=paired["pairs"])):
                return
        ended = []
        for mapper in mappers:
            clusters = {"leaf_max_images": self.settings["leaf_max_images"]}
            fields = {"mapper": mapper, "clusters": clusters}
            if not self.stopped(self.row(images, f"map {mapper}", "map", folder, fields)):
                ended.append(mapper)
        if to_the_end:
            self.row(
                images,
                TO_THE_END,
                "map",
                folder,
                {"global_adjustment_tolerance": 0.0, "local_adjustment_tolerance": 0.0},
            )
        if ended:
            self.row(images, "report", "report", folder, {"mapper": ended[0]})

    def row(self, images: int, name: str, stage: str, folder: Path, settings: dict[str, Any], **more: Any) -> Row:
        """The row of a stage: the one there is, unless it was stopped at a lower limit, or a new one."""
        for row in self.rows:
            same = (row["images"], row["stage"]) == (images, name)
            if same and (row["stopped_after_s"] is None or row["stopped_after_s"] >= self.limit_s):
                return row
        clear(folder, OUTPUTS.get(name, ()))  # of a run that was stopped: the rest alone would be too fast
        command = [sys.executable, str(HERE / "scaling_stages.py"), stage, str(folder), json.dumps(settings)]
        done = measure(command, self.limit_s + STARTUP_S)
        found = {"seconds": None} if done.stopped else json.loads(done.stdout.splitlines()[-1])
        stopped = self.limit_s if done.stopped else None
        row = {"images": images, "stage": name, "stopped_after_s": stopped, "peak_memory_mb": done.peak_memory_mb}
        row |= more | found
        self.rows = [one for one in self.rows if (one["images"], one["stage"]) != (images, name)] + [row]
        self.path.write_text(json.dumps({"settings": self.settings, "rows": self.rows}, indent=1), encoding="utf-8")
        took = f"stopped after {stopped:.0f} s" if stopped else f"{row['seconds']:.1f} s"
        print(f"{images} images: {name} {took}, {row['peak_memory_mb']:,.0f} MB", flush=True)
        return row

    @staticmethod
    def stopped(row: Row) -> bool:
        return row["stopped_after_s"] is not None

    def large_store(self, items: int) -> Row:
        """Stores of features and of matches, `items` each: written, opened, listed, looked through."""
        folder, asked = self.work / "store", {"items": items}
        written = self.row(items, "store-write", "store-write", folder, asked)
        if self.stopped(written):
            return {"items": items, "write": written, "read": written}
        read = self.row(items, "store-read", "store-read", folder, asked)
        clear(folder, OUTPUTS["store-write"])
        return {"items": items, "write": written, "read": read}


if __name__ == "__main__":
    main()
