"""Use every featkit extractor and matcher in hloc (the Hierarchical-Localization toolbox) without modifying it.

    from featkit.hloc import register
    register()
    extract_features.main(extract_features.confs["featkit-rootsift"], images, outputs)
    match_features.main(match_features.confs["featkit-mutual"], pairs, "feats-featkit-rootsift", outputs)

hloc's own command lines, which then accept featkit's configurations:

    python -m featkit.hloc extract_features --conf featkit-scfeat --image_dir images --export_dir out

hloc's pipelines name their configurations in code; --instead replaces them for one run:

    python -m featkit.hloc --instead superpoint_max=featkit-scfeat --instead superglue=featkit-mutual \\
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
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from featkit.core.config import config_names
from featkit.core.errors import BadInputError, FeatkitError, UsageError
from featkit.core.registry import resolve
from featkit.core.types import Features, Matches
from featkit.features.base import BYTE, is_packed, pack_bits, unpack_signs
from featkit.features.stage import with_stage_config
from featkit.io.features import extractor_name

LOGGER = logging.getLogger(__name__)
COMMIT = "c13273bd0ecc2917a35910fd843712a1c6243193"
"""The tested commit of hloc."""
INSTALL = f'pip install --no-deps "hloc @ git+https://github.com/cvg/Hierarchical-Localization@{COMMIT}"'
PREFIX = "featkit-"
EXTRACTOR_MODULE, MATCHER_MODULE = "hloc.extractors.featkit", "hloc.matchers.featkit"
NO_POINTS = ("4.2.1",)
"""Versions of pycolmap with which hloc's triangulation was found to produce no points."""
LAST_GOOD = "4.2.0"
"""Versions 3.13.0, 4.0.4, 4.1.0, 4.1.1 and 4.2.0 triangulate every point of the same input."""
USUAL_COMMANDS = ("extract_features", "match_features", "pairs_from_retrieval", "localize_sfm")


@dataclass(frozen=True)
class Registered:
    """Names registered in hloc: keys of `extract_features.confs` and `match_features.confs`."""

    extractors: tuple[str, ...]
    matchers: tuple[str, ...]


def register(instead: Mapping[str, str] = MappingProxyType({})) -> Registered:
    """Add featkit's extractors and matchers to hloc's registries, in this process; a second call has no effect.

    instead: hloc's configuration name -> the featkit configuration that replaces it. Raises UsageError if hloc is not
    installed, or for an unknown name in `instead`.
    """
    base = _import_hloc("hloc.utils.base_model").BaseModel
    extract, match = _import_hloc("hloc.extract_features"), _import_hloc("hloc.match_features")
    _add_module(EXTRACTOR_MODULE, extractor_class(base))
    _add_module(MATCHER_MODULE, matcher_class(base))
    extractors = {f"{PREFIX}{name}": extractor_conf(name) for name in config_names("extractor")}
    matchers = {f"{PREFIX}{name}": matcher_conf(name) for name in config_names("matcher")}
    extract.confs.update(extractors)
    match.confs.update(matchers)
    for theirs, ours in instead.items():
        _replace_configuration((extract.confs, match.confs), theirs, ours)
    _warn_of_pycolmap_version()
    return Registered(tuple(extractors), tuple(matchers))


def extractor_conf(name: str) -> dict[str, Any]:
    """hloc's entry for the extractor `name` in configs/. Images are not resized: change `preprocessing` for that.

    `changes` of the model overrides fields of featkit's configuration, as {"max_keypoints": 20000}.
    """
    cls = resolve("extractor", name).cls
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

    class FeatkitExtractor(base):
        """A featkit extractor; `features` is its name in configs/."""

        __module__ = EXTRACTOR_MODULE  # hloc uses the one class whose __module__ is the requested module
        default_conf = {"features": "rootsift", "changes": {}, "device": "auto"}  # noqa: RUF012
        required_inputs = ["image"]  # noqa: RUF012
        detection_noise = 1.0

        def _init(self, conf: dict[str, Any]) -> None:
            method = with_stage_config(resolve("extractor", conf["features"], conf["changes"], conf["device"]))
            self.extractor, self.made_by = method.built, extractor_name(method.config.result_fields())

        def _forward(self, data: dict[str, Any]) -> dict[str, Any]:
            features = self.extractor.extract(pixels_of(data["image"], self.extractor.colour))
            features = replace(features, extractor=self.made_by)
            self.detection_noise = features.uncertainty_px  # hloc scales it and stores it with the keypoints
            return prediction_of(features)

    return FeatkitExtractor


