"""The report of a training, and the curves it is made of."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from featkit.core.content import Bars, Curve, Curves
from featkit.core.errors import BadInputError
from featkit.losses.sdgm import TABLE_ROWS
from featkit.report.charts import MOST_POINTS, bars_figure, curves_figure
from featkit.report.training import metric_curves, statistics_sections, statistics_table, training_report
from featkit.training.run_folder import Row, RunFolder

SCORE = {"name": "validation_fpr95", "label": "held-out FPR95", "factor": 100.0, "unit": "%"}

SHOWN = {"validation_fpr95", "patches_per_s"}


def rows_of(steps: int, statistics: tuple[str, ...] = ()) -> list[Row]:
    rows: list[Row] = []
    for step in range(1, steps + 1):
        row: Row = {"step": step, "loss": 1 / step, "learning_rate": 0.1, "patches_per_s": 100.0 + step}
        row |= {name: step + number / 100 for number, name in enumerate(statistics)}
        if step % 5 == 0:
            row["validation_fpr95"] = 0.5 / step
        rows.append(row)
    return rows


def run_folder(path: Path, rows: list[Row]) -> Path:
    folder = RunFolder(path)
    folder.write_metrics(rows)
    (path / "config.yaml").write_text("task: patch\n")
    last, best = (
        rows[-1],
        min((row for row in rows if "validation_fpr95" in row), key=lambda row: row["validation_fpr95"]),
    )
    folder.write_summary(
        {
            "recipe": "sdgmnet",
            "task": "patch",
            "unit": "patches",
            "score": SCORE,
            "steps": 40,
            "patches": 81920,
            "seconds": 90.0,
            "last": {"step": int(last["step"]), "validation_fpr95": last["validation_fpr95"]},
            "best": {"step": int(best["step"]), "validation_fpr95": best["validation_fpr95"]},
            "data": {"name": "liberty", "patches": 1000, "scenes": ["liberty"]},
            "device": "cpu",
        }
    )
    return path


def test_the_page_shows_curves_and_statistics(tmp_path: Path) -> None:
    page = training_report(run_folder(tmp_path, rows_of(40, tuple(TABLE_ROWS)))).read_text(encoding="utf-8")
    for text in (
        "Training: sdgmnet",
        "Held-out FPR95",
        "Learning rate",
        "Statistics of the loss",
        "E[θ⁺]",
        "config.yaml",
    ):
        assert text in page
    assert "Statistics during training" in page


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not the folder of a finished training"):
        training_report(tmp_path)


def test_statistics_stand_at_the_shares_of_the_papers_tables() -> None:
    table = statistics_table(rows_of(200, tuple(TABLE_ROWS)))
    assert list(table.columns) == ["statistic", "step 30", "step 70", "step 110", "step 150", "step 190"]
    assert [row[0] for row in table.rows] == list(TABLE_ROWS.values())
    assert table.rows[1][1] == 30.01


def test_other_losses_have_a_curve_for_each_statistic() -> None:
    (section,) = statistics_sections(rows_of(10, ("average_loss", "exponent")), SHOWN)
    assert [item.title for item in section.items] == ["average loss", "exponent"]  # type: ignore[union-attr]
    assert statistics_sections(rows_of(10), SHOWN) == []
    assert [item.title for item in metric_curves(rows_of(10), SCORE, "patches")] == [
        "Loss",
        "Held-out FPR95",
        "Learning rate",
        "Speed",
    ]  # type: ignore[union-attr]


def drawn(figure_axis: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(figure_axis["bdata"]), "<f4")


def test_a_curve_leaves_out_what_cannot_be_drawn() -> None:
    x = np.arange(6.0)
    y = np.array([1.0, np.nan, 0.0, 4.0, np.inf, 2.0])
    plain = curves_figure(Curves("t", "x", "y", [Curve("a", x, y)]))
    assert drawn(plain.data[0]["x"]).tolist() == [0, 2, 3, 5]
    logarithmic = curves_figure(Curves("t", "x", "y", [Curve("a", x, y)], log_y=True))
    assert drawn(logarithmic.data[0]["y"]).tolist() == [1, 4, 2]
    assert logarithmic.layout["yaxis"]["type"] == "log"
    assert "last 2" in plain.caption
    with pytest.raises(ValueError, match="'a'"):
        curves_figure(Curves("t", "x", "y", [Curve("a", x, y[:3])]))


def test_a_long_curve_is_averaged_to_what_the_page_can_show() -> None:
    values = np.arange(10.0 * MOST_POINTS)
    figure = curves_figure(Curves("t", "x", "y", [Curve("a", values, values)]))
    shown = drawn(figure.data[0]["y"])
    assert len(shown) == MOST_POINTS
    assert shown[0] == pytest.approx(4.5)
    json.dumps(figure.data)


def test_bars_stand_in_groups() -> None:
    figure = bars_figure(Bars("t", "mAP, %", ["graf", "wall <b>"], {"a": [50.0, float("nan")], "b": [10.0, 30.0]}))
    assert [drawn(bar["y"]).tolist() for bar in figure.data] == [[50, 0], [10, 30]]
    assert figure.data[0]["x"] == ["graf", "wall &lt;b&gt;"]
    assert figure.layout["barmode"] == "group"
    assert [(key.colour, key.text) for key in figure.key] == [
        (bar["marker"]["color"], text) for bar, text in zip(figure.data, ("a: mean 50", "b: mean 20"), strict=True)
    ]
    assert bars_figure(Bars("t", "y", ["g"], {"a": [3.0]})).caption == "a: mean 3."
    assert bars_figure(Bars("t", "y", ["g"], {"a": [float("nan")]})).caption == "No values."
    with pytest.raises(ValueError, match="a has 1 values for 2 groups"):
        bars_figure(Bars("t", "y", ["g", "h"], {"a": [1.0]}))
