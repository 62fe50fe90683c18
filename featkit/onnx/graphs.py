"""Complete graphs of networks for other runtimes: images -> features, patches -> descriptors, features -> matches.

Graphs for images return `max_keypoints` rows for every image, so that a batch is one tensor: the best keypoints first,
then padding with the score `NO_KEYPOINT`. Batch size, height and width are dynamic; padding and resizing are part of
the graph. Keypoints are in featkit pixels.

Tensor sizes stay traced: none is converted to a Python number, and no control flow depends on one. Deformable
convolutions (ALIKED) are expressed as bilinear sampling and a product, which every runtime supports.
"""

from __future__ import annotations

import copy
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from featkit.core.errors import UsageError
from featkit.features.published import AlikedConfig, DiskConfig, XfeatConfig
from featkit.features.scfeat import MULTIPLE_PX, REFINE_PX, ScfeatConfig, normalised_rows
from featkit.models.patch import OUTPUT_PX, PatchNetwork
from featkit.models.scfeat import SCFeatNetwork

NO_KEYPOINT = -1e4
"""Score of padding rows; representable in half precision."""
DISK_MULTIPLE_PX = 16
XFEAT_MULTIPLE_PX = 32
XFEAT_RADIUS = 2
CELL_PX = 8
"""Pixels per pixel of XFeat's maps."""

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""keypoints (b, k, 2), scores (b, k), descriptors (b, k, d), score_map (b, 1, h, w)."""


class PatchGraph(nn.Module):
    """Grey patches in [0, 1] -> unit rows, or the raw values of a binary descriptor (a bit is 1 where it is > 0)."""

    base: Tensor

    def __init__(self, network: PatchNetwork):
        super().__init__()
        self.network = network
        steps = (torch.arange(OUTPUT_PX) + 0.5) * 2 / OUTPUT_PX - 1
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        self.register_buffer("base", torch.stack([x, y, torch.ones_like(x)], dim=-1).view(1, -1, 3))

    def forward(self, patches: Float[Tensor, "n 1 s s"]) -> Float[Tensor, "n d"]:
        network = self.network
        if network.transformer is not None:
            grid = (self.base @ network.transformer.affine(patches).transpose(-2, -1)).view(-1, OUTPUT_PX, OUTPUT_PX, 2)
            patches = F.grid_sample(patches, grid, padding_mode="border", align_corners=False)
        described = network.described(network.trunk(patches))
        return described.raw if network.is_binary else described.descriptor


class ScfeatGraph(nn.Module):
    """SCFeat: the features that `Scfeat` extracts from RGB images in [0, 1]."""

    def __init__(self, network: SCFeatNetwork, config: ScfeatConfig):
        super().__init__()
        if config.turns != 1:
            raise UsageError("SCFeat in four rotations needs four runs of the network: export it with turns 1")
        if config.scales != (1.0,):
            raise UsageError("SCFeat at several scales needs several runs of the network: export it with scales [1]")
        if config.min_keypoints:
            raise UsageError("min_keypoints is not supported in an exported network: use a lower threshold instead")
        self.network, self.config = copy.deepcopy(network).to(memory_format=torch.contiguous_format), config

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Rows:
        network, config = self.network, self.config
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % MULTIPLE_PX, 0, -height % MULTIPLE_PX), mode="replicate")
        normalised = (padded - network.mean) / network.std
        fused, shallow = network.backbone(normalised)
        maps = network.bridge(fused)
        scores = network.detector(normalised, torch.cat([maps, shallow], dim=1))[:, :, :height, :width]
        border = max(config.border_px, REFINE_PX // 2) if config.refine else config.border_px
        allowed = _local_maxima(scores, config.nms_window // 2, strict=False) & _away_from_border(scores, border)
        index, values = _best_pixels(scores, allowed & (scores > config.threshold), config.max_keypoints)
        points = _pixels_of_indices(index, width)
        if config.refine:
            weights, steps = _windows_around(scores, index, REFINE_PX // 2)
            points = points + weights @ steps / weights.sum(2, keepdim=True).clamp_min(1e-12)
        chosen = maps if config.descriptor_map == "normalised" else fused
        vectors = _sample_at_pixels(chosen, points, _map_size(padded), padding_mode="border")
        rows = normalised_rows(vectors.flatten(0, 1), config.normalisation)
        return points, values, rows.unflatten(0, (-1, config.max_keypoints)), scores


class AlikedGraph(nn.Module):
    """ALIKED (Zhao et al. 2023): the features that `Aliked` extracts from RGB images in [0, 1]."""

    def __init__(self, network: Any, config: AlikedConfig):
        super().__init__()
        self.network, self.config = copy.deepcopy(network), config
        for block in self.network.modules():
            for name, part in list(block.named_children()):
                if hasattr(part, "offset_conv") and hasattr(part, "regular_conv"):
                    setattr(block, name, SampledConv(part))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Rows:
        config, detection = self.config, self.network.dkd
        features, scores = self.network.extract_dense_map(images)
        allowed = _local_maxima(scores, detection.radius, strict=True) & (scores > config.threshold)
        index, values = _best_pixels(scores, allowed, config.max_keypoints)
        patches, _ = _windows_around(scores, index, detection.radius)
        weights = ((patches - patches.amax(2, keepdim=True)) / detection.temperature).exp()
        pixels = _pixels_of_indices(index, scores.shape[3])
        points = pixels + weights @ detection.hw_grid / weights.sum(2, keepdim=True)
        sampled = _sample_at_pixels(scores, points, _map_size(scores))[:, :, 0]
        scores_of_points = torch.where(values > NO_KEYPOINT, sampled, NO_KEYPOINT)
        return points, scores_of_points, self._describe(features, points), scores

    def _describe(self, features: Float[Tensor, "b d h w"], points: Float[Tensor, "b k 2"]) -> Float[Tensor, "b k d"]:
        """The descriptor head (SDDH): sampling positions of each keypoint, and a weighted sum over them."""
        head, size = self.network.desc_head, _map_size(features)
        positions, side = head.n_pos, head.kernel_size
        points = ((points / (size - 1) * 2 - 1) / 2 + 0.5) * (size - 1)  # rounded as kornia does: see `CpuAliked`
        corner = (points.long() - side / 2 + 1).long().clamp_min(0)
        corner = torch.minimum(corner, (size - 1 - side).long())
        inside = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), dim=-1).view(-1, 2)
        pixels = (corner[:, :, None] + inside).flatten(1, 2).to(points.dtype)
        patches = (
            _sample_at_pixels(features, pixels, size, mode="nearest").unflatten(1, (-1, side * side)).flatten(0, 1)
        )
        offsets = head.offset_conv(patches.transpose(-2, -1).unflatten(2, (side, side)))[:, :, 0, 0]
        reach = size.amax() / 4
        offsets = torch.minimum(torch.maximum(offsets, -reach), reach).unflatten(1, (2, positions)).transpose(-2, -1)
        sampling_points = points[:, :, None] + offsets.unflatten(0, (-1, points.shape[1]))
        sampled = _sample_at_pixels(features, sampling_points.flatten(1, 2), size)
        values = F.selu(F.linear(sampled, head.sf_conv.weight[:, :, 0, 0]))
        gathered = values.reshape(-1, positions * values.shape[2]) @ head.agg_weights.flatten(0, 1)
        return F.normalize(gathered, dim=1).unflatten(0, (-1, self.config.max_keypoints))


class SampledConv(nn.Module):
    """A deformable convolution (Dai et al. 2017, without modulation) of stride 1 that keeps the map's size."""

    taps: Tensor

    def __init__(self, conv: Any):
        super().__init__()
        self.offsets = conv.offset_conv
        weight, bias = conv.regular_conv.weight, conv.regular_conv.bias
        self.weight = nn.Parameter(weight.flatten(1), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias[:, None], requires_grad=False)
        steps = torch.arange(weight.shape[2]) - weight.shape[2] // 2
        self.register_buffer("taps", torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).view(-1, 2))

    def forward(self, maps: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        size, taps = _map_size(maps), len(self.taps)
        reach = size.amax() / 4
        offsets = torch.minimum(torch.maximum(self.offsets(maps), -reach), reach)
        offsets = offsets.flatten(2).unflatten(1, (taps, 2)).flip(2).permute(0, 1, 3, 2)  # (b, taps, h * w, xy)
        ones = torch.ones_like(maps[0, 0])
        pixel_grid = torch.stack([ones.cumsum(1) - 1, ones.cumsum(0) - 1], dim=-1).flatten(0, 1)
        points = (pixel_grid + self.taps[:, None] + offsets).flatten(1, 2)
        sampled = (
            _sample_at_pixels(maps, points, size)
            .transpose(-2, -1)
            .reshape(-1, maps.shape[1] * taps, maps.shape[2] * maps.shape[3])
        )
        filtered = self.weight @ sampled
        return (filtered if self.bias is None else filtered + self.bias).view(-1, len(self.weight), *maps.shape[2:])


class DiskGraph(nn.Module):
    """DISK (Tyszkiewicz et al. 2020): the features that `Disk` extracts from RGB images in [0, 1], scores as logits."""

    def __init__(self, network: Any, config: DiskConfig):
        super().__init__()
        self.network, self.config = copy.deepcopy(network), config
        for block in self.network.modules():
            for name, part in list(block.named_children()):
                if isinstance(part, nn.InstanceNorm2d):
                    setattr(block, name, PreciseNorm(part.eps))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Rows:
        config = self.config
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % DISK_MULTIPLE_PX, 0, -height % DISK_MULTIPLE_PX))
        heat, maps = self.network.heatmap_and_dense_descriptors(padded)
        scores = heat[:, :, :height, :width]
        allowed = _local_maxima(scores, config.nms_radius, strict=True) & (scores > config.threshold)
        index, values = _best_pixels(scores, allowed, config.max_keypoints)
        points = _pixels_of_indices(index, width)
        rows = _sample_at_pixels(maps, points, _map_size(maps), mode="nearest")
        return points, values, F.normalize(rows, dim=2), scores


