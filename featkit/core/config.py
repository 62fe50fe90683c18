"""Base of every configuration: typed, frozen, strict, and with a fingerprint that decides what may be reused.

A field that cannot change a result (number of workers, batch size) is marked `Runtime` and stays out of the
fingerprint. A yaml file in `configs/` lists only what differs from the defaults in code.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featkit.core.errors import BadInputError, UsageError, open_input

T = TypeVar("T")
LARGEST_YAML = 1 << 22  # bytes
MOST_VALUES = 100_000  # in a yaml file, each as often as its aliases repeat it
DEEPEST = 100  # values inside each other in a yaml file
ConfigT = TypeVar("ConfigT", bound="Config")


class _RuntimeMarker:
    """Marks a field that affects how the work is done but not its result."""


Runtime = Annotated[T, _RuntimeMarker()]


class _LaterMarker:
    """Marks a field that was added later: results recorded without it were made with its default."""


Later = Annotated[T, _LaterMarker()]

# ----------------------------------------------------------------------------------------------------------------------
# Number types for configurations. Every number has a range, because many reach native code that checks nothing. A
# field may add a bound of another kind (`Field(0.5, gt=0)`) but cannot override one of the same kind: write such a
# field's type out. NaN and infinity are refused unless a field allows them (`allow_inf_nan=True`).

Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""Random seed; native code takes 31 bits."""
Count = Annotated[int, Field(ge=1, le=10**9)]
"""A count of at least one."""
MAX_KEYPOINTS = 1 << 20
"""Most keypoints of an image. A 250-megapixel photograph has fewer, and matching them already takes hours."""
KeypointCount = Annotated[int, Field(ge=1, le=MAX_KEYPOINTS)]
"""A maximum number of keypoints of an image."""
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
"""A count; 0 usually means none or automatic."""
Trials = Annotated[int, Field(ge=1, le=10**8)]
"""Iterations of a robust estimator."""
WorkerCount = Annotated[int, Field(ge=0, le=1024)]
"""Number of parallel processes or threads; 0: one per core."""
Threads = Annotated[int, Field(ge=-1, le=1024)]
"""Number of threads in native code, at most one per core; -1: all cores."""
Side = Annotated[int, Field(ge=1, le=2**16)]
"""Width, height or length in whole pixels."""
Pixels = Annotated[float, Field(gt=0, le=1e5)]
"""A positive distance in an image, px."""
PixelsOrZero = Annotated[float, Field(ge=0, le=1e5)]
"""A distance in an image, px; may be 0."""
Degrees = Annotated[float, Field(ge=0, le=180)]
"""An unsigned angle, degrees."""
Radians = Annotated[float, Field(ge=0, le=math.pi)]
"""An unsigned angle, radians."""
Metres = Annotated[float, Field(gt=0, le=1e9)]
"""A distance in the world, metres (or the model's units)."""
Seconds = Annotated[float, Field(gt=0, le=1e7)]
"""A duration, s; at most four months."""
Megabytes = Annotated[float, Field(gt=0, le=1e9)]
"""A size of files or memory, 10^6 bytes."""
Bytes = Annotated[int, Field(ge=0, le=2**50)]
"""A size of files or memory, bytes."""
Quality = Annotated[int, Field(ge=0, le=100)]
"""JPEG quality, 1 to 100; 0 where a lossless format is meant instead."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction or probability, 0 to 1."""
PositiveShare = Annotated[float, Field(gt=0, le=1)]
"""A fraction greater than 0."""
Confidence = Annotated[float, Field(gt=0, lt=1)]
"""Probability of having drawn an outlier-free sample, at which a robust estimator stops."""
Factor = Annotated[float, Field(gt=0, le=1e6)]
"""A factor, or another positive quantity without a unit."""
Magnification = Annotated[float, Field(ge=0.1, le=1000)]
"""Side of a patch divided by its keypoint's scale. A smaller patch is of one colour; a larger one leaves any image."""
FactorOrZero = Annotated[float, Field(ge=0, le=1e6)]
"""A factor or weight; may be 0."""
Epsilon = Annotated[float, Field(gt=0, le=1)]
"""A small number that keeps a division or a slope finite."""
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
"""Any number of ordinary size."""


