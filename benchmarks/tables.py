"""The README's tables from the files in benchmarks/results/.

python benchmarks/tables.py            # rewrite the tables between the README's markers
python benchmarks/tables.py --check    # exit 1 when they are not what the files say
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def scenes_table() -> str:
    """featkit, pycolmap and the papers' rows side by side, and the localization below."""
    result = json.loads((RESULTS / "scenes.json").read_text(encoding="utf-8"))
    lines = [
        "| scene | method | registered | points | observations | track | error px | centre mm | rotation deg"
        " | extract s | match + verify s | map s | total s | memory MB |",
        "|---|---|" + "---:|" * 12,
    ]
    papers = result["published"]["paper_rows"]
    for row in result["rows"]:
        lines.append(_scene_line(row))
        name = row["scene"].rpartition("/")[2]
        if row["method"] == "pycolmap":
            for method, values in papers.get(name, {}).items():
                registered, points, observations, track, error = ("" if v is None else v for v in values)
                head = f"| {name} | *{method}, as published* | {registered} | {points} | {observations} |"
                lines.append(f"{head} {track} | {error} |" + " |" * 7)
    lines += ["", _times(result), "", *_localization(result), "", _origin(result)]
    return "\n".join(lines)


def _scene_line(row: dict[str, Any]) -> str:
    stages = row["stage_seconds"]
    matching = sum(stages.get(key, 0.0) for key in ("pairs", "match", "verify", "match and verify"))
    cells = [
        row["scene"].rpartition("/")[2],
        f"**{row['method']}**" if row["method"] == "featkit" else row["method"],
        f"{row['registered']} / {row['images']}",
        f"{row['points']:,}",
        f"{row['observations']:,}",
        f"{row['track_length']:.2f}",
        f"{row['reprojection_px']:.3f}",
        _number(row.get("centre_error_mm_mean"), ".2f"),
        _number(row.get("rotation_error_deg_mean"), ".3f"),
        f"{stages['extract']:.1f}",
        f"{matching:.1f}",
        f"{stages['map']:.1f}",
        f"{row['seconds']:.1f}",
        f"{row['peak_memory_mb']:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _times(result: dict[str, Any]) -> str:
    ratios = [
        f"{row['scene'].rpartition('/')[2]} {row['time_over_pycolmap']:.2f}"
        for row in result["rows"]
        if "time_over_pycolmap" in row
    ]
    return f"featkit's time over pycolmap's, both in one run: {', '.join(ratios)}."


def _localization(result: dict[str, Any]) -> list[str]:
    lines = []
    for row in result["localization"]:
        recall = ", ".join(f"{100 * share:.0f} % within {threshold}" for threshold, share in row["recall"].items())
        name = row["scene"].rpartition("/")[2]
        lines.append(
            f"Localization on {name}: {row['map_images']} images mapped with their true poses,"
            f" the other {row['queries']} localized: {recall}; medians {1e3 * row['median_m']:.1f} mm and"
            f" {row['median_deg']:.3f} deg."
        )
    return lines


def _origin(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    return (
        f"*Measured on {result['date']} with `{result['command']}`: {machine['processor']}, {machine['cores']} cores,"
        f" pycolmap {versions['pycolmap']}, torch {versions['torch']}; errors after one similarity onto the"
        " true cameras. All figures: [`benchmarks/results/scenes.json`](benchmarks/results/scenes.json).*"
    )


TABLES: dict[str, Callable[[], str]] = {"scenes": scenes_table}


def filled(readme: str) -> str:
    """The README with every table made anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        readme = pattern.sub(lambda match, table=make(): f"{match[1]}{table}\n{match[2]}", readme)
    return readme


def main() -> None:
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv[1:]:
        sys.exit("README.md: its tables are not those of benchmarks/results" if new != old else 0)
    path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
