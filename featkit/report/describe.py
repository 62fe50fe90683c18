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

Description = dict[str, Any]


def describe(what: str) -> Description:
    """Describe a path or configuration: `kind`, counts, configuration. Raises BadInputError or UsageError."""
    path = Path(what)
    if path.is_dir():
        return _describe_folder(path)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise BadInputError(f"{path}: no such file or folder")
        return _describe_configuration(what)
    readers: dict[str, Callable[[Path], Description]] = {
        ".h5": _describe_store,
        ".hdf5": _describe_store,
        ".txt": _describe_text,
        ".yaml": lambda p: _describe_configuration(str(p)),
        ".yml": lambda p: _describe_configuration(str(p)),
        ".safetensors": _describe_weights,
        ".json": _describe_json,
        ".db": _describe_database,
    }
    if path.suffix.lower() in readers:
        return readers[path.suffix.lower()](path)
    width, height = stored_size(path)
    return {"kind": "image", "path": str(path), "width": width, "height": height}


def _describe_store(path: Path) -> Description:
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
    """Number of matches of every pair. hloc's group names are ambiguous, but are not needed here."""
    with open_matches(path) as matches:
        made_here = "format" in matches.attributes()
        if made_here:
            return [matches.read(pair).count for pair in matches.pairs()]
    with h5.reading(path) as file, blaming(path, "a matches file", "match again"):
        groups = [group for _, group in h5.groups(file, "matches0")]
        return [int((array_of(group, "matches0") >= 0).sum()) for group in groups]


def _describe_text(path: Path) -> Description:
    """Describe a list of poses, intrinsics or pairs by the first reader that accepts every line."""
    problems = []
    for kind, reader in (("poses", read_poses), ("intrinsics", read_intrinsics_list), ("pairs", read_pairs)):
        try:
            found = reader(path)
        except BadInputError as error:
            problems.append(str(error))
            continue
        described: Description = {"kind": kind, "path": str(path), kind: len(found)}
        if kind == "pairs":
            names = {name for pair in read_pairs(path) for name in (pair.name0, pair.name1)}
            described |= {"images": len(names), **_recorded_origin(describe_pairs(path))}
        if kind == "poses":
            described |= _localization_summary(path, len(found))
        return described
    raise BadInputError(f"{problems[-1]} (and it is not a list of poses or intrinsics)")


def _localization_summary(path: Path, poses: int) -> Description:
    """Contents of poses.json next to poses.txt, if it belongs to these poses."""
    stamp = read_stamp(path.with_suffix(".json"))
    if stamp is None or stamp.get("localized") != poses:
        return {}
    return {key: stamp[key] for key in ("localized", "queries") if key in stamp} | _recorded_origin(stamp)


def _recorded_origin(stamp: dict[str, Any] | None) -> Description:
    keys = ("fingerprint", "featkit_version", "method", "config")
    return {} if stamp is None else {key: stamp[key] for key in keys if key in stamp}


def _describe_folder(path: Path) -> Description:
    if is_model(path):
        sparse = path.resolve().parent
        return _describe_model(path) | _recorded_origin(read_stamp(sparse.with_name(f"{sparse.name}.json")))
    try:
        found = find_map(path)
    except FeatkitError:
        names = list_images(path)
        return {"kind": "images", "path": str(path), "images": len(names)}
    described: Description = {"kind": "map", "path": str(found.folder), "features": str(found.features)}
    models = found.model.parent
    described["models"] = [_describe_model(folder) for folder in sorted(models.iterdir()) if is_model(folder)]
    return described | _recorded_origin(read_stamp(found.folder / "sparse.json"))


def _describe_model(path: Path) -> Description:
    model = read_model(path)
    cameras = sorted({camera.model_name for camera in model.cameras.values()})
    return {
        "kind": "model",
        "path": str(path),
        "cameras": model.num_cameras(),
        "camera_models": cameras,
        **asdict(map_statistics(model, model.num_images())),
    }


def _describe_database(path: Path) -> Description:
    return {
        "kind": "database",
        "path": str(path),
        **database_counts(path),
        **_recorded_origin(read_stamp(path.with_suffix(".json"))),
    }


def _describe_configuration(name: str) -> Description:
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


def _describe_weights(path: Path) -> Description:
    from safetensors import safe_open

    with blaming(path, "a safetensors file", "copy it again"), safe_open(path, framework="numpy") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    described: Description = {"kind": "weights", "path": str(path), "tensors": len(shapes), "metadata": metadata}
    listed = _manifest_entry(path.name)
    return described if listed is None else described | {"manifest": listed}


def _manifest_entry(file_name: str) -> Description | None:
    """The manifest entry of featkit's own weights with this file name, or None."""
    try:
        manifest = json.loads((resource_dir("weights") / "manifest.json").read_text(encoding="utf-8"))
        return next((dict(entry) for entry in manifest["weights"] if entry.get("file") == file_name), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no manifest: nothing to add
        return None


def _describe_json(path: Path) -> Description:
    content = read_json(path, "a json file", "give another file")
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: not a file made by featkit")
    plain = {key: value for key, value in content.items() if not isinstance(value, list | dict) or key == "config"}
    return {"path": str(path), **plain, "kind": content.get("kind", "json")}


def description_lines(described: Description, indent: str = "") -> list[str]:
    """The description as text, one value per line."""
    lines = []
    for key, value in described.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *description_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}:")
            for item in value:
                lines += [*description_lines(item, indent + "  "), ""]
        elif value is not None:
            lines.append(f"{indent}{key}: {_format_value(value)}")
    return lines


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
