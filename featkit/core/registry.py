"""Names a user types -> named, configured things: `resolve("extractor", "rootsift")` is a `Method`.

Adding a method is one file, one row here, one yaml in `configs/`, one test. From outside the package a yaml names a
class itself (docs/extending.md), as `extractor: my_package.my_module:MyExtractor`, or by an entry point of the group
`featkit.extractors` (`featkit.matchers`, `featkit.pairings`, ...).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from featkit.core.config import Config, digest, make, merged_values, named_config, near_names
from featkit.core.errors import UsageError
from featkit.core.imports import import_module

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """`target` is "module:Class"; the class has a `Config` attribute and takes (config, device)."""

    target: str
    summary: str


EXTRACTORS: dict[str, Entry] = {
    "sift": Entry("featkit.features.sift:Sift", "DoG keypoints, SIFT or RootSIFT descriptors (pycolmap)"),
    "patches": Entry("featkit.features.patches:Patches", "DoG keypoints (pycolmap), a patch network's descriptors"),
    "scfeat": Entry(
        "featkit.features.scfeat:Scfeat", "keypoints and descriptors of one dense network, learned from poses"
    ),
    "aliked": Entry("featkit.features.published:Aliked", "ALIKED's keypoints and descriptors (kornia)"),
    "disk": Entry("featkit.features.published:Disk", "DISK's keypoints and descriptors (kornia)"),
    "xfeat": Entry("featkit.features.published:Xfeat", "XFeat's keypoints and descriptors (kornia)"),
    "dedode": Entry("featkit.features.published:Dedode", "DeDoDe's keypoints and descriptors (kornia)"),
    "keynet-hardnet": Entry("featkit.features.published:KeynetHardnet", "Key.Net keypoints, OriNet, HardNet (kornia)"),
    "doghardnet": Entry("featkit.features.published:DogHardnet", "DoG keypoints (pycolmap), the authors' HardNet"),
}
MATCHERS: dict[str, Entry] = {
    "mutual": Entry("featkit.matching.mutual:MutualMatcher", "mutual nearest neighbour, ratio test on both sides"),
    "lightglue": Entry("featkit.matching.lightglue:LightGlueMatcher", "LightGlue, weights by the features (kornia)"),
}
PAIRINGS: dict[str, Entry] = {
    "exhaustive": Entry("featkit.pairing.by_name:Exhaustive", "every image with every other"),
    "sequential": Entry(
        "featkit.pairing.by_name:Sequential", "each image with the next ones in name order, loops, rigs"
    ),
    "retrieval": Entry("featkit.pairing.by_retrieval:Retrieval", "each image with the most similar ones (VLAD)"),
    "gps": Entry("featkit.pairing.by_place:Gps", "each image with the ones taken nearest to it, by EXIF or a csv"),
    "poses": Entry("featkit.pairing.by_place:ByPoses", "each image with the nearest of a model that look the same way"),
    "covisible": Entry("featkit.pairing.by_place:Covisible", "each image with those of a model that share its points"),
}
TASKS: dict[str, Entry] = {
    "patch": Entry("featkit.training.patch:PatchTask", "a patch descriptor, trained on classes of patches"),
    "scfeat": Entry("featkit.training.scfeat:ScfeatStages", "SCFeat, trained on pairs of images with poses"),
}
BENCHMARKS: dict[str, Entry] = {
    "eth": Entry("featkit.evaluation.eth:EthBenchmark", "maps of the ETH local-feature benchmark's scenes"),
    "aachen": Entry("featkit.evaluation.aachen:AachenBenchmark", "poses of Aachen Day-Night's queries"),
}
KINDS = {"extractor": EXTRACTORS, "matcher": MATCHERS, "pairing": PAIRINGS, "task": TASKS, "benchmark": BENCHMARKS}


@dataclass(frozen=True)
class Method(Generic[T]):
    """One named, configured thing: an extractor, a matcher, a pairing, a task or a benchmark.

    It is a value: it is sent to other processes as it is, and what it describes is built where it is first used.
    """

    name: str
    """In `configs/`, the path of a yaml file, or what tables call it."""
    cls: type[T]
    """Built as `cls(own, device)`."""
    own: Config
    """The configuration of `cls`, complete."""
    device: str = "auto"
    row: str = ""
    """What its yaml calls `cls`: a row of the tables above, an entry point, or "module:Class"."""
    stage: Config | None = None
    """The configuration of the stage around it, where that decides results too: `ExtractConfig`, which holds `own`."""

    @property
    def config(self) -> Any:
        """All that decides its results, as files record it: `stage`, or `own` where there is none."""
        return self.own if self.stage is None else self.stage

    @cached_property
    def built(self) -> T:
        """The one object of this process, made at the first use and shared by all users of this method."""
        return self.build()

    def build(self) -> T:
        """Another object of its class, for one user."""
        return self.cls(self.own, self.device)  # type: ignore[call-arg]

    def ready(self) -> Method[T]:
        """Itself, built: a device or a file that is not there is better found before the work than after."""
        _ = self.built
        return self

    @property
    def weights_sha256(self) -> str:
        """Hash of its weights file, "" when it has none. Raises UsageError for a weight that is not there."""
        return str(getattr(self.built, "weights_sha256", ""))

    @property
    def fingerprint(self) -> str:
        """16 hex digits of `config` and the weights: equal when the same results may be expected."""
        return digest(self.config.canonical_json(), self.weights_sha256)

    @property
    def file_name(self) -> str:
        """The name as part of a file's or a folder's name."""
        name = Path(self.name).stem if self.name.endswith((".yaml", ".yml")) else self.name
        return re.sub(r"[^\w.+-]+", "_", name).strip("._") or "x"

    def described(self) -> dict[str, Any]:
        """Name, configuration and weights, as plain values."""
        config, weights = self.config.result_fields(), self.weights_sha256
        return {"name": self.name, "fingerprint": self.fingerprint, "config": config, "weights_sha256": weights}

    def __getstate__(self) -> dict[str, Any]:
        """Without what was built, which may hold threads, files and a device."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def resolve(kind: str, name: str, changes: dict[str, Any] | None = None, device: str = "auto") -> Method[Any]:
    """What a name in `configs/` stands for: the yaml's values, with `changes` laid over them.

    kind: a key of `KINDS`, by which a yaml names its class. name: also the path of a yaml file. Nothing is built yet.
    Raises UsageError for an unknown name or field, BadInputError for a file that is not a yaml.
    """
    values = named_config(name, kind)
    target = values.pop(kind, None)
    if target is None:
        article = "an" if kind[0] in "aeiou" else "a"
        raise UsageError(f"{name!r} is not {article} {kind} (it has no key {kind!r}); {near_names(name, kind)}")
    cls = class_of(kind, str(target))
    own = make(cls.Config, merged_values(values, changes or {}), where=f"configuration {name!r}")
    return Method(name, cls, own, device, str(target))


