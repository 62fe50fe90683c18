"""Image sequences with known homographies, in the layouts of HPatches and of the Oxford affine regions.

A sequence is a folder of two or more images, with homographies that map image 1 to each of the others.
HPatches (Balntas et al., CVPR 2017): i_* (illumination) and v_* (viewpoint) with 1.ppm ... 6.ppm, H_1_2 ... H_1_6.
Oxford (Mikolajczyk and Schmid, PAMI 2005): img1.* ... img6.*, H1to2p ... H1to6p. Both have six images; EVD (Mishkin et
al., CVIU 2015), in HPatches' layout, has two. The length of a sequence is the highest number of a homography, or of the
images numbered without a gap, whichever is larger; every file up to it is required.
Homographies use featkit's pixel convention: pixel centres at integers.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Collection, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from featkit.core.errors import BadInputError
from featkit.core.registry import Method
from featkit.core.types import Pair
from featkit.evaluation.benchmark import ImageBenchmark, Predictions, Work, names_in
from featkit.features.base import Extractor
from featkit.images.listing import SUFFIXES
from featkit.images.read import stored_size
from featkit.io.atomic import read_lines
from featkit.matching.stage import Matcher

LOGGER = logging.getLogger(__name__)
HPATCHES_IMAGES = 6
TYPES = {"i_": "illumination", "v_": "viewpoint"}
RELEASE = "hpatches-sequences-release"
FETCH = "get HPatches with `featkit data fetch hpatches-sequences --out FOLDER`"
# Larger than 1600 x 1200 px: D2-Net (Dusmanu et al., CVPR 2019) excludes these; 52 + 56 of the 116 sequences remain.
TOO_LARGE = frozenset(
    {
        "i_contruction",
        "i_crownnight",
        "i_dc",
        "i_pencils",
        "i_whitebuilding",
        "v_artisans",
        "v_astronautis",
        "v_talent",
    }
)
OXFORD_HOMOGRAPHY, HPATCHES_HOMOGRAPHY = re.compile(r"H1to(\d{1,3})p"), re.compile(r"H_1_(\d{1,3})")
NAMED_AT_MOST = 6  # files listed in one error message
UNIT_PX = 1000.0  # approximate image size: in this unit a homography has entries near 1
SINGULAR = 1e-12  # determinant, in that unit and at norm 1, below which a matrix counts as singular


@dataclass(frozen=True)
class Sequence:
    """images: image 1 to n, at least two. homographies: from image 1 to image 2 ... n, in featkit pixels."""

    name: str
    images: tuple[Path, ...]
    homographies: Float[np.ndarray, "n-1 3 3"]

    @property
    def type(self) -> str:
        """HPatches' type: "illumination" or "viewpoint"; "" for other data sets."""
        return TYPES.get(self.name[:2], "")

    @property
    def image_names(self) -> tuple[str, ...]:
        """Image names in a store, relative to the folder of sequences."""
        return tuple(f"{self.name}/{path.name}" for path in self.images)

    def pairs(self) -> Iterator[SequencePair]:
        """Image 1 paired with each of the others."""
        names = self.image_names
        for number in range(2, len(names) + 1):
            yield SequencePair(self, number, Pair(names[0], names[number - 1]), self.homographies[number - 2])


@dataclass(frozen=True)
class SequencePair:
    """Image 1 and image `number`. homography: from image 1 to image `number`, in featkit pixels."""

    sequence: Sequence
    number: int
    pair: Pair
    homography: Float[np.ndarray, "3 3"]


