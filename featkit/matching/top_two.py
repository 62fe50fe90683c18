"""The two most similar rows of the other side, for every row of both sides, exactly and in one pass.

The product of the descriptors is computed in tiles of fixed height. In each tile a fast maximum over groups of entries
finds the group of the best one; only that group is searched for its position and for the runner-up. Entries of a column
lie far apart in memory, so columns have small groups in large ones, and of later tiles only those columns are searched
whose best two change. Equal to `topk(2)` on the whole product; of equal bests, usual between binary descriptors, the
one with the lowest index.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from featkit.matching.products import product_of

MEMBERS = 32  # entries per group of a row: the position is searched among 1/32 of it
FEW, GROUPS = 8, 4  # of a column: entries per small group, small groups per large one; tiles have a multiple of both


@dataclass(frozen=True)
class TopTwo:
    """Per row: position and similarity of the most similar one, similarity of the second (-inf if there is none)."""

    index: Int[Tensor, " n"]
    best: Shaped[Tensor, " n"]
    second: Shaped[Tensor, " n"]


def top_two(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[TopTwo, TopTwo]:
    """Best two of `b` for every row of `a`, and of `a` for every row of `b`, by dot product. n, m > 0."""
    n, m = len(a), len(b)
    columns = -(-m // MEMBERS) * MEMBERS
    product = product_of(a, b, columns)
    tile = torch.empty(product.tile_rows, columns, dtype=product.dtype, device=a.device)
    rows: list[TopTwo] = []
    none = tile.new_full((m,), product.nothing)
    down = TopTwo(torch.zeros(m, dtype=torch.long, device=a.device), none, none.clone())
    for start in range(0, n, product.tile_rows):
        part = tile[: min(product.tile_rows, n - start)]
        tile[len(part) :] = product.nothing
        product.compute(start, part)
        rows.append(_best_in_rows(part, product.nothing))
        _update_columns(down, tile, m, start, product.nothing)
    index, best, second = (torch.cat([getattr(row, name) for row in rows]) for name in ("index", "best", "second"))
    across = TopTwo(index, product.similarities(best), product.similarities(second))
    return across, TopTwo(down.index, product.similarities(down.best), product.similarities(down.second))


def _best_in_rows(tile: Shaped[Tensor, "r c"], nothing: float) -> TopTwo:
    """Best two of every row. A group is every (c / MEMBERS)-th entry, so that its maximum runs along memory."""
    groups = tile.view(len(tile), MEMBERS, -1)
    stride = groups.shape[2]
    peaks = groups.amax(1)
    best, group = peaks.max(1)
    members = groups.gather(2, group[:, None, None].expand(-1, MEMBERS, 1))[:, :, 0]
    place = members.max(1).indices
    second = torch.maximum(_without(peaks, group, 1, nothing), _without(members, place, 1, nothing))
    index = place * stride + group
    tied = torch.nonzero(second == best)[:, 0]
    if len(tied):  # the lowest group need not hold the lowest index; argmax gives the first of equals
        index[tied] = (tile[tied] == best[tied, None]).to(torch.uint8).argmax(1)
    return TopTwo(index, best, second)


def _update_columns(old: TopTwo, tile: Shaped[Tensor, "r c"], m: int, start: int, nothing: float) -> None:
    """Take a tile, whose rows count from `start`, into the best two of each of the first m columns, in place."""
    entries = tile.view(-1, FEW, tile.shape[1])
    small = entries.amax(1).view(-1, GROUPS, tile.shape[1])
    large = small[:, :, :m].amax(1)
    best, group = large.max(0)
    columns = torch.nonzero(best > old.second)[:, 0]
    best, group, large = best[columns], group[columns], large[:, columns]
    inside = small[group, :, columns]
    part = inside.max(1).indices
    members = entries[group * GROUPS + part, :, columns]
    place = members.max(1).indices
    beside = torch.maximum(_without(inside, part, 1, nothing), _without(members, place, 1, nothing))
    second = torch.maximum(_without(large, group, 0, nothing), beside)
    index = (group * GROUPS + part) * FEW + place + start
    best_before, second_before = old.best[columns], old.second[columns]
    better = best > best_before  # the older one stays among equals
    old.index[columns] = torch.where(better, index, old.index[columns])
    old.best[columns] = torch.where(better, best, best_before)
    old.second[columns] = torch.where(better, torch.maximum(second, best_before), torch.maximum(best, second_before))


def _without(values: Shaped[Tensor, "*s"], index: Int[Tensor, " n"], dim: int, nothing: float) -> Shaped[Tensor, " n"]:
    """The largest along a dimension but for the entry at `index`, which is lost; `nothing` if there is no other."""
    return values.scatter_(dim, index.unsqueeze(dim), nothing).amax(dim)
