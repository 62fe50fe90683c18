"""`featkit weights`: what trained weights there are, and files into and out of that form."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from featkit.api.options import addresses, by_file
from featkit.cli import app as options
from featkit.cli.app import Outcome, RunOptions, verb
from featkit.core.config import overrides
from featkit.core.content import Table
from featkit.core.errors import UsageError
from featkit.report.describe import as_lines
from featkit.weights.manifest import WeightInfo, add_row, find, list_weights, listed, sha256_of

WEIGHTS_HELP = "List trained weights, fetch and import published ones, export a training's, or any as ONNX."
LIST_HELP = "List the weights that can be used by name: featkit's own, and those of published networks."
SHOW_HELP = """Show all that is known about one weight.

Example: `featkit weights show hynet`"""
FETCH_HELP = """Download the weights of a published network from their authors, check and keep them.

Example: `featkit weights fetch aliked-n16`

They are kept in ~/.cache/featkit/weights (or where $FEATKIT_WEIGHTS says) as safetensors. Stopped or cut off at any
moment, the same command goes on. An installed package that holds the same file is used instead of the network."""
IMPORT_HELP = """Turn a published HardNet, SOSNet or HyNet checkpoint into a safetensors file.

Example: `featkit weights import HardNet++.pth --out hardnet-plus-plus.safetensors`

Use it by its path: `--weights hardnet-plus-plus.safetensors`. A file that would run code is refused."""
EXPORT_HELP = """Make a weight of a training's network, or write any network as ONNX for other runtimes.

Examples: `featkit weights export runs/hynet --name hynet --out weights/hynet.safetensors --add-to-manifest`,
`featkit weights export aliked-n16 --out aliked-n16.onnx --set max_keypoints=2048`

