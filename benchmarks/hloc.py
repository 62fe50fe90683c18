"""featkit and hloc side by side, in one run: the same photographs, the same features, the same pairs.

    python benchmarks/hloc.py [--scene ../shared/data/posed/castle-P19] [--features rootsift] [--kills 5]

hloc extracts featkit's features through the plug-in and matches them by featkit's matcher and by its own; featkit does
the same by its own commands. Compared: seconds and peak memory of each command, start-up included; whether both files
say the same; what SIGKILL in the middle of an extraction leaves behind, and what the same command makes of it; what a
query that cannot be localized becomes; the maps triangulated with the true poses (each fourth photograph is a query).
Needs hloc, see `python -m featkit.hloc`. Writes benchmarks/results/hloc.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
from hloc_scene import NOTHING, Work
from localizer import CASTLE
from machine import measure, write_result

from featkit.core.errors import FeatkitError
from featkit.hloc import COMMIT, INSTALL, NO_POINTS
from featkit.mapping.model import map_statistics, read_model

POLL_S = 0.002
SHOWN = ("registered", "points", "observations", "track_length", "reprojection_px")
TRIANGULATE = """
import sys
from pathlib import Path
from hloc import triangulation
*paths, estimate = sys.argv[1:]
triangulation.main(*map(Path, paths), estimate_two_view_geometries=estimate == "1")
"""


def featkit(*words: object) -> list[str]:
    return [sys.executable, "-m", "featkit", *map(str, words), "-q"]


def hloc(command: str, *words: object) -> list[str]:
    return [sys.executable, "-m", "featkit.hloc", command, *map(str, words)]


def extraction(side: str, features: str, images: Path, out: Path) -> tuple[list[str], Path]:
    """The command, and the file it writes."""
    if side == "featkit":
        return featkit("extract", images, "--features", features, "--out", out / "f.h5"), out / "f.h5"
    words = ("--conf", f"featkit-{features}", "--image_dir", images, "--export_dir", out)
    return hloc("extract_features", *words), out / f"feats-featkit-{features}.h5"


def matching(side: str, matcher: str, features: Path, pairs: Path) -> tuple[list[str], Path]:
    if side == "featkit":
        out = features.with_name(f"m-{pairs.stem}.h5")
        return featkit("match", features, pairs, "--matcher", matcher, "--out", out), out
    words = ("--conf", matcher, "--pairs", pairs, "--export_dir", features.parent, "--features", features.stem)
    named = "matches-NN-mutual-ratio.8" if matcher == "NN-ratio" else f"matches-{matcher}"
    return hloc("match_features", *words), features.with_name(f"{features.stem}_{named}_{pairs.stem}.h5")


def groups(path: Path, dataset: str) -> dict[str, dict[str, np.ndarray]]:
    """All groups with that dataset, with everything in them. Raises OSError and its kin for a damaged file."""
    found: dict[str, dict[str, np.ndarray]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and dataset in item:
            found[name] = {key: values[()] for key, values in item.items()}

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray], *datasets: str) -> bool:
    """Whether both hold the same numbers, halves and shorts beside whole ones."""
    return all(key in a and key in b and np.array_equal(a[key], b[key]) for key in datasets)


def rate(command: list[str], count: int, unit: str) -> dict[str, Any]:
    done = measure(command)
    return {
        "seconds": round(done.seconds, 2),
        f"{unit}_per_s": round(count / done.seconds, 3),
        "peak_memory_mb": done.peak_memory_mb,
    }


def killed(make: Callable[[Path], tuple[list[str], Path]], whole: Path, kills: int) -> dict[str, Any]:
    """SIGKILL when a random share of the file is written, then the same command once more.

    make: the command for an output folder, and its file. whole: what an undisturbed run wrote.
    """
    expected, draw = groups(whole, "keypoints"), random.Random(0)
    found: dict[str, Any] = dict.fromkeys(("ended_before", "unreadable", "does_not_go_on", "missing_or_damaged"), 0)
    found |= {"kills": kills, "images_left_to_do": []}
    for _ in range(kills):
        with tempfile.TemporaryDirectory() as folder:
            command, path = make(Path(folder))
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            enough = draw.uniform(0.05, 0.95) * whole.stat().st_size
            while process.poll() is None and not (path.exists() and path.stat().st_size >= enough):
                time.sleep(POLL_S)
            found["ended_before"] += process.poll() is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own group: this run started it and its workers
            process.wait()
            before: dict[str, Any] = {}
            if path.exists():
                try:
                    before = groups(path, "keypoints")
                except (OSError, RuntimeError, KeyError):
                    found["unreadable"] += 1
            again = subprocess.run(command, capture_output=True, check=False)
            found["does_not_go_on"] += again.returncode != 0
            try:
                after = groups(path, "keypoints")
            except (OSError, RuntimeError, KeyError):
                after = {}
            good = [n for n, values in expected.items() if n in after and equal(values, after[n], *values)]
            found["missing_or_damaged"] += len(expected) - len(good)
            found["images_left_to_do"].append(len(expected) - len(before))
    return found


def triangulated(work: Work, features: Path, matches: Path, sfm: Path, estimate: bool) -> dict[str, Any]:
    """hloc's map."""
    paths = (sfm, work.reference, work.all, work.map_pairs, features, matches)
    measure([sys.executable, "-c", TRIANGULATE, *map(str, paths), str(int(estimate))])
    return statistics_of(sfm, len(work.map_names))


