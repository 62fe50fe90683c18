"""The k-th true entry of a large mask, and how many are true before a place: without listing the millions there are.

The mask is cut into blocks. Once it is read through, to count what is true in each of them; then a number is looked for
among the sums of the counts, and only the block that it leads to is looked into.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

BLOCK = 256
"""Entries that are counted together. 8 bytes are added as one number, of which none may overflow: below 8 * 256."""
WORDS = BLOCK // 8


@dataclass(frozen=True)
class RankedMask:
    """words: whole blocks, 8 bytes to a number. tail: what is left, filled up. before: how many are true before each.

    A mask shorter than a block has its tail as its words too, so that there are some to read.
    """

    words: Int[Tensor, "k words"]
    tail: Int[Tensor, " words"]
    before: Int[Tensor, " blocks+1"]
    whole: int

    @staticmethod
    def of(mask: Bool[Tensor, " n"]) -> RankedMask:
        """Of a mask of one dimension, contiguous."""
        whole = len(mask) // BLOCK
        aligned = mask if mask.storage_offset() % 8 == 0 else mask.clone()
        rest = aligned[whole * BLOCK :]
        tail = F.pad(rest, (0, BLOCK - len(rest))).view(torch.int64)
        words = aligned[: whole * BLOCK].view(torch.int64).view(-1, WORDS)
        lanes = torch.cat([words.sum(1), tail.sum()[None]]).view(torch.uint8).view(-1, 8)
        before = F.pad(lanes.sum(1).cumsum(0), (1, 0))
        return RankedMask(words if whole else tail[None], tail, before, whole)

    def rank_at(self, places: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
        """How many are true before each place, from 0 to the mask's length."""
        block = places // BLOCK
        counted = F.pad(self._counted(block), (1, 0))
        return self.before[block] + counted.gather(-1, (places % BLOCK)[..., None])[..., 0]

    def place_of(self, ranks: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
        """Where the true entry is before which there are so many others; anywhere at the end when there is none."""
        block = (torch.searchsorted(self.before, ranks, right=True) - 1).clamp(max=self.whole)
        wanted = (ranks - self.before[block])[..., None]
        return BLOCK * block + torch.searchsorted(self._counted(block), wanted, right=True)[..., 0]

    def _counted(self, block: Int[Tensor, "*s"]) -> Int[Tensor, "*s size"]:
        """How many are true in a block up to each of its places, that one included."""
        words = self.words[block.clamp(max=len(self.words) - 1)]
        words = torch.where((block < self.whole)[..., None], words, self.tail)
        return words.view(torch.uint8).cumsum(-1)
