"""Rendering a scene into a folder with other files: foreign files are never overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from featkit.core.config import make
from featkit.core.errors import BadInputError
from featkit.demo.scene import RenderedConfig, render_scene
from featkit.images.listing import marked

SMALL = {"num_map": 2, "num_queries": 1, "width": 64, "height": 48, "texel_m": 0.05, "supersampling": 1}
MINE = b"a photograph of mine"


def config(**changes: object) -> RenderedConfig:
    return make(RenderedConfig, {**SMALL, **changes})


def interrupt(folder: Path) -> None:
    """The files of a killed run: its pictures, and a record without sizes."""
    record = json.loads((folder / "truth" / "scene.json").read_text())
    record |= {"fingerprint": "", "bytes": dict.fromkeys(record["bytes"], -1)}
    (folder / "truth" / "scene.json").write_text(json.dumps(record))
    for file in (folder / "truth").glob("*.txt"):
        file.unlink()


@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_the_stamp_changes_no_pixel(image_format: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    encoded = cv2.imencode(f".{image_format}", image)[1].tobytes()
    found = cv2.imdecode(np.frombuffer(marked(encoded), np.uint8), cv2.IMREAD_COLOR)
    assert marked(encoded) != encoded
    np.testing.assert_array_equal(found, cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR))


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_foreign_photographs_are_kept(killed: bool, image_format: str, tmp_path: Path) -> None:
    render_scene(config(image_format=image_format), tmp_path)
    if killed:
        interrupt(tmp_path)
    mine = tmp_path / "images" / f"0001.{image_format}"
    mine.write_bytes(MINE)
    for changed in ({"seed": 3}, {}):
        with pytest.raises(BadInputError, match=f"0001.{image_format}: "):
            render_scene(config(image_format=image_format, **changed), tmp_path)
        assert mine.read_bytes() == MINE
    render_scene(config(image_format=image_format, num_map=1), tmp_path)  # without a picture of that name
    assert mine.read_bytes() == MINE


@pytest.mark.parametrize("killed", [False, True])
def test_a_rendered_scene_is_replaced_by_another(killed: bool, tmp_path: Path) -> None:
    render_scene(config(num_map=3), tmp_path)
    if killed:
        interrupt(tmp_path)
    (tmp_path / "images" / "holiday.jpg").write_bytes(MINE)
    scene = render_scene(config(seed=3), tmp_path / "apart")
    render_scene(config(seed=3), tmp_path)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["0000.jpg", "0001.jpg", "holiday.jpg"]
    for name in scene.poses:
        assert (tmp_path / "images" / name).read_bytes() == (scene.images / name).read_bytes()
    assert (tmp_path / "truth" / "poses.txt").read_text() == scene.poses_file.read_text()
