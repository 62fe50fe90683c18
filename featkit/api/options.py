"""One description of an option, for the command line and for Python: the field of a configuration that it sets.

`@with_options(ExtractConfig, resize_max=Option("decode.resize_max"))` gives a function the parameter `resize_max`, with
the field's type and default, and passes it the configuration with that value set. `featkit.cli.command.command` turns
the same function into a command: the option's name, help, range and default are the field's.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from featkit.core.config import Config, check_field, field_docs, field_range, make, merged_values, overrides
from featkit.core.errors import BadInputError, UsageError
from featkit.core.run_file import read_run

CAMERAS, MAPPING = "Cameras", "Mapping"  # panels of the help page


class Param:
    """How the command line shows a parameter that is not a configuration field.

    names: option names such as "--out", "-o"; without any, the parameter's own name, or a positional argument if the
    parameter is positional and required. unset: what the help shows as default for None; False: nothing. low, high:
    range of an integer.
    """

    def __init__(
        self,
        *names: str,
        help: str,
        metavar: str | None = None,
        panel: str | None = None,
        unset: str | bool = True,
        low: int | None = None,
        high: int | None = None,
    ):
        self.names, self.help, self.metavar, self.panel = names, help, metavar, panel
        self.unset, self.low, self.high = unset, low, high


def param_of(parameter: inspect.Parameter) -> Param | None:
    """The `Param` in a parameter's annotation, if any."""
    return next((one for one in getattr(parameter.annotation, "__metadata__", ()) if isinstance(one, Param)), None)


Out = Annotated[Path, Param("--out", "-o", help="The file to write.")]
Overwrite = Annotated[bool, Param("--overwrite", help="Discard existing output.")]
Device = Annotated[str, Param(help="auto, cpu or cuda.")]
RandomSeed = Annotated[int, Param(help="Random seed.")]
Settings = Annotated[
    Mapping[str, Any] | Sequence[str] | None,
    Param("--set", metavar="KEY=VALUE", help="Change any field of the configuration; repeatable."),
]
ModelNumber = Annotated[
    int | None, Param("--model", metavar="K", help="Which of several models: sparse/K.", unset="the largest", low=0)
]
GpsFile = Annotated[
    Path | None,
    Param(metavar="CSV", help="Positions, `name,lat,lon[,alt]` a line.", unset="the photographs' EXIF"),
]


@dataclass(frozen=True)
class Option:
    """A configuration field that becomes an option, by its path: "map.camera.model".

    Type, range, default and help are the field's. A path may end inside a field that holds changes to a named
    configuration ("matching.ratio"). `of` is then the class that documents the field of that name, and the option's
    default is None.
    """

    path: str
    of: type[Config] | None = None
    also: tuple[str, ...] = ()
    """Other paths that get the same value."""
    unset: str = ""
    """What the help shows as default if the default is None; empty: taken from the field's docstring ("None: ...")."""
    help: str = ""
    """Replaces the field's docstring."""
    panel: str | None = None
    metavar: str | None = None
    flag: Any = None
    """Makes the option a flag that sets the field to this value."""
    kind: type | None = None
    """The option's type, for a path into changes to a named configuration of unknown class."""


