"""Distillation from a teacher: the student imitates the descriptors and scores of the teacher's keypoints.

The teacher (any published feature with the student's descriptor length) processed each photograph once, upright. The
student sees it warped by a homography, with the keypoints moved and their descriptors unchanged, so that it learns the
descriptors from the teacher and invariance to rotation, scale and lighting from the augmentation.

    L = w_d mean_k (1 - d_k . t_k) + w_s mean_k KL( softmax_l(t_k . t_l / tau) || softmax_l(d_k . d_l / tau) )
        + w_c CE(q, S / sum S)

    t_k, d_k  unit descriptors of the teacher's keypoint k: the teacher's, and the student's map sampled at it
    l         the other keypoints of the same image: relative similarities, which are comparable between different
    descriptor spaces (relational knowledge distillation: Park et al., CVPR 2019)
    q         the teacher's scores at its keypoints, each spread over the nearest pixels, with sum 1 over the image
    S         the student's score map over the valid pixels; the last term does not depend on its scale

Not part of the SCFeat paper. Shapes: maps (b, c, h, w), scores (b, 1, H, W), Lesson below -> a scalar.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from featkit.core.config import Config, Factor, FactorOrZero
from featkit.geometry.batched import sample_map
from featkit.losses.base import LossResult, Total, full_precision, local_total
from featkit.losses.two_views import descriptors_at


class ImitationConfig(Config):
    descriptor: FactorOrZero = 1.0
    """Weight w_d of the distance between descriptors."""
    similarity: FactorOrZero = 0.5
    """Weight w_s of the relative similarities between keypoints."""
    score: FactorOrZero = 0.5
    """Weight w_c of the scores; 0: the detector is trained only in its own stage."""
    temperature: Factor = 0.05
    """Temperature tau of the similarities."""


@dataclass(frozen=True)
class TeacherKeypoints:
    """The teacher's keypoints in pixels of the images; padding rows are not `shown`."""

    points: Float[Tensor, "b n 2"]
    descriptors: Float[Tensor, "b n c"]
    scores: Float[Tensor, "b n"]
    shown: Bool[Tensor, "b n"]


def imitation_loss(
    maps: Float[Tensor, "b c h w"],
    lesson: TeacherKeypoints,
    image_size: tuple[int, int],
    config: ImitationConfig,
    total: Total = local_total,
) -> LossResult:
    """The first two terms of L; 0 without any keypoint. total: as in the other losses."""
    with torch.autocast(maps.device.type, enabled=False):
        found = descriptors_at(maps, lesson.points, image_size)
        given = F.normalize(full_precision(lesson.descriptors), dim=2)
        cosine = (found * given).sum(2)
        number = total(lesson.shown.sum().float()).clamp(min=1)
        apart = torch.where(lesson.shown, 1 - cosine, 0.0).sum() / number
        relation = _relation_divergence(found, given, lesson.shown, config.temperature).sum() / number
    loss = config.descriptor * apart + config.similarity * relation
    return LossResult(loss, {"teacher_distance": apart.detach(), "teacher_relation": relation.detach()})


def _relation_divergence(
    found: Float[Tensor, "b n c"], given: Float[Tensor, "b n c"], shown: Bool[Tensor, "b n"], temperature: float
) -> Float[Tensor, "b n"]:
    """The divergence of each shown keypoint's similarities from the teacher's; 0 for the others."""
    itself = torch.eye(found.shape[1], dtype=torch.bool, device=found.device)
    left_out = itself | ~shown[:, None]
    least = torch.finfo(found.dtype).min / 2  # finite: a row without others is 0 - 0, not NaN
    target, own = (
        (unit @ unit.mT / temperature).masked_fill(left_out, least).log_softmax(2) for unit in (given, found)
    )
    divergence = (target.exp() * (target - own)).masked_fill(left_out, 0.0).sum(2)
    return torch.where(shown, divergence, 0.0)


def score_loss(
    scores: Float[Tensor, "b 1 h w"],
    lesson: TeacherKeypoints,
    valid: Bool[Tensor, "b 1 h w"],
    weight: float,
    total: Total = local_total,
) -> LossResult:
    """The last term of L times its weight: the mean over the images that show a teacher keypoint."""
    with torch.autocast(scores.device.type, enabled=False):
        given = torch.where(lesson.shown, full_precision(lesson.scores), 0.0)
        counted = given.sum(1) > 0
        share = given / given.sum(1, keepdim=True).clamp(min=torch.finfo(given.dtype).tiny)
        heights = torch.where(valid, full_precision(scores), 0.0)
        everything = heights.flatten(1).sum(1).clamp(min=torch.finfo(heights.dtype).tiny)
        size = scores.shape[3], scores.shape[2]
        at = sample_map(heights, lesson.points, size)[..., 0]
        log = at.clamp(min=1e-12).log() - everything.log()[:, None]
        images = total(counted.sum().float()).clamp(min=1)
        entropy = -torch.where(counted[:, None], share * log, 0.0).sum() / images
    return LossResult(weight * entropy, {"teacher_score_entropy": entropy.detach()})
