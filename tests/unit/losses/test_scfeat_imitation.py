"""Imitation of a teacher, against plain loops."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from featkit.losses.scfeat_imitation import ImitationConfig, TeacherKeypoints, imitation_loss, score_loss

SIZE = (32, 24)


def lesson(seed: int, count: int = 6, images: int = 2, shown: tuple[int, ...] = (6, 4)) -> TeacherKeypoints:
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(images, count, 2, generator=generator) * torch.tensor([31.0, 23.0])).round()
    descriptors = normalize(torch.randn(images, count, 5, generator=generator), dim=2)
    scores = torch.rand(images, count, generator=generator) + 0.1
    visible = torch.arange(count)[None] < torch.tensor(shown)[:, None]
    return TeacherKeypoints(points, descriptors, scores, visible)


def maps_of(given: TeacherKeypoints, seed: int) -> torch.Tensor:
    """Maps at full resolution, so that an integer point reads one pixel."""
    return torch.randn(2, 5, SIZE[1], SIZE[0], generator=torch.Generator().manual_seed(seed))


def test_the_formula_by_loops() -> None:
    given, config = lesson(0), ImitationConfig(descriptor=0.7, similarity=0.3, temperature=0.2)
    maps = maps_of(given, 1)
    cosines, relations = [], []
    for b in range(2):
        rows = [k for k in range(6) if given.shown[b, k]]
        own, teacher = {}, {}
        for k in rows:
            x, y = given.points[b, k].int().tolist()
            vector = maps[b, :, y, x].numpy().astype(np.float64)
            own[k], teacher[k] = vector / np.linalg.norm(vector), given.descriptors[b, k].numpy().astype(np.float64)
            cosines.append(1 - own[k] @ teacher[k])
        for k in rows:
            others = [j for j in rows if j != k]
            p, q = (
                np.exp([unit[k] @ unit[j] / 0.2 for j in others]) for unit in (teacher, own)
            )  # fmt: skip
            p, q = p / p.sum(), q / q.sum()
            relations.append(float((p * np.log(p / q)).sum()))
    expected = 0.7 * np.mean(cosines) + 0.3 * np.mean(relations)
    found = imitation_loss(maps, given, SIZE, config)
    assert abs(float(found.loss) - expected) < 1e-5


def test_a_student_that_agrees_has_no_loss_and_a_turned_space_costs_only_the_first_term() -> None:
    given = lesson(2)
    maps = torch.zeros(2, 5, SIZE[1], SIZE[0])
    for b in range(2):
        for k in range(6):
            x, y = given.points[b, k].int().tolist()
            maps[b, :, y, x] = 3 * given.descriptors[b, k]
    assert float(imitation_loss(maps, given, SIZE, ImitationConfig()).loss) < 1e-5
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(5)))
    turned = torch.einsum("dc,bchw->bdhw", turn, maps)
    found = imitation_loss(turned, given, SIZE, ImitationConfig())
    assert float(found.statistics["teacher_relation"]) < 1e-4
    assert float(found.statistics["teacher_distance"]) > 0.1


def test_rows_that_are_not_shown_count_for_nothing() -> None:
    given, maps = lesson(3), maps_of(lesson(3), 4)
    other = TeacherKeypoints(given.points.clone(), given.descriptors.clone(), given.scores.clone(), given.shown)
    other.points[1, 4:], other.descriptors[1, 4:], other.scores[1, 4:] = 7.0, 1.0, 99.0
    config, valid = ImitationConfig(), torch.ones(2, 1, SIZE[1], SIZE[0], dtype=torch.bool)
    assert torch.equal(imitation_loss(maps, given, SIZE, config).loss, imitation_loss(maps, other, SIZE, config).loss)
    scores = maps[:, :1].exp()
    assert torch.equal(score_loss(scores, given, valid, 1.0).loss, score_loss(scores, other, valid, 1.0).loss)
    none = TeacherKeypoints(given.points, given.descriptors, given.scores, torch.zeros_like(given.shown))
    maps.requires_grad_()
    loss = imitation_loss(maps, none, SIZE, config).loss + score_loss(maps[:, :1].exp(), none, valid, 1.0).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert maps.grad is not None
    assert bool((maps.grad == 0).all())


def test_scores_are_best_when_they_are_the_teachers_whatever_their_scale() -> None:
    given = lesson(6)
    valid = torch.ones(2, 1, SIZE[1], SIZE[0], dtype=torch.bool)
    ideal = torch.full((2, 1, SIZE[1], SIZE[0]), 1e-9)
    entropies = []
    for b in range(2):
        share = (given.scores[b] * given.shown[b]).double()
        share = share / share.sum()
        for k in range(6):
            if given.shown[b, k]:
                x, y = given.points[b, k].int().tolist()
                ideal[b, 0, y, x] = float(share[k])
        entropies.append(-float((share[share > 0] * share[share > 0].log()).sum()))
    least = float(score_loss(ideal, given, valid, 1.0).loss)
    assert abs(least - np.mean(entropies)) < 1e-3  # Gibbs: cross entropy is at least the entropy
    assert abs(float(score_loss(50 * ideal, given, valid, 1.0).loss) - least) < 1e-4
    for seed in range(5):
        noisy = ideal * (0.2 + torch.rand(ideal.shape, generator=torch.Generator().manual_seed(seed)))
        assert float(score_loss(noisy, given, valid, 1.0).loss) > least
