"""SCFeat's first stage: backbone and bridge learn descriptors from camera poses (III-D (1))."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from featkit.data.pair_feed import SampleSource
from featkit.data.photometric import PhotometricConfig
from featkit.data.posed_samples import PosedBatch, PosedSamples
from featkit.data.posed_split import split_pairs
from featkit.losses.base import LossResult
from featkit.losses.scfeat.description import description_loss, one_way
from featkit.models.scfeat import DenseMaps, SCFeatNetwork
from featkit.training.scfeat.config import Description
from featkit.training.scfeat.data import PosedData
from featkit.training.scfeat.dense_task import DenseTask
from featkit.training.scfeat.drawing import line_picture
from featkit.training.scfeat.measures import off_line_share
from featkit.training.task import Score
from featkit.training.world import World

PICTURE_SEED = 6


class DescriptionTask(DenseTask[PosedBatch]):
    """The weighted epipolar loss on line-to-window matches, both ways."""

    Config = Description
    name = "description"
    unit = "pairs"
    score = Score("held_out_off_line", "held-out matches off their line", 100.0, "%")

    def _sources(self, data: PosedData) -> tuple[SampleSource[Any, PosedBatch], SampleSource[Any, PosedBatch]]:
        return posed_sources(data, self.config)

    def parameters(self) -> list[nn.Parameter]:
        return self.network.description_parameters()

    def prepare(self, data: PosedData, world: World) -> None:
        super().prepare(data, world)
        self._start: SCFeatNetwork | None = None
        if self.config.pull > 0:
            self._start = copy.deepcopy(self.network).requires_grad_(False)

    def _train_mode(self) -> None:
        self.network.train()
        if self.config.freeze_norms:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _loss(self, batch: PosedBatch) -> LossResult:
        images = self.images(torch.cat([batch.images0, batch.images1]))
        maps = self.describe(images)
        found = self._epipolar(maps, batch)
        if self._start is None:
            return found
        self._start.train(not self.config.freeze_norms)
        with torch.no_grad(), self.world.autocast():
            before = self._start.describe(images)
        pulled = self._pulled(maps, before)
        return LossResult(found.loss + self.config.pull * pulled, {**found.statistics, "pull": pulled.detach()})

    def _pulled(self, maps: DenseMaps, before: DenseMaps) -> Float[Tensor, ""]:
        """Mean over pixels and over both maps of the squared distance of unit vectors: 2 - 2 cos."""
        pairs = ((maps.descriptors, before.descriptors), (maps.normalised, before.normalised))
        cosines = [F.cosine_similarity(now, then.float(), dim=1).mean((1, 2)) for now, then in pairs]
        return (2 - torch.cat(cosines) - torch.cat(cosines)).sum() / (4 * self.config.batch_size)

    def _epipolar(self, maps: DenseMaps, batch: PosedBatch) -> LossResult:
        map0, map1 = maps.normalised.chunk(2)
        return description_loss(
            map0,
            map1,
            batch.fundamentals01.to(self.device),
            (batch.images0.shape[2], batch.images0.shape[1]),
            self.config.loss,
            self._draw,
            batch.valid0[:, None].to(self.device),
            batch.valid1[:, None].to(self.device),
            self.world.total,
        )

    @torch.no_grad()
    def held_out(self) -> float:
        """Share of nearest neighbours that lie off their epipolar lines, over all held-out pairs."""
        self.network.eval()
        off = []
        for batch in self.held_out_batches:
            maps = self.describe(self.images(torch.cat([batch.images0, batch.images1])))
            off.append(off_line_share(maps.normalised, batch))
        return float(np.mean(off))

    @torch.no_grad()
    def pictures(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Of the first held-out pair: query points, their epipolar lines and where the matches are."""
        self.network.eval()
        batch = self.held_out_batches[0]
        maps = self.describe(self.images(torch.cat([batch.images0, batch.images1])))
        map0, map1 = maps.normalised.chunk(2)
        size = batch.images0.shape[2], batch.images0.shape[1]
        draw = torch.Generator().manual_seed(PICTURE_SEED)
        found = one_way(map0, map1, batch.fundamentals01.to(self.device), size, self.config.loss, draw)
        return {
            "matches": line_picture(
                batch.images0[0].numpy(),
                batch.images1[0].numpy(),
                found.points0[0].cpu().numpy(),
                found.matches.positions[0].cpu().numpy(),
                found.matches.lines[0].cpu().numpy(),
                found.valid[0].cpu().numpy(),
            )
        }


def posed_sources(data: PosedData, config: Any) -> tuple[PosedSamples, PosedSamples]:
    """What is learned from, and what is held out: as photographed, neither turned nor changed in colour."""
    training, held_out = split_pairs(data.pairs, config.held_out.share, config.seed)
    as_it_is = config.augmentation.model_copy(
        update={
            "jitter": config.augmentation.jitter.model_copy(update={"probability": 0.0}),
            "photometric": PhotometricConfig(),
            "views": config.augmentation.views.model_copy(
                update={"rotation_deg": 0.0, "scale_max": 1.0, "perspective": 0.0}
            ),
        }
    )
    return PosedSamples(training, config.augmentation, config.cache_mb), PosedSamples(held_out, as_it_is)
