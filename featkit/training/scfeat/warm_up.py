"""SCFeat's warm-up: backbone and bridge learn on two views of single photographs, joined by known homographies.

With a teacher they also imitate a published feature, and the detector learns to score what the teacher detects.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from featkit.data.homography_pairs import HomographyBatch, HomographyPairs
from featkit.data.pair_feed import SampleSource
from featkit.data.teacher import Teacher
from featkit.errors import BadInputError
from featkit.losses.base import LossResult
from featkit.losses.scfeat.contrastive import contrastive_loss
from featkit.losses.scfeat.imitation import Lesson, imitation_loss, score_loss
from featkit.models.scfeat import DenseMaps
from featkit.training.scfeat.config import TeacherConfig, WarmUp
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
        teacher, wanted = None, self.config.teacher
        if wanted is not None:
            teacher = Teacher(data.folders, data.teacher_files)
            if teacher.dimension != self.network.dimension:
                raise BadInputError(
                    f"the teacher's descriptors have {teacher.dimension} values and the network's"
                    f" {self.network.dimension}: set network.descriptor_channels, or take another teacher"
                )
        pairs = HomographyPairs(
            data.folders, self.config.augmentation, self.config.cache_mb, teacher, wanted.keypoints if wanted else 0
        )
        order = np.random.default_rng([self.config.seed, SPLIT_SEED]).permutation(len(pairs))
        out = max(1, round(self.config.held_out.share * len(order)))
        return pairs.select(order[out:]), pairs.select(order[:out])

    def parameters(self) -> list[nn.Parameter]:
        """The detector's too where a teacher shows what to score."""
        learned = self.network.description_parameters()
        if self.config.teacher is not None and self.config.teacher.score > 0:
            learned += self.network.detection_parameters()
        return learned

    def _loss(self, batch: HomographyBatch) -> LossResult:
        images = self.images(torch.cat([batch.images0, batch.images1]))
        maps = self.describe(images)
        results = [self._contrastive(self._compared(maps), batch)] if self.config.contrastive else []
        if self.config.teacher is not None:
            results += self._imitated(images, maps, batch, self.config.teacher)
        statistics = {name: value for result in results for name, value in result.statistics.items()}
        return LossResult(torch.stack([result.loss for result in results]).sum(), statistics)

    def _imitated(
        self, images: Float[Tensor, "b2 3 h w"], maps: DenseMaps, batch: HomographyBatch, config: TeacherConfig
    ) -> list[LossResult]:
        """The teacher's terms, of both views."""
        assert batch.taught is not None
        lesson = Lesson(*(torch.from_numpy(getattr(batch.taught, f.name)).to(self.device) for f in fields(Lesson)))
        size = batch.images0.shape[2], batch.images0.shape[1]
        results = [imitation_loss(self._compared(maps), lesson, size, config, self.world.total)]
        if config.score > 0:
            count = max(1, round(config.score_share * len(images)))
            some = DenseMaps(*(part[:count] for part in maps))
            with self.world.autocast():
                scores = self.network.detect(images[:count], some).float()
            valid = torch.cat([batch.valid0, batch.valid1])[:count, None].to(self.device)
            few = Lesson(*(getattr(lesson, f.name)[:count] for f in fields(Lesson)))
            results.append(score_loss(scores, few, valid, config.score, self.world.total))
        return results

    def _contrastive(self, compared: Float[Tensor, "b2 d h4 w4"], batch: HomographyBatch) -> LossResult:
        map0, map1 = compared.chunk(2)
        found = contrastive_loss(
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
        return LossResult(self.config.contrastive * found.loss, found.statistics)

    def _compared(self, maps: DenseMaps) -> Float[Tensor, "b2 d h4 w4"]:
        """Of every photograph the map that its points are compared by, the same one for both views."""
        count = self.config.batch_size
        fused = torch.arange(count) < round(self.config.fused_share * count)
        both = fused[self.world.part(count)].repeat(2).to(maps.normalised.device)
        return torch.where(both[:, None, None, None], maps.descriptors, maps.normalised)

    @torch.no_grad()
    def held_out(self) -> float:
        """Share of the held-out photographs' points whose most similar vector lies elsewhere."""
        self.network.eval()
        wrong = []
        for batch in self.held_out_batches:
            maps = self.describe(self.images(torch.cat([batch.images0, batch.images1])))
            wrong.append(wrong_share(maps.normalised, batch))
        return float(np.mean(wrong))