@dataclass(frozen=True)
class SequenceSet:
    """sequences: sorted by name. root: their folder. left_out: names of those excluded as too large."""

    root: Path
    sequences: tuple[Sequence, ...]
    left_out: tuple[str, ...] = ()

    def image_names(self) -> list[str]:
        return [name for sequence in self.sequences for name in sequence.image_names]

    def pairs(self) -> list[SequencePair]:
        return [pair for sequence in self.sequences for pair in sequence.pairs()]

    @property
    def counted(self) -> str:
        """The number of sequences and pairs, in words."""
        count = len(self.sequences)
        return f"{count} {'sequence' if count == 1 else 'sequences'}, {len(self.pairs())} pairs"

    def described(self) -> dict[str, Any]:
        """Description of the data, as plain values."""
        return {
            "root": str(self.root),
            "sequences": [sequence.name for sequence in self.sequences],
            "left_out": list(self.left_out),
            "pairs": len(self.pairs()),
        }

    @property
    def is_hpatches(self) -> bool:
        """Whether the sequences are exactly those of D2-Net's protocol, which published results refer to."""
        if any(len(sequence.images) != HPATCHES_IMAGES for sequence in self.sequences):
            return False
        types = [sequence.type for sequence in self.sequences]
        return (types.count("illumination"), types.count("viewpoint")) == (52, 56) and not TOO_LARGE & {
            sequence.name for sequence in self.sequences
        }


def read_sequences(root: Path, names: Collection[str] = (), all_sequences: bool = False) -> SequenceSet:
    """Read a folder of sequences in either layout. names: only these, whatever their size.

    all_sequences: also those of HPatches that D2-Net's protocol excludes as too large.
    Raises BadInputError that names what is missing or broken.
    """
    root = _find_release(root)
    available = [path.name for path in sorted(root.iterdir()) if path.is_dir() and is_sequence(path)]
    unknown = sorted(set(names) - set(available))
    if unknown:
        raise BadInputError(f"{root}: no sequence {unknown[0]!r}; there are: {', '.join(available) or 'none'}")
    if not available:
        raise BadInputError(_no_sequence_message(root))
    left_out = tuple(name for name in available if name in TOO_LARGE and not names and not all_sequences)
    selected = [name for name in available if name not in left_out and (not names or name in names)]
    if left_out:
        LOGGER.info(
            "%d sequences are left out as too large, as D2-Net does (--all-sequences keeps them)", len(left_out)
        )
    problems: list[str] = []
    sequences = tuple(_read_sequence(root / name, problems) for name in selected)
    if problems:
        more = f" and {len(problems) - NAMED_AT_MOST} more" if len(problems) > NAMED_AT_MOST else ""
        raise BadInputError(f"{root}: {'; '.join(problems[:NAMED_AT_MOST])}{more}; {FETCH}, or leave out the sequence")
    if not sequences:
        raise BadInputError(f"{root}: all {len(left_out)} sequences are too large for the protocol; --all-sequences")
    return SequenceSet(root, sequences, left_out)


def _find_release(root: Path) -> Path:
    if not root.is_dir():
        kind = "is a file, not a folder of sequences" if root.exists() else "no such folder"
        raise BadInputError(f"{root}: {kind}; {FETCH}")
    return root / RELEASE if (root / RELEASE).is_dir() else root


def _no_sequence_message(root: Path) -> str:
    if is_sequence(root):
        return f"{root}: is one sequence; name the folder it lies in, and --sequences {root.resolve().name}"
    return f"{root}: no sequence in it (folders with 1.ppm and H_1_2, or img1.png and H1to2p); {FETCH}"


def is_sequence(folder: Path) -> bool:
    """Whether a folder looks like a sequence, complete or not."""
    if folder.name[:2] in TYPES:
        return True
    return bool(_homography_numbers(folder, OXFORD_HOMOGRAPHY) or _homography_numbers(folder, HPATCHES_HOMOGRAPHY))


