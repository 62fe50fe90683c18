"""The tables of docs/scaling.md, from benchmarks/results/scaling.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Result = dict[str, Any]
GB = 1e9


def stages(result: Result) -> str:
    """Seconds, peak memory and bytes on disk of every stage at every size."""
    rows = {(row["stage"], row["images"]): row for row in result["rows"]}
    sizes = sorted({images for _, images in rows})
    heads = [f"{images:,} images: s | MB | disk MB" for images in sizes]
    lines = ["| stage | " + " | ".join(heads) + " |", "|---|" + "---:|" * (3 * len(sizes))]
    for stage in dict.fromkeys(stage for stage, _ in rows):
        cells = [_stage_cells(rows.get((stage, images))) for images in sizes]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _stage_cells(row: dict[str, Any] | None) -> str:
    if row is None:
        return "- | - | -"
    disk = f"{row['disk_bytes'] / 1e6:,.1f}" if "disk_bytes" in row else "-"
    stopped = row["stopped_after_s"]
    took = f"{row['seconds']:,.1f}" if stopped is None else f"stopped after {stopped:,.0f}"
    return f"{took} | {row['peak_memory_mb']:,.0f} | {disk}"


def work(result: Result) -> str:
    """What there was to do: keypoints, pairs, matches; a line per size."""
    rows = {(row["stage"], row["images"]): row for row in result["rows"] if row["stopped_after_s"] is None}
    lines = [
        "| images | keypoints an image | pairs an image | matches a pair | verified pairs | match, ms a pair"
        " | verify, ms a pair |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for images in sorted({images for _, images in rows}):
        survey, pairs, match, verify = (rows.get((name, images)) for name in ("survey", "pairs", "match", "verify"))
        if survey is None or pairs is None or match is None or verify is None:
            continue
        cells = [
            f"{images:,}",
            f"{survey['keypoints'] / images:,.0f}",
            f"{pairs['pairs'] / images:.1f}",
            f"{verify['matches'] / pairs['pairs']:,.0f}",
            f"{verify['verified_pairs']:,} of {pairs['pairs']:,}",
            f"{1e3 * match['seconds'] / pairs['pairs']:.2f}",
            f"{1e3 * verify['seconds'] / pairs['pairs']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def maps(result: Result) -> str:
    """How right the maps of the three mappers are."""
    lines = [
        "| images | mapper | registered | models | points | error px | centre m, median | centre m, largest | s | MB |",
        "|---:|---|" + "---:|" * 8,
    ]
    for row in (row for row in result["rows"] if row["stage"].startswith("map ")):
        mapper = row["stage"].removeprefix("map ")
        head = f"| {row['images']:,} | {mapper} |"
        if row["stopped_after_s"] is not None:
            memory = f"{row['peak_memory_mb']:,.0f}"
            lines.append(f"{head} - | - | - | - | - | - | stopped after {row['stopped_after_s']:,.0f} | {memory} |")
            continue
        cells = [
            f"{row['registered']:,}",
            f"{row['models']}",
            f"{row['points']:,}",
            f"{row['reprojection_px']:.3f}",
            f"{row['centre_error_m_median']:.3f}",
            f"{row['centre_error_m_max']:.3f}",
            f"{row['seconds']:,.1f}",
            f"{row['peak_memory_mb']:,.0f}",
        ]
        lines.append(f"{head} " + " | ".join(cells) + " |")
    return "\n".join(lines)


def growth(result: Result) -> str:
    """The fits."""
    lines = [
        "| stage | grows as images to the power of | worst ratio | from | memory MB at none"
        " | memory MB per 1,000 images | disk MB per 1,000 images |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for stage, fit in result["growth"].items():
        seconds, memory, disk = fit["seconds"], fit["memory_mb"], fit["disk_bytes"]
        power = "- | - | -"
        if seconds is not None:
            sizes = ", ".join(f"{images:,}" for images in seconds["from_images"])
            power = f"{seconds['exponent']:.2f} | {seconds['worst_ratio']:.2f} | {sizes}"
        kept = "- | -" if memory is None else f"{memory['base']:,.0f} | {memory['per_1000']:,.0f}"
        stored = "-" if disk is None else f"{disk['per_1000'] / 1e6:,.1f}"
        lines.append(f"| {stage} | {power} | {kept} | {stored} |")
    return "\n".join(lines)


def extrapolated(result: Result) -> str:
    """The fits carried on to larger surveys of the same kind, on the same machine."""
    rows = {(row["stage"], row["images"]): row for row in result["extrapolated"]}
    sizes = sorted({images for _, images in rows})
    heads = " | ".join(f"{images:,} images: hours | GB" for images in sizes)
    lines = [f"| stage | {heads} |", "|---|" + "---:|" * (2 * len(sizes))]
    for stage in dict.fromkeys(stage for stage, _ in rows):
        of_it = (rows[stage, images] for images in sizes)
        cells = [f"{_short(row['hours'])} | {_short(row['memory_gb'])}" for row in of_it]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def paper(result: Result) -> str:
    """Core-hours, hours, disk and network of collections of photographs."""
    if result["on_paper"] is None:
        return "*A stage did not end at any size; nothing can be carried on.*"
    given, unit = result["assumptions"], result["unit_costs"]
    names = list(result["on_paper"][0]["core_hours"])
    heads = ["images", "pairs", *(f"{name}, core h" for name in names), f"hours on {given['node_cores']} cores"]
    disk = ["photographs TB", "features TB", "matches TB", "database TB", "vectors GB", "network TB"]
    lines = ["| " + " | ".join([*heads, *disk]) + " |", "|" + "---:|" * (len(heads) + len(disk))]
    for row in result["on_paper"]:
        cells = [f"{row['images']:,}", f"{row['pairs']:,.0f}", *(_short(row["core_hours"][name]) for name in names)]
        cells += [_short(row[key]) for key in ("node_hours", "photographs_tb", "features_tb", "matches_tb")]
        cells += [_short(row[key]) for key in ("database_tb", "vectors_gb", "network_tb")]
        lines.append("| " + " | ".join(cells) + " |")
    searched, cluster = 1e9 * unit["search_core_s_per_image_squared"], given["cluster_images"] + given["overlap"]
    measured = (
        f"Measured, on one core: an image's vector {1e3 * unit['describe_image_core_s']:.1f} ms; the search"
        f" {searched:.0f} ns for two images; a pair {1e3 * unit['match_pair_core_s']:.1f} ms to match and"
        f" {1e3 * unit['verify_pair_core_s']:.1f} ms to verify, at {unit['keypoints']:,.0f} keypoints and"
        f" {unit['matches_of_a_pair']:,.0f} matches; a cluster of {cluster} images"
        f" {unit['map_cluster_core_s']:,.0f} s to map."
    )
    return "\n".join([*lines, "", measured])


def store(result: Result) -> str:
    """Stores of very many items."""
    both = result["store"]
    if both is None or both["read"]["stopped_after_s"] is not None or both["write"]["stopped_after_s"] is not None:
        return "*Not measured.*"
    write, read, some = both["write"], both["read"], both["read"]["some"]
    lines = ["| store | items | what | seconds | an item |", "|---|---:|---|---:|---:|"]
    asked = [
        ("features", "open", read["features_open_s"], 0),
        ("features", "list all names", read["features_list_s"], read["features"]),
        ("features", "is it whole, of all", read["features_has_s"], read["features"]),
        ("features", "digest of all", read["features_digest_s"], read["features"]),
        ("features", f"read {some:,} of them", read["features_read_some_s"], some),
        ("features", "open to append (looks for damage)", read["features_append_open_s"], read["features"]),
        ("matches", "list all pairs", read["matches_list_s"], read["matches"]),
        ("matches", "is it done, of all", read["matches_has_s"], read["matches"]),
    ]
    for kind, what, seconds, items in asked:
        each = f"{1e6 * seconds / items:,.0f} µs" if items else "-"
        lines.append(f"| {kind} | {read[kind]:,} | {what} | {_short(seconds)} | {each} |")
    for kind in ("features", "matches"):
        seconds, size = write[f"{kind}_write_s"], write[f"{kind}_bytes"] / read[kind]
        what = f"write {write['written']:,} of them, {size:,.0f} bytes each on disk"
        each = f"{1e6 * seconds / write['written']:,.0f} µs"
        lines.append(f"| {kind} | {read[kind]:,} | {what} | {_short(seconds)} | {each} |")
    return "\n".join(lines)


def origin(result: Result) -> str:
    """Where and with what it was measured."""
    machine = result["machine"]
    return (
        f"*Measured on {result['date']} with `{result['command']}`: {machine['processor']}, {machine['cores']} cores,"
        f" {machine['memory_gib']} GiB, pycolmap {result['versions']['pycolmap']}. All figures:"
        " [`benchmarks/results/scaling.json`](benchmarks/results/scaling.json).*"
    )


def _short(value: float) -> str:
    """Three digits, with separators above a thousand."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


TABLES: dict[str, Callable[[Result], str]] = {
    "scaling-work": work,
    "scaling-stages": stages,
    "scaling-maps": maps,
    "scaling-growth": growth,
    "scaling-extrapolated": extrapolated,
    "scaling-paper": paper,
    "scaling-store": store,
    "scaling-origin": origin,
}
