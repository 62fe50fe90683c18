"""LightGlue: a transformer that matches the features of two images, including their positions.

Layers of self-attention (with rotary encodings of the relative positions) and cross-attention. After each layer a pair
may stop if most of its points are confident (`depth_confidence`), and points that are confidently unmatchable are
pruned (`width_confidence`). Finally, P(i, j) = z_i z_j softmax_j(s_ij) softmax_i(s_ij), where s is the similarity of
the points' states and z their matchability; i and j match if P(i, j) is the largest of its row and column, and above
`filter_threshold`.

The layers are kornia's; the loop over them is our own for three reasons: each pair of a batch stops and is pruned as
if it were alone, and the memory of attention and of the tiled assignment is proportional to the number of keypoints,
not to its square. Positions are in the image that the extractor saw, as in the training of the networks.
Source: Lindenberger, Sarlin, Pollefeys 2023. Weights, licences: weights/catalogue.yaml.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from featkit.core.config import Config, Runtime
from featkit.core.errors import BadInputError, UsageError
from featkit.core.runtime import torch_device
from featkit.core.types import Features, Matches
from featkit.features.base import is_packed
from featkit.features.published_networks import LIGHTGLUE_NETWORKS, load_network
from featkit.weights.catalogue import catalogue, load_published, weights_sha256

TILE = 1 << 24
"""Entries of the assignment matrix computed at a time: 64 MB."""


class LightGlueConfig(Config):
    """LightGlue's weights, early stopping and thresholds."""

    weights: str = ""
    """Weights file, or a name in the catalogue; empty: the weights trained for the features."""
    depth_confidence: float | None = Field(default=None, ge=-1, le=1)
    """Fraction of confident points at which a pair stops early; -1: never. None: the value of the weights (LightGlue
    0.95; XFeat, HardNet -1)."""
    width_confidence: float | None = Field(default=None, ge=-1, le=1)
    """Confidence at which a point counts as unmatchable and is pruned; -1: no pruning. None: the value of the weights
    (LightGlue 0.99, XFeat 0.95, HardNet -1)."""
    filter_threshold: float = Field(default=0.1, ge=0, lt=1)
    """Smallest score of a match (authors: 0.1)."""
    max_keypoints: int | None = Field(default=None, ge=1, le=10**9)
    """Maximum keypoints per image, chosen by score; None: all. Time is quadratic in this number."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Precision of the layers; fp16 needs a GPU."""
    batch_size: Runtime[int] = Field(default=16, ge=1, le=10**9)
    """Pairs per batch on a GPU; changes results by rounding only."""


