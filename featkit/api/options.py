"""One description of an option, for the command line and for Python: the field of a configuration that it sets.

`@takes(ExtractConfig, resize_max=Option("decode.resize_max"))` gives a function the parameter `resize_max`, of the
field's type and default, and hands it the configuration with that value in it. `featkit.cli.app.command` makes the
command of the same function: the option's name, help, range and default are the field's.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from featkit.core.config import Config, check_field, field_docs, field_range, make, merge, overrides
from featkit.core.errors import BadInputError, UsageError
from featkit.core.run_file import read_run

CAMERAS, MAPPING = "Cameras", "Mapping"  # panels of the help page


class Shown:
    """What the command line shows of a parameter that no field describes.

    names: of the option, "--out", "-o"; none: the parameter's, and an argument where it is positional and required.
    unset: what help shows as the default where it is None; False: nothing. low, high: range of a whole number.
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


def shown_of(parameter: inspect.Parameter) -> Shown | None:
    """What is noted on a parameter for the command line."""
    return next((one for one in getattr(parameter.annotation, "__metadata__", ()) if isinstance(one, Shown)), None)


Out = Annotated[Path, Shown("--out", "-o", help="The file to write.")]
Overwrite = Annotated[bool, Shown("--overwrite", help="Discard existing output.")]
Device = Annotated[str, Shown(help="auto, cpu or cuda.")]
RandomSeed = Annotated[int, Shown(help="Random seed.")]
Settings = Annotated[
    Mapping[str, Any] | Sequence[str] | None,
    Shown("--set", metavar="KEY=VALUE", help="Change any field of the configuration; repeatable."),
]
ModelNumber = Annotated[
    int | None, Shown("--model", metavar="K", help="Which of several models: sparse/K.", unset="the largest", low=0)
]
GpsFile = Annotated[
    Path | None,
    Shown(metavar="CSV", help="Positions, `name,lat,lon[,alt]` a line.", unset="the photographs' EXIF"),
]


@dataclass(frozen=True)
class Option:
    """A field of the configuration that a function takes, by its path: "map.camera.model".

    Type, range, default and help are the field's. A path may end inside a field that holds changes to a named
    configuration ("matching.ratio"): `of` is then the class whose field of that name describes it, and it is None
    until it is given.
    """

    path: str
    of: type[Config] | None = None
    also: tuple[str, ...] = ()
    """Other paths that get the same value."""
    unset: str = ""
    """What help shows as the default where the default is None; else the field's docstring says it ("None: ...")."""
    help: str = ""
    """In place of the field's docstring."""
    panel: str | None = None
    metavar: str | None = None
    flag: Any = None
    """Makes it a flag that, when given, sets the field to this value."""
    kind: type | None = None
    """Its type, inside a field that holds changes where no class can be named."""


