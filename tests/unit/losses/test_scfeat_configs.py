"""Configurations of SCFeat's losses: the paper's constants, and every field explained."""

import ast
import inspect

import pytest

from featkit.core.config import Config
from featkit.losses.scfeat_description import DescriptionLossConfig, LineToWindowConfig
from featkit.losses.scfeat_detection import DetectionLossConfig, GridPolicyConfig, RewardConfig
from featkit.losses.scfeat_fundamental import FundamentalErrorConfig
from featkit.losses.scfeat_warm_up import ContrastiveLossConfig

CONFIGS: list[type[Config]] = [
    ContrastiveLossConfig,
    DescriptionLossConfig,
    DetectionLossConfig,
    FundamentalErrorConfig,
    GridPolicyConfig,
    LineToWindowConfig,
    RewardConfig,
]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_says_what_it_is(config: type[Config]) -> None:
    body = ast.parse(inspect.getsource(config)).body[0].body  # type: ignore[attr-defined]
    fields = [node for node in body if isinstance(node, ast.AnnAssign)]
    assert fields
    for node in fields:
        after = body[body.index(node) + 1]
        assert isinstance(after, ast.Expr), ast.unparse(node.target)
        assert isinstance(after.value, ast.Constant), ast.unparse(node.target)


def test_defaults_are_the_papers() -> None:
    description, detection = DescriptionLossConfig(), DetectionLossConfig()
    assert (description.cell_px, description.line_samples, description.temperature) == (16, 100, 60)
    assert (description.window_share, description.jitter, description.mask_share) == (0.1, 0.707, 0.1)
    assert (detection.policy.cell_px, detection.epsilon_px, detection.temperature) == (8, 2, 60)
    assert (detection.error.draws, detection.regulariser, detection.reward.error_factor) == (100, -0.001, True)
    assert (detection.reward.good, detection.reward.bad) == (1, -0.25)
    assert (detection.error.quantile, detection.error.beta) == (0, 1)  # the minimum of smooth L1
