"""What every benchmark is: data that it finds, methods that it measures, and one result for terminal, json and page.

A benchmark that takes features of images has them made by featkit's own stages, apart from its metrics:
PREDICTIONS/NAME-FINGERPRINT/features.h5 holds the features of every image; the fingerprint is that of the configuration
and of the weights, so that another configuration never meets the features of this one. Matches lie in
MATCHER-FINGERPRINT/ beside it. Images are read where they lie. Both stages resume, and make again what belongs to an
image that has changed.
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
from featkit.core.config import Config, make, merge, named_config
from featkit.core.content import Configuration, Headline, Report, Section, Table
from featkit.core.errors import UsageError
from featkit.core.log import timed
from featkit.core.registry import Method, class_of, resolve, setting_of
from featkit.core.types import Pair
from featkit.engine import stages
from featkit.engine.plan import LOCAL, EngineConfig
from featkit.features.base import Extractor
from featkit.features.stage import ExtractConfig, extraction
from featkit.io.lists import write_pairs
from featkit.matching.stage import Matcher

LOGGER = logging.getLogger(__name__)
Data = TypeVar("Data")
Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Predictions:
    """Where the features of a method lie, and the matches if there are any. seconds: of the stages, in this run."""

    method: Method[Extractor]
    features: Path
    matches: Path | None
    seconds: dict[str, float]

    def described(self) -> dict[str, Any]:
        """The method and its times, as plain values."""
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
    """Extract the features of some images of a folder, and match pairs of them; what is there already is kept.

    folder: of all predictions. Raises BadInputError for an image that cannot be read.
    """
    place = folder / f"{method.file_name}-{method.fingerprint}"
    features, matches = place / "features.h5", None
    seconds: dict[str, float] = {}
    with timed("extract", seconds):
        stages.extract(method, images, features, list(names), overwrite=overwrite, engine=engine)
    if matcher is not None:
        matches = place / f"{matcher.file_name}-{matcher.config.fingerprint()}" / "matches.h5"
        listed = write_pairs(matches.with_name("pairs.txt"), pairs)
        with timed("match", seconds):
            stages.match(matcher, features, listed, matches, overwrite=overwrite, engine=engine)
    return Predictions(method, features, matches, seconds)


@dataclass(frozen=True)
class Work:
    """Where a benchmark works and how. folder: of predictions and results."""

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
        """`predict` among the predictions of all benchmarks. scene: folder in it, where benchmarks have several."""
        folder = self.folder / "predictions" / scene
        return predict(
            method, images, names, folder, matcher, pairs, overwrite=self.overwrite, engine=self.engine
        )  # fmt: skip


def names_in(text: str | None) -> list[str]:
    """Comma-separated names, each once."""
    return list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def method_names(features: str) -> list[str]:
    """The same, at least one. Raises UsageError when there is none."""
    names = names_in(features)
    if not names:
        raise UsageError("--features: comma-separated names, as rootsift,hynet")
    return names


# ----------------------------------------------------------------------------------------------------------------------
# What a benchmark comes to.


class Plain:
    """A dataclass of measurements whose fields are what results.json holds."""

    def as_json(self) -> dict[str, Any]:
        """Plain values: shares and errors to six decimals, None for what is not finite."""
        return {one.name: plain(getattr(self, one.name)) for one in fields(self)}  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """Measurements, nested as they may be, as json has them."""
    if isinstance(value, Plain):
        return value.as_json()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | tuple | list):
        return [plain(one) for one in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class Ranked:
    """One number of one method. measure: what it is and of which data, with the unit. better: the higher or the lower.

    None and NaN: the method has no such number.
    """

    method: str
    measure: str
    value: float | None
    better: Literal["high", "low"] = "high"


@dataclass(frozen=True)
class Result:
    """All that is printed, written and shown of one run.

    numbers: results.json, as plain values. tables: for the terminal. ranking: for the table over all benchmarks.
    sections: of the page, without configurations. `evaluate` adds the benchmark's name and, by title and as plain
    values, the configurations: settings, methods.
    note: above the configurations. lines: printed below the tables.
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
        """Plain values, the same in every file and on the terminal."""
        made_by = {"benchmark": self.benchmark, "featkit_version": __version__}
        return {**made_by, **self.settings_as_json(), **self.numbers}

    def settings_as_json(self) -> dict[str, Any]:
        """The configuration by that name, whatever setting it is of."""
        return {name if name == "matcher" else "config": values for name, values in self.settings.items()}

    def page(self) -> Report:
        """Its own page. A benchmark without sections shows its tables."""
        sections = self.sections or [Section("Scores", items=self.tables)]
        settings = [*configurations(self.settings), *configurations(self.methods)]
        last = [Section("Configuration", self.note, settings)] if settings else []
        return Report(self.title, self.subtitle, self.headlines, [*sections, *last])


def configurations(described: Mapping[str, Any]) -> list[Configuration]:
    """What was measured and how, as json. described: title -> plain values."""
    return [Configuration(title, json.dumps(values, indent=1)) for title, values in described.items()]


# ----------------------------------------------------------------------------------------------------------------------
# The protocol: `find` the data, `run` the methods. The fields of a benchmark's class are the options of its command.