@dataclass(frozen=True)
class FieldOption:
    """An option together with its configuration field, which gives type, default, range and help."""

    name: str
    option: Option
    config: type[Config]
    field: str
    in_named: bool
    """Whether the default comes from a named configuration."""

    @classmethod
    def of(cls, name: str, option: Option, config: type[Config]) -> FieldOption:
        """The field at the option's path. Raises KeyError if there is none."""
        *parents, leaf = option.path.split(".")
        for parent in parents:
            inner = _config_in(config.model_fields[parent].annotation)
            if inner is None:
                if option.of is None:  # described by its `kind` and `help`
                    return cls(name, option, config, "", True)
                break
            config = inner
        owner = option.of or config
        _ = owner.model_fields[leaf]
        return cls(name, option, owner, leaf, option.of is not None)

    @property
    def annotation(self) -> Any:
        """The field's type without its range."""
        if self.option.flag is not None:
            return bool
        return self.option.kind if not self.field else self.config.model_fields[self.field].annotation

    @property
    def default(self) -> Any:
        """The field's default; None if it comes from a named configuration; False for a flag."""
        if self.option.flag is not None:
            return False
        return None if self.in_named else self.config.model_fields[self.field].get_default(call_default_factory=True)

    @property
    def help(self) -> str:
        """The first sentence of the field's docstring."""
        return self.option.help or field_docs(self.config)[self.field].help

    @property
    def choices(self) -> list[str]:
        """The possible values of a Literal field; else empty."""
        plain = value_type(self.annotation)
        return [str(value) for value in get_args(plain)] if get_origin(plain) is Literal else []

    @property
    def kind(self) -> type:
        """The type that the command line parses: int, float, bool, str or Path."""
        plain = value_type(self.annotation)
        return plain if plain in (int, float, bool, Path) else str

    @property
    def unset(self) -> str | None:
        """What the help shows for a default of None; None for any other default."""
        return (self.option.unset or self._unset() or "none") if self.default is None else None

    @property
    def metavar(self) -> str | None:
        """The values as shown in the help; None for a flag."""
        return None if self.kind is bool else self.option.metavar or self._metavar()

    def _unset(self) -> str:
        """The meaning of None: from the docstring, or the field's default if a named configuration may change it."""
        default = self.config.model_fields[self.field].default
        return field_docs(self.config)[self.field].none if default is None else str(default)

    def _metavar(self) -> str:
        if self.choices:
            listed = "|".join(self.choices)
            return listed if len(listed) <= WIDEST else "CHOICE"
        if _is_tuple(self.annotation):
            return "A,B,..."
        low, high = field_range(self.config, self.field) if self.field else (None, None)
        return shown_value(self.kind, low, None if high is None or high >= SHOWN_UP_TO else high)

    def placed(self, value: Any) -> dict[str, Any]:
        """The value nested at its path in the configuration; empty for a flag that is off and for an unset option."""
        if self.option.flag is not None:
            return self._at(self.option.flag) if value else {}
        if value is None and (self.in_named or self.default is None):
            return {}
        if isinstance(value, str) and _is_tuple(self.annotation):
            value = self._numbers(value)
        if self.in_named and self.field:  # the named configuration is read later, but a wrong value is refused now
            check_field(self.config, self.field, value, f"--{self.name.replace('_', '-')}")
        return self._at(value)

    def _at(self, value: Any) -> dict[str, Any]:
        placed: dict[str, Any] = {}
        for path in (self.option.path, *self.option.also):
            placed = merged_values(placed, at_path(path, value))
        return placed

    def _numbers(self, text: str) -> list[float]:
        try:
            return [float(part) for part in text.split(",")]
        except ValueError:
            name = self.name.replace("_", "-")
            raise UsageError(f"--{name} {text!r}: numbers separated by commas, as 1200,1200,960,540") from None


WIDEST = 16  # columns for an option's values in the help; longer lists are named by the help text itself
SHOWN_UP_TO = 1e5  # larger upper bounds only keep nonsense out and are not shown in the help
SHOWN_TYPES = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}


def shown_value(kind: type, low: float | None = None, high: float | None = None) -> str:
    """What an option takes, as help and docs/cli.md show it: choices, or the type with its range: "INT 1..", "PATH"."""
    if issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    if low is None:
        return SHOWN_TYPES[kind]
    return f"{SHOWN_TYPES[kind]} {low:g}..{'' if high is None else f'{high:g}'}"


def at_path(path: str, value: Any) -> dict[str, Any]:
    """`{"a": {"b": value}}` for the path "a.b"."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def value_type(annotation: Any) -> Any:
    """A type without `| None` and without `Annotated` metadata."""
    annotation = _without_annotated(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(one for one in get_args(annotation) if one is not types.NoneType)
    return _without_annotated(annotation)


def _without_annotated(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _config_in(annotation: Any) -> type[Config] | None:
    """The configuration class of a nested field; None for any other field."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Config):
            return one
    return None


def _is_tuple(annotation: Any) -> bool:
    return get_origin(value_type(annotation)) is tuple


@dataclass(frozen=True)
class FunctionOptions:
    """The parameters of a function decorated by `with_options`: its own, and the options of its configuration."""

    own: list[inspect.Parameter]
    """With their annotations."""
    options: dict[str, FieldOption]


NAMED_BY = {"extract.features": "extract.extractor", "matcher": "matching", "pairs": "pairing"}
"""Fields that name a configuration, and the field with changes to it. The changes are dropped if the name changes."""