class LightGlueMatcher:
    """LightGlue with the weights trained for the features. The score of a match is its probability."""

    Config: ClassVar[type[Config]] = LightGlueConfig

    def __init__(self, config: LightGlueConfig, device: str = "auto"):
        self.config = config
        self.device = torch_device(device)
        if config.precision == "fp16" and self.device.type == "cpu":
            raise UsageError("lightglue: precision fp16 is for a GPU; use fp32 with --device cpu")
        self._loaded: dict[str, Glue] = {}

    def weights_for(self, extractor: str) -> str:
        """See `LearnedMatcher.weights_for`. Builds the network, so that unsuitable weights are refused at once."""
        name = self._network_for_extractor(extractor)
        self._load_glue(name)
        return weights_sha256(name, self.config.weights)

    def match(self, batch: list[tuple[Features, Features]]) -> list[Matches]:
        """Matches of each pair; see `Matcher.match`. Raises BadInputError also for features without image size."""
        if self.device.type == "cpu":
            return [matches for pair in batch for matches in self.match_together([pair])]
        size = self.config.batch_size
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        return [matches for part in parts for matches in self.match_together(part)]

    def match_together(self, batch: list[tuple[Features, Features]]) -> list[Matches]:
        """Matches of pairs that are run through the network as one batch, on any device."""
        networks = [self._network_of_pair(a, b) for a, b in batch]
        usable = [(self._usable_keypoints(a), self._usable_keypoints(b)) for a, b in batch]
        results = [Matches(np.full(len(a), -1, np.int32), np.zeros(len(a), np.float32)) for a, _ in batch]
        for network in dict.fromkeys(networks):
            glue = self._load_glue(network)
            chosen = [i for i, name in enumerate(networks) if name == network and all(map(len, usable[i]))]
            pairs = [
                (self._network_input(a, index0, glue), self._network_input(b, index1, glue))
                for (a, b), (index0, index1) in ((batch[i], usable[i]) for i in chosen)
            ]
            with torch.inference_mode(), self._autocast():
                matches = glue.match(pairs, self.config.filter_threshold)
            for i, (rows, columns, scores) in zip(chosen, matches, strict=True):
                index0 = usable[i][0][rows]
                results[i].matches0[index0] = usable[i][1][columns]
                results[i].scores0[index0] = scores
        return results

    def _network_of_pair(self, a: Features, b: Features) -> str:
        """The network for a pair. Raises BadInputError for features of different kinds."""
        if a.descriptors.shape[1] != b.descriptors.shape[1]:
            lengths = f"{a.descriptors.shape[1]} and {b.descriptors.shape[1]}"
            raise BadInputError(f"descriptors of {lengths} numbers cannot be matched")
        if a.extractor != b.extractor:
            raise BadInputError(
                f"features of {a.extractor or 'unknown'} and {b.extractor or 'unknown'} cannot be matched"
            )
        return self._network_for_extractor(a.extractor)

    def _network_for_extractor(self, extractor: str) -> str:
        extractors_of = {name: catalogue()[name].matches for name in LIGHTGLUE_NETWORKS}
        if self.config.weights in extractors_of:
            return self.config.weights
        for name, extractors in extractors_of.items():
            if extractor in extractors:
                return name
        supported = ", ".join(sorted(extractor for extractors in extractors_of.values() for extractor in extractors))
        if not extractor:
            names = ", ".join(extractors_of)
            raise UsageError(
                f"the extractor of these features is unknown; lightglue supports {supported}: extract them with"
                f" featkit, or name the matching weights: --set weights=NAME ({names})"
            )
        raise UsageError(
            f"lightglue has no weights for features of {extractor}, only for {supported}: use --features with one of"
            " these, or --matcher mutual"
        )

    def _load_glue(self, name: str) -> Glue:
        if name not in self._loaded:
            network = load_network(name, load_published(name, self.config.weights)).to(self.device)
            self._loaded[name] = Glue(name, network, self.config.depth_confidence, self.config.width_confidence)
        return self._loaded[name]

    def _usable_keypoints(self, features: Features) -> Int[np.ndarray, " m"]:
        """Indices of the keypoints to match: finite ones, the best `max_keypoints`."""
        if is_packed(features.descriptors):
            raise BadInputError("lightglue does not match binary descriptors (packed bits)")
        sums = features.descriptors.sum(axis=1, dtype=np.float32) + features.keypoints.sum(axis=1)
        index = np.flatnonzero(np.isfinite(sums))
        most = self.config.max_keypoints
        if most is not None and len(index) > most:
            best = np.argsort(-features.scores[index], kind="stable")[:most]
            index = index[np.sort(best)]
        return index

    def _network_input(self, features: Features, index: Int[np.ndarray, " m"], glue: Glue) -> Points:
        """The keypoints at `index` as network input, on its device."""
        seen = features.select(index).as_seen()
        if seen.descriptors.shape[1] != glue.input_dim:
            length = seen.descriptors.shape[1]
            raise BadInputError(f"descriptors of {length} numbers; {glue.name} takes {glue.input_dim}")
        if min(seen.image_size) <= 0:
            raise BadInputError("the size of an image is unknown, but lightglue needs it")
        size = torch.tensor(seen.image_size, dtype=torch.float32)
        position = (torch.tensor(seen.keypoints, dtype=torch.float32) - size / 2) / (size.max() / 2)
        if glue.takes_scales:
            if seen.scales is None or seen.oris is None:
                raise BadInputError(f"features without scales and orientations, which {glue.name} needs")
            shape = np.stack([seen.scales, seen.oris], axis=1)  # scales of SIFT: sigma
            position = torch.cat([position, torch.tensor(shape, dtype=torch.float32)], dim=1)
        descriptors = torch.tensor(np.asarray(seen.descriptors, np.float32))
        return Points(position.to(self.device), descriptors.to(self.device))

    def _autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.float16, enabled=self.config.precision == "fp16")


