"""The protocol of benchmarks: what is found is measured, and one result has the json, the tables and the page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from featkit.api.evaluation import ALL_BENCHMARKS, BENCHMARKS
from featkit.cli.eval import eval_app
from featkit.core.config import Config
from featkit.core.content import Configuration, Table
from featkit.core.errors import UsageError
from featkit.evaluation.benchmark import Benchmark, Plain, Ranked, Result, Work, plain, run_benchmark
from featkit.report.benchmarks import BenchmarkFiles


@dataclass(frozen=True)
class Inner(Plain):
    errors: np.ndarray
    worst: float


@dataclass(frozen=True)
class Outer(Plain):
    name: str
    inner: dict[str, Inner]
    counts: tuple[int, int]


def test_measurements_as_json() -> None:
    inner = Inner(np.array([1.23456789, np.inf]), float("nan"))
    found = Outer("a", {"b": inner}, (1, 2)).as_json()
    assert found == {"name": "a", "inner": {"b": {"errors": [1.234568, None], "worst": None}}, "counts": [1, 2]}
    assert json.loads(json.dumps(found)) == found
    assert plain([True, None, "x", 3]) == [True, None, "x", 3]


class LengthConfig(Config):
    factor: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Named:
    name: str

    def described(self) -> dict[str, Any]:
        return {"letters": len(self.name)}


@dataclass(kw_only=True)
class Lengths(Benchmark[list[Path], Named]):
    """Measures names by their letters."""

    name = "lengths"
    Config = LengthConfig
    more: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.changed(factor=self.more)

    @staticmethod
    def seeded(seed: int) -> dict[str, Any]:
        return {"seed": seed}

    def find(self, roots: Sequence[Path]) -> list[Path]:
        return list(roots)

    def methods(self, features: Sequence[str], **reading: Any) -> list[Named]:
        return [Named(name) for name in features]

    def run(self, data: list[Path], methods: Sequence[Named], work: Work) -> Result:
        values = {one.name: self.config.factor * len(one.name) * len(data) for one in methods}
        table = Table("Lengths", ["method", "letters"], [[name, value] for name, value in values.items()])
        ranking = [Ranked(name, "letters", value) for name, value in values.items()]
        return Result("Lengths", {"letters": values}, [table], ranking)


def test_one_result_has_json_tables_and_page(tmp_path: Path) -> None:
    benchmark = Lengths.configured({}, seed=5, more=3)
    result = run_benchmark(benchmark, [tmp_path, tmp_path], "ab, c,ab", Work(tmp_path))
    numbers = result.as_json()
    assert numbers["benchmark"] == "lengths"
    assert numbers["config"] == {"factor": 3, "seed": 5}
    assert numbers["letters"] == {"ab": 12, "c": 6}
    last = result.page().sections[-1]
    assert [item.title for item in last.items if isinstance(item, Configuration)] == ["benchmark", "ab", "c"]
    lines = BenchmarkFiles.in_folder(tmp_path / "out").write(numbers, result.page())
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == numbers
    assert "<td>ab</td>" in (tmp_path / "out" / "report.html").read_text()
    assert [line.split(": ")[1] for line in lines] == ["all numbers", "curves and pictures"]
    assert BenchmarkFiles(None, None).write(numbers, result.page()) == []
    with pytest.raises(UsageError, match="comma-separated names"):
        run_benchmark(benchmark, [tmp_path], " ,", Work(tmp_path))
    with pytest.raises(UsageError, match="did you mean 'factor'"):
        Lengths.configured({"facto": 1})


@pytest.mark.parametrize("name", ALL_BENCHMARKS)
def test_a_command_has_the_options_of_its_class(name: str) -> None:
    command = typer.main.get_command(eval_app).commands[name]  # type: ignore[attr-defined]
    options = {one.name: one.default for one in command.params}
    cls = BENCHMARKS[name]
    own = {one.name: one.default for one in dataclasses.fields(cls) if one.init and one.kw_only}
    assert {option: options[option] for option in own} == own
    assert {cls.data_option, "features", "out"} <= options.keys()
