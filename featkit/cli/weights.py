"""`featkit weights`: list, fetch, import and export weights; `featkit features`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from featkit.api import weights as api
from featkit.cli.app import Outcome
from featkit.cli.command import command
from featkit.cli.pages import Commands
from featkit.core.content import Table
from featkit.features.listing import FeatureInfo
from featkit.report.describe import description_lines
from featkit.weights.manifest import WeightInfo, sha256_of

WEIGHTS_HELP = "List trained weights, fetch and import published ones, export a training run's, or any network as ONNX."
LIST_HELP = "List the weights that can be used by name: featkit's own, and those of published networks."
SHOW_HELP = """Show everything known about a weights file: network, training data, licence, checksum, scores.

Example: `featkit weights show hynet`"""
FETCH_HELP = """Download the weights of a published network from their authors, check and cache them.

Example: `featkit weights fetch aliked-n16`

They are stored as safetensors in ~/.cache/featkit/weights (or $FEATKIT_WEIGHTS). If interrupted, run the same command
again to resume. If an installed package contains the same file, nothing is downloaded."""
IMPORT_HELP = """Turn a published HardNet, SOSNet or HyNet checkpoint into a safetensors file.

Example: `featkit weights import HardNet++.pth --out hardnet-plus-plus.safetensors`

Use it by its path: `--weights hardnet-plus-plus.safetensors`. A file that would run code is refused."""
EXPORT_HELP = """Export the network of a training run as weights, or any network as ONNX for other runtimes.

Examples: `featkit weights export runs/hynet --name hynet --out weights/hynet.safetensors --add-to-manifest`,
`featkit weights export aliked-n16 --out aliked-n16.onnx --set max_keypoints=2048`

An ONNX file is written only if ONNX Runtime reproduces featkit's results with it. Its metadata and docs/features.md
describe its inputs and outputs. The source is a name of weights, a published network, a .safetensors file or a run."""

weights_app = Commands(WEIGHTS_HELP)


@command(api.list_weights)
def list_command(found: api.Available) -> Outcome:
    columns = ["name", "network", "values", "recipe", "data", "licence", "kB", "scores"]
    table = Table("Weights", columns, [_weights_row(row) for row in found.shipped])
    theirs = Table(
        "Published networks (featkit weights fetch NAME)",
        ["name", "network", "licence", "data", "available from"],
        [[row["name"], row["summary"], row["licence"], row["data"], row["from"] or "-"] for row in found.published],
    )
    data = {"weights": [row.result_fields() for row in found.shipped], "published": found.published}
    lines = [] if found.shipped else ["featkit's own weights are not installed"]
    return Outcome(data, lines, [table, theirs] if found.shipped else [theirs])


def _weights_row(row: WeightInfo) -> list[Any]:
    values = f"{row.config['bits']} bits" if row.config.get("bits") else str(row.config.get("descriptor_channels", 128))
    scores = ", ".join(f"{key} {value:,.10g}" for key, value in row.scores.items() if isinstance(value, int | float))
    network = (
        f"scfeat {row.config.get('encoder')}" if row.kind == "scfeat" else str(row.config.get("architecture", "?"))
    )
    network += " + ST" if row.config.get("spatial_transformer") else ""
    return [row.name, network, values, row.recipe, row.data, row.licence, round(row.bytes / 1000), scores]


@command(api.show_weights)
def show_command(described: dict[str, Any]) -> Outcome:
    return Outcome(described, description_lines(described))


@command(api.fetch_weights)
def fetch_weights_command(done: api.FetchedWeights) -> Outcome:
    row = done.network
    lines = [f"{file}: sha256 {done.sha256[file]}, from {source}" for file, source in done.sources.items()]
    lines += [f"{done.path}: {'already present' if done.was_there else row.summary}; {row.page} ({row.licence})"]
    data = {"name": done.name, "out": str(done.path), "sha256": done.sha256, "sources": done.sources}
    return Outcome({**data, "was_there": done.was_there, "licence": row.licence}, lines)


@command(api.import_weights)
def import_command(done: api.ImportedWeights) -> Outcome:
    data = {"out": str(done.out), "sha256": sha256_of(done.out), "config": done.config, **done.origin}
    return Outcome(data, [f"{done.out}: {done.config['architecture']}, {done.dimension} values"])


@command(api.export_weights)
def export_weights_command(done: api.ExportedWeights) -> Outcome:
    if done.row is None:
        return _onnx_outcome(done)
    lines = [f"{done.out}: {done.row.bytes:,} bytes, sha256 {done.row.sha256}"]
    if done.manifest is not None:
        lines.append(f"{done.manifest}: {done.row.name}")
    return Outcome({"out": str(done.out), **done.row.result_fields()}, lines)


def _onnx_outcome(done: api.ExportedWeights) -> Outcome:
    made = done.onnx
    checks = ", ".join(f"{key} {value:{'g' if value >= 1 else '.2g'}}" for key, value in made.checks.items())
    lines = [f"{done.out}: {made.bytes:,} bytes, sha256 {made.sha256}"]
    for title, shapes in (("inputs:", made.inputs), ("outputs:", made.outputs)):
        lines.append(f"{title} " + ", ".join(f"{name} ({', '.join(map(str, axes))})" for name, axes in shapes.items()))
    lines.append(f"checked by ONNX Runtime against featkit: {checks}")
    return Outcome({**asdict(made), "out": str(done.out), "path": str(done.out)}, lines)


weights_app.command("list", help=LIST_HELP)(list_command)
for name, made, text in (
    ("show", show_command, SHOW_HELP),
    ("fetch", fetch_weights_command, FETCH_HELP),
    ("import", import_command, IMPORT_HELP),
    ("export", export_weights_command, EXPORT_HELP),
):
    weights_app.command(name, help=text, no_args_is_help=True)(made)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit features`: the values of `--features` and `--matcher`.


FEATURES_HELP = (
    "List the local features and matchers: method, training data, licence, weights, measured speed and score."
)
MEASURES = {"cpu_s": "CPU s", "keypoints_per_s": "keypoints/s", "mma_score_percent": "MMAScore"}
MEASURED_NOTE = (
    "CPU s: time for a 640x480 image on one thread. keypoints/s: at 1600 px on two cores. MMAScore: on the six"
    " Oxford sequences, %. -: not measured. More in docs/benchmarks.md"
)


@command(api.list_methods)
def features_command(listed: dict[str, list[FeatureInfo]]) -> Outcome:
    columns = ["name", "method", "trained on", "licence", "weights"]
    features, matchers = listed["features"], listed["matchers"]
    measured = [[*_method_row(row), *(row.measured.get(key) for key in MEASURES)] for row in features]
    tables = [
        Table("Features (--features NAME)", [*columns, *MEASURES.values()], measured, note=MEASURED_NOTE),
        Table("Matchers (--matcher NAME)", columns, [_method_row(row) for row in matchers]),
    ]
    return Outcome({kind: [asdict(row) for row in rows] for kind, rows in listed.items()}, [], tables)


def _method_row(row: FeatureInfo) -> list[Any]:
    return [row.name, row.summary, row.data or "-", row.licence or "-", row.weights]
