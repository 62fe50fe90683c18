"""The configuration of SCFeat's training: one part for each of its stages.

The numbers of a recipe stand in `configs/<recipe>.yaml`. The defaults here are the paper's (section IV-A) or its
authors' code; `--steps` and `--budget` scale all stages together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from featkit.config import Config, Runtime
from featkit.data.homography_pairs import HomographyConfig
from featkit.data.posed_pairs import PosedConfig
from featkit.data.posed_samples import PairAugmentation
from featkit.losses.scfeat.contrastive import ContrastiveLossConfig
from featkit.losses.scfeat.description import DescriptionLossConfig
from featkit.losses.scfeat.imitation import ImitationConfig
from featkit.losses.scfeat.policy_gradient import DetectionLossConfig
from featkit.models.scfeat import SCFeatNetworkConfig
from featkit.training.base_config import Adam, Measured, Sgd, TrainingConfig
from featkit.training.schedule import Schedule, Steps

Optimiser = Annotated[Sgd | Adam, Field(discriminator="kind")]


class HeldOutPairs(Measured):
    """What is kept out of the training, to choose the best step."""

    share: float = Field(0.05, gt=0, lt=1)
    """Share of the images of every scene (of the photographs, in the warm-up)."""
    pairs: int = Field(64, ge=1)
    """Pairs of them that are looked at, at most."""


class StageTraining(TrainingConfig):
    """What the stages have in common."""

    network: SCFeatNetworkConfig = SCFeatNetworkConfig()
    """Set by the recipe's own `network`."""
    share: float = Field(0.0, ge=0)
    """Part of a `--budget` that this stage gets, in proportion to the others'."""
    held_out: HeldOutPairs = HeldOutPairs()
    pictures: Runtime[int] = Field(8, ge=0)
    """How often along the training it is shown in pictures."""
    workers: Runtime[int] = Field(2, ge=0)
    """Threads that make samples ahead."""
    cache_mb: Runtime[float] = Field(1000.0, ge=0)
    """Memory for decoded photographs."""


class TeacherConfig(ImitationConfig):
    """A published feature that the network imitates while it warms up; its features are given by --teacher."""

    keypoints: int = Field(256, ge=2)
    """Of a view, at most: the best that it shows."""
    score_share: float = Field(0.25, gt=0, le=1)
    """Share of a batch's photographs whose score maps are compared: the detector works at full resolution."""


class WarmUp(StageTraining):
    """Backbone and bridge on two views of one photograph: where no ImageNet encoder is at hand. Not in the paper."""

    optimiser: Optimiser = Adam(learning_rate=1e-3)
    batch_size: int = Field(4, ge=1)
    """Photographs in a batch, two views of each."""
    steps: int = Field(10_000, ge=1)
    share: float = Field(0.25, ge=0)
    fused_share: float = Field(0.0, ge=0, le=1)
    """Share of a batch's photographs that are compared by the map before the bridge, which gives the descriptors
    (III-E); the others by the map behind it, which the other losses and the detector see."""
    augmentation: HomographyConfig = HomographyConfig()
    loss: ContrastiveLossConfig = ContrastiveLossConfig()
    contrastive: float = Field(1.0, ge=0)
    """Weight of the contrastive loss; less than 1 only beside a teacher."""
    teacher: TeacherConfig | None = None
    """None: learned from homographies alone."""


class PosedTraining(StageTraining):
    """What learns from posed pairs."""

    data: PosedConfig = PosedConfig()
    """Set by the recipe's own `data`."""


class Description(PosedTraining):
    """Backbone and bridge from camera poses (III-D (1))."""

    optimiser: Optimiser = Adam(learning_rate=1e-4)
    schedule: Schedule = Steps(at=(0.9,))
    batch_size: int = Field(2, ge=1)
    """Pairs in a batch (IV-A: 2)."""
    pull: float = Field(0.0, ge=0)
    """Weight of the mean squared distance between unit vectors of the maps and those of the network that the stage
    started from: what a warm-up learned is more than poses say. The paper starts from ImageNet and has none."""
    freeze_norms: bool = False
    """Whether BatchNorms work with the statistics that the stage started with, as the network will when it extracts;
    in small batches those of the batch are noise. The authors' code: no."""
    steps: int = Field(100_000, ge=1)
    share: float = Field(0.6, ge=0)
    augmentation: PairAugmentation = PairAugmentation()
    loss: DescriptionLossConfig = DescriptionLossConfig()


class Detection(PosedTraining):
    """The detector from camera poses, backbone and bridge frozen (III-D (2))."""

    optimiser: Optimiser = Adam(learning_rate=1e-3)
    batch_size: int = Field(2, ge=1)
    """Pairs in a batch (IV-A: 2)."""
    steps: int = Field(1_000, ge=1)
    share: float = Field(0.15, ge=0)
    augmentation: PairAugmentation = PairAugmentation()
    loss: DetectionLossConfig = DetectionLossConfig()


class ScfeatTraining(Config):
    """The whole training. The stages' own `network`, `data` and `seed` are those given here."""

    network: SCFeatNetworkConfig = SCFeatNetworkConfig()
    data: PosedConfig = PosedConfig()
    """How posed pairs are read, and which of them are taken."""
    warm_up: WarmUp | None = None
    """None: the encoder starts from `--encoder-weights` (the paper: ImageNet), or at random."""
    description: Description = Description()
    detection: Detection = Detection()
    budget: str = ""
    """What `--budget` said, if it did."""
    precision: Literal["fp32", "bf16"] | None = None
    """fp32 or bf16, of all stages; None: what each says."""
    seed: int = Field(0, ge=0)
    timeout_s: Runtime[float] = Field(600.0, gt=0)
    """Seconds that a process waits for the others, in all stages: longer than a look at what is held out."""

    def scaled_to(self, steps: int) -> ScfeatTraining:
        """The same with so many steps of description, and the other stages in proportion."""
        factor = steps / self.description.steps
        stages = {"warm_up": self.warm_up, "description": self.description, "detection": self.detection}
        scaled = {
            name: stage.model_copy(update={"steps": max(1, round(factor * stage.steps))})
            for name, stage in stages.items()
            if stage is not None
        }
        return self.model_copy(update=scaled)
