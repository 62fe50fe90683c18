"""The tables of README.md and docs/ from the files in benchmarks/results/.

python benchmarks/tables.py            # rewrite the tables between the pages' markers
python benchmarks/tables.py --check    # exit 1 when they are not what the files say
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import localization_tables
import promise_tables
import scaling_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ANYWHERE = "-"  # the training set of what is not trained


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


def patches_table() -> str:
    """FPR95 of the patch descriptors, trained on one set and tested on the others; the papers' below."""
    result = _read("patch_table")
    sets = "; ".join(f"{name}: {one['pairs']:,} test pairs" for name, one in result["data"].items())
    trained = [row for row in result["trainings"] if row["patches"]]
    budget = f"{max(row['patches'] for row in trained):,} patches each" if trained else ""
    return "\n".join([*patch_lines(result), "", f"FPR95 in %. {sets}. Trained with {budget}.", "", _made(result)])


def patch_lines(result: dict[str, Any]) -> list[str]:
    """Lines of the README's table: our rows, then the papers' with their own columns."""
    heads = list(result["rows"][0]["fpr95"])
    lines = ["| method | epoch | seeds | " + " | ".join(heads) + " | mean |", "|---|---|" + "---:|" * (len(heads) + 2)]
    for row in result["rows"]:
        cells = [_fpr95(row["fpr95"][head], row["deviation"].get(head)) for head in heads]
        mean = _fpr95(row["mean"], row["deviation"].get("mean"))
        seeds = row["seeds"] if row["epoch"] != ANYWHERE else ANYWHERE
        lines.append(f"| {row['method']} | {row['epoch']} | {seeds} | " + " | ".join(cells) + f" | **{mean}** |")
    columns = " | ".join(f"{train} -> {test}" for train, test in result["published"]["columns"])
    lines += ["", f"| as published, on UBC | where | {columns} | mean |", "|---|---|" + "---:|" * 7]
    for table in result["published"]["tables"]:
        where = f"{table['paper'].partition(' (')[0]}, {table['where'].partition(';')[0]}"
        for row in table["rows"]:
            values = " | ".join(f"{value:.2f}" for value in row["values"])
            name = row["name"].replace("*", r"\*")
            lines.append(f"| *{name}* | {where} | {values} | {row['mean']:.2f} |")
    return lines


def _fpr95(value: float | None, deviation: float | None) -> str:
    if value is None:
        return ANYWHERE
    digits = 2 if value >= 1 else 3
    return f"{value:.{digits}f}" if deviation is None else f"{value:.{digits}f} ± {deviation:.{digits}f}"


