"""What SCFeat's error of the fundamental matrix (L_fme, eq. 19) changes, in each way of computing it.

    python benchmarks/reward_effect.py --data POSED [--weights scfeat-s] [--batches 32] [--size 320 240]

POSED: posed pairs (`featkit data posed-pairs`) of scenes that the weight was not trained on. Nothing is trained. For
every batch of pairs the keypoints are drawn once, and each formulation gives its L_fme, rewards and gradient of the
detector's parameters; twice, with the weight's own detector and with one that has learned nothing yet.

    l_fme          quantiles over the pairs of images
    factor         the same of tanh L_fme, between 0 and 1
    tells_bad      Spearman's correlation, over the pairs of images, of L_fme and the share of mutual nearest neighbours
                   that do not agree with the poses: 1, the factor knows how bad the matches are; 0, it does not
    reward         mean of eq. 20 over pairs of keypoints, weighted by p_ij. Where it is negative keypoints are
                   discouraged for being matched
    changed        |g - g0| / |g|: g the gradient, g0 that with L_fme replaced by 0; median over the batches
    changed_mean   the same of the gradients' means over all batches, where what is noise averages out
    from_control   |g - gc| / |gc| of the means: gc the gradient of good = 1, bad = 0, no regulariser, no L_fme
    turned_deg     angle between g and gc of the means: what an optimiser that rescales gradients, as Adam does, still
                   sees; above 90 degrees the detector is taught the opposite

Writes benchmarks/results/reward_effect.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from machine import write_result
from scipy.stats import spearmanr
from torch import Tensor

from featkit.data.posed_pairs import PosedConfig, read_posed_pairs
from featkit.data.posed_samples import PairAugmentation, PosedBatch, PosedSamples
from featkit.data.views import CanvasConfig
from featkit.losses.scfeat_detection import (
    DetectionLossConfig,
    KeypointSample,
    MatchedKeypoints,
    RewardConfig,
    candidate_pairs,
    match_keypoints,
    policy_loss,
    regulariser_factor,
    rewards,
    sample_keypoints,
    sort_accepted_first,
)
from featkit.losses.scfeat_fundamental import FundamentalError, FundamentalErrorConfig, fundamental_error
from featkit.losses.two_views import LossContext, TwoViews
from featkit.models.scfeat import SCFeatNetwork
from featkit.weights.files import load_scfeat_network

CONTROL = DetectionLossConfig(reward=RewardConfig(error_factor=False, good=1.0, bad=0.0), regulariser=0.0)
WITHOUT = {"control": CONTROL, "PoSFeat": DetectionLossConfig(reward=RewardConfig(error_factor=False))}
BASE = DetectionLossConfig()
ERRORS: dict[str, dict[str, Any]] = {
    "algorithm 1": {"pairs": "good", "scale": "image"},
    "algorithm 1, pixels": {"pairs": "good", "scale": "pixels"},
    "authors' code": {"pairs": "good", "scale": "authors", "draws": 1, "over": "batch"},
    "two index sets": {"pairs": "independent", "scale": "image"},
    "good, median": {"pairs": "good", "scale": "image", "quantile": 0.5},
    "good, lines 0.03": {"pairs": "good", "scale": "lines", "tolerance_share": 0.03},
    "good, lines 0.03, median": {"pairs": "good", "scale": "lines", "tolerance_share": 0.03, "quantile": 0.5},
    "mutual, entries": {"pairs": "mutual", "scale": "image"},
    "mutual, entries, linear": {"pairs": "mutual", "scale": "image", "beta": 1e-3},
    "mutual, entries, median": {"pairs": "mutual", "scale": "image", "quantile": 0.5},
    "mutual, lines 0.03": {"pairs": "mutual", "scale": "lines", "tolerance_share": 0.03},
    "mutual, lines 0.1": {"pairs": "mutual", "scale": "lines", "tolerance_share": 0.1},
    "mutual, lines 0.2": {"pairs": "mutual", "scale": "lines", "tolerance_share": 0.2},
    "mutual, lines 0.3": {"pairs": "mutual", "scale": "lines", "tolerance_share": 0.3},
    "mutual, lines 0.5": {"pairs": "mutual", "scale": "lines", "tolerance_share": 0.5},
    "mutual, lines 0.5, median": {"pairs": "mutual", "scale": "lines", "tolerance_share": 0.5, "quantile": 0.5},
    "likely, entries": {"pairs": "likely", "scale": "image"},
    "likely, lines 0.3": {"pairs": "likely", "scale": "lines", "tolerance_share": 0.3},
}
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass
class Seen:
    """Of one formulation, over the batches."""

    errors: list[float] = field(default_factory=list)
    bad_shares: list[float] = field(default_factory=list)
    undefined: int = 0
    rewards: list[float] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    without: list[Tensor] = field(default_factory=list)


def batches(arguments: argparse.Namespace) -> Iterator[PosedBatch]:
    """Pairs spread over all there are, as they were photographed."""
    pairs = read_posed_pairs(arguments.data, PosedConfig())
    canvas = CanvasConfig(width=arguments.size[0], height=arguments.size[1])
    samples = PosedSamples(pairs, PairAugmentation(canvas=canvas).model_copy(update={"jitter": still()}))
    count = min(len(pairs), arguments.batches * arguments.batch_size)
    chosen = np.unique(np.linspace(0, len(pairs) - 1, count).astype(int))
    order = np.random.default_rng(arguments.seed).permutation(chosen)
    for first in range(0, len(order) - arguments.batch_size + 1, arguments.batch_size):
        some = order[first : first + arguments.batch_size]
        yield samples.collate([samples.sample(int(i), np.random.default_rng([arguments.seed, int(i)])) for i in some])


def still() -> Any:
    return PairAugmentation().jitter.model_copy(update={"probability": 0.0})


def basis(
    samples: tuple[KeypointSample, KeypointSample], matches: MatchedKeypoints, parameters: list[torch.nn.Parameter]
) -> Float[Tensor, "b 3 p"]:
    """Gradients, of each pair of images, that those of all formulations are sums of: by good pairs of keypoints, by
    bad ones, by the regulariser."""
    rows = []
    for pair in range(len(matches.good)):
        one = torch.zeros(len(matches.good)).index_fill_(0, torch.tensor([pair]), 1.0)
        own = matches.probability * one[:, None, None]
        for gain, factor in ((own * matches.good, 0 * one), (own * ~matches.good, 0 * one), (0 * own, one)):
            loss = policy_loss(*samples, gain, factor, BASE)
            found = torch.autograd.grad(loss, parameters, retain_graph=True)
            rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows).view(len(matches.good), 3, -1)


def weights_of(error: FundamentalError, config: DetectionLossConfig) -> Float[Tensor, "b 3"]:
    """What the loss multiplies the parts of `basis` with: rewards of good and bad pairs, the regulariser's factor."""
    both = rewards(torch.tensor([[[True, False]]]).expand(len(error.value), -1, -1), error, config.reward)[:, 0]
    factor = regulariser_factor(error, config.reward) * config.regulariser / BASE.regulariser
    return torch.cat([both, factor[:, None]], dim=1)


