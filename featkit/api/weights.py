"""Weights: what there is, fetched from their authors, imported, and exported for others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from featkit.api.options import Overwrite, Settings, Shown, addresses, by_file, changes_of, takes
from featkit.core.errors import UsageError, blaming
from featkit.data.fetch_weights import fetch_weights as fetched
from featkit.features.listing import FeatureInfo, list_features, list_matchers
from featkit.onnx.export import export_onnx
from featkit.weights.catalogue import PublishedNetwork, cached_file, catalogue, place, published_network
from featkit.weights.exchange import Origin, export_weight, import_checkpoint, read_scores
from featkit.weights.files import read_metadata_patch_files, save_patch_network
from featkit.weights.manifest import WeightInfo, add_row, find, listed, sha256_of
from featkit.weights.manifest import list_weights as list_shipped

ARCHITECTURES = ("hardnet", "sosnet", "hynet")
"""Networks whose published checkpoints can be imported."""
FORMATS = ("safetensors", "onnx")
NETWORKS = ("best", "last")
"""The two networks of a run."""


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UsageError for any other value."""
    if value not in choices:
        raise UsageError(f"{option} {value}: one of {', '.join(choices)}")


# ----------------------------------------------------------------------------------------------------------------------
# What there is.


@dataclass(frozen=True)
class Available:
    """shipped: featkit's own weights. published: networks of other authors, with where their weights are."""

    shipped: list[WeightInfo]
    published: list[dict[str, Any]]


@takes(None)
def list_weights() -> Available:
    """The weights that can be used by name."""
    return Available(list_shipped(), [_published(name) for name in catalogue()])


@takes(None)
def show_weights(
    name: Annotated[str, Shown(metavar="NAME|FILE", help="Weights by name, or a safetensors file.")],
) -> dict[str, Any]:
    """All that is known about some weights. Raises UsageError for an unknown name, BadInputError for a broken file."""
    if name in catalogue():
        return _published(name)
    path, row = find(name), listed(name)
    metadata: dict[str, Any] = dict(read_metadata_patch_files(path))
    if row is not None:
        return {"path": str(path), **row.result_fields(), "whole": sha256_of(path) == row.sha256}
    if "config" in metadata:
        with blaming(path, "a weights file", "its metadata do not describe the network; make it again"):
            metadata["config"] = json.loads(metadata["config"])
    return {"path": str(path), "sha256": sha256_of(path), "bytes": path.stat().st_size, **metadata}


def _published(name: str) -> dict[str, Any]:
    """A row of the catalogue, and where its weights are ("" when they are not here)."""
    row, path = published_network(name), place(name)
    source = f"package {next(iter(row.files[0].packages), '')}" if path != cached_file(name) else "the cache"
    return {"name": name, "from": source if path else "", "path": str(path or ""), **row.result_fields()}


@takes(None)
def list_methods() -> dict[str, list[FeatureInfo]]:
    """What `features` and `matcher` can be: by "features" and "matchers"."""
    return {"features": list_features(), "matchers": list_matchers()}


# ----------------------------------------------------------------------------------------------------------------------
# Weights of other authors.


@dataclass(frozen=True)
class FetchedWeights:
    """sha256, sources: by file of the authors. was_there: nothing was fetched."""

    name: str
    path: Path
    sha256: dict[str, str]
    sources: dict[str, str]
    was_there: bool
    network: PublishedNetwork


@takes(None)
def fetch_weights(
    name: Annotated[str, Shown(help="A published network; `featkit weights list` has them.")],
    *,
    sha256: Annotated[
        list[str] | None,
        Shown(metavar="FILE=HEX", help="Of a file that the catalogue has none for; repeatable.", unset="none"),
    ] = None,
    url: Annotated[
        list[str] | None,
        Shown(metavar="FILE=ADDRESS", help="Another address of a file; repeatable.", unset="the authors'"),
    ] = None,
    archive: Annotated[list[Path] | None, Shown(help="A file that is on the disk; repeatable.", unset="none")] = None,
    overwrite: Overwrite = False,
) -> FetchedWeights:
    """Download the weights of a published network, check and keep them. sha256, url: also as mappings.

    Raises featkit's errors.
    """
    digests = by_file("--sha256", sha256, "FILE=HEX, the 64 digits that `sha256sum FILE` prints")
    done = fetched(name, addresses(url), archive or [], digests, overwrite)
    return FetchedWeights(name, done.path, done.sha256, done.sources, done.was_there, published_network(name))


