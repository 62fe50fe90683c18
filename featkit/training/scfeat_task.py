"""Common parts of SCFeat's training stages: configuration, network, image pairs from a feed, one loss per batch."""

from __future__ import annotations

import hashlib
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor, nn

from featkit.core.config import (
    Config,
    Count,
    FactorOrZero,
    PositiveShare,
    Runtime,
    Seconds,
    Seed,
    Share,
    WorkerCount,
)
from featkit.core.errors import BadInputError
from featkit.core.runtime import torch_device
from featkit.data.posed_pairs import PosedConfig, PosedPairs
from featkit.data.posed_samples import PairAugmentation, PairFeed, SampleSource, WarpConfig, photographs
from featkit.data.tree import FileTree
from featkit.io.features import open_features
from featkit.losses.base import LossResult
from featkit.losses.scfeat_description import DescriptionLossConfig
from featkit.losses.scfeat_detection import DetectionLossConfig
from featkit.losses.scfeat_imitation import ImitationConfig
from featkit.losses.scfeat_warm_up import ContrastiveLossConfig
from featkit.losses.two_views import Draws, LossContext, PartOfDraws, TwoViews
from featkit.models.scfeat import DenseMaps, SCFeatNetwork, SCFeatNetworkConfig
from featkit.training.config import Adam, AskedPrecision, Measured, Schedule, Sgd, Steps, TrainingConfig
from featkit.training.distributed import World
from featkit.training.task import Score
from featkit.training.whole_batch import compiled, share_batch_norms
from featkit.weights.files import save_scfeat_network

# ----------------------------------------------------------------------------------------------------------------------
# The configuration of SCFeat's training: one part per stage.
#
# The values of a recipe are in `configs/<recipe>.yaml`. The defaults here are from the paper (section IV-A) or its
# authors' code; `--steps` and `--budget` scale all stages together.


Optimiser = Annotated[Sgd | Adam, Field(discriminator="kind")]


class HeldOutPairs(Measured):
    """The validation set, which selects the best step."""

    share: PositiveShare = Field(0.05, lt=1)
    """Share of every scene's images used for validation (of the photographs, in the warm-up)."""
    pairs: Count = 64
    """Maximum validation pairs."""


class StageTraining(TrainingConfig):
    """Fields common to all stages."""

    network: SCFeatNetworkConfig = SCFeatNetworkConfig()
    """The network; overwritten by the recipe's top-level `network`."""
    share: FactorOrZero = 0.0
    """Relative share of a `--budget` for this stage."""
    held_out: HeldOutPairs = HeldOutPairs()
    """The validation set and how often it is evaluated."""
    pictures: Runtime[int] = Field(8, ge=0, le=10**6)
    """Number of times that visualisations are saved during the training."""
    workers: Runtime[WorkerCount] = 2
    """Threads that prefetch samples; 0: no prefetching."""
    cache_mb: Runtime[FactorOrZero] = 1000.0
    """Cache for decoded photographs, MB."""


class TeacherConfig(ImitationConfig):
    """A published feature that the network imitates in the warm-up; its feature files are given by --teacher."""

    keypoints: int = Field(256, ge=2, le=10**9)
    """Maximum teacher keypoints per view, by score."""
    score_share: PositiveShare = 0.25
    """Share of a batch's views on which the scores are trained; limits the cost of the full-resolution detector."""


class WarmUp(StageTraining):
    """Warm-up of backbone and bridge on two views of one photograph, without ImageNet weights. Not in the paper."""

    optimiser: Optimiser = Adam(learning_rate=1e-3)
    """Optimiser and its learning rate."""
    batch_size: Count = 4
    """Photographs per batch, with two views of each."""
    steps: Count = 10_000
    """Length of the stage, in batches."""
    share: FactorOrZero = 0.25
    """Relative share of a `--budget` for this stage."""
    fused_share: Share = 0.0
    """Share of a batch's photographs whose loss uses the map before the bridge, which gives the descriptors (III-E).
    The others use the map after the bridge, as the other losses and the detector do."""
    augmentation: WarpConfig = WarpConfig()
    """How the two views of a photograph are generated."""
    loss: ContrastiveLossConfig = ContrastiveLossConfig()
    """The contrastive loss between the two views."""
    contrastive: FactorOrZero = 1.0
    """Weight of the contrastive loss; below 1 only together with a teacher."""
    teacher: TeacherConfig | None = None
    """The teacher. None: training on homographies alone."""

    @model_validator(mode="after")
    def _check_terms(self) -> WarmUp:
        self.augmentation.canvas.check_cells("loss.cell_px", self.loss.cell_px)
        if self.contrastive < 1 and self.teacher is None:
            raise ValueError(f"contrastive: {self.contrastive:g} needs a teacher; without one it is 1 or more")
        return self


