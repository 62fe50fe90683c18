"""Dense points without CUDA: the stereo step is replaced by known depth maps, the rest is COLMAP's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from featkit.core.errors import FeatkitError
from featkit.mapping import export
from featkit.mapping.export import DenseConfig, count_dense_points

pytestmark = pytest.mark.slow
SIZE = 60  # px, longer side after undistortion


def flat_depths(calls: list[Any], workspace: str, options: Any) -> None:
    """Depth maps of a wall in front of every camera, in COLMAP's format."""
    calls.append(options)
    folder = Path(workspace)
    model = pycolmap.Reconstruction(str(folder / "sparse"))
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        assert max(camera.width, camera.height) == SIZE
        shape = (camera.height, camera.width)
        normals = np.stack([np.zeros(shape), np.zeros(shape), -np.ones(shape)])
        for kind, values in (("depth_maps", np.full((1, *shape), 8.0)), ("normal_maps", normals)):
            header = f"{camera.width}&{camera.height}&{len(values)}&".encode()
            path = folder / "stereo" / kind / f"{image.name}.photometric.bin"
            path.write_bytes(header + values.astype(np.float32).tobytes())


def test_points_are_computed_once(mapped_scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(export.pycolmap, "patch_match_stereo", lambda path, options: flat_depths(calls, path, options))
    config = DenseConfig(max_image_size=SIZE, min_fused_pixels=1)
    places = (mapped_scene.folder / "images", mapped_scene.output / "sparse" / "0", tmp_path / "dense")
    points = count_dense_points(config, *places, "a model")
    assert points > 1000
    with (tmp_path / "dense" / "fused.ply").open("rb") as file:
        assert f"element vertex {points}".encode() in file.read(400)
    assert not (tmp_path / "dense" / "stereo").exists()
    assert not calls[0].geom_consistency
    assert count_dense_points(config, *places, "a model") == points
    assert len(calls) == 1
    fewer = count_dense_points(config.model_copy(update={"min_fused_pixels": 3}), *places, "a model")
    assert fewer < points
    count_dense_points(config, *places, "another model")
    assert len(calls) == 3


def test_without_cuda_the_error_says_so(mapped_scene: Any, tmp_path: Path) -> None:
    if export.dense_is_possible():
        pytest.skip("this pycolmap has CUDA")
    places = (mapped_scene.folder / "images", mapped_scene.output / "sparse" / "0", tmp_path / "dense")
    with pytest.raises(FeatkitError, match="CUDA"):
        count_dense_points(DenseConfig(max_image_size=SIZE), *places, "a model")
    assert not (tmp_path / "dense" / "dense.json").exists()