# ----------------------------------------------------------------------------------------------------------------------
# The network on a batch of pairs of different lengths. Shorter ones are padded, and padding is masked in attention, so
# that the states of the points do not depend on it.


@dataclass(frozen=True)
class Points:
    """Network input of one image. position: x, y from the centre over half the longer side; scale, angle."""

    position: Float[Tensor, "n p"]
    descriptors: Float[Tensor, "n d"]


@dataclass(frozen=True)
class Side:
    """States of one image of every pair. keys: which rows are points; None: all. index: keypoint indices."""

    states: Float[Tensor, "b n d"]
    encoding: Float[Tensor, "2 b 1 n h"]
    index: Int[Tensor, "b n"]
    keys: Bool[Tensor, "b n"] | None

    def points(self) -> Bool[Tensor, "b n"]:
        """Which rows are points, not padding."""
        return torch.ones_like(self.index, dtype=torch.bool) if self.keys is None else self.keys

    def pairs(self, rows: Int[Tensor, " a"]) -> Side:
        """Only the pairs in `rows`."""
        keys = None if self.keys is None else self.keys[rows]
        return Side(self.states[rows], self.encoding[:, rows], self.index[rows], keys)

    def kept(self, keep: Bool[Tensor, "b n"]) -> Side:
        """Only the points in `keep`, in their order."""
        counts = keep.sum(1)
        largest, smallest = int(counts.max()), int(counts.min())
        if smallest == keep.shape[1]:
            return self
        place = torch.argsort(keep.to(torch.uint8), dim=1, descending=True, stable=True)[:, :largest]
        states = self.states.gather(1, place[..., None].expand(-1, -1, self.states.shape[2]))
        wide = place[None, :, None, :, None].expand(2, -1, 1, -1, self.encoding.shape[4])
        keys = None if smallest == largest else torch.arange(largest, device=keep.device) < counts[:, None]
        return Side(states, self.encoding.gather(3, wide), self.index.gather(1, place), keys)


