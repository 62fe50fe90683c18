"""Trained weights: found by name or path, read and written as safetensors, listed with what is known about them."""

from featkit.weights.export import Origin, export_weight, read_scores
from featkit.weights.manifest import WeightInfo, add_row, find, list_weights, listed, sha256_of
from featkit.weights.patch_files import load_patch_network, read_metadata, save_patch_network
from featkit.weights.published import import_checkpoint
from featkit.weights.scfeat_files import load_scfeat_network, save_scfeat_network

__all__ = [
    "Origin",
    "WeightInfo",
    "add_row",
    "export_weight",
    "find",
    "import_checkpoint",
    "list_weights",
    "listed",
    "load_patch_network",
    "load_scfeat_network",
    "read_metadata",
    "read_scores",
    "save_patch_network",
    "save_scfeat_network",
    "sha256_of",
]
