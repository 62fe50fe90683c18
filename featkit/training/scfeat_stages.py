"""The stages of SCFeat's training, each a task of the training loop: warm-up, description, detection."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from featkit.core.errors import BadInputError
from featkit.data.posed_pairs import split_pairs
from featkit.data.posed_samples import HomographyBatch, HomographyPairs, PosedBatch, PosedSamples, SampleSource
from featkit.data.teacher import Teacher
from featkit.data.views import PhotometricConfig
from featkit.losses.base import LossResult
from featkit.losses.scfeat_description import description_loss, one_way_loss
from featkit.losses.scfeat_detection import detection_loss
from featkit.losses.scfeat_imitation import TeacherKeypoints, imitation_loss, score_loss
from featkit.losses.scfeat_warm_up import contrastive_loss, info_nce
from featkit.losses.two_views import LossContext
from featkit.models.scfeat import DenseMaps, SCFeatNetwork
from featkit.training.distributed import World
from featkit.training.scfeat_task import DenseTask, Description, Detection, PhotoData, PosedData, TeacherConfig, WarmUp
from featkit.training.scfeat_validation import (
    keypoint_picture,
    line_picture,
    off_line_share,
    strongest,
    unmatched_share,
    wrong_share,
)
from featkit.training.task import Score

# ----------------------------------------------------------------------------------------------------------------------
# SCFeat's first stage: backbone and bridge learn descriptors from camera poses (III-D (1)).


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
        result = self._epipolar_loss(maps, batch)
        if self._start is None:
            return result
        self._start.train(not self.config.freeze_norms)
        with torch.no_grad(), self.world.autocast():
            initial = self._start.describe(images)
        pull_loss = self._pull_term(maps, initial)
        return LossResult(result.loss + self.config.pull * pull_loss, {**result.statistics, "pull": pull_loss.detach()})

    def _pull_term(self, maps: DenseMaps, initial: DenseMaps) -> Float[Tensor, ""]:
        """Mean over pixels and over both maps of the squared distance of unit vectors: 2 - 2 cos."""
        pairs = ((maps.descriptors, initial.descriptors), (maps.normalised, initial.normalised))
        cosines = [F.cosine_similarity(now, then.float(), dim=1).mean((1, 2)) for now, then in pairs]
        return (2 - torch.cat(cosines) - torch.cat(cosines)).sum() / (4 * self.config.batch_size)

    def _epipolar_loss(self, maps: DenseMaps, batch: PosedBatch) -> LossResult:
        views = self.views(maps.normalised, batch.fundamentals01, batch)
        return description_loss(views, self.config.loss, self.context)

    @torch.no_grad()
    def held_out(self) -> float:
        """Share of nearest neighbours that are off their epipolar lines, over all validation pairs."""
        self.network.eval()
        off = []
        for batch in self.held_out_batches:
            maps = self.describe(self.images(torch.cat([batch.images0, batch.images1])))
            off.append(off_line_share(maps.normalised, batch))
        return float(np.mean(off))

    @torch.no_grad()
    def pictures(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The first validation pair with query points, their epipolar lines and matches."""
        self.network.eval()
        batch = self.held_out_batches[0]
        maps = self.describe(self.images(torch.cat([batch.images0, batch.images1])))
        views = self.views(maps.normalised, batch.fundamentals01, batch)
        matched = one_way_loss(views, self.config.loss, LossContext(torch.Generator().manual_seed(PICTURE_SEED)))
        return {
            "matches": line_picture(
                batch.images0[0].numpy(),
                batch.images1[0].numpy(),
                matched.points0[0].cpu().numpy(),
                matched.matches.positions[0].cpu().numpy(),
                matched.matches.lines[0].cpu().numpy(),
                matched.valid[0].cpu().numpy(),
            )
        }


def posed_sources(data: PosedData, config: Any) -> tuple[PosedSamples, PosedSamples]:
    """Training samples, and validation samples without augmentation."""
    training, held_out = split_pairs(data.pairs, config.held_out.share, config.seed)
    without_augmentation = config.augmentation.model_copy(
        update={
            "jitter": config.augmentation.jitter.model_copy(update={"probability": 0.0}),
            "photometric": PhotometricConfig(),
            "views": config.augmentation.views.model_copy(
                update={"rotation_deg": 0.0, "scale_max": 1.0, "perspective": 0.0}
            ),
        }
    )
    return PosedSamples(training, config.augmentation, config.cache_mb), PosedSamples(held_out, without_augmentation)