@dataclass(frozen=True)
class Described:
    """An option with what its field says: type, default, range and help."""

    name: str
    option: Option
    config: type[Config]
    field: str
    in_named: bool
    """Whether a named configuration decides the default."""

    @classmethod
    def of(cls, name: str, option: Option, config: type[Config]) -> Described:
        """The field at the option's path. Raises KeyError for a path that leads nowhere."""
        *parents, leaf = option.path.split(".")
        for parent in parents:
            inner = _config_in(config.model_fields[parent].annotation)
            if inner is None:
                if option.of is None:  # its `kind` and `help` say all
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
        """The field's own; None where a named configuration decides it; of a flag False."""
        if self.option.flag is not None:
            return False
        return None if self.in_named else self.config.model_fields[self.field].get_default(call_default_factory=True)

    @property
    def help(self) -> str:
        """The first sentence of the field's docstring."""
        return self.option.help or field_docs(self.config)[self.field].help

    @property
    def choices(self) -> list[str]:
        """The values there are, where the field names them."""
        plain = bare(self.annotation)
        return [str(value) for value in get_args(plain)] if get_origin(plain) is Literal else []

    @property
    def kind(self) -> type:
        """What the command line reads: int, float, bool, str or Path."""
        plain = bare(self.annotation)
        return plain if plain in (int, float, bool, Path) else str

    @property
    def unset(self) -> str | None:
        """What help shows where the default is None, else None."""
        return (self.option.unset or self._unset() or "none") if self.default is None else None

    @property
    def metavar(self) -> str | None:
        """The values as the help page shows them; None for a flag."""
        return None if self.kind is bool else self.option.metavar or self._metavar()

    def _unset(self) -> str:
        """What None means: as the docstring says, or the field's own default where a named configuration decides."""
        default = self.config.model_fields[self.field].default
        return field_docs(self.config)[self.field].none if default is None else str(default)

    def _metavar(self) -> str:
        if self.choices:
            listed = "|".join(self.choices)
            return listed if len(listed) <= WIDEST else "CHOICE"
        if _is_several(self.annotation):
            return "A,B,..."
        name = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}[self.kind]
        low, high = field_range(self.config, self.field) if self.field else (None, None)
        if low is None:
            return name
        end = "" if high is None or high >= SHOWN_UP_TO else f"{high:g}"
        return f"{name} {low:g}..{end}"

    def placed(self, value: Any) -> dict[str, Any]:
        """The value where the configuration has it; nothing for a flag that is off, or for None by a named one."""
        if self.option.flag is not None:
            return self._at(self.option.flag) if value else {}
        if value is None and (self.in_named or self.default is None):
            return {}
        if isinstance(value, str) and _is_several(self.annotation):
            value = self._numbers(value)
        if self.in_named and self.field:  # the named configuration is read later; a wrong value ends at once
            check_field(self.config, self.field, value, f"--{self.name.replace('_', '-')}")
        return self._at(value)

    def _at(self, value: Any) -> dict[str, Any]:
        placed: dict[str, Any] = {}
        for path in (self.option.path, *self.option.also):
            placed = merge(placed, nested(path, value))
        return placed

    def _numbers(self, text: str) -> list[float]:
        try:
            return [float(part) for part in text.split(",")]
        except ValueError:
            name = self.name.replace("_", "-")
            raise UsageError(f"--{name} {text!r}: numbers separated by commas, as 1200,1200,960,540") from None


WIDEST = 16  # columns of an option's values on the help page; more than that are named by the help itself
SHOWN_UP_TO = 1e5  # ends of ranges beyond it only keep nonsense out: help does not show them


def nested(path: str, value: Any) -> dict[str, Any]:
    """`{"a": {"b": value}}` of "a.b"."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def bare(annotation: Any) -> Any:
    """A type without `| None` and without what is noted on it."""
    annotation = _noted(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(one for one in get_args(annotation) if one is not types.NoneType)
    return _noted(annotation)


def _noted(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _config_in(annotation: Any) -> type[Config] | None:
    """The configuration that a field holds, if it holds one."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Config):
            return one
    return None


def _is_several(annotation: Any) -> bool:
    return get_origin(bare(annotation)) is tuple


@dataclass(frozen=True)
class Taken:
    """What a function decorated by `takes` takes: its own parameters, and options of its configuration."""

    own: list[inspect.Parameter]
    """As they are annotated."""
    options: dict[str, Described]


NAMED_BY = {"extract.features": "extract.extractor", "matcher": "matching", "pairs": "pairing"}
"""Fields that name a configuration, and the field with what differs from it: with another name none of that holds."""


