"""What the stages of SCFeat's training have in common: a network, pairs of images from a feed, one loss per batch."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from featkit.data.pair_feed import PairFeed, SampleSource
from featkit.device import torch_device
from featkit.errors import BadInputError
from featkit.losses.base import LossResult
from featkit.losses.scfeat.points import Draws, PartOfDraws
from featkit.models.scfeat import DenseMaps, SCFeatNetwork
from featkit.training.scfeat.config import StageTraining
from featkit.training.shared_norm import share_batch_norms
from featkit.training.task import Score
from featkit.training.world import World
from featkit.weights import save_scfeat_network

BatchT = TypeVar("BatchT")
HELD_OUT_SEED = 3  # beside the run's: of what varies in held-out pairs
WHOLE_MB = 1000.0  # no limit: half precision throughout
DRAW_SEED = 4  # of what the losses draw


class DenseTask(ABC, Generic[BatchT]):
    """A subclass says what `_sources` are made of data, what `_loss` a batch has, and how `held_out` is measured."""

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

    @classmethod
    def described(cls, data: Any) -> dict[str, Any]:
        """Name, how many pairs or photographs, their scenes, and what the network started from."""
        return {"name": data.name, cls.unit: data.count, "scenes": data.scenes, "start": data.start.origin}

    def prepare(self, data: Any, world: World) -> None:
        """Take the data, and the values to start with. Raises BadInputError when there is too little to learn from."""
        self.world = world
        world.check_batch(self.config.batch_size, self.unit)
        fill(self.network, data.start.values, data.start.origin)
        self.starts_trained = bool(data.start.values)
        training, held_out = self._sources(data)
        self.feed: PairFeed[Any, BatchT] = PairFeed(
            training, self.config.batch_size, self.config.seed, self.config.workers, world.part
        )
        self.held_out_batches = list(self._fixed(held_out)) if world.is_first else []
        self._generator = torch.Generator().manual_seed(seed_of(self.config.seed, DRAW_SEED, 0, 0))
        self._draw: Draws = self._generator
        if world.size > 1:
            self._draw = PartOfDraws(self._generator, world.part(self.config.batch_size), self.config.batch_size)
            share_batch_norms(self.network, world.total)
        self._describe = torch.compile(self.network.describe) if self.config.compile else self.network.describe

    @abstractmethod
    def _sources(self, data: Any) -> tuple[SampleSource[Any, BatchT], SampleSource[Any, BatchT]]:
        """What is learned from, and what is held out. Raises BadInputError when there is too little."""

    @abstractmethod
    def _loss(self, batch: BatchT) -> LossResult:
        """Of one batch; of several processes' parts, what adds up to it: `world.total` gives what they share."""

    @abstractmethod
    def held_out(self) -> float:
        """The score on what is held out: smaller is better."""

    def held_out_s(self) -> float:
        """Seconds that `held_out` takes, by one of its pairs."""
        every, started = self.held_out_batches, time.perf_counter()
        self.held_out_batches = every[:1]
        try:
            self.held_out()
        finally:
            self.held_out_batches = every
        return (time.perf_counter() - started) * len(every)

    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """What this stage learns."""

    def _fixed(self, source: SampleSource[Any, BatchT]) -> Any:
        """Held-out batches of one pair each: always the same ones, spread over all there are."""
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
        """Add the gradient of the next batch's loss, whose parts the processes work on."""
        self._train_mode()
        self.batch = self.feed.next()
        result = self._loss(self.batch)
        result.loss.backward()
        self.world.sum_gradients(self.parameters())
        return self._of_all(result)

    def _of_all(self, result: LossResult) -> LossResult:
        """The parts' losses and statistics, which add up to those of the batch."""
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
        """Pixels as the network takes them, on the device."""
        return pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255

    def waited_s(self) -> float:
        return self.feed.waited_s

    def save_weights(self, path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write the network with these values."""
        network = SCFeatNetwork(self.config.network)
        network.load_state_dict(state)
        save_scfeat_network(path, network.eval(), metadata, WHOLE_MB)

    def batch_arrays(self) -> dict[str, Any]:
        """The last batch, to look into when something went wrong."""
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
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def fill(network: SCFeatNetwork, values: dict[str, Tensor], origin: str) -> None:
    """Overwrite what `values` name. Raises BadInputError for names or shapes that the network does not have."""
    own = network.state_dict()
    for name, value in values.items():
        if name not in own or own[name].shape != value.shape:
            raise BadInputError(f"{origin}: has {name} of shape {tuple(value.shape)}, which this network does not")
    network.load_state_dict(values, strict=False)