PairMatches = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Matches of a pair: keypoint indices in image 0 and in image 1, and scores, sorted by the first."""


class Glue:
    """One network with its weights."""

    def __init__(self, name: str, network: Any, depth: float | None, width: float | None):
        self.name, self._network = name, network
        settings = network.conf
        self.input_dim, self.takes_scales = int(settings.input_dim), bool(settings.add_scale_ori)
        self._depth = settings.depth_confidence if depth is None else depth
        self._width = settings.width_confidence if width is None else width
        self._confidence_thresholds = [float(value) for value in network.confidence_thresholds]

    def match(self, pairs: Sequence[tuple[Points, Points]], threshold: float) -> list[PairMatches]:
        """Matches of each pair; every image must have at least one point."""
        if not pairs:
            return []
        matches: list[PairMatches | None] = [None] * len(pairs)
        lengths = torch.tensor(
            [[len(a.position), len(b.position)] for a, b in pairs], device=pairs[0][0].position.device
        )
        sides = self._batch_side([a for a, _ in pairs]), self._batch_side([b for _, b in pairs])
        number, total = torch.arange(len(pairs)), lengths.sum(1)
        last = len(self._confidence_thresholds) - 1
        for layer in range(last + 1):
            sides = self._run_layer(layer, *sides)
            tokens = self._point_confidences(layer, *sides) if self._depth > 0 and layer < last else None
            done = (
                torch.ones_like(total, dtype=torch.bool)
                if layer == last
                else self._pairs_that_stop(layer, sides, tokens, total)
            )
            for row in torch.nonzero(done)[:, 0].tolist():
                matches[int(number[row])] = self._assign(layer, sides[0], sides[1], row, threshold)
            rows = torch.nonzero(~done)[:, 0]
            if len(rows) == 0:
                break
            if len(rows) < len(done):
                number, total = number[rows.cpu()], total[rows]
                sides = sides[0].pairs(rows), sides[1].pairs(rows)
                tokens = None if tokens is None else (tokens[0][rows], tokens[1][rows])
            if self._width > 0:
                sides = self._prune_points(layer, sides[0], tokens, 0), self._prune_points(layer, sides[1], tokens, 1)
        assert all(pair_matches is not None for pair_matches in matches)
        return [pair_matches for pair_matches in matches if pair_matches is not None]

    def _batch_side(self, images: list[Points]) -> Side:
        counts = torch.tensor([len(image.position) for image in images])
        positions = pad_sequence([image.position for image in images], batch_first=True)
        states = pad_sequence([image.descriptors for image in images], batch_first=True)
        b, n = states.shape[:2]
        index = torch.arange(n, device=states.device).expand(b, -1)
        keys = None if int(counts.min()) == n else index < counts.to(states.device)[:, None]
        return Side(self._network.input_proj(states), self._network.posenc(positions), index, keys)

    def _run_layer(self, layer: int, a: Side, b: Side) -> tuple[Side, Side]:
        block = self._network.transformers[layer]
        keys0, keys1 = _attention_mask(a.keys), _attention_mask(b.keys)
        states0 = block.self_attn(a.states, a.encoding, keys0)
        states1 = block.self_attn(b.states, b.encoding, keys1)
        states0, states1 = _cross_attention(block.cross_attn, states0, states1, keys0, keys1)
        return Side(states0, a.encoding, a.index, a.keys), Side(states1, b.encoding, b.index, b.keys)

    def _point_confidences(self, layer: int, a: Side, b: Side) -> tuple[Tensor, Tensor]:
        """Confidence of each point."""
        with torch.autocast(a.states.device.type, enabled=False):
            return self._network.token_confidence[layer](a.states.float(), b.states.float())

    def _pairs_that_stop(
        self, layer: int, sides: tuple[Side, Side], tokens: tuple[Tensor, Tensor] | None, total: Int[Tensor, " b"]
    ) -> Bool[Tensor, " b"]:
        """Which pairs stop here: enough of their initial points are confident, or an image has no points left."""
        empty = ~(sides[0].points().any(1) & sides[1].points().any(1))
        if tokens is None:
            return empty
        unsure = sum(
            ((token < self._confidence_thresholds[layer]) & side.points()).sum(1)
            for side, token in zip(sides, tokens, strict=True)
        )
        return empty | (1.0 - unsure / total > self._depth)

    def _prune_points(self, layer: int, side: Side, tokens: tuple[Tensor, Tensor] | None, which: int) -> Side:
        """Remove the points that are confidently unmatchable. Points that are not confident stay."""
        with torch.autocast(side.states.device.type, enabled=False):
            keep = self._network.log_assignment[layer].get_matchability(side.states.float()) > 1 - self._width
        if tokens is not None:
            keep |= tokens[which] <= self._confidence_thresholds[layer]
        return side.kept(keep & side.points())

    def _assign(self, layer: int, a: Side, b: Side, row: int, threshold: float) -> PairMatches:
        points0, points1 = a.points()[row], b.points()[row]
        head = self._network.log_assignment[layer]
        with torch.autocast(a.states.device.type, enabled=False):
            i, j, scores = assigned(head, a.states[row][points0].float(), b.states[row][points1].float(), threshold)
        index0, index1 = a.index[row][points0][i], b.index[row][points1][j]
        order = index0.argsort()
        return index0[order].cpu().numpy(), index1[order].cpu().numpy(), scores[order].float().cpu().numpy()


def _attention_mask(keys: Bool[Tensor, "b n"] | None) -> Bool[Tensor, "b 1 1 n"] | None:
    return None if keys is None else keys[:, None, None, :]


def _cross_attention(
    block: nn.Module,
    states0: Float[Tensor, "b n d"],
    states1: Float[Tensor, "b m d"],
    keys0: Bool[Tensor, "b 1 1 n"] | None,
    keys1: Bool[Tensor, "b 1 1 m"] | None,
) -> tuple[Tensor, Tensor]:
    """kornia's cross-attention, without materializing the similarity matrix."""
    part: Any = block

    def heads(values: Tensor) -> Tensor:
        return values.unflatten(-1, (part.heads, -1)).transpose(1, 2).contiguous()

    def with_message(states: Tensor, message: Tensor) -> Tensor:
        message = part.to_out(message.transpose(1, 2).flatten(start_dim=-2))
        return states + part.ffn(torch.cat([states, message], -1))

    query0, query1 = heads(part.to_qk(states0)), heads(part.to_qk(states1))
    value0, value1 = heads(part.to_v(states0)), heads(part.to_v(states1))
    message0 = F.scaled_dot_product_attention(query0, query1, value1, attn_mask=keys1)
    message1 = F.scaled_dot_product_attention(query1, query0, value0, attn_mask=keys0)
    return with_message(states0, message0), with_message(states1, message1)


