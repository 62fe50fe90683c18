"""Description of a path for `featkit info`, as plain values."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featkit.core.config import named_config, resource_dir
from featkit.core.errors import BadInputError, FeatkitError, blaming
from featkit.core.registry import KINDS, resolve
from featkit.images.listing import list_images
from featkit.images.read import stored_size
from featkit.io import h5
from featkit.io.atomic import read_json, read_stamp
from featkit.io.features import open_features
from featkit.io.h5_items import array_of
from featkit.io.lists import describe_pairs, read_intrinsics_list, read_pairs, read_poses
from featkit.io.matches import open_matches
from featkit.mapping.database import database_counts
from featkit.mapping.model import is_model, map_statistics, read_model
from featkit.mapping.scene import find_map

Described = dict[str, Any]


def describe(what: str) -> Described:
    """What `what` is: `kind`, counts, and the configuration that made it. Raises BadInputError or UsageError."""
    path = Path(what)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise BadInputError(f"{path}: no such file or folder")
        return _configuration(what)
    readers: dict[str, Callable[[Path], Described]] = {
        ".h5": _store,
        ".hdf5": _store,
        ".txt": _text,
        ".yaml": lambda p: _configuration(str(p)),
        ".yml": lambda p: _configuration(str(p)),
        ".safetensors": _weights,
        ".json": _json,
        ".db": _database,
    }
    if path.suffix.lower() in readers:
        return readers[path.suffix.lower()](path)
    width, height = stored_size(path)
    return {"kind": "image", "path": str(path), "width": width, "height": height}


def _store(path: Path) -> Described:
    with h5.reading(path) as file:
        attributes = h5.root_attributes(file)
        is_matches = attributes.get("kind") == "matches" or bool(h5.groups_with(file, "matches0"))
    origin = {key: attributes.get(key) for key in ("fingerprint", "featkit_version", "config")}
    if is_matches:
        counts = _match_counts(path)
        return {"kind": "matches", "path": str(path), "pairs": len(counts), "matches": sum(counts), **origin}
    with open_features(path) as features:
        names = features.names()
        counts = [features.count(name) for name in names]
        dimension = len(features.descriptors(names[0])[0]) if counts and counts[0] else None
    return {
        "kind": "features",
        "path": str(path),
        "images": len(names),
        "keypoints": sum(counts),
        "keypoints_min": min(counts, default=0),
        "keypoints_max": max(counts, default=0),
        "descriptor_dimension": dimension,
        **origin,
    }


def _match_counts(path: Path) -> list[int]:
    """Matches of every pair. The names of hloc's groups are ambiguous, but are not needed here."""
    with open_matches(path) as matches:
        made_here = "format" in matches.attributes()
        if made_here:
            return [matches.read(pair).count for pair in matches.pairs()]
    with h5.reading(path) as file, blaming(path, "a matches file", "match again"):
        groups = [group for _, group in h5.groups(file, "matches0")]
        return [int((array_of(group, "matches0") >= 0).sum()) for group in groups]


def _text(path: Path) -> Described:
    """pairs, poses or intrinsics: the first reader that accepts every line."""
    problems = []
    for kind, reader in (("poses", read_poses), ("intrinsics", read_intrinsics_list), ("pairs", read_pairs)):
        try:
            found = reader(path)
        except BadInputError as error:
            problems.append(str(error))
            continue
        described: Described = {"kind": kind, "path": str(path), kind: len(found)}
        if kind == "pairs":
            names = {name for pair in read_pairs(path) for name in (pair.name0, pair.name1)}
            described |= {"images": len(names), **_origin(describe_pairs(path))}
        if kind == "poses":
            described |= _localization(path, len(found))
        return described
    raise BadInputError(f"{problems[-1]} (nor is it a list of poses or of intrinsics)")


def _localization(path: Path, poses: int) -> Described:
    """Contents of poses.json next to poses.txt, if it belongs to these poses."""
    stamp = read_stamp(path.with_suffix(".json"))
    if stamp is None or stamp.get("localized") != poses:
        return {}
    return {key: stamp[key] for key in ("localized", "queries") if key in stamp} | _origin(stamp)


def _origin(stamp: dict[str, Any] | None) -> Described:
    keys = ("fingerprint", "featkit_version", "method", "config")
    return {} if stamp is None else {key: stamp[key] for key in keys if key in stamp}


def _folder(path: Path) -> Described:
    if is_model(path):
        sparse = path.resolve().parent
        return _model(path) | _origin(read_stamp(sparse.with_name(f"{sparse.name}.json")))
    try:
        found = find_map(path)
    except FeatkitError:
        names = list_images(path)
        return {"kind": "images", "path": str(path), "images": len(names)}
    described: Described = {"kind": "map", "path": str(found.folder), "features": str(found.features)}
    models = found.model.parent
    described["models"] = [_model(folder) for folder in sorted(models.iterdir()) if is_model(folder)]
    return described | _origin(read_stamp(found.folder / "sparse.json"))


def _model(path: Path) -> Described:
    model = read_model(path)
    cameras = sorted({camera.model_name for camera in model.cameras.values()})
    return {
        "kind": "model",
        "path": str(path),
        "cameras": model.num_cameras(),
        "camera_models": cameras,
        **asdict(map_statistics(model, model.num_images())),
    }


def _database(path: Path) -> Described:
    return {
        "kind": "database",
        "path": str(path),
        **database_counts(path),
        **_origin(read_stamp(path.with_suffix(".json"))),
    }


def _configuration(name: str) -> Described:
    values = named_config(name)
    for kind in KINDS:
        if kind in values:
            config = resolve(kind, name).own
            return {
                "kind": f"{kind} configuration",
                "name": name,
                kind: values[kind],
                "fingerprint": config.fingerprint(),
                "config": config.result_fields(),
            }
    return {"kind": "configuration", "name": name, "config": values}


def _weights(path: Path) -> Described:
    from safetensors import safe_open

    with blaming(path, "a safetensors file", "copy it again"), safe_open(path, framework="numpy") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    described: Described = {"kind": "weights", "path": str(path), "tensors": len(shapes), "metadata": metadata}
    listed = _listed_weights(path.name)
    return described if listed is None else described | {"manifest": listed}


def _listed_weights(file_name: str) -> Described | None:
    """The manifest entry of featkit's own weights with this file name, or None."""
    try:
        manifest = json.loads((resource_dir("weights") / "manifest.json").read_text(encoding="utf-8"))
        return next((dict(entry) for entry in manifest["weights"] if entry.get("file") == file_name), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no manifest: nothing to add
        return None


def _json(path: Path) -> Described:
    content = read_json(path, "a json file", "give another file")
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: no file of featkit's")
    plain = {key: value for key, value in content.items() if not isinstance(value, list | dict) or key == "config"}
    return {"path": str(path), **plain, "kind": content.get("kind", "json")}


def as_lines(described: Described, indent: str = "") -> list[str]:
    """The description as text, one value per line."""
    lines = []
    for key, value in described.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *as_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}:")
            for item in value:
                lines += [*as_lines(item, indent + "  "), ""]
        elif value is not None:
            lines.append(f"{indent}{key}: {_text_of(value)}")
    return lines


def _text_of(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
