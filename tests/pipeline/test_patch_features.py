"""Maps from real-valued and binary patch descriptors with `--features dog+NAME`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from featkit.models.patch import PatchNetwork, PatchNetworkConfig
from featkit.weights.files import save_patch_network


def untrained(path: Path, **config: Any) -> Path:
    """Random weights, which are sufficient for the texture of a rendered scene."""
    draw = torch.Generator().manual_seed(0)
    network = PatchNetwork(PatchNetworkConfig(**config), draw).train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    network(torch.nn.functional.avg_pool2d(torch.rand(64, 1, 36, 36, generator=draw), 5, 1))
    save_patch_network(path, network.eval(), {})
    return path


@pytest.mark.parametrize(("features", "bits", "kind"), [("dog+hynet", 0, "float16"), ("dog+doap-binary", 256, "uint8")])
def test_a_map_with_patch_descriptors(
    rendered_copy: Path, small_rendered: Any, featkit_command: Callable[..., Any], features: str, bits: int, kind: str
) -> None:
    weight = untrained(rendered_copy / "weight.safetensors", architecture="hynet", bits=bits)
    params = ",".join(map(str, small_rendered.intrinsics.params))
    ran = featkit_command(
        "reconstruct", rendered_copy, "--features", features, "--weights", weight,
        "--camera-model", "PINHOLE", "--camera-params", params, "--camera-mode", "single", "--fix-intrinsics",
        "--max-keypoints", "500", "--truth", rendered_copy / "truth" / "poses.txt", "--device", "cpu", "--json", "-q",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = ran.json()
    assert found["registered"] >= 4, "an untrained network is no good one"
    assert found["points"] > 50
    with h5py.File(rendered_copy / "featkit" / "features.h5") as file:
        rows = next(file[name]["descriptors"] for name in sorted(file) if "descriptors" in file[name])
        assert rows.dtype == np.dtype(kind)
        assert rows.shape[0] == (bits // 8 or 128)
        assert len(file.attrs["weights_sha256"]) == 64
    again = featkit_command(
        "extract", rendered_copy / "images", "--out", rendered_copy / "featkit" / "features.h5", "--features", features,
        "--weights", untrained(weight, architecture='l2net', bits=bits), "--max-keypoints", "500",
    )  # fmt: skip
    assert again.code == 3, "features of another weight under the same name are not gone on with"
    assert "weight" in again.err
