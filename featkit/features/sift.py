"""DoG keypoints with SIFT (Lowe 2004) or RootSIFT (Arandjelovic and Zisserman 2012) descriptors, by pycolmap.

COLMAP fills its feature budget from coarse scales first and drops the finest ones. The finest octave (the doubled
image) takes four fifths of the time and memory. So on large images the coarser octaves are computed first,
and the finest one only if budget remains, tile by tile: the same kind of features in a fraction of the time
and memory if the budget is filled, and in bounded memory if it is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, UInt8
from pydantic import Field

from featkit.core.config import Config, Count, Factor, KeypointCount, Share, Side
from featkit.core.types import Features
from featkit.geometry.pixels import from_colmap

DIMENSION = 128
QUANTUM = 512.0  # pycolmap's descriptors are uint8 = round(512 x unit vector); division by 512 is exact in float16
BASE_SIGMA = 1.6  # px: VLFeat's level 0 of octave 0 has 1.6 * 2^(1 / levels per octave)
UNLIMITED = 10**9


class SiftConfig(Config):
    """COLMAP's SIFT options, with its names and defaults."""

    normalization: Literal["l1_root", "l2"] = "l1_root"
    """Descriptor normalization: l1_root: RootSIFT; l2: plain SIFT."""
    max_num_features: Count = 8192
    """Feature budget as in COLMAP: complete scale-space levels are kept, coarse first, until it is exceeded."""
    max_keypoints: KeypointCount | None = None
    """Maximum keypoints per image (largest scales kept); if set, also the budget. None: only the budget applies."""
    first_octave: int = Field(-1, ge=-2, le=8)
    """First octave of the scale space; -1: the image is doubled first."""
    num_octaves: int = Field(4, ge=1, le=16)
    """Maximum octaves of the scale space; small images have fewer."""
    octave_resolution: int = Field(3, ge=1, le=16)
    """Levels per octave."""
    peak_threshold: Share = 0.02 / 3
    """Minimum absolute DoG response, for intensities in [0, 1]."""
    edge_threshold: Factor = Field(10.0, ge=1)
    """Maximum ratio of principal curvatures."""
    max_num_orientations: int = Field(2, ge=1, le=36)
    """Maximum orientations per keypoint, each with its own descriptor."""
    upright: bool = False
    """Skip orientation estimation; for upright images."""
    coarse_first_megapixels: Factor = 1.5
    """Megapixels above which coarse octaves are computed first, and the finest octave in tiles of about this size."""
    tile_halo_px: Side = 48
    """Overlap of tiles, px: a descriptor of the finest octave reaches 31 px."""


