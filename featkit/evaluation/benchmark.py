"""The benchmark protocol: find the data, run the methods, return one result for terminal, json and report.

Benchmarks of image features run featkit's own extraction and matching stages, separately from the metrics:
PREDICTIONS/NAME-FINGERPRINT/features.h5 holds the features of every image. The fingerprint covers configuration and
weights, so that configurations never share features. Matches are in MATCHER-FINGERPRINT/ next to it. Images are read
in place. Both stages resume, and recompute what belongs to an image that has changed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np

from featkit import __version__
from featkit.core.config import Config, make, merged_values, named_config
from featkit.core.content import Configuration, Headline, Report, Section, Table
from featkit.core.errors import UsageError
from featkit.core.log import timed
from featkit.core.registry import Method, class_of, resolve, setting_of
from featkit.core.types import Pair
from featkit.engine import stages
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.features.base import Extractor
from featkit.features.stage import ExtractConfig, extraction_method
from featkit.io.lists import write_pairs
from featkit.matching.stage import Matcher

LOGGER = logging.getLogger(__name__)
Data = TypeVar("Data")
Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Predictions:
    """Files of a method's features, and of its matches if any. seconds: of each stage, in this run."""

    method: Method[Extractor]
    features: Path
    matches: Path | None
    seconds: dict[str, float]

    def described(self) -> dict[str, Any]:
        """The method and its times, as json values."""
        return {**self.method.described(), "seconds": {stage: round(s, 3) for stage, s in self.seconds.items()}}


def predict(
    method: Method[Extractor],
    images: Path,
    names: Sequence[str],
    folder: Path,
    matcher: Method[Matcher] | None = None,
    pairs: Sequence[Pair] = (),
    *,
    overwrite: bool = False,
    engine: EngineConfig = LOCAL,
) -> Predictions:
    """Extract features of some images of a folder and match pairs of them, resuming existing output.

    folder: for all predictions. Raises BadInputError for an image that cannot be read.
    """
    method_folder = folder / f"{method.file_name}-{method.fingerprint}"
    features, matches = method_folder / "features.h5", None
    seconds: dict[str, float] = {}
    with timed("extract", seconds):
        stages.extract(method, images, features, list(names), overwrite=overwrite, engine=engine)
    if matcher is not None:
        matches = method_folder / f"{matcher.file_name}-{matcher.config.fingerprint()}" / "matches.h5"
        pairs_file = write_pairs(matches.with_name("pairs.txt"), pairs)
        with timed("match", seconds):
            stages.match(matcher, features, pairs_file, matches, overwrite=overwrite, engine=engine)
    return Predictions(method, features, matches, seconds)


@dataclass(frozen=True)
class Work:
    """Where and how a benchmark runs. folder: for predictions and results."""

    folder: Path
    overwrite: bool = False
    engine: EngineConfig = LOCAL

    def predict(
        self,
        method: Method[Extractor],
        images: Path,
        names: Sequence[str],
        matcher: Method[Matcher] | None = None,
        pairs: Sequence[Pair] = (),
        *,
        scene: str = "",
    ) -> Predictions:
        """`predict` into the folder shared by all benchmarks. scene: subfolder, for benchmarks with several scenes."""
        folder = self.folder / "predictions" / scene
        return predict(
            method, images, names, folder, matcher, pairs, overwrite=self.overwrite, engine=self.engine
        )  # fmt: skip


def names_in(text: str | None) -> list[str]:
    """Split comma-separated names, without duplicates."""
    return list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def method_names(features: str) -> list[str]:
    """Split comma-separated method names. Raises UsageError if there is none."""
    names = names_in(features)
    if not names:
        raise UsageError("--features: comma-separated names, as rootsift,hynet")
    return names


# ----------------------------------------------------------------------------------------------------------------------
# Results of a benchmark.