def _homography_numbers(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    """N of each file named like a homography from image 1 to N."""
    return [int(found[1]) for path in folder.iterdir() if (found := pattern.fullmatch(path.name))]


def _read_sequence(folder: Path, problems: list[str]) -> Sequence:
    """Read a sequence; missing or broken files are added to `problems`."""
    numbers = _homography_numbers(folder, OXFORD_HOMOGRAPHY)
    oxford = bool(numbers) or _find_image(folder, "img1") is not None
    stems = "img{}" if oxford else "{}"
    numbered = next(n for n in itertools.count(1) if _find_image(folder, stems.format(n)) is None) - 1
    last = max(2, numbered, *(numbers or _homography_numbers(folder, HPATCHES_HOMOGRAPHY)))
    images = []
    for number in range(1, last + 1):
        stem = stems.format(number)
        path = _find_image(folder, stem)
        if path is None:
            problems.append(f"{folder.name}/{stem}.{'png' if oxford else 'ppm'} is missing")
            continue
        try:
            stored_size(path)
            images.append(path)
        except BadInputError:
            problems.append(f"{folder.name}/{path.name} is not an image that can be read")
    homographies = np.full((last - 1, 3, 3), np.nan)
    for number in range(2, last + 1):
        name = f"H1to{number}p" if oxford else f"H_1_{number}"
        try:
            homographies[number - 2] = read_homography(folder / name)
        except BadInputError as error:
            problems.append(f"{folder.name}/{name} {str(error).removeprefix(f'{folder / name}: ')}")
    return Sequence(folder.name, tuple(images), homographies)


def _find_image(folder: Path, stem: str) -> Path | None:
    images = sorted(path for path in folder.glob(f"{stem}.*") if path.suffix.lower() in SUFFIXES)
    return images[0] if images else None


def read_homography(path: Path) -> Float[np.ndarray, "3 3"]:
    """Read nine numbers in row-major order. Raises BadInputError for anything else, and for a singular matrix."""
    if not path.is_file():
        raise BadInputError(f"{path}: is missing")
    try:
        values = np.array([float(word) for _, line in read_lines(path) for word in line.replace(",", " ").split()])
    except ValueError:
        raise BadInputError(f"{path}: is not made of numbers") from None
    if values.size != 9:
        raise BadInputError(f"{path}: holds {values.size} numbers instead of 9")
    homography = values.reshape(3, 3)
    if not np.isfinite(homography).all():
        raise BadInputError(f"{path}: has a number that is not finite")
    unit = np.array([UNIT_PX, UNIT_PX, 1.0])
    scaled = homography * unit[None] / unit[:, None]
    if homography[2, 2] == 0 or abs(np.linalg.det(scaled / np.linalg.norm(scaled))) < SINGULAR:
        raise BadInputError(
            f"{path}: is not a homography between two images (singular, or the corner goes to infinity)"
        )
    return homography


# ----------------------------------------------------------------------------------------------------------------------
# Base of benchmarks on sequences: selection of sequences, and one feature store for all of them.


@dataclass(kw_only=True)
class SequenceBenchmark(ImageBenchmark[SequenceSet]):
    """sequences: only these names, comma-separated. all_sequences: include HPatches sequences that are too large.

    keypoints: file with the keypoints to describe (`ExtractConfig.keypoints`), images named from the root.
    """

    sequences: str | None = None
    all_sequences: bool = False
    keypoints: Path | None = None

    def method(self, name: str, label: str | None = None, changes: dict[str, Any] | None = None, **reading: Any) -> Any:
        """`ImageBenchmark.method`, describing the given keypoints where there are some."""
        if self.keypoints is not None:
            label = f"{label or name} on {self.keypoints.stem}"
        return super().method(name, label, changes, **reading, keypoints=self.keypoints)

    def find(self, roots: SequenceOf[Path]) -> SequenceSet:
        return read_sequences(roots[0], names_in(self.sequences), self.all_sequences)

    def predictions(
        self, data: SequenceSet, method: Method[Extractor], work: Work, matcher: Method[Matcher] | None = None
    ) -> Predictions:
        """Features of all images, and matches of all pairs if a matcher is given."""
        return work.predict(method, data.root, data.image_names(), matcher, [pair.pair for pair in data.pairs()])
