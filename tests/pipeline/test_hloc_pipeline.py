"""hloc's unmodified Aachen v1.1 pipeline with featkit's features and matches. Needs the real hloc."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from featkit import hloc as plug_in
from featkit.evaluation.metrics import pose_error
from featkit.io.lists import read_poses
from featkit.mapping.align import transform_pose, truth_from_map
from featkit.mapping.model import read_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hloc") is None, reason="hloc is not installed: " + plug_in.INSTALL
)
RETRIEVAL = "hloc.extractors.thumbnail"


def layout(scene: Any, dataset: Path) -> None:
    """A mapped scene in the layout of Aachen v1.1: images_upright/, 3D-models/aachen_v_1_1, lists of queries."""
    shutil.copytree(scene.folder / "images", dataset / "images_upright")
    shutil.copytree(scene.folder / "queries", dataset / "images_upright" / "query")
    shutil.copytree(scene.output / "sparse" / "0", dataset / "3D-models" / "aachen_v_1_1")
    known = scene.rendered.intrinsics
    camera = " ".join(map(str, (known.model, known.width, known.height, *known.params)))
    names = sorted(path.name for path in (scene.folder / "queries").iterdir())
    (dataset / "queries").mkdir()
    for time, name in zip(("day", "night"), names, strict=True):
        path = dataset / "queries" / f"{time}_time_queries_with_intrinsics.txt"
        path.write_text(f"query/{name} {camera}\n")


def register_thumbnails() -> None:
    """Replaces NetVLAD, whose weights would be downloaded: the image reduced to a very small size."""
    import torch

    base = importlib.import_module("hloc.utils.base_model").BaseModel

    class Thumbnail(base):
        __module__ = RETRIEVAL
        required_inputs = ["image"]  # noqa: RUF012

        def _init(self, conf: Any) -> None: ...

        def _forward(self, data: Any) -> Any:
            small = torch.nn.functional.adaptive_avg_pool2d(data["image"].mean(1, keepdim=True), 12).flatten(1)
            small = small - small.mean()
            return {"global_descriptor": small / small.norm()}

    module = ModuleType(RETRIEVAL)
    module.Thumbnail = Thumbnail  # type: ignore[attr-defined]
    sys.modules[RETRIEVAL] = module
    extract_features = importlib.import_module("hloc.extract_features")
    extract_features.confs["netvlad"] = {
        "output": "global-feats-thumbnail",
        "model": {"name": "thumbnail"},
        "preprocessing": {"grayscale": True},
    }


def test_aachen_v11(mapped_scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pycolmap

    layout(mapped_scene, tmp_path / "aachen")
    plug_in.register({"superpoint_max": "featkit-rootsift", "superglue": "featkit-mutual"})
    register_thumbnails()
    triangulation = importlib.import_module("hloc.triangulation")
    if pycolmap.__version__ in plug_in.NO_POINTS:  # what the plug-in's warning advises
        advised = functools.partial(triangulation.main, estimate_two_view_geometries=True)
        monkeypatch.setattr(triangulation, "main", advised)
    out = tmp_path / "out"
    words = ["--dataset", tmp_path / "aachen", "--outputs", out, "--num_covis", 5, "--num_loc", 5]
    plug_in.run_command("pipelines.Aachen_v1_1.pipeline", [str(word) for word in words])
    (written,) = out.glob("Aachen-v1.1_hloc_*.txt")
    assert (out / "feats-featkit-rootsift.h5").is_file(), "featkit's features, under their own name"
    similarity = truth_from_map(read_model(mapped_scene.output / "sparse" / "0"), mapped_scene.rendered.poses)
    poses = read_poses(written)
    assert len(poses) == 2
    for name, pose in poses.items():
        truth = mapped_scene.rendered.query_poses[name.rpartition("/")[2]]
        centre, rotation = pose_error(transform_pose(pose, similarity), truth)
        assert centre < 0.02
        assert rotation < 0.3
