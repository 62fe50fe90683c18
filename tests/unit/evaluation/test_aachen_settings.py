"""Settings of Aachen Day-Night are what the papers print, and reach the two sides' extractors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.core.errors import UsageError
from featkit.core.registry import resolve
from featkit.core.types import Pose
from featkit.evaluation.aachen import AachenBenchmark, AachenConfig, read_truth, score_conditions
from featkit.evaluation.published import published
from featkit.io.lists import write_poses

# SCFeat, Table V: NMS of the map and of queries, least score of the map and of queries, the printed row.
TABLE_V = {
    "aachen-scfeat-n1-e100": (1, 1, 1.0, 1.0, [73.3, 88.0, 98.4]),
    "aachen-scfeat-n3-e030": (3, 3, 0.3, 0.3, [73.3, 86.4, 98.4]),
    "aachen-scfeat-n3-e050": (3, 3, 0.5, 0.5, [73.3, 88.5, 98.4]),
    "aachen-scfeat-n5n3-e050": (5, 3, 0.5, 0.5, [72.3, 88.5, 98.4]),
    "aachen-scfeat": (5, 3, 1.0, 0.5, [74.3, 89.0, 98.4]),
}


def benchmark(name: str) -> AachenBenchmark:
    config = resolve("benchmark", name).own
    assert isinstance(config, AachenConfig)
    return AachenBenchmark(config, "cpu")


@pytest.mark.parametrize("name", TABLE_V)
def test_rows_of_table_v(name: str) -> None:
    made = benchmark(name)
    sides = made.method("scfeat")
    nms0, nms1, score0, score1, printed = TABLE_V[name]
    for side, nms, score in ((sides.database, nms0, score0), (sides.query, nms1, score1)):
        extractor = side.config.extractor
        assert (extractor["nms_window"], extractor["threshold"]) == (2 * nms + 1, score)  # N is a radius
        assert extractor["max_keypoints"] == 20000
    same = sides.database.config.fingerprint() == sides.query.config.fingerprint()
    assert same == ((nms0, score0) == (nms1, score1))
    assert made.by.config.result_fields()["ratio"] is None
    assert made.config.poses_by == "registration"
    row = f"SCFeat, {nms0} and {nms1} px, {score0} and {score1}"
    assert next(r.values for r in published("aachen").tables[1].rows if r.name == row) == printed


def test_posfeat_and_what_the_setting_says_nothing_of() -> None:
    made = benchmark("aachen-posfeat")
    for side in (made.method("scfeat").database, made.method("scfeat").query):
        extractor = side.config.extractor
        assert (extractor["nms_window"], extractor["threshold"], extractor["max_keypoints"]) == (7, 0.5, 20480)
    plain = benchmark("aachen").method("rootsift", changes={"max_keypoints": 900})
    other = made.method("rootsift", changes={"max_keypoints": 900})
    assert plain.fingerprint == other.fingerprint
    assert plain.query.config.skip_broken
    assert not plain.database.config.skip_broken
    assert made.config.poses_by == "registration"
    assert benchmark("aachen").config.poses_by == "pnp"
    assert benchmark("aachen").config.localize.num_retrieved == 50
    assert benchmark("aachen").config.covisible.num_matched == 20
    with pytest.raises(UsageError, match="did you mean 'scfeat'"):
        AachenBenchmark(AachenConfig(extractors={"scfeet": {}}))


def test_the_best_row_is_that_of_table_iv() -> None:
    first, second, _ = published("aachen").tables
    assert next(row.values for row in first.rows if row.name == "SCFeat") == TABLE_V["aachen-scfeat"][4]
    assert max(row.values for row in second.rows) == TABLE_V["aachen-scfeat"][4]
    assert all(len(row.values) == 3 and row.values == sorted(row.values) for row in [*first.rows, *second.rows])


def test_day_and_night_are_scored_apart(tmp_path: Path) -> None:
    """True poses by the names of a submission or with folders; a query without a pose is wrong at every threshold."""
    names = {"day": ["query/day/a.jpg", "query/day/b.jpg"], "night": ["query/night/c.jpg"]}
    every = names["day"] + names["night"]
    still = Pose(np.array([1.0, 0, 0, 0]), np.zeros(3))
    path = write_poses(
        tmp_path / "t.txt", {"a.jpg": still, "query/day/b.jpg": still, "c.jpg": still, "db/1.jpg": still}
    )
    truth = read_truth(path, every)
    assert truth.keys() == set(every)
    moved = Pose(still.qvec, np.array([0.3, 0, 0]))
    scores = score_conditions({every[0]: still, every[2]: moved}, truth, names)
    assert scores["day"].recall == (0.5, 0.5, 0.5)
    assert scores["night"].recall == (0.0, 1.0, 1.0)
    assert score_conditions({}, {every[2]: still}, names).keys() == {"night"}