class PreciseNorm(nn.Module):
    """Instance norm computed row by row: a single float32 sum over a map is too inaccurate for DISK's scores."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        centred = maps - maps.mean(3, keepdim=True).mean(2, keepdim=True)
        variance = centred.square().mean(3, keepdim=True).mean(2, keepdim=True)
        return centred * torch.rsqrt(variance + self.eps)


class XfeatGraph(nn.Module):
    """XFeat (Potje et al. 2024): the features that `Xfeat` extracts from RGB images in [0, 1].

    score_map: of the resized image.
    """

    def __init__(self, network: Any, config: XfeatConfig):
        super().__init__()
        self.network, self.config = copy.deepcopy(network.net), config

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Rows:
        config, multiple = self.config, XFEAT_MULTIPLE_PX
        height, width = images.shape[2] // multiple * multiple, images.shape[3] // multiple * multiple
        resized = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
        descriptors, logits, reliability = self._maps(resized)
        heat = F.pixel_shuffle(F.softmax(logits, dim=1)[:, : CELL_PX**2], CELL_PX)
        size = _map_size(heat)
        ones = torch.ones_like(heat[0, 0])
        pixel_grid = torch.stack([ones.cumsum(1) - 1, ones.cumsum(0) - 1], dim=-1)[None].expand(
            heat.shape[0], -1, -1, -1
        )
        scores = heat * F.grid_sample(reliability, _xfeat_coordinates(pixel_grid, size), align_corners=False)
        allowed = _local_maxima(heat, XFEAT_RADIUS, strict=True) & (heat > config.threshold)
        index, values = _best_pixels(scores, allowed, config.max_keypoints)
        points = _pixels_of_indices(index, width)
        rows = F.grid_sample(
            descriptors, _xfeat_coordinates(points[:, :, None], size), mode="bicubic", align_corners=False
        )
        points = (points + 0.5) * (_map_size(images) / size) - 0.5
        return points, values, F.normalize(rows[..., 0].transpose(-2, -1), dim=2), scores

    def _maps(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit descriptors, keypoint logits and reliability per cell, as in kornia's `XFeatModel.forward`."""
        network = self.network
        grey = network.norm(images.mean(dim=1, keepdim=True))
        third = network.block3(network.block2(network.block1(grey) + network.skip1(grey)))
        fourth = network.block4(third)
        fifth = network.block5(fourth)
        fourth, fifth = (
            F.interpolate(maps, size=third.shape[2:], mode="bilinear", align_corners=False) for maps in (fourth, fifth)
        )
        features = network.block_fusion(third + fourth + fifth)
        logits = network.keypoint_head(F.pixel_unshuffle(grey, CELL_PX))
        return F.normalize(features, dim=1), logits, network.heatmap_head(features)


