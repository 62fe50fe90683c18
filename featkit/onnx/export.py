"""Export of a network to one ONNX file, which is only written if its results agree with featkit's.

The graph is traced with torch's TorchScript exporter, which takes 5 seconds for SCFeat with dynamic height and width;
the newer exporter takes over 100 seconds and gives the same outputs. The file is then run with ONNX Runtime on images
(patches, pairs of features) of several sizes and batches, all different from the traced one, and compared with
featkit's own extractors and matchers, not only with the graph, whose errors it shares.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from featkit import __version__
from featkit.core.config import make
from featkit.core.errors import BadInputError, EmptyResultError, UsageError
from featkit.core.registry import resolve
from featkit.core.types import Features
from featkit.features.patches import FrozenNetwork
from featkit.features.published import MIN_SIDE_PX as PUBLISHED_SIDE_PX
from featkit.features.published import DogHardnetConfig
from featkit.features.published_networks import ALIKED_NETWORKS, LIGHTGLUE_NETWORKS, load_network
from featkit.features.scfeat import MIN_SIDE_PX as SCFEAT_SIDE_PX
from featkit.features.scfeat import ScfeatConfig
from featkit.io.artifact import write_bytes
from featkit.io.atomic import refuse_foreign
from featkit.matching.lightglue import LightGlueConfig, LightGlueMatcher
from featkit.models.patch import PatchNetwork
from featkit.onnx.graphs import (
    NO_KEYPOINT,
    AlikedGraph,
    DiskGraph,
    LightGlueGraph,
    PatchGraph,
    ScfeatGraph,
    XfeatGraph,
)
from featkit.weights.catalogue import catalogue, load_published
from featkit.weights.exchange import published_patch_network
from featkit.weights.files import SCFEAT_FORMAT, find_verified, load_patch_network, load_scfeat_network, read_metadata
from featkit.weights.manifest import SUFFIX, listed, sha256_of

OPSET = 17
"""Opset of the file; supported by ONNX Runtime 1.12 and newer, TensorRT 8.6 and newer."""
PRODUCER = "featkit"
LARGEST_DIFFERENCE = 1e-4
"""Largest difference of descriptors, and of score maps (divided by their largest value if that is above 1)."""
LARGEST_DISTANCE_PX = 1e-3
HALF_DESCRIPTORS = 3.5e-4
"""Largest difference of descriptors in half precision: half its step below 1, 2 ** -12, plus LARGEST_DIFFERENCE."""
SCORE_DIFFERENCE = 1e-3
"""Largest difference of matching scores, which are exponentials of sums over all layers."""
MIN_SHARED = 0.99
"""Smallest fraction of common keypoints: rounding of a score may decide about a maximum, or about the best ones."""
IMAGES = "images"
CHECKED = ((1, 203, 150), (3, 128, 192))
"""Number, width and height of the images in the check."""
TRACED = (2, 150, 100)
POINTS = (70, 90)
"""Number of keypoints of the two images in a matcher's check."""


@dataclass(frozen=True)
class OnnxNetwork:
    """The exported file. checks: largest differences from featkit's own results, and the number of compared items."""

    path: Path
    sha256: str
    bytes: int
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    metadata: dict[str, str]
    checks: dict[str, float]


@dataclass(frozen=True)
class Prepared:
    """A network that can be exported.

    examples: inputs for tracing, by name. inputs, outputs: shapes; a string is a dynamic axis.
    compare: takes a function that runs the file (arrays in the order of the inputs), returns `OnnxNetwork.checks`;
    raises EmptyResultError.
    """

    graph: nn.Module
    examples: dict[str, Tensor]
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    metadata: dict[str, str]
    compare: Callable[[Run], dict[str, float]]


Run = Callable[..., list[np.ndarray]]
Shape = Sequence[int | str]


def export_onnx(name: str, out: Path, changes: dict[str, Any] | None = None) -> OnnxNetwork:
    """Export a network to ONNX.

    name: one of featkit's weights, a published network of the catalogue, or a weights file. changes: values for fields
    of the extractor's or matcher's configuration (`max_keypoints`, `threshold`, `weights`, ...). Raises UsageError for
    an unknown name or field, for a network that cannot be exported, and without the packages; BadInputError for weights
    that are missing or damaged, and for a file at `out` that featkit did not make; EmptyResultError if the results
    differ; NotWritableError.
    """
    onnx, runtime = _import_packages()
    refuse_foreign(out)
    prepared = prepare(name, changes or {})
    model = onnx.load_model_from_string(_trace_graph(prepared))
    for value in model.graph.output:
        _name_axes(value, prepared.outputs[value.name])
    model.producer_name, model.producer_version = PRODUCER, __version__
    metadata = {**prepared.metadata, "featkit_version": __version__, "torch_version": torch.__version__}
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model)
    content = model.SerializeToString(deterministic=True)
    checks = prepared.compare(_open_session(runtime, content, list(prepared.examples)))
    write_bytes(out, content)
    digest = hashlib.sha256(content).hexdigest()
    return OnnxNetwork(out, digest, len(content), prepared.inputs, prepared.outputs, metadata, checks)


