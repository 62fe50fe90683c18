"""What passes between hloc and featkit's extractors and matchers: hloc's tensors <-> Features.

Both count pixels from the centre of the top-left one, (0, 0), so keypoints cross as they are. hloc adds its 0.5 where
it scales keypoints back to the size of the file, and once more where it fills the database of COLMAP.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from featkit.errors import BadInputError
from featkit.matching.packed_bits import BYTE, is_packed, pack_bits, unpack_signs
from featkit.types import Features, Matches

INT16_MAX = 32767  # hloc stores the index of a match as int16


def pixels_of(image: Float[Tensor, "1 c h w"], colour: bool) -> UInt8[np.ndarray, "h w *c"]:
    """hloc's image (grey or RGB, 0 to 1) as an extractor takes it. The bytes of the file come back exactly."""
    planes = np.rint(image[0].detach().cpu().numpy() * 255.0).clip(0, 255).astype(np.uint8)
    if colour:
        return np.ascontiguousarray(np.broadcast_to(planes, (3, *planes.shape[1:])).transpose(1, 2, 0))
    if len(planes) == 1:
        return np.ascontiguousarray(planes[0])
    return cv2.cvtColor(np.ascontiguousarray(planes.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)


def prediction_of(features: Features) -> dict[str, Tensor]:
    """What hloc writes for one image, with its axis of length 1 in front.

    Keypoints are float64: hloc turns every float32 array into float16 by default, which is 1 px coarse beyond 1,024 px,
    and leaves float64 alone. Orientations are in degrees (as hloc's own SIFT and AdaLAM have them). Packed bits become
    rows of -1 and +1 over the root of their number: hloc knows no bits, and their products order as Hamming distances.
    """
    rows = features.descriptors
    if is_packed(rows):
        rows = (unpack_signs(rows) / np.sqrt(BYTE * rows.shape[1])).astype(np.float16)
    arrays = {
        "keypoints": features.keypoints.astype(np.float64),
        "scores": features.scores.astype(np.float32),
        "descriptors": np.ascontiguousarray(rows.T),
    }
    if features.scales is not None:
        arrays["scales"] = features.scales.astype(np.float32)
    if features.oris is not None:
        arrays["oris"] = np.degrees(features.oris).astype(np.float32)
    if features.turns > 1:
        arrays["turns"] = np.asarray(features.turns)
    return {name: torch.from_numpy(np.array(values))[None] for name, values in arrays.items()}


def features_of(data: Mapping[str, Tensor], side: int) -> Features:
    """Features of image `side` (0 or 1) of a pair, from what hloc hands to a matcher (whoever extracted them)."""
    descriptors = data[f"descriptors{side}"][0].T.cpu().numpy()
    count = len(descriptors)
    height, width = data[f"image{side}"].shape[-2:] if f"image{side}" in data else (0, 0)

    def values(name: str, otherwise: np.ndarray) -> np.ndarray:
        stored = data.get(f"{name}{side}")
        return otherwise if stored is None else stored[0].cpu().numpy()

    return Features(
        keypoints=values("keypoints", np.zeros((count, 2))).astype(np.float32),
        descriptors=_bits_again(descriptors),
        scores=values("scores", np.ones(count)).astype(np.float32),
        image_size=(int(width), int(height)),
        turns=int(values("turns", np.asarray(1))),
    )


def _bits_again(rows: Float[np.ndarray, "n d"]) -> np.ndarray:
    """The packed bits that `prediction_of` unpacked; real-valued rows as they are."""
    if rows.size and rows.shape[1] % BYTE == 0 and (np.abs(rows) == np.abs(rows[0, 0])).all():
        return pack_bits(rows > 0)
    return rows


def matches_as_hloc(matches: Matches) -> dict[str, Tensor]:
    """What hloc writes for one pair. Raises BadInputError for an index that its int16 cannot hold."""
    if len(matches.matches0) and matches.matches0.max() > INT16_MAX:
        raise BadInputError(
            f"a match with keypoint {matches.matches0.max():,}: hloc's int16 ends at {INT16_MAX:,};"
            " extract fewer keypoints, or match with `featkit match`"
        )
    return {
        "matches0": torch.from_numpy(matches.matches0.astype(np.int64))[None],
        "matching_scores0": torch.from_numpy(matches.scores0.astype(np.float32))[None],
    }