class LightGlueGraph(nn.Module):
    """LightGlue (Lindenberger et al. 2023) with all layers, without early stopping or pruning.

    keypoints: (b, n, 2), or (b, n, 4) with scale and angle if the weights need them. image_size: width, height.
    """

    def __init__(self, network: Any, filter_threshold: float):
        super().__init__()
        self.network, self.threshold = copy.deepcopy(network), filter_threshold

    def forward(
        self,
        keypoints0: Float[Tensor, "b n p"],
        descriptors0: Float[Tensor, "b n d"],
        image_size0: Float[Tensor, "b 2"],
        keypoints1: Float[Tensor, "b m p"],
        descriptors1: Float[Tensor, "b m d"],
        image_size1: Float[Tensor, "b 2"],
    ) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n"]]:
        network = self.network
        states0, states1 = network.input_proj(descriptors0), network.input_proj(descriptors1)
        where0 = self._encoding(_normalised_positions(keypoints0, image_size0))
        where1 = self._encoding(_normalised_positions(keypoints1, image_size1))
        for layer in network.transformers:
            states0 = _self_attention(layer.self_attn, states0, where0)
            states1 = _self_attention(layer.self_attn, states1, where1)
            states0, states1 = _cross_attention(layer.cross_attn, states0, states1)
        head = network.log_assignment[-1]
        scale = states0.shape[2] ** 0.25
        similarity = (head.final_proj(states0) / scale) @ (head.final_proj(states1) / scale).permute(0, 2, 1)
        sure0, sure1 = F.logsigmoid(head.matchability(states0)), F.logsigmoid(head.matchability(states1))
        log = F.log_softmax(similarity, dim=2) + F.log_softmax(similarity, dim=1) + sure0 + sure1.permute(0, 2, 1)
        best, index0 = log.max(2)
        index1 = log.argmax(1)
        scores = best.exp()
        order = torch.ones_like(index0).cumsum(1) - 1
        good = (index1.gather(1, index0) == order) & (scores > self.threshold)
        return torch.where(good, index0, -1), torch.where(good, scores, 0.0)

    def _encoding(self, positions: Float[Tensor, "b n p"]) -> tuple[Tensor, Tensor]:
        """Cosines and sines (b, 1, n, h) of the learned encoding, each repeated twice."""
        angles = self.network.posenc.Wr(positions)
        twice = torch.stack([angles, angles], dim=3).flatten(2)[:, None]
        return twice.cos(), twice.sin()