def prepare(name: str, changes: dict[str, Any]) -> Prepared:
    """The graph of a network, and how it is checked. Raises as `export_onnx` does."""
    if name in LIGHTGLUE_NETWORKS:
        return _prepare_matcher(name, changes)
    if name in ALIKED_NETWORKS or name in ("disk", "xfeat"):
        return _prepare_published(name, changes)
    if name == "doghardnet":
        return _prepare_doghardnet(changes)
    if name in catalogue():
        supported = ", ".join([*ALIKED_NETWORKS, "disk", "xfeat", "doghardnet", *LIGHTGLUE_NETWORKS])
        raise UsageError(f"{name} cannot be exported to ONNX yet; published networks that can: {supported}")
    path = find_verified(_weights_of_run(name))
    if read_metadata(path).get("format") == SCFEAT_FORMAT:
        return _prepare_scfeat(name, path, changes)
    return _prepare_patches(name, path, changes)


def _weights_of_run(name: str) -> str:
    """The best network of a run's folder; any other name is unchanged."""
    if not Path(name).is_dir():
        return name
    best = Path(name) / f"best{SUFFIX}"
    if not best.is_file():
        raise BadInputError(f"{best}: no such file; it is written at the end of a training")
    return str(best)


def _import_packages() -> tuple[Any, Any]:
    try:
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UsageError(
            f"ONNX export needs the packages onnx and onnxruntime ({error}); pip install 'featkit[onnx]'"
        ) from None


