"""The tables of README.md and docs/ from the files in benchmarks/results/.

python benchmarks/tables.py            # rewrite the tables between the pages' markers
python benchmarks/tables.py --check    # exit 1 when they are not what the files say
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import feature_tables
import localization_tables
import map_tables
import promise_tables
import scaling_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MEASURED = ROOT / "featkit" / "features" / "measured.yaml"
SHOWN = {"MMAScore oxford-affine, %": "mma_score_percent", "keypoints/s": "keypoints_per_s"}
HEAD = (
    "# Made by `python benchmarks/tables.py` from benchmarks/results:",
    "# leaderboard.json: MMAScore on the six Oxford sequences, and keypoints a second at 1600 px on two cores;",
    "# published_speed.json: CPU-seconds of an image of 640x480 on one thread;",
)
LONGEST_COMMAND = 120  # characters; the file has all of it
SCRIPTS = {"profile": "stage_profile"}  # one that would hide one of Python's own modules


def _read(name: str) -> dict[str, Any]:
    return {**json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")), "name": name}


def _origin(result: dict[str, Any]) -> str:
    machine, name = result["machine"], result["name"]
    command = textwrap.shorten(result["command"], LONGEST_COMMAND, placeholder=" ...")
    return (
        f"*Measured on {result['date']} with `{command}`: {machine['processor']}, {machine['cores']} cores,"
        f" torch {result['versions']['torch']}{_later(result)}. All figures: [`benchmarks/results/{name}.json`]"
        f"(benchmarks/results/{name}.json).*"
    )


def _later(result: dict[str, Any]) -> str:
    """Which rows a later run replaced."""
    names: dict[str, list[str]] = {}
    for name, run in result.get("updated", {}).items():
        names.setdefault(run["date"], []).append(f"`{name}`")
    return "".join(f"; {', '.join(rows)} on {date}" for date, rows in names.items())


def made_table(name: str, make: Callable[[dict[str, Any]], str], signed: bool = True) -> str:
    """A table of one result; a line in its place where there is no measurement yet. signed: with its origin below."""
    if not (RESULTS / f"{name}.json").is_file():
        return f"*Not measured yet: `python benchmarks/{SCRIPTS.get(name, name)}.py`.*"
    result = _read(name)
    return f"{make(result)}\n\n{_origin(result)}" if signed else make(result)


TABLES: dict[str, Callable[[], str]] = {
    name: partial(made_table, "scaling", make, signed=False) for name, make in scaling_tables.TABLES.items()
}
for module in (feature_tables, localization_tables, map_tables, promise_tables):
    TABLES |= {name: partial(made_table, result, make) for name, (result, make) in module.TABLES.items()}


def pages() -> list[Path]:
    """The pages that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(path: Path) -> str:
    """The text of a page with every table of it made anew."""
    page = path.read_text(encoding="utf-8")
    up = "../" * len(path.relative_to(ROOT).parents[0].parts)
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(page):
            continue
        table = make().replace("](benchmarks/", f"]({up}benchmarks/")
        page = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", page)
    return page


def measured() -> str:
    """What `featkit features` shows of each feature, as featkit/features/measured.yaml."""
    found: dict[str, dict[str, float]] = {}
    for row in _read("leaderboard")["standings"]:
        if row["measure"] in SHOWN:
            found.setdefault(row["method"], {})[SHOWN[row["measure"]]] = float(f"{row['value']:.3g}")
    for row in _read("published_speed")["rows"]:
        if row["size"] == "640x480":
            found.setdefault(row["network"], {})["cpu_s"] = float(f"{row['cpu_seconds']['ours']:.3g}")
    lines = [f"{name}: {{{', '.join(f'{key}: {value:g}' for key, value in found[name].items())}}}" for name in found]
    return "\n".join([*HEAD, *lines]) + "\n"


def made() -> dict[Path, str]:
    """Every file that is made of the results, and its text."""
    return {**{path: filled(path) for path in pages()}, MEASURED: measured()}


def main() -> None:
    stale = []
    for path, new in made().items():
        if not path.is_file() or new != path.read_text(encoding="utf-8"):
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv[1:]:
                path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(stale)}: the tables are not those of benchmarks/results")


if __name__ == "__main__":
    main()
