"""What the benchmarks that extract features share: their options, the methods that are asked for, what is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from featkit import __version__
from featkit.cli import app as options
from featkit.cli.app import Outcome
from featkit.core.errors import UsageError
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.evaluation.predictions import Method
from featkit.features.stage import ExtractConfig, ExtractJob
from featkit.images.read import DecodeConfig
from featkit.io.artifact import write_text
from featkit.io.atomic import refuse_foreign
from featkit.report.content import Report, Table
from featkit.report.page import write_report
from featkit.report.ranking import Ranked

FeatureNames = Annotated[
    str, typer.Option("--features", help="Configurations by name or path; comma-separated.", metavar="NAME,...")
]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder of predictions and results.")]
Weights = Annotated[
    str | None,
    typer.Option(help="Trained weight by name, or a .safetensors file; for one --features.", show_default="its own"),
]
BenchmarkSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change any field of the benchmark; repeatable."),
]


@dataclass(frozen=True)
class Asked:
    """Which features, and how they are extracted."""

    features: str
    weights: str | None
    max_keypoints: int | None
    resize_max: int | None
    workers: int
    overwrite: bool
    engine: EngineConfig | None = None


def names_in(text: str | None) -> list[str]:
    """Comma-separated names, each once."""
    return list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def method_names(features: str) -> list[str]:
    """The same, at least one. Raises UsageError when there is none."""
    names = names_in(features)
    if not names:
        raise UsageError("--features: comma-separated names, as rootsift,hynet")
    return names


def methods_of(asked: Asked, device: str) -> list[Method]:
    """The features that are asked for, ready to extract. Raises UsageError for an unknown name or field."""
    names = method_names(asked.features)
    if asked.weights is not None and len(names) > 1:
        raise UsageError(f"--weights goes with one --features, not with {len(names)}")
    changes = options.given(max_keypoints=asked.max_keypoints, weights=asked.weights)
    methods = []
    for name in names:
        config = ExtractConfig(features=name, decode=DecodeConfig(resize_max=asked.resize_max), workers=asked.workers)
        label = name if asked.weights is None else f"{name} ({Path(asked.weights).stem})"
        methods.append(Method(label, ExtractJob.resolve(config, changes, device), asked.engine or LOCAL))
    return methods


def made_by(benchmark: str) -> dict[str, Any]:
    """What every results.json begins with."""

    return {"benchmark": benchmark, "featkit_version": __version__}


def refuse_results(folder: Path) -> None:
    """Raise BadInputError, before the work, when what `finished` writes would replace a file of somebody else's."""

    refuse_foreign(folder / "results.json", folder / "report.html")


def finished(
    results: dict[str, Any], folder: Path, page: Report, tables: list[Table], ranking: list[Ranked]
) -> Outcome:
    """Write FOLDER/results.json and FOLDER/report.html; what the verb ends with. Raises NotWritableError."""
    import json

    numbers = write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    report = write_report(page, folder / "report.html")
    return Outcome(results, [f"{numbers}: all numbers", f"{report}: curves and pictures"], tables, page, ranking)
