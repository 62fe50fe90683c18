"""AdaSample's figure 3: how well the distance within a pair predicts the pair's informativeness.

The informativeness of a pair is the norm of the gradient of its loss over all parameters of the network (definition 1,
eq. 2); the sampler approximates it by the matching distance d^pos (section 4.2, eq. 23 and 24). Figure 3 shows the
correlation of the two over pairs, during training. The loss is eq. 14 with eq. 15; the negative of every pair is mined
among all pairs. The figure normalises both to "probabilities", which does not change the correlation.

BatchNorm uses its running statistics and dropout is off: the gradient of one pair must not depend on the others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor

from featkit.core.config import Config, make, read_yaml
from featkit.core.errors import BadInputError, UsageError
from featkit.data.patch_set import ClassIndex, PatchSet
from featkit.features.patches import describe_patches, resize_patches
from featkit.losses.angular_triplet import AngularTripletConfig, squared_distance
from featkit.losses.base import PairBatch, hardest_negatives, paired_similarity, similarity_at
from featkit.models.patch import PatchNetwork
from featkit.training.patch_config import PatchTraining
from featkit.weights.files import load_patch_network, read_metadata_patch_files

LOGGER = logging.getLogger(__name__)


class InformativenessConfig(Config):
    pairs: int = Field(1024, ge=3, le=10**9)
    """Pairs among which negatives are mined, each of a different class (AdaSample, section 5.1: batches of 1024)."""
    measured: int = Field(256, ge=3, le=10**9)
    """Pairs whose gradient is computed. 256 give a correlation of 0.8 a standard error of about 0.02."""
    loss: AngularTripletConfig = AngularTripletConfig()
    """The loss whose gradient is computed; its pair weights and running average are not used."""


@dataclass(frozen=True)
class Informativeness:
    """Distances and gradient norms of the n measured pairs.

    distances: d^pos, radians (or Euclidean). gradient_norms: of the pair's loss, over all parameters.
    """

    distances: Float[np.ndarray, " n"]
    gradient_norms: Float[np.ndarray, " n"]

    @property
    def pearson(self) -> float:
        """Correlation of distances and norms; nan when either is the same for all pairs."""
        return correlation(self.distances, self.gradient_norms)

    @property
    def spearman(self) -> float:
        """Correlation of their ranks."""
        return correlation(ranks(self.distances), ranks(self.gradient_norms))

    @property
    def active_share(self) -> float:
        """Share of the pairs with a non-zero gradient; the hinge of the others is zero (footnote 5: "never")."""
        return float((self.gradient_norms > 0).mean())


@dataclass(frozen=True)
class Snapshot:
    """A network of a run. step: batches it was trained on, None if unknown. path: None for the untrained one."""

    name: str
    step: int | None
    path: Path | None


def sample_pairs(data: PatchSet, count: int, generator: np.random.Generator) -> UInt8[np.ndarray, "n 2 s s"]:
    """Two random patches of each of `count` random classes (at most all). Raises BadInputError below 3 classes."""
    classes = ClassIndex.of(data.classes)
    if len(classes) < 3:
        raise BadInputError(f"{data.name}: {len(classes)} classes of two patches or more; at least 3 are needed")
    chosen = generator.permutation(len(classes))[:count]
    first = generator.integers(classes.counts[chosen])
    second = (first + 1 + generator.integers(classes.counts[chosen] - 1)) % classes.counts[chosen]
    members = classes.members[classes.starts[chosen][:, None] + np.stack([first, second], axis=1)]
    side = data.patches.shape[1]
    return data.patches[members.ravel()].reshape(-1, 2, side, side)


def informativeness(
    network: PatchNetwork,
    pairs: UInt8[np.ndarray, "n 2 s s"],
    config: InformativenessConfig,
    device: torch.device,
) -> Informativeness:
    """Matching distance and gradient norm of the first `measured` pairs, with negatives from all pairs.

    The network is put in eval mode; its parameters do not change.

        Raises UsageError for a binary network, whose descriptors have no angles.
    """
    if network.is_binary:
        raise UsageError("a binary descriptor has no matching distance in radians; give a real-valued one")
    network = network.to(device).eval()
    patches = torch.from_numpy(pairs).transpose(0, 1).flatten(0, 1)  # all anchors, then all positives
    descriptors = torch.from_numpy(describe_patches(network, patches, device))
    anchors, positives = descriptors.chunk(2)
    batch = PairBatch(anchors, positives, anchors, positives)
    hardest = hardest_negatives(batch, config.loss.negatives, similarity_at(config.loss.false_negative_distance))
    measured = min(config.measured, len(pairs))
    norms = np.zeros(measured)
    for i in np.flatnonzero(hardest.found[:measured].numpy()):
        nearest_end, negative = hardest.ends[i].tolist()
        triplet = resize_patches(patches[[i, len(pairs) + i, negative]].to(device), network.input_px)
        norms[i] = gradient_norm(network, triplet, 0 if nearest_end == i else 1, config.loss)
    distances = squared_distance(paired_similarity(anchors, positives)[:measured], config.loss).sqrt()
    return Informativeness(distances.double().numpy(), norms)


def gradient_norm(
    network: PatchNetwork, triplet: Float[Tensor, "3 s s"], own: int, config: AngularTripletConfig
) -> float:
    """Norm of the gradient of one pair's loss (eq. 14) over all parameters (eq. 2).

    triplet: anchor, positive, negative. own: the patch of the pair that the negative is nearest to, 0 or 1.
    """
    descriptors = network(triplet[:, None]).descriptor
    squares = squared_distance(
        paired_similarity(descriptors[[0, own]], descriptors[[1, 2]]), config
    )  # of the pair, of the negative
    loss = (config.margin + squares[0] - squares[1]).clamp(min=0.0)
    gradients = torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def snapshots(run: Path) -> list[Snapshot]:
    """The networks of a run by step: the untrained one, RUN/snapshots/*.safetensors, RUN/best and RUN/last.safetensors.

    The untrained one is initialised from the seed in RUN/config.yaml. Raises BadInputError if there are no weights.
    """
    paths = [*sorted((run / "snapshots").glob("*.safetensors")), run / "best.safetensors", run / "last.safetensors"]
    with_weights = [Snapshot(path.stem, _read_step(path), path) for path in paths if path.is_file()]
    if not with_weights:
        raise BadInputError(f"{run}: no weights of a training (last.safetensors, snapshots/*.safetensors)")
    by_step = {snapshot.step: snapshot for snapshot in with_weights if snapshot.step is not None}
    unknown = [snapshot for snapshot in with_weights if snapshot.step is None]
    start = [Snapshot("untrained", 0, None)] if (run / "config.yaml").is_file() else []
    return [*start, *(by_step[step] for step in sorted(by_step)), *unknown]


def along_training(
    run: Path, pairs: UInt8[np.ndarray, "n 2 s s"], config: InformativenessConfig, device: torch.device
) -> list[tuple[Snapshot, Informativeness]]:
    """`informativeness` of the same pairs under every network of a run. Raises BadInputError, UsageError."""
    out = []
    for snapshot in snapshots(run):
        network = untrained(run) if snapshot.path is None else load_patch_network(snapshot.path, device)[0]
        result = informativeness(network, pairs, config, device)
        LOGGER.info("%s: correlation %.3f (ranks %.3f)", snapshot.name, result.pearson, result.spearman)
        out.append((snapshot, result))
    return out


def untrained(run: Path) -> PatchNetwork:
    """The run's network before training. Raises BadInputError, UsageError."""
    values = read_yaml(run / "config.yaml")
    values.pop("task", None)
    training = make(PatchTraining, values, f"{run / 'config.yaml'}")
    return PatchNetwork(training.network, torch.Generator().manual_seed(training.seed))


def correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Pearson correlation; nan if either is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 1 for the smallest; equal values get the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - 0.5 * (counts - 1))[place]


def _read_step(path: Path) -> int | None:
    """The training step recorded in a weights file."""
    step = read_metadata_patch_files(path).get("step", "")
    return int(step) if step.isdecimal() else None
