"""The two most similar rows of the other side, for every row of both sides, exactly and in one pass.

The product of the descriptors is computed in tiles of fixed height that stay in the cache. In each tile a fast
maximum over groups of entries finds the group of the best one; only that group is searched for its position and
for the runner-up. Equal to `topk(2)` on the whole product; of equal bests, usual between binary descriptors, the
one with the lowest index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MEMBERS = 32  # entries per group: the position is searched among 1/32 of the product
TILE_ROWS = 1024  # rows of the product at a time: 1024 x 12k floats are 50 MB; a multiple of MEMBERS


@dataclass(frozen=True)
class TopTwo:
    """Per row: position and similarity of the most similar one, similarity of the second (-inf if there is none)."""

    index: Int[Tensor, " n"]
    best: Float[Tensor, " n"]
    second: Float[Tensor, " n"]


def top_two(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[TopTwo, TopTwo]:
    """Best two of `b` for every row of `a`, and of `a` for every row of `b`, by dot product. n, m > 0."""
    n, m = len(a), len(b)
    tile = a.new_empty(TILE_ROWS, -(-m // MEMBERS) * MEMBERS)
    rows: list[TopTwo] = []
    down = TopTwo(
        torch.zeros(m, dtype=torch.long, device=a.device), a.new_full((m,), -torch.inf), a.new_full((m,), -torch.inf)
    )
    transposed = b.T.contiguous()
    tile[:, m:] = -torch.inf
    for start in range(0, n, TILE_ROWS):
        height = min(TILE_ROWS, n - start)
        tile[height:] = -torch.inf
        torch.mm(a[start : start + height], transposed, out=tile[:height, :m])
        rows.append(_best_in_rows(tile[:height]))
        down = _merge(down, _best_in_columns(tile, m), start)
    across = TopTwo(
        torch.cat([r.index for r in rows]), torch.cat([r.best for r in rows]), torch.cat([r.second for r in rows])
    )
    return across, down


def _best_in_rows(tile: Float[Tensor, "r c"]) -> TopTwo:
    """Best two of every row. A group is every (c / MEMBERS)-th entry, so that its maximum runs along memory."""
    groups = tile.view(len(tile), MEMBERS, -1)
    stride = groups.shape[2]
    peaks = groups.amax(1)
    best, group = peaks.max(1)
    members = groups.gather(2, group[:, None, None].expand(-1, MEMBERS, 1))[:, :, 0]
    found = _finish(peaks, best, group, members, lambda place: place * stride + group)
    tied = torch.nonzero(found.second == found.best)[:, 0]
    if len(tied):  # the lowest group need not hold the lowest index; argmax gives the first of equals
        found.index[tied] = (tile[tied] == best[tied, None]).to(torch.uint8).argmax(1)
    return found


def _best_in_columns(tile: Float[Tensor, "r c"], m: int) -> TopTwo:
    """Best two of each of the first m columns. A group is a run of MEMBERS rows."""
    groups = tile.view(-1, MEMBERS, tile.shape[1])[:, :, :m]
    peaks = groups.amax(1)
    best, group = peaks.max(0)
    members = groups.gather(0, group[None, None, :].expand(1, MEMBERS, -1))[0].T
    return _finish(peaks.T, best, group, members, lambda place: group * MEMBERS + place)


def _finish(
    peaks: Float[Tensor, "n g"],
    best: Float[Tensor, " n"],
    group: Int[Tensor, " n"],
    members: Float[Tensor, "n k"],
    position: Callable[[Tensor], Tensor],
) -> TopTwo:
    """Search the members of the best group for the best entry; the second is among them or heads another group."""
    place = members.max(1).indices
    others = peaks.scatter(1, group[:, None], -torch.inf).amax(1)
    beside = members.scatter(1, place[:, None], -torch.inf).amax(1)
    return TopTwo(position(place), best, torch.maximum(others, beside))


def _merge(old: TopTwo, new: TopTwo, offset: int) -> TopTwo:
    """Best two of both; `new` counts its rows from `offset`. The older one stays among equals."""
    better = new.best > old.best
    return TopTwo(
        torch.where(better, new.index + offset, old.index),
        torch.where(better, new.best, old.best),
        torch.maximum(torch.minimum(old.best, new.best), torch.where(better, new.second, old.second)),
    )
