"""Stages in shards, run by hand and on a Ray cluster of two nodes: the same results as in one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest
from in_process import refused, results, run
from PIL import Image, ImageOps
from same_stores import assert_same

from featkit.io.artifact import locked
from featkit.io.features import open_features

ITEMS = 6  # photographs of the scene


@pytest.fixture(scope="module")
def local(small_rendered: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one process: images/, feats.h5, pairs.txt, matches.h5, database.db."""
    folder = tmp_path_factory.mktemp("local")
    shutil.copytree(small_rendered.images, folder / "images")
    results("extract", folder / "images", "--out", folder / "feats.h5")
    results("pairs", folder / "feats.h5", "--out", folder / "pairs.txt", "--method", "exhaustive")
    results("match", folder / "feats.h5", folder / "pairs.txt", "--out", folder / "matches.h5")
    verify(folder, folder, folder / "database.db")
    return folder


def verify(images: Path, stores: Path, out: Path, *options: object, planned: tuple[object, ...] = ()) -> Any:
    files = (images / "images", stores / "feats.h5", stores / "pairs.txt", stores / "matches.h5")
    return results(*planned, "verify", *files, "--out", out, "--camera-mode", "single", *options)


@pytest.fixture
def folder(local: Path, tmp_path: Path) -> Path:
    """A separate folder with the photographs and pairs."""
    shutil.copytree(local / "images", tmp_path / "images")
    shutil.copy(local / "pairs.txt", tmp_path / "pairs.txt")
    return tmp_path


def geometries(database: Path) -> dict[str, Any]:
    """Everything that a mapper reads from a database."""
    with pycolmap.Database.open(str(database)) as opened:
        images = {image.image_id: (image.name, image.camera_id) for image in opened.read_all_images()}
        found: dict[str, Any] = {"images": images}
        found["cameras"] = [(c.camera_id, c.model_name, *c.params) for c in opened.read_all_cameras()]
        for image_id in images:
            found[f"keypoints {image_id}"] = opened.read_keypoints(image_id).tolist()
        for pair_id, matches in zip(*opened.read_all_matches(), strict=True):
            ids = pycolmap.pair_id_to_image_pair(pair_id)
            geometry = opened.read_two_view_geometry(*ids)
            matrices = [None if m is None else np.asarray(m).tolist() for m in (geometry.F, geometry.E, geometry.H)]
            found[str(ids)] = (matches.tolist(), geometry.inlier_matches.tolist(), str(geometry.config), matrices)
    return found


def plan_folder(output: Path) -> Path:
    (found,) = output.with_name(f"{output.name}.shards").iterdir()
    return found


def test_job_array_equals_one_process(local: Path, folder: Path) -> None:
    feats, matches, database = folder / "feats.h5", folder / "matches.h5", folder / "database.db"
    planned = results("plan", "--shards", "4", "extract", folder / "images", "--out", feats)
    assert (planned["shards"], planned["items"]) == (4, ITEMS)
    for shard in (3, 0, 2):
        assert results("run", planned["plan"], "--shard", shard)["left"] > 0
    assert results("run", planned["plan"]) == {"out": str(feats), "shards": 4}  # the one that is left, and the index
    assert_same(local / "feats.h5", feats)

    planned = results("plan", "--shards", "3", "match", feats, folder / "pairs.txt", "--out", matches)
    for shard in range(3):
        results("run", planned["plan"], "--shard", shard)
    again = results("match", feats, folder / "pairs.txt", "--out", matches, "--engine", "plan", "--shards", "3")
    assert again["pairs"] == 15
    assert_same(local / "matches.h5", matches)

    planned = verify(folder, folder, database, "--shards", "2", planned=("plan",))
    assert planned["shards"] == 2
    assert not database.exists()
    for shard in range(2):
        results("run", planned["plan"], "--shard", shard)
    verify(folder, folder, database, "--engine", "plan", "--shards", "2")
    assert geometries(database) == geometries(local / "database.db")
    assert not Path(planned["plan"]).exists()  # what was collected is not kept twice


def test_second_run_adds_only_new_items(folder: Path) -> None:
    feats, images = folder / "feats.h5", folder / "images"
    late = sorted(images.iterdir())[-1]
    late.rename(folder / late.name)
    command = ("extract", images, "--out", feats, "--engine", "plan", "--shards", "2")
    results("run", results(*command)["plan"])
    (folder / late.name).rename(images / late.name)
    planned = results(*command)
    assert planned["items"] == 1
    results("run", planned["plan"])
    with open_features(feats) as store:
        assert late.name in store.names()
        assert len(store.names()) == ITEMS
    assert "plan" not in results(*command)  # nothing is left to plan