class Sift:
    """SIFT on the CPU. Scores are the scales: larger structures are more repeatable, and COLMAP prefers them."""

    Config: ClassVar[type[Config]] = SiftConfig
    colour: ClassVar[bool] = False
    holds_gil = True
    weights_sha256 = ""

    def __init__(self, config: SiftConfig, device: str = "auto"):
        self.config = config

    def extract(self, pixels: UInt8[np.ndarray, "h w"]) -> Features:
        """Features of one grey image; see `Extractor.extract`."""
        config = self.config
        budget = config.max_keypoints or config.max_num_features
        height, width = pixels.shape
        large = width * height > config.coarse_first_megapixels * 1e6
        if config.first_octave >= 0 or not large or config.num_octaves < 2:
            rows, descriptors = self._detect(pixels, config.first_octave, config.num_octaves, budget)
        else:
            rows, descriptors = self._detect_coarse_first(pixels, budget)
        if config.max_keypoints is not None and len(rows) > config.max_keypoints:
            keep = np.sort(np.argsort(-rows[:, 2], kind="stable")[: config.max_keypoints])
            rows, descriptors = rows[keep], descriptors[keep]
        return Features(
            keypoints=from_colmap(rows[:, :2]),
            descriptors=(descriptors.astype(np.float32) / QUANTUM).astype(np.float16),
            scores=rows[:, 2].copy(),
            image_size=(width, height),
            scales=rows[:, 2].copy(),
            oris=rows[:, 3].copy(),
        )

    def _detect_coarse_first(self, pixels: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        rows, descriptors = self._detect(pixels, config.first_octave + 1, config.num_octaves - 1, budget)
        found = _num_keypoints(rows)
        if found >= budget:
            return rows, descriptors
        fine = [self._fine_tile(pixels, *tile) for tile in self._tiles(pixels.shape[1], pixels.shape[0])]
        fine_rows = np.concatenate([part[0] for part in fine])
        fine_descriptors = np.concatenate([part[1] for part in fine])
        keep = self._complete_levels(fine_rows, budget - found)
        return (
            np.concatenate([fine_rows[keep], rows]),
            np.concatenate([fine_descriptors[keep], descriptors]),
        )

    def _tiles(self, width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
        """Tile cores (x0, y0, x1, y1) that cover the image without overlap."""
        side = math.sqrt(self.config.coarse_first_megapixels * 1e6)
        columns, rows = max(1, math.ceil(width / side)), max(1, math.ceil(height / side))
        for row in range(rows):
            for column in range(columns):
                yield (
                    column * width // columns,
                    row * height // rows,
                    (column + 1) * width // columns,
                    (row + 1) * height // rows,
                )

    def _fine_tile(self, pixels: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> tuple[np.ndarray, np.ndarray]:
        """Features of the finest octave whose keypoints are in the core of a tile."""
        halo = self.config.tile_halo_px
        left, top = max(0, x0 - halo), max(0, y0 - halo)
        tile = np.ascontiguousarray(pixels[top : y1 + halo, left : x1 + halo])
        rows, descriptors = self._detect(tile, self.config.first_octave, 1, UNLIMITED)
        rows[:, :2] += (left, top)
        inside = (rows[:, 0] >= x0) & (rows[:, 0] < x1) & (rows[:, 1] >= y0) & (rows[:, 1] < y1)
        return rows[inside], descriptors[inside]

    def _complete_levels(self, rows: Float[np.ndarray, "n 4"], budget: int) -> np.ndarray:
        """Indices of the finest octave's features on its coarsest levels, level by level until `budget` is exceeded."""
        resolution = self.config.octave_resolution
        base = BASE_SIGMA * 2.0 ** (self.config.first_octave + 1.0 / resolution)
        levels = np.clip(np.round(resolution * np.log2(rows[:, 2] / base)), 0, resolution - 1)
        lowest = 0
        for level in reversed(range(resolution)):
            lowest = level
            if _num_keypoints(rows[levels >= level]) > budget:
                break
        return np.flatnonzero(levels >= lowest)

    def _detect(
        self, pixels: np.ndarray, first_octave: int, num_octaves: int, budget: int
    ) -> tuple[Float[np.ndarray, "n 4"], UInt8[np.ndarray, "n 128"]]:
        """Rows (x, y, scale, orientation) in COLMAP pixels, and descriptors."""
        keypoints, descriptors = self._create_extractor(first_octave, num_octaves, budget).extract_from_uint8_array(
            pixels
        )
        if len(keypoints) == 0:
            return np.zeros((0, 4), np.float32), np.zeros((0, DIMENSION), np.uint8)
        import pycolmap

        rows = np.asarray(pycolmap.keypoints_to_matrix(keypoints), dtype=np.float32)
        return rows, np.asarray(descriptors.data)

    def _create_extractor(self, first_octave: int, num_octaves: int, budget: int) -> Any:
        """Create a pycolmap extractor, a new one for every call.

        A reused extractor keeps the gradients of the last octave with a keypoint, and would compute descriptors of that
        octave from them for the next image of the same size (VLFeat's `grad_o` is not reset).
        """
        import pycolmap

        options = pycolmap.FeatureExtractionOptions()
        options.num_threads = 1
        options.use_gpu = False
        sift = options.sift
        sift.max_num_features = budget
        sift.first_octave, sift.num_octaves = first_octave, num_octaves
        for name in (
            "octave_resolution",
            "peak_threshold",
            "edge_threshold",
            "max_num_orientations",
            "upright",
        ):
            setattr(sift, name, getattr(self.config, name))
        sift.normalization = getattr(pycolmap.Normalization, self.config.normalization.upper())
        return pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)


def _num_keypoints(rows: Float[np.ndarray, "n 4"]) -> int:
    """Number of keypoints as COLMAP counts them for its budget: a keypoint with two orientations counts once."""
    return len(np.unique(rows[:, :3], axis=0))