def look(network: SCFeatNetwork, batch: PosedBatch, number: int, seen: dict[str, Seen], seed: int) -> None:
    """Add what one batch shows. The same keypoints for all formulations."""
    size = (batch.images0.shape[2], batch.images0.shape[1])
    images = torch.cat([batch.images0, batch.images1]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        maps = network.describe(images)
    scores = network.detect(images, maps).float().chunk(2)
    draw = torch.Generator().manual_seed(seed + number)
    valid = (batch.valid0[:, None], batch.valid1[:, None])
    sample0, sample1 = (
        sort_accepted_first(sample_keypoints(s, BASE.policy, draw, v)) for s, v in zip(scores, valid, strict=True)
    )
    state = draw.get_state()
    with torch.no_grad():
        matches = match_keypoints(
            sample0, sample1, TwoViews(*maps.normalised.chunk(2), batch.fundamentals01, size), BASE
        )
    parts = basis((sample0, sample1), matches, network.detection_parameters())
    bad = 1 - (matches.mutual & matches.good).sum((1, 2)) / matches.mutual.sum((1, 2)).clamp(min=1)
    likely = [(matches.probability * of).sum((1, 2)) for of in (matches.good, ~matches.good)]
    share = torch.stack([likely[0], likely[1]], dim=1) / (likely[0] + likely[1])[:, None]

    def add(name: str, error: FundamentalError, config: DetectionLossConfig) -> Tensor:
        weights = weights_of(error, config)
        seen[name].gradients.append(torch.einsum("bi,bip->p", weights, parts))
        seen[name].rewards += (weights[:, :2] * share).sum(1).tolist()
        return seen[name].gradients[-1]

    nothing = FundamentalError(torch.zeros(len(batch)), torch.zeros(len(batch), dtype=torch.bool))
    for name, config in WITHOUT.items():
        add(name, nothing, config)
    for name, fields in ERRORS.items():
        draw.set_state(state)
        config = BASE.model_copy(update={"error": FundamentalErrorConfig.model_validate(fields)})
        candidates = candidate_pairs(matches, config.error)
        points = (sample0.points, sample1.points)
        error = fundamental_error(*points, candidates, batch.fundamentals01, size, config.error, LossContext(draw))
        found, one = add(name, error, config), seen[name]
        zero = weights_of(FundamentalError(torch.zeros_like(error.value), error.defined), config)
        one.without.append(torch.einsum("bi,bip->p", zero, parts))
        one.changed.append(float((found - one.without[-1]).norm() / found.norm()))
        one.errors += error.value[error.defined].tolist()
        one.bad_shares += bad[error.defined].tolist()
        one.undefined += int((~error.defined).sum())


def summary(name: str, one: Seen, control: Tensor) -> dict[str, Any]:
    mean = torch.stack(one.gradients).mean(0)
    cosine = torch.nn.functional.cosine_similarity(mean.double(), control.double(), dim=0).clamp(-1, 1)
    row: dict[str, Any] = {
        "formulation": name,
        "reward": significant(np.mean(one.rewards)),
        "from_control": significant((mean - control).norm() / control.norm()),
        "turned_deg": significant(cosine.arccos().rad2deg()),
    }
    if name not in ERRORS:
        return row
    without = torch.stack(one.without).mean(0)
    correlation = spearmanr(one.errors, one.bad_shares).statistic if len(set(one.errors)) > 1 else math.nan
    return {
        **row,
        "error": FundamentalErrorConfig.model_validate(ERRORS[name]).result_fields(),
        "l_fme": [significant(v) for v in np.quantile(one.errors, QUANTILES)],
        "factor": [significant(v) for v in np.tanh(np.quantile(one.errors, QUANTILES))],
        "undefined": one.undefined,
        "tells_bad": round(float(correlation), 3),
        "changed": significant(np.median(one.changed)),
        "changed_mean": significant((mean - without).norm() / mean.norm()),
    }


def significant(value: Any) -> float:
    return float(f"{float(value):.3g}")


def print_table(rows: list[dict[str, Any]]) -> None:
    names = ("tells_bad", "reward", "changed", "changed_mean", "from_control", "turned_deg")
    print(f"{'':24}{'L_fme: 10 %, median, 90 %':>30}" + "".join(f"{name:>14}" for name in names))
    for row in rows:
        middle = "".join(f"{row['l_fme'][QUANTILES.index(q)]:10.2g}" for q in (0.1, 0.5, 0.9)) if "l_fme" in row else ""
        print(f"{row['formulation']:24}{middle:>30}" + "".join(f"{row.get(name, math.nan):14.3g}" for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="scfeat-s")
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    detectors: dict[str, list[dict[str, Any]]] = {}
    bad_shares: dict[str, list[float]] = {}
    for which in ("trained", "untrained"):
        network = load_scfeat_network(arguments.weights).eval()
        if which == "untrained":
            fresh = SCFeatNetwork(network.config, torch.Generator().manual_seed(arguments.seed))
            network.detector.load_state_dict(fresh.detector.state_dict())
        network.requires_grad_(False)
        for parameter in network.detection_parameters():
            parameter.requires_grad_(True)
        seen = {name: Seen() for name in (*WITHOUT, *ERRORS)}
        for number, batch in enumerate(batches(arguments)):
            look(network, batch, number, seen, arguments.seed)
        control = torch.stack(seen["control"].gradients).mean(0)
        detectors[which] = [summary(name, one, control) for name, one in seen.items()]
        bad_shares[which] = [significant(v) for v in np.quantile(seen["mutual, lines 0.1"].bad_shares, QUANTILES)]
        print(f"== {which} detector; bad share of the mutual nearest neighbours {bad_shares[which]}", flush=True)
        print_table(detectors[which])
    given = {
        "weights": arguments.weights,
        "image": "{} x {} px".format(*arguments.size),
        "pairs": len(seen["mutual, lines 0.1"].changed) * arguments.batch_size,
    }
    path = write_result(
        "reward_effect", {**given, "quantiles": QUANTILES, "bad_share": bad_shares, "detectors": detectors}
    )
    print(path)


if __name__ == "__main__":
    main()
