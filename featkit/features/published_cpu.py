"""ALIKED, DISK and XFeat on a CPU: the results of kornia's networks up to rounding, in at most a third of the time.

Nothing is approximated. Descriptors are computed only at keypoints (for DISK, that avoids four fifths of the
arithmetic); maps are channels-last, so that a pixel is one row of memory and bilinear sampling is a weighted
sum of four rows; batch norms are folded into convolutions; and linear operations run at the lowest resolution.
Each class takes kornia's network in eval mode, with its weights, and one image in float32.
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Found: TypeAlias = "tuple[Tensor, Tensor, Tensor]"
"""Features of one image: keypoints (n, 2) with pixel centres at integers, descriptors (n, d), scores (n,)."""


class CpuAliked:
    """ALIKED (Zhao et al. 2023): the same keypoints and descriptors as kornia's `ALIKED`, in the same order."""

    STRIDE_PX = 32

    def __init__(self, network: Any):
        blocks = (network.block1, network.block2, network.block3, network.block4)
        self._blocks = [[_fold_batch_norm(b.conv1, b.bn1), _fold_batch_norm(b.conv2, b.bn2)] for b in blocks]
        self._shortcuts = [_channels_last(block.downsample) for block in blocks[1:]]
        convs = (network.conv1, network.conv2, network.conv3, network.conv4)
        self._levels = [_weight_rows(conv.weight) for conv in convs]
        first, *rest = [layer for layer in network.score_head if isinstance(layer, nn.Conv2d)]
        self._score_parts = _weight_rows(first.weight).split(self._levels[0].shape[1])
        self._score_rest = [_channels_last(conv) for conv in rest]
        self._keypoints = network.dkd
        head = network.desc_head
        offsets, _, self._offset_last = head.offset_conv
        self._offset_weight, self._offset_bias = _weight_rows(offsets.weight), offsets.bias.detach()
        self._window, self._positions = offsets.kernel_size[0], head.n_pos
        self._sample_weight = _weight_rows(head.sf_conv.weight)
        self._gathering = head.agg_weights.detach().flatten(0, 1)

    def __call__(self, image: Float[Tensor, "1 3 h w"]) -> Found:
        """Keypoints, descriptors with unit rows, scores. image: in [0, 1]."""
        height, width = image.shape[2:]
        down, across = -height % self.STRIDE_PX, -width % self.STRIDE_PX
        top, left = down // 2, across // 2
        padding = (left, across - left, top, down - top)
        levels = self._pyramid(_channels_last(F.pad(image, padding, mode="replicate")))
        scores = self._scores(levels)[top : top + height, left : left + width].contiguous()
        keypoints, values = self._detect(scores)
        return keypoints, self._describe(UnitMap(levels, (top, left, height, width)), keypoints), values

    def _pyramid(self, image: Float[Tensor, "1 3 h w"]) -> list[Float[Tensor, "1 c h2 w2"]]:
        """Four maps with a quarter of the channels each, at 1, 1/2, 1/8 and 1/32 of the resolution."""
        first, second = self._blocks[0]
        x = F.selu_(second(F.selu_(first(image))))
        levels = [F.selu_(_pointwise(x, self._levels[0]))]
        steps = zip(self._blocks[1:], self._shortcuts, self._levels[1:], (2, 4, 4), strict=True)
        for (first, second), shortcut, level, step in steps:
            x = F.avg_pool2d(x, step)
            x = F.selu_(second(F.selu_(first(x))).add_(shortcut(x)))
            levels.append(F.selu_(_pointwise(x, level)))
        return levels

    def _scores(self, levels: list[Tensor]) -> Float[Tensor, "h w"]:
        """The score head; its first convolution is 1x1, so it is applied before upsampling."""
        parts = [_pointwise(level, weight) for level, weight in zip(levels, self._score_parts, strict=True)]
        logits = parts[0]
        for part in parts[1:]:
            logits += _upsample(part, logits.shape[2] // part.shape[2])
        for conv in self._score_rest:
            logits = conv(F.selu_(logits))
        return logits[0, 0].sigmoid_()

    def _detect(self, scores: Float[Tensor, "h w"]) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
        """Soft maxima around the strict maxima (kornia's DKD); best first if there is no threshold."""
        radius, width = self._keypoints.radius, scores.shape[1]
        index = torch.nonzero(strict_maxima(scores, radius).flatten())[:, 0]
        index = self._select(scores, index)
        pixels = torch.stack([index % width, index // width], dim=1)
        grid = self._keypoints.hw_grid
        steps = (grid[:, 1] * width + grid[:, 0]).long()
        patches = scores.flatten()[index[:, None] + steps]
        weights = ((patches - patches.amax(1, keepdim=True)) / self._keypoints.temperature).exp_()
        points = pixels + weights @ grid / weights.sum(1, keepdim=True)
        return points, sample_bilinear(scores[..., None], points)[:, 0]

    def _select(self, scores: Float[Tensor, "h w"], maxima: Int[Tensor, " m"]) -> Int[Tensor, " n"]:
        """The best maxima above the threshold, if one is set (above the mean if none exceeds the threshold)."""
        keypoints, values = self._keypoints, scores.flatten()[maxima]
        if keypoints.top_k > 0:
            return maxima[values.topk(min(keypoints.top_k, len(maxima))).indices]
        above = values > keypoints.scores_th if keypoints.scores_th > 0 else values > scores.mean()
        if not above.any():
            above = values > scores.mean()
        maxima, values = maxima[above], values[above]
        if len(maxima) > keypoints.n_limit:
            maxima = maxima[values.sort(descending=True).indices[: keypoints.n_limit]]
        return maxima

    def _describe(self, features: UnitMap, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
        """The descriptor head (SDDH): each keypoint's sampling positions, then a weighted sum over them."""
        height, width = features.height, features.width
        last = points.new_tensor([width - 1, height - 1])
        points = (
            (points / last * 2 - 1) / 2 + 0.5
        ) * last  # same rounding as kornia: a patch's corner may depend on it
        patches = self._patches(features, points.long())
        offsets = torch.addmm(self._offset_bias, patches, self._offset_weight)
        offsets = self._offset_last(F.selu_(offsets)[:, :, None, None])[:, :, 0, 0]
        reach = max(height, width) / 4
        offsets = offsets.clamp_(-reach, reach).view(-1, 2, self._positions).transpose(1, 2)
        found = features.at(*bilinear_corners((points[:, None] + offsets).reshape(-1, 2), height, width))
        found = F.selu_(found @ self._sample_weight)
        return F.normalize(found.view(len(points), self._positions * features.dimension) @ self._gathering, dim=1)

    def _patches(self, features: UnitMap, pixels: Int[Tensor, "n 2"]) -> Float[Tensor, "n k*k*d"]:
        """Squares of k x k pixels, shifted to be inside the map (kornia excludes the last row and column)."""
        size = self._window
        corner = (pixels - size / 2 + 1).long()
        steps = torch.arange(size)
        x = corner[:, 0].clamp(0, features.width - 1 - size)[:, None, None] + steps
        y = corner[:, 1].clamp(0, features.height - 1 - size)[:, None, None] + steps[:, None]
        x, y = (values.expand(-1, size, size).reshape(-1, 1) for values in (x, y))
        return features.at(x, y, torch.ones(x.shape)).view(len(pixels), size**2 * features.dimension)


class UnitMap:
    """ALIKED's feature map with unit rows, computed only at the requested pixels.

    A pixel's row comes from four maps of lower resolution, upsampled with aligned corners. They are upsampled
    horizontally on construction. Vertically, a row is (1 - t) a + t b of two lines, and its squared length
    (1 - t)^2 |a|^2 + 2 t (1 - t) <a, b> + t^2 |b|^2, so no map of all channels is ever made at full resolution.
    """

    def __init__(self, levels: list[Float[Tensor, "1 c h2 w2"]], inside: tuple[int, int, int, int]):
        """levels: channels last, the first at full resolution. inside: top, left, height, width of the valid region."""
        self._top, self._left, self.height, self.width = inside
        full_height, self._full_width = levels[0].shape[2:]
        self._lines, self._places = [], []
        squares = torch.zeros((full_height, self._full_width))
        for level in levels:
            lines = _upsample_horizontally(level, self._full_width)
            own = torch.linalg.vector_norm(lines, dim=2).square_()
            low, share = self._line_positions(len(lines), full_height)
            high = (low + 1).clamp_max_(len(lines) - 1)
            if len(lines) == full_height:
                squares += own
            else:
                with_next = torch.cat([(lines[:-1] * lines[1:]).sum(2), own[-1:]])
                t = share[:, None]
                squares += (1 - t).square() * own[low] + 2 * t * (1 - t) * with_next[low] + t.square() * own[high]
            self._lines.append(lines.flatten(0, 1))
            self._places.append((low, high, share))
        self.dimension = sum(lines.shape[1] for lines in self._lines)
        self._factors = squares.clamp_min_(LEAST_NORM**2).rsqrt_().flatten()

    def at(self, x: Int[Tensor, "n k"], y: Int[Tensor, "n k"], weights: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Weighted sums of k pixels' rows."""
        x, y = x + self._left, y + self._top
        weights = weights * self._factors[y * self._full_width + x]
        found = []
        for number, (lines, (low, high, share)) in enumerate(zip(self._lines, self._places, strict=True)):
            index, shares = low[y] * self._full_width + x, weights
            if number:
                index = torch.cat([index, high[y] * self._full_width + x], dim=1)
                t = share[y]
                shares = torch.cat([weights * (1 - t), weights * t], dim=1)
            found.append(F.embedding_bag(index, lines, per_sample_weights=shares, mode="sum"))
        return torch.cat(found, dim=1)

    @staticmethod
    def _line_positions(lines: int, height: int) -> tuple[Int[Tensor, " h"], Float[Tensor, " h"]]:
        """Index of the line above each of `height` rows, and the row's distance below it."""
        if lines == height:
            return torch.arange(height), torch.zeros(height)
        place = torch.arange(height) * ((lines - 1) / (height - 1))
        low = place.long().clamp_max_(max(lines - 2, 0))
        return low, place - low


def _upsample_horizontally(level: Float[Tensor, "1 c h w"], width: int) -> Float[Tensor, "h w2 c"]:
    if level.shape[3] == width:
        return level[0].permute(1, 2, 0)
    wide = F.interpolate(level, size=(level.shape[2], width), mode="bilinear", align_corners=True)
    return wide[0].permute(1, 2, 0)


LINE_VALUES = 1 << 19  # 2 MB
LEAST_NORM = 1e-12
"""Epsilon of `torch.nn.functional.normalize`."""


class DeformableConv:
    """A convolution with taps displaced by offsets from another convolution (Dai et al. 2017; v1, unmodulated)."""

    def __init__(self, conv: Any, norm: nn.Module):
        fused = fuse_conv_bn_eval(conv.regular_conv, norm)
        self._offsets, self._kernel = _channels_last(conv.offset_conv), fused.kernel_size[0]
        self._weight, self._bias = _weight_rows(fused.weight), fused.bias.detach()

    def __call__(self, maps: Float[Tensor, "1 i h w"]) -> Float[Tensor, "1 o h w"]:
        height, width = maps.shape[2:]
        reach = max(height, width) / 4
        offsets = self._offsets(maps)[0].permute(1, 2, 0).clamp(-reach, reach)
        offsets = offsets.reshape(height, width, self._kernel**2, 2).flip(3)  # as (y, x)
        steps = torch.arange(self._kernel) - self._kernel // 2
        taps = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).view(-1, 2)
        own = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), dim=-1)
        points = own[:, :, None] + taps + offsets
        values = sample_bilinear(maps[0].permute(1, 2, 0).contiguous(), points.view(-1, 2))
        found = torch.addmm(self._bias, values.view(height * width, -1), self._weight)
        return found.view(1, height, width, -1).permute(0, 3, 1, 2)


class CpuDisk:
    """DISK (Tyszkiewicz et al. 2020): same results as kornia's `DISK`, with descriptors computed only at keypoints."""

    STRIDE_PX = 16

    def __init__(self, network: Any):
        self._down = [(_norm_and_activation(block[1]), block[1][3]) for block in network.unet.path_down]
        ups = [block.conv for block in network.unet.path_up]
        self._up = [(_norm_and_activation(block), block[3]) for block in ups[:-1]]
        self._last_norm, last = _norm_and_activation(ups[-1]), ups[-1][3]
        self._dimension, self._kernel = network.desc_dim, last.kernel_size[0]
        for _, conv in (*self._down, *self._up):
            _channels_last(conv)
        weight, bias = last.weight.detach(), last.bias.detach()
        self._weight, self._bias = _weight_rows(weight[: self._dimension]), bias[: self._dimension]
        self._heat_weight = weight[self._dimension].flatten(1).contiguous()  # (i, k * k)
        self._heat_bias = bias[self._dimension]

    def __call__(self, image: Float[Tensor, "1 3 h w"], count: int, radius: int, threshold: float) -> Found:
        """Keypoints at integer pixels in row-major order, descriptors with unit rows, scores (logits).

        count: maximum number of keypoints. radius: of the window in which a keypoint is the strict maximum, px.
        """
        height, width = image.shape[2:]
        down, across = -height % self.STRIDE_PX, -width % self.STRIDE_PX
        rows = self._rows(_channels_last(F.pad(image, (0, across, 0, down))))
        heat = self._heat(rows)[:height, :width]
        index = torch.nonzero((strict_maxima(heat, radius) & (heat > threshold)).flatten())[:, 0]
        values = heat.flatten()[index]
        best = values.sort(descending=True, stable=True).indices[:count].sort().values
        index, values = index[best], values[best]
        pixels = torch.stack([index % width, index // width], dim=1)
        return pixels.float(), self._describe(rows, pixels), values

    def _rows(self, image: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "h w c"]:
        """The U-Net up to its last convolution."""
        maps = [image]
        for norm, conv in self._down:
            given = maps[-1] if len(maps) == 1 else F.avg_pool2d(maps[-1], 2)
            maps.append(conv(norm(given)))
        x, *sides = maps[::-1]
        for (norm, conv), side in zip(self._up, sides, strict=False):
            x = conv(norm(torch.cat([_upsample_twice(x), side], dim=1)))
        return self._last_norm(torch.cat([_upsample_twice(x), sides[len(self._up)]], dim=1))[0].permute(1, 2, 0)

    def _heat(self, rows: Float[Tensor, "h w c"]) -> Float[Tensor, "h w"]:
        """The score channel of the last convolution: one product for all taps, then a sum of shifted maps."""
        height, width, _ = rows.shape
        margin = self._kernel // 2
        heat = rows.new_full((height + 2 * margin, width + 2 * margin), float(self._heat_bias))
        step = max(1, LINE_VALUES // (width * rows.shape[2]))
        for first in range(0, height, step):
            taps = torch.einsum("hwi,ik->khw", rows[first : first + step], self._heat_weight)
            for number, tap in enumerate(taps):
                y, x = divmod(number, self._kernel)
                top, left = first + 2 * margin - y, 2 * margin - x
                heat[top : top + len(tap), left : left + width] += tap
        return heat[margin : margin + height, margin : margin + width]

    def _describe(self, rows: Float[Tensor, "h w c"], pixels: Int[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
        """The descriptor channels of the last convolution, at the given pixels."""
        height, width, channels = rows.shape
        steps = torch.arange(self._kernel) - self._kernel // 2
        y = pixels[:, 1, None, None] + steps[:, None]
        x = pixels[:, 0, None, None] + steps
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten()
        patches = rows.reshape(-1, channels)[index] * inside.flatten()[:, None]
        return F.normalize(torch.addmm(self._bias, patches.view(len(pixels), len(self._weight)), self._weight), dim=1)


def optimise_xfeat(network: Any) -> None:
    """Fold the batch norms of kornia's `XFeat` into its convolutions, in place, and use channels-last maps."""
    for module in network.net.modules():
        layers = getattr(module, "layer", None)
        if isinstance(layers, nn.Sequential) and isinstance(layers[1], nn.BatchNorm2d):
            module.layer = nn.Sequential(fuse_conv_bn_eval(cast(nn.Conv2d, layers[0]), layers[1]), layers[2])
    network.net.to(memory_format=torch.channels_last)


# ----------------------------------------------------------------------------------------------------------------------
# Shared helpers.


def sample_bilinear(rows: Float[Tensor, "h w c"], points: Float[Tensor, "n 2"]) -> Float[Tensor, "n c"]:
    """Bilinear values of a map at points (x, y) in pixels, zero outside it."""
    height, width, _ = rows.shape
    x, y, weights = bilinear_corners(points, height, width)
    return F.embedding_bag(y * width + x, rows.flatten(0, 1), per_sample_weights=weights, mode="sum")


def bilinear_corners(
    points: Float[Tensor, "n 2"], height: int, width: int
) -> tuple[Int[Tensor, "n 4"], Int[Tensor, "n 4"], Float[Tensor, "n 4"]]:
    """x, y and bilinear weights of the four pixels around each point; pixels outside the map have weight 0."""
    low = points.floor()
    share = points - low
    steps = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    pixels = low.long()[:, None] + steps
    x, y = pixels.unbind(2)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    weights = torch.where(steps.bool(), share[:, None], 1 - share[:, None]).prod(2)
    return x.clamp(0, width - 1), y.clamp(0, height - 1), weights * inside


def strict_maxima(scores: Float[Tensor, "h w"], radius: int) -> Bool[Tensor, "h w"]:
    """Pixels greater than all others within `radius` (a square), excluding those closer than `radius` to the edge.

    The maximum of the others combines the neighbouring columns with the pixel's own column without the pixel.
    """
    height, width = scores.shape
    found = torch.zeros_like(scores, dtype=torch.bool)
    if min(height, width) <= 2 * radius:
        return found
    inner = slice(radius, height - radius)
    own: Tensor | None = None
    for step in range(-radius, radius + 1):
        if step:
            moved = scores[radius + step : height - radius + step]
            own = moved.clone() if own is None else torch.maximum(own, moved, out=own)
    assert own is not None
    columns = torch.maximum(own, scores[inner])
    others = own[:, radius : width - radius].clone()
    for step in range(-radius, radius + 1):
        if step:
            torch.maximum(others, columns[:, radius + step : width - radius + step], out=others)
    found[inner, radius : width - radius] = scores[inner, radius : width - radius] > others
    return found


def _channels_last(module: Any) -> Any:
    """A tensor or a module in channels-last layout."""
    if isinstance(module, Tensor):
        return module.contiguous(memory_format=torch.channels_last)
    return module.to(memory_format=torch.channels_last)


def _fold_batch_norm(conv: Any, norm: nn.Module) -> Any:
    """A convolution with its batch norm folded in, in float32."""
    if hasattr(conv, "offset_conv"):
        return DeformableConv(conv, norm)
    return _channels_last(fuse_conv_bn_eval(conv, norm))


def _weight_rows(weight: Float[Tensor, "o i k k"]) -> Float[Tensor, "k*k*i o"]:
    """Weights of a convolution, for products with channels-last patches."""
    return weight.detach().permute(2, 3, 1, 0).flatten(0, 2).contiguous()


def _pointwise(maps: Float[Tensor, "1 i h w"], weight: Float[Tensor, "i o"]) -> Float[Tensor, "1 o h w"]:
    """A 1x1 convolution of channels-last maps, as a matrix product."""
    height, width = maps.shape[2:]
    return (
        (maps.permute(0, 2, 3, 1).reshape(height * width, -1) @ weight).view(1, height, width, -1).permute(0, 3, 1, 2)
    )


def _upsample(maps: Float[Tensor, "1 c h w"], factor: int) -> Float[Tensor, "1 c h2 w2"]:
    """Bilinear upsampling with aligned corners."""
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=True)


def _upsample_twice(maps: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c 2*h 2*w"]:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


def _norm_and_activation(block: Any) -> Any:
    """Instance norm and PReLU of a block of DISK, in place; a no-op for its first block."""
    norm, gate = block[0], block[1]
    if not isinstance(norm, nn.InstanceNorm2d):
        return lambda maps: maps
    slope = gate.weight.detach()

    def apply(maps: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h w"]:
        lines = maps.permute(0, 2, 3, 1).flatten(0, 2)
        mean, variance = _moments(lines)
        scale = torch.rsqrt(variance + norm.eps)
        torch.addcmul((-mean * scale).float(), lines, scale.float(), out=lines)
        negative = lines.clamp_max(0)
        lines.clamp_min_(0).addcmul_(negative, slope)
        return maps

    return apply


def _moments(rows: Float[Tensor, "n c"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Means and biased variances, float64. DISK's scores depend on their last digits.

    Computed in float32 around a first estimate of the means, in chunks that fit the cache, summed in float64.
    """
    guess = rows[:: max(1, len(rows) // 1024)].mean(0)
    sums, squares = torch.zeros((2, rows.shape[1]), dtype=torch.float64)
    for part in rows.split(max(1, LINE_VALUES // rows.shape[1])):
        deviation = part - guess
        ones = torch.ones((1, len(part)))
        sums += (ones @ deviation)[0]
        squares += (ones @ deviation.square_())[0]
    shift = sums / len(rows)
    return guess + shift, (squares / len(rows) - shift.square()).clamp_min_(0)
