"""Training a patch descriptor: its task and its validation. The loop is `training.loop`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from featkit.core.errors import BadInputError, UsageError
from featkit.core.runtime import torch_device
from featkit.data.augment import degrade_patches, warp_patches
from featkit.data.label_mining import MinedLabels, mine_labels
from featkit.data.patch_set import ClassIndex, PatchSet
from featkit.data.samplers import (
    AdaSampler,
    BatchPlan,
    GroupSampler,
    PairSampler,
    Sampler,
    choose_positives,
    distance_weights,
    distances_from_anchor,
    draw_members,
    usable_classes,
)
from featkit.evaluation.metrics import fpr95, pair_distances
from featkit.evaluation.patches import ImagePair, image_pairs, matching_ap
from featkit.features.patches import describe_patches
from featkit.losses.base import GroupBatch, HingeLoss, LossResult, PairBatch
from featkit.losses.build import build_loss, scaled_to_budget
from featkit.losses.sosnet import second_order_term
from featkit.models.patch import PatchNetwork
from featkit.training.distributed import World, launch
from featkit.training.loop import Trained, train
from featkit.training.patch_config import AdaSample, Groups, HeldOut, PatchTraining, check_bits
from featkit.training.patch_feed import Batch, Draw, PatchFeed
from featkit.training.task import Score
from featkit.training.whole_batch import backward, compiled, share_batch_norms, split_trunk_head
from featkit.weights.files import learned_scenes, load_patch_network, save_patch_network

# ----------------------------------------------------------------------------------------------------------------------
# The task: one training step.


DESCRIBED_AT_ONCE = 512  # candidates of AdaSample per forward pass, without graph
TIMED_PATCHES = 256  # validation patches used to estimate the duration of a validation
FINGERPRINTED = 1000  # patches in the digest that identifies a data set
SMALLEST_AVERAGE = 1e-6  # lower bound of the average loss: keeps lambda / L_avg finite


class PatchTask:
    """Training of a patch descriptor: network, loss and batches."""

    Config = PatchTraining
    name = "patch"
    unit = "patches"
    picture_turns = 0
    score = Score("validation_matching_error", "held-out matching error (1 - mAP)", 100.0, "%")

    def __init__(self, config: PatchTraining, device: str = "auto"):
        self.config = config
        self._device = torch_device(device)
        self._network_config = config.network
        check_bits(config)
        self.network = PatchNetwork(config.network, torch.Generator().manual_seed(config.seed)).to(self._device)
        self.starts_trained = bool(config.start)
        self._start_scenes: frozenset[str] = frozenset()
        if config.start:
            self._load_initial_weights(config.start)
        loss = (
            scaled_to_budget(config.loss, config.steps, config.batch_size) if config.scale_statistics else config.loss
        )
        self.loss = build_loss(loss).to(self._device)
        wanted = "groups" if isinstance(config.sampler, Groups) else "pairs"
        if self.loss.batch_kind != wanted:
            raise UsageError(
                f"loss {config.loss.name!r} takes {self.loss.batch_kind}; sampler.kind: {config.sampler.kind} "
                f"gives {wanted}"
            )
        if config.second_order_weight and wanted == "groups":
            raise UsageError(
                f"second_order_weight: SOSNet's term compares pairs, and loss {config.loss.name!r} takes whole groups; "
                "leave it 0, or choose a loss of pairs"
            )
        if isinstance(config.sampler, AdaSample) and not isinstance(self.loss, HingeLoss):
            raise UsageError(
                "sampler.kind: adasample needs the average loss that only angular_triplet and hardnet keep; "
                f"choose one of them, or another sampler for {config.loss.name!r}"
            )

    def _load_initial_weights(self, start: str) -> None:
        """Load trained weights and what is known of their training. Raises UsageError for those of another network."""
        trained, _ = load_patch_network(start, self._device)
        try:
            self.network.load_state_dict(trained.state_dict())
        except RuntimeError:
            wanted, loaded = self.config.network, trained.config
            differing = [name for name in type(wanted).model_fields if getattr(wanted, name) != getattr(loaded, name)]
            raise UsageError(f"start: {start} is another network: {', '.join(differing)} of network differ") from None
        self._network_config = self._network_config.model_copy(update={"magnification": trained.config.magnification})
        self._start_scenes = learned_scenes(start)

    def prepare(self, data: PatchSet, world: World) -> None:
        """Set up the training patches. Raises BadInputError and UsageError if there are too few."""
        self.world = world
        if data.magnification is not None:
            self._network_config = self._network_config.model_copy(update={"magnification": data.magnification})
        if not isinstance(self.config.sampler, Groups):
            world.check_batch(self.config.batch_size, "pairs")
        classes = usable_classes(data.classes)
        train, out = split_classes(data, classes, self.config.held_out, self.config.seed)
        self.also_measured: dict[str, float] = {}
        self._pairs: ValidationPairs | None = None
        if world.is_first:
            self._pairs = validation_pairs(data, out, self.config.held_out, self.config.seed)
        self._mined_labels: MinedLabels | None = None
        self.last: Batch | None = None
        draw = Draw(
            self._build_sampler(train, data),
            self.config.augmentation,
            np.random.default_rng([self.config.seed, 1]),
            getattr(self.config.sampler, "filled_rotation_deg", 0.0),
        )
        self.feed = PatchFeed(data.patches, draw, world.device, self._own_rows, self.config.patches_on)
        trunk, self._head = split_trunk_head(self.network, several=world.size > 1)
        if world.size > 1:
            share_batch_norms(trunk, world.total)
        self._trunk: Any = compiled(trunk, trunk) if self.config.compile else trunk

    def _build_sampler(self, train: ClassIndex, data: PatchSet) -> Sampler:
        generator = np.random.default_rng([self.config.seed, 0])
        sampler, batch = self.config.sampler, self.config.batch_size
        if isinstance(sampler, Groups):
            scenes = data.scenes[train.members[train.starts]] if sampler.two_scenes else None
            if sampler.label_mining is not None:
                self._mined_labels = mine_labels(data, sampler.label_mining, self.world.device)
            at_random = sampler.fill == "at_random"
            return GroupSampler(train, batch, generator, sampler.max_per_group, scenes, at_random)
        if isinstance(sampler, AdaSample):
            return AdaSampler(train, batch, sampler.class_size, sampler.candidates, generator)
        return PairSampler(train, batch, generator, self.config.same_image_share, data.images)

    def _own_rows(self, plan: BatchPlan) -> slice:
        if not plan.columns:
            return self.world.part(len(plan.patches))
        rows = self.world.part(len(plan.patches) // plan.columns)
        return slice(rows.start * plan.columns, rows.stop * plan.columns)

    @classmethod
    def identity_of(cls, data: PatchSet) -> str:
        """`n patches, digest`, with a digest of the classes and a sample of patches."""
        digest = hashlib.sha256(np.ascontiguousarray(data.classes, np.int64).tobytes())
        sample = np.unique(np.linspace(0, len(data) - 1, FINGERPRINTED if len(data) else 0).astype(np.int64))
        digest.update(np.ascontiguousarray(data.patches[sample]).tobytes())
        return f"{len(data)} patches, {digest.hexdigest()[:16]}"

    def described(self, data: PatchSet) -> dict[str, Any]:
        """Name, number of patches, scenes (also those that `start` was trained on), and the initial weights."""
        scenes = dict.fromkeys((*data.scene_names, *sorted(self._start_scenes)))
        start = {"start": self.config.start} if self.config.start else {}
        magnification = data.magnification
        if magnification is None and self.config.start:
            magnification = self._network_config.magnification
        size = {} if magnification is None else {"magnification": magnification}
        return {"name": data.name, "patches": len(data), "scenes": list(scenes), **size, **start}

    @property
    def batch_items(self) -> int:
        """Patches per step."""
        return self.config.batch_size * (1 if isinstance(self.config.sampler, Groups) else 2)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network's parameters with their learning rates."""
        optimiser = self.config.optimiser
        scale = self.config.batch_size / optimiser.reference_batch if optimiser.reference_batch else 1.0
        return self.network.parameter_groups(optimiser.learning_rate * scale)

    def modules(self) -> dict[str, nn.Module]:
        """Modules saved in a checkpoint, with their buffers."""
        return {"network": self.network, "loss": self.loss}

    def state(self) -> dict[str, Any]:
        """Further state that the next steps depend on."""
        return {"feed": self.feed.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.feed.restore(state["feed"])

    def step(self, share: float) -> LossResult:
        """Add the gradient of the next batch's loss. share: completed share of the training, in [0, 1)."""
        self.network.train()
        self.last = batch = self.feed.next()
        if isinstance(self.config.sampler, AdaSample):
            patches, weights, extra = self._choose_informative_pairs(batch)
        else:
            patches, weights, extra = self._warp_batch(batch), None, {}
        plan = batch.plan
        count = len(plan.patches) if not plan.columns else 2 * (len(plan.patches) // plan.columns)
        result = backward(
            self._trunk,
            self.network,
            patches,
            count,
            lambda features: self._batch_loss(features, plan, weights, share),
            self.world,
            self.config.chunk,
        )
        return LossResult(result.loss.detach(), {**result.statistics, **extra})

    def held_out(self) -> float:
        """1 - mAP of matching on the validation image pairs; first process only."""
        assert self._pairs is not None
        scores = held_out_scores(self.network, self._pairs, self.world.device, self.config.precision)
        self.also_measured = {"validation_fpr95": scores.fpr95}
        return scores.matching_error

    def held_out_s(self) -> float:
        """Estimated duration of `held_out` in seconds, from some of its patches."""
        assert self._pairs is not None
        started, sample = time.perf_counter(), self._pairs.pixels[:TIMED_PATCHES]
        describe_patches(self.network, sample, self.world.device, precision=self.world.precision)
        self.network.train()
        return (time.perf_counter() - started) * len(self._pairs.pixels) / len(sample)

    def waited_s(self) -> float:
        """Seconds spent waiting for patches so far."""
        return self.feed.waited_s

    def save_weights(self, path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write the network with the given state."""
        network = PatchNetwork(self._network_config)
        network.load_state_dict(state)
        save_patch_network(path, network.eval(), metadata)

    def pictures(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        return {}

    def close(self) -> None:
        """Stop prefetching."""
        self.feed.close()

    def batch_arrays(self) -> dict[str, UInt8[np.ndarray, "..."]]:
        """The last batch, for debugging."""
        if self.last is None:
            return {}
        plan = self.last.plan
        return {"patches": plan.patches, "labels": plan.labels, "transforms": self.last.transforms}

    def _warp_batch(self, batch: Batch) -> Float[Tensor, "p 1 s s"]:
        rows = self._own_rows(batch.plan)
        transforms = torch.from_numpy(batch.transforms[rows]).to(self.world.device)
        patches = warp_patches(batch.pixels, transforms, self.network.input_px, self.config.augmentation.fill)
        return patches if batch.degradations is None else degrade_patches(patches, batch.degradations, rows)

    def _batch_loss(
        self, features: Float[Tensor, "m f"], plan: BatchPlan, weights: Tensor | None, share: float
    ) -> LossResult:
        description = self._head(features)
        if not plan.columns:
            labels = torch.from_numpy(plan.labels).to(features.device)
            ignored = (
                None
                if self._mined_labels is None
                else self._mined_labels.ignored(plan.patches, plan.labels, features.device)
            )
            return self.loss(GroupBatch(description.descriptor, labels, ignored), share)
        batch = PairBatch(
            description.descriptor[0::2],
            description.descriptor[1::2],
            description.raw[0::2],
            description.raw[1::2],
            weights,
        )
        result = self.loss(batch, share)
        if self.config.second_order_weight:
            second = second_order_term(batch, self.config.second_order_neighbours)
            total = result.loss + self.config.second_order_weight * second
            return LossResult(total, {**result.statistics, "second_order": second.detach()})
        return result

    def _choose_informative_pairs(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Anchors with the positives chosen by AdaSample, the weights of the pairs, and statistics."""
        sampler = self.config.sampler
        assert isinstance(sampler, AdaSample)
        assert isinstance(self.loss, HingeLoss)
        plan, k = batch.plan, batch.plan.columns
        candidates = self._warp_batch(batch)  # (p k, 1, s, s)
        rows = self.world.part(len(plan.patches) // k)
        exponent = sampler.strength / max(float(self.loss.average_loss), SMALLEST_AVERAGE)  # lambda / L_avg, eq. 13
        kind = self.loss.distance if sampler.distance == "of_loss" else sampler.distance
        from_anchor = distances_from_anchor(self._describe(candidates).unflatten(0, (-1, k)), kind)
        chance = torch.from_numpy(plan.chance[rows]).to(from_anchor.device)
        chosen = choose_positives(from_anchor, exponent, chance)
        pairs = candidates.unflatten(0, (-1, k))
        anchors = torch.arange(len(chosen), device=from_anchor.device)
        patches = torch.stack([pairs[:, 0], pairs[anchors, 1 + chosen]], dim=1).flatten(0, 1)
        distances = self.world.gather(from_anchor[anchors, chosen][:, None], len(plan.patches) // k)[:, 0]
        weights = distance_weights(distances, exponent, sampler.smallest_angle)
        return (
            patches,
            weights,
            {
                "exponent": torch.tensor(exponent),
                "sampled_distance": distances.mean(),
            },
        )

    @torch.no_grad()
    def _describe(self, patches: Float[Tensor, "p 1 s s"]) -> Float[Tensor, "p d"]:
        """Unit descriptors of the current network, without dropout and with running statistics."""
        self.network.eval()
        with self.world.autocast():
            descriptors = [self.network(part).descriptor.float() for part in patches.split(DESCRIBED_AT_ONCE)]
        self.network.train()
        return torch.cat(descriptors)


# ----------------------------------------------------------------------------------------------------------------------
# The validation set, split off the training data, and how well the network matches on it.
#
# The best step is selected by the descriptors' purpose: mean AP of matching between images of scenes not trained on
# (evaluation/patches.py). FPR95 on the same patches is also reported; on classes of the training scenes it is close to
# zero for every network (0.05 to 0.5 %) and selects by chance.


@dataclass(frozen=True)
class ValidationPairs:
    """Matching patch pairs, grouped by image pair. others: for each pair, the row of a non-match of its first patch.

    Rows 0 .. p-1 of `pixels` are the first patches, p .. 2p-1 the second ones. ends: cumulative pairs per image pair.
    """

    pixels: UInt8[np.ndarray, "m s s"]
    others: Int[np.ndarray, " p"]
    ends: Int[np.ndarray, " g"]


@dataclass(frozen=True)
class HeldOutScores:
    """Shares in [0, 1], smaller is better. matching_error: 1 - mAP."""

    matching_error: float
    fpr95: float


def split_classes(data: PatchSet, index: ClassIndex, config: HeldOut, seed: int) -> tuple[ClassIndex, ClassIndex]:
    """(training, validation) classes, split by complete scenes if possible, see `HeldOut`.

    Raises UsageError for an unknown scene name, BadInputError if either part is too small for pairs.
    """
    generator = np.random.default_rng([seed, 2])
    of_class = np.array(data.scene_names)[data.scenes[index.members[index.starts]]]
    if config.scenes:
        unknown = next((name for name in config.scenes if name not in data.scene_names), None)
        if unknown is not None:
            known = ", ".join(sorted(set(data.scene_names)))
            raise UsageError(f"held_out.scenes: no scene {unknown!r} in the data; it has {known}")
        is_held_out = np.isin(of_class, config.scenes)
    else:
        is_held_out = _choose_scenes(data, of_class, config, generator)
        if not is_held_out.any():
            number = max(2, round(config.share * len(is_held_out)))
            is_held_out[generator.permutation(len(is_held_out))[:number]] = True
    if min(int(is_held_out.sum()), int((~is_held_out).sum())) < 2:
        raise BadInputError(
            f"only {len(is_held_out)} classes have two patches or more, {int(is_held_out.sum())} of them held out:"
            " too few to train with and to measure on"
        )
    train, held_out = (
        ClassIndex(index.members, index.starts[rows], index.counts[rows]) for rows in (~is_held_out, is_held_out)
    )
    return train, held_out


def _choose_scenes(
    data: PatchSet, of_class: np.ndarray, config: HeldOut, generator: np.random.Generator
) -> Bool[np.ndarray, " c"]:
    """Classes of random complete scenes while they fit; if images are known, only scenes whose images share enough.

    Scenes with the same name in several sets count as one scene.
    """
    names, counts = np.unique(of_class, return_counts=True)
    usable = set(names.tolist())
    if data.images is not None:
        pairs = image_pairs(data.classes, data.scenes, data.images, config.min_shared, 1, generator)
        usable = {data.scene_names[data.scenes[pair.rows0[0]]] for pair in pairs}
    chosen: list[str] = []
    remaining = config.share * len(of_class)
    for number in generator.permutation(len(names)):
        if names[number] in usable and counts[number] <= remaining:
            chosen.append(names[number])
            remaining -= counts[number]
    return np.isin(of_class, chosen)


def validation_pairs(data: PatchSet, index: ClassIndex, config: HeldOut, seed: int) -> ValidationPairs:
    """At most `config.pairs` matching pairs of validation classes, grouped by image pair."""
    generator = np.random.default_rng([seed, 3])
    members = np.concatenate([index.members[s : s + c] for s, c in zip(index.starts, index.counts, strict=True)])
    shared_pairs: list[ImagePair] = []
    if data.images is not None:
        candidates = image_pairs(
            data.classes[members],
            data.scenes[members],
            data.images[members],
            config.min_shared,
            config.max_shared,
            generator,
        )
        shared_pairs = _truncate_pairs(
            config.pairs, (ImagePair(members[p.rows0], members[p.rows1]) for p in candidates)
        )
    if not shared_pairs:
        shared_pairs = _truncate_pairs(config.pairs, _pairs_within_scenes(data, index, config, generator))
    rows0, rows1 = (np.concatenate([getattr(pair, name) for pair in shared_pairs]) for name in ("rows0", "rows1"))
    sizes = np.array([len(pair) for pair in shared_pairs])
    first, size = np.repeat(np.cumsum(sizes) - sizes, sizes), np.repeat(sizes, sizes)
    place = np.arange(len(rows0)) - first
    others = first + (place + 1 + (generator.random(len(place)) * (size - 1)).astype(np.int64)) % size
    pixels = np.ascontiguousarray(data.patches[np.concatenate([rows0, rows1])])
    return ValidationPairs(pixels, len(rows0) + others, np.cumsum(sizes))


def _truncate_pairs(most: int, pairs: Iterator[ImagePair]) -> list[ImagePair]:
    """Image pairs, the last one truncated, up to `most` patch pairs in total; at least two patch pairs each."""
    found: list[ImagePair] = []
    for pair in pairs:
        kept = min(most, len(pair))
        if kept >= 2:
            found.append(ImagePair(pair.rows0[:kept], pair.rows1[:kept]))
            most -= kept
        if most < 2:
            break
    return found


def _pairs_within_scenes(
    data: PatchSet, index: ClassIndex, config: HeldOut, generator: np.random.Generator
) -> Iterator[ImagePair]:
    """Two patches per class, grouped by scene as if they came from two images; all classes together if every scene has
    only one."""
    order = generator.permutation(len(index))
    members = draw_members(index, order, 2, generator)
    scenes = data.scenes[members[:, 0]]
    groups = [members[scenes == scene] for scene in np.unique(scenes)]
    groups = [group for group in groups if len(group) >= 2] or [members]
    for group in groups:
        for start in range(0, len(group), config.max_shared):
            part = group[start : start + config.max_shared]
            yield ImagePair(part[:, 0], part[:, 1])


def held_out_scores(
    network: Any, pairs: ValidationPairs, device: torch.device, precision: str = "fp32"
) -> HeldOutScores:
    """Validation scores of a network, which is left in training mode."""
    described = describe_patches(network, pairs.pixels, device, precision=precision)  # type: ignore[arg-type]
    network.train()
    first, second = np.split(described, 2)
    starts = np.r_[0, pairs.ends[:-1]]
    aps = [matching_ap(first[a:b], second[a:b]) for a, b in zip(starts, pairs.ends, strict=True)]
    near, far = pair_distances(first, second), pair_distances(first, described[pairs.others])
    match = np.arange(2 * len(first)) < len(first)
    return HeldOutScores(1.0 - float(np.mean(aps)), float(fpr95(np.concatenate([near, far]), match)))


# ----------------------------------------------------------------------------------------------------------------------
# `featkit train patch`: patches -> a patch descriptor.


def train_descriptor(
    config: PatchTraining,
    data: PatchSet,
    output: Path,
    *,
    world: World | None = None,
    device: str = "auto",
    **options: Any,
) -> Trained:
    """Train a patch descriptor. options and errors: those of `train`.

    world: None for the processes started by torchrun, or this one, on `device`.
    """
    world = world or launch(device, None, config.precision, config.timeout_s)
    return train(PatchTask, config, data, output, world, **options)