class Config(BaseModel):
    """Frozen configuration values. Unknown keys (with a suggestion), NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def result_fields(self) -> dict[str, Any]:
        """The fields that decide a result, as json values; infinity, which json lacks, as "inf"."""
        fields = type(self).model_fields
        runtime = {n for n, f in fields.items() if any(isinstance(m, _RuntimeMarker) for m in f.metadata)}
        later = {n for n, f in fields.items() if any(isinstance(m, _LaterMarker) for m in f.metadata)}
        runtime |= {name for name in later if getattr(self, name) == fields[name].get_default()}
        plain = self.model_dump(mode="json", exclude=runtime)
        for name in fields:
            value = getattr(self, name)
            if isinstance(value, Config) and name not in runtime:
                plain[name] = value.result_fields()
        return {name: _without_infinity(value) for name, value in plain.items()}

    def canonical_json(self) -> str:
        """The fields that decide a result, as sorted json."""
        return json.dumps(self.result_fields(), sort_keys=True)

    def fingerprint(self) -> str:
        """16 hex digits; equal when the same results may be expected."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FieldDoc:
    """A field's docstring.

    help: its first sentence, without the meaning of None. none: that meaning ("None: ..."), "" if not documented.
    """

    text: str

    @property
    def help(self) -> str:
        text = re.sub(r"[.;] None: [^.;]*", "", self.text)
        return re.split(r"(?<=[.)])\s+(?=[A-Z`\d])", text, maxsplit=1)[0]

    @property
    def none(self) -> str:
        match = re.search(r"\bNone: (.*?)[.;)](?:\s|$)", self.text)
        return match[1] if match else ""


@functools.cache
def field_docs(config_type: type[Config]) -> dict[str, FieldDoc]:
    """The docstring below each field, by field name; empty for a class without source code."""
    docs = {name: FieldDoc("") for name in config_type.model_fields}
    for owner in reversed(config_type.__mro__):
        documented = _class_docstrings(owner.__module__).get(owner.__qualname__, {})
        docs |= {name: FieldDoc(text) for name, text in documented.items() if name in docs}
    return docs


