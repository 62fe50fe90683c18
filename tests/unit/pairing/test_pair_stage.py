import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featkit.core.config import Config
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.core.registry import PAIRINGS, Method, resolve
from featkit.core.types import Features
from featkit.io import artifact
from featkit.io.features import append_features, open_features
from featkit.io.lists import describe_pairs, read_pairs
from featkit.pairing import stage
from featkit.pairing.by_name import Exhaustive, Sequential, SequentialConfig
from featkit.pairing.by_retrieval import Retrieval, RetrievalConfig, each_once
from featkit.pairing.stage import AutoConfig, auto_method, choose, image_names, run
from featkit.retrieval.vlad import VladConfig

SMALL = RetrievalConfig(num_matched=2, vlad=VladConfig(num_clusters=4, descriptor_dims=0))


class OtherConfig(Config):
    value: int = 1


def folder(path: Path, count: int) -> Path:
    path.mkdir(exist_ok=True)
    for index in range(count):
        (path / f"img{index}.jpg").write_bytes(b"")
    return path


def features(path: Path, counts: list[int], config: Config | None = None, overwrite: bool = False) -> Path:
    """features.h5 of images with so many random descriptors each."""
    rng = np.random.default_rng(len(counts))
    with append_features(path, config or Config(), overwrite=overwrite) as store:
        for index, n in enumerate(counts):
            rows = rng.normal(size=(n, 8)).astype(np.float16)
            store.write(
                f"img{index}.jpg",
                Features(np.zeros((n, 2), np.float32), rows, np.ones(n, np.float32), (9, 9)),
            )
    return path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that really made pairs, in order."""
    calls: list[str] = []
    for cls in (Exhaustive, Sequential, Retrieval):
        plain = cls.pairs

        def spy(self, names, store, generator, plain=plain):  # type: ignore[no-untyped-def]
            calls.append(type(self).__name__)
            return plain(self, names, store, generator)

        monkeypatch.setattr(cls, "pairs", spy)
    return calls


@pytest.mark.parametrize("name", sorted(set(PAIRINGS) - {"gps", "poses", "covisible"}))  # which read more
def test_every_registered_pairing_runs_by_its_name(tmp_path: Path, name: str) -> None:
    output = run(name, features(tmp_path / "features.h5", [40] * 5), tmp_path / "out" / "pairs.txt")
    pairs = read_pairs(output)
    with open_features(tmp_path / "features.h5") as store:
        assert {n for p in pairs for n in (p.name0, p.name1)} == set(store.names())
    assert len(output.read_text().splitlines()) == len(pairs)  # read_pairs drops what is there twice


def test_a_folder_of_images_is_enough_without_features(tmp_path: Path) -> None:
    output = run("exhaustive", folder(tmp_path / "images", 4), tmp_path / "pairs.txt")
    assert len(read_pairs(output)) == 6


def test_done_work_is_skipped(tmp_path: Path, made: list[str]) -> None:
    images, output = folder(tmp_path / "images", 4), tmp_path / "pairs.txt"
    for _ in range(2):
        run("exhaustive", images, output)
    assert made == ["Exhaustive"]
    run("exhaustive", images, output, overwrite=True)
    assert made == ["Exhaustive"] * 2


def test_new_images_another_seed_and_another_configuration_are_made_anew(tmp_path: Path, made: list[str]) -> None:
    images, output = folder(tmp_path / "images", 4), tmp_path / "pairs.txt"
    run("exhaustive", images, output)
    run("exhaustive", folder(images, 5), output)
    assert len(read_pairs(output)) == 10
    run(Method("sequential", Sequential, SequentialConfig(overlap=1)), images, output)
    assert len(read_pairs(output)) == 4
    run(Method("sequential", Sequential, SequentialConfig(overlap=2)), images, output)
    assert len(read_pairs(output)) == 7
    run(Method("sequential", Sequential, SequentialConfig(overlap=2)), images, output, seed=1)
    assert made == ["Exhaustive"] * 2 + ["Sequential"] * 3


def test_retrieval_is_made_anew_for_other_features(tmp_path: Path, made: list[str]) -> None:
    source, output = features(tmp_path / "f.h5", [30] * 4), tmp_path / "pairs.txt"
    run(Method("retrieval", Retrieval, SMALL), source, output)
    run(Method("retrieval", Retrieval, SMALL), source, output)
    features(source, [30] * 4, OtherConfig(), overwrite=True)
    run(Method("retrieval", Retrieval, SMALL), source, output)
    assert made == ["Retrieval"] * 2


def rewrite(source: Path, name: str) -> None:
    """Other features of one image, by the same configuration: as after the photograph was replaced."""
    rows = np.random.default_rng(99).normal(size=(30, 8)).astype(np.float16)
    with append_features(source, Config()) as store:
        store.write(name, Features(np.ones((30, 2), np.float32), rows, np.ones(30, np.float32), (9, 9)))


def test_retrieval_is_made_anew_when_one_image_was_extracted_again(tmp_path: Path, made: list[str]) -> None:
    source, output = features(tmp_path / "f.h5", [30] * 5), tmp_path / "pairs.txt"
    names = [f"img{i}.jpg" for i in range(4)]
    run(Method("retrieval", Retrieval, SMALL), source, output, names=names)
    rewrite(source, "img4.jpg")  # not one of them
    run(Method("retrieval", Retrieval, SMALL), source, output, names=names)
    assert made == ["Retrieval"]
    rewrite(source, "img2.jpg")
    run(Method("retrieval", Retrieval, SMALL), source, output, names=names)
    assert made == ["Retrieval"] * 2


def test_methods_without_features_do_not_care_about_them(tmp_path: Path, made: list[str]) -> None:
    source, output = features(tmp_path / "f.h5", [30] * 4), tmp_path / "pairs.txt"
    run("exhaustive", source, output)
    rewrite(source, "img2.jpg")
    run("exhaustive", source, output)
    assert made == ["Exhaustive"]


@pytest.mark.parametrize("kind", ["folder", "features"])
def test_only_the_names_given_in_the_order_of_the_source(tmp_path: Path, kind: str) -> None:
    source = folder(tmp_path / "images", 5) if kind == "folder" else features(tmp_path / "f.h5", [5] * 5)
    output = tmp_path / "pairs.txt"
    run("exhaustive", source, output, names=["img3.jpg", "img1.jpg", "elsewhere.jpg", "img4.jpg", "img1.jpg"])
    assert output.read_text().splitlines() == ["img1.jpg img3.jpg", "img1.jpg img4.jpg", "img3.jpg img4.jpg"]
    run("exhaustive", source, output, names=["img0.jpg", "img1.jpg"])
    assert len(read_pairs(output)) == 1
    with pytest.raises(BadInputError, match="two images, but there are 1 of the 2 asked for"):
        run("exhaustive", source, output, names=["img0.jpg", "elsewhere.jpg"])


def test_stopped_before_the_pairs_were_written_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    images, output = folder(tmp_path / "images", 4), tmp_path / "pairs.txt"
    run(Method("sequential", Sequential, SequentialConfig(overlap=1)), images, output)
    plain, written = artifact.write_bytes, []

    def stop(path: Path, data: bytes, **options: bool) -> Path:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        return plain(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "write_bytes", stop)
        with pytest.raises(KeyboardInterrupt):
            run(Method("sequential", Sequential, SequentialConfig(overlap=2)), images, output)
    run(Method("sequential", Sequential, SequentialConfig(overlap=2)), images, output)
    assert len(read_pairs(output)) == 5


def test_a_list_somebody_wrote_is_not_replaced(tmp_path: Path) -> None:
    images, output = folder(tmp_path / "images", 4), tmp_path / "pairs.txt"
    output.write_text("a b\n")
    for sidecar in (None, "{", json.dumps({"kind": "poses"})):
        if sidecar is not None:
            output.with_suffix(".json").write_text(sidecar)
        for overwrite in (False, True):
            with pytest.raises(BadInputError, match="not made by featkit"):
                run("exhaustive", images, output, overwrite=overwrite)
    assert output.read_text() == "a b\n"


def test_the_sidecar_says_what_made_the_pairs(tmp_path: Path) -> None:
    output = run(
        Method("retrieval", Retrieval, SMALL), features(tmp_path / "f.h5", [30] * 4), tmp_path / "pairs.txt", seed=7
    )
    described = describe_pairs(output)
    assert described is not None
    assert described["fingerprint"] == SMALL.fingerprint()
    assert described["config"]["vlad"]["num_clusters"] == 4
    assert "memory_budget_mb" not in described["config"]["vlad"]
    assert described["seed"] == 7
    names = [f"img{i}.jpg" for i in range(4)]
    assert described["names_sha256"] == stage.names_digest(names) != stage.names_digest(names[:3])


def test_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="two images, but there are 1"):
        run("exhaustive", folder(tmp_path / "images", 1), tmp_path / "pairs.txt")
    with pytest.raises(BadInputError, match="no such file"):
        run("exhaustive", tmp_path / "missing.h5", tmp_path / "pairs.txt")


def test_retrieval_on_a_folder_says_to_extract_first(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="extract first"):
        run("retrieval", folder(tmp_path / "images", 3), tmp_path / "pairs.txt")
    with pytest.raises(UsageError, match="extract first"):
        Retrieval(SMALL).pairs(["a", "b"], None, np.random.default_rng(0))
    assert not (tmp_path / "pairs.txt").exists()


def test_no_pair_at_all_is_not_a_success(tmp_path: Path) -> None:
    with pytest.raises(EmptyResultError, match="no two of its 2 images"):
        run(Method("retrieval", Retrieval, SMALL), features(tmp_path / "f.h5", [30, 0]), tmp_path / "pairs.txt")
    assert not (tmp_path / "pairs.txt").exists()


def test_unknown_method(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'sequential'"):
        run("sequentail", folder(tmp_path / "images", 3), tmp_path / "pairs.txt")


def test_retrieval_pairs_are_unique_and_deterministic(tmp_path: Path) -> None:
    source = features(tmp_path / "f.h5", [60] * 12 + [0])
    with open_features(source) as store:
        names = store.names()
        a, b = (Retrieval(SMALL).pairs(names, store, np.random.default_rng(0)) for _ in range(2))
        other = Retrieval(SMALL).pairs(names, store, np.random.default_rng(1))
    assert a == b != other
    assert len({p.key() for p in a}) == len(a)
    assert 12 <= len(a) < 24  # 24 asked for, the mutual ones once
    partners = {n: {p for pair in a for p in (pair.name0, pair.name1) if n in (pair.name0, pair.name1)} for n in names}
    assert all(len(partners[n] - {n}) >= 2 for n in names if n != "img12.jpg")
    assert not partners["img12.jpg"]


def test_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[str]) -> None:
    assert auto_method(60, AutoConfig()) == "exhaustive"
    assert auto_method(61, AutoConfig()) == "retrieval"
    assert auto_method(3, AutoConfig(exhaustive_up_to=2)) == "retrieval"
    run("auto", folder(tmp_path / "images", 3), tmp_path / "pairs.txt")
    assert made == ["Exhaustive"]
    source = features(tmp_path / "f.h5", [20] * 4)
    assert choose("auto", len(image_names(source)), auto=AutoConfig(exhaustive_up_to=3)).cls is Retrieval
    assert choose("auto", 3, auto=AutoConfig(exhaustive_up_to=3)).cls is Exhaustive
    assert choose("sequential", 3, {"overlap": 7}).config == SequentialConfig(overlap=7)


def test_each_pair_once_in_reading_order() -> None:
    best = np.array([[2, 1], [0, -1], [1, 0], [-1, -1]])
    assert each_once(best).tolist() == [[0, 2], [0, 1], [2, 1]]
    assert each_once(np.empty((0, 3), np.int64)).tolist() == []


def test_yaml_names_resolve() -> None:
    for name, cls in (("exhaustive", Exhaustive), ("sequential", Sequential), ("retrieval", Retrieval)):
        assert resolve("pairing", name) == Method(name, cls, cls.Config(), row=name)


def test_importing_the_stage_imports_neither_torch_nor_faiss() -> None:
    code = (
        "import sys, featkit.pairing.stage, featkit.pairing.by_retrieval\n"
        "print([m for m in ('torch', 'faiss', 'pycolmap') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
