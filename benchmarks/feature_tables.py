"""The tables of features, from leaderboard, patch_table, describe_speed, training, oxford_mma and SCFeat's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from map_tables import number

Result = dict[str, Any]
ANYWHERE = "-"  # the training set of what is not trained, and every other value that there is not


def leaderboard(result: Result) -> str:
    """Every feature on every benchmark; the best of each column in bold."""
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
    return "\n".join([*lines, "", f"{result['seconds'] / 60:.0f} minutes in all."])


def patches(result: Result) -> str:
    """FPR95 of the patch descriptors, trained on one set and tested on the others; the papers' below."""
    sets = "; ".join(f"{name}: {one['pairs']:,} test pairs" for name, one in result["data"].items())
    trained = [row for row in result["trainings"] if row["patches"]]
    budget = f"{max(row['patches'] for row in trained):,} patches each" if trained else ""
    return "\n".join([*patch_lines(result), "", f"FPR95 in %. {sets}. Trained with {budget}."])


def patch_lines(result: Result) -> list[str]:
    """Lines of the table: our rows, then the papers' with their own columns."""
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


def describe(result: Result) -> str:
    """Keypoints described per second, featkit beside kornia."""
    lines = ["| device | method | keypoints/s | over kornia | over kornia's best batch |", "|---|---|---:|---:|---:|"]
    for device in result["devices"]:
        for row in device["rows"]:
            lines.append(
                f"| {device['where']} | {row['method']} | {row['keypoints_per_s']:,.0f} | {row['over_kornia']:.2f} |"
                f" {row['over_kornia_in_its_best_batches']:.2f} |"
            )
    return "\n".join(lines)


def training(result: Result) -> str:
    """Training steps beside kornia's network alone."""
    lines = ["| method | patches/s | over kornia | waiting for patches |", "|---|---:|---:|---:|"]
    for row in result["rows"]:
        lines.append(
            f"| {row['method']} | {row['patches_per_s']:,.0f} | {row['over_kornia']:.2f} |"
            f" {100 * row['wait_share']:.1f} % |"
        )
    return "\n".join(lines)


def oxford(result: Result) -> str:
    """MMAScore per sequence of the Oxford set, and mAP with correspondences by distance, which all features have."""
    names = result["sequences"]
    lines = [
        f"| features | {' | '.join(names)} | MMAScore | mAP | features | matches |",
        "|---|" + "---:|" * (len(names) + 4),
    ]
    for row in result["rows"]:
        scores = " | ".join(f"{100 * row['sequences'][name]['mma_score']:.1f}" for name in names)
        counts = f"{row['mean_features']:,.0f} | {row['mean_matches']:,.0f}"
        means = f"**{100 * row['mma_score']:.1f}** | {100 * row['map']['distance']:.1f}"
        lines.append(f"| {_label(row['features'])} | {scores} | {means} | {counts} |")
    return "\n".join(lines)


def training_curve(result: Result) -> str:
    """MMAScore and mAP on the Oxford sequences of each version of the weights, by the patches they have seen."""
    lines = [
        "| weights | patches seen, millions | side of a patch, scales | MMAScore | mAP | matches |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| `{row['name']}` | {row['patches'] / 1e6:.2f} | {row['magnification']:.0f} |"
            f" {100 * row['mma_score']:.1f} | {100 * row['map']['distance']:.1f} | {row['mean_matches']:,.0f} |"
        )
    return "\n".join(lines)


def _label(features: str) -> str:
    """A method's name without the place of its weight."""
    return features.partition("=")[0]