def matcher_class(base: Any) -> type[Any]:
    """hloc's plug-in for all matchers. base: hloc's BaseModel."""

    class FeatkitMatcher(base):
        """A featkit matcher; `matcher` is its name in configs/. Works with any extractor's features."""

        __module__ = MATCHER_MODULE
        default_conf = {"matcher": "mutual", "changes": {}, "device": "auto"}  # noqa: RUF012
        required_inputs = ["descriptors0", "descriptors1"]  # noqa: RUF012

        def _init(self, conf: dict[str, Any]) -> None:
            self.matcher = resolve("matcher", conf["matcher"], conf["changes"], conf["device"]).built

        def _forward(self, data: dict[str, Any]) -> dict[str, Any]:
            return matches_as_hloc(self.matcher.match([(features_of(data, 0), features_of(data, 1))])[0])

    return FeatkitMatcher


def _import_hloc(name: str) -> ModuleType:
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
    """Register a module with one class, so that hloc's `import hloc.extractors.NAME` finds it."""
    if name in sys.modules:
        return
    module = ModuleType(name, "featkit's plug-in; see featkit.hloc")
    setattr(module, cls.__name__, cls)
    sys.modules[name] = module
    parent, _, last_name = name.rpartition(".")
    setattr(_import_hloc(parent), last_name, module)


def _replace_configuration(tables: tuple[dict[str, Any], ...], theirs: str, ours: str) -> None:
    for table in tables:
        if theirs in table and ours in table:
            table[theirs] = table[ours]
            return
    raise UsageError(f"--instead {theirs}={ours}: not two configurations of features, nor two of matches, in hloc")


def _warn_of_pycolmap_version() -> None:
    try:
        version = importlib.metadata.version("pycolmap")
    except importlib.metadata.PackageNotFoundError:
        return
    if version in NO_POINTS:
        LOGGER.warning(
            "pycolmap %s: hloc's triangulation produces no points; pip install pycolmap==%s, or call it with"
            " estimate_two_view_geometries=True",
            version,
            LAST_GOOD,
        )


