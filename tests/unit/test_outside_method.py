"""A method from outside the package, by its class or an entry point: the example of docs/extending.md, as it stands."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from featkit.core.errors import UsageError
from featkit.core.registry import class_of, resolve
from featkit.core.types import Pair
from featkit.io.features import open_features
from featkit.io.matches import open_matches
from tests.in_process import refused, results, run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
SHIFT = (40, 24)  # px, right and down


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The yaml of the page, its module on Python's path."""
    (tmp_path / "my_features").mkdir()
    (tmp_path / "my_features" / "orb.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "orb.yaml").write_text(block("yaml"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "orb.yaml"
    for name in [name for name in sys.modules if name.startswith("my_features")]:
        del sys.modules[name]


def two_crops(folder: Path) -> Path:
    """Two pictures of one random texture: what is at (x, y) of the second is at (x, y) + SHIFT of the first."""
    coarse = np.random.default_rng(0).random((60, 80)).astype(np.float32) * 255
    texture = cv2.resize(coarse, (480, 360), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), texture[:300, :400])
    cv2.imwrite(str(folder / "b.png"), texture[SHIFT[1] : SHIFT[1] + 300, SHIFT[0] : SHIFT[0] + 400])
    return folder


def test_the_example_extracts_and_matches(example: Path, tmp_path: Path) -> None:
    images, store = two_crops(tmp_path / "images"), tmp_path / "orb.h5"
    results("extract", images, "--out", store, "--features", example, "--max-keypoints", 400)
    (tmp_path / "pairs.txt").write_text("a.png b.png\n", encoding="utf-8")
    results("match", store, tmp_path / "pairs.txt", "--out", tmp_path / "matches.h5")
    with open_features(store) as features, open_matches(tmp_path / "matches.h5") as matches:
        a, b = features.read("a.png"), features.read("b.png")
        index = matches.read(Pair("a.png", "b.png")).matches0
    assert 0 < len(a) <= 400  # --max-keypoints reaches the class
    assert a.descriptors.dtype == np.uint8
    moved = a.keypoints[index >= 0] - b.keypoints[index[index >= 0]]
    right = (np.abs(moved - SHIFT) < 2).all(axis=1)
    assert len(right) > 100
    assert right.mean() > 0.95


def test_an_entry_point_gives_the_class_a_name(example: Path, tmp_path: Path) -> None:
    line = next(line for line in block("toml").splitlines() if line.startswith("orb = "))
    (tmp_path / "my_features-1.dist-info").mkdir()
    written = line.replace('"', "")
    (tmp_path / "my_features-1.dist-info" / "METADATA").write_text("Name: my_features\nVersion: 1\n")
    (tmp_path / "my_features-1.dist-info" / "entry_points.txt").write_text(f"[featkit.extractors]\n{written}\n")
    example.write_text("extractor: orb\n", encoding="utf-8")
    method = resolve("extractor", str(example))
    assert method.cls.__name__ == "Orb"
    assert method.own == method.cls.Config()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("my_nowhere.orb:Orb", "No module named 'my_nowhere'"),
        ("my_features.orb:Nothing", "has no attribute 'Nothing'"),
        ("my_features.orb:cv2", "not a class with a Config"),
        (":Orb", "install its package"),
    ],
)
def test_a_wrong_class_is_one_line(example: Path, tmp_path: Path, target: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        class_of("extractor", target)
    example.write_text(f'extractor: "{target}"\n', encoding="utf-8")
    ran = run("extract", two_crops(tmp_path / "images"), "--out", tmp_path / "x.h5", "--features", example)
    refused(ran, 2, reason, target)
