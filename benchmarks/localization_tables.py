"""The tables of docs/localization.md, from retrieval, aachen_miniature, hloc, localizer and serve_load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Result = dict[str, Any]


def retrieval(result: Result) -> str:
    """Recall of similar images, beside chance and matching everything."""
    lines = [
        "| scene | images | related | order | recall@1 | recall@5 | recall@10 | found@10 | seconds |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["scenes"]:
        for order, depths in row["recall"].items():
            any_of = [f"{100 * depths[k]['any']:.1f} %" for k in ("1", "5", "10")]
            seconds = row["seconds"].get(order)
            cells = [row["scene"], str(row["images"]), f"{row['related']:.1f}", order, *any_of]
            cells += [f"{100 * depths['10']['found']:.1f} %", "-" if seconds is None else f"{seconds:,.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def miniature(result: Result) -> str:
    """Recall by day and night, and what each stage took."""
    lines = [
        "| features | keypoints | day, localized | day, recall | night, localized | night, recall | points | extract s"
        " | match s | verify s | triangulate s | localize s |",
        "|---|---:|---:|---:|---:|---:|" + "---:|" * 6,
    ]
    for row in result["rows"]:
        cells = [row["features"], f"{row['max_keypoints']:,}"]
        for condition in ("day", "night"):
            found = row["conditions"][condition]
            recall = " / ".join(f"{100 * share:.0f}" for share in found["recall"].values())
            cells += [f"{found['localized']} of {found['queries']}", recall]
        took = row["seconds"]
        sums = [
            sum(value for stage, value in took.items() if stage.startswith(word))
            for word in ("extract", "match", "verify", "triangulate", "localize")
        ]
        cells += [f"{row['map']['points']:,}", *(f"{value:.1f}" for value in sums)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def extrapolated(result: Result) -> str:
    """Hours on the machine that was measured, for larger sets."""
    first = result["extrapolated"][0]
    stages = [key for key in first[next(iter(result["sizes"]))] if key != "map_gb"]
    lines = ["| features | set | " + " | ".join(f"{stage}, h" for stage in stages) + " | map, GB |"]
    lines.append("|---|---|" + "---:|" * (len(stages) + 1))
    for row in result["extrapolated"]:
        for name in result["sizes"]:
            cells = [row["features"], name, *(f"{row[name][stage]:,.1f}" for stage in stages)]
            lines.append("| " + " | ".join([*cells, f"{row[name]['map_gb']:,.1f}"]) + " |")
    return "\n".join(lines)


def hloc(result: Result) -> str:
    """featkit and hloc beside each other."""
    lines = ["| what | hloc | featkit |", "|---|---|---|"]
    extract, match = result["extract"], result["match"]
    sides = [extract["hloc"], extract["featkit"]]
    for key, words, form in (
        ("images_per_s", "images/s, extraction", ",.2f"),
        ("peak_memory_mb", "memory, extraction, MB", ",.0f"),
    ):
        lines.append(f"| {words} | {' | '.join(format(side[key], form) for side in sides)} |")
    theirs = " / ".join(f"{match[label]['pairs_per_s']:,.1f}" for label in match if label.startswith("hloc"))
    lines.append(f"| pairs/s, by featkit's matcher / by its own | {theirs} | {match['featkit']['pairs_per_s']:,.1f} |")
    theirs = " / ".join(f"{match[label]['peak_memory_mb']:,.0f}" for label in match if label.startswith("hloc"))
    lines.append(f"| memory, matching, MB | {theirs} | {match['featkit']['peak_memory_mb']:,.0f} |")
    for key, words in (
        ("unreadable", "files that do not open after SIGKILL"),
        ("does_not_go_on", "runs that do not go on after it"),
        ("missing_or_damaged", "images missing or damaged in the end"),
    ):
        sides = [f"{side[key]} in {side['kills']} kills" for side in result["sigkill"].values()]
        lines.append(f"| {words} | {' | '.join(sides)} |")
    maps = result["map"]
    others = {label.partition(", ")[2] or "as it is": found for label, found in maps.items() if label != "featkit"}
    theirs = "; ".join(f"{_map(found)} ({label})" for label, found in others.items())
    lines.append(f"| map: points, track, error px | {theirs} | {_map(maps['featkit'])} |")
    ours, failed = result["localize"]["featkit"], result["localize"]["hloc"]
    lines.append(
        f"| a query with nothing on it | {failed['failed_query']} | {ours['failed_query']}; reason: {ours['reason']} |"
    )
    same = f"features of {extract['images_equal']} images, matches of {match['pairs_equal']} pairs"
    return "\n".join([*lines, "", f"Equal in the files of both: {same}."])


def _map(found: dict[str, Any]) -> str:
    if not found.get("points"):
        return "0 points"
    return f"{found['points']:,}, {found['track_length']:.2f}, {found['reprojection_px']:.2f}"


def localizer(result: Result) -> str:
    """Seconds a query of a warm map, beside its extraction alone."""
    lines = [
        "| features | compared with | of images | p50 s | p95 s | extraction, p50 s | over it, p50 | over it, p95"
        " | localized | median error, m |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        against = "3D points, each once" if row["points_only"] else "all keypoints of the map"
        cells = [row["features"], against, str(min(row["num_retrieved"], row["map_images"]))]
        cells += [f"{row['localize']['p50_s']:.3f}", f"{row['localize']['p95_s']:.3f}"]
        cells += [f"{row['extract_alone']['p50_s']:.3f}", f"{row['over_extraction']['p50']:.2f}"]
        cells += [f"{row['over_extraction']['p95']:.2f}", f"{row['localized']} of {row['queries']}"]
        cells.append("-" if row["median_error_m"] is None else f"{row['median_error_m']:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def serve(result: Result) -> str:
    """The server under load."""
    lines = [
        "| `featkit serve MAP` | clients | seconds | photographs answered | p50 s | p95 s | failures | broken requests"
        " | worst `/healthz`, s | peak memory, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in result["rows"]:
        broken = ", ".join(f"{count} answered {status}" for status, count in row["broken_requests"].items())
        cells = [f"`{' '.join(row['options'])}`", str(row["clients"]), f"{row['seconds']:.0f}", str(row["answers"])]
        cells += [f"{row['p50_s']:.2f}", f"{row['p95_s']:.2f}", str(sum(row["failures"].values())), broken]
        cells += [f"{row['healthz_worst_s']:.2f}", f"{row['peak_memory_mb']:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def serve_attacks(result: Result) -> str:
    """The server under attack."""
    lines = [
        "| attack | requests | answered | last answer, s | worst `/healthz`, s | peak memory, MB | next photograph |",
        "|---|---:|---|---:|---:|---:|---|",
    ]
    for row in result["attacks"]:
        statuses = ", ".join(
            f"{count} x {'closed' if status == '0' else status}" for status, count in row["statuses"].items()
        )
        following = row["next_photograph"]
        cells = [row["attack"], str(row["requests"]), statuses, f"{row['worst_s']:.1f}"]
        cells += [f"{row['healthz_worst_s']:.2f}", f"{row['peak_memory_mb']:,}"]
        lines.append("| " + " | ".join([*cells, f"{following['status']} in {following['seconds']:.1f} s"]) + " |")
    return "\n".join(lines)


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "retrieval": ("retrieval", retrieval),
    "aachen": ("aachen_miniature", miniature),
    "aachen-scale": ("aachen_miniature", extrapolated),
    "hloc": ("hloc", hloc),
    "localizer": ("localizer", localizer),
    "serve": ("serve_load", serve),
    "serve-attacks": ("serve_load", serve_attacks),
}