@functools.cache
def _class_docstrings(module: str) -> dict[str, dict[str, str]]:
    """Docstrings below the annotated names of a module's classes, by class and name."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):
        return {}
    return {
        node.name: {
            field_node.target.id: " ".join(docstring.value.value.split())
            for field_node, docstring in itertools.pairwise(node.body)
            if isinstance(field_node, ast.AnnAssign) and isinstance(field_node.target, ast.Name)
            if isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
            if isinstance(docstring.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def field_range(config_type: type[Config], name: str) -> tuple[Any, Any]:
    """Smallest and largest value of a numeric field (inclusive or not); (None, None) for other fields."""
    field = config_type.model_fields[name]
    bounds = [*field.metadata]
    for inner in get_args(field.annotation):  # `Count | None`
        bounds += [bound for info in getattr(inner, "__metadata__", ()) for bound in getattr(info, "metadata", [info])]
    ends = {kind: getattr(bound, kind) for bound in bounds for kind in ("gt", "ge", "lt", "le") if hasattr(bound, kind)}
    return ends.get("ge", ends.get("gt")), ends.get("le", ends.get("lt"))


def digest(*parts: str) -> str:
    """16 hex digits of a hash over texts, in order."""
    joined = "\n".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def _without_infinity(value: Any) -> Any:
    """The same, with infinite floats as strings that a float field parses."""
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _without_infinity(inner) for name, inner in value.items()}
    return [_without_infinity(inner) for inner in value] if isinstance(value, list) else value


def make(config_type: type[ConfigT], values: dict[str, Any], where: str = "configuration") -> ConfigT:
    """Build a config. Wrong keys and values raise one UsageError, which suggests the closest valid key."""
    try:
        return config_type(**values)
    except ValidationError as error:
        problems = "; ".join(_explain_error(config_type, problem) for problem in error.errors()[:3])
        raise UsageError(f"{where}: {problems}") from None


def check_field(config_type: type[Config], name: str, value: Any, where: str) -> None:
    """Raise UsageError if a field refuses a value, regardless of the other fields."""
    try:
        config_type(**{name: value})
    except ValidationError as error:
        for problem in error.errors():
            if problem["loc"][:1] == (name,):
                raise UsageError(f"{where}: {problem['msg']} (got {problem['input']!r})") from None


def _explain_error(config_type: type[Config], problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if isinstance(problem["input"], dict) and problem["type"] == "value_error":  # of several fields, which it names
        return f"{name}: {message}".removeprefix(": ")
    if problem["type"] != "extra_forbidden":
        return f"{name}: {message} (got {problem['input']!r})"
    known = _inner_config(config_type, problem["loc"][:-1]).model_fields
    near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {name!r}; {hint}"


def _inner_config(config_type: type[Config], loc: tuple[int | str, ...]) -> type[Config]:
    """The config class at the location of a validation error: `("verify",)` gives the type of the field `verify`.

    Indices, dict keys and pydantic's names for union members are not fields and are skipped.
    """
    candidates: list[type[Config]] = []
    for part in loc:
        field = config_type.model_fields.get(part) if isinstance(part, str) else None
        member = next((c for c in candidates if part in _location_names(c)), None)
        if member is not None:
            config_type = member
        elif field is not None:
            candidates = _configs_in(field.annotation)
            config_type = candidates[0] if candidates else config_type
    return config_type


def _location_names(config_type: type[Config]) -> set[object]:
    """Names by which a location refers to a union member: its class name, or the value of its discriminator."""
    literals = (get_args(field.annotation) for field in config_type.model_fields.values())
    return {config_type.__name__} | {values[0] for values in literals if len(values) == 1}


def _configs_in(annotation: Any) -> list[type[Config]]:
    """The configs an annotation mentions: one of `Inner`, `Inner | None`, `list[Inner]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [config for inner in get_args(annotation) for config in _configs_in(inner)]


def read_yaml(path: Path) -> dict[str, Any]:
    """A yaml file as a dict (an empty file is an empty dict). Raises BadInputError."""
    try:
        with open_input(path) as file:
            content = file.read(LARGEST_YAML + 1)
        if len(content) > LARGEST_YAML:
            raise BadInputError(f"{path}: larger than {LARGEST_YAML >> 20} MiB; no configuration is that large")
        loaded = _parse_yaml(content.decode("utf-8"))
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise BadInputError(f"{path}: cannot be read ({why})") from None
    except ValueError as error:
        raise BadInputError(f"{path}: not a yaml file ({error}); fix the line it names") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise BadInputError(f"{path}: a configuration is a mapping of names to values")
    return loaded


class _BoundedLoader(yaml.SafeLoader):
    """Safe yaml that is as large as it looks: not deep, and without aliases that contain or multiply themselves."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError("nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        _count_values(node, {})
        return node


def _count_values(node: Any, known: dict[int, int]) -> int:
    """The number of values below a yaml node, those of an alias each time. Raises YAMLError for too many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES  # what it counts as inside itself
        inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count_values(one, known) for one in inner)
    if known[id(node)] > MOST_VALUES:
        raise yaml.YAMLError(f"more than {MOST_VALUES:,} values, or an alias inside of itself")
    return known[id(node)]


def _parse_yaml(text: str) -> Any:
    """Parse yaml text. Raises ValueError with a one-line message."""
    try:
        return yaml.load(text, _BoundedLoader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:  # besides YAMLError: an impossible date, `!!int` of nothing, `!!bool x`
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def named_config(name: str, kind: str | None = None) -> dict[str, Any]:
    """The values of `configs/<name>.yaml`, or of a yaml file given by its path. Raises UsageError, BadInputError.

    With `base: NAME` in a yaml, its values override those of that configuration, key by key.
    kind: what it should configure, a key of the yaml such as "extractor"; suggestions are limited to that kind.
    """
    values = _read_values(name, kind)
    base = values.pop("base", None)
    if base is None:
        return values
    base_values = _read_values(str(base), kind)
    if "base" in base_values:
        raise UsageError(f"configuration {name!r}: its base {base!r} has a base of its own; name that one, or copy it")
    return merged_values(base_values, values)


def _read_values(name: str, kind: str | None) -> dict[str, Any]:
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        return read_yaml(path)
    folder = resource_dir("configs")
    path = folder / f"{name}.yaml"
    if not _is_file(path):
        raise UsageError(f"no {kind or 'configuration'} named {name!r}; {near_names(name, kind)}")
    return read_yaml(path)


def config_names(kind: str | None = None) -> list[str]:
    """Sorted names in `configs/`, or only those that configure one `kind` ("extractor", "matcher", ...)."""
    paths = sorted(resource_dir("configs").glob("*.yaml"))
    return [path.stem for path in paths if kind is None or kind in read_yaml(path)]


def near_names(name: str, kind: str | None = None) -> str:
    """Suggestion for an unknown name: the closest names of that kind, or all of them."""
    known = config_names(kind)
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(known)}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long or invalid for the file system
        return False


def overrides(assignments: list[str]) -> dict[str, Any]:
    """`["a.b=1", "c=x"]` as nested values, each parsed as yaml. Raises UsageError."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {assignment!r}: write it as key=value")
        *parents, leaf = key.strip().split(".")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise UsageError(f"--set {assignment!r}: {parent!r} is set to a value already")
        try:
            inner[leaf] = _parse_yaml(text)
        except ValueError:
            raise UsageError(f"--set {assignment!r}: {text!r} is not a yaml value") from None
    return values


def differences(old_json: str, new: Config) -> str:
    """Describe the differences between a stored configuration and `new`: `ratio: 0.8 -> 0.9`."""
    try:
        old = _flatten(json.loads(old_json))
    except (ValueError, AttributeError, RecursionError):
        return "its configuration cannot be read"
    now = _flatten(new.result_fields())
    changed = [
        f"{key}: {old.get(key)} -> {now.get(key)}"
        for key in sorted(old.keys() | now.keys())
        if old.get(key) != now.get(key)
    ]
    return ", ".join(changed) or "nothing it names"


def _flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def merged_values(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested values, overridden by `changes`."""
    merged = dict(values)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merged_values(merged[key], value)
        else:
            merged[key] = value
    return merged


# ----------------------------------------------------------------------------------------------------------------------
# Location of `configs/`, `pipelines/` and `weights/`: next to the package in a checkout, inside it in a wheel.


PACKAGE = Path(__file__).resolve().parents[1]


def resource_dir(name: str) -> Path:
    """Folder of `name` ("configs", "pipelines" or "weights")."""
    installed = PACKAGE / f"_{name}"
    return installed if installed.is_dir() else PACKAGE.parent / name


def load_pipeline(name: str) -> ModuleType:
    """Import the recipe `pipelines/<name>.py`, wherever it is installed. Raises UsageError if there is none."""
    path = resource_dir("pipelines") / f"{name}.py"
    if not path.is_file():
        raise UsageError(f"no pipeline named {name!r} in {path.parent}; see `pipelines/` for what there is")
    full_name = f"featkit_pipeline_{name}"
    if full_name in sys.modules:
        return sys.modules[full_name]
    spec = importlib.util.spec_from_file_location(full_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module  # dataclasses and pydantic look annotations up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[full_name]
        raise
    return module