def eth_table() -> str:
    """Maps of the ETH scenes from the same keypoints by every descriptor, with and without the ratio test."""
    result = _read("eth_descriptors")
    ratios = sorted({row["ratio"] for row in result["rows"]})
    heads = " | ".join(
        f"{what}, {'no ratio' if ratio == 'none' else f'ratio {ratio}'}"
        for ratio in ratios
        for what in ("points", "track", "error px", "centre mm")
    )
    lines = [f"| scene | features | registered | {heads} |", "|---|---|---:|" + "---:|" * (4 * len(ratios))]
    rows = {(row["scene"], row["features"], row["ratio"]): row for row in result["rows"]}
    for scene, features in dict.fromkeys((row["scene"], row["features"]) for row in result["rows"]):
        of_it = [rows[scene, features, ratio] for ratio in ratios]
        registered = " and ".join(dict.fromkeys(f"{row['registered']} / {row['images']}" for row in of_it))
        cells = [
            cell
            for row in of_it
            for cell in (
                f"{row['points']:,}",
                f"{row['track_length']:.2f}",
                f"{row['reprojection_px']:.3f}",
                _number(row.get("centre_error_mm_mean"), ".2f"),
            )
        ]
        lines.append(f"| {scene} | {features} | {registered} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _made(result)])


def describe_table() -> str:
    """Keypoints described per second, featkit beside kornia."""
    result = _read("describe_speed")
    lines = ["| device | method | keypoints/s | over kornia | over kornia's best batch |", "|---|---|---:|---:|---:|"]
    for device in result["devices"]:
        for row in device["rows"]:
            lines.append(
                f"| {device['where']} | {row['method']} | {row['keypoints_per_s']:,.0f} | {row['over_kornia']:.2f} |"
                f" {row['over_kornia_in_its_best_batches']:.2f} |"
            )
    return "\n".join([*lines, "", _made(result)])


def training_table() -> str:
    """Training steps beside kornia's network alone."""
    result = _read("training")
    lines = ["| method | patches/s | over kornia | waiting for patches |", "|---|---:|---:|---:|"]
    for row in result["rows"]:
        lines.append(
            f"| {row['method']} | {row['patches_per_s']:,.0f} | {row['over_kornia']:.2f} |"
            f" {100 * row['wait_share']:.1f} % |"
        )
    return "\n".join([*lines, "", _made(result)])


def oxford_table() -> str:
    """MMAScore per sequence of the Oxford set."""
    result = _read("oxford_mma")
    names = result["sequences"]
    lines = [
        f"| features | {' | '.join(names)} | MMAScore | features | matches |",
        "|---|" + "---:|" * (len(names) + 3),
    ]
    for row in result["rows"]:
        scores = " | ".join(f"{100 * row['sequences'][name]['mma_score']:.1f}" for name in names)
        counts = f"{row['mean_features']:,.0f} | {row['mean_matches']:,.0f}"
        lines.append(f"| {_label(row['features'])} | {scores} | **{100 * row['mma_score']:.1f}** | {counts} |")
    return "\n".join([*lines, "", _made(result)])


def scfeat_scenes_table() -> str:
    """Maps by SCFeat and by RootSIFT at the same size; localization below."""
    result = _read("scfeat_scenes")
    names = [name for name, _ in {(row["features"], row.get("weight")) for row in result["rows"]}]

    def label(row: dict[str, Any]) -> str:
        """The weight stands with it where several were measured under one name."""
        several = names.count(row["features"]) > 1 and "weight" in row
        return f"{row['features']} ({row['weight']})" if several else row["features"]

    lines = [
        "| scene | features | registered | points | track | error px | centre mm | total s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(result["rows"], key=lambda row: row["scene"]):
        lines.append(
            f"| {row['scene'].rpartition('/')[2]} | {label(row)} | {row['registered']} / {row['images']} |"
            f" {row['points']:,} | {row['track_length']:.2f} | {row['reprojection_px']:.3f} |"
            f" {_number(row.get('centre_error_mm_mean'), '.2f')} | {row['seconds']:.0f} |"
        )
    for row in result["localization"]:
        recall = ", ".join(f"{100 * share:.0f} % within {threshold}" for threshold, share in row["recall"].items())
        lines += ["", f"{row['scene'].rpartition('/')[2]} localized by {label(row)}: {recall}; medians"
                  f" {1e3 * row['median_m']:.1f} mm and {row['median_deg']:.3f} deg."]  # fmt: skip
    return "\n".join([*lines, "", _made(result)])


def dense_speed_table() -> str:
    """Images per second of SCFeat beside its bare network and kornia's networks."""
    result = _read("dense_speed")
    lines = [
        "| device | size | network | extract, images/s | bare network | as written | over ALIKED | memory MB |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in result["results"]:
        speed = {row["method"].removeprefix(f"{one['network']} "): row["images_per_s"] for row in one["rows"]}
        over = one["extract_over_peers"].get("kornia ALIKED")
        lines.append(
            f"| {one['where']} | {one['size']} | {one['network']} | {speed['extract']:.2f} | {speed['network']:.2f} |"
            f" {speed['as written']:.2f} | {_number(over, '.2f')} | {one['peak_memory']['extract_process_mb']:,.0f} |"
        )
    return "\n".join([*lines, "", _made(result)])


def ablation_table() -> str:
    """SCFeat's ablations: MMAScore of rows that were trained alike."""
    result = _read("scfeat_ablation")
    lines = ["| row | MMAScore | features | matches |", "|---|---:|---:|---:|"]
    for row in result["rows"]:
        overall = row["mma"]["methods"][0]["groups"]["overall"]
        lines.append(
            f"| {row['row']} | {100 * overall['mma_score']:.1f} | {overall['features']:,.0f} |"
            f" {overall['matches']:,.0f} |"
        )
    return "\n".join([*lines, "", f"Batches of description: {result['steps']:,}.", "", _made(result)])


def leaderboard_table() -> str:
    """Every feature on every benchmark; the best of each column in bold."""
    result = _read("leaderboard")
    values = {(one["method"], one["measure"]): one["value"] for one in result["standings"]}
    better = {one["measure"]: one["better"] for one in result["standings"]}
    lines = ["| features | " + " | ".join(better) + " |", "|---|" + "---:|" * len(better)]
    best = {
        measure: (max if kind == "high" else min)(v for (_, m), v in values.items() if m == measure and v is not None)
        for measure, kind in better.items()
    }
    for method in result["features"]:
        cells = []
        for measure in better:
            value = values.get((method, measure))
            text = ANYWHERE if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
            cells.append(f"**{text}**" if value == best[measure] else text)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{result['seconds'] / 60:.0f} minutes in all.", "", _made(result)])


def _label(features: str) -> str:
    """A method's name without the place of its weight."""
    return features.partition("=")[0]


def _read(name: str) -> dict[str, Any]:
    return {**json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")), "name": name}


def _made(result: dict[str, Any]) -> str:
    machine, name = result["machine"], result["name"]
    return (
        f"*Measured on {result['date']} with `{result['command']}`: {machine['processor']}, {machine['cores']} cores,"
        f" torch {result['versions']['torch']}. All figures: [`benchmarks/results/{name}.json`]"
        f"(benchmarks/results/{name}.json).*"
    )


TABLES: dict[str, Callable[[], str]] = {
    "leaderboard": leaderboard_table,
    "scenes": scenes_table,
    "patches": patches_table,
    "eth": eth_table,
    "describe": describe_table,
    "training": training_table,
    "oxford": oxford_table,
    "scfeat-scenes": scfeat_scenes_table,
    "dense-speed": dense_speed_table,
    "ablation": ablation_table,
}


def made_table(name: str, make: Callable[[dict[str, Any]], str], signed: bool = True) -> str:
    """A table of one result; a line in its place where there is no measurement yet. signed: with its origin below."""
    if not (RESULTS / f"{name}.json").is_file():
        return f"*Not measured yet: `python benchmarks/{SCRIPTS.get(name, name)}.py`.*"
    result = _read(name)
    return f"{make(result)}\n\n{_made(result)}" if signed else make(result)


SCRIPTS = {"profile": "stage_profile"}  # whose name would hide one of Python's own modules
TABLES |= {name: partial(made_table, "scaling", make, False) for name, make in scaling_tables.TABLES.items()}
for module in (localization_tables, promise_tables):
    TABLES |= {name: partial(made_table, result, make) for name, (result, make) in module.TABLES.items()}


def pages() -> list[Path]:
    """The pages that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(page: str) -> str:
    """A page with every table of it made anew."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(page):
            continue
        page = pattern.sub(lambda match, table=make(): f"{match[1]}{table}\n{match[2]}", page)
    return page


def main() -> None:
    stale = []
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv[1:]:
                path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(stale)}: the tables are not those of benchmarks/results")


if __name__ == "__main__":
    main()