class PosedTraining(StageTraining):
    """Common fields of the stages that train on posed pairs."""

    data: PosedConfig = PosedConfig()
    """How posed pairs are read; overwritten by the recipe's top-level `data`."""


class Description(PosedTraining):
    """Training of backbone and bridge with camera poses (III-D (1))."""

    optimiser: Optimiser = Adam(learning_rate=1e-4)
    """Optimiser and its learning rate."""
    schedule: Schedule = Steps(at=(0.9,))
    """Learning-rate schedule."""
    batch_size: Count = 2
    """Image pairs per batch (IV-A: 2)."""
    pull: FactorOrZero = 0.0
    """Weight of the mean squared distance between unit vectors of the current maps and those of the stage's initial
    network; preserves what the warm-up learned. The paper starts from ImageNet and has no such term."""
    freeze_norms: bool = False
    """Whether BatchNorm layers use the statistics from the start of the stage, as in extraction. Statistics of small
    batches are noisy. The authors' code: no."""
    steps: Count = 100_000
    """Length of the stage, in batches."""
    share: FactorOrZero = 0.6
    """Relative share of a `--budget` for this stage."""
    augmentation: PairAugmentation = PairAugmentation()
    """Augmentation of the photographs."""
    loss: DescriptionLossConfig = DescriptionLossConfig()
    """The line-to-window loss."""

    @model_validator(mode="after")
    def _check_terms(self) -> Description:
        self.augmentation.canvas.check_cells("loss.cell_px", self.loss.cell_px)
        return self


class Detection(PosedTraining):
    """Training of the detector with camera poses, backbone and bridge frozen (III-D (2))."""

    optimiser: Optimiser = Adam(learning_rate=1e-3)
    """Optimiser and its learning rate."""
    batch_size: Count = 2
    """Image pairs per batch (IV-A: 2)."""
    steps: Count = 1_000
    """Length of the stage, in batches."""
    share: FactorOrZero = 0.15
    """Relative share of a `--budget` for this stage."""
    augmentation: PairAugmentation = PairAugmentation()
    """Augmentation of the photographs."""
    loss: DetectionLossConfig = DetectionLossConfig()
    """The detection loss, which rewards keypoints that match."""

    @model_validator(mode="after")
    def _check_terms(self) -> Detection:
        self.augmentation.canvas.check_cells("loss.policy.cell_px", self.loss.policy.cell_px)
        return self


class ScfeatTraining(Config):
    """The complete training. `network`, `data` and `seed` apply to all stages."""

    network: SCFeatNetworkConfig = SCFeatNetworkConfig()
    """The network of all stages; with `start`, that of the weights."""
    start: str = ""
    """Initial weights of the first stage: name of shipped weights, or a weights file. Empty: none."""
    data: PosedConfig = PosedConfig()
    """How posed pairs are read and which of them are used."""
    warm_up: WarmUp | None = None
    """The warm-up stage. None: the encoder starts from `--encoder-weights` (paper: ImageNet), or at random."""
    description: Description = Description()
    """The description stage."""
    detection: Detection = Detection()
    """The detection stage."""
    budget: str = ""
    """Time budget given by `--budget`; empty: none."""
    precision: AskedPrecision | None = None
    """Precision of all stages: auto, fp32 or bf16. None: each stage's own."""
    seed: Seed = 0
    """Random seed, for the initial weights and all sampling."""
    timeout_s: Runtime[Seconds] = 600.0
    """Seconds that a process waits for the others before it gives up. Must exceed the time of one validation."""

    def scaled_to(self, steps: int) -> ScfeatTraining:
        """The configuration with `steps` description steps, and the other stages in proportion."""
        factor = steps / self.description.steps
        stages = {"warm_up": self.warm_up, "description": self.description, "detection": self.detection}
        scaled = {
            name: stage.model_copy(update={"steps": max(1, round(factor * stage.steps))})
            for name, stage in stages.items()
            if stage is not None
        }
        return self.model_copy(update=scaled)


# ----------------------------------------------------------------------------------------------------------------------
# Base class of the stages' tasks.


BatchT = TypeVar("BatchT")
HELD_OUT_SEED = 3  # combined with the run's seed: randomness of the validation pairs
WHOLE_MB = 1000.0  # no size limit: half precision throughout
DRAW_SEED = 4  # combined with the run's seed: randomness of the losses