def statistics_of(model: Path, images: int) -> dict[str, Any]:
    statistics = map_statistics(read_model(model), images)
    return {key: getattr(statistics, key) for key in SHOWN if hasattr(statistics, key)}


def featkit_map(work: Work, features: str) -> tuple[dict[str, Any], Path]:
    command = featkit("reconstruct", work.found.map, "--features", features, "--pairs", work.map_pairs, "--json")
    measure([*command, "--reference", str(work.reference)])
    folder = work.found.map / "featkit"
    return statistics_of(folder / "sparse" / "0", len(work.map_names)), folder


def failed_query(poses: Path, model: Path) -> str:
    """What the query without anything on it is in a file of poses, in words."""
    lines = {line.split()[0]: line.split()[1:] for line in poses.read_text().splitlines() if line.strip()}
    if NOTHING not in lines:
        return "absent"
    written = np.array(lines[NOTHING], float)
    for image in read_model(model).images.values():
        rigid = image.cam_from_world()
        same = np.concatenate([rigid.rotation.quat[[3, 0, 1, 2]], rigid.translation])
        if np.allclose(written, same, atol=1e-6):
            return f"localized, with the pose of map image {image.name}"
    return "localized, with a pose of its own"


def localized(work: Work, sides: dict[str, dict[str, Path]]) -> dict[str, Any]:
    """Both localize all queries, and the one of nothing, by the same pairs."""
    theirs, ours = sides["hloc"], sides["featkit"]
    results = work.folder / "hloc-poses.txt"
    words = ("--reference_sfm", theirs["model"], "--queries", work.intrinsics, "--retrieval", work.query_pairs)
    words += ("--features", theirs["features"], "--matches", theirs["query_matches"], "--results", results)
    ran = subprocess.run(hloc("localize_sfm", *words), capture_output=True, text=True, check=False)
    if not results.is_file():
        raise RuntimeError(f"hloc's localize_sfm: {ran.stderr[-2000:]}")
    out = work.folder / "localized"
    words = ("--queries", work.found.queries, "--intrinsics", work.intrinsics, "--pairs", work.query_pairs, "-o", out)
    measure(featkit("localize", ours["map"], *words))
    described = json.loads((out / "poses.json").read_text())["results"]
    return {
        "queries": len(work.query_names),
        "hloc": {
            "poses": len(results.read_text().splitlines()),
            "failed_query": failed_query(results, theirs["model"]),
            "exit_code": ran.returncode,
        },
        "featkit": {
            "poses": len((out / "poses.txt").read_text().splitlines()),
            "failed_query": failed_query(out / "poses.txt", ours["map"] / "sparse" / "0"),
            "reason": next(entry["reason"] for entry in described if entry["name"] == NOTHING),
        },
    }