def with_options(
    config: type[Config] | None,
    settings_at: str = "",
    into: str = "config",
    run_file: str = "",
    /,
    **options: Option,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function parameters that are fields of `config`, which it receives complete as its parameter `into`.

    config: None for a function without configuration. settings_at: path in it that `settings` change; "": anything.
    run_file: name of the parameter that is a saved run (`core.run_file`), whose values are overridden by all parameters
    that are given, be it with their default. The function's annotations describe its own parameters for the command
    line; a str is accepted for a Path. The new function raises UsageError for a value that its field refuses.
    """

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        described = {} if config is None else {n: FieldOption.of(n, option, config) for n, option in options.items()}
        hints = get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name != into
        ]
        if config is not None:
            own.append(inspect.Parameter("settings", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Settings))
        signature = _signature(own, described)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            said = set(bound.arguments)
            bound.apply_defaults()
            given = bound.arguments
            arguments = {p.name: _with_paths(p.annotation, given[p.name]) for p in own}
            if config is None:
                return function(**arguments)
            del arguments["settings"]
            values: dict[str, Any] = {}
            saved = arguments.get(run_file)
            if saved is not None:
                found = read_run(saved, function.__name__)
                values = found.values
                if unknown := sorted(found.arguments.keys() - arguments.keys()):
                    known = ", ".join(name for name in arguments if name != run_file)
                    raise BadInputError(f"{saved}: no argument is called {unknown[0]!r}; there are {known}")
                arguments |= {
                    name: path for name, path in found.arguments.items() if arguments.get(name, saved) is None
                }
            for name, one in described.items():
                if saved is None or name in said:
                    values = merged_values(_drop_replaced(values, one, given[name]), one.placed(given[name]))
            changes = parse_settings(given["settings"])
            values = merged_values(values, at_path(settings_at, changes) if settings_at else changes)
            made = _make_config(config, values, described, function.__name__.replace("_", " "))
            return function(**arguments, **{into: made})

        wrapped.__signature__ = signature  # type: ignore[attr-defined]
        wrapped.__doc__ = f"{inspect.getdoc(function)}\n\n{_parameter_docs(own, described)}"
        wrapped.declared = FunctionOptions(own, described)  # type: ignore[attr-defined]
        return wrapped

    return decorated


def _drop_replaced(values: dict[str, Any], option: FieldOption, given: Any) -> dict[str, Any]:
    """Saved values without the changes to a named configuration, if `given` names another one."""
    path = option.option.path
    below = NAMED_BY.get(path)
    if below is None or not values or _value_at(values, path) in (None, given):
        return values
    *parents, leaf = below.split(".")
    inner = _value_at(values, ".".join(parents)) if parents else values
    kept = {name: value for name, value in (inner or {}).items() if name != leaf}
    if not parents:
        return kept
    return {**values, parents[0]: kept}


def _value_at(values: Mapping[str, Any], path: str) -> Any:
    for part in path.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None  # type: ignore[assignment]
    return values


def _make_config(
    config: type[Config], values: dict[str, Any], described: Mapping[str, FieldOption], where: str
) -> Config:
    """Build the configuration. Raises UsageError that names the option instead of the field."""
    try:
        return make(config, values, where)
    except UsageError as error:
        text = str(error)
        for name, one in described.items():
            path, flag = re.escape(one.option.path), f"--{name.replace('_', '-')}"
            text = re.sub(rf" {path}(\.\d+)?: ", f" {flag}: ", text)
        raise UsageError(text) from None


def _signature(own: Sequence[inspect.Parameter], described: Mapping[str, FieldOption]) -> inspect.Signature:
    """The Python signature: plain types, positional parameters, then options, then keyword parameters."""
    plain = [one.replace(annotation=_without_annotated(one.annotation)) for one in own]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.annotation)
        for name, one in described.items()
    ]
    first = [p for p in plain if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    return inspect.Signature([*first, *added, *(p for p in plain if p.kind is inspect.Parameter.KEYWORD_ONLY)])


def _parameter_docs(own: Sequence[inspect.Parameter], described: Mapping[str, FieldOption]) -> str:
    """Docstring lines that describe each parameter."""
    lines = [(one.name, shown.help) for one in own if (shown := param_of(one)) is not None]
    lines += [(name, one.help) for name, one in described.items()]
    return "\n".join(f"{name}: {text}" for name, text in lines)


def parse_settings(settings: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """Settings as nested values, from `["a.b=1"]` or from a mapping whose names may contain dots."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        return overrides(list(settings))
    values: dict[str, Any] = {}
    for name, value in settings.items():
        values = merged_values(values, at_path(name, value))
    return values


def _with_paths(annotation: Any, value: Any) -> Any:
    """The value, with str converted to Path where the annotation asks for one or several paths."""
    plain = value_type(annotation)
    if plain is Path and isinstance(value, str):
        return Path(value)
    if get_args(plain)[:1] == (Path,) and value is not None:
        return [Path(one) for one in ([value] if isinstance(value, str | Path) else value)]
    return value


def parse_by_file(option: str, given: Mapping[str, str] | Sequence[str] | None, example: str) -> Mapping[str, str]:
    """Values by file name from `["a=x"]`. Raises UsageError, which shows the example."""
    if isinstance(given, Mapping):
        return given
    found = [text.partition("=") for text in given or []]
    if not all(equals and value for _, equals, value in found):
        raise UsageError(f"{option}: {example}")
    return {file: value for file, _, value in found}


def parse_urls(urls: Mapping[str, str] | Sequence[str] | None) -> Mapping[str, str]:
    """URLs by file name from `["a=http://x"]`. Raises UsageError."""
    return parse_by_file("--url", urls, "FILE=ADDRESS, as liberty=http://example.org/liberty.zip")