# kornia's blocks with explicit head axes: tracing loses the number of axes after `unflatten`.


def _self_attention(
    block: Any, states: Float[Tensor, "b n d"], encoding: tuple[Tensor, Tensor]
) -> Float[Tensor, "b n d"]:
    shape = (states.shape[0], states.shape[1], block.num_heads, block.head_dim, 3)
    query, key, value = block.Wqkv(states).view(shape).permute(4, 0, 2, 1, 3).unbind(0)
    message = _attention(_rotate_pairs(query, *encoding), _rotate_pairs(key, *encoding), value)
    return states + block.ffn(torch.cat([states, block.out_proj(message)], dim=2))


def _rotate_pairs(
    values: Float[Tensor, "b k n h"], cosines: Float[Tensor, "b 1 n h"], sines: Float[Tensor, "b 1 n h"]
) -> Float[Tensor, "b k n h"]:
    """Rotate each pair of values by its angle."""
    pairs = values.view(*values.shape[:3], values.shape[3] // 2, 2)
    quarter = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=4).flatten(3)
    return values * cosines + quarter * sines


def _cross_attention(block: Any, states0: Float[Tensor, "b n d"], states1: Float[Tensor, "b m d"]) -> tuple[Any, Any]:
    def heads(values: Tensor) -> Tensor:
        width = values.shape[2] // block.heads
        return values.view(values.shape[0], values.shape[1], block.heads, width).permute(0, 2, 1, 3)

    def with_message(states: Tensor, message: Tensor) -> Tensor:
        return states + block.ffn(torch.cat([states, block.to_out(message)], dim=2))

    query0, query1 = heads(block.to_qk(states0)), heads(block.to_qk(states1))
    message0 = _attention(query0, query1, heads(block.to_v(states1)))
    message1 = _attention(query1, query0, heads(block.to_v(states0)))
    return with_message(states0, message0), with_message(states1, message1)


def _attention(
    query: Float[Tensor, "b k n h"], key: Float[Tensor, "b k m h"], value: Float[Tensor, "b k m h"]
) -> Float[Tensor, "b n k*h"]:
    weights = torch.softmax(query @ key.permute(0, 1, 3, 2) / query.shape[3] ** 0.5, dim=3)
    return (weights @ value).permute(0, 2, 1, 3).flatten(2)


# ----------------------------------------------------------------------------------------------------------------------
# Shared by all graphs.


def _map_size(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, " 2"]:
    """Width and height, as a tensor that is traced."""
    return torch.stack([torch.as_tensor(maps.shape[3]), torch.as_tensor(maps.shape[2])]).to(maps.dtype)


def _normalised_positions(keypoints: Float[Tensor, "b n p"], size: Float[Tensor, "b 2"]) -> Float[Tensor, "b n p"]:
    """Pixels from the centre over half the longer side; scale and angle unchanged."""
    half = size.amax(1)[:, None, None] / 2
    return torch.cat([(keypoints[..., :2] - size[:, None] / 2) / half, keypoints[..., 2:]], dim=2)


