"""From photographs with GPS positions to a map in metres: pairs by GPS, map, alignment, compared with the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geotagged import ORIGIN, geodetic

from featkit.geometry.poses import camera_centre
from featkit.io.lists import read_pairs, read_poses
from featkit.mapping.model import read_model


def test_a_map_in_metres(small_rendered: Any, rendered_copy: Path, featkit_command: Callable[..., Any]) -> None:
    truth = {n: camera_centre(p) for n, p in read_poses(rendered_copy / "truth" / "poses.txt").items()}
    places = geodetic(np.array(list(truth.values())))
    listed = rendered_copy / "gps.csv"
    rows = (f"{name},{a:.12f},{b:.12f},{c:.6f}\n" for name, (a, b, c) in zip(truth, places, strict=True))
    listed.write_text("name,latitude,longitude,altitude\n" + "".join(rows))
    params = ",".join(map(str, small_rendered.intrinsics.params))
    camera = ("--camera-model", "PINHOLE", "--camera-params", params, "--camera-mode", "single", "--fix-intrinsics")
    ran = featkit_command(
        "reconstruct", rendered_copy, "--pairs", "gps", "--gps-file", listed, "--set", "pairing.num_matched=3",
        *camera, "--max-keypoints", 1500, "--json", "--quiet",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json()["registered"] == 6
    assert len(read_pairs(rendered_copy / "featkit" / "pairs.txt")) < 15
    assert ran.json()["config"]["pairing"]["num_matched"] == 3
    origin = ",".join(map(repr, ORIGIN))
    out = rendered_copy / "metric"
    ran = featkit_command("align", rendered_copy, "--gps-file", listed, "--origin", origin, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["used"] == 6
    assert ran.json()["residual_m"]["max"] < 0.02
    for image in read_model(out).images.values():
        assert image.projection_center() == pytest.approx(truth[image.name], abs=0.02)