class DenseTask(ABC, Generic[BatchT]):
    """A subclass defines the sample `_sources`, the `_loss` of a batch, and the validation score `held_out`."""

    Config: ClassVar[type[StageTraining]]
    name: str
    unit: str
    score: Score

    def __init__(self, config: Any, device: str = "auto"):
        self.config = config
        self.device = torch_device(device)
        self.network = SCFeatNetwork(config.network, torch.Generator().manual_seed(config.seed)).to(self.device)
        self.batch: BatchT | None = None
        self.also_measured: dict[str, float] = {}

    @classmethod
    def identity_of(cls, data: Any) -> str:
        return data.identity()

    def described(self, data: Any) -> dict[str, Any]:
        """Name, number of pairs or photographs, scenes, and the origin of the initial weights."""
        scenes = list(dict.fromkeys((*data.scenes, *data.start.scenes)))
        return {"name": data.name, self.unit: data.count, "scenes": scenes, "start": data.start.origin}

    def prepare(self, data: Any, world: World) -> None:
        """Set up the data and the initial weights. Raises BadInputError if there is too little data."""
        self.world = world
        world.check_batch(self.config.batch_size, self.unit)
        load_values(self.network, data.start.values, data.start.origin)
        self.starts_trained = bool(data.start.values)
        training, held_out = self._sources(data)
        self.feed: PairFeed[Any, BatchT] = PairFeed(
            training, self.config.batch_size, self.config.seed, self.config.workers, world.part
        )
        self.held_out_batches = list(self._validation_batches(held_out)) if world.is_first else []
        self._generator = torch.Generator().manual_seed(seed_of(self.config.seed, DRAW_SEED, 0, 0))
        draws: Draws = self._generator
        if world.size > 1:
            draws = PartOfDraws(self._generator, world.part(self.config.batch_size), self.config.batch_size)
            share_batch_norms(self.network, world.total)
        self.context = LossContext(draws, world.total)
        self._describe = compiled(self.network.describe, self.network) if self.config.compile else self.network.describe

    @abstractmethod
    def _sources(self, data: Any) -> tuple[SampleSource[Any, BatchT], SampleSource[Any, BatchT]]:
        """Training and validation samples. Raises BadInputError if there is too little data."""

    @abstractmethod
    def _loss(self, batch: BatchT) -> LossResult:
        """Loss of one batch. With several processes, their losses add up to it; `world.total` sums over them."""

    def views(self, maps: Float[Tensor, "b2 c h w"], geometry01: Float[Tensor, "b 3 3"], batch: Any) -> TwoViews:
        """The input of a loss. maps: of all first, then of all second images of the batch."""
        height, width = batch.images0.shape[1:3]
        map0, map1 = maps.chunk(2)
        valid0, valid1 = (valid[:, None].to(self.device) for valid in (batch.valid0, batch.valid1))
        return TwoViews(map0, map1, geometry01.to(self.device), (width, height), valid0, valid1)

    @abstractmethod
    def held_out(self) -> float:
        """The score on the validation set: smaller is better."""

    def held_out_s(self) -> float:
        """Estimated duration of `held_out` in seconds, from one of its pairs."""
        all_batches, started = self.held_out_batches, time.perf_counter()
        self.held_out_batches = all_batches[:1]
        try:
            self.held_out()
        finally:
            self.held_out_batches = all_batches
        return (time.perf_counter() - started) * len(all_batches)

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that this stage trains."""

    def _validation_batches(self, source: SampleSource[Any, BatchT]) -> Any:
        """Validation batches of one pair each: a fixed selection, evenly spread."""
        count = min(self.config.held_out.pairs, len(source))
        for index in np.unique(np.linspace(0, len(source) - 1, count).astype(int)):
            generator = np.random.default_rng([self.config.seed, HELD_OUT_SEED, int(index)])
            yield source.collate([source.sample(int(index), generator)])

    @property
    def batch_items(self) -> int:
        return self.config.batch_size

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": self.parameters(), "lr": self.config.optimiser.learning_rate}]

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def state(self) -> dict[str, Any]:
        return {"feed": self.feed.state(), "draw": self._generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.feed.restore(state["feed"])
        self._generator.set_state(state["draw"])

    def step(self, share: float) -> LossResult:
        """Add the gradient of the next batch's loss, summed over the processes' parts."""
        self._train_mode()
        self.batch = self.feed.next()
        result = self._loss(self.batch)
        result.loss.backward()
        self.world.sum_gradients(self.parameters())
        return self._sum_over_processes(result)

    def _sum_over_processes(self, result: LossResult) -> LossResult:
        """Loss and statistics of the complete batch, summed over the processes' parts."""
        if self.world.size == 1:
            return LossResult(result.loss.detach(), result.statistics)
        names = list(result.statistics)
        loss, *values = self.world.total(
            torch.stack([result.loss, *(value.to(result.loss) for value in result.statistics.values())])
        )
        return LossResult(loss, dict(zip(names, values, strict=True)))

    def _train_mode(self) -> None:
        self.network.train()

    def describe(self, images: Float[Tensor, "b 3 h w"]) -> DenseMaps:
        """Maps in float32, computed in the training's precision."""
        with self.world.autocast():
            maps = self._describe(images)
        return DenseMaps(*(part.float() for part in maps))

    def images(self, pixels: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1] on the device, from 8-bit pixels."""
        return pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255

    def waited_s(self) -> float:
        return self.feed.waited_s

    def save_weights(self, path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write the network with the given state."""
        network = SCFeatNetwork(self.config.network)
        network.load_state_dict(state)
        save_scfeat_network(path, network.eval(), metadata, WHOLE_MB)

    def batch_arrays(self) -> dict[str, Any]:
        """The last batch, for debugging."""
        if self.batch is None:
            return {}
        values = vars(self.batch)
        return {k: v.numpy() if isinstance(v, Tensor) else np.array(v) for k, v in values.items()}

    @property
    def picture_turns(self) -> int:
        return self.config.pictures

    def pictures(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        return {}

    def close(self) -> None:
        self.feed.close()


def seed_of(*numbers: int) -> int:
    """One seed derived from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def load_values(network: SCFeatNetwork, values: dict[str, Tensor], origin: str) -> None:
    """Load `values` into the network. Raises BadInputError for names or shapes that the network does not have."""
    state = network.state_dict()
    for name, value in values.items():
        if name not in state or state[name].shape != value.shape:
            raise BadInputError(f"{origin}: has {name} of shape {tuple(value.shape)}, which this network does not")
    network.load_state_dict(values, strict=False)


# ----------------------------------------------------------------------------------------------------------------------
# Training data of a stage, and the weights that it starts from.


PART = re.compile(r"/(dense\d+|\d[\d._]*)$")  # suffix of scene names, of CAPS's parts and of an index (scene_info.py)
INSIDE = re.compile(r"images|imgs|aligned|dense\d+")  # subfolders of a scene that do not identify it


@dataclass(frozen=True)
class Start:
    """Initial weights of a stage; parameters not in `values` stay random.

    origin, and the scenes that the weights were trained on: for the records.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    origin: str = "random"
    scenes: tuple[str, ...] = ()

    def digest(self) -> str:
        """16 hex digits of the values; "" if there are none."""
        if not self.values:
            return ""
        digest = hashlib.sha256()
        for name in sorted(self.values):
            digest.update(name.encode())
            digest.update(self.values[name].detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class PosedData:
    """Image pairs with camera poses."""

    name: str
    pairs: PosedPairs
    start: Start = Start()

    @property
    def count(self) -> int:
        return len(self.pairs)

    @property
    def scenes(self) -> list[str]:
        """Scene names without MegaDepth's /dense0 suffix: the parts of a scene count as one."""
        return list(dict.fromkeys(PART.sub("", scene.name) for scene in self.pairs.scenes))

    def identity(self) -> str:
        digest = hashlib.sha256(self.pairs.pairs.tobytes())
        for scene in self.pairs.scenes:
            digest.update(repr((scene.name, scene.image_names)).encode())
            for values in (scene.sizes, scene.intrinsics, scene.rotations, scene.translations):
                digest.update(values.tobytes())
        return f"{self.count} pairs, {digest.hexdigest()[:16]}, from {self.start.origin} {self.start.digest()}".strip()


def photo_folders(root: Path, pairs: PosedPairs) -> tuple[Path, ...]:
    """Default folders of the warm-up's photographs: the data's root; the images of listed scenes or scene_info."""
    return (root,) if pairs.is_whole else pairs.image_folders()


def scene_of(folder: Path) -> str:
    """The scene name of an image folder: 0001 for 0001/dense0/aligned/images."""
    return next((part for part in reversed(folder.parts) if not INSIDE.fullmatch(part)), folder.name)


@dataclass(frozen=True)
class PhotoData:
    """Single photographs."""

    name: str
    folders: tuple[Path, ...]
    start: Start = Start()
    teacher_files: tuple[Path, ...] = ()
    """Teacher features of each folder's photographs; empty: no teacher."""

    @cached_property
    def files(self) -> list[tuple[FileTree, str]]:
        return [file for folder in self.folders for file in photographs(folder)]

    @property
    def count(self) -> int:
        return len(self.files)

    @property
    def scenes(self) -> list[str]:
        """Scene names of the folders."""
        return list(dict.fromkeys(scene_of(folder) for folder in self.folders))

    def identity(self) -> str:
        digest = hashlib.sha256("\n".join(sorted(name for _, name in self.files)).encode())
        for file in self.teacher_files:
            with open_features(file) as store:
                digest.update(repr([(name, store.digest(name)) for name in store.names()]).encode())
        description = f"{self.count} photographs, {digest.hexdigest()[:16]}"
        return f"{description}, from {self.start.origin} {self.start.digest()}".strip()