def _xfeat_coordinates(points: Float[Tensor, "*b 2"], size: Float[Tensor, " 2"]) -> Float[Tensor, "*b 2"]:
    """Normalized coordinates as in the authors' network: divided by size - 1, although align_corners is False."""
    return 2 * (points / (size - 1)) - 1


def _sample_at_pixels(
    maps: Float[Tensor, "b c h w"],
    points: Float[Tensor, "b n 2"],
    size: Float[Tensor, " 2"],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Float[Tensor, "b n c"]:
    """Values of maps at points, given in pixels of an image of this size (width, height)."""
    grid = ((2 * points + 1) / size - 1)[:, :, None]
    return F.grid_sample(maps, grid, mode=mode, padding_mode=padding_mode, align_corners=False)[..., 0].transpose(
        -2, -1
    )


def _pixels_of_indices(index: Int[Tensor, "b k"], width: int) -> Float[Tensor, "b k 2"]:
    """x, y of indices into a flattened map."""
    return torch.stack([index % width, torch.div(index, width, rounding_mode="floor")], dim=2).float()


def _away_from_border(scores: Float[Tensor, "b 1 h w"], border_px: int) -> Bool[Tensor, "b 1 h w"]:
    """Pixels that are at least `border_px` away from the edge."""
    if border_px == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    ones = torch.ones_like(scores)
    from_start = torch.minimum(ones.cumsum(2), ones.cumsum(3))
    to_end = torch.minimum(scores.shape[2] - ones.cumsum(2), scores.shape[3] - ones.cumsum(3)) + 1
    return torch.minimum(from_start, to_end) > border_px


def _local_maxima(scores: Float[Tensor, "b 1 h w"], radius: int, strict: bool) -> Bool[Tensor, "b 1 h w"]:
    """Pixels that are the maximum within `radius` (a square window).

    strict: greater than all others, and not within `radius` of the edge; otherwise ties go to the first.
    """
    if radius == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    height, width, side = scores.shape[2], scores.shape[3], 2 * radius + 1
    padded = F.pad(scores, (radius, radius, radius, radius), value=NO_KEYPOINT)
    lines = F.max_pool2d(padded, (1, side), stride=1)  # the maximum of each row of a pixel's window
    centre_column = padded[:, :, radius : radius + height]
    before = _elementwise_maximum(
        [
            *(lines[:, :, k : k + height] for k in range(radius)),
            *(centre_column[..., k : k + width] for k in range(radius)),
        ]
    )
    later = range(radius + 1, side)
    after = _elementwise_maximum(
        [*(lines[:, :, k : k + height] for k in later), *(centre_column[..., k : k + width] for k in later)]
    )
    if strict:
        return (scores > torch.maximum(before, after)) & _away_from_border(scores, radius)
    return (scores > before) & (scores >= after)


def _elementwise_maximum(maps: list[Tensor]) -> Tensor:
    largest = maps[0]
    for other in maps[1:]:
        largest = torch.maximum(largest, other)
    return largest


def _best_pixels(
    scores: Float[Tensor, "b 1 h w"], allowed: Bool[Tensor, "b 1 h w"], count: int
) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Indices into the flattened map and scores of the best allowed pixels, then padding."""
    flat = torch.where(allowed, scores, NO_KEYPOINT).flatten(1)
    values, index = F.pad(flat, (0, count), value=NO_KEYPOINT).topk(count, dim=1)
    return torch.where(values > NO_KEYPOINT, index, 0), values


def _windows_around(
    scores: Float[Tensor, "b 1 h w"], index: Int[Tensor, "b k"], radius: int
) -> tuple[Float[Tensor, "b k s*s"], Float[Tensor, "s*s 2"]]:
    """Scores in the window around pixels (arbitrary outside the map), and their offsets (x, y)."""
    window = torch.arange(-radius, radius + 1)
    steps = torch.stack(torch.meshgrid(window, window, indexing="xy"), dim=-1).view(-1, 2)
    flat = scores.flatten(1)
    places = index[:, :, None] + steps[:, 1] * scores.shape[3] + steps[:, 0]
    last = torch.as_tensor(flat.shape[1]) - 1
    places = torch.minimum(places.clamp_min(0), last)
    windows = flat.gather(1, places.flatten(1)).unflatten(1, (-1, len(steps)))
    return windows, cast(Tensor, steps).to(scores.dtype)
