"""Values of `--features` and `--matcher`: descriptions and available weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featkit.core.config import config_names, named_config, read_yaml
from featkit.core.registry import EXTRACTORS, KINDS, MATCHERS, resolve
from featkit.weights.catalogue import catalogue, command_to_fetch, place, published_network
from featkit.weights.manifest import listed

MEASURED = Path(__file__).with_name("measured.yaml")


@dataclass(frozen=True)
class FeatureInfo:
    """Description of one feature or matcher. data: training data. weights: "none needed", "shipped", "here", or the
    command that fetches them.

    measured: by unit, as in measured.yaml; empty if not measured.
    """

    name: str
    summary: str
    data: str
    licence: str
    weights: str
    paper: str = ""
    measured: dict[str, float] = field(default_factory=dict)


def list_features() -> list[FeatureInfo]:
    """All features by name. Raises BadInputError for a damaged configuration."""
    figures = read_yaml(MEASURED)
    return [replace(_info(name), measured=figures.get(name, {})) for name in config_names("extractor")]


def list_matchers() -> list[FeatureInfo]:
    """All matchers by name; a matcher with weights for several features has a row for each."""
    rows = []
    for name in config_names("matcher"):
        values: dict[str, Any] = named_config(name)
        if values["matcher"] != "lightglue":
            known = MATCHERS.get(values["matcher"])
            summary = values["matcher"] if known is None else known.summary
            rows.append(FeatureInfo(name, f"{summary}{_variant(values)}", "", "", "none needed"))
            continue
        for network, row in catalogue().items():
            if row.matches:
                weights = "here" if place(network) is not None else command_to_fetch(network)
                summary = f"{row.summary} ({', '.join(row.matches)})"
                rows.append(FeatureInfo(name, summary, row.data, row.licence, weights, row.paper))
    return rows


def _info(name: str) -> FeatureInfo:
    method = resolve("extractor", name, device="cpu")
    values: dict[str, Any] = named_config(name)
    summary = EXTRACTORS[values["extractor"]].summary
    network = getattr(method.built, "network_name", None)
    if network is not None:
        row = published_network(network)
        weights = "here" if place(network) is not None else command_to_fetch(network)
        return FeatureInfo(name, row.summary, row.data, row.licence, weights, row.paper)
    own = str(getattr(method.own, "weights", ""))
    if not own:
        return FeatureInfo(name, f"{summary}{_variant(values)}", "", "", "none needed")
    shipped = listed(own)
    if shipped is None:
        return FeatureInfo(name, summary, "", "", "not shipped: --weights FILE")
    return FeatureInfo(name, f"{summary}: {own}", shipped.data, shipped.licence, "shipped")


def _variant(values: dict[str, Any]) -> str:
    """Short description of what a configuration changes."""
    changed = [f"{key} {value}" for key, value in values.items() if key not in KINDS]
    return f" ({', '.join(changed)})" if changed else ""