def takes(
    config: type[Config] | None,
    settings_at: str = "",
    into: str = "config",
    run_file: str = "",
    /,
    **options: Option,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function parameters that are fields of `config`; it gets the whole as its parameter `into`.

    config: None for a function that has none. settings_at: where in it `settings` belong; "" for all of it. run_file:
    the function's parameter that is a file of a saved run (`core.run_file`): what differs from the defaults of the
    parameters goes over that. The
    function's annotations say what the command line shows of its own parameters; a text is taken for a Path. The new
    function raises UsageError for a value that its field refuses.
    """

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        described = {} if config is None else {n: Described.of(n, option, config) for n, option in options.items()}
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
            bound.apply_defaults()
            given = bound.arguments
            taken = {p.name: _as_paths(p.annotation, given[p.name]) for p in own}
            if config is None:
                return function(**taken)
            del taken["settings"]
            values: dict[str, Any] = {}
            saved = taken.get(run_file)
            if saved is not None:
                found = read_run(saved, function.__name__)
                values = found.values
                if unknown := sorted(found.arguments.keys() - taken.keys()):
                    known = ", ".join(name for name in taken if name != run_file)
                    raise BadInputError(f"{saved}: no argument is called {unknown[0]!r}; there are {known}")
                taken |= {name: path for name, path in found.arguments.items() if taken.get(name, saved) is None}
            for name, one in described.items():
                if saved is None or given[name] != one.default:
                    values = merge(_renamed(values, one, given[name]), one.placed(given[name]))
            changes = changes_of(given["settings"])
            values = merge(values, nested(settings_at, changes) if settings_at else changes)
            made = _made(config, values, described, function.__name__.replace("_", " "))
            return function(**taken, **{into: made})

        wrapped.__signature__ = signature  # type: ignore[attr-defined]
        wrapped.__doc__ = f"{inspect.getdoc(function)}\n\n{_arguments(own, described)}"
        wrapped.taken = Taken(own, described)  # type: ignore[attr-defined]
        return wrapped

    return decorated


def _renamed(values: dict[str, Any], option: Described, given: Any) -> dict[str, Any]:
    """Saved values without what differed from a configuration that another name replaces."""
    path = option.option.path
    below = NAMED_BY.get(path)
    if below is None or not values or _at_path(values, path) in (None, given):
        return values
    *parents, leaf = below.split(".")
    inner = _at_path(values, ".".join(parents)) if parents else values
    kept = {name: value for name, value in (inner or {}).items() if name != leaf}
    if not parents:
        return kept
    return {**values, parents[0]: kept}


def _at_path(values: Mapping[str, Any], path: str) -> Any:
    for part in path.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None  # type: ignore[assignment]
    return values


def _made(config: type[Config], values: dict[str, Any], described: Mapping[str, Described], where: str) -> Config:
    """The configuration. Raises UsageError that calls a field by its option where it has one."""
    try:
        return make(config, values, where)
    except UsageError as error:
        text = str(error)
        for name, one in described.items():
            path, flag = re.escape(one.option.path), f"--{name.replace('_', '-')}"
            text = re.sub(rf" {path}(\.\d+)?: ", f" {flag}: ", text)
        raise UsageError(text) from None


def _signature(own: Sequence[inspect.Parameter], described: Mapping[str, Described]) -> inspect.Signature:
    """As Python shows it: plain types, the function's own parameters before those of the configuration."""
    plain = [one.replace(annotation=_noted(one.annotation)) for one in own]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.annotation)
        for name, one in described.items()
    ]
    first = [p for p in plain if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    return inspect.Signature([*first, *added, *(p for p in plain if p.kind is inspect.Parameter.KEYWORD_ONLY)])


def _arguments(own: Sequence[inspect.Parameter], described: Mapping[str, Described]) -> str:
    """The lines of a docstring that say what each parameter is."""
    lines = [(one.name, shown.help) for one in own if (shown := shown_of(one)) is not None]
    lines += [(name, one.help) for name, one in described.items()]
    return "\n".join(f"{name}: {text}" for name, text in lines)


def changes_of(settings: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """Settings as nested values: of `["a.b=1"]`, or of a mapping, whose names may have dots."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        return overrides(list(settings))
    values: dict[str, Any] = {}
    for name, value in settings.items():
        values = merge(values, nested(name, value))
    return values


def _as_paths(annotation: Any, value: Any) -> Any:
    """The value, with texts as paths where the parameter is a Path, or several."""
    plain = bare(annotation)
    if plain is Path and isinstance(value, str):
        return Path(value)
    if get_args(plain)[:1] == (Path,) and value is not None:
        return [Path(one) for one in ([value] if isinstance(value, str | Path) else value)]
    return value


def by_file(option: str, given: Mapping[str, str] | Sequence[str] | None, example: str) -> Mapping[str, str]:
    """`["a=x"]` as values by file name. Raises UsageError, with the example."""
    if isinstance(given, Mapping):
        return given
    found = [text.partition("=") for text in given or []]
    if not all(equals and value for _, equals, value in found):
        raise UsageError(f"{option}: {example}")
    return {file: value for file, _, value in found}


def addresses(urls: Mapping[str, str] | Sequence[str] | None) -> Mapping[str, str]:
    """`["a=http://x"]` as addresses by file name. Raises UsageError."""
    return by_file("--url", urls, "FILE=ADDRESS, as liberty=http://example.org/liberty.zip")