def assigned(
    head: nn.Module,
    states0: Float[Tensor, "n d"],
    states1: Float[Tensor, "m d"],
    threshold: float,
    tile: int = TILE,
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"], Float[Tensor, " k"]]:
    """Rows, columns and probabilities of the matches, with kornia's `MatchAssignment`; n, m may be 0.

    tile: matrix entries in memory at a time. If the matrix needs several tiles it is computed twice: once for the sums
    of its rows and columns, once for their largest entries.
    """
    n, m = len(states0), len(states1)
    if n == 0 or m == 0:
        none = states0.new_zeros(0, dtype=torch.long)
        return none, none, states0.new_zeros(0)
    part: Any = head
    scale = states0.shape[1] ** 0.25
    a, b = part.final_proj(states0) / scale, (part.final_proj(states1) / scale).T
    log_matchable0, log_matchable1 = (F.logsigmoid(part.matchability(states)[:, 0]) for states in (states0, states1))
    height = max(1, tile // m)
    parts = [slice(start, min(start + height, n)) for start in range(0, n, height)]
    full_similarity = a @ b if len(parts) == 1 else None
    over_rows, over_columns = a.new_empty(n), a.new_full((m,), -torch.inf)
    for rows in parts:
        similarity = a[rows] @ b if full_similarity is None else full_similarity
        over_rows[rows] = similarity.logsumexp(1)
        over_columns = torch.logaddexp(over_columns, similarity.logsumexp(0))
    best0, best1 = a.new_empty(n), a.new_full((m,), -torch.inf)
    index0, index1 = torch.empty_like(best0, dtype=torch.long), torch.zeros_like(best1, dtype=torch.long)
    for rows in parts:
        similarity = a[rows] @ b if full_similarity is None else full_similarity
        log = (
            (similarity - over_rows[rows, None])
            + (similarity - over_columns)
            + (log_matchable0[rows, None] + log_matchable1)
        )
        best0[rows], index0[rows] = log.max(1)
        tops, places = log.max(0)
        better = tops > best1
        index1 = torch.where(better, places + rows.start, index1)
        best1 = torch.where(better, tops, best1)
    scores = best0.exp()
    is_match = (index1[index0] == torch.arange(n, device=a.device)) & (scores > threshold)
    i = torch.nonzero(is_match)[:, 0]
    return i, index0[i], scores[i]
