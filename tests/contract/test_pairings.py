"""Contract of all registered pairings; see featkit/pairing/stage.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from geotagged import downward, made_model, photograph, write_made

from featkit.core.config import Config
from featkit.core.errors import UsageError
from featkit.core.registry import resolve
from featkit.core.types import Features, Pair
from featkit.io.features import FeatureStore, append_features, open_features
from featkit.pairing.stage import ReadsSources, Sources

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
METHODS = sorted(p.stem for p in CONFIGS.glob("*.yaml") if "pairing" in yaml.safe_load(p.read_text(encoding="utf-8")))
CHANGED = {"sequential": {"overlap": 1, "loop_closure": 2, "loop_every": 2, "loop_gap": 1}}  # and as it is
NAMES = [f"dir {i % 2}/img{i}.jpg" for i in range(12)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    path = tmp_path_factory.mktemp("pairings") / "features.h5"
    rng = np.random.default_rng(0)
    with append_features(path, Config()) as writing:
        for name in NAMES:
            rows = np.abs(rng.normal(size=(40, 32))).astype(np.float16)
            writing.write(name, Features(np.zeros((40, 2), np.float32), rows, np.ones(40, np.float32), (9, 9)))
    with open_features(path) as reading:
        yield reading


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Photographs with positions, and a model of them, for pairings that use these."""
    folder = tmp_path_factory.mktemp("sources")
    centres = {name: np.array([5.0 * number, 0, 50]) for number, name in enumerate(NAMES)}
    for number, name in enumerate(NAMES):
        photograph(folder / "images" / name, (10.0, 20.0 + 1e-4 * number))
    model = made_model(downward(centres), [NAMES[i : i + 2] for i in range(len(NAMES) - 1)])
    return Sources(folder / "images", write_made(model, folder / "model"))


@pytest.fixture(params=[*METHODS, *(f"{name} changed" for name in CHANGED)])
def method(request: pytest.FixtureRequest, sources: Sources) -> Any:
    name, _, changed = request.param.partition(" ")
    made = resolve("pairing", name, CHANGED[name] if changed else None, device="cpu").build()
    if isinstance(made, ReadsSources):
        made.sources = sources
    return made


def pairs(method: Any, store: FeatureStore, names: list[str], seed: int = 0) -> list[Pair]:
    return method.pairs(names, store, np.random.default_rng(seed))


def test_attributes(method: Any) -> None:
    assert issubclass(type(method).Config, Config)
    assert isinstance(method.needs_features, bool)
    assert method.scratch_folder is None
    type(method).Config()


def test_each_pair_once_and_none_with_itself(method: Any, store: FeatureStore) -> None:
    found = pairs(method, store, NAMES)
    assert len(found) >= len(NAMES) - 1
    assert len({pair.key() for pair in found}) == len(found)
    assert all(pair.name0 != pair.name1 for pair in found)
    assert {name for pair in found for name in pair.key()} == set(NAMES)


def test_only_given_names_are_paired(method: Any, store: FeatureStore) -> None:
    some = NAMES[:5]
    assert {name for pair in pairs(method, store, some) for name in pair.key()} <= set(some)


def test_the_same_seed_gives_the_same_pairs(method: Any, store: FeatureStore) -> None:
    names = list(NAMES)
    first = pairs(method, store, names, 7)
    assert names == NAMES, "the list is left as it was"
    pairs(method, store, NAMES[:4], 1)
    assert pairs(method, store, NAMES, 7) == first


def test_two_images_give_one_pair(method: Any, store: FeatureStore) -> None:
    assert [pair.key() for pair in pairs(method, store, NAMES[:2])] == [Pair(*NAMES[:2]).key()]


def test_a_name_given_twice_counts_once(method: Any, store: FeatureStore) -> None:
    assert {p.key() for p in pairs(method, store, NAMES + NAMES[:3])} == {p.key() for p in pairs(method, store, NAMES)}


def test_other_inputs_change_the_fingerprint(method: Any) -> None:
    if not isinstance(method, ReadsSources):
        return
    first = method.digest(NAMES)
    assert len(first) == 16
    assert method.digest(NAMES[:4]) != first
    assert method.digest(NAMES) == first
    method.sources = Sources()
    with pytest.raises(UsageError, match="--"):
        type(method)(method.config, "cpu").digest(NAMES)


def test_features_are_required_when_needed(method: Any) -> None:
    if not method.needs_features:
        assert method.pairs(NAMES, None, np.random.default_rng(0))
        return
    with pytest.raises(UsageError, match="features"):
        method.pairs(NAMES, None, np.random.default_rng(0))
