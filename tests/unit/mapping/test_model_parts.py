"""Poses and tracks of models, binary and text; finding models; atomic writes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from geotagged import downward, made_model, survey, write_made

from featkit.core.errors import BadInputError, NotWritableError
from featkit.geometry.poses import camera_centre
from featkit.io import artifact
from featkit.mapping import model as models
from featkit.mapping.covisibility import Tracks, model_components, tracks_of_images
from featkit.mapping.model import is_replaceable_model, read_model, write_model
from featkit.mapping.reference import poses_of_model, tracks_of_model
from featkit.mapping.scene import find_image_folder, find_map, find_model

CENTRES = survey(6)
SEEN = [["00.jpg", "03.jpg"], ["01.jpg", "00.jpg", "05.jpg"], ["02.jpg"]]


@pytest.mark.parametrize("text", [False, True])
def test_poses_and_tracks(tmp_path: Path, text: bool) -> None:
    folder = write_made(made_model(downward(CENTRES), SEEN), tmp_path / "m", text)
    poses = poses_of_model(folder)
    assert {name: camera_centre(pose).tolist() for name, pose in poses.items()} == {
        name: pytest.approx(centre.tolist()) for name, centre in CENTRES.items()
    }
    tracks = tracks_of_model(folder)
    listed = [sorted(tracks.names[i] for i in tracks.images[a:b]) for a, b in pairwise(tracks.starts)]
    assert sorted(listed) == sorted(sorted(track) for track in SEEN)


def test_tracks_of_some_images() -> None:
    tracks = Tracks(("a", "b", "c"), np.array([0, 2, 2, 5]), np.array([0, 2, 1, 2, 0], np.int32))
    some = tracks_of_images(tracks, ["c", "a"])
    assert some.names == ("c", "a")
    assert some.starts.tolist() == [0, 2, 2, 4]
    assert some.images.tolist() == [1, 0, 0, 1]
    assert tracks_of_images(tracks, []).starts.tolist() == [0, 0, 0, 0]


def test_models_are_found_in_all_layouts(tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    (scene / "images").mkdir(parents=True)
    model = write_made(made_model(downward(CENTRES)), scene / "featkit" / "sparse" / "0")
    for given in (scene, scene / "featkit", scene / "featkit" / "sparse", model):
        assert find_model(given) == model
        assert find_image_folder(find_model(given)) == scene.resolve() / "images"
    assert find_image_folder(tmp_path) is None
    with pytest.raises(BadInputError, match="no such folder"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="is a file"):
        find_model(model / "images.bin")
    with pytest.raises(BadInputError, match="no COLMAP model"):
        find_model(scene / "images")


def test_selecting_one_of_several_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = tmp_path / "scene"
    sparse = scene / "featkit" / "sparse"
    for number in range(3):
        write_made(made_model(downward(CENTRES)), sparse / str(number))
    (scene / "featkit" / "features.h5").touch()
    with caplog.at_level("WARNING", "featkit"):
        assert find_model(scene) == sparse / "0"
    assert "the largest of 3 models; choose another with --model (1, 2)" in caplog.text
    for given in (scene, sparse, sparse / "0", sparse / "2"):
        assert find_model(given, 1) == sparse / "1"
        assert find_map(given, number=2).model == sparse / "2"
    assert find_model(sparse / "2") == sparse / "2"
    with pytest.raises(BadInputError, match=r"no model 3 here; its models are 0, 1, 2"):
        find_model(scene, 3)
    own = write_made(made_model(downward(CENTRES)), tmp_path / "own" / "sparse")
    assert find_model(tmp_path / "own", 0) == own
    with pytest.raises(BadInputError, match="no model 1 here; there is only one model"):
        find_model(tmp_path / "own", 1)


def test_maps_by_reconstruct_take_precedence(tmp_path: Path) -> None:
    write_made(made_model(downward(CENTRES)), tmp_path / "sparse")
    made = write_made(made_model(downward(CENTRES)), tmp_path / "featkit" / "sparse" / "0")
    assert find_model(tmp_path) == made
    assert model_components(tmp_path) == [made]


def test_models_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = made_model(downward(CENTRES), SEEN), made_model(downward(survey(4)))
    note = '{"featkit_version": "0.1.0"}'
    out = write_model(first, tmp_path / "out", {"alignment.json": note})
    assert (out / "alignment.json").read_text() == note
    assert is_replaceable_model(out, ("alignment.json",))
    assert not is_replaceable_model(out)
    (tmp_path / ".out.part" / "new").mkdir(parents=True)  # left by a killed run
    (tmp_path / ".out.part" / "new" / "images.bin").write_bytes(b"half")
    with pytest.raises(BadInputError, match=r"\.out\.part: .* remove it yourself"):  # or by somebody else
        write_model(second, out, {})
    (tmp_path / ".out.part" / artifact.MARK).touch()
    plain = models.write_checked

    def cut_off(model: object, folder: Path) -> None:
        """As on a full disk, of which pycolmap says nothing."""

        class Wrote:
            def write(self, path: str) -> None:
                model.write(path)  # type: ignore[attr-defined]
                file = Path(path) / "images.bin"
                file.write_bytes(file.read_bytes()[:-40])

            def __getattr__(self, name: str) -> object:
                return getattr(model, name)

        plain(Wrote(), folder)

    monkeypatch.setattr(models, "write_checked", cut_off)
    with pytest.raises(NotWritableError, match="cannot be written"):
        write_model(second, out, {})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_model(out).num_reg_images() == 6, "the earlier one still stands"
    monkeypatch.undo()
    write_model(second, out, {})
    assert read_model(out).num_reg_images() == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritableError, match="--out"):
        write_model(second, tmp_path / "file" / "out", {})
