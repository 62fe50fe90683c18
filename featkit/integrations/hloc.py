"""Every featkit extractor and matcher inside hloc (the Hierarchical-Localization toolbox), its files untouched.

    from featkit.integrations.hloc import register
    register()
    extract_features.main(extract_features.confs["featkit-rootsift"], images, outputs)
    match_features.main(match_features.confs["featkit-mutual"], pairs, "feats-featkit-rootsift", outputs)

hloc's own command lines, with featkit's configurations among their choices:

    python -m featkit.integrations.hloc extract_features --conf featkit-scfeat --image_dir images --export_dir out

A pipeline of hloc names its configurations in its code; --instead puts others in their place for one run:

    python -m featkit.integrations.hloc --instead superpoint_max=featkit-scfeat --instead superglue=featkit-mutual \\
        pipelines.Aachen_v1_1.pipeline --dataset aachen --outputs out
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from featkit.config import read_yaml
from featkit.errors import FeatkitError, UsageError
from featkit.registry import configured, resolve
from featkit.resources import resource_dir

LOGGER = logging.getLogger(__name__)
COMMIT = "c13273bd0ecc2917a35910fd843712a1c6243193"
"""The commit of hloc that this was tested with."""
INSTALL = f'pip install --no-deps "hloc @ git+https://github.com/cvg/Hierarchical-Localization@{COMMIT}"'
PREFIX = "featkit-"
EXTRACTOR_MODULE, MATCHER_MODULE = "hloc.extractors.featkit", "hloc.matchers.featkit"
NO_POINTS = ("4.2.1",)
"""Versions of pycolmap with which hloc's triangulation was seen to come out without a point."""
LAST_GOOD = "4.2.0"
"""With 3.13.0, 4.0.4, 4.1.0, 4.1.1 and 4.2.0 the same input gave every point."""
USUAL_COMMANDS = ("extract_features", "match_features", "pairs_from_retrieval", "localize_sfm")


@dataclass(frozen=True)
class Registered:
    """Names that hloc now knows: keys of `extract_features.confs` and of `match_features.confs`."""

    extractors: tuple[str, ...]
    matchers: tuple[str, ...]


def register(instead: Mapping[str, str] = MappingProxyType({})) -> Registered:
    """Add featkit's extractors and matchers to hloc's registries, in this process; a second call changes nothing.

    instead: a configuration of hloc -> the one of featkit that stands in its place.
    Raises UsageError when hloc is not installed, or for a name in `instead` that there is not.
    """
    base = _import("hloc.utils.base_model").BaseModel
    extract, match = _import("hloc.extract_features"), _import("hloc.match_features")
    _add_module(EXTRACTOR_MODULE, extractor_class(base))
    _add_module(MATCHER_MODULE, matcher_class(base))
    extractors = {f"{PREFIX}{name}": extractor_conf(name) for name in _configurations("extractor")}
    matchers = {f"{PREFIX}{name}": matcher_conf(name) for name in _configurations("matcher")}
    extract.confs.update(extractors)
    match.confs.update(matchers)
    for theirs, ours in instead.items():
        _replace((extract.confs, match.confs), theirs, ours)
    _warn_of_pycolmap()
    return Registered(tuple(extractors), tuple(matchers))


def extractor_conf(name: str) -> dict[str, Any]:
    """hloc's entry for the extractor `name` in configs/. Images keep their size: change `preprocessing` to resize.

    `changes` of the model are fields of featkit's configuration that differ, as {"max_keypoints": 20000}.
    """
    cls = resolve("extractor", str(read_yaml(resource_dir("configs") / f"{name}.yaml")["extractor"]))
    return {
        "output": f"feats-{PREFIX}{name}",
        "model": {"name": "featkit", "features": name, "changes": {}},
        "preprocessing": {"grayscale": not cls.colour, "resize_max": None},
    }


def matcher_conf(name: str) -> dict[str, Any]:
    """hloc's entry for the matcher `name` in configs/; `changes` as for `extractor_conf`."""
    return {"output": f"matches-{PREFIX}{name}", "model": {"name": "featkit", "matcher": name, "changes": {}}}


def extractor_class(base: Any) -> type[Any]:
    """hloc's plug-in for all extractors. base: hloc's BaseModel."""
    from featkit.integrations.hloc_tensors import pixels_of, prediction_of

    class FeatkitExtractor(base):
        """One extractor of featkit; `features` is its name in configs/."""

        __module__ = EXTRACTOR_MODULE  # hloc takes the one class that says it is of the module it asked for
        default_conf = {"features": "rootsift", "changes": {}, "device": "auto"}  # noqa: RUF012
        required_inputs = ["image"]  # noqa: RUF012
        detection_noise = 1.0

        def _init(self, conf: dict[str, Any]) -> None:
            cls, config = configured("extractor", conf["features"], conf["changes"])
            self.extractor = cls(config, conf["device"])

        def _forward(self, data: dict[str, Any]) -> dict[str, Any]:
            features = self.extractor.extract(pixels_of(data["image"], self.extractor.colour))
            self.detection_noise = features.uncertainty_px  # hloc scales it and writes it beside the keypoints
            return prediction_of(features)

    return FeatkitExtractor