def test_sharded_pairs_equal_one_process(local: Path, folder: Path) -> None:
    command = ("pairs", local / "feats.h5", "--method", "retrieval", "--num", "2", "--out")
    results(*command, folder / "one.txt")
    planned = results("plan", "--shards", "2", *command, folder / "many.txt")
    assert (planned["shards"], planned["items"]) == (2, ITEMS)
    for shard in range(2):
        results("run", planned["plan"], "--shard", shard)
    results(*command, folder / "many.txt", "--engine", "plan", "--shards", "2")
    assert (folder / "many.txt").read_text() == (folder / "one.txt").read_text()
    assert not (folder / "many.txt.shards").exists()


def test_an_index_of_shards_reads_like_one_file(local: Path, folder: Path) -> None:
    feats = folder / "feats.h5"
    results("run", results("plan", "--shards", "3", "extract", folder / "images", "--out", feats)["plan"])
    with h5py.File(feats, "r") as index, h5py.File(local / "feats.h5", "r") as plain:
        for name in plain:
            np.testing.assert_array_equal(index[name]["descriptors"][()], plain[name]["descriptors"][()])
    moved = folder / "elsewhere"
    moved.mkdir()
    feats.rename(moved / "feats.h5")
    (folder / "feats.h5.shards").rename(moved / "feats.h5.shards")
    assert results("store", "check", moved / "feats.h5")["whole"] == ITEMS