def class_of(kind: str, name: str) -> type[Any]:
    """The class behind `name` among `kind` (a key of `KINDS`): a row, an entry point, or "module:Class" itself.

    Raises UsageError for an unknown name, and for a class from outside that cannot be imported or has no Config.
    """
    if name in KINDS[kind]:
        return _import_class(KINDS[kind][name].target)
    plugins = {point.name: point.value for point in entry_points(group=f"featkit.{kind}s")}
    target = name if ":" in name else plugins.get(name)
    if target is None:
        known = [*KINDS[kind], *plugins]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise UsageError(f"no {kind} named {name!r}; {hint}")
    try:
        cls = _import_class(target)
    except Exception as error:  # a module from outside may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{kind} {target}: {reason}; install its package, or put its folder on PYTHONPATH") from None
    config = getattr(cls, "Config", None)
    if not (isinstance(cls, type) and isinstance(config, type) and issubclass(config, Config)):
        raise UsageError(f"{kind} {target}: not a class with a Config (a subclass of featkit.core.config.Config)")
    return cls


def _import_class(target: str) -> type[Any]:
    """The class that "module:Class" names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def setting_of(benchmark: str, setting: str, changes: dict[str, Any]) -> Config:
    """The configuration of a benchmark under one of its settings' names. Raises UsageError for another benchmark's."""
    benchmark_name = named_config(setting, "benchmark").get("benchmark")
    if benchmark_name != benchmark:
        whose = f"is of the benchmark {benchmark_name!r}" if benchmark_name else "is no setting of a benchmark"
        raise UsageError(f"--setting {setting}: {whose}; those of this one begin with {benchmark!r}")
    return resolve("benchmark", setting, changes).own
