"""`featkit eval ...` and `featkit data fetch`: tables, result files, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_server import Faults, serving
from in_process import refused, results, run
from synthetic_patches import textures, thumbnails, write_hpatches, write_rome

import featkit
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.data.patch_set import PatchSet
from featkit.data.phototour import draw_pairs, write_phototour, write_phototour_pairs
from featkit.evaluation.published import published
from featkit.evaluation.ubc import PatchMethod, UbcScore, evaluate_pairs, evaluate_ubc, find_runs, read_ubc, ubc_table
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.weights.files import save_patch_network, scenes_metadata


def photo_set(folder: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(30), 3)
    seen = textures(30, 64, rng)[classes] + 110 * (textures(90, 64, rng) / 128 - 1)
    patches = PatchSet(folder.name, seen.clip(0, 255).astype(np.uint8), classes, np.zeros(90, int), (folder.name,))
    write_phototour(folder, patches)
    write_phototour_pairs(folder, draw_pairs(classes, patches.scenes, 120, rng), classes)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sets")
    return [photo_set(folder / name, seed) for seed, name in enumerate(("liberty", "aerial"))]


def test_ubc(sets: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    ran = run("eval", "ubc", "--data", sets[0], "--data", sets[1], "--features", "sift, rootsift", "--out", out)
    assert ran.exit_code == 0, ran.output
    scores = json.loads(out.read_text())["scores"]
    assert [(s["method"], s["test"], s["pairs"]) for s in scores] == [
        (method, test, 120) for method in ("sift", "rootsift") for test in ("liberty", "aerial")
    ]
    assert all(0 <= s["fpr95"] < 0.6 for s in scores)
    row = next(line for line in ran.stdout.splitlines() if "rootsift" in line)
    for score in scores[2:]:
        assert f"{100 * score['fpr95']:.4g}" in row
    assert "m50_120_120_0.txt" in ran.stdout
    assert "SDGMNet" not in ran.stdout
    ran = run("eval", "ubc", "--data", sets[0], "--features", "sift", "--published")
    assert "SDGMNet" in ran.stdout
    assert "Table I" in ran.stdout


@pytest.mark.slow
def test_ubc_with_weights_and_runs(sets: list[Path], tmp_path: Path) -> None:
    for subset in ("liberty", "aerial"):
        for number, config in enumerate((PatchNetworkConfig(), PatchNetworkConfig(architecture="l2net", bits=64))):
            network = PatchNetwork(config, torch.Generator().manual_seed(number))
            folder = tmp_path / subset / ("doap-binary" if config.bits else "hynet")
            folder.mkdir(parents=True)
            save_patch_network(folder / "best.safetensors", network)
    path = tmp_path / "liberty" / "hynet" / "best.safetensors"
    data = ("--data", sets[0], "--data", sets[1], "--runs", tmp_path)
    found = results("eval", "ubc", *data, "--features", path)["scores"]
    assert [(s["method"], s["train"], s["variant"], s["test"]) for s in found] == [
        (str(path), "", "", "liberty"),
        (str(path), "", "", "aerial"),
        ("doap-binary", "aerial", "best", "liberty"),
        ("hynet", "aerial", "best", "liberty"),
        ("doap-binary", "liberty", "best", "aerial"),
        ("hynet", "liberty", "best", "aerial"),
    ]
    assert found[5]["fpr95"] == found[1]["fpr95"] != found[4]["fpr95"]
    ran = run("eval", "ubc", *data, "--features", "sift")
    assert "aerial -> liberty" in ran.stdout


def test_hpatches(tmp_path: Path) -> None:
    root = write_hpatches(tmp_path / "data")
    made = tmp_path / "tasks"
    common = ["eval", "patches", "--root", root, "--features", "rootsift", "--split", "full"]
    common += ["--set", "pool_sizes=[10,20]", "--set", "drawn.pairs=400"]
    first = results(*common, "--write-tasks", made)
    assert first["tasks_from"] == "drawn from 4 sequences"
    assert set(first["scores"]["rootsift"]["means"]) == {"verification_auc", "verification_ap", "matching", "retrieval"}
    again = results(*common, "--tasks", made, "--out", tmp_path / "scores.json")
    assert again["tasks_from"] == str(made)
    assert again["scores"]["rootsift"]["means"] == first["scores"]["rootsift"]["means"]
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == again["scores"]
    other = results(*common, "--seed", "1", "--set", 'tasks=["verification"]')
    assert set(other["scores"]["rootsift"]["means"]) == {"verification_auc", "verification_ap"}
    assert (
        other["scores"]["rootsift"]["means"]["verification_ap"]
        != first["scores"]["rootsift"]["means"]["verification_ap"]
    )
    for path in made.glob("verif_*"):
        path.unlink()
    half = results(*common, "--tasks", made)
    assert half["tasks_from"] == f"retrieval from {made}, verification drawn from 4 sequences"
    assert half["scores"]["rootsift"]["retrieval"] == first["scores"]["rootsift"]["retrieval"]
    assert "Hardpos" in run(*common, "--published").stdout
    refused(run(*common, "--tasks", tmp_path), 3, "no task file of split full")
    refused(run("eval", "patches", "--root", tmp_path / "x", "-q"), 3, "featkit data fetch hpatches")
    refused(run(*common, "--set", "pool_size=3"), 2, "did you mean 'pool_sizes'")


def test_rome(tmp_path: Path) -> None:
    found = results("eval", "rome", "--root", write_rome(tmp_path), "--features", "sift")
    assert set(found["scores"]["sift"]) == {"train", "test"}
    assert 0.1 < found["scores"]["sift"]["test"]["mean_ap"] <= 1
    assert found["scores"]["sift"]["test"]["searched"] == 48
    ran = run("eval", "rome", "--root", tmp_path, "--features", "sift", "--published")
    assert "CKN-grad (1024)" in ran.stdout


def test_mistakes(sets: list[Path], tmp_path: Path) -> None:
    refused(run("eval", "ubc", "--data", tmp_path / "x"), 3, "no such folder")
    refused(run("eval", "ubc", "--data", sets[0], "--features", " , "), 2, "--features")
    refused(run("eval", "ubc", "--data", sets[0], "--features", "rootsfit"), 2, "did you mean 'rootsift'")
    refused(run("eval", "ubc", "--data", sets[0], "--features", "a/b.safetensors"), 3, "no such weights file")
    refused(run("eval", "ubc", "--data", sets[0], "--pairs", "m50_1_1_0.txt"), 3, "m50_1_1_0.txt: no such file")
    refused(run("eval", "ubc", "--data", sets[0], "--runs", tmp_path), 3, "no run in it")
    refused(run("eval", "rome", "--root", tmp_path), 3, "featkit data fetch rome")


def test_fetch(tmp_path: Path) -> None:
    with serving(Faults({"labels": b"labels"})) as address:
        name = "patch_retrieval_Rome_test_labels"
        arguments = ("data", "fetch", "rome", "--out", tmp_path, "--only", name, "--url", f"{name}={address}/labels")
        found = results(*arguments)
        assert (tmp_path / f"{name}.mat").read_bytes() == b"labels"
        assert [f["was_there"] for f in found["files"]] == [False]
        assert [f["was_there"] for f in results(*arguments)["files"]] == [True]
        missing = run(
            *arguments[:5],
            "--only",
            "patch_retrieval_Rome_test",
            "--url",
            f"patch_retrieval_Rome_test={address}/no",
            "-q",
        )
        assert missing.exit_code == 4
        assert "missing: patch_retrieval_Rome_test.mat" in missing.stderr.splitlines()[-1]
    refused(run("data", "fetch", "room", "--out", tmp_path), 2, "did you mean 'rome'")
    refused(run("data", "fetch", "rome", "--out", tmp_path, "--url", "labels"), 2, "FILE=ADDRESS")
    refused(run("data", "fetch", "rome", "--out", tmp_path, "--only", "labels"), 2, "not a file of this data set")


# --- the table of trained methods ---


def test_runs_are_found_with_their_seeds(tmp_path: Path) -> None:
    for name in ("liberty/hynet", "liberty/hynet-s2", "aerial/doap-binary"):
        for epoch in ("best", "last", "other"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / f"{epoch}.safetensors").write_bytes(b"")
    found = find_runs(tmp_path)
    assert [(m.name, m.train, m.variant) for m in found] == [
        ("doap-binary", "aerial", "best"),
        ("doap-binary", "aerial", "last"),
        ("hynet", "liberty", "best"),
        ("hynet", "liberty", "last"),
        ("hynet", "liberty", "best, seed 2"),
        ("hynet", "liberty", "last, seed 2"),
    ]
    assert {m.variant for m in find_runs(tmp_path, ["last"])} == {"last", "last, seed 2"}
    assert isinstance(found[0], PatchMethod)


def test_a_method_is_not_tested_on_what_it_was_trained_on(sets: list[Path], tmp_path: Path) -> None:
    data = [read_ubc(folder) for folder in sets]
    made: list[str] = []
    networks: dict[str, list[str]] = {"any": [], "mixed": ["chair", "aerial"]}
    for name, scenes in networks.items():
        save_patch_network(
            tmp_path / f"{name}.safetensors", PatchNetwork(PatchNetworkConfig()), scenes_metadata(scenes)
        )
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in networks}
    methods = [
        PatchMethod("net", "liberty", "best", paths["any"]),
        *(PatchMethod(name, "", "", path) for name, path in paths.items()),
    ]
    scores, left_out = evaluate_ubc(data, methods, lambda weight: (made.append(weight), thumbnails())[1])
    assert [(s.method, s.train, s.variant, s.test) for s in scores] == [
        ("net", "liberty", "best", "aerial"),
        ("any", "", "", "liberty"),
        ("any", "", "", "aerial"),
        ("mixed", "", "", "liberty"),
    ]
    assert left_out == {"mixed": {"aerial": "trained on aerial"}}
    assert made == [paths["any"], *paths.values()], "a network is loaded once"
    assert scores[0].fpr95 == scores[2].fpr95 == evaluate_pairs(data[1], thumbnails())
    with pytest.raises(EmptyResultError, match="all methods were trained on all of aerial"):
        evaluate_ubc(data[1:], methods[2:], lambda _: thumbnails())


def test_shipped_weights_are_not_tested_on_their_scenes(sets: list[Path]) -> None:
    """The manifest says what they learned from: liberty is one of hynet's scenes, aerial is not."""
    folders = [word for folder in sets for word in ("--data", folder)]
    found = results("eval", "ubc", *folders, "--features", "rootsift,hynet", "--device", "cpu")
    assert {(row["method"], row["test"]) for row in found["scores"]} == {
        ("rootsift", "liberty"),
        ("rootsift", "aerial"),
        ("hynet", "aerial"),
    }
    assert found["left_out"] == {"hynet": {"liberty": "trained on liberty"}}