def _trace_graph(prepared: Prepared) -> bytes:
    file = io.BytesIO()
    graph = prepared.graph.eval().requires_grad_(False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about values traced as constants, which the check with other sizes covers
        torch.onnx.export(
            graph,
            tuple(prepared.examples.values()),
            file,
            dynamo=False,
            opset_version=OPSET,
            do_constant_folding=False,  # it loses one of two equal parameters; runtimes do their own folding
            input_names=list(prepared.examples),
            output_names=list(prepared.outputs),
            dynamic_axes={
                name: _dynamic_axes(shape) for name, shape in {**prepared.inputs, **prepared.outputs}.items()
            },
        )
    return file.getvalue()


def _open_session(runtime: Any, content: bytes, names: list[str]) -> Run:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        return session.run(None, dict(zip(names, arrays, strict=True)))

    return run


def _dynamic_axes(shape: Shape) -> dict[int, str]:
    return {axis: length for axis, length in enumerate(shape) if isinstance(length, str)}


def _name_axes(value: Any, shape: Shape) -> None:
    """Set the shape of an output, for which the exporter invents names if it cannot infer it."""
    axes = value.type.tensor_type.shape
    del axes.dim[:]
    for length in shape:
        axes.dim.add(**({"dim_param": length} if isinstance(length, str) else {"dim_value": length}))


# ----------------------------------------------------------------------------------------------------------------------
# Images -> features.


def _prepare_scfeat(name: str, path: Path, changes: dict[str, Any]) -> Prepared:
    method = resolve("extractor", "scfeat", {**changes, "weights": name if listed(name) else str(path)}, "cpu")
    config = method.own
    assert isinstance(config, ScfeatConfig)
    graph = ScfeatGraph(load_scfeat_network(path), config)
    row = listed(name)
    about = {"name": name, "licence": row.licence if row else "", "weights_sha256": sha256_of(path)}
    dimension = graph.network.dimension + (config.normalisation == "fusion")
    return _prepare_image_graph(graph, method.built, config, dimension, about, SCFEAT_SIDE_PX)


def _prepare_published(name: str, changes: dict[str, Any]) -> Prepared:
    method = resolve("extractor", name, changes, "cpu")
    config: Any = method.own
    options = {"nms_radius": config.nms_radius} if name in ALIKED_NETWORKS else {}
    weights = load_published(name, config.weights)
    network = load_network(name, weights, **options)
    kind = AlikedGraph if name in ALIKED_NETWORKS else DiskGraph if name == "disk" else XfeatGraph
    about = {**_catalogue_metadata(name), "weights_sha256": weights.sha256}
    extractor = method.built
    return _prepare_image_graph(kind(network, config), extractor, config, extractor.dimension, about, PUBLISHED_SIDE_PX)


def _prepare_image_graph(
    graph: nn.Module, extractor: Any, config: Any, dimension: int, about: dict[str, str], side_px: int
) -> Prepared:
    count = config.max_keypoints
    of_map = ("map_height", "map_width") if isinstance(graph, XfeatGraph) else ("height", "width")
    outputs: dict[str, Shape] = {
        "keypoints": ("batch", count, 2),
        "scores": ("batch", count),
        "descriptors": ("batch", count, dimension),
        "score_map": ("batch", 1, *of_map),
    }
    metadata = {
        **about,
        "config": config.canonical_json(),
        "preprocessing": (
            f"images: float32 (batch, 3, height, width), RGB, values in [0, 1] (pixel / 255), sides of {side_px} px or"
            " more, nothing else: padding, resizing and normalisation are in the graph"
        ),
        "outputs": (
            "keypoints: x, y in px of the image as given, the centre of the top-left pixel is (0, 0); best first."
            f" scores: {NO_KEYPOINT:g} marks rows that are no keypoint, drop them. descriptors: rows of length 1."
            " score_map: the score of every pixel before keypoints are chosen"
        ),
    }

    def compare(run: Run) -> dict[str, float]:
        return _compare_features(run, graph, extractor)

    number, width, height = TRACED
    example = torch.from_numpy(np.stack([_noise_image(width, height, seed) for seed in range(number)]))
    examples = {IMAGES: example.permute(0, 3, 1, 2).float() / 255}
    return Prepared(graph, examples, {IMAGES: ("batch", 3, "height", "width")}, outputs, metadata, compare)


def _compare_features(run: Run, graph: nn.Module, extractor: Any) -> dict[str, float]:
    """Compare features of the file with featkit's extractor, and score maps of the file with torch.

    A common keypoint is within LARGEST_DISTANCE_PX, and its descriptors within LARGEST_DIFFERENCE.
    """
    checks = {"keypoints": 0.0, "shared": 1.0, "keypoints_px": 0.0, "descriptors": 0.0, "score_map": 0.0}
    total = common = 0
    for count, width, height in CHECKED:
        images = [_noise_image(width, height, seed) for seed in range(2, 2 + count)]
        pixels = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255
        points, scores, descriptors, score_map = run(pixels)
        with torch.inference_mode():
            expected = graph(torch.from_numpy(pixels))[3].numpy()
        scale = max(1.0, float(np.abs(expected).max()))
        _keep_largest(checks, "score_map", np.abs(score_map - expected) / scale)
        for row, image in enumerate(images):
            features, is_keypoint = extractor.extract(image), scores[row] > NO_KEYPOINT
            nearest, distances = _nearest_points(features.keypoints, points[row][is_keypoint])
            near = np.flatnonzero(distances <= LARGEST_DISTANCE_PX)
            theirs = descriptors[row][is_keypoint][nearest[near]]
            differences = np.abs(features.descriptors[near].astype(np.float32) - theirs).max(1, initial=0.0)
            limit = HALF_DESCRIPTORS if features.descriptors.dtype == np.float16 else LARGEST_DIFFERENCE
            same = differences <= limit
            total, common = total + max(len(features), int(is_keypoint.sum())), common + int(same.sum())
            _keep_largest(checks, "keypoints_px", distances[near][same])
            _keep_largest(checks, "descriptors", differences[same])
    checks |= {"keypoints": total, "shared": common / max(total, 1)}
    _check_shared("keypoints", total, common)
    _check_differences(checks, {"score_map": LARGEST_DIFFERENCE})
    return checks


def _nearest_points(own: Float[np.ndarray, "n 2"], theirs: Float[np.ndarray, "m 2"]) -> tuple[np.ndarray, np.ndarray]:
    """For each of `own` the index of the nearest of `theirs`, and its distance, px (infinity if there is none)."""
    if len(own) == 0 or len(theirs) == 0:
        return np.zeros(len(own), int), np.full(len(own), np.inf)
    distances = np.abs(own[:, None] - theirs[None]).max(2)
    nearest = distances.argmin(1)
    return nearest, distances[np.arange(len(own)), nearest]


# ----------------------------------------------------------------------------------------------------------------------
# Patches -> descriptors.


def _prepare_patches(name: str, path: Path, changes: dict[str, Any]) -> Prepared:
    _refuse_settings(name, changes)
    network, row = load_patch_network(name if listed(name) else path)
    licence = row.licence if row else read_metadata(path).get("licence", "")
    return _prepare_patch_graph(network, {"name": name, "licence": licence, "weights_sha256": sha256_of(path)})


def _prepare_doghardnet(changes: dict[str, Any]) -> Prepared:
    _refuse_settings("doghardnet", {key: value for key, value in changes.items() if key != "weights"})
    weights = load_published("doghardnet", str(changes.get("weights", "")))
    network = published_patch_network("hardnet", weights.tensors, weights.path)
    network.config = network.config.model_copy(update={"magnification": DogHardnetConfig().magnification})
    return _prepare_patch_graph(network, {**_catalogue_metadata("doghardnet"), "weights_sha256": weights.sha256})


def _refuse_settings(name: str, changes: dict[str, Any]) -> None:
    if changes:
        raise UsageError(f"--set {next(iter(changes))}: {name} describes patches and has no settings")


def _prepare_patch_graph(network: PatchNetwork, about: dict[str, str]) -> Prepared:
    graph, frozen, side = PatchGraph(network), FrozenNetwork(network, torch.device("cpu")), network.input_px
    what = "values: a bit is 1 where the value is above 0" if network.is_binary else "descriptors: rows of length 1"
    output = what.partition(":")[0]
    metadata = {
        **about,
        "config": network.config.canonical_json(),
        "preprocessing": (
            f"patches: float32 (count, 1, {side}, {side}), grey, values in [0, 1] (pixel / 255); each is standardised"
            f" in the graph. featkit cuts them {network.config.magnification:g} times as wide as a keypoint's"
            " scale and resizes them from 64 px"
        ),
        "outputs": what,
    }

    def compare(run: Run) -> dict[str, float]:
        checks = {"patches": 0.0, output: 0.0}
        for count in (1, 5):
            patches = _example_patches(count, side, seed=count)
            with torch.inference_mode():
                expected = frozen(patches[:, 0]).numpy()
            scale = max(1.0, float(np.abs(expected).max()))
            _keep_largest(checks, output, np.abs(run(patches.numpy())[0] - expected) / scale)
            checks["patches"] += count
        _check_differences(checks, {output: LARGEST_DIFFERENCE})
        return checks

    outputs: dict[str, Shape] = {output: ("count", network.dimension)}
    inputs: dict[str, Shape] = {"patches": ("count", 1, side, side)}
    return Prepared(graph, {"patches": _example_patches(3, side, seed=0)}, inputs, outputs, metadata, compare)


def _example_patches(count: int, side: int, seed: int) -> Float[Tensor, "n 1 s s"]:
    strip = _noise_image(side * count, side, seed)[..., 0]
    return torch.from_numpy(np.stack(np.split(strip, count, axis=1)))[:, None].float() / 255


# ----------------------------------------------------------------------------------------------------------------------
# Features of two images -> matches.


def _prepare_matcher(name: str, changes: dict[str, Any]) -> Prepared:
    fields = LightGlueConfig.model_fields
    if refused := [key for key in changes if key in fields and key not in ("weights", "filter_threshold")]:
        raise UsageError(f"--set {refused[0]}: not supported, as an exported matcher runs all layers on all keypoints")
    without_pruning = {"depth_confidence": -1.0, "width_confidence": -1.0}
    config = make(LightGlueConfig, {"weights": name, **without_pruning, **changes}, f"matcher {name!r}")
    weights = load_published(name, config.weights)
    network = load_network(name, weights)
    graph = LightGlueGraph(network, config.filter_threshold)
    takes_scales = bool(network.conf.add_scale_ori)
    shape = "x, y, scale, angle (radians)" if takes_scales else "x, y"
    metadata = {
        **_catalogue_metadata(name),
        "weights_sha256": weights.sha256,
        "config": config.canonical_json(),
        "preprocessing": (
            f"keypoints0, keypoints1: float32 (batch, count, {4 if takes_scales else 2}), {shape} in px of the image as"
            " the extractor saw it, without rows that are no keypoint; descriptors0, descriptors1: (batch, count, d);"
            " image_size0, image_size1: (batch, 2), width and height, float32"
        ),
        "outputs": "matches0: for each keypoint of image 0 its partner's index in image 1, or -1; scores0: 0 to 1",
    }
    size, num_coordinates = int(network.conf.input_dim), 4 if takes_scales else 2
    shapes: dict[str, Shape] = {}
    for image in (0, 1):
        shapes[f"keypoints{image}"] = ("batch", f"count{image}", num_coordinates)
        shapes[f"descriptors{image}"] = ("batch", f"count{image}", size)
        shapes[f"image_size{image}"] = ("batch", 2)
    outputs: dict[str, Shape] = {"matches0": ("batch", "count0"), "scores0": ("batch", "count0")}
    traced = [_example_pair(size, takes_scales, seed, 40, 50) for seed in (0, 1)]
    examples = dict(zip(shapes, (torch.from_numpy(array) for array in _stack_pairs(traced)), strict=True))
    matcher = LightGlueMatcher(config, "cpu")

    def compare(run: Run) -> dict[str, float]:
        return _compare_matches(run, matcher, size, takes_scales, name)

    return Prepared(graph, examples, shapes, outputs, metadata, compare)


def _compare_matches(run: Run, matcher: LightGlueMatcher, size: int, takes_scales: bool, name: str) -> dict[str, float]:
    checks = {"matches": 0.0, "scores": 0.0, "shared": 1.0}
    pairs = [_example_pair(size, takes_scales, seed, *POINTS) for seed in (2, 3, 4)]
    matches, scores = run(*_stack_pairs(pairs))
    total = common = 0
    for row, pair in enumerate(pairs):
        expected = matcher.match([(_as_features(pair[:3], name), _as_features(pair[3:], name))])[0]
        same = (expected.matches0 == matches[row]) & (expected.matches0 >= 0)
        either = (expected.matches0 >= 0) | (matches[row] >= 0)
        total, common = total + int(either.sum()), common + int(same.sum())
        _keep_largest(checks, "scores", np.abs(expected.scores0 - scores[row])[same])
    checks |= {"matches": total, "shared": common / max(total, 1)}
    _check_shared("matches", total, common)
    _check_differences(checks, {"scores": SCORE_DIFFERENCE})
    return checks


def _example_pair(size: int, takes_scales: bool, seed: int, count0: int, count1: int) -> list[np.ndarray]:
    """Keypoints, descriptors and size of two images; keypoints of the first are also in the second, shifted."""
    random = np.random.default_rng(seed)
    width, height = 640, 480
    points = random.uniform(20, (width - 20, height - 20), (count1, 2))
    if takes_scales:
        points = np.concatenate([points, random.uniform((2, -3), (8, 3), (count1, 2))], axis=1)
    rows = random.normal(size=(count1, size))
    noisy = rows + 0.1 * random.normal(size=rows.shape)
    shifted = points.copy()
    shifted[:, :2] += 5
    arrays = [points[:count0], rows[:count0], shifted, noisy]
    for index in (1, 3):
        arrays[index] = arrays[index] / np.linalg.norm(arrays[index], axis=1, keepdims=True)
    sizes = np.array([width, height], np.float32)
    first, second = ([array.astype(np.float32) for array in arrays[part : part + 2]] for part in (0, 2))
    return [*first, sizes, *second, sizes]


def _stack_pairs(pairs: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.stack(arrays) for arrays in zip(*pairs, strict=True)]


def _as_features(arrays: list[np.ndarray], name: str) -> Features:
    points, descriptors, size = arrays
    more: dict[str, Any] = {"scales": points[:, 2], "oris": points[:, 3]} if points.shape[1] == 4 else {}
    scores = np.ones(len(points), np.float32)
    extractor = catalogue()[name].matches[0]
    width, height = (int(side) for side in size)
    return Features(points[:, :2], descriptors, scores, (width, height), extractor=extractor, **more)


# ----------------------------------------------------------------------------------------------------------------------
# Shared by all exports.


def _catalogue_metadata(name: str) -> dict[str, str]:
    row = catalogue()[name]
    return {"name": name, "licence": row.licence, "paper": row.paper, "page": row.page}


def _noise_image(width: int, height: int, seed: int) -> UInt8[np.ndarray, "h w 3"]:
    """Smooth colour noise, reproducible from the arguments."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def _keep_largest(checks: dict[str, float], key: str, differences: np.ndarray) -> None:
    checks[key] = max(checks[key], float(differences.max(initial=0.0)))


def _check_shared(what: str, total: int, common: int) -> None:
    if total == 0:
        raise EmptyResultError(f"not written: the check found no {what}; try other settings or weights")
    if common < MIN_SHARED * total:
        raise EmptyResultError(f"not written: of {total} {what} in the check only {common} are the same as featkit's")


def _check_differences(checks: dict[str, float], allowed: dict[str, float]) -> None:
    for key, limit in allowed.items():
        if not checks[key] <= limit:
            raise EmptyResultError(f"not written: {key} of ONNX Runtime differ by {checks[key]:.1g} from featkit's")