def matcher_class(base: Any) -> type[Any]:
    """hloc's plug-in for all matchers. base: hloc's BaseModel."""
    from featkit.integrations.hloc_tensors import features_of, matches_as_hloc

    class FeatkitMatcher(base):
        """One matcher of featkit; `matcher` is its name in configs/. The features may be of anybody."""

        __module__ = MATCHER_MODULE
        default_conf = {"matcher": "mutual", "changes": {}, "device": "auto"}  # noqa: RUF012
        required_inputs = ["descriptors0", "descriptors1"]  # noqa: RUF012

        def _init(self, conf: dict[str, Any]) -> None:
            cls, config = configured("matcher", conf["matcher"], conf["changes"])
            self.matcher = cls(config, conf["device"])

        def _forward(self, data: dict[str, Any]) -> dict[str, Any]:
            return matches_as_hloc(self.matcher.match([(features_of(data, 0), features_of(data, 1))])[0])

    return FeatkitMatcher


def _import(name: str) -> ModuleType:
    try:
        importlib.import_module("hloc")
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == "hloc":
            raise UsageError(f"hloc is not installed; {INSTALL}") from None
        if error.name == name:
            raise UsageError(
                f"hloc has no module {name.removeprefix('hloc.')!r}; tested with commit {COMMIT}"
            ) from None
        raise UsageError(f"hloc needs {error.name}; pip install {(error.name or '').partition('.')[0]}") from None


def _add_module(name: str, cls: type[Any]) -> None:
    """A module with one class, where hloc's `import hloc.extractors.NAME` finds it."""
    if name in sys.modules:
        return
    module = ModuleType(name, "featkit's plug-in; see featkit.integrations.hloc")
    setattr(module, cls.__name__, cls)
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    setattr(_import(parent), own, module)


def _configurations(kind: str) -> list[str]:
    folder = resource_dir("configs")
    return [path.stem for path in sorted(folder.glob("*.yaml")) if kind in read_yaml(path)]


def _replace(tables: tuple[dict[str, Any], ...], theirs: str, ours: str) -> None:
    for table in tables:
        if theirs in table and ours in table:
            table[theirs] = table[ours]
            return
    raise UsageError(f"--instead {theirs}={ours}: not two configurations of features, nor two of matches, in hloc")


def _warn_of_pycolmap() -> None:
    try:
        version = importlib.metadata.version("pycolmap")
    except importlib.metadata.PackageNotFoundError:
        return
    if version in NO_POINTS:
        LOGGER.warning(
            "pycolmap %s: hloc's triangulation comes out without points; pip install pycolmap==%s, or call it with"
            " estimate_two_view_geometries=True",
            version,
            LAST_GOOD,
        )


def run_command(command: str, arguments: Sequence[str]) -> None:
    """Run a command line of hloc, a module such as "extract_features", with featkit registered before.

    Its lines under `if __name__ == "__main__"` run in the module as it was imported: `python -m` would run a second
    copy of it, with a registry of its own. Raises UsageError for a module without such lines.
    """
    module = _import(f"hloc.{command}")
    source = Path(module.__file__).read_text(encoding="utf-8") if module.__file__ else ""
    guarded = [
        line
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
        for line in node.body
    ]
    if not guarded:
        raise UsageError(f"hloc's module {command!r} has no command line; there is {', '.join(USUAL_COMMANDS)}")
    sys.argv = [f"hloc.{command}", *arguments]
    exec(compile(ast.Module(guarded, []), str(module.__file__), "exec"), vars(module))


def main(arguments: Sequence[str]) -> int:
    """`python -m featkit.integrations.hloc ...`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m featkit.integrations.hloc",
        description="Run a command line of hloc with featkit's extractors and matchers among its configurations.",
        epilog="Without a command: the names that featkit adds.",
    )
    parser.add_argument("--instead", action="append", default=[], metavar="THEIRS=OURS", help="for hloc's pipelines")
    parser.add_argument("command", nargs="?", help=f"a module of hloc: {', '.join(USUAL_COMMANDS)} ...")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the command takes; --help shows it")
    asked = parser.parse_args(arguments)
    try:
        added = register(dict(_two_names(text) for text in asked.instead))
        if asked.command is None:
            print("\n".join((*added.extractors, *added.matchers)))
        else:
            run_command(asked.command, asked.arguments)
    except FeatkitError as error:
        print(f"featkit: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _two_names(text: str) -> tuple[str, str]:
    theirs, equals, ours = text.partition("=")
    if not equals:
        raise UsageError(f"--instead {text!r}: write it as THEIRS=OURS")
    return theirs, ours


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
