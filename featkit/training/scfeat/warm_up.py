"""SCFeat's warm-up: backbone and bridge learn on two views of single photographs, joined by known homographies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from featkit.data.homography_pairs import HomographyBatch, HomographyPairs
from featkit.data.pair_feed import SampleSource
from featkit.errors import BadInputError
from featkit.losses.base import LossResult
from featkit.losses.scfeat.contrastive import contrastive_loss
from featkit.training.scfeat.config import WarmUp
from featkit.training.scfeat.data import PhotoData
from featkit.training.scfeat.dense_task import DenseTask
from featkit.training.scfeat.measures import wrong_share
from featkit.training.task import Score

SPLIT_SEED = 5


class WarmUpTask(DenseTask[HomographyBatch]):
    """InfoNCE between the descriptors of points that a homography joins."""

    Config = WarmUp
    name = "warm-up"
    unit = "photographs"
    score = Score("held_out_wrong", "held-out points matched wrongly", 100.0, "%")

    def _sources(
        self, data: PhotoData
    ) -> tuple[SampleSource[Any, HomographyBatch], SampleSource[Any, HomographyBatch]]:
        if data.count < 2:
            raise BadInputError(f"{data.name}: {data.count} photograph; at least 2 are needed, one is held out")
        order = np.random.default_rng([self.config.seed, SPLIT_SEED]).permutation(data.count)
        out = max(1, round(self.config.held_out.share * len(order)))

        pairs = HomographyPairs(data.folders, self.config.augmentation, self.config.cache_mb)
        return pairs.select(order[out:]), pairs.select(order[:out])

    def parameters(self) -> list[nn.Parameter]:
        return self.network.description_parameters()

    def _loss(self, batch: HomographyBatch) -> LossResult:
        maps = self.describe(self.images(torch.cat([batch.images0, batch.images1])))
        map0, map1 = maps.normalised.chunk(2)
        return contrastive_loss(
            map0,
            map1,
            batch.homographies01.to(self.device),
            (batch.images0.shape[2], batch.images0.shape[1]),
            self.config.loss,
            self._draw,
            batch.valid0[:, None].to(self.device),
            batch.valid1[:, None].to(self.device),
            self.world.total,
        )

    @torch.no_grad()
    def held_out(self) -> float:
        """Share of the held-out photographs' points whose most similar vector lies elsewhere."""
        self.network.eval()
        wrong = []
        for batch in self.held_out_batches:
            maps = self.describe(self.images(torch.cat([batch.images0, batch.images1])))
            wrong.append(wrong_share(maps.normalised, batch))
        return float(np.mean(wrong))
