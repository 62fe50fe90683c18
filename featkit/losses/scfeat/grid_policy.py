"""SCFeat's keypoint policy: at most one keypoint in every cell of the score map, drawn from the scores.

In words: of the 64 pixels of a cell one is proposed, with the softmax of their scores; the proposal is accepted with
the logistic function of its own score. So a pixel of score s becomes a keypoint with probability

    P_kp(x_s) = exp(s) / sum_t exp(t) * 1 / (1 + exp(-s)),          s, t: scores of the pixels of the cell

Sun, Zhu, Ji: Shared Coupling-bridge for Weakly Supervised Local Feature Learning, III-D (2), after PoSFeat and DISK
(Tyszkiewicz et al., NeurIPS 2020, section 3.1); the side of 8 px is the authors' code. SCFeat's scores are positive, so
that more than half of the proposals are accepted; DISK's are not.
Shapes: scores (b, 1, h, w) at image resolution -> one proposal per cell, n = (h // 8) (w // 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from featkit.config import Config
from featkit.losses.distances import full_precision
from featkit.losses.scfeat.points import Draws, mask_at, uniform


class GridPolicyConfig(Config):
    cell_px: int = Field(8, ge=1)
    """Side of the cells with at most one keypoint each, g_k, in pixels (authors' code)."""


@dataclass(frozen=True)
class KeypointSample:
    """points: the proposals, in pixels. log_probability: log P_kp of each, differentiable; accepted: the keypoints."""

    points: Float[Tensor, "b n 2"]
    log_probability: Float[Tensor, "b n"]
    accepted: Bool[Tensor, "b n"]


def sample_keypoints(
    scores: Float[Tensor, "b 1 h w"],
    config: GridPolicyConfig,
    generator: Draws,
    valid: Bool[Tensor, "b 1 h w"] | None = None,
) -> KeypointSample:
    """One draw of the policy, cells row by row. valid: pixels that may become keypoints; None: all.

    Raises ValueError for a score map smaller than a cell.
    """
    logits, corners = _cells(full_precision(scores), config.cell_px)
    with torch.no_grad():
        heights = logits.softmax(2).cumsum(2)
        u = uniform((*logits.shape[:2], 2), generator, scores.device).to(logits.dtype)
        proposed = (heights <= u[..., :1] * heights[..., -1:]).sum(2).clamp(max=logits.shape[2] - 1)
        within = torch.stack([proposed % config.cell_px, proposed // config.cell_px], dim=2)
        points = (corners + within).to(logits.dtype)
    score = logits.gather(2, proposed[..., None])[..., 0]
    log_probability = logits.log_softmax(2).gather(2, proposed[..., None])[..., 0] + F.logsigmoid(score)
    kept = (u[..., 1] < score.detach().sigmoid()) | log_probability.isnan()  # a loss must show NaN
    return KeypointSample(points, log_probability, kept & mask_at(valid, points))


def _cells(scores: Float[Tensor, "b 1 h w"], cell_px: int) -> tuple[Float[Tensor, "b n pixels"], Int[Tensor, "n 2"]]:
    """Scores of every whole cell, its pixels row by row, and the pixel of its top-left corner."""
    rows, columns = scores.shape[2] // cell_px, scores.shape[3] // cell_px
    if rows < 1 or columns < 1:
        raise ValueError(f"a score map of {scores.shape[3]} x {scores.shape[2]} px has no cell of {cell_px} px")
    whole = scores[:, 0, : rows * cell_px, : columns * cell_px]
    cells = whole.unflatten(2, (columns, cell_px)).unflatten(1, (rows, cell_px)).transpose(2, 3)
    y, x = torch.meshgrid(
        torch.arange(rows, device=scores.device), torch.arange(columns, device=scores.device), indexing="ij"
    )
    return cells.flatten(3).flatten(1, 2), cell_px * torch.stack([x, y], dim=2).view(-1, 2)


def accepted_first(sample: KeypointSample) -> KeypointSample:
    """The same sample without the columns that hold no keypoint in any image: keypoints first, in their order."""
    order = sample.accepted.int().argsort(dim=1, descending=True, stable=True)
    order = order[:, : max(1, int(sample.accepted.sum(1).max()))]
    return KeypointSample(
        sample.points.gather(1, order[..., None].expand(-1, -1, 2)),
        sample.log_probability.gather(1, order),
        sample.accepted.gather(1, order),
    )