class Plain:
    """Base of dataclasses of measurements whose fields are written to results.json."""

    def as_json(self) -> dict[str, Any]:
        """Json values: fractions and errors to six decimals, None for NaN and infinity."""
        return {column.name: plain(getattr(self, column.name)) for column in fields(self)}  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """Nested measurements as json values."""
    if isinstance(value, Plain):
        return value.as_json()
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | tuple | list):
        return [plain(entry) for entry in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class Ranked:
    """One number of one method. measure: name with data and unit. better: whether higher or lower is better.

    None and NaN: the method has no such number.
    """

    method: str
    measure: str
    value: float | None
    better: Literal["high", "low"] = "high"


@dataclass(frozen=True)
class Result:
    """Everything printed, written and shown of one run.

    numbers: content of results.json. tables: for the terminal. ranking: for the table over all benchmarks.
    sections: of the report, without configurations. `evaluate` adds the benchmark's name and the configurations
    (settings, methods), by title and as json values.
    note: shown above the configurations. lines: printed below the tables.
    """

    title: str
    numbers: Mapping[str, Any]
    tables: Sequence[Table]
    ranking: Sequence[Ranked]
    sections: Sequence[Section] = ()
    subtitle: str = ""
    headlines: Sequence[Headline] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    lines: Sequence[str] = ()
    benchmark: str = ""

    def as_json(self) -> dict[str, Any]:
        """Json values, the same in every file and on the terminal."""
        made_by = {"benchmark": self.benchmark, "featkit_version": __version__}
        return {**made_by, **self.settings_as_json(), **self.numbers}

    def settings_as_json(self) -> dict[str, Any]:
        """The configuration by its title, regardless of the setting."""
        return {name if name == "matcher" else "config": values for name, values in self.settings.items()}

    def page(self) -> Report:
        """The benchmark's report page; without sections it shows the tables."""
        sections = self.sections or [Section("Scores", items=self.tables)]
        settings = [*configurations(self.settings), *configurations(self.methods)]
        last = [Section("Configuration", self.note, settings)] if settings else []
        return Report(self.title, self.subtitle, self.headlines, [*sections, *last])


def configurations(described: Mapping[str, Any]) -> list[Configuration]:
    """Configurations for the report, as json. described: title -> json values."""
    return [Configuration(title, json.dumps(values, indent=1)) for title, values in described.items()]


# ----------------------------------------------------------------------------------------------------------------------
# The protocol: `find` the data, `run` the methods. The fields of a benchmark's class are the options of its command.


@dataclass
class Benchmark(Generic[Data, Measured]):
    """A benchmark under one configuration: `cls(config, device, **options)`, each option a field of its class."""

    name: ClassVar[str]
    Config: ClassVar[Any] = Config
    """Configuration class; by default without fields."""
    default_features: ClassVar[str] = "rootsift"
    """Methods measured by default, comma-separated."""
    data_option: ClassVar[Literal["root", "data"]] = "root"
    """What the command calls the data."""
    several: ClassVar[bool] = False
    """Whether it accepts several data folders."""
    setting: str = field(default="", init=False)
    """Name of its setting in configs/, if papers use several; the class attribute is the benchmark's own setting."""

    config: Any = None
    """The complete configuration; default: `Config()`."""
    device: str = "auto"
    by: Any = field(default=None, init=False)
    """The matcher (a `Method`), for benchmarks that match."""

    def __post_init__(self) -> None:
        self.config = self.Config() if self.config is None else self.config

    @classmethod
    def configured(
        cls, changes: dict[str, Any], *, seed: int = 0, device: str = "auto", setting: str = "", **options: Any
    ) -> Any:
        """A benchmark with configuration overrides, under one of its settings if it has several.

        Raises UsageError for an unknown setting or field.
        """
        values = merged_values(cls.seeded(seed), changes)
        if cls.setting:
            config = setting_of(cls.name, setting or cls.setting, values)
        else:
            config = make(cls.Config, values, where=f"eval {cls.name}")
        benchmark = cls(config, device, **options)
        benchmark.setting = setting or cls.setting
        return benchmark

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Its options with their defaults: the keyword arguments of its class."""
        return {option.name: option.default for option in fields(cls) if option.init and option.kw_only}

    @property
    def place(self) -> str:
        """Folder of its results within the results folder."""
        return self.name

    @staticmethod
    def seeded(seed: int) -> dict[str, Any]:
        """Configuration fields set by the random seed."""
        return {}

    def changed(self, **changes: Any) -> None:
        """Apply options to the configuration. Raises UsageError for a value out of range."""
        chosen = {name: value for name, value in changes.items() if value not in (None, {})}
        if chosen:
            self.config = make(
                type(self.config), merged_values(self.config.model_dump(), chosen), where=f"eval {self.name}"
            )

    def settings(self) -> dict[str, Any]:
        """The configurations of the benchmark and its matcher, by title."""
        by_title = {} if self.Config is Config else {self.setting or "benchmark": self.config.result_fields()}
        if self.by is not None:
            by_title["matcher"] = {"name": self.by.name, **self.by.config.result_fields()}
        return by_title

    def find(self, roots: Sequence[Path]) -> Data:
        """Find the data in some folders. Raises BadInputError naming what is missing."""
        raise NotImplementedError

    def methods(self, features: Sequence[str], **reading: Any) -> list[Measured]:
        """The methods by name. Raises UsageError for an unknown one."""
        raise NotImplementedError

    def run(self, data: Data, methods: Sequence[Measured], work: Work) -> Result:
        """Measure all methods. Raises featkit's errors."""
        raise NotImplementedError


@dataclass
class ImageBenchmark(Benchmark[Data, Any]):
    """A benchmark of image features: its methods are extractors."""

    resize_max: ClassVar[int | None] = None
    """Default longer side of images after resizing, px; None: not resized."""

    def method(self, name: str, label: str | None = None, changes: dict[str, Any] | None = None, **reading: Any) -> Any:
        """Features by name. changes: overrides of the extractor's fields. reading: fields of `ExtractConfig`.

        Raises UsageError for an unknown name or field.
        """
        stage = ExtractConfig(features=name, **reading)
        return replace(extraction_method(stage, changes or {}, self.device), name=label or name)

    def methods(
        self,
        features: Sequence[str],
        *,
        weights: str | None = None,
        max_keypoints: int | None = None,
        resize_max: int | None = None,
        workers: int = 0,
        **reading: Any,
    ) -> list[Any]:
        """Extractors by name. weights: a file, for a single name. Raises UsageError for unknown names or fields."""
        if weights is not None and len(features) > 1:
            raise UsageError(f"--weights goes with one --features, not with {len(features)}")
        options = {"max_keypoints": max_keypoints, "weights": weights}
        changes = {name: value for name, value in options.items() if value is not None}
        reading |= {"decode": {"resize_max": resize_max}, "workers": workers}
        labels = [name if weights is None else f"{name} ({Path(weights).stem})" for name in features]
        return [
            self.method(*name_and_label, changes, **reading) for name_and_label in zip(features, labels, strict=True)
        ]


@dataclass(kw_only=True)
class SettingBenchmark(ImageBenchmark[Data]):
    """A benchmark with settings taken from papers: `config` has extractors, matched_by and matching.

    ratio: overrides the setting's ratio test; 1: none. skip_broken: skip unreadable images.
    """

    ratio: float | None = None
    skip_broken: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.changed(matching={} if self.ratio is None else {"ratio": self.ratio})
        for name in self.config.extractors:
            class_of("extractor", name)  # a misspelt one would be ignored silently
        self.by = resolve("matcher", self.config.matched_by, self.config.matching, self.device).ready()

    def differences(self, name: str) -> Any:
        """The setting's overrides for the extractor of the named features; None: no entry."""
        extractor = str(named_config(name, "extractor").get("extractor"))
        if self.config.extractors and extractor not in self.config.extractors:
            LOGGER.info("%s: the setting has nothing for %s; its own configuration is used", name, extractor)
        return self.config.extractors.get(extractor)


def run_benchmark(
    benchmark: Benchmark[Data, Measured], roots: Sequence[Path], features: str, work: Work, **reading: Any
) -> Result:
    """Run a benchmark on comma-separated feature names. reading: passed to `benchmark.methods`.

    Raises UsageError for unknown names, BadInputError for missing or broken data.
    """
    methods: list[Any] = benchmark.methods(method_names(features), **reading)
    result = benchmark.run(benchmark.find(roots), methods, work)
    described = {method.name: method.described() for method in methods if hasattr(method, "described")}
    return replace(result, benchmark=benchmark.name, settings=benchmark.settings(), methods=described)


def matcher_named(name: str, ratio: float | None, device: str) -> Method[Matcher]:
    """A matcher by name. ratio: overrides its ratio test. Raises UsageError for an unknown name."""
    return resolve("matcher", name, {} if ratio is None else {"ratio": ratio}, device).ready()
