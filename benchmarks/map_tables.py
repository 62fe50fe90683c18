"""The tables of maps, from scenes, eth_descriptors and scfeat_scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Result = dict[str, Any]


def scenes(result: Result) -> str:
    """featkit, pycolmap and the papers' rows side by side, and the localization below."""
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
    lines += ["", _times(result), "", *_localization(result), "", _measured(result)]
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
        number(row.get("centre_error_mm_mean"), ".2f"),
        number(row.get("rotation_error_deg_mean"), ".3f"),
        f"{stages['extract']:.1f}",
        f"{matching:.1f}",
        f"{stages['map']:.1f}",
        f"{row['seconds']:.1f}",
        f"{row['peak_memory_mb']:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _times(result: Result) -> str:
    ratios = [
        f"{row['scene'].rpartition('/')[2]} {row['time_over_pycolmap']:.2f}"
        for row in result["rows"]
        if "time_over_pycolmap" in row
    ]
    return f"featkit's time over pycolmap's, both in one run: {', '.join(ratios)}."


def _localization(result: Result) -> list[str]:
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


def _measured(result: Result) -> str:
    return f"With pycolmap {result['versions']['pycolmap']}; errors after one similarity onto the true cameras."


def eth(result: Result) -> str:
    """Maps of the ETH scenes from the same keypoints by every descriptor, with and without the ratio test."""
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
                number(row.get("centre_error_mm_mean"), ".2f"),
            )
        ]
        lines.append(f"| {scene} | {features} | {registered} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def scfeat_scenes(result: Result) -> str:
    """Maps by SCFeat and by RootSIFT at the same size; localization below."""
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
            f" {number(row.get('centre_error_mm_mean'), '.2f')} | {row['seconds']:.0f} |"
        )
    for row in result["localization"]:
        recall = ", ".join(f"{100 * share:.0f} % within {threshold}" for threshold, share in row["recall"].items())
        lines += ["", f"{row['scene'].rpartition('/')[2]} localized by {label(row)}: {recall}; medians"
                  f" {1e3 * row['median_m']:.1f} mm and {row['median_deg']:.3f} deg."]  # fmt: skip
    return "\n".join(lines)


def panoramas(result: Result) -> str:
    """Panoramas with features of views, and of the picture as it is."""
    lines = [
        "| panoramas | features of | registered | points | centre mm | rotation deg |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in result["panoramas"]:
        lines.append(f"| {row['width']} x {row['width'] // 2} | {row['features']} | {_against_truth(row)}")
    return "\n".join(lines)


def rigs(result: Result) -> str:
    """Cameras on one rig, with and without it."""
    lines = [
        "| second camera | relation | registered | points | centre mm | rotation deg |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in result["rigs"]:
        lines.append(f"| {row['second']} | {row['relation']} | {_against_truth(row)}")
    return "\n".join(lines)


def _against_truth(row: Result) -> str:
    found = f"{row['registered']} / {row['images']} | {row['points']:,}"
    return f"{found} | {row['centre_mm']:.2f} | {row['rotation_deg']:.3f} |"


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "scenes": ("scenes", scenes),
    "eth": ("eth_descriptors", eth),
    "scfeat-scenes": ("scfeat_scenes", scfeat_scenes),
    "panoramas": ("cameras", panoramas),
    "rigs": ("cameras", rigs),
}
