"""List, fetch, import and export weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from featkit.api.options import Overwrite, Param, Settings, parse_by_file, parse_settings, parse_urls, with_options
from featkit.core.errors import UsageError, blaming
from featkit.data.fetch_weights import cache_weights
from featkit.features.listing import FeatureInfo, list_features, list_matchers
from featkit.onnx.export import export_onnx
from featkit.weights.catalogue import PublishedNetwork, cached_file, catalogue, place, published_network
from featkit.weights.exchange import WeightOrigin, export_weight, import_checkpoint, read_scores
from featkit.weights.files import read_metadata_patch_files, save_patch_network
from featkit.weights.manifest import WeightInfo, add_row, find_weights, listed, manifest_rows, sha256_of

ARCHITECTURES = ("hardnet", "sosnet", "hynet")
"""Networks whose published checkpoints can be imported."""
FORMATS = ("safetensors", "onnx")
NETWORKS = ("best", "last")
"""The networks that a training run keeps."""


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UsageError unless `value` is one of `choices`."""
    if value not in choices:
        raise UsageError(f"{option} {value}: one of {', '.join(choices)}")


# ----------------------------------------------------------------------------------------------------------------------
# Available weights.


@dataclass(frozen=True)
class Available:
    """shipped: featkit's own weights. published: networks of other authors, with the location of their weights."""

    shipped: list[WeightInfo]
    published: list[dict[str, Any]]


@with_options(None)
def list_weights() -> Available:
    """All weights that can be used by name."""
    return Available(manifest_rows(), [_published_row(name) for name in catalogue()])


@with_options(None)
def show_weights(
    name: Annotated[str, Param(metavar="NAME|FILE", help="Weights by name, or a safetensors file.")],
) -> dict[str, Any]:
    """Describe weights. Raises UsageError for an unknown name, BadInputError for a damaged file."""
    if name in catalogue():
        return _published_row(name)
    path, row = find_weights(name), listed(name)
    metadata: dict[str, Any] = dict(read_metadata_patch_files(path))
    if row is not None:
        return {"path": str(path), **row.result_fields(), "whole": sha256_of(path) == row.sha256}
    if "config" in metadata:
        with blaming(path, "a weights file", "its metadata do not describe the network; make it again"):
            metadata["config"] = json.loads(metadata["config"])
    return {"path": str(path), "sha256": sha256_of(path), "bytes": path.stat().st_size, **metadata}


def _published_row(name: str) -> dict[str, Any]:
    """A row of the catalogue and the location of its weights ("" if not downloaded)."""
    row, path = published_network(name), place(name)
    source = f"package {next(iter(row.files[0].packages), '')}" if path != cached_file(name) else "the cache"
    return {"name": name, "from": source if path else "", "path": str(path or ""), **row.result_fields()}


@with_options(None)
def list_methods() -> dict[str, list[FeatureInfo]]:
    """All local features and matchers, under "features" and "matchers"."""
    return {"features": list_features(), "matchers": list_matchers()}


# ----------------------------------------------------------------------------------------------------------------------
# Published weights.


@dataclass(frozen=True)
class FetchedWeights:
    """Weights of a published network. sha256, sources: by file. was_there: they were already downloaded."""

    name: str
    path: Path
    sha256: dict[str, str]
    sources: dict[str, str]
    was_there: bool
    network: PublishedNetwork


@with_options(None)
def fetch_weights(
    name: Annotated[str, Param(help="A published network; `featkit weights list` has them.")],
    *,
    sha256: Annotated[
        list[str] | None,
        Param(metavar="FILE=HEX", help="Checksum of a file that has none in the catalogue; repeatable.", unset="none"),
    ] = None,
    url: Annotated[
        list[str] | None,
        Param(metavar="FILE=ADDRESS", help="Another URL for a file; repeatable.", unset="the authors'"),
    ] = None,
    archive: Annotated[
        list[Path] | None, Param(help="A file that was downloaded already; repeatable.", unset="none")
    ] = None,
    overwrite: Overwrite = False,
) -> FetchedWeights:
    """Download, check and cache the weights of a published network. sha256, url: may also be mappings.

    Raises featkit's errors.
    """
    digests = parse_by_file("--sha256", sha256, "FILE=HEX, the 64 digits that `sha256sum FILE` prints")
    done = cache_weights(name, parse_urls(url), archive or [], digests, overwrite)
    return FetchedWeights(name, done.path, done.sha256, done.sources, done.was_there, published_network(name))


@dataclass(frozen=True)
class ImportedWeights:
    """An imported checkpoint. config: the network's configuration. origin: the checkpoint's name and sha256."""

    out: Path
    config: dict[str, Any]
    dimension: int
    origin: dict[str, str]