@dataclass(frozen=True)
class ImportedWeights:
    """A published checkpoint as safetensors. config: of the network. origin: the checkpoint's name and sha256."""

    out: Path
    config: dict[str, Any]
    dimension: int
    origin: dict[str, str]


@takes(None)
def import_weights(
    checkpoint: Annotated[Path, Shown(help="A .pth file.")],
    *,
    architecture: Annotated[
        str | None, Shown(metavar="|".join(ARCHITECTURES), help="Its network.", unset="seen in the file")
    ] = None,
    out: Annotated[Path | None, Shown("--out", "-o", help="The file to write.", unset="next to the checkpoint")] = None,
) -> ImportedWeights:
    """Turn a published HardNet, SOSNet or HyNet checkpoint into a safetensors file. Raises featkit's errors."""
    if architecture is not None:
        _one_of("--architecture", architecture, ARCHITECTURES)
    network = import_checkpoint(checkpoint, architecture)
    path = out or checkpoint.with_suffix(".safetensors")
    origin = {"imported_from": checkpoint.name, "imported_sha256": sha256_of(checkpoint)}
    save_patch_network(path, network, origin)
    return ImportedWeights(path, network.config.result_fields(), network.dimension, origin)


# ----------------------------------------------------------------------------------------------------------------------
# Weights for others.


@dataclass(frozen=True)
class ExportedWeights:
    """What was written. row: of a manifest. manifest: where that row was added. onnx: `onnx.export`'s, of that form."""

    out: Path
    row: WeightInfo | None = None
    manifest: Path | None = None
    onnx: Any = None


@takes(None)
def export_weights(
    source: Annotated[
        str,
        Shown(
            metavar="RUN|NAME",
            help="Folder of a run, checkpoint.pt, or a weights file; for ONNX also a network's name.",
        ),
    ],
    *,
    out: Annotated[Path, Shown("--out", "-o", help="The file to write.", unset=False)],
    format: Annotated[
        str | None,
        Shown(metavar="|".join(FORMATS), help="Kind of file.", unset="by --out: .onnx, else safetensors"),
    ] = None,
    name: Annotated[str, Shown(help="safetensors: what users will type.", unset=False)] = "",
    settings: Settings = None,
    which: Annotated[str, Shown(metavar="|".join(NETWORKS), help="Which of the run's networks.")] = "best",
    add_to_manifest: Annotated[
        bool, Shown("--add-to-manifest", help="Write its row into manifest.json next to --out.")
    ] = False,
    recipe: Annotated[str, Shown(help="How it was trained.", unset="the run's")] = "",
    data: Annotated[str, Shown(help="What it was trained on.", unset="the run's")] = "",
    licence: Annotated[str, Shown(help="Licence of the weights.", unset="none")] = "",
    commit: Annotated[str, Shown(help="featkit's commit.", unset="none")] = "",
    scores_json: Annotated[Path | None, Shown(help="Measured scores: a json object.", unset="none")] = None,
    max_mb: Annotated[
        float | None,
        Shown(
            help="Largest file, MB; its largest matrices take 8 bits where need be.",
            low=0,
            unset="3 for patches, 10 for SCFeat",
        ),
    ] = None,
) -> ExportedWeights:
    """Write the network of a training as safetensors, or any network as ONNX. Raises featkit's errors."""
    _one_of("--which", which, NETWORKS)
    if format is not None:
        _one_of("--format", format, FORMATS)
    if format == "onnx" or (format is None and out.suffix.lower() == ".onnx"):
        unfit = {"--add-to-manifest": add_to_manifest, "--name": name, "--recipe": recipe, "--data": data}
        unfit |= {"--licence": licence, "--commit": commit, "--scores-json": scores_json, "--max-mb": max_mb}
        _refuse("--format onnx", {**unfit, "--which last": which == "last"})
        return ExportedWeights(out, onnx=export_onnx(source, out, changes_of(settings)))
    _refuse("--format safetensors", {"--set": settings})
    if not name:
        raise UsageError("--name is missing: what users will type for these weights (a file .onnx takes none)")
    scores = {} if scores_json is None else read_scores(scores_json)
    origin = Origin(recipe=recipe, data=data, licence=licence, commit=commit, scores=scores)
    if add_to_manifest:
        list_shipped(out.parent)  # a broken manifest is better found before anything is written
    row = export_weight(Path(source), name, out, origin, which, max_mb)
    return ExportedWeights(out, row, add_row(row, out.parent) if add_to_manifest else None)


def _refuse(form: str, options: dict[str, Any]) -> None:
    """Raise UsageError for the first option that was given and that this form has no use for."""
    for option, value in options.items():
        if value:
            raise UsageError(f"{option} has no meaning for {form}")
