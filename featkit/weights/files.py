"""Networks as safetensors files: tensors with a bounded size, patch networks, SCFeat."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from featkit.core.config import Config, make
from featkit.core.errors import BadInputError, UsageError, blaming, refuse_pipe
from featkit.io.artifact import write_bytes
from featkit.io.atomic import refuse_foreign
from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.models.scfeat import SCFeatNetwork, SCFeatNetworkConfig
from featkit.weights.manifest import WeightInfo, find_weights, listed, manifest_rows, sha256_of

# ----------------------------------------------------------------------------------------------------------------------
# A network's tensors as a safetensors file: half precision, described in the metadata, with a limited size.
#
# Tensors with one axis (biases, thresholds, BatchNorm's statistics) stay float32: they are small, and FRN's scale and
# bias nearly cancel. If the file would be too large, its largest matrices are stored in 8 bits, the largest first,
# until it fits: `NAME` int8 and `NAME.step` float32, with one step per row (first axis).


LARGEST_HALF = 65504.0
LARGEST_INT8 = 127
BYTES_PER_MB = 1_000_000
STEP = ".step"
SCENES = "scenes"  # metadata: a json list of names
COUNTED = "num_batches_tracked"  # BatchNorm's counter, which is not used
ConfigT = TypeVar("ConfigT", bound=Config)


def write_network(
    path: Path, network: nn.Module, metadata: dict[str, str], default_mb: float, max_mb: float | None
) -> Path:
    """Write a network's tensors; the same tensors and metadata give the same bytes.

    max_mb: maximum size of the file; None: `default_mb` if the network can be reduced to it, otherwise no limit.
    Raises UsageError for a `max_mb` that cannot be reached, NotWritableError, and BadInputError for a network with NaN
    or infinity, and for an existing file that is not featkit weights.
    """
    refuse_foreign(path)
    return write_bytes(path, _encode_within_limit(_finite_state(network, path), metadata, path, default_mb, max_mb))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write tensors as they are; the same tensors and metadata give the same bytes.

    Raises NotWritableError, and BadInputError for an existing file that is not featkit weights.
    """
    refuse_foreign(path)
    return write_bytes(path, _encode(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata, and the tensors in float32. Raises BadInputError."""
    with (
        blaming(path, "a safetensors file", "a published .pth becomes one with `featkit weights import`"),
        _opened(path) as file,
    ):
        return file.metadata() or {}, _to_float32({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file, without its tensors. Raises BadInputError."""
    with blaming(path, "a safetensors file", "copy it again"), _opened(path) as file:
        return file.metadata() or {}


def _opened(path: Path) -> Any:
    """The file by safetensors' own reader, which would wait for a pipe."""
    from safetensors import safe_open

    refuse_pipe(path)
    return safe_open(path, framework="pt")


def scenes_metadata(scenes: Iterable[str]) -> dict[str, str]:
    """The metadata that says which scenes a network was trained on; empty if that is unknown."""
    listed_scenes = list(scenes)
    return {SCENES: json.dumps(listed_scenes)} if listed_scenes else {}


def learned_scenes(name_or_path: str | Path) -> frozenset[str]:
    """The scenes that weights were trained on, or their step was chosen on; empty if nothing says so.

    From featkit's manifest, else the file's metadata, else (runs of earlier versions) the summary.json of its run.
    Raises UsageError for an unknown name, and BadInputError for a broken file.
    """
    path = find_weights(name_or_path)
    row = listed(str(name_or_path)) or next((row for row in manifest_rows() if row.sha256 == sha256_of(path)), None)
    if row is not None:
        return frozenset(row.scenes)
    summary = path.parent / "summary.json"
    metadata = read_metadata(path)
    if SCENES not in metadata and not (path.stem in {"best", "last"} and summary.is_file()):
        return frozenset()
    try:
        if SCENES in metadata:
            return frozenset(map(str, json.loads(metadata[SCENES])))
        return frozenset(map(str, json.loads(summary.read_text(encoding="utf-8"))["data"].get("scenes", ())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        where = path if SCENES in metadata else summary
        raise BadInputError(
            f"{where}: does not say what the weights were trained on; train again, or move it"
        ) from None


def find_verified(name_or_path: str | Path) -> Path:
    """The weights file of a name or path. Raises UsageError, and BadInputError if it does not match the manifest."""
    path, row = find_weights(name_or_path), listed(str(name_or_path))
    if row is not None and (actual := sha256_of(path)) != row.sha256:
        raise BadInputError(f"{path}: its sha256 is {actual}, the manifest says {row.sha256}; install featkit again")
    return path


def config_of(path: Path, metadata: dict[str, str], file_format: str, config_type: type[ConfigT]) -> ConfigT:
    """The network's configuration from the file's metadata. Raises BadInputError."""
    if metadata.get("format") != file_format:
        noun = file_format.rsplit(" ", 1)[0].removeprefix("featkit ")
        actual = metadata.get("format", "none")
        raise BadInputError(
            f"{path}: not a {noun} of this featkit (its metadata has no format {file_format!r}: {actual})"
        )
    try:
        values = json.loads(metadata["config"])
        return make(config_type, values, f"{path}: its network")
    except UsageError as error:
        raise BadInputError(str(error)) from None
    except (KeyError, ValueError, TypeError, RecursionError):
        raise BadInputError(f"{path}: its metadata does not describe the network") from None


def fill(network: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    """Load all of a network's tensors. what: name of the network, for messages.

    Raises BadInputError for missing or unknown tensors, wrong shapes, NaN and infinity.
    """

    check_shapes(network, tensors, path, what)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BadInputError(f"{path}: {name!r} contains NaN or infinity; the weights are unusable")
    network.load_state_dict({name: tensors.get(name, torch.tensor(0)) for name in network.state_dict()})


def check_shapes(network: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    """Check that tensors fit a network, which may be on the "meta" device, before its memory is allocated.

    Raises BadInputError for missing or unknown tensors, and wrong shapes.
    """
    expected = network.state_dict()
    missing = [name for name in expected if name not in tensors and not name.endswith(COUNTED)]
    unknown = [name for name in tensors if name not in expected]
    for problem, names in (("it lacks", missing), ("the network does not have", unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInputError(f"{path}: not the weights of {what}: {problem} {names[0]!r}{more}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            raise BadInputError(f"{path}: not the weights of {what}: {name!r} has the shape {shapes}")


def quantise_to_8_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values and the step of each row (first axis), float32: weight ~ values * step."""

    step = weight.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST_INT8
    values = torch.round(weight / step.reshape(-1, *[1] * (weight.ndim - 1)))
    return values.to(torch.int8), step


def _finite_state(network: nn.Module, path: Path) -> dict[str, Tensor]:
    state = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.endswith(COUNTED)
    }
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BadInputError(f"{path}: not written, {name!r} contains NaN or infinity")
    return state


def _encode_within_limit(
    state: dict[str, Tensor], metadata: dict[str, str], path: Path, default_mb: float, max_mb: float | None
) -> bytes:
    """The file's bytes."""
    half = {name: t.half() if t.ndim > 1 and t.abs().amax() < LARGEST_HALF else t.float() for name, t in state.items()}
    limit = BYTES_PER_MB * (default_mb if max_mb is None else max_mb)
    content, small = _encode(half, metadata), dict(half)
    if len(content) <= limit:
        return content
    smallest = sum(t.numel() if t.ndim > 1 else t.nbytes for t in half.values())
    for name in sorted((name for name in half if half[name].ndim > 1), key=lambda name: -half[name].nbytes):
        if smallest > limit:
            break
        small[name], small[name + STEP] = quantise_to_8_bits(state[name])
        packed = _encode(small, metadata)
        if len(packed) <= limit:
            return packed
    if max_mb is not None:
        least_mb = smallest / BYTES_PER_MB
        raise UsageError(f"{path}: not written, even 8 bits need {least_mb:.1f} MB, the limit is {max_mb:g} MB")
    return content


def _encode(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    from safetensors.torch import save

    return _sort_metadata(save(tensors), metadata)


def _to_float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file in float32, 8-bit ones multiplied by their step."""
    full = {name: tensor.float() for name, tensor in tensors.items()}
    for name in [name for name in full if name.endswith(STEP) and name.removesuffix(STEP) in full]:
        step = full.pop(name)
        weight = full[name.removesuffix(STEP)]
        if step.shape != weight.shape[:1]:
            raise ValueError(f"{name!r} has the shape {tuple(step.shape)}, one step per row is needed")
        full[name.removesuffix(STEP)] = weight * step.reshape(-1, *[1] * (weight.ndim - 1))
    return full


def _sort_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """A safetensors file with sorted metadata: safetensors itself writes it in a different order each time.

    The file consists of the length of a json header (8 bytes, little endian), the header, and the tensors' bytes.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    ordered = {"__metadata__": {key: str(metadata[key]) for key in sorted(metadata)}, **header}
    text = json.dumps(ordered, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]


# ----------------------------------------------------------------------------------------------------------------------
# Patch networks as safetensors files.


PATCH_FORMAT = "featkit patch network 1"
PATCH_MAX_MB = 3.0
"""Default size limit of a file: only the 256-bit network needs 8 bits for it."""
LARGEST_BYTES = int(PATCH_MAX_MB * BYTES_PER_MB)


def save_patch_network(
    path: Path, network: PatchNetwork, metadata: dict[str, str] | None = None, max_mb: float | None = None
) -> Path:
    """Write a network; the same network and metadata give the same bytes.

    metadata: any further information, in addition to `format` and `config`. max_mb and errors: see `write_network`.
    """
    format_fields = {"format": PATCH_FORMAT, "config": network.config.canonical_json()}
    return write_network(path, network, {**(metadata or {}), **format_fields}, PATCH_MAX_MB, max_mb)


def load_patch_network(
    name_or_path: str | Path, device: str | torch.device = "cpu"
) -> tuple[PatchNetwork, WeightInfo | None]:
    """A network in float32 and eval mode, and its manifest row if it is one of featkit's own.

    Raises UsageError for an unknown name, BadInputError for a file that is missing, damaged, of another network, or
    different from the manifest.
    """

    path = find_verified(name_or_path)
    metadata, tensors = read_tensors(path)
    network = filled(config_of(path, metadata, PATCH_FORMAT, PatchNetworkConfig), tensors, path)
    return network.to(device), listed(str(name_or_path))


def read_metadata_patch_files(path: Path) -> dict[str, str]:
    """The metadata with which the network was saved, including `format` and `config`. Raises BadInputError."""
    return read_tensors(path)[0]


def filled(config: PatchNetworkConfig, tensors: dict[str, Tensor], path: Path) -> PatchNetwork:
    """A network of these tensors, in eval mode. Raises BadInputError for missing, unknown, misshapen or broken ones."""

    with torch.device("meta"):  # first weights are not drawn: that would take time, and move torch's generator on
        network = PatchNetwork(config)
    what = f"{config.architecture!r} with {network.dimension} dimensions"
    check_shapes(network, tensors, path, what)
    network.to_empty(device="cpu")
    fill(network, tensors, path, what)
    return network.eval()


# ----------------------------------------------------------------------------------------------------------------------
# SCFeat networks as safetensors files: `scfeat-s` in half precision, `scfeat` too large for 10 MB.


SCFEAT_FORMAT = "featkit scfeat network 1"
SCFEAT_MAX_MB = 10.0
"""Default size limit of a file. ResNet-50 needs 23 MB even in 8 bits, and 46 MB in half precision."""
SIZES = {"resnet50": "scfeat (resnet50)", "resnet18": "scfeat-s (resnet18)"}


def save_scfeat_network(
    path: Path, network: SCFeatNetwork, metadata: dict[str, str] | None = None, max_mb: float | None = None
) -> Path:
    """Write a network; the same network and metadata give the same bytes.

    metadata: any further information, in addition to `format` and `config`. max_mb and errors: see `write_network`.
    """
    format_fields = {"format": SCFEAT_FORMAT, "config": network.config.canonical_json()}
    return write_network(path, network, {**(metadata or {}), **format_fields}, SCFEAT_MAX_MB, max_mb)


def load_scfeat_network(
    name_or_path: str | Path, device: str | torch.device = "cpu", wanted: SCFeatNetworkConfig | None = None
) -> SCFeatNetwork:
    """A network in float32 and eval mode. wanted: the required configuration; None: any.

    Raises UsageError for an unknown name, BadInputError for a file that is missing, damaged, of another network or of
    another size, or different from the manifest.
    """

    path = find_verified(name_or_path)
    metadata, tensors = read_tensors(path)
    config = config_of(path, metadata, SCFEAT_FORMAT, SCFeatNetworkConfig)
    if wanted is not None:
        check_size(config, wanted, path)
    return filled_scfeat(config, tensors, path).to(device)


def check_size(config: SCFeatNetworkConfig, wanted: SCFeatNetworkConfig, path: Path) -> None:
    """Raise BadInputError if the network in `path` is not the wanted one."""
    if config.encoder != wanted.encoder:
        raise BadInputError(f"{path}: contains {SIZES[config.encoder]}, but {SIZES[wanted.encoder]} is requested")
    for name in type(config).model_fields:
        actual, requested = getattr(config, name), getattr(wanted, name)
        if actual != requested:
            raise BadInputError(f"{path}: contains a network with {name} {actual}, but {requested} is requested")


def filled_scfeat(config: SCFeatNetworkConfig, tensors: dict[str, Tensor], path: Path) -> SCFeatNetwork:
    """A network of these tensors, in eval mode. Raises BadInputError for missing, unknown, misshapen or broken ones."""

    with torch.device("meta"):  # first weights are not drawn: that would take time, and move torch's generator on
        network = SCFeatNetwork(config)
    check_shapes(network, tensors, path, SIZES[config.encoder])
    network.to_empty(device="cpu")
    network.fill_constants()
    fill(network, tensors, path, SIZES[config.encoder])
    return network.eval()