def test_missing_or_damaged_shards(folder: Path) -> None:
    feats = folder / "feats.h5"
    command = ("extract", folder / "images", "--out", feats, "--engine", "plan", "--shards", "3")
    place = Path(results(*command)["plan"])
    refused(run("run", place, "--shard", "3"), 2, "0 to 2")
    results("run", place)
    (place / "0001.h5").rename(folder / "away.h5")
    ended = run("match", feats, folder / "pairs.txt", "--out", folder / "matches.h5")
    refused(ended, 3, "0001.h5", "missing", "store repair")
    refused(run("store", "check", feats, "-q"), 3, "2 of 6 items are broken", "missing")
    cut = (folder / "away.h5").read_bytes()
    (place / "0001.h5").write_bytes(cut[: len(cut) // 2])
    refused(run("store", "check", feats, "-q"), 3, "2 of 6 items are broken")
    refused(run("store", "merge", place / "0000.h5", place / "0001.h5", "-o", folder / "one.h5"), 3, "0001.h5")
    assert not (folder / "one.h5").exists()
    assert results("store", "repair", feats)["kept"] == 4
    again = results(*command)
    assert again["items"] == 2
    results("run", again["plan"])
    assert results("store", "check", feats) == {"kind": "features", "whole": 6, "broken": {}, "shards": 4}


def test_two_sharded_runs_on_one_output(folder: Path) -> None:
    feats = folder / "feats.h5"
    command = ("extract", folder / "images", "--out", feats, "--engine", "plan")
    with locked(feats):
        refused(run(*command), 5, "feats.h5", "in use")
    assert not feats.exists()
    assert results(*command)["items"] == ITEMS


def test_machines_with_other_versions_or_files_are_refused(folder: Path) -> None:
    place = Path(results("plan", "extract", folder / "images", "--out", folder / "feats.h5")["plan"])
    described = json.loads((place / "plan.json").read_text())
    (place / "plan.json").write_text(json.dumps({**described, "cwd": str(folder / "not-here")}))
    refused(run("run", place, "--shard", "0"), 3, "not-here", "same files")
    (place / "plan.json").write_text(json.dumps({**described, "featkit_version": "0.0.1"}))
    refused(run("run", place), 3, "0.0.1", "same version")
    refused(run("run", folder), 3, "no plan here")
    refused(run("plan", "localize", folder), 2, "cannot be planned")
    refused(run("reconstruct", folder, "--engine", "plan"), 2, "works on single stages")


ray = pytest.importorskip("ray")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head node that runs no tasks, and two nodes with one core each."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        started.add_node(num_cpus=1)
        started.add_node(num_cpus=1)
        yield started
    finally:
        started.shutdown()


def begin(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "featkit", *map(str, arguments)]
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "160"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(happened: Callable[[], bool], timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def shards_done(output: Path) -> list[Path]:
    return sorted(output.with_name(f"{output.name}.shards").glob("*/[0-9]*.h5"))


def test_killing_one_of_two_nodes_loses_nothing(cluster: Any, local: Path, folder: Path) -> None:
    feats = folder / "feats.h5"
    options = ("--engine", "ray", "--ray-address", cluster.address)
    running = begin("extract", folder / "images", "--out", feats, *options, "--shards", ITEMS)
    wait_for(lambda: len(shards_done(feats)) >= 1 or running.poll() is not None)
    left = ITEMS - len(shards_done(feats))
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    out, err = running.communicate(timeout=180)
    assert running.returncode == 0, err
    assert left > 0, "all was done before the node was lost"
    assert_same(local / "feats.h5", feats)
    ended = begin("match", feats, folder / "pairs.txt", "--out", folder / "matches.h5", *options, "--shards", 2)
    out, err = ended.communicate(timeout=180)
    assert ended.returncode == 0, err
    assert "15 pairs" in out
    assert_same(local / "matches.h5", folder / "matches.h5")


def test_resources_a_cluster_lacks(cluster: Any, folder: Path) -> None:
    command = ("extract", folder / "images", "--out", folder / "feats.h5", "--engine", "ray", "--ray-address")
    for options, code, words in (
        (("--task-gpus", "1"), 2, ("--task-gpus 1", "has 0 GPUs")),
        (("--task-cpus", "64"), 2, ("--task-cpus 64", "has 1 CPUs")),
        (("--features", "scfeat", "--overwrite", "--device", "cuda"), 2, ("cuda", "shard")),
    ):
        ended = begin(*command, cluster.address, *options, "-q")
        _, err = ended.communicate(timeout=120)
        assert ended.returncode == code, err
        assert all(word in err for word in words), err
    (folder / "images" / "broken.jpg").write_bytes(b"no image")
    ended = begin(*command, cluster.address, "--shards", ITEMS + 1, "--overwrite", "-q")
    _, err = ended.communicate(timeout=120)
    assert ended.returncode == 3, err
    assert "broken.jpg" in err
    assert "shard" in err
    (folder / "images" / "broken.jpg").unlink()
    ended = begin(*command, cluster.address, "--shards", ITEMS, "-q")
    _, err = ended.communicate(timeout=120)
    assert (ended.returncode, err) == (0, "")


def test_a_dead_head_node_is_reported(cluster: Any, folder: Path) -> None:
    feats = folder / "feats.h5"
    command = ("extract", folder / "images", "--out", feats, "--shards", ITEMS, "-q")
    running = begin(*command, "--engine", "ray", "--ray-address", cluster.address)
    wait_for(lambda: len(shards_done(feats)) >= 1 or running.poll() is not None)
    cluster.head_node.kill_gcs_server()
    cluster.head_node.kill_raylet()
    _, err = running.communicate(timeout=120)
    assert running.returncode in (0, 1), err  # 0: all shards were made without it
    if running.returncode:
        assert "head node" in err
        assert "Traceback" not in err
    done = len(shards_done(feats))
    assert done >= 1
    planned = results(*command, "--engine", "plan")
    if "plan" in planned:
        results("run", planned["plan"])
    assert results("store", "check", feats)["whole"] == ITEMS


def test_no_cluster_and_another_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("extract", folder / "images", "--out", folder / "feats.h5", "--engine", "ray", "--ray-address", "x:1")

    def of_another_version(**options: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.9.1")

    monkeypatch.setattr(ray, "init", of_another_version)
    refused(run(*command, "-q"), 3, "x:1", "Version mismatch", "2.9.0")

    def of_nobody(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", of_nobody)
    refused(run(*command, "-q"), 3, "no Ray cluster answers", "ray start --head")


def test_shards_of_other_photographs_or_features_are_not_used(folder: Path) -> None:
    """Photographs replaced in place, and matches made anew between two shards of a verification."""
    feats, matches, images = folder / "feats.h5", folder / "matches.h5", folder / "images"
    pairs = folder / "pairs.txt"
    extract = ("extract", images, "--out", feats, "--engine", "plan", "--shards", "2")
    results("run", results(*extract)["plan"])
    results("match", feats, pairs, "--out", matches)
    database = folder / "d.db"
    planned = verify(folder, folder, database, "--shards", "2", planned=("plan",))
    results("run", planned["plan"], "--shard", 0)
    for path in images.iterdir():
        with Image.open(path) as picture:
            ImageOps.mirror(picture).save(path, quality=95)
    results("run", results(*extract)["plan"])
    results("extract", images, "--out", folder / "alone.h5")
    assert_same(folder / "alone.h5", feats)
    results("match", feats, pairs, "--out", matches, "--overwrite")
    planned = verify(folder, folder, database, "--shards", "2", planned=("plan",))
    for shard in range(2):
        results("run", planned["plan"], "--shard", shard)
    verify(folder, folder, database, "--engine", "plan", "--shards", "2")
    verify(folder, folder, folder / "alone.db")
    assert geometries(database) == geometries(folder / "alone.db")


def test_a_whole_plan_of_a_verification_becomes_a_database(local: Path, folder: Path) -> None:
    for name in ("feats.h5", "matches.h5"):
        shutil.copy(local / name, folder)
    database = folder / "d.db"
    planned = verify(folder, folder, database, "--shards", "2", planned=("plan",))
    results("run", planned["plan"])
    verify(folder, folder, database, "--engine", "plan", "--shards", "2")
    assert geometries(database) == geometries(local / "database.db")
