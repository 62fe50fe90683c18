"""MMA and mAP of features on the Oxford sequences, each beside the others in one run.

    python benchmarks/oxford_mma.py rootsift sift dog+hynet [--data ../shared/data/oxford-affine] [--work DIR]

Each is run by `featkit eval hpatches` (mutual nearest neighbours, MMA at 1 to 10 px, MMAScore, homography AUC) and
`featkit eval oxford` (mAP), at full size unless --resize-max is given. --work keeps features and matches, so that a
stopped run goes on; then seconds of what was done before are not known and stand as null. A features name may carry a
weight: scfeat=runs/scfeat/last.safetensors. Writes benchmarks/results/oxford_mma.json.

--update, for weights that changed: measures only the named features and replaces their rows. The commit and the date of
each are recorded under `updated`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import RESULTS, commit, measure, write_result

HERE = Path(__file__).resolve().parent
RESULT = RESULTS / "oxford_mma.json"
IMAGES_PER_SEQUENCE = 6


def command(verb: str, features: str, arguments: argparse.Namespace, work: Path) -> list[str]:
    """`featkit eval VERB` of one features name, which may carry a weight."""
    name, _, weight = features.partition("=")
    run = [sys.executable, "-m", "featkit", "eval", verb, "--root", str(arguments.data), "--features", name]
    run += ["--out", str(work), "--device", arguments.device, "--json", "--quiet"]
    for option, value in (
        ("--weights", weight),
        ("--sequences", arguments.sequences),
        ("--resize-max", arguments.resize_max),
        ("--max-keypoints", arguments.max_keypoints),
    ):
        run += [option, str(value)] if value else []
    return run


def row_of(features: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Both benchmarks of one method."""
    known = set(work.glob("predictions/*/features.h5"))
    matched = measure(command("hpatches", features, arguments, work))
    found = json.loads(matched.stdout)
    ranked = measure(command("oxford", features, arguments, work))
    (method,), (precision,) = found["methods"], json.loads(ranked.stdout)["methods"]
    overall = method["groups"]["overall"]
    keypoints = overall["features"] * len(found["sequences"]) * IMAGES_PER_SEQUENCE
    fresh = not any(method["fingerprint"] in path.parent.name for path in known)
    seconds = method["seconds"]
    return {
        "features": features,
        "fingerprint": method["fingerprint"],
        "weights_sha256": method["weights_sha256"],
        "mean_features": overall["features"],
        "mean_matches": overall["matches"],
        "mma": overall["mma"],
        "mma_score": overall["mma_score"],
        "homography_auc": overall["homography_auc"],
        "map": precision["map"],
        "sequences": {
            name: {"mma_score": one["mma_score"], "homography_auc": one["homography_auc"], "map": mean}
            for (name, one), mean in zip(method["sequences"].items(), precision["sequences"].values(), strict=True)
        },
        "extract_s": seconds["extract"] if fresh else None,
        "match_s": seconds["match"] if fresh else None,
        "keypoints_per_s": round(keypoints / seconds["extract"], 1) if fresh else None,
        "seconds": [round(matched.seconds, 2), round(ranked.seconds, 2)],
        "peak_memory_mb": max(matched.peak_memory_mb, ranked.peak_memory_mb),
        "config": method["config"],
        "protocol": found["config"],
        "matcher": found["matcher"],
    }


def line_of(row: dict[str, Any]) -> str:
    """One line for people, in %."""
    sequences = ", ".join(f"{name} {100 * one['mma_score']:.1f}" for name, one in row["sequences"].items())
    means = ", ".join(f"{rule} {100 * value:.1f}" for rule, value in row["map"].items())
    return f"{row['features']}: MMAScore {100 * row['mma_score']:.2f} ({sequences}); mAP by {means}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", nargs="+", help="NAME or NAME=WEIGHT")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "oxford-affine")
    parser.add_argument("--work", type=Path, help="folder of features and matches, kept")
    parser.add_argument("--sequences", help="only these, comma-separated")
    parser.add_argument("--resize-max", type=int)
    parser.add_argument("--max-keypoints", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--update", action="store_true", help="replace the rows of the named features only")
    parser.add_argument("--dry", action="store_true", help="print the result instead of writing it")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        try:
            for features in arguments.features:
                rows.append(row_of(features, arguments, work))
                print(line_of(rows[-1]), flush=True)
        except RuntimeError as error:
            sys.exit(str(error))
    result = {
        "unit": "shares in [0, 1]; features per image, matches per pair",
        "resize_max": arguments.resize_max,
        "max_keypoints": arguments.max_keypoints,
        "sequences": list(rows[0]["sequences"]),
        "rows": rows,
    }
    if arguments.dry:
        print(json.dumps(result, indent=1))
    elif arguments.update:
        RESULT.write_text(json.dumps(updated(result), indent=1) + "\n", encoding="utf-8")
    else:
        print(write_result("oxford_mma", result))


def updated(new: dict[str, Any]) -> dict[str, Any]:
    """The present file with the rows of `new`, which must have been measured in the same way."""
    old: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    for key in ("resize_max", "max_keypoints", "sequences"):
        if old[key] != new[key]:
            sys.exit(f"{RESULT.name} has {key} {old[key]}, this run {new[key]}")
    rows = {row["features"]: row for row in new["rows"]}
    old["rows"] = [rows.pop(row["features"], row) for row in old["rows"]] + list(rows.values())
    record = {"commit": commit(), "date": datetime.date.today().isoformat()}
    old["updated"] = old.get("updated", {}) | dict.fromkeys((row["features"] for row in new["rows"]), record)
    return old


if __name__ == "__main__":
    main()
