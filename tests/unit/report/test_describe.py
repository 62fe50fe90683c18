"""`featkit info`: files of other programs are counted, and what made a file is said where it can be known."""

import json
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from safetensors.numpy import save_file

from featkit.core.config import Config
from featkit.core.errors import BadInputError
from featkit.core.types import Pose
from featkit.io.artifact import write_stamp
from featkit.io.lists import write_poses
from featkit.report import describe as module
from featkit.report.describe import describe, description_lines


class Made(Config):
    value: int = 3


def test_matches_by_hloc_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "matches.h5"
    with h5py.File(path, "w") as file:
        for key, matches in {"a.jpg/b.jpg": [0, -1, 2], "a.jpg/d-c.jpg": [-1, -1], "b.jpg/d-c.jpg": [1]}.items():
            file[f"{key}/matches0"] = np.array(matches, np.int16)
            file[f"{key}/matching_scores0"] = np.ones(len(matches), np.float16)
    found = describe(str(path))
    assert (found["kind"], found["pairs"], found["matches"]) == ("matches", 3, 3)
    with h5py.File(path, "a") as file:
        file["a.jpg/torn/matches0/inner"] = 1
    with pytest.raises(BadInputError, match="is missing, or not an array"):
        describe(str(path))


def test_a_model_says_what_made_it(tmp_path: Path) -> None:
    model = tmp_path / "sparse" / "0"
    model.mkdir(parents=True)
    pycolmap.synthesize_dataset(pycolmap.SyntheticDatasetOptions()).write(model)
    assert "fingerprint" not in describe(str(model))
    write_stamp(tmp_path / "sparse.json", Made(), "inputs", kind="map", models=1)
    found = describe(str(model))
    assert (found["kind"], found["fingerprint"], found["config"]) == ("model", Made().fingerprint(), {"value": 3})


def test_poses_say_what_made_them(tmp_path: Path) -> None:
    poses = tmp_path / "poses.txt"
    write_poses(poses, {"q.jpg": Pose(np.array([1.0, 0, 0, 0]), np.zeros(3))})
    assert "fingerprint" not in describe(str(poses))
    write_stamp(tmp_path / "poses.json", Made(), "", queries=2, localized=1, results=[{"name": "q.jpg"}])
    found = describe(str(poses))
    assert (found["kind"], found["poses"], found["localized"], found["queries"]) == ("poses", 1, 1, 2)
    assert (found["fingerprint"], found["config"]) == (Made().fingerprint(), {"value": 3})
    assert found["featkit_version"]
    assert "results" not in found
    write_stamp(tmp_path / "poses.json", Made(), "", queries=9, localized=7)  # of other poses than these
    assert "fingerprint" not in describe(str(poses))


def test_weights_with_their_entry_in_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "resources"
    folder.mkdir()
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "net.safetensors")
    monkeypatch.setattr(module, "resource_dir", lambda name: folder)
    assert "manifest" not in describe(str(tmp_path / "net.safetensors"))
    for manifest in ("{", "[]", '{"weights": [1]}'):
        (folder / "manifest.json").write_text(manifest)
        assert "manifest" not in describe(str(tmp_path / "net.safetensors"))
    entry = {"file": "net.safetensors", "sha256": "ab", "licence": "Apache-2.0"}
    (folder / "manifest.json").write_text(json.dumps({"weights": [{"file": "other.safetensors"}, entry]}))
    found = describe(str(tmp_path / "net.safetensors"))
    assert found["manifest"] == entry
    assert "  licence: Apache-2.0" in description_lines(found)
