"""The same stages in one process and on a Ray cluster on this machine: time, and whether the results are the same.

    python benchmarks/engine.py [--scene ../shared/data/scenes/liberty] [--resize-max 800] [--nodes 2]

A cluster of --nodes nodes with one core each runs beside nothing else; local runs have as many workers. Commands are
timed whole, so a Ray run also pays for its start and for importing featkit in every worker. Then one node is killed in
the middle of an extraction: how long that takes, and whether all is there. Last, an index of many links is opened and
listed. Writes benchmarks/results/engine.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import h5py
from machine import measure, write_result
from ray.cluster_utils import Cluster

from featkit.core.config import Config
from featkit.core.errors import FeatkitError
from featkit.io import h5
from featkit.io.features import append_features, open_features
from featkit.io.h5 import copy_attributes
from featkit.io.matches import open_matches
from featkit.mapping.database import verified_pairs

HERE = Path(__file__).resolve().parent
LIBERTY = HERE.parent.parent / "shared" / "data" / "scenes" / "liberty"
LINKS = 300_000


def stages(scene: Path, folder: Path, resize_max: int, engine: list[str]) -> dict[str, float]:
    """Seconds of each command."""
    folder.mkdir()
    feats, pairs, matches = (str(folder / name) for name in ("feats.h5", "pairs.txt", "matches.h5"))
    images = str(scene / "images")
    commands = {
        "extract": ["extract", images, "--out", feats, "--resize-max", str(resize_max), *engine],
        "pairs": ["pairs", feats, "--out", pairs, "--method", "retrieval", *engine],
        "match": ["match", feats, pairs, "--out", matches, *engine],
        "verify": ["verify", images, feats, pairs, matches, "--out", str(folder / "database.db"), *engine],
    }
    seconds = {}
    for stage, command in commands.items():
        seconds[stage] = round(measure([sys.executable, "-m", "featkit", *command, "-q"]).seconds, 2)
        print(f"{folder.name} {stage}: {seconds[stage]} s", flush=True)
    return seconds


def contents(folder: Path) -> dict[str, Any]:
    """What the stages wrote, to be compared."""
    with open_features(folder / "feats.h5") as store:
        features = {name: store.digest(name) for name in store.names()}
    with open_matches(folder / "matches.h5") as found:
        matches = {pair: found.read(pair).matches0.tobytes() for pair in found.pairs()}
    return {
        "features": features,
        "pairs": (folder / "pairs.txt").read_text(encoding="utf-8"),
        "matches": matches,
        "verified": verified_pairs(folder / "database.db"),
    }


def with_a_loss(scene: Path, output: Path, resize_max: int, engine: list[str], cluster: Any) -> dict[str, Any]:
    """Extract while one node is killed; how many shards were there at that moment."""
    done: list[int] = []

    def kill() -> None:
        folder = output.with_name(f"{output.name}.shards")
        while not (there := len(list(folder.glob("*/[0-9]*.h5")))):
            time.sleep(0.05)
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        done.append(there)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    command = ["extract", str(scene / "images"), "--out", str(output), "--resize-max", str(resize_max), *engine]
    seconds = measure([sys.executable, "-m", "featkit", *command, "-q"]).seconds
    killer.join(5.0)
    return {"seconds": round(seconds, 2), "shards_before_the_loss": done[0] if done else None}


class Linked(Config):
    """Of a store made for this measurement."""


def many_links(folder: Path) -> dict[str, Any]:
    """Opening and listing an index of LINKS items in one shard that has a single item under all names."""
    shard, index = folder / "shard.h5", folder / "index.h5"
    with append_features(shard, Linked()):
        pass
    with h5py.File(shard, "r+") as file:
        item = file.create_group("item")
        item["keypoints"] = [[0.0, 0.0]]
        item.attrs["complete"] = 1
        with h5py.File(index, "w") as linked:
            copy_attributes(file, linked)
            linked.attrs[h5.LINKED] = 1
            for number in range(LINKS):
                linked[f"{number // 1000:04d}/{number:06d}.jpg"] = h5py.ExternalLink("shard.h5", "item")
    begun = time.perf_counter()
    with open_features(index) as store:
        opened = time.perf_counter() - begun
        count = len(store.names())
        listed = time.perf_counter() - begun - opened
        begun = time.perf_counter()
        for number in range(0, LINKS, LINKS // 1000):
            store.count(f"{number // 1000:04d}/{number:06d}.jpg")
        read = (time.perf_counter() - begun) / 1000
    return {
        "links": count,
        "index_mb": round(index.stat().st_size / 1e6, 1),
        "open_s": round(opened, 4),
        "list_s": round(listed, 3),
        "item_ms": round(1e3 * read, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=LIBERTY)
    parser.add_argument("--resize-max", type=int, default=800, help="px of the longer side")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print only")
    arguments = parser.parse_args()
    scene, resize_max = arguments.scene, arguments.resize_max
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        local = stages(scene, folder / "local", resize_max, [])
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(arguments.nodes):
                cluster.add_node(num_cpus=1)
            engine = ["--engine", "ray", "--ray-address", cluster.address]
            on_ray = stages(scene, folder / "ray", resize_max, engine)
            same = {key: value == contents(folder / "ray")[key] for key, value in contents(folder / "local").items()}
            lossy = with_a_loss(scene, folder / "lossy.h5", resize_max, [*engine, "--shards", "12"], cluster)
        except (FeatkitError, RuntimeError) as error:
            sys.exit(str(error))
        finally:
            cluster.shutdown()
        with open_features(folder / "lossy.h5") as store, open_features(folder / "local" / "feats.h5") as whole:
            lossy["same"] = all(store.digest(name) == whole.digest(name) for name in whole.names())
        result = {
            "scene": scene.name,
            "resize_max": resize_max,
            "nodes": arguments.nodes,
            "local_s": local,
            "ray_s": on_ray,
            "ray_over_local": {stage: round(on_ray[stage] / local[stage], 2) for stage in local},
            "same_results": same,
            "one_node_killed": lossy,
            "index": many_links(folder),
        }
    print(result)
    if not arguments.dry:
        print(write_result("engine", result))


if __name__ == "__main__":
    main()
