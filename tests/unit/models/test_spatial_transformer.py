"""DOAP's Spatial Transformer: what it samples, against OpenCV and exact geometry."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from featkit.models.patch import PatchNetwork, PatchNetworkConfig, SpatialTransformer


@pytest.fixture
def transformer() -> SpatialTransformer:
    config = PatchNetworkConfig(architecture="l2net", spatial_transformer=True)
    made = PatchNetwork(config, torch.Generator().manual_seed(0)).eval().transformer
    assert made is not None
    return made


def smooth_patches(count: int = 3) -> Tensor:
    rng = np.random.default_rng(0)
    arrays = [cv2.GaussianBlur(rng.random((42, 42)), (0, 0), 2.0) for _ in range(count)]
    return torch.from_numpy(np.stack(arrays)).float()[:, None]


def predict(transformer: SpatialTransformer, values: list[float]) -> None:
    """Predict one map for every patch: the identity plus six values."""
    with torch.no_grad():
        transformer.prediction.bias.copy_(torch.tensor(values))  # type: ignore[union-attr]


def test_untrained_it_resizes_the_whole_patch(transformer: SpatialTransformer) -> None:
    some = smooth_patches()
    resized = [cv2.resize(patch[0].numpy(), (32, 32), interpolation=cv2.INTER_LINEAR) for patch in some]
    np.testing.assert_allclose(transformer(some).detach()[:, 0], resized, atol=1e-5)
    assert torch.equal(transformer.affine(some), torch.eye(2, 3).expand(3, 2, 3))


def test_the_map_goes_from_the_output_to_the_input_in_x_and_y(transformer: SpatialTransformer) -> None:
    """Half of the side in x: the left half of what comes out is the right half of what would have."""
    some, whole = smooth_patches(), transformer(smooth_patches()).detach()
    predict(transformer, [0, 0, 1, 0, 0, 0])  # half of the range -1 to 1
    moved = transformer(some).detach()
    torch.testing.assert_close(moved[..., :15], whole[..., 16:31], rtol=0, atol=1e-5)


def test_a_rotation_by_a_quarter(transformer: SpatialTransformer) -> None:
    some, whole = smooth_patches(), transformer(smooth_patches()).detach()
    predict(transformer, [-1, -1, 0, 1, -1, 0])  # x = -y', y = x'
    turned = np.rot90(whole.numpy(), 1, axes=(2, 3))
    np.testing.assert_allclose(transformer(some).detach().numpy(), turned, atol=1e-5)


def test_outside_the_patch_its_boundary_is_repeated(transformer: SpatialTransformer) -> None:
    """Zoomed out twice: the outer rows are those of the patch padded by 21 px on every side."""
    some = smooth_patches()
    predict(transformer, [1, 0, 0, 0, 1, 0])
    padded = np.pad(some.numpy()[:, 0], ((0, 0), (21, 21), (21, 21)), mode="edge")
    centres = (np.arange(32) + 0.5) * 84 / 32 - 0.5
    xs, ys = (grid.astype(np.float32) for grid in np.meshgrid(centres, centres))
    expected = [cv2.remap(patch, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for patch in padded]
    np.testing.assert_allclose(transformer(some).detach()[:, 0], expected, atol=5e-3)  # remap: 1/32 px


def test_it_learns_from_the_start(transformer: SpatialTransformer) -> None:
    """Zero weights do not stop the prediction; the layers below follow once it has moved."""
    weights = torch.randn((3, 1, 32, 32), generator=torch.Generator().manual_seed(2))
    (transformer(smooth_patches()) * weights).sum().backward()
    for parameter in transformer.prediction.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
        parameter.data.add_(parameter.grad, alpha=-1e-4)
    (transformer(smooth_patches()) * weights).sum().backward()
    for parameter in transformer.features.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_its_map_is_not_rounded_under_autocast(transformer: SpatialTransformer) -> None:
    some = smooth_patches()
    expected = transformer(some)
    with torch.autocast("cpu", torch.bfloat16):
        found = transformer(some)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