def dense_speed(result: Result) -> str:
    """Images per second of SCFeat beside its bare network and kornia's networks."""
    lines = [
        "| device | size | network | extract, images/s | bare network | as written | over ALIKED | memory MB |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in result["results"]:
        speed = {row["method"].removeprefix(f"{one['network']} "): row["images_per_s"] for row in one["rows"]}
        over = one["extract_over_peers"].get("kornia ALIKED")
        lines.append(
            f"| {one['where']} | {one['size']} | {one['network']} | {speed['extract']:.2f} | {speed['network']:.2f} |"
            f" {speed['as written']:.2f} | {number(over, '.2f')} | {one['peak_memory']['extract_process_mb']:,.0f} |"
        )
    return "\n".join(lines)


def published_speed(result: Result) -> str:
    """CPU seconds of the published networks, as featkit runs them and as kornia does."""
    lines = [
        "| network | size | CPU-seconds | kornia | rate over kornia | memory MB | kornia | largest difference:"
        " keypoints px, descriptors |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in result["rows"]:
        seconds, memory = row["cpu_seconds"], row["peak_memory_mb"]
        lines.append(
            f"| {row['network']} | {row['size']} | {seconds['ours']:.2f} | {seconds['by_hand']:.2f} |"
            f" **{row['rate_over_kornia']:.1f}** | {memory['ours']:,.0f} | {memory['by_hand']:,.0f} |"
            f" {row['keypoint_error_px']:.0e}, {row['descriptor_error']:.0e} |"
        )
    return "\n".join(lines)


def lightglue_speed(result: Result) -> str:
    """CPU seconds of LightGlue, as featkit runs it and as kornia does."""
    lines = [
        "| weights | keypoints | photographs | CPU-seconds | kornia | rate over kornia | memory MB | kornia | matches |"
        " not the same | largest difference of scores |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        seconds, memory = row["cpu_seconds"], row["peak_memory_mb"]
        lines.append(
            f"| {row['network']} | {row['keypoints']:,} | {row['pair']} | {seconds['ours']:.2f} |"
            f" {seconds['by_hand']:.2f} | **{row['rate_over_kornia']:.2f}** | {memory['ours']:,.0f} |"
            f" {memory['by_hand']:,.0f} | {row['matches']:,} | {row['matches_in_one_alone']} |"
            f" {row['score_error']:.0e} |"
        )
    return "\n".join(lines)


def dense_ways(result: Result) -> str:
    """Ways to run SCFeat's dense network on a CPU."""
    lines = [
        "| network | size | threads | way | CPU-seconds | over the engine | start-up | memory MB | scores differ by |"
        " keypoints lacking |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in result["results"]:
        for row in one["rows"]:
            lines.append(
                f"| {one['network']} | {one['size']} | {one['threads']} | {row['way']} | {row['cpu_seconds']:.2f} |"
                f" {row['over_engine']:.2f} | {row['start_up_cpu_seconds']:.1f} |"
                f" {number(row.get('peak_memory_mb'), ',.0f')} | {row['score_error']:.0e} |"
                f" {row['keypoints_lacking']} of {result['keypoints']:,} |"
            )
    return "\n".join(lines)


def ablation(result: Result) -> str:
    """SCFeat's ablations: MMAScore of rows that were trained alike, mean and spread of the seeds."""
    lines = [
        "| row | MMAScore, % | deviation | least to greatest | seeds | features | matches | steps of the stages |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in result["rows"]:
        seeds = row["seeds"]
        score = {name: f"{100 * value:.1f}" for name, value in row["mma_score"].items()}
        deviation, ends = score["deviation"], f"{score['min']} to {score['max']}"
        if len(seeds) == 1:
            deviation = ends = ANYWHERE
        features, matches = (sum(one[key] for one in seeds) / len(seeds) for key in ("features", "matches"))
        lines.append(
            f"| {row['row']} | {score['mean']} | {deviation} | {ends} | {len(seeds)} | {features:,.0f} |"
            f" {matches:,.0f} | {', '.join(map(str, seeds[0]['stages']))} |"
        )
    return "\n".join(lines)


def reward(result: Result) -> str:
    """What L_fme changes in the gradient of SCFeat's detector, in each way of computing it."""
    quantiles = list(result["quantiles"])
    lines = [
        "| L_fme from | 10 %, median, 90 % | correlation with the share of bad matches | mean reward |"
        " gradient changed | from control | turned, deg |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["detectors"]["trained"]:
        if "l_fme" in row:
            values = ", ".join(f"{row['l_fme'][quantiles.index(at)]:.2g}" for at in (0.1, 0.5, 0.9))
            tells, changed = f"{row['tells_bad']:.2f}", f"{row['changed']:.2g}"
        else:
            values = tells = changed = ANYWHERE
        lines.append(
            f"| {row['formulation']} | {values} | {tells} | {row['reward']:.2f} | {changed} |"
            f" {row['from_control']:.2g} | {row['turned_deg']:.0f} |"
        )
    return "\n".join(lines)


def hpatches(result: Result) -> str:
    """Time and memory of matching and scoring, over more and more pairs."""
    lines = ["| pairs | features an image | seconds | peak memory MB |", "|---:|---:|---:|---:|"]
    for row in result["rows"]:
        lines.append(
            f"| {row['pairs']:,} | {row['mean_features']:,.0f} | {row['seconds']:.1f} | {row['peak_memory_mb']:,.0f} |"
        )
    return "\n".join(lines)


CHOICES = {  # when to take it, what it was learned from, licence of its weights
    "rootsift": ("the default: rotation, scale, speed", "nothing: no weights", "-"),
    "dog+hynet": (
        "more points and better relative poses than RootSIFT; a GPU helps",
        "patches of 31 scenes, homographies of 811 photographs",
        "research",
    ),
    "scfeat": (
        "blur, compression, moderate viewpoint; fewer points",
        "homographies of 811 photographs, poses of nine scenes",
        "research",
    ),
    "scfeat-scaled": (
        "the same from different distances; 1.75 times the pixels",
        "the same weights",
        "research",
    ),
    "scfeat-scaled-turned": (
        "hard zoom and rotation, localization; eight times the pixels",
        "the same weights",
        "research",
    ),
    "dog+doap-binary": ("descriptors of 32 bytes", "patches of nine scenes", "research"),
    "aliked-n16": ("as published: hard viewpoint and light changes", "MegaDepth, homographies", "BSD-3-Clause"),
    "disk": ("the same", "MegaDepth", "Apache-2.0"),
    "xfeat": ("as published: speed", "MegaDepth, COCO", "Apache-2.0"),
}
CHOSEN_BY = ("MMAScore oxford-affine, %", "fountain-P11 points", "fountain-P11 track", "keypoints/s")


def choices(result: Result) -> str:
    """Which features when, with the leaderboard's figures; "-" where it has none."""
    values = {(one["method"], one["measure"]): one["value"] for one in result["standings"]}
    heads = ("features", "when", "learned from", "weights' licence", *CHOSEN_BY)
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|---|" + "---:|" * len(CHOSEN_BY)]
    for name, words in CHOICES.items():
        row = [values.get((name, measure)) for measure in CHOSEN_BY]
        figures = [ANYWHERE if v is None else f"{v:,.0f}" if v >= 1000 else f"{v:.3g}" for v in row]
        lines.append(f"| `{name}` | " + " | ".join([*words, *figures]) + " |")
    return "\n".join(lines)


def published(result: Result) -> str:
    """Published features and matchers beside featkit's: accuracy on pairs, then maps, then time and memory."""
    keypoints, side = result["max_keypoints"], result["resize_max"]
    tables = [_published_pairs(result["rows"])]
    for scene in {scene: None for row in result["rows"] for scene in row["maps"]}:
        tables.append(_published_maps(result["rows"], scene))
    return "\n\n".join([*tables, f"At most {keypoints:,} keypoints, photographs of {side:,} px at most."])


def _published_pairs(rows: list[Result]) -> str:
    """Oxford, EVD, relative poses, localization."""
    estimators = list({name: None for row in rows for name in row.get("pose", {}).get("estimators", {})})
    heads = ["Oxford MMAScore", "Oxford AUC@3 px", "EVD MMAScore", *(f"pose AUC@5, {name}" for name in estimators)]
    heads += ["castle median, mm", "castle median, deg", "CPU-s an image", "CPU-s a pair"]
    lines = ["| features | matcher | " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(heads)]
    for row in rows:
        oxford, evd, place = row.get("oxford", {}), row.get("evd", {}), row.get("localization", {})
        values: list[float | None] = [_times(100, oxford.get("mma_score"))]
        values += [_times(100, oxford.get("homography_auc", [None, None])[1]), _times(100, evd.get("mma_score"))]
        of = row.get("pose", {}).get("estimators", {})
        values += [_times(100, of[name]["auc"][0]) if name in of else None for name in estimators]
        values += [_times(1000, place.get("median_m")), place.get("median_deg")]
        values += [row.get("cost", {}).get(key) for key in ("cpu_s_per_image", "cpu_s_per_pair")]
        lines.append(f"| {row['features']} | {row['matcher']} | {' | '.join(map(_three, values))} |")
    return "\n".join(lines)


def _published_maps(rows: list[Result], scene: str) -> str:
    """One scene."""
    heads = [scene, "points", "track", "centres, mm", "CPU-s", "memory, MB"]
    lines = ["| features | matcher | " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(heads)]
    keys = ("points", "track_length", "centre_error_mm_mean", "cpu_s")
    for row in rows:
        one = row["maps"].get(scene, {})
        registered = f"{one['registered']} / {one['images']}" if "registered" in one else ANYWHERE
        cells = " | ".join(_three(one.get(key)) for key in (*keys, "peak_memory_mb"))
        lines.append(f"| {row['features']} | {row['matcher']} | {registered} | {cells} |")
    return "\n".join(lines)


def recall(result: Result) -> str:
    """Retrieval by VLAD over several features."""
    depths = ("1", "5", "10", "20")
    heads = [*(f"any related in {k}" for k in depths), *(f"related found in {k}" for k in depths)]
    lines = ["| scene | features | " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(heads)]
    for row in result["rows"]:
        at = row["recall"]
        cells = [f"{100 * at[k][kind]:.1f}" for kind in ("any", "found") for k in depths]
        lines.append(f"| {row['scene']}, {row['images']} images | {row['features']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "In %."])


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


def _three(value: float | None) -> str:
    return ANYWHERE if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


TABLES: dict[str, tuple[str, Callable[[Result], str]]] = {
    "choices": ("leaderboard", choices),
    "leaderboard": ("leaderboard", leaderboard),
    "hpatches": ("hpatches_speed", hpatches),
    "patches": ("patch_table", patches),
    "describe": ("describe_speed", describe),
    "training": ("training", training),
    "oxford": ("oxford_mma", oxford),
    "training-curve": ("training_curve", training_curve),
    "published": ("published", published),
    "recall": ("retrieval_recall", recall),
    "dense-speed": ("dense_speed", dense_speed),
    "dense-ways": ("dense_ways", dense_ways),
    "published-speed": ("published_speed", published_speed),
    "lightglue-speed": ("lightglue_speed", lightglue_speed),
    "ablation": ("scfeat_ablation", ablation),
    "ablation-detection": ("scfeat_ablation_detection", ablation),
    "reward": ("reward_effect", reward),
}
