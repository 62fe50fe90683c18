"""Every number of every configuration has a range, and every field says what it is."""

import ast
import inspect
import itertools
import math
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import NoneType
from typing import Any, get_args, get_origin

import pytest
from pydantic import ValidationError

import featkit
from featkit.core.config import Config, Seed, load_pipeline, make, merged_values, overrides
from featkit.core.errors import UsageError
from featkit.core.runtime import capped, usable_cores
from featkit.data import make_patches
from featkit.features import patches
from featkit.features.sift import SiftConfig
from featkit.mapping.stage import ClusterConfig, MapConfig, _num_threads, hierarchical_options

ENDLESS = {("AdaSample", "strength"): (math.inf, 1e300)}  # a field that has a meaning for infinity, and says which
PIPELINES = ("sfm", "localize", "demo", "aachen")


def _everything() -> list[type[Config]]:
    """Every Config of the package and its pipelines."""
    for module in pkgutil.walk_packages(featkit.__path__, "featkit."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            import_module(module.name)
    for name in PIPELINES:
        load_pipeline(name)
    return sorted(
        (c for c in _subclasses(Config) if c.__module__.startswith("featkit")),
        key=lambda c: (c.__module__, c.__qualname__),
    )


def _subclasses(of: type[Config]) -> set[type[Config]]:
    return {inner for one in of.__subclasses__() for inner in {one, *_subclasses(one)}}


CONFIGS = _everything()


def _number(annotation: Any) -> type | None:
    """int or float, where that is what a field holds, alone or several; else None."""
    if annotation in (int, float):
        return annotation
    parts = get_args(annotation)
    if not parts or get_origin(annotation) is dict:
        return None
    found = {_number(part) for part in parts if part not in (Ellipsis, NoneType)} - {None}
    return next(iter(found)) if found else None


def _shapes(annotation: Any, value: Any) -> Any:
    """The value as the field takes it: by itself, or in a tuple or list of the right length."""
    for one in (annotation, *get_args(annotation)):
        if get_origin(one) is tuple:
            return (value,) * (1 if Ellipsis in get_args(one) else len(get_args(one)))
        if get_origin(one) is list:
            return [value]
    return value


def _refused(config: type[Config], field: str, value: Any) -> bool:
    """Whether the field itself refuses the value, whatever the other fields are."""
    try:
        config(**{field: value})
    except ValidationError as error:
        return any(item["loc"][:1] == (field,) and item["type"] != "missing" for item in error.errors())
    return False


def _numbers() -> Iterator[tuple[type[Config], str, Any, type]]:
    for config in CONFIGS:
        for name, field in config.model_fields.items():
            kind = _number(field.annotation)
            if kind is not None:
                yield config, name, field.annotation, kind


NUMBERS = list(_numbers())
EXTREMES: dict[type, list[Any]] = {
    int: [2**63, -(2**63), int("9" * 23), math.nan, math.inf],
    float: [math.nan, math.inf, -math.inf, 1e300, -1e300],
}


def test_the_walk_finds_the_configurations() -> None:
    assert len(CONFIGS) > 120
    assert len(NUMBERS) > 350


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.__module__}.{c.__qualname__}")
def test_every_number_has_both_ends_and_is_finite(config: type[Config]) -> None:
    taken = [
        (name, extreme)
        for owner, name, annotation, kind in NUMBERS
        if owner is config
        for extreme in EXTREMES[kind]
        if not _refused(config, name, _shapes(annotation, extreme))
        and extreme not in ENDLESS.get((config.__name__, name), ())
    ]
    assert not taken


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.__module__}.{c.__qualname__}")
def test_no_bound_is_given_twice(config: type[Config]) -> None:
    """Of two bounds of one kind, a type's and a field's, pydantic keeps the type's."""
    for name, field in config.model_fields.items():
        bounds = [type(bound).__name__ for bound in field.metadata]
        assert len(bounds) == len(set(bounds)), (name, field.metadata)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.__module__}.{c.__qualname__}")
def test_every_field_says_what_it_is(config: type[Config]) -> None:
    """A docstring of whole sentences stands below each field."""
    (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(config))).body
    assert isinstance(tree, ast.ClassDef)
    silent = [
        one.target.id
        for one, below in itertools.pairwise([*tree.body, ast.Pass()])
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and one.target.id in config.model_fields
        if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant))
        or not str(below.value.value).rstrip().endswith((".", ")"))
    ]
    assert not silent


@pytest.mark.parametrize(
    "assignment",
    [
        f"map.seed={2**31}",
        "map.seed=-1",
        "map.threads=100000",
        "map.threads=-2",
        "map.min_model_size=-5",
        "map.verify.max_error_px=.nan",
        "map.verify.max_error_px=.inf",
        "map.verify.confidence=7",
        "map.camera.params=[.nan]",
        f"map.verify.max_trials={'9' * 23}",
        "extract.workers=100000",
        "auto.exhaustive_up_to=1",
    ],
)
def test_a_wrong_number_is_one_line_before_any_work(assignment: str) -> None:
    sfm = load_pipeline("sfm")
    with pytest.raises(UsageError) as refused:
        make(sfm.SfmConfig, merged_values({}, overrides([assignment])), where="reconstruct")
    message = str(refused.value)
    assert assignment.partition("=")[0] in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(
    "values",
    [
        {"octave_resolution": 1e8},
        {"first_octave": -20},
        {"max_keypoints": int("9" * 23)},
        {"max_keypoints": 99_999_999},
        {"max_num_features": 0},
        {"peak_threshold": math.nan},
    ],
)
def test_sift_takes_what_its_library_takes(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        make(SiftConfig, values)


@pytest.mark.parametrize("config", [make_patches.PatchSetConfig, patches.PatchesConfig])
@pytest.mark.parametrize("value", [1e-9, 0, 1e5])
def test_a_patch_has_a_size(config: type[Config], value: float) -> None:
    """With 1e-9 every patch would be of one colour, and with 1e5 leave its image."""
    with pytest.raises(UsageError, match="magnification"):
        make(config, {"magnification": value}, where="here")


def test_the_largest_seed_is_taken() -> None:
    class Drawn(Config):
        seed: Seed

    assert make(Drawn, {"seed": 2**31 - 1}).seed == 2**31 - 1


def test_workers_and_threads_are_never_more_than_the_cores() -> None:
    cores = usable_cores()
    assert [capped(0), capped(1), capped(cores), capped(1000)] == [cores, 1, cores, cores]
    many = MapConfig(threads=1000, clusters=ClusterConfig(workers=1000))
    assert _num_threads(many, 10) == cores
    assert hierarchical_options(many, 10).num_workers == cores
    assert _num_threads(MapConfig(threads=-1), 10) == -1  # COLMAP's word for all cores


def test_a_number_without_a_range_is_finite_all_the_same() -> None:
    """As in the configuration of an extractor from outside."""

    class Outside(Config):
        threshold: float = 0.5

    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(UsageError, match="threshold"):
            make(Outside, {"threshold": value})