def score(method: str, train: str, test: str, value: float) -> UbcScore:
    return UbcScore(method, train, "last" if train else "", test, value, 10)


def test_the_table_has_every_combination_of_training_and_test() -> None:
    scores = [score("sift", "", test, value) for test, value in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
    combinations = [(train, test) for train in "abc" for test in "abc" if train != test]
    scores += [score("net", *pair, 0.01 * number) for number, pair in enumerate(combinations)]
    scores.append(score("everything", "union", "a", 0.5))
    table = ubc_table(scores)
    assert table.columns == (("b", "a"), ("c", "a"), ("a", "b"), ("c", "b"), ("a", "c"), ("b", "c"))
    assert table.rows[0] == ("sift", "", (0.1, 0.1, 0.2, 0.2, 0.3, 0.3))
    assert table.rows[1] == ("net", "last", tuple(0.01 * combinations.index(pair) for pair in table.columns))
    assert len(table.rows) == 2
    assert table.mean(table.rows[0][2]) == pytest.approx(0.2)
    half = ubc_table(scores[:4])
    assert half.columns == (("a", "b"), ("a", "c"))
    assert ubc_table(scores[:3]).columns == (("", "a"), ("", "b"), ("", "c"))
    assert ubc_table([*scores[:3], scores[3]]).rows[1] == ("net", "last", (0.0, None))
    assert table.mean((0.1, None)) is None


def test_published_numbers_have_the_means_that_are_printed_beside_them() -> None:
    ubc, rome = published("ubc"), published("rome")
    assert len(ubc.columns) == 6
    rows = [row for table in ubc.tables for row in table.rows]
    assert {"SIFT", "HardNet", "HyNet", "SDGMNet", "AdaSample+*", "DOAP+", "DOAP-ST+ (256 bits)"} <= {
        r.name for r in rows
    }
    for row in rows:
        assert len(row.values) == 6
        assert sum(row.values) / 6 == pytest.approx(row.mean, abs=0.011)
    tasks = published("hpatches_patches")
    for known in (rome, tasks):
        assert all(len(row.values) == len(known.columns) for table in known.tables for row in table.rows)


def test_the_function_does_what_the_command_does(sets: list[Path], tmp_path: Path) -> None:
    by_command = results("eval", "ubc", "--data", sets[0], "--features", "sift")
    done = featkit.evaluate("ubc", sets[0], "sift", out=tmp_path / "scores.json")
    assert done.numbers == by_command
    assert json.loads((tmp_path / "scores.json").read_text()) == by_command
    with pytest.raises(UsageError, match="no benchmark 'hpatch'; one of hpatches, "):
        featkit.evaluate("hpatch", sets[0])
    with pytest.raises(UsageError, match="takes one folder of data, not 2"):
        featkit.evaluate("oxford", sets)
    with pytest.raises(UsageError, match="ubc: no option 'colour'; one of pairs, published, runs"):
        featkit.evaluate("ubc", sets, "sift", colour=1)


def test_settings_of_the_function_may_have_dots(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'num_retrieved'"):
        featkit.evaluate("aachen", tmp_path, settings={"localize.num_retrieve": 3})
    with pytest.raises(BadInputError, match=r"Aachen v1\.1 is incomplete"):
        featkit.evaluate("aachen", tmp_path, settings={"localize.num_retrieved": 3})