def run_command(command: str, arguments: Sequence[str]) -> None:
    """Run one of hloc's command line modules, such as "extract_features", after registering featkit.

    Its `if __name__ == "__main__"` block runs in the imported module: `python -m` would run a second copy of the
    module with its own registry. Raises UsageError for a module without that block.
    """
    module = _import_hloc(f"hloc.{command}")
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
    """`python -m featkit.hloc ...`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m featkit.hloc",
        description="Run a command line of hloc with featkit's extractors and matchers among its configurations.",
        epilog="Without a command, lists the names that featkit adds.",
    )
    parser.add_argument(
        "--instead",
        action="append",
        default=[],
        metavar="THEIRS=OURS",
        help="replace a configuration in hloc's pipelines",
    )
    parser.add_argument("command", nargs="?", help=f"a module of hloc: {', '.join(USUAL_COMMANDS)} ...")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the command; see its --help")
    options = parser.parse_args(arguments)
    try:
        registered = register(dict(_parse_replacement(text) for text in options.instead))
        if options.command is None:
            print("\n".join((*registered.extractors, *registered.matchers)))
        else:
            run_command(options.command, options.arguments)
    except FeatkitError as error:
        print(f"featkit: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parse_replacement(text: str) -> tuple[str, str]:
    theirs, equals, ours = text.partition("=")
    if not equals:
        raise UsageError(f"--instead {text!r}: write it as THEIRS=OURS")
    return theirs, ours


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))


# ----------------------------------------------------------------------------------------------------------------------
# Conversion between hloc's tensors and featkit's Features.
#
# Both count pixels from the centre of the top-left one, (0, 0), so keypoints need no conversion. hloc adds its 0.5 when
# it scales keypoints back to the size of the file, and again when it fills COLMAP's database.


INT16_MAX = 32767  # hloc stores the index of a match as int16


def pixels_of(image: Float[Tensor, "1 c h w"], colour: bool) -> UInt8[np.ndarray, "h w *c"]:
    """hloc's image (grey or RGB, 0 to 1) as an extractor's input, with the exact 8-bit values of the file."""
    planes = np.rint(image[0].detach().cpu().numpy() * 255.0).clip(0, 255).astype(np.uint8)
    if colour:
        return np.ascontiguousarray(np.broadcast_to(planes, (3, *planes.shape[1:])).transpose(1, 2, 0))
    if len(planes) == 1:
        return np.ascontiguousarray(planes[0])
    return cv2.cvtColor(np.ascontiguousarray(planes.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)


def prediction_of(features: Features) -> dict[str, Tensor]:
    """hloc's prediction for one image, with a leading batch axis of length 1.

    Keypoints are float64: by default hloc converts float32 arrays to float16, whose resolution is 1 px beyond 1,024 px,
    but leaves float64 alone. Orientations are in degrees (as in hloc's own SIFT and AdaLAM). Packed bits become rows of
    -1 and +1 divided by the square root of their number: hloc has no binary descriptors, and these give the same order
    as Hamming distances.
    """
    rows = features.descriptors
    if is_packed(rows):
        rows = (unpack_signs(rows) / np.sqrt(BYTE * rows.shape[1])).astype(np.float16)
    arrays = {
        "keypoints": features.keypoints.astype(np.float64),
        "scores": features.scores.astype(np.float32),
        "descriptors": np.ascontiguousarray(rows.T),
    }
    if features.scales is not None:
        arrays["scales"] = features.scales.astype(np.float32)
    if features.oris is not None:
        arrays["oris"] = np.degrees(features.oris).astype(np.float32)
    if features.turns > 1:
        arrays["turns"] = np.asarray(features.turns)
    if features.extractor:  # hloc's files hold only numbers
        arrays["extractor"] = np.frombuffer(features.extractor.encode(), np.uint8)
    return {name: torch.from_numpy(np.array(values))[None] for name, values in arrays.items()}


def features_of(data: Mapping[str, Tensor], side: int) -> Features:
    """Features of image `side` (0 or 1) of a pair, from the input of an hloc matcher (of any extractor)."""
    descriptors = data[f"descriptors{side}"][0].T.cpu().numpy()
    count = len(descriptors)
    height, width = data[f"image{side}"].shape[-2:] if f"image{side}" in data else (0, 0)

    def optional(name: str) -> np.ndarray | None:
        stored = data.get(f"{name}{side}")
        return None if stored is None else stored[0].cpu().numpy()

    def values(name: str, otherwise: np.ndarray) -> np.ndarray:
        stored = optional(name)
        return otherwise if stored is None else stored

    return Features(
        keypoints=values("keypoints", np.zeros((count, 2))).astype(np.float32),
        descriptors=_repack_bits(descriptors),
        scores=values("scores", np.ones(count)).astype(np.float32),
        image_size=(int(width), int(height)),
        scales=_as_float32(optional("scales")),
        oris=None if (oris := optional("oris")) is None else np.radians(oris).astype(np.float32),
        turns=int(values("turns", np.asarray(1))),
        extractor=bytes(values("extractor", np.zeros(0)).astype(np.uint8)).decode("ascii", "replace"),
    )


def _as_float32(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.astype(np.float32)


def _repack_bits(rows: Float[np.ndarray, "n d"]) -> np.ndarray:
    """Pack the bits that `prediction_of` unpacked; real-valued rows are unchanged."""
    if rows.size and rows.shape[1] % BYTE == 0 and (np.abs(rows) == np.abs(rows[0, 0])).all():
        return pack_bits(rows > 0)
    return rows


def matches_as_hloc(matches: Matches) -> dict[str, Tensor]:
    """hloc's prediction for one pair. Raises BadInputError for an index that does not fit hloc's int16."""
    if len(matches.matches0) and matches.matches0.max() > INT16_MAX:
        raise BadInputError(
            f"a match with keypoint {matches.matches0.max():,}: hloc's int16 ends at {INT16_MAX:,};"
            " extract fewer keypoints, or match with `featkit match`"
        )
    return {
        "matches0": torch.from_numpy(matches.matches0.astype(np.int64))[None],
        "matching_scores0": torch.from_numpy(matches.scores0.astype(np.float32))[None],
    }
