"""The two most similar rows of the other side, for every row of both sides, exactly and in one pass.

The product of the descriptors is computed in tiles of fixed height that stay in the cache. In each tile a fast maximum over
groups of columns (rows) finds the group of the best entry; only that group is searched for its position and for
the runner-up. Equal to `topk(2)` on the whole product, with the lowest index first among equals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

GROUP = 64  # entries per group: the position is searched in 1/64 of the product
TILE_ROWS = 1024  # rows of the product at a time: 1024 x 12k floats are 50 MB


@dataclass(frozen=True)
class TopTwo:
    """Per row: position and similarity of the most similar one, similarity of the second (-inf if there is none)."""

    index: Int[Tensor, " n"]
    best: Float[Tensor, " n"]
    second: Float[Tensor, " n"]


def top_two(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[TopTwo, TopTwo]:
    """Best two of `b` for every row of `a`, and of `a` for every row of `b`, by dot product. n, m > 0."""
    n, m = len(a), len(b)
    columns = -(-m // GROUP) * GROUP
    tile = a.new_empty(TILE_ROWS, columns)
    rows: list[TopTwo] = []
    down = TopTwo(
        torch.zeros(m, dtype=torch.long, device=a.device), a.new_full((m,), -torch.inf), a.new_full((m,), -torch.inf)
    )
    transposed = b.T.contiguous()
    for start in range(0, n, TILE_ROWS):
        height = min(TILE_ROWS, n - start)
        tile.fill_(-torch.inf) if height < TILE_ROWS else tile[:, m:].fill_(-torch.inf)
        torch.mm(a[start : start + height], transposed, out=tile[:height, :m])
        rows.append(_best_of_groups(tile[:height].view(height, -1, GROUP)))
        # (groups, members, columns) -> columns first: a column's groups are runs of rows
        height_up = -(-height // GROUP) * GROUP
        by_column = tile[:height_up].view(-1, GROUP, columns)[:, :, :m].permute(2, 0, 1)
        down = _merge(down, _best_of_groups(by_column), start)
    across = TopTwo(
        torch.cat([r.index for r in rows]), torch.cat([r.best for r in rows]), torch.cat([r.second for r in rows])
    )
    return across, down


def _best_of_groups(groups: Float[Tensor, "n g k"]) -> TopTwo:
    """Best two of every row of (n, g * k) entries that come as g groups of k."""
    peaks = groups.amax(2)
    best, group = peaks.max(1)
    members = groups[torch.arange(len(groups), device=groups.device), group]
    place = members.max(1).indices
    others = peaks.scatter(1, group[:, None], -torch.inf).amax(1)
    beside = members.scatter(1, place[:, None], -torch.inf).amax(1)
    return TopTwo(group * groups.shape[2] + place, best, torch.maximum(others, beside))


def _merge(old: TopTwo, new: TopTwo, offset: int) -> TopTwo:
    """Best two of both; `new` counts its rows from `offset`. The older one stays among equals."""
    better = new.best > old.best
    return TopTwo(
        torch.where(better, new.index + offset, old.index),
        torch.where(better, new.best, old.best),
        torch.maximum(torch.minimum(old.best, new.best), torch.where(better, new.second, old.second)),
    )