@with_options(None)
def import_weights(
    checkpoint: Annotated[Path, Param(help="A .pth file.")],
    *,
    architecture: Annotated[
        str | None, Param(metavar="|".join(ARCHITECTURES), help="Network architecture.", unset="found from the file")
    ] = None,
    out: Annotated[Path | None, Param("--out", "-o", help="The file to write.", unset="next to the checkpoint")] = None,
) -> ImportedWeights:
    """Turn a published HardNet, SOSNet or HyNet checkpoint into a safetensors file. Raises featkit's errors."""
    if architecture is not None:
        _check_choice("--architecture", architecture, ARCHITECTURES)
    network = import_checkpoint(checkpoint, architecture)
    path = out or checkpoint.with_suffix(".safetensors")
    origin = {"imported_from": checkpoint.name, "imported_sha256": sha256_of(checkpoint)}
    save_patch_network(path, network, origin)
    return ImportedWeights(path, network.config.result_fields(), network.dimension, origin)


# ----------------------------------------------------------------------------------------------------------------------
# Export.


@dataclass(frozen=True)
class ExportedWeights:
    """An exported file. row: its manifest row. manifest: where that row was added. onnx: result of an ONNX export."""

    out: Path
    row: WeightInfo | None = None
    manifest: Path | None = None
    onnx: Any = None


@with_options(None)
def export_weights(
    source: Annotated[
        str,
        Param(
            metavar="RUN|NAME",
            help="Folder of a training run, checkpoint.pt, or a weights file; for ONNX also a network's name.",
        ),
    ],
    *,
    out: Annotated[Path, Param("--out", "-o", help="The file to write.", unset=False)],
    format: Annotated[
        str | None,
        Param(metavar="|".join(FORMATS), help="File format.", unset="by --out: .onnx, else safetensors"),
    ] = None,
    name: Annotated[str, Param(help="Name of the weights, for safetensors.", unset=False)] = "",
    settings: Settings = None,
    which: Annotated[str, Param(metavar="|".join(NETWORKS), help="Which of the run's networks.")] = "best",
    add_to_manifest: Annotated[
        bool, Param("--add-to-manifest", help="Add a row to manifest.json next to --out.")
    ] = False,
    recipe: Annotated[str, Param(help="How it was trained.", unset="the run's")] = "",
    data: Annotated[str, Param(help="What it was trained on.", unset="the run's")] = "",
    licence: Annotated[str, Param(help="Licence of the weights.", unset="none")] = "",
    commit: Annotated[str, Param(help="featkit's commit.", unset="none")] = "",
    scores_json: Annotated[Path | None, Param(help="Measured scores: a json object.", unset="none")] = None,
    max_mb: Annotated[
        float | None,
        Param(
            help="Maximum file size, MB; the largest matrices are stored in 8 bits if needed.",
            low=0,
            unset="3 for patches, 10 for SCFeat",
        ),
    ] = None,
) -> ExportedWeights:
    """Write the network of a training as safetensors, or any network as ONNX. Raises featkit's errors."""
    _check_choice("--which", which, NETWORKS)
    if format is not None:
        _check_choice("--format", format, FORMATS)
    is_onnx = out.suffix.lower() == ".onnx"
    if format is not None and (format == "onnx") != is_onnx:
        raise UsageError(f"--format {format}: --out {out} ends in {out.suffix or 'nothing'}; name a file .{format}")
    if is_onnx:
        unfit = {"--add-to-manifest": add_to_manifest, "--name": name, "--recipe": recipe, "--data": data}
        unfit |= {"--licence": licence, "--commit": commit, "--scores-json": scores_json, "--max-mb": max_mb}
        _refuse_options("--format onnx", {**unfit, "--which last": which == "last"})
        return ExportedWeights(out, onnx=export_onnx(source, out, parse_settings(settings)))
    _refuse_options("--format safetensors", {"--set": settings})
    if not name:
        raise UsageError("--name is missing: what users will type for these weights (a file .onnx takes none)")
    scores = {} if scores_json is None else read_scores(scores_json)
    origin = WeightOrigin(recipe=recipe, data=data, licence=licence, commit=commit, scores=scores)
    if add_to_manifest:
        manifest_rows(out.parent)  # a broken manifest is better found before anything is written
    row = export_weight(Path(source), name, out, origin, which, max_mb)
    return ExportedWeights(out, row, add_row(row, out.parent) if add_to_manifest else None)


def _refuse_options(form: str, options: dict[str, Any]) -> None:
    """Raise UsageError for the first of these options that was given."""
    for option, value in options.items():
        if value:
            raise UsageError(f"{option} has no meaning for {form}")