# ----------------------------------------------------------------------------------------------------------------------
# SCFeat's second stage: the detector learns where descriptors match, backbone and bridge frozen (III-D (2)).


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
        scores, maps = self._score_maps(batch)
        scores0, scores1 = scores.chunk(2)
        views = self.views(maps, batch.fundamentals01, batch)
        return detection_loss(scores0, scores1, views, self.config.loss, self.context)

    def _score_maps(self, batch: PosedBatch) -> tuple[Float[Tensor, "b2 1 h w"], Float[Tensor, "b2 d h4 w4"]]:
        """Scores of all first, then of all second images, with gradient, and maps without gradient."""
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
        return float(np.mean([unmatched_share(*self._score_maps(batch), batch) for batch in self.held_out_batches]))

    @torch.no_grad()
    def pictures(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Scores and strongest keypoints of the first validation pair's first image."""
        self.network.eval()
        batch = self.held_out_batches[0]
        scores = self._score_maps(batch)[0][:1]
        points = strongest(scores)[0].cpu().numpy()
        return {"keypoints": keypoint_picture(batch.images0[0].numpy(), scores[0, 0].cpu().numpy(), points)}


# ----------------------------------------------------------------------------------------------------------------------
# SCFeat's warm-up: backbone and bridge learn on two views of single photographs, related by known homographies.
#
# With a teacher they also imitate a published feature, and the detector learns to score what the teacher detects.


SPLIT_SEED = 5


class WarmUpTask(DenseTask[HomographyBatch]):
    """InfoNCE between the descriptors of points related by a homography."""

    Config = WarmUp
    _teacher: Teacher | None = None
    name = "warm-up"
    unit = "photographs"
    score = Score("held_out_wrong", "held-out points matched wrongly", 100.0, "%")

    def _sources(
        self, data: PhotoData
    ) -> tuple[SampleSource[Any, HomographyBatch], SampleSource[Any, HomographyBatch]]:
        if data.count < 2:
            raise BadInputError(f"{data.name}: {data.count} photograph; at least 2 are needed, one is held out")
        teacher, teacher_config = None, self.config.teacher
        if teacher_config is not None:
            teacher = self._teacher = Teacher(data.folders, data.teacher_files)
            if teacher.dimension != self.network.dimension:
                raise BadInputError(
                    f"the teacher's descriptors have {teacher.dimension} values and the network's"
                    f" {self.network.dimension}: set network.descriptor_channels, or take another teacher"
                )
        pairs = HomographyPairs(
            data.folders,
            self.config.augmentation,
            self.config.cache_mb,
            teacher,
            teacher_config.keypoints if teacher_config else 0,
        )
        order = np.random.default_rng([self.config.seed, SPLIT_SEED]).permutation(len(pairs))
        held_out_count = max(1, round(self.config.held_out.share * len(order)))
        return pairs.select(order[held_out_count:]), pairs.select(order[:held_out_count])

    def prepare(self, data: PhotoData, world: World) -> None:
        super().prepare(data, world)
        self._info_nce = torch.compile(info_nce) if self.config.compile else info_nce

    def close(self) -> None:
        """Stop prefetching and close the teacher's files."""
        super().close()
        if self._teacher is not None:
            self._teacher.close()

    def parameters(self) -> list[nn.Parameter]:
        """Backbone and bridge, and the detector if a teacher provides scores."""
        learned = self.network.description_parameters()
        if self.config.teacher is not None and self.config.teacher.score > 0:
            learned += self.network.detection_parameters()
        return learned

    def _loss(self, batch: HomographyBatch) -> LossResult:
        images = self.images(torch.cat([batch.images0, batch.images1]))
        maps = self.describe(images)
        results = [self._contrastive_term(self._maps_for_loss(maps), batch)] if self.config.contrastive else []
        if self.config.teacher is not None:
            results += self._imitation_losses(images, maps, batch, self.config.teacher)
        statistics = {name: value for result in results for name, value in result.statistics.items()}
        return LossResult(torch.stack([result.loss for result in results]).sum(), statistics)

    def _imitation_losses(
        self, images: Float[Tensor, "b2 3 h w"], maps: DenseMaps, batch: HomographyBatch, config: TeacherConfig
    ) -> list[LossResult]:
        """The imitation losses of both views."""
        assert batch.taught is not None
        lesson = TeacherKeypoints(
            *(torch.from_numpy(getattr(batch.taught, f.name)).to(self.device) for f in fields(TeacherKeypoints))
        )
        size = batch.images0.shape[2], batch.images0.shape[1]
        results = [imitation_loss(self._maps_for_loss(maps), lesson, size, config, self.world.total)]
        if config.score > 0:
            count = max(1, round(config.score_share * len(images)))
            scored_maps = DenseMaps(*(part[:count] for part in maps))
            with self.world.autocast():
                scores = self.network.detect(images[:count], scored_maps).float()
            valid = torch.cat([batch.valid0, batch.valid1])[:count, None].to(self.device)
            scored_lesson = TeacherKeypoints(*(getattr(lesson, f.name)[:count] for f in fields(TeacherKeypoints)))
            results.append(score_loss(scores, scored_lesson, valid, config.score, self.world.total))
        return results

    def _contrastive_term(self, compared: Float[Tensor, "b2 d h4 w4"], batch: HomographyBatch) -> LossResult:
        views = self.views(compared, batch.homographies01, batch)
        result = contrastive_loss(views, self.config.loss, self.context, self._info_nce)
        return LossResult(self.config.contrastive * result.loss, result.statistics)

    def _maps_for_loss(self, maps: DenseMaps) -> Float[Tensor, "b2 d h4 w4"]:
        """The map of every photograph used in the loss, before or after the bridge, the same for both views."""
        count = self.config.batch_size
        fused = torch.arange(count) < round(self.config.fused_share * count)
        fused_of_views = fused[self.world.part(count)].repeat(2).to(maps.normalised.device)
        return torch.where(fused_of_views[:, None, None, None], maps.descriptors, maps.normalised)

    @torch.no_grad()
    def held_out(self) -> float:
        """Share of the validation photographs' points whose nearest neighbour is wrong."""
        self.network.eval()
        wrong = []
        for batch in self.held_out_batches:
            maps = self.describe(self.images(torch.cat([batch.images0, batch.images1])))
            wrong.append(wrong_share(maps.normalised, batch))
        return float(np.mean(wrong))
