"""SCFeat's first stage: backbone and bridge learn descriptors from camera poses (III-D (1))."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from featkit.data.pair_feed import SampleSource
from featkit.data.posed_samples import PosedBatch, PosedSamples
from featkit.data.posed_split import split_pairs
from featkit.losses.base import LossResult
from featkit.losses.scfeat.description import description_loss, one_way
from featkit.training.scfeat.config import Description
from featkit.training.scfeat.data import PosedData
from featkit.training.scfeat.dense_task import DenseTask
from featkit.training.scfeat.drawing import line_picture
from featkit.training.scfeat.measures import off_line_share
from featkit.training.task import Score

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

    def _loss(self, batch: PosedBatch) -> LossResult:
        maps = self.describe(self.images(torch.cat([batch.images0, batch.images1])))
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
            "views": config.augmentation.views.model_copy(
                update={"rotation_deg": 0.0, "scale_max": 1.0, "perspective": 0.0}
            ),
        }
    )
    return PosedSamples(training, config.augmentation, config.cache_mb), PosedSamples(held_out, as_it_is)
