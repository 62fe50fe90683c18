"""Small substitutes for patch benchmarks: repeated views of textures with noise, in the layouts of the real ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from featkit.data.hpatches import KINDS
from featkit.evaluation.patches import PatchDescriber

SEQUENCES = {"i_one": 11, "i_two": 9, "v_one": 13, "v_two": 8}


def textures(count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random patches, float, about 0 to 255."""
    noise = rng.normal(0, 1, (count, side, side))
    return np.stack([128 + 400 * cv2.GaussianBlur(patch, (0, 0), side / 12) for patch in noise])


def write_hpatches(root: Path, seed: int = 0, sequences: dict[str, int] = SEQUENCES) -> Path:
    """Write an HPatches release, with noise increasing from e to t and between views. sequences: points, by name."""
    rng = np.random.default_rng(seed)
    for name, count in sequences.items():
        folder = root / "hpatches-release" / name
        folder.mkdir(parents=True)
        truth = textures(count, 65, rng)
        for kind in KINDS:
            level = {"r": 5, "e": 60, "h": 110, "t": 180}[kind[0]] * (
                0.5 + 0.2 * int(kind[1:] or 0) if kind != "ref" else 1
            )
            seen = truth + level * textures(count, 65, rng) / 128 - level
            cv2.imwrite(str(folder / f"{kind}.png"), seen.clip(0, 255).astype(np.uint8).reshape(-1, 65))
    return root


def thumbnails(bits: int = 0) -> PatchDescriber:
    """A method of medium quality: the 4 x 4 thumbnail of a patch, or its comparisons as packed bits."""

    def describe(patches: np.ndarray) -> np.ndarray:
        everything = patches[np.arange(len(patches))]
        small = np.stack([cv2.resize(p, (4, 4), interpolation=cv2.INTER_AREA) for p in everything]).reshape(-1, 16)
        values = small.astype(np.float32) - small.mean(axis=1, keepdims=True)
        if bits:
            return np.packbits(values[:, :bits] > 0, axis=1)
        return (values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)).astype(np.float32)

    return PatchDescriber(f"thumbnails-{bits}" if bits else "thumbnails", describe, {})


def matlab5(arrays: dict[str, np.ndarray], compressed: bool = True, order: str = "<") -> bytes:
    """A MATLAB 5 file of numeric arrays, written from the format's description."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)

    def small(kind: int, data: bytes) -> bytes:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")

    types = {"u1": (2, 9), "f8": (9, 6), "f4": (7, 7), "i4": (5, 12), "u2": (4, 11)}
    out = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    for name, array in arrays.items():
        kind, array_class = types[array.dtype.str[1:]]
        inner = element(6, struct.pack(f"{order}II", array_class, 0))
        inner += element(5, struct.pack(f"{order}{array.ndim}i", *array.shape))
        label = name.encode()
        inner += small(1, label) if len(label) <= 4 else element(1, label)
        inner += element(kind, array.astype(array.dtype.newbyteorder(order)).tobytes(order="F"))
        matrix = element(14, inner)
        if compressed:
            packed = zlib.compress(matrix)
            matrix = struct.pack(f"{order}II", 15, len(packed)) + packed
        out += matrix
    return out


def write_rome(folder: Path, groups: int = 12, size: int = 5, side: int = 51, seed: int = 0) -> Path:
    """Both parts of RomePatches, RGB and channels first; the queries are the first of each group, in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for part in ("train", "test"):
        truth = textures(groups, side, rng)
        queries = rng.permutation(groups)
        others = rng.permutation(np.repeat(np.arange(groups), size - 1))
        labels = np.r_[queries, others]
        seen = truth[labels] + 90 * (textures(len(labels), side, rng) / 128 - 1)
        grey = seen.clip(0, 255).astype(np.uint8)
        colour = np.repeat(grey[:, None], 3, axis=1)
        name = f"patch_retrieval_Rome_{part}"
        (folder / f"{name}.mat").write_bytes(matlab5({"patches": colour}))
        labelled = {"labels_gt": queries[None].astype(np.float64) + 1, "labels": others[None].astype(np.float64) + 1}
        (folder / f"{name}_labels.mat").write_bytes(matlab5(labelled))
    return folder
