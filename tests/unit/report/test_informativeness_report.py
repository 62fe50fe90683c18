"""The page of `featkit inspect informativeness`."""

import math
from pathlib import Path

import numpy as np
import pytest

from featkit.core.content import Curves
from featkit.report.training import draw_probabilities, informativeness_report, informativeness_table
from featkit.training.informativeness import Informativeness, InformativenessConfig, Snapshot


def found(noise: float, n: int = 96) -> Informativeness:
    rng = np.random.default_rng(0)
    distances = rng.uniform(0.2, 1.2, n)
    return Informativeness(distances, np.maximum(2 * distances + noise * rng.normal(size=n), 0.0))


ALONG = [
    (Snapshot("untrained", 0, None), found(0.5)),
    (Snapshot("step_500", 500, Path("a")), found(0.2)),
    (Snapshot("last", 1000, Path("b")), found(0.0)),
]


def test_table_has_a_row_per_network() -> None:
    table = informativeness_table(ALONG)
    assert [row[:2] for row in table.rows] == [["untrained", 0], ["step_500", 500], ["last", 1000]]
    pearson = [row[list(table.columns).index("Pearson")] for row in table.rows]
    assert pearson[0] < pearson[1] < pearson[2] == pytest.approx(1.0)


def test_probabilities_sum_to_one_and_agree_when_proportional() -> None:
    chart = draw_probabilities(found(0.0))
    assert isinstance(chart, Curves)
    by_distance, by_norm = chart.curves
    np.testing.assert_allclose(by_distance.y, by_norm.y)
    assert by_distance.y.mean() == pytest.approx(1000 / 96)  # groups of three of 96 pairs
    assert (np.diff(by_distance.y) > 0).all()
    assert not np.allclose(draw_probabilities(found(0.5)).curves[1].y, by_norm.y)


def test_pairs_without_any_gradient_have_a_page_too(tmp_path: Path) -> None:
    dead = Informativeness(np.linspace(0.1, 1, 10), np.zeros(10))
    assert math.isnan(dead.pearson)
    page = informativeness_report(
        [(Snapshot("last", None, None), dead)], InformativenessConfig(), Path("run"), "textures", tmp_path / "r.html"
    )
    assert "textures" in page.read_text(encoding="utf-8")


def test_page_says_what_was_measured(tmp_path: Path) -> None:
    page = informativeness_report(ALONG, InformativenessConfig(), Path("runs/x"), "textures", tmp_path / "r.html")
    text = page.read_text(encoding="utf-8")
    for words in ("runs/x", "96 pairs of textures", "During training", "untrained", "paper: above 0.8", "1000"):
        assert words in text
