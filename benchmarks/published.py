"""Features and matchers of other authors beside featkit's own: benchmarks, maps, poses, time and memory, in one run.

    python benchmarks/published.py [rootsift/mutual aliked-n16/lightglue ...] [--data ../shared/data] [--work DIR]

A row is FEATURES/MATCHER, every row with the same --max-keypoints and --resize-max. Oxford and EVD: `featkit eval
hpatches` (MMAScore, homography AUC). Maps: `featkit reconstruct` of --scenes; centres where the true cameras are known.
castle-P19 is also localized (each fourth photograph is a query). Pose: `featkit eval pose`, AUC by both estimators.
Times are CPU-seconds of whole commands, since other programs on the machine change them little. --work keeps each
finished row, so that a stopped run goes on.
Writes benchmarks/results/published.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import Finished, measure, write_result
from scenes import featkit_command, judged, localize

from featkit.core.errors import FeatkitError
from featkit.mapping.model import is_model

HERE = Path(__file__).resolve().parent
ROWS = (
    *("rootsift/mutual", "dog+hynet/mutual", "scfeat/mutual"),
    *("xfeat/mutual", "xfeat/lightglue", "disk/mutual", "disk/lightglue"),
    *("aliked-n16/mutual", "aliked-n16/lightglue", "aliked-n16rot/mutual", "aliked-n16rot/lightglue"),
)
SEQUENCES = {"oxford": "oxford-affine", "evd": "pairs/evd"}
SCENES = ("eth/fountain-P11", "posed/castle-P19", "sacre_coeur", "scenes/liberty")
LARGE = "scenes/liberty"  # a thousand pairs: only with the mutual matcher, unless --large
LOCALIZED = "posed/castle-P19"
POSED = ("posed/castle-P19", "eth/fountain-P11")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=ROWS, help="FEATURES/MATCHER")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--sequences", nargs="*", default=list(SEQUENCES), choices=list(SEQUENCES))
    parser.add_argument("--scenes", nargs="*", default=SCENES, help="folders of photographs, to be mapped")
    parser.add_argument(
        "--large", action="store_true", help="maps scenes/liberty with LightGlue, too: half an hour a row"
    )
    parser.add_argument("--posed", nargs="*", default=POSED, help="scenes with true poses, for relative poses")
    parser.add_argument("--max-keypoints", type=int, default=2048)
    parser.add_argument("--resize-max", type=int, default=1024, help="px of the longer side")
    parser.add_argument("--work", type=Path, help="where finished rows are kept; default: nowhere")
    arguments = parser.parse_args()
    try:
        rows = [kept_row(row, arguments) for row in arguments.rows]
    except (RuntimeError, FeatkitError) as error:
        sys.exit(str(error))
    asked = {"max_keypoints": arguments.max_keypoints, "resize_max": arguments.resize_max}
    print(write_result("published", {**asked, "rows": rows}))


def kept_row(row: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row, of an earlier run where --work has it."""
    kept = None if arguments.work is None else arguments.work / f"{row.replace('/', '_')}.json"
    if kept is not None and kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    measured = row_of(row, arguments)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return measured


def row_of(row: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All measures of one row."""
    features, _, matcher = row.partition("/")
    options = ["--features", features, "--matcher", matcher or "mutual"]
    options += ["--max-keypoints", str(arguments.max_keypoints), "--resize-max", str(arguments.resize_max)]
    found: dict[str, Any] = {"features": features, "matcher": matcher or "mutual"}
    for name in arguments.sequences:
        found[name] = on_sequences(arguments.data / SEQUENCES[name], options)
        report(row, name, found[name])
    found["maps"] = {}
    for scene in arguments.scenes:
        if scene == LARGE and matcher == "lightglue" and not arguments.large:
            continue
        found["maps"][scene] = on_scene(arguments.data / scene, options)
        report(row, scene, found["maps"][scene])
    if LOCALIZED in arguments.scenes:
        found["localization"] = localize(LOCALIZED, arguments.data / LOCALIZED, options)
        report(row, "localization", found["localization"])
    if arguments.posed:
        found["pose"] = on_pairs([arguments.data / scene for scene in arguments.posed], options)
        report(row, "pose", found["pose"])
    return found


def report(row: str, where: str, values: dict[str, Any]) -> None:
    """Print one step's figures as it ends."""
    print(f"{row}: {where}: {json.dumps(values)}", flush=True)


def evaluated(verb: str, roots: Sequence[Path], options: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """The one method of `featkit eval VERB`, and what the command took."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "featkit", "eval", verb, "--out", work, "--json", "--quiet", *options]
        for root in roots:
            command += ["--root", str(root)]
        finished = measure(command)
    (method,) = json.loads(finished.stdout)["methods"]
    return method, taken(finished)


def taken(finished: Finished) -> dict[str, float]:
    """Time and memory of a command."""
    return {"cpu_s": finished.cpu_seconds, "peak_memory_mb": finished.peak_memory_mb}


def on_sequences(root: Path, options: Sequence[str]) -> dict[str, Any]:
    """Matching accuracy on image pairs with known homographies."""
    method, cost = evaluated("hpatches", [root], options)
    overall = method["groups"]["overall"]
    kept = ("features", "matches", "mma_score", "homography_auc")
    return {**{name: overall[name] for name in kept}, **cost}


def on_pairs(roots: Sequence[Path], options: Sequence[str]) -> dict[str, Any]:
    """AUC of relative poses, by every estimator."""
    method, cost = evaluated("pose", roots, options)
    return {**method["overall"], **cost}


def on_scene(scene: Path, options: Sequence[str]) -> dict[str, Any]:
    """A map, or the reason why there is none."""
    with tempfile.TemporaryDirectory() as work:
        try:
            finished = measure(featkit_command(scene, Path(work), options))
        except RuntimeError as error:
            return {"failed": str(error).splitlines()[-1]}
        sparse = Path(work) / "sparse"
        row = judged([folder for folder in sorted(sparse.iterdir()) if is_model(folder)], scene)
    return {**row, **taken(finished)}


if __name__ == "__main__":
    main()
