"""Text that people and programs write: pairs, queries, reference poses, configurations, folders of images."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featkit.core.config import Config, load_pipeline
from featkit.core.errors import BadInputError, FeatkitError
from featkit.core.registry import KINDS, class_of, resolve
from featkit.images.listing import list_images
from featkit.io.atomic import read_lines, read_stamp
from featkit.io.lists import describe_pairs, read_camera, read_intrinsics_list, read_pairs, read_poses
from featkit.mapping.cameras import CameraConfig
from featkit.mapping.reference import read_reference

pytestmark = pytest.mark.slow
CASES = settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
RIGHT = {
    "pairs": "a.jpg b.jpg\nc/d.jpg\ta b.jpg\n",
    "queries": "q/a b.jpg OPENCV 640 480 500 500 320 240 0.1 0 0 0\nb.jpg PINHOLE 640 480 500 500 320 240\n",
    "poses": "a.jpg 1 0 0 0 0 0 0\nb c.jpg 0.7071 0 0.7071 0 1.5 -2e3 0.25\n",
    "camera": "SIMPLE_RADIAL 640 480 500 320 240 0.01\n",
}
READERS: dict[str, Any] = {
    "pairs": lambda path: [read_pairs(path), read_pairs(path, directed=True)],
    "queries": read_intrinsics_list,
    "poses": read_poses,
    "camera": read_camera,
}
MARKS = st.sampled_from(["\0", "nan", "\t", "\n", "#"])
EDIT = st.tuples(st.floats(0, 1), st.integers(0, 6), st.text(max_size=4) | MARKS)


@pytest.mark.parametrize("kind", RIGHT)
@CASES
@given(edits=st.lists(EDIT, max_size=5), ending=st.binary(max_size=3))
def test_a_right_list_with_mistakes_in_it(
    kind: str, tmp_path: Path, edits: list[tuple[float, int, str]], ending: bytes
) -> None:
    text = RIGHT[kind]
    for where, removed, put in edits:
        start = int(where * len(text))
        text = text[:start] + put + text[start + removed :]
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass") + ending)
    try:
        READERS[kind](path)
    except BadInputError as error:
        assert "\n" not in str(error).strip()  # noqa: PT017
        assert "list.txt" in str(error)  # noqa: PT017


@CASES
@given(poses=st.text(alphabet="ab. 0123456789-e\t\n", max_size=60), camera=st.text(max_size=30))
def test_any_reference_of_poses(tmp_path: Path, poses: str, camera: str) -> None:
    (tmp_path / "poses.txt").write_text(f"a.jpg 1 0 0 0 0 0 0\n{poses}", encoding="utf-8")
    (tmp_path / "camera.txt").write_text(f"PINHOLE 640 480 {camera}", encoding="utf-8", errors="replace")
    with contextlib.suppress(FeatkitError):
        known = read_reference(tmp_path / "poses.txt", CameraConfig())
        assert all(np.isfinite(pose.tvec).all() for pose in known.poses.values())


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@CASES
@given(kind=st.sampled_from(sorted(KINDS)), data=st.data())
def test_any_value_of_a_configuration(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    """Every field of everything in the registry, with values of any type."""
    name = data.draw(st.sampled_from(sorted(KINDS[kind])))
    fields = sorted(class_of(kind, name).Config.model_fields)
    values = data.draw(st.dictionaries(st.sampled_from(fields) if fields else st.text(max_size=3), PLAIN, max_size=3))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({kind: name, **values}, allow_unicode=True), encoding="utf-8")
    with contextlib.suppress(FeatkitError):
        config = resolve(kind, str(path)).own
        assert isinstance(config, Config)
        assert len(config.fingerprint()) == 16


@CASES
@given(values=st.dictionaries(st.sampled_from(["extract", "pairs", "matching", "map", "seed", "x"]), PLAIN, max_size=4))
def test_any_settings_of_a_map(values: dict[str, Any]) -> None:
    from featkit.core.config import make

    with contextlib.suppress(FeatkitError):
        make(load_pipeline("sfm").SfmConfig, values).fingerprint()


NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@CASES
@given(names=st.lists(NAME, max_size=4))
def test_any_names_in_a_folder(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        with contextlib.suppress(OSError):  # "." and "..", or too many bytes
            (folder / f"{name}.jpg").touch()
    try:
        listed = list_images(folder)
    except BadInputError:
        return
    assert listed == sorted(listed)
    assert all((folder / name).is_file() for name in listed)


@CASES
@given(data=st.binary(max_size=60) | PLAIN.map(repr).map(str.encode))
def test_any_description_beside_a_result(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "pairs.json").write_bytes(data)
    assert describe_pairs(tmp_path / "pairs.txt") is None
    stamp = read_stamp(tmp_path / "pairs.json")
    assert stamp is None or isinstance(stamp, dict)
    with contextlib.suppress(BadInputError):
        list(read_lines(tmp_path / "pairs.json"))
