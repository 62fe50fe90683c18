"""Names composed (NFC) in a list and decomposed (NFD, as macOS has them) on the disk, and the other way round."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from featkit.core.registry import resolve
from featkit.core.types import Pair, Pose
from featkit.features import stage as extraction
from featkit.features.stage import ExtractConfig
from featkit.images.exif import locate
from featkit.images.masks import masks_of
from featkit.io.lists import Spelling, read_pairs, respelled, write_pairs
from featkit.io.matches import open_matches
from featkit.localization.queries import given_pairs
from featkit.mapping.cameras import listed_intrinsics
from featkit.mapping.reference import Reference
from featkit.mapping.scene import usable_images
from featkit.matching import stage as matching

Form = Callable[[str], str]
COMPOSED, DECOMPOSED = (lambda name, form=form: unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
both = pytest.mark.parametrize(("disk", "listed"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)], ids=["NFD", "NFC"])
NAMES = ["Zürich/été.jpg", "Zürich/plain.jpg", "a.jpg"]


@pytest.fixture
def scene(disk: Form, tmp_path: Path) -> tuple[Path, list[str]]:
    """Three photographs under names of one form."""
    rng = np.random.default_rng(0)
    names = [disk(name) for name in NAMES]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        picture = cv2.resize(rng.integers(0, 255, (20, 30), np.uint8), (240, 160), interpolation=cv2.INTER_CUBIC)
        (tmp_path / "images" / name).write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
    return tmp_path / "images", names


@both
def test_lists_of_names(scene: tuple[Path, list[str]], listed: Form, tmp_path: Path) -> None:
    images, names = scene
    other = [listed(name) for name in NAMES]
    assert len({*names, *other}) == 5  # two of three differ
    assert usable_images(images, other) == (sorted(names), [])
    (tmp_path / "cameras.txt").write_text("".join(f"{n} PINHOLE 240 160 200 200 120 80\n" for n in other), "utf-8")
    assert list(listed_intrinsics(tmp_path / "cameras.txt", names)) == names
    (tmp_path / "gps.csv").write_text("".join(f"{n},47.1,8.2\n" for n in other), "utf-8")
    assert list(locate(names, None, tmp_path / "gps.csv").positions) == names
    pose = Pose(np.array([1.0, 0, 0, 0]), np.zeros(3))
    reference = Reference(dict.fromkeys(other, pose), {}, dict.fromkeys(other, 7)).spelled_as(names)
    assert reference.poses.keys() == set(names)
    assert reference.camera_ids == dict.fromkeys(names, 7)
    for name in other:
        (tmp_path / "masks" / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "masks" / f"{name}.png").write_bytes(b"")
    assert list(masks_of(tmp_path / "masks", names)) == names


@both
def test_given_pairs_are_matched(scene: tuple[Path, list[str]], listed: Form, tmp_path: Path) -> None:
    images, names = scene
    features = extraction.run(extraction.extraction_method(ExtractConfig(workers=1)), images, tmp_path / "f.h5")
    pairs = write_pairs(
        tmp_path / "pairs.txt", [Pair(listed(NAMES[0]), listed(NAMES[1])), Pair("a.jpg", listed(NAMES[0]))]
    )
    matches = matching.run(resolve("matcher", "mutual").ready(), features, pairs, tmp_path / "m.h5")
    with open_matches(matches) as store:
        for pair in (Pair(names[0], names[1]), Pair("a.jpg", names[0])):
            store.read(pair)
    written = given_pairs(pairs, features, features, tmp_path / "given.txt")
    assert written is not None
    assert read_pairs(written, directed=True) == [Pair(names[0], names[1]), Pair("a.jpg", names[0])]


def test_a_name_in_both_forms_is_two_names() -> None:
    """As on a disk that tells them apart."""
    one, other = COMPOSED("é.jpg"), DECOMPOSED("é.jpg")
    spelled = Spelling(lambda: [one, other])
    assert (spelled(one), spelled(other)) == (one, other)
    assert respelled({other: 1, one: 2}, lambda: [one]) == {one: 2}
    assert respelled({one: 2, other: 1}, lambda: [one]) == {one: 2}
    assert respelled({other: 1, "b": 3}, lambda: [one]) == {one: 1, "b": 3}
    assert Spelling(lambda: [one])("è.jpg") == "è.jpg"
    assert Spelling(lambda: pytest.fail("asked"))("plain.jpg") == "plain.jpg"
