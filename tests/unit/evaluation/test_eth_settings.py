"""The papers' settings as configurations, and the published rows of the ETH benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featkit.core.errors import UsageError
from featkit.core.registry import resolve
from featkit.evaluation.eth import EthBenchmark, EthConfig
from featkit.evaluation.eth_scenes import SCENES
from featkit.evaluation.published import published

SCFEAT_GROUPS = [("075", 1, 1.0, 0.75), ("080", 3, 1.0, 0.80), ("090", 3, 0.5, 0.90), ("092", 3, 1.0, 0.92)]


def setting(name: str) -> EthBenchmark:
    config = resolve("benchmark", name).own
    assert isinstance(config, EthConfig)
    return EthBenchmark(config, "cpu")


@pytest.mark.parametrize(("group", "nms", "score", "ratio"), SCFEAT_GROUPS)
def test_groups_of_scfeats_table_vii(group: str, nms: int, score: float, ratio: float) -> None:
    benchmark = setting(f"eth-scfeat-{group}")
    assert benchmark.by.config.result_fields()["ratio"] == ratio
    changed = benchmark.config.extractors
    assert changed == {"scfeat": {"nms_window": 2 * nms + 1, "threshold": score, "max_keypoints": 20000}}  # a radius


def test_ratios_of_the_others() -> None:
    ratios = {name: setting(name).by.config.result_fields()["ratio"] for name in ("eth", "eth-sdgmnet", "eth-posfeat")}
    assert ratios == {"eth": 0.8, "eth-sdgmnet": None, "eth-posfeat": 0.75}


def test_a_setting_changes_the_extractors_it_names() -> None:
    benchmark = EthBenchmark(EthConfig(extractors={"sift": {"max_keypoints": 50}}), "cpu")
    assert benchmark.method("rootsift").described()["config"]["extractor"]["max_keypoints"] == 50
    assert (
        benchmark.method("sift", changes={"max_keypoints": 7}).described()["config"]["extractor"]["max_keypoints"] == 7
    )
    other = benchmark.method("dog+hynet")
    assert other.fingerprint == EthBenchmark(EthConfig(), "cpu").method("dog+hynet").fingerprint
    weight = benchmark.method("dog+hynet", changes={"weights": "hardnet"})
    assert len({other.fingerprint, weight.fingerprint, benchmark.method("rootsift").fingerprint}) == 3
    with pytest.raises(UsageError, match="did you mean 'scfeat'"):
        EthBenchmark(EthConfig(extractors={"scfeta": {}}), "cpu")
    with pytest.raises(UsageError, match="not a pairing"):
        EthBenchmark(EthConfig(paired_by="mutual"), "cpu")


def test_published_tables_are_whole() -> None:
    known = published("eth")
    scenes = {scene.name for scene in SCENES}
    for table in known.tables:
        assert set(table.columns) <= set(known.columns)
        for row in table.rows:
            assert len(row.values) == len(table.columns), (table.where, row.name)
            assert row.scene in scenes
            of = dict(zip(table.columns, row.values, strict=True))
            images = next(scene.images for scene in SCENES if scene.name == row.scene)
            assert 0 < of["registered"] <= images
            if "observations" in of:  # as far as papers round them
                assert of["observations"] / of["points"] == pytest.approx(of["track_length"], rel=0.09), row


def test_published_rows_are_those_of_the_reference_file(shared_data: Path) -> None:
    """fountain-P11 and Herz-Jesu-P8 were noted from the papers independently."""
    reference = json.loads((shared_data.parent / "reference" / "eth_scenes.json").read_text())["paper_rows"]
    tables = [table for table in published("eth").tables if table.paper.startswith(("SDGMNet", "AdaSample"))]
    assert len(tables) == 2
    compared = 0
    for table in tables:
        for row in table.rows:
            noted = reference.get(row.scene, {}).get(row.name)
            if noted is None:
                assert row.scene not in reference
                continue
            of = dict(zip(table.columns, row.values, strict=True))
            for column, value in zip(reference["columns"], noted, strict=True):
                if value is not None:
                    number = 1e3 * float(value[:-1]) if isinstance(value, str) else value
                    assert of[column] == pytest.approx(number), (row.scene, row.name, column)
                    compared += 1
    assert compared > 70


def test_plain_pycolmap_is_as_measured(shared_data: Path) -> None:
    reference = json.loads((shared_data.parent / "reference" / "eth_scenes.json").read_text())
    table = published("eth").tables[-1]
    assert table.paper.startswith("Plain pycolmap")
    for row, noted in zip(table.rows, reference["rows"], strict=True):
        assert (row.scene, *row.values) == (noted[0], *noted[3:11])