@dataclass
class Benchmark(Generic[Data, Measured]):
    """A benchmark under one configuration: `cls(config, device, **options)`, each option a field of its class."""

    name: ClassVar[str]
    Config: ClassVar[Any] = Config
    """Its configuration's class; by default there is nothing to configure."""
    default_features: ClassVar[str] = "rootsift"
    """Measured when nothing is asked for; comma-separated."""
    data_option: ClassVar[Literal["root", "data"]] = "root"
    """What its command calls the data."""
    several: ClassVar[bool] = False
    """Whether it takes several folders of data at once."""
    setting: str = field(default="", init=False)
    """Its setting in configs/, where papers measured it under several; of the class: the benchmark's own."""

    config: Any = None
    """Complete; by default that of `Config`."""
    device: str = "auto"
    by: Any = field(default=None, init=False)
    """The matcher, a `Method`, of benchmarks that match."""

    def __post_init__(self) -> None:
        self.config = self.Config() if self.config is None else self.config

    @classmethod
    def configured(
        cls, changes: dict[str, Any], *, seed: int = 0, device: str = "auto", setting: str = "", **options: Any
    ) -> Any:
        """A benchmark with some fields of its configuration changed, under one of its settings where it has several.

        Raises UsageError for an unknown setting or field.
        """
        values = merge(cls.seeded(seed), changes)
        if cls.setting:
            config = setting_of(cls.name, setting or cls.setting, values)
        else:
            config = make(cls.Config, values, where=f"eval {cls.name}")
        made = cls(config, device, **options)
        made.setting = setting or cls.setting
        return made

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Its options with their defaults: the keyword arguments of its class."""
        return {one.name: one.default for one in fields(cls) if one.init and one.kw_only}

    @property
    def place(self) -> str:
        """Folder of its results, in the one of all results."""
        return self.name

    @staticmethod
    def seeded(seed: int) -> dict[str, Any]:
        """Fields of the configuration that a seed decides."""
        return {}

    def changed(self, **changes: Any) -> None:
        """Lay options over the configuration. Raises UsageError for a value that is out of range."""
        given = {name: value for name, value in changes.items() if value not in (None, {})}
        if given:
            self.config = make(type(self.config), merge(self.config.model_dump(), given), where=f"eval {self.name}")

    def settings(self) -> dict[str, Any]:
        """Its configuration, and its matcher's, by title."""
        found = {} if self.Config is Config else {self.setting or "benchmark": self.config.result_fields()}
        if self.by is not None:
            found["matcher"] = {"name": self.by.name, **self.by.config.result_fields()}
        return found

    def find(self, roots: Sequence[Path]) -> Data:
        """The data in some folders. Raises BadInputError that says what is missing."""
        raise NotImplementedError

    def methods(self, features: Sequence[str], **reading: Any) -> list[Measured]:
        """What is measured, by names. Raises UsageError for an unknown one."""
        raise NotImplementedError

    def run(self, data: Data, methods: Sequence[Measured], work: Work) -> Result:
        """Measure all methods. Raises featkit's errors."""
        raise NotImplementedError


@dataclass
class ImageBenchmark(Benchmark[Data, Any]):
    """A benchmark of features of images: its methods are extractors."""

    resize_max: ClassVar[int | None] = None
    """Longer side of images after resizing, px, when nothing is asked for; None: as they are."""

    def method(self, name: str, label: str | None = None, changes: dict[str, Any] | None = None, **reading: Any) -> Any:
        """Features by name. changes: fields of the extractor that differ. reading: fields of `ExtractConfig`.

        Raises UsageError for an unknown name or field.
        """
        stage = ExtractConfig(features=name, **reading)
        return replace(extraction(stage, changes or {}, self.device), name=label or name)

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
        """Features by names, ready to extract. weights: of one name. Raises UsageError for an unknown name or field."""
        if weights is not None and len(features) > 1:
            raise UsageError(f"--weights goes with one --features, not with {len(features)}")
        options = {"max_keypoints": max_keypoints, "weights": weights}
        changes = {name: value for name, value in options.items() if value is not None}
        reading |= {"decode": {"resize_max": resize_max}, "workers": workers}
        labels = [name if weights is None else f"{name} ({Path(weights).stem})" for name in features]
        return [self.method(*one, changes, **reading) for one in zip(features, labels, strict=True)]


@dataclass(kw_only=True)
class SettingBenchmark(ImageBenchmark[Data]):
    """One that papers measured under settings of their own: `config` has extractors, matched_by and matching.

    ratio: of the ratio test, where that differs from the setting's; 1: none. skip_broken: pass over images that cannot
    be read.
    """

    ratio: float | None = None
    skip_broken: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.changed(matching={} if self.ratio is None else {"ratio": self.ratio})
        for name in self.config.extractors:
            class_of("extractor", name)  # a misspelt one would be passed over without a word
        self.by = resolve("matcher", self.config.matched_by, self.config.matching, self.device).ready()

    def differences(self, name: str) -> Any:
        """What the setting has for the extractor of features by name; None: nothing."""
        extractor = str(named_config(name, "extractor").get("extractor"))
        if self.config.extractors and extractor not in self.config.extractors:
            LOGGER.info("%s: the setting has nothing for %s; its own configuration is used", name, extractor)
        return self.config.extractors.get(extractor)


def evaluate(
    benchmark: Benchmark[Data, Measured], roots: Sequence[Path], features: str, work: Work, **reading: Any
) -> Result:
    """Measure features, comma-separated names, on the data in some folders. reading: of `benchmark.methods`.

    Raises UsageError for names that there are not, BadInputError for data that are missing or broken.
    """
    methods: list[Any] = benchmark.methods(method_names(features), **reading)
    result = benchmark.run(benchmark.find(roots), methods, work)
    described = {one.name: one.described() for one in methods if hasattr(one, "described")}
    return replace(result, benchmark=benchmark.name, settings=benchmark.settings(), methods=described)


def matcher_named(name: str, ratio: float | None, device: str) -> Method[Matcher]:
    """A matcher, ready. ratio: of its ratio test, where that differs. Raises UsageError for an unknown name."""
    return resolve("matcher", name, {} if ratio is None else {"ratio": ratio}, device).ready()
