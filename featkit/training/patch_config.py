"""Configuration of patch descriptor training: everything that determines the resulting weights.

The values of each method are in `configs/<method>.yaml`, in its paper's terms.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from featkit.core.config import (
    Config,
    Count,
    CountOrZero,
    Degrees,
    Epsilon,
    FactorOrZero,
    PositiveShare,
    Runtime,
    Share,
)
from featkit.core.errors import UsageError
from featkit.data.augment import AugmentConfig
from featkit.data.label_mining import LabelMiningConfig
from featkit.data.training_patches import PatchDataConfig
from featkit.losses.average_precision import AveragePrecisionConfig
from featkit.losses.build import LossConfig
from featkit.losses.hynet import HyNetLossConfig
from featkit.models.patch import PatchNetworkConfig
from featkit.training.config import Adam, Measured, Sgd, TrainingConfig


class Pairs(Config):
    """Two random patches of each of `batch_size` classes (HardNet, HyNet, SDGMNet)."""

    kind: Literal["pairs"] = "pairs"
    """Which sampler this configures."""


class Groups(Config):
    """Complete classes, `batch_size` patches in total (DOAP)."""

    kind: Literal["groups"] = "groups"
    """Which sampler this configures."""
    max_per_group: int = Field(16, ge=2, le=10**9)
    """Maximum patches per class in a batch. DOAP, appendix C: groups of 16."""
    two_scenes: bool = False
    """Draw each batch from two scenes, half from each (DOAP, appendix C.2); meant for label mining."""
    fill: Literal["in_turn", "at_random"] = "in_turn"
    """How groups are chosen for a batch. in_turn: every group once per epoch. at_random: the first group of each batch
    comes in turn and the others are random, so that an epoch has as many batches as groups (DOAP, appendix D, on
    RomePatches)."""
    label_mining: LabelMiningConfig | None = None
    """Which patches of the same scene may count as non-matches (DOAP, sec. 4.2). None: all patches of other classes."""


class AdaSample(Config):
    """Random anchors, positives sampled by distance (AdaSample, eq. 13)."""

    kind: Literal["adasample"] = "adasample"
    """Which sampler this configures."""
    strength: float = Field(10.0, ge=0, allow_inf_nan=True)
    """lambda of eq. 13: 0 samples uniformly, .inf takes the most distant positive. AdaSample, sec. 5.1: 10."""
    class_size: int = Field(15, ge=2, le=10**9)
    """Patches per class; smaller classes are filled up with rotated copies. AdaSample, sec. 5.2: 15."""
    candidates: int = Field(15, ge=2, le=10**9)
    """Patches of a class that are described for the choice, including the anchor. Fewer take less time."""
    filled_rotation_deg: Degrees = 15.0
    """Maximum random rotation of such a copy in either direction, degrees. Not given in the paper."""
    smallest_angle: Epsilon = 0.1
    """Lower bound of d in the pair weights 1 / d, in radians (or Euclidean distance, which is equal when small)."""
    distance: Literal["of_loss", "angular", "euclidean"] = "of_loss"
    """Distance d of eq. 13. of_loss: the distance of the loss, as in section 3.4: angles for the angular hinge triplet
    loss (AHT), Euclidean for the plain one (HT) and for HardNet's."""


class HeldOut(Measured):
    """The validation set, split off the training data; matching on it selects the best step."""

    scenes: tuple[str, ...] = ()
    """Names of the validation scenes; empty: chosen at random."""
    share: PositiveShare = Field(0.05, lt=1)
    """Maximum share of the classes used for validation when no scenes are named. Complete scenes are taken while they
    fit; if every scene is larger, random classes of all scenes."""
    pairs: int = Field(2000, ge=10, le=10**9)
    """Maximum matching pairs of patches in the validation set."""
    min_shared: int = Field(50, ge=2, le=10**9)
    """Minimum points that two images of a scene share to be matched. If no two images do, or the images are unknown,
    patches of different points of a scene are combined as if they came from two images."""
    max_shared: int = Field(250, ge=2, le=10**9)
    """Maximum points matched per pair of images."""


class PatchTraining(TrainingConfig):
    """Training of a patch descriptor."""

    data: PatchDataConfig = PatchDataConfig()
    """How patches are read and which of them are used."""
    network: PatchNetworkConfig = PatchNetworkConfig()
    """The network to train."""
    start: str = ""
    """Initial weights: name of shipped weights, or a weights file. Empty: random numbers."""
    loss: LossConfig = HyNetLossConfig()
    """The loss to minimise."""
    scale_statistics: bool = True
    """Scale the memory of SDGMNet's running statistics to `steps` and `batch_size`, in the paper's proportions."""
    second_order_weight: FactorOrZero = 0.0
    """Weight of SOSNet's second-order term, added to the loss; 0: none."""
    second_order_neighbours: int = Field(8, ge=1, le=10**6)
    """Nearest neighbours of each descriptor in the second-order term. SOSNet: 8."""
    sampler: Annotated[Pairs | Groups | AdaSample, Field(discriminator="kind")] = Pairs()
    """How batches are drawn."""
    same_image_share: Share = 0.0
    """Share of each batch whose first patches all come from one image, so that negatives resemble those of matching.
    Sampler `pairs` only, and only if the data names the images. The papers: 0."""
    augmentation: AugmentConfig = AugmentConfig()
    """Augmentation of the patches."""
    optimiser: Annotated[Sgd | Adam, Field(discriminator="kind")] = Adam(learning_rate=0.01)
    """Optimiser and its learning rate."""
    batch_size: int = Field(1024, ge=2, le=10**9)
    """Batch size in pairs, or in patches for the sampler `groups`."""
    steps: Count = 100_000
    """Length of the training, in batches."""
    held_out: HeldOut = HeldOut()
    """The validation set and how often it is evaluated."""
    chunk: CountOrZero = 0
    """Patches per forward pass, to save memory; 0: the complete batch. The gradient is still that of the complete
    batch: exactly for HyNet, while BatchNorm layers inside L2-Net see one chunk at a time."""
    patches_on: Runtime[Literal["auto", "device", "host"]] = "auto"
    """Where patches are stored: all on the device, or on the host with prefetching; auto: the device if they fit."""


def check_bits(config: PatchTraining) -> None:
    """Raise UsageError for a loss of real-valued descriptors with a binary network, or the opposite."""
    bits, loss = config.network.bits, config.loss
    takes_bits = isinstance(loss, AveragePrecisionConfig) and loss.descriptor == "binary"
    if bits and not takes_bits:
        raise UsageError(
            f"network.bits: {bits} needs the loss of binary descriptors: loss.name: average_precision, with"
            " loss.descriptor: binary, as in the recipe doap-binary"
        )
    if takes_bits and not bits:
        raise UsageError("loss.descriptor: binary needs a binary network: network.bits, such as 256")
