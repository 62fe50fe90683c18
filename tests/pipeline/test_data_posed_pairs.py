"""The command `featkit data posed-pairs`, and packs of posed pairs, on a rendered map and on real scenes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit.data.posed_pairs import PosedPairs, read_posed_pairs
from featkit.geometry.epipolar import epipolar_distances
from featkit.mapping.covisibility import read_tracks
from featkit.mapping.model import read_model
from featkit.mapping.scene import find_model

Command = Callable[..., Any]


def largest_distance(pairs: PosedPairs, scene: Path) -> float:
    """Largest distance of the map's points from their epipolar lines, px, over all pairs of the first scene."""
    tracks, cameras = read_tracks(find_model(scene)), pairs.scenes[0]
    worst = 0.0
    for index, (number, *images) in enumerate(pairs.pairs):
        if number:
            continue
        seen = []
        for image in images:
            local = tracks.points @ cameras.rotations[image].T + cameras.translations[image]
            mapped = local @ cameras.intrinsics[image].T
            xy = mapped[:, :2] / mapped[:, 2:]
            inside = (local[:, 2] > 0) & ((xy >= -0.5) & (xy <= cameras.sizes[image] - 0.5)).all(axis=1)
            seen.append(np.where(inside[:, None], xy, np.nan))
        both = np.isfinite(seen[0]).all(axis=1) & np.isfinite(seen[1]).all(axis=1)
        assert both.sum() >= 30
        found = epipolar_distances(pairs.fundamental01(index), seen[0][both], seen[1][both])
        worst = max(worst, *(float(d.max()) for d in found))
    return worst


@pytest.fixture(scope="module")
def posed(mapped_scene: Any, featkit_command: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("posed") / "courtyard"
    options = ("--max-side", 320, "--licence", "CC0", "--json")
    return out, featkit_command("data", "posed-pairs", mapped_scene.folder, "--out", out, *options)


def test_pairs_from_a_map(posed: tuple[Path, Any], mapped_scene: Any) -> None:
    out, ran = posed
    assert ran.code == 0, ran.err
    summary = ran.json()
    pairs = read_posed_pairs(out)
    assert len(pairs) == summary["pairs"] > 5
    assert summary["licences"] == {"scene": "CC0"}
    assert pairs.scenes[0].sizes.max() == 320
    assert "photographs of scene" in ran.err
    assert largest_distance(pairs, mapped_scene.folder) < 1e-3


def test_second_run_does_nothing(posed: tuple[Path, Any], mapped_scene: Any, featkit_command: Command) -> None:
    out, first = posed
    before = {path: path.stat().st_mtime_ns for path in (out / "scene").rglob("*")}
    ran = featkit_command(
        "data", "posed-pairs", mapped_scene.folder, "--out", out, "--max-side", 320, "--licence", "CC0", "--json"
    )
    assert (ran.code, ran.json()) == (0, first.json())
    assert "up to date" in ran.err
    assert before == {path: path.stat().st_mtime_ns for path in (out / "scene").rglob("*")}


def test_pack_of_posed_pairs(
    posed: tuple[Path, Any], mapped_scene: Any, tmp_path: Path, featkit_command: Command
) -> None:
    out, _ = posed
    packed = tmp_path / "p.zip"
    ran = featkit_command("data", "pack", out, mapped_scene.folder / "images", "--out", packed, "--max-side", 200)
    assert ran.code == 0, ran.err
    assert "6 of 6 photographs" in ran.out
    pairs = read_posed_pairs(packed)
    assert len(pairs) == len(read_posed_pairs(out))
    assert pairs.scenes[0].sizes.max() == 200
    assert largest_distance(pairs, mapped_scene.folder) < 1e-3


def test_usage_errors(posed: tuple[Path, Any], mapped_scene: Any, tmp_path: Path, featkit_here: Command) -> None:
    out, scene = posed[0], mapped_scene.folder
    alone = tmp_path / "alone"
    (alone / "sparse").mkdir(parents=True)
    (alone / "images").mkdir()
    model = read_model(find_model(scene))
    for image in sorted(model.reg_image_ids())[1:]:
        model.deregister_frame(model.images[image].frame_id)
    model.write(str(alone / "sparse"))
    wrong = {
        ("posed-pairs", tmp_path, "--out", tmp_path / "x"): (3, "no COLMAP model"),
        ("posed-pairs", alone, "--out", tmp_path / "x"): (3, "1 images"),
        ("posed-pairs", scene, "--out", out): (3, "--overwrite"),
        ("posed-pairs", scene, "--out", tmp_path / "x", "--set", "choice.min_shard=1"): (2, "min_shared"),
        ("posed-pairs", scene, "--out", tmp_path / "x", "--set", "choice.min_shared=99999"): (3, "no two images share"),
        ("pack", out, "--out", tmp_path / "p.zip", "--side", 64): (2, "side"),
        ("pack", out, tmp_path / "gone", "--out", tmp_path / "p.zip"): (2, "pack patches and photographs separately"),
    }
    for arguments, (code, says) in wrong.items():
        ran = featkit_here("data", *arguments)
        assert (ran.code, says in ran.err) == (code, True), (arguments, ran.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone"]


@pytest.mark.parametrize("name", ["chair", "boruszyn"])
def test_real_scenes(name: str, shared_data: Path, tmp_path: Path) -> None:
    """Six photographs of a scene, each with its own lens distortion; points are the map's."""
    from featkit.data.make_posed_pairs import PosedPairsConfig, write_posed_pairs
    from featkit.mapping.covisibility import mapped_scenes

    source = shared_data / "scenes" / name
    if not source.is_dir():
        pytest.skip(f"{source} is not here")
    scene = tmp_path / name
    shutil.copytree(source / "images", scene / "images")
    model = read_model(find_model(source))
    ordered = sorted(model.reg_image_ids(), key=lambda image: model.images[image].name)
    for image in ordered[6:]:
        model.deregister_frame(model.images[image].frame_id)
    (scene / "sparse").mkdir()
    model.write(str(scene / "sparse"))
    write_posed_pairs(PosedPairsConfig(max_side=400, workers=1), mapped_scenes([scene]), tmp_path / "out")
    pairs = read_posed_pairs(tmp_path / "out")
    assert len(pairs) >= 3
    assert largest_distance(pairs, scene) < 1e-3
