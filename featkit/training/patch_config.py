"""The configuration of a patch descriptor's training: everything that decides the weight that comes out.

The numbers of each method stand in `configs/<method>.yaml`, in its paper's terms.
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
from featkit.data.augment import AugmentConfig
from featkit.data.label_mining import LabelMiningConfig
from featkit.data.training_patches import PatchDataConfig
from featkit.losses.build import LossConfig
from featkit.losses.hynet import HyNetLossConfig
from featkit.models.patch import PatchNetworkConfig
from featkit.training.config import Adam, Measured, Sgd, TrainingConfig


class Pairs(Config):
    """Two random patches of each of `batch_size` classes (HardNet, HyNet, SDGMNet)."""

    kind: Literal["pairs"] = "pairs"
    """Which sampler this configures."""


class Groups(Config):
    """Whole classes, `batch_size` patches together (DOAP)."""

    kind: Literal["groups"] = "groups"
    """Which sampler this configures."""
    max_per_group: int = Field(16, ge=2, le=10**9)
    """Patches of one class in a batch, at most. DOAP, appendix C: groups of 16."""
    two_scenes: bool = False
    """Each batch from two scenes, half of each (DOAP, appendix C.2); meant for label mining."""
    fill: Literal["in_turn", "at_random"] = "in_turn"
    """in_turn: every group once in a pass over all. at_random: only the first of each batch comes in turn, the others
    are any, so that a pass over few groups has as many batches as groups (DOAP, appendix D, on RomePatches)."""
    label_mining: LabelMiningConfig | None = None
    """Which patches of one scene may count as non-matches (DOAP, sec. 4.2); none: all of other classes do."""


class AdaSample(Config):
    """Anchors at random, their positives by distance (AdaSample, eq. 13)."""

    kind: Literal["adasample"] = "adasample"
    """Which sampler this configures."""
    strength: float = Field(10.0, ge=0, allow_inf_nan=True)
    """lambda of eq. 13: 0 is random sampling, .inf takes the most distant positive. AdaSample, sec. 5.1: 10."""
    class_size: int = Field(15, ge=2, le=10**9)
    """Patches that every class is filled to by turning its own ones. AdaSample, sec. 5.2: 15."""
    candidates: int = Field(15, ge=2, le=10**9)
    """Patches of a class that are described to choose from, the anchor among them. Fewer take less time."""
    filled_rotation_deg: Degrees = 15.0
    """Degrees: largest random rotation of such a copy, either way. The paper does not give it."""
    smallest_angle: Epsilon = 0.1
    """A positive nearer to its anchor counts as that far in its weight 1 / d, which would have no limit. Rad, or
    Euclidean distance, which is the same when small."""
    distance: Literal["of_loss", "angular", "euclidean"] = "of_loss"
    """d of eq. 13. of_loss: the one that the loss compares, as section 3.4 has it: angles for the angular hinge triplet
    loss (AHT), Euclidean for the plain one (HT) and for HardNet's."""


class HeldOut(Measured):
    """The part of the training set that is left out of it, to choose the best step by matching."""

    scenes: tuple[str, ...] = ()
    """Names of the scenes that are left out; none: drawn at random."""
    share: PositiveShare = Field(0.05, lt=1)
    """Without names: whole scenes while they have no more than this share of the classes; where all are larger, so
    many classes of all scenes."""
    pairs: int = Field(2000, ge=10, le=10**9)
    """Matching pairs of patches, at most."""
    min_shared: int = Field(50, ge=2, le=10**9)
    """Two images of a scene are matched when they share so many points. Where no two do, or images are not known,
    patches of different points of a scene are put together as if they were of two images."""
    max_shared: int = Field(250, ge=2, le=10**9)
    """Points of such a pair of images that are matched, at most."""


class PatchTraining(TrainingConfig):
    """How a patch descriptor is trained."""

    data: PatchDataConfig = PatchDataConfig()
    """How the patches are read, and which of them are taken."""
    network: PatchNetworkConfig = PatchNetworkConfig()
    """The network that is trained."""
    loss: LossConfig = HyNetLossConfig()
    """What is minimised."""
    scale_statistics: bool = True
    """Fit the memory of SDGMNet's statistics to `steps` and `batch_size`, in the paper's proportions."""
    second_order_weight: FactorOrZero = 0.0
    """Factor of SOSNet's second-order term, added to the loss; 0: none."""
    second_order_neighbours: int = Field(8, ge=1, le=10**6)
    """Neighbours of each descriptor that the term looks at. SOSNet: 8."""
    sampler: Annotated[Pairs | Groups | AdaSample, Field(discriminator="kind")] = Pairs()
    """How batches are drawn."""
    same_image_share: Share = 0.0
    """Sampler `pairs`: share of each batch whose first patches all come from one image, where the data names the
    images: the non-matches that matching meets. The papers: 0."""
    augmentation: AugmentConfig = AugmentConfig()
    """How patches are changed before the network sees them."""
    optimiser: Annotated[Sgd | Adam, Field(discriminator="kind")] = Adam(learning_rate=0.01)
    """How gradients become steps."""
    batch_size: int = Field(1024, ge=2, le=10**9)
    """Pairs in a batch; patches, when whole groups are drawn."""
    steps: Count = 100_000
    """Length of the training, batches."""
    held_out: HeldOut = HeldOut()
    """What is held out of the training and measured along it."""
    chunk: CountOrZero = 0
    """Patches described at once, 0: the whole batch. The gradient stays that of the whole batch: exactly where
    patches do not look at each other inside the network (HyNet); BatchNorm inside (L2-Net) sees one chunk at a time."""
    patches_on: Runtime[Literal["auto", "device", "host"]] = "auto"
    """Where patches wait: all of them on the device, or on the host and read ahead; auto: the device if they fit."""
