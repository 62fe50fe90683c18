"""The tables of what is promised, from crash, versions, gps, extend, orientations, engine, profile and house."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Result = dict[str, Any]
BUSY = 2.0  # programs that want a core, for each core: seconds that were measured above it tell nothing


def crash(result: Result) -> str:
    """What SIGKILL costs, by way of writing."""
    lines = [
        "| way of writing | kills | files that do not open | silently wrong | lost beyond the item in hand |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        cells = [row["method"], *(f"{row[key]:,}" for key in ("kills", "unreadable", "silently_wrong", "lost"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def versions(result: Result) -> str:
    """One scene with each pycolmap; what a version counts is what the others count."""
    rows = [row for row in result["rows"] if "failed" not in row]
    columns = [key for key in rows[0] if key != "pycolmap"]
    lines = [
        "| pycolmap | " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for row in result["rows"]:
        cells = [row["failed"]] if "failed" in row else [_plain(row[column]) for column in columns]
        lines.append("| " + " | ".join([row["pycolmap"], *cells]) + " |")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return ", ".join(value).lower() if isinstance(value, list) else str(value)


def gps(result: Result) -> str:
    """Pairs by GPS beside all pairs."""
    lines = [
        "| pairs by | pairs | registered | points | seconds | from its GPS positions, m |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        cells = [row["pairs_by"], f"{row['pairs']:,}", f"{row['registered']} / {row['images']}", f"{row['points']:,}"]
        residual = row["aligned"]["residual_m"]
        cells += [f"{row['seconds']:,.0f}", f"{residual['rms']:.2f} (rms), {residual['median']:.2f} (median)"]
        lines.append("| " + " | ".join(cells) + " |")
    compared = result["compared"]
    return "\n".join(
        [
            *lines,
            "",
            f"{result['scene']}: {100 * compared['share_of_pairs']:.0f} % of the pairs; the cameras of both maps, each"
            f" in metres, are {compared['apart_m']['mean']:.2f} m apart on the mean.",
        ]
    )


def _seconds(row: Result, *sides: str) -> list[str]:
    """Seconds of commands, of a machine that had little else to do."""
    load = row.get("load_per_core", 0)  # null: not recorded, on a busy machine
    busy = load is None or load > BUSY
    return ["-" if busy else f"{row[side]['seconds']:.0f}" for side in sides]


def _cpu_seconds(row: Result, *sides: str) -> list[str]:
    return [f"{row[side]['cpu_s']:.0f}" if "cpu_s" in row[side] else "-" for side in sides]


def _errors_mm(row: Result, side: str, of: str) -> list[str]:
    """Centre errors of one side and of the map of all; without true poses, how far the one is from the other."""
    if "centre_error" in row[side]:
        return [f"{1e3 * row[name]['centre_error'][of]:.1f}" for name in (side, "full")]
    if row["apart_unit"] == "map":
        return ["-", "-"]
    return [f"{1e3 * row['apart'][of]:.1f}*", "-"]


def extend(result: Result) -> str:
    """A map that is extended beside one of all photographs made from nothing."""
    lines = [
        "| scene | features | in the map | came in | extended, s | all again, s | CPU-s: extended | all again | share |"
        " their error, mm: extended | all again |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        cells = [row["scene"].rpartition("/")[2], row.get("features", "rootsift"), str(row["first"]["registered"])]
        cells += [f"{row['extended']['late_registered']} / {row['late']}"]
        cells += _seconds(row, "extended", "full") + _cpu_seconds(row, "extended", "full")
        cells.append(f"{row['cpu_over_full']:.2f}" if "cpu_over_full" in row else "-")
        lines.append("| " + " | ".join(cells + _errors_mm(row, "extended", "late_mean")) + " |")
    return "\n".join(lines)


def merge(result: Result) -> str:
    """Two halves of a scene made one map, beside one of all photographs."""
    lines = [
        "| scene | halves | merged | points that agree | merged, s | CPU-s | error, mm: merged | all at once |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["merged"]:
        cells = [row["scene"].rpartition("/")[2], " + ".join(str(half["registered"]) for half in row["halves"])]
        cells += [f"{row['merged']['registered']} / {row['photographs']}", f"{row['merged']['agreeing_points']:,}"]
        cells += _seconds(row, "merged") + _cpu_seconds(row, "merged")
        lines.append("| " + " | ".join(cells + _errors_mm(row, "merged", "all_mean")) + " |")
    return "\n".join(lines)


def orientations(result: Result) -> str:
    """A scene and its copy that EXIF alone turns, in one map."""
    lines = [
        "| turned by | registered | models | centres apart, mm, at most | error of the turn, deg |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        cells = [f"{row['turn_deg']}°", f"{row['registered']} / {row['images']}", str(row["models"])]
        cells += [f"{row['between_copies_mm_max']:.3f}", f"{row['turn_error_deg_max']:.4f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def engine(result: Result) -> str:
    """Stages in one process and on a cluster of this machine."""
    stages = list(result["local_s"])
    lines = ["| | " + " | ".join(f"{stage}, s" for stage in stages) + " |", "|---|" + "---:|" * len(stages)]
    for label, key in (("one process and its workers", "local_s"), (f"Ray, {result['nodes']} nodes", "ray_s")):
        lines.append(f"| {label} | " + " | ".join(f"{result[key][stage]:.1f}" for stage in stages) + " |")
    index, lost = result["index"], result["one_node_killed"]
    same = "the same" if all(result["same_results"].values()) and lost["same"] else "NOT the same"
    return "\n".join(
        [
            *lines,
            "",
            f"Results {same}, also with one node killed in the middle ({lost['seconds']:.0f} s). An index of"
            f" {index['links']:,} links: {index['index_mb']:.0f} MB, opened in {1e3 * index['open_s']:.0f} ms, listed"
            f" in {index['list_s']:.1f} s, {index['item_ms']:.2f} ms an item.",
        ]
    )


def profile(result: Result) -> str:
    """Each stage beside what bounds it."""
    lines = ["| stage | s | bound | s | over it | goal |", "|---|---:|---|---:|---:|---:|"]
    for row in result["rows"]:
        goal = "-" if row["goal"] is None else f"{row['goal']:.2f}"
        cells = [row["stage"], f"{row['seconds']:.2f}", row["limit"], f"{row['limit_seconds']:.2f}"]
        lines.append("| " + " | ".join([*cells, f"{row['over_limit']:.2f}", goal]) + " |")
    return "\n".join(lines)


HOUSE = {
    "files_without_init": "files (without `__init__`)",
    "lines": "lines",
    "median_lines": "median lines of a file",
    "imported_by_one_other": "files that exactly one other file imports",
    "imports_inside_functions": "imports of featkit inside functions",
    "public_names_defined_twice": "public names defined in several files",
    "readme_lines": "lines of the README",
}
WAYS = {
    "photograph_to_features": "files on the way of a photograph to features.h5",
    "photographs_to_sparse": "files on the way of photographs to sparse/",
    "patches_to_weight": "files on the way of a batch of patches to weights",
}


def house(result: Result) -> str:
    """The size of the code, and the files that a job passes, at several commits."""
    entries = [entry for entry in result.values() if isinstance(entry, dict) and "ways" in entry]
    lines = ["| commit | " + " | ".join(f"`{entry['commit']}`" for entry in entries) + " |"]
    lines.append("|---|" + "---:|" * len(entries))
    for key, title in HOUSE.items():
        lines.append(f"| {title} | " + " | ".join(f"{entry[key]:,}" for entry in entries) + " |")
    for way, title in WAYS.items():
        lines.append(f"| {title} | " + " | ".join(str(entry["ways"][way]["files"]) for entry in entries) + " |")
    for target in ("test-fast", "test"):
        seconds = [entry.get("test_seconds", {}).get(target) for entry in entries]
        cells = ["-" if value is None else f"{value:,.0f}" for value in seconds]
        if any(seconds):
            lines.append(f"| seconds of `make {target}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def start_up(result: Result) -> str:
    """How long commands take to start."""
    lines = ["| what | seconds | CPU-seconds |", "|---|---:|---:|"]
    lines += [f"| {row['what']} | {row['seconds']:.2f} | {row['cpu_s']:.2f} |" for row in result["rows"]]
    return "\n".join(lines)


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "crash": ("crash", crash),
    "versions": ("versions", versions),
    "gps": ("gps", gps),
    "extend": ("extend", extend),
    "merge": ("extend", merge),
    "orientations": ("orientations", orientations),
    "engine": ("engine", engine),
    "profile": ("profile", profile),
    "start-up": ("start_up", start_up),
    "house": ("house", house),
}