def run(work: Work, features: str, matcher: str, kills: int) -> dict[str, Any]:
    """Everything, stage by stage, hloc and featkit turn about."""
    result: dict[str, Any] = {"extract": {}, "match": {}, "sigkill": {}, "map": {}}
    files: dict[str, dict[str, Path]] = {"hloc": {}, "featkit": {}}
    images = len(work.map_names) + len(work.query_names)
    for side in files:
        command, path = extraction(side, features, work.all, work.folder / f"by-{side}")
        result["extract"][side] = rate(command, images, "images")
        files[side]["features"] = path
    both = [groups(files[side]["features"], "keypoints") for side in files]
    same = [equal(both[0][name], both[1][name], "keypoints", "descriptors") for name in both[1]]
    result["extract"]["images_equal"] = f"{sum(same)} of {len(same)}"
    num_pairs = len(work.map_pairs.read_text().splitlines())
    for label, side, name in (
        ("hloc, featkit's matcher", "hloc", f"featkit-{matcher}"),
        ("hloc, its NN-ratio", "hloc", "NN-ratio"),
        ("featkit", "featkit", matcher),
    ):
        command, path = matching(side, name, files[side]["features"], work.map_pairs)
        result["match"][label] = rate(command, num_pairs, "pairs")
        files[side].setdefault("map_matches", path)
    both = [groups(files[side]["map_matches"], "matches0") for side in files]
    shared = {name for name in both[0] if name in both[1]}
    same = [equal(both[0][name], both[1][name], "matches0") for name in shared]
    result["match"]["pairs_equal"] = f"{sum(same)} of {len(same)}"
    command, files["hloc"]["query_matches"] = matching(
        "hloc", f"featkit-{matcher}", files["hloc"]["features"], work.query_pairs
    )
    measure(command)
    for side in files if kills else ():
        made = lambda out, side=side: extraction(side, features, work.all, out)  # noqa: E731
        result["sigkill"][side] = killed(made, files[side]["features"], kills)
    empty = pycolmap.__version__ in NO_POINTS
    stored = (files["hloc"]["features"], files["hloc"]["map_matches"])
    if empty:
        result["map"]["hloc, as it is called"] = triangulated(work, *stored, work.folder / "sfm0", False)
    files["hloc"]["model"] = work.folder / "sfm"
    label = "hloc, estimate_two_view_geometries" if empty else "hloc"
    result["map"][label] = triangulated(work, *stored, files["hloc"]["model"], empty)
    result["map"]["featkit"], files["featkit"]["map"] = featkit_map(work, features)
    result["localize"] = localized(work, files)
    return result


@contextlib.contextmanager
def elsewhere(folder: str) -> Iterator[None]:
    """Work in `folder`: this file is called hloc too, and Python looks first where it is started."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=CASTLE)
    parser.add_argument("--features", default="rootsift")
    parser.add_argument("--matcher", default="mutual")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="print only")
    arguments = parser.parse_args()
    scene = arguments.scene.resolve()
    with tempfile.TemporaryDirectory() as folder, elsewhere(folder):
        if subprocess.run([sys.executable, "-c", "import hloc.extract_features"], capture_output=True).returncode:
            sys.exit(f"hloc cannot be imported; {INSTALL}")
        try:
            result = run(Work(scene, Path(folder)), arguments.features, arguments.matcher, arguments.kills)
        except (FeatkitError, RuntimeError) as error:
            sys.exit(str(error))
    named = {"scene": scene.name, "features": arguments.features, "matcher": arguments.matcher, "hloc_commit": COMMIT}
    print(json.dumps(result, indent=1))
    if not arguments.dry:
        print(write_result("hloc", {**named, **result}))


if __name__ == "__main__":
    main()
