import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from featkit.core.config import Config
from featkit.core.errors import BadInputError, NotWritableError
from featkit.core.types import Features, Pair
from featkit.io.features import FeatureStore, append_features
from featkit.retrieval import retrieve as module
from featkit.retrieval.retrieve import image_vectors, needs_spill, retrieve
from featkit.retrieval.search import MIB
from featkit.retrieval.vlad import VladConfig, train_codebook

SMALL = VladConfig(num_clusters=8, descriptor_dims=0)


def write(store: FeatureStore, name: str, rows: np.ndarray) -> None:
    n = len(rows)
    store.write(name, Features(np.zeros((n, 2), np.float32), rows, np.ones(n, np.float32), (8, 8)))


def place_rows(place: int, seed: int, n: int = 60, d: int = 16) -> np.ndarray:
    """Descriptors of a photograph of one of some places: those of the place, disturbed."""
    rows = np.random.default_rng(place).normal(size=(n, d))
    rows += 0.2 * np.random.default_rng(1000 + seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[FeatureStore, FeatureStore]]:
    """(queries, database): five places, four photographs each in the database, one query each; one empty image each."""
    with ExitStack() as stack:
        queries = stack.enter_context(append_features(tmp_path / "queries.h5", Config()))
        database = stack.enter_context(append_features(tmp_path / "database.h5", Config()))
        for place in range(5):
            write(queries, f"q{place}", place_rows(place, 99 + place))
            for shot in range(4):
                write(database, f"p{place}/{shot}", place_rows(place, 10 * place + shot))
        for store in (queries, database):
            write(store, "empty", np.empty((0, 16), np.float16))
        yield queries, database


def ask(
    stores: tuple[FeatureStore, FeatureStore], config: VladConfig = SMALL, num: int = 4, seed: int = 0
) -> list[Pair]:
    queries, database = stores
    rng = np.random.default_rng(seed)
    return retrieve(queries, queries.names(), database, database.names(), config, num, rng)


def test_queries_find_their_place_in_the_order_of_the_queries(stores: tuple) -> None:
    pairs = ask(stores)
    assert [p.name0 for p in pairs] == [f"q{place}" for place in range(5) for _ in range(4)]
    assert all(p.name1.startswith(f"p{p.name0[1]}/") for p in pairs)


def test_best_first(stores: tuple) -> None:
    queries, database = stores
    rng = np.random.default_rng(0)
    book = train_codebook(database, database.names(), SMALL, rng)
    with image_vectors(database, database.names(), book, SMALL) as found:
        vectors = dict(zip(found.names, found.vectors.astype(np.int64), strict=True))
    with image_vectors(queries, ["q2"], book, SMALL) as asked:
        query = asked.vectors[0].astype(np.int64)
    expected = sorted(vectors, key=lambda name: (-int(vectors[name] @ query), name))[:6]
    assert [p.name1 for p in ask(stores, num=6) if p.name0 == "q2"] == expected


def test_images_without_keypoints_get_nothing_and_are_never_found(stores: tuple) -> None:
    pairs = ask(stores, num=100)
    assert len(pairs) == 5 * 20
    assert not any("empty" in (p.name0, p.name1) for p in pairs)
    _, database = stores
    rng = np.random.default_rng(0)
    with pytest.raises(BadInputError, match="keypoint"):
        retrieve(database, database.names(), database, ["empty"], SMALL, 3, rng)


def test_an_image_is_never_paired_with_its_own_name(stores: tuple) -> None:
    _, database = stores
    names = database.names()
    for asked in (names, names[:7]):  # the whole database, and some of it as queries
        pairs = retrieve(database, asked, database, names, SMALL, 30, np.random.default_rng(0))
        assert len(pairs) == (len(asked) - ("empty" in asked)) * 19
        assert all(p.name0 != p.name1 for p in pairs)


def test_the_seed_decides_and_the_backend_does_not(
    stores: tuple,
) -> None:
    again = VladConfig(num_clusters=8, descriptor_dims=0, backend="torch")
    assert again.fingerprint() == SMALL.fingerprint()
    assert ask(stores, num=20) == ask(stores, again, num=20)
    assert ask(stores, num=20) != ask(stores, num=20, seed=1)


def test_the_codebook_knows_the_database_only(stores: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[FeatureStore, Sequence[str]]] = []

    def spy(store: FeatureStore, names: Sequence[str], *rest: object, **more: object) -> object:
        trained.append((store, list(names)))
        return train_codebook(store, names, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train_codebook", spy)
    ask(stores)
    assert trained == [(stores[1], stores[1].names())]


def test_spilling_changes_nothing_and_leaves_nothing(
    stores: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, database = stores
    plain = ask(stores, num=20)
    folder = tmp_path / "spill"
    folder.mkdir()
    opened = []
    real = tempfile.TemporaryFile

    def spy(**kwargs: object) -> object:
        opened.append(kwargs["dir"])
        return real(**kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(module.tempfile, "TemporaryFile", spy)
    monkeypatch.setattr(module, "needs_spill", lambda *_: True)
    spilled = retrieve(
        queries,
        queries.names(),
        database,
        database.names(),
        SMALL,
        20,
        np.random.default_rng(0),
        spill_folder=folder,
    )
    assert opened == [folder, folder]
    assert spilled == plain
    assert os.listdir(folder) == []


def test_spilled_vectors_are_mapped_not_read(stores: tuple, tmp_path: Path) -> None:
    _, database = stores
    book = train_codebook(database, database.names(), SMALL, np.random.default_rng(0))
    names = database.names()
    with (
        image_vectors(database, names, book, SMALL, spill=True, folder=tmp_path) as spilled,
        image_vectors(database, names, book, SMALL) as held,
    ):
        assert isinstance(spilled.vectors, np.memmap)
        assert spilled.names == held.names == [n for n in names if n != "empty"]
        assert np.array_equal(spilled.vectors, held.vectors)
    with image_vectors(database, ["empty"], book, SMALL, spill=True, folder=tmp_path) as none:
        assert none.vectors.shape == (0, book.dims)


def test_the_default_budget_holds_100000_images() -> None:
    assert not needs_spill(100_000, 64 * 64, 20, VladConfig().memory_budget_mb)
    assert needs_spill(100_000, 64 * 64, 20, 100_000 * 64 * 64 * 2 // MIB)  # the vectors alone


def test_no_space_to_spill_is_not_writable(stores: tuple, tmp_path: Path) -> None:
    _, database = stores
    book = train_codebook(database, database.names(), SMALL, np.random.default_rng(0))
    with (
        pytest.raises(NotWritableError, match="memory_budget_mb"),
        image_vectors(database, ["p0/0"], book, SMALL, spill=True, folder=tmp_path / "missing"),
    ):
        pass


def test_queries_of_another_method_are_refused(stores: tuple, tmp_path: Path) -> None:
    _, database = stores
    with append_features(tmp_path / "other.h5", Config()) as other:
        write(other, "x", np.ones((4, 8), np.float16))
        rng = np.random.default_rng(0)
        with pytest.raises(BadInputError, match=r"'x'.*length 8.*16"):
            retrieve(other, ["x"], database, database.names(), SMALL, 3, rng)
