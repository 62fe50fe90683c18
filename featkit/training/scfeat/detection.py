"""SCFeat's second stage: the detector learns where descriptors match, backbone and bridge frozen (III-D (2))."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from featkit.data.posed_samples import PosedBatch, PosedSamples
from featkit.losses.base import LossResult
from featkit.losses.scfeat.policy_gradient import detection_loss
from featkit.training.scfeat.config import Detection
from featkit.training.scfeat.data import PosedData
from featkit.training.scfeat.dense_task import DenseTask
from featkit.training.scfeat.description import posed_sources
from featkit.training.scfeat.drawing import keypoint_picture
from featkit.training.scfeat.measures import strongest, unmatched_share
from featkit.training.task import Score


class DetectionTask(DenseTask[PosedBatch]):
    """Policy gradient: keypoints that match within their epipolar lines are rewarded."""

    Config = Detection
    name = "detection"
    unit = "pairs"
    score = Score("held_out_unmatched", "held-out keypoints without a right match", 100.0, "%")

    def _sources(self, data: PosedData) -> tuple[PosedSamples, PosedSamples]:
        return posed_sources(data, self.config)

    def parameters(self) -> list[nn.Parameter]:
        return self.network.detection_parameters()

    def _train_mode(self) -> None:
        self.network.eval()  # frozen: BatchNorm too
        self.network.detector.train()

    def _loss(self, batch: PosedBatch) -> LossResult:
        scores, maps = self._scores(batch)
        scores0, scores1 = scores.chunk(2)
        map0, map1 = maps.chunk(2)
        return detection_loss(
            scores0,
            scores1,
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

    def _scores(self, batch: PosedBatch) -> tuple[Float[Tensor, "b2 1 h w"], Float[Tensor, "b2 d h4 w4"]]:
        """Scores of all first, then of all second images, with gradient; maps without."""
        images = self.images(torch.cat([batch.images0, batch.images1]))
        with torch.no_grad():
            maps = self.describe(images)
        with self.world.autocast():
            scores = self.network.detect(images, maps)
        return scores.float(), maps.normalised

    @torch.no_grad()
    def held_out(self) -> float:
        """Share of the strongest keypoints that have no mutual nearest neighbour on their epipolar line."""
        self.network.eval()
        return float(np.mean([unmatched_share(*self._scores(batch), batch) for batch in self.held_out_batches]))

    @torch.no_grad()
    def pictures(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Of the first held-out pair's first image: its scores, and the strongest keypoints."""
        self.network.eval()
        batch = self.held_out_batches[0]
        scores = self._scores(batch)[0][:1]
        points = strongest(scores)[0].cpu().numpy()
        return {"keypoints": keypoint_picture(batch.images0[0].numpy(), scores[0, 0].cpu().numpy(), points)}