An ONNX file is written when ONNX Runtime gives featkit's own results with it; what goes in and comes out is in its
metadata and in docs/features.md. It takes a weight by name, a published network, a .safetensors file or a run."""

weights_app = typer.Typer(help=WEIGHTS_HELP, no_args_is_help=True, rich_markup_mode="markdown")


class Published(str, Enum):
    """Networks whose published checkpoints are known."""

    hardnet = "hardnet"
    sosnet = "sosnet"
    hynet = "hynet"


class Form(str, Enum):
    """Files that a network is exported to."""

    safetensors = "safetensors"
    onnx = "onnx"


class Which(str, Enum):
    """The two networks of a run."""

    best = "best"
    last = "last"


@verb
def list_(*, run: RunOptions) -> Outcome:
    from featkit.weights.catalogue import catalogue

    rows = list_weights()
    published = [_published(name) for name in catalogue()]
    columns = ["name", "network", "values", "recipe", "data", "licence", "kB", "scores"]
    table = Table("Weights", columns, [_cells(row) for row in rows])
    names = ["name", "what", "licence", "data", "here"]
    theirs = Table(
        "Published networks (featkit weights fetch NAME)",
        names,
        [[row["name"], row["summary"], row["licence"], row["data"], row["from"] or "-"] for row in published],
    )
    data = {"weights": [row.result_fields() for row in rows], "published": published}
    return Outcome(data, [] if rows else ["featkit's own weights are not installed"], [table, theirs][not rows :])


@verb
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A weight by name, or a safetensors file.")],
    *,
    run: RunOptions,
) -> Outcome:
    import json

    from featkit.weights.catalogue import catalogue
    from featkit.weights.files import read_metadata_patch_files

    if name in catalogue():
        return Outcome(_published(name), as_lines(_published(name)))
    path, row = find(name), listed(name)
    metadata: dict[str, Any] = dict(read_metadata_patch_files(path))
    if row is not None:
        described = {"path": str(path), **row.result_fields(), "whole": sha256_of(path) == row.sha256}
    else:
        if "config" in metadata:
            metadata["config"] = json.loads(metadata["config"])
        described = {"path": str(path), "sha256": sha256_of(path), "bytes": path.stat().st_size, **metadata}
    return Outcome(described, as_lines(described))


@verb
def fetch(
    name: Annotated[str, typer.Argument(help="A published network; `featkit weights list` has them.")],
    sha256: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE=HEX", help="Of a file that the catalogue has none for; repeatable.", show_default="none"
        ),
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE=ADDRESS", help="Another address of a file; repeatable.", show_default="the authors'"
        ),
    ] = None,
    archive: Annotated[
        list[Path] | None, typer.Option(help="A file that is on the disk; repeatable.", show_default="none")
    ] = None,
    overwrite: options.Overwrite = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.data.fetch_weights import fetch_weights
    from featkit.weights.catalogue import published_network

    digests = by_file("--sha256", sha256, "FILE=HEX, the 64 digits that `sha256sum FILE` prints")
    done = fetch_weights(name, addresses(url), archive or [], digests, overwrite)
    row = published_network(name)
    lines = [f"{file}: sha256 {done.sha256[file]}, from {source}" for file, source in done.sources.items()]
    lines += [f"{done.path}: {'was there' if done.was_there else row.summary}; {row.page} ({row.licence})"]
    data = {"name": name, "out": str(done.path), "sha256": done.sha256, "sources": done.sources}
    return Outcome({**data, "was_there": done.was_there, "licence": row.licence}, lines)


@verb
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth file.")],
    architecture: Annotated[
        Published | None, typer.Option(help="Whose it is.", show_default="seen in the file")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write.", show_default="beside the checkpoint")
    ] = None,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.weights.exchange import import_checkpoint
    from featkit.weights.files import save_patch_network

    network = import_checkpoint(checkpoint, architecture.value if architecture else None)
    path = out or checkpoint.with_suffix(".safetensors")
    origin = {"imported_from": checkpoint.name, "imported_sha256": sha256_of(checkpoint)}
    save_patch_network(path, network, origin)
    config = network.config.result_fields()
    data = {"out": str(path), "sha256": sha256_of(path), "config": config, **origin}
    return Outcome(data, [f"{path}: {config['architecture']}, {network.dimension} values"])


@verb
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|NAME",
            help="Folder of a run, checkpoint.pt, or a weights file; for ONNX also a network's name.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.", show_default=False)],
    form: Annotated[
        Form | None, typer.Option("--format", help="Kind of file.", show_default="by --out: .onnx, else safetensors")
    ] = None,
    name: Annotated[str, typer.Option(help="safetensors: what users will type.", show_default=False)] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="ONNX: a field of the extractor or matcher; repeatable."),
    ] = None,
    which: Annotated[Which, typer.Option(help="Of the run's two networks.")] = Which.best,
    add_to_manifest: Annotated[
        bool, typer.Option("--add-to-manifest", help="Write its row into manifest.json beside --out.")
    ] = False,
    recipe: Annotated[str, typer.Option(help="How it was trained.", show_default="the run's")] = "",
    data: Annotated[str, typer.Option(help="What it was trained on.", show_default="the run's")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weight.", show_default="none said")] = "",
    commit: Annotated[str, typer.Option(help="featkit's commit.", show_default="none said")] = "",
    scores_json: Annotated[Path | None, typer.Option(help="Measured scores: a json object.")] = None,
    max_mb: Annotated[
        float | None,
        typer.Option(
            help="Largest file, MB; its largest matrices take 8 bits where need be.",
            min=0,
            show_default="3 for patches, 10 for SCFeat",
        ),
    ] = None,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.weights.exchange import Origin, export_weight, read_scores

    if form is Form.onnx or (form is None and out.suffix.lower() == ".onnx"):
        unfit = {"--add-to-manifest": add_to_manifest, "--name": name, "--recipe": recipe, "--data": data}
        unfit |= {"--licence": licence, "--commit": commit, "--scores-json": scores_json, "--max-mb": max_mb}
        _refuse("--format onnx", {**unfit, "--which last": which is Which.last})
        return _export_onnx(source, out, overrides(settings or []))
    _refuse("--format safetensors", {"--set": settings})
    if not name:
        raise UsageError("--name is missing: what users will type for this weight (a file .onnx takes none)")
    scores = {} if scores_json is None else read_scores(scores_json)
    origin = Origin(recipe=recipe, data=data, licence=licence, commit=commit, scores=scores)
    if add_to_manifest:
        list_weights(out.parent)  # what is no manifest is better found before anything is written
    row = export_weight(Path(source), name, out, origin, which.value, max_mb)
    lines = [f"{out}: {row.bytes:,} bytes, sha256 {row.sha256}"]
    if add_to_manifest:
        lines.append(f"{add_row(row, out.parent)}: {name}")
    return Outcome({"out": str(out), **row.result_fields()}, lines)


def _refuse(form: str, options: dict[str, Any]) -> None:
    """Raises UsageError for the first option that was given, and that this form has no use for."""
    for option, value in options.items():
        if value:
            raise UsageError(f"{option} has no meaning for {form}")


def _export_onnx(source: str, out: Path, changes: dict[str, Any]) -> Outcome:
    from dataclasses import asdict

    from featkit.onnx.export import export_onnx

    done = export_onnx(source, out, changes)
    checks = ", ".join(f"{key} {value:{'g' if value >= 1 else '.2g'}}" for key, value in done.checks.items())
    lines = [f"{out}: {done.bytes:,} bytes, sha256 {done.sha256}"]
    for title, shapes in (("takes", done.inputs), ("gives", done.outputs)):
        lines.append(f"{title} " + ", ".join(f"{name} ({', '.join(map(str, axes))})" for name, axes in shapes.items()))
    lines.append(f"checked by ONNX Runtime against featkit: {checks}")
    return Outcome({**asdict(done), "out": str(out), "path": str(out)}, lines)


def _published(name: str) -> dict[str, Any]:
    """A row of the catalogue, and where its weights are ("" when they are not here)."""
    from featkit.weights.catalogue import cached_file, place, published_network

    row, path = published_network(name), place(name)
    source = f"package {next(iter(row.files[0].packages), '')}" if path != cached_file(name) else "the cache"
    return {"name": name, "from": source if path else "", "path": str(path or ""), **row.result_fields()}


def _cells(row: WeightInfo) -> list[Any]:
    values = f"{row.config['bits']} bits" if row.config.get("bits") else str(row.config.get("descriptor_channels", 128))
    scores = ", ".join(f"{key} {value:,.10g}" for key, value in row.scores.items() if isinstance(value, int | float))
    network = (
        f"scfeat {row.config.get('encoder')}" if row.kind == "scfeat" else str(row.config.get("architecture", "?"))
    )
    network += " + ST" if row.config.get("spatial_transformer") else ""
    return [row.name, network, values, row.recipe, row.data, row.licence, round(row.bytes / 1000), scores]


weights_app.command("list", help=LIST_HELP)(list_)
weights_app.command("show", help=SHOW_HELP, no_args_is_help=True)(show)
weights_app.command("fetch", help=FETCH_HELP, no_args_is_help=True)(fetch)
weights_app.command("import", help=IMPORT_HELP, no_args_is_help=True)(import_)
weights_app.command("export", help=EXPORT_HELP, no_args_is_help=True)(export)


# ----------------------------------------------------------------------------------------------------------------------
# `featkit features`: what `--features` and `--matcher` can say.


FEATURES_HELP = (
    "List the local features and matchers: what each is, its data, licence, weights, measured speed and score."
)
MEASURES = {"cpu_s": "CPU s", "keypoints_per_s": "keypoints/s", "mma_score_percent": "MMAScore"}
MEASURED_NOTE = (
    "CPU s: of an image of 640x480 on one thread. keypoints/s: at 1600 px on two cores. MMAScore: on the six"
    " Oxford sequences, %. -: not measured. More: docs/benchmarks.md"
)


@verb
def features_command(*, run: RunOptions) -> Outcome:
    from dataclasses import asdict

    from featkit.features.listing import list_features, list_matchers

    listed = {"features": list_features(), "matchers": list_matchers()}
    columns = ["name", "what it is", "learned from", "licence", "weights"]
    tables = []
    for title, rows in zip(("Features (--features NAME)", "Matchers (--matcher NAME)"), listed.values(), strict=True):
        cells: list[list[Any]] = [
            [row.name, row.summary, row.data or "-", row.licence or "-", row.weights] for row in rows
        ]
        if rows is listed["features"]:
            cells = [
                [*cell, *(row.measured.get(key) for key in MEASURES)] for cell, row in zip(cells, rows, strict=True)
            ]
            tables.append(Table(title, [*columns, *MEASURES.values()], cells, note=MEASURED_NOTE))
        else:
            tables.append(Table(title, columns, cells))
    return Outcome({kind: [asdict(row) for row in rows] for kind, rows in listed.items()}, [], tables)
