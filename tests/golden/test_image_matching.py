"""Image-matching benchmarks on textures under exact homographies, against protocols written out as plain loops."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from warped_sequences import SIZE, write_sequence

from featkit.core.registry import resolve
from featkit.evaluation.benchmark import Predictions, predict
from featkit.evaluation.hpatches import MatchingConfig, MethodScore, evaluate_matching
from featkit.evaluation.metrics import mma_score, transfer_errors
from featkit.evaluation.oxford import MethodPrecision, OxfordConfig, evaluate_precision
from featkit.evaluation.published import published
from featkit.evaluation.sequences import Sequence, SequenceSet, read_sequences
from featkit.features.stage import ExtractConfig, extraction_method
from featkit.io.features import FeatureStore, open_features
from featkit.io.matches import open_matches

KEYPOINTS = 110
WITHOUT_FEATURES = "i_blank"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SequenceSet:
    """A sequence of each type, and one whose last image is blank."""
    root = tmp_path_factory.mktemp("sequences")
    write_sequence(root, "v_texture", seed=1, oxford=False)
    write_sequence(root, "i_texture", seed=2, oxford=False, strength=0.3)
    write_sequence(root, WITHOUT_FEATURES, seed=3, oxford=False)
    cv2.imwrite(str(root / WITHOUT_FEATURES / "6.ppm"), np.full((SIZE[1], SIZE[0], 3), 90, np.uint8))
    return read_sequences(root)


@pytest.fixture(scope="module")
def predictions(data: SequenceSet, tmp_path_factory: pytest.TempPathFactory) -> Predictions:
    config = ExtractConfig(features="rootsift", workers=1)
    method = extraction_method(config, {"max_keypoints": KEYPOINTS}, "cpu")
    pairs = [pair.pair for pair in data.pairs()]
    matcher = resolve("matcher", "mutual-nn", device="cpu")
    return predict(method, data.root, data.image_names(), tmp_path_factory.mktemp("out"), matcher, pairs)


@pytest.fixture(scope="module")
def scored(data: SequenceSet, predictions: Predictions) -> MethodScore:
    return evaluate_matching(data, predictions)


def projected(homography: np.ndarray, x: float, y: float) -> tuple[float, float]:
    u, v, w = (float(row[0] * x + row[1] * y + row[2]) for row in homography)
    return u / w, v / w


def slow_mutual(first: np.ndarray, second: np.ndarray) -> list[tuple[int, int]]:
    """Mutual nearest neighbours by the product of the descriptors, as D2-Net's; row after row."""
    if not len(first) or not len(second):
        return []
    forth = [int(np.argmax([np.dot(a, b) for b in second])) for a in first]
    back = [int(np.argmax([np.dot(a, b) for a in first])) for b in second]
    return [(i, j) for i, j in enumerate(forth) if back[j] == i]


def slow_mma(sequence: Sequence, store: FeatureStore) -> tuple[list[list[float]], list[int], list[int]]:
    """D2-Net's protocol: MMA of the five pairs, their matches, and the features of the six images."""
    curves, matches = [], []
    features = [store.read(name) for name in sequence.image_names]
    for number in range(2, 7):
        first, second = features[0], features[number - 1]
        pairs = slow_mutual(first.descriptors.astype(float), second.descriptors.astype(float))
        errors = []
        for i, j in pairs:
            x, y = projected(sequence.homographies[number - 2], *first.keypoints[i])
            errors.append(((x - second.keypoints[j][0]) ** 2 + (y - second.keypoints[j][1]) ** 2) ** 0.5)
        curves.append([sum(e <= t for e in errors) / len(errors) if errors else 0.0 for t in range(1, 11)])
        matches.append(len(pairs))
    return curves, matches, [len(one) for one in features]


def test_mma_against_the_protocol_in_loops(data: SequenceSet, predictions: Predictions, scored: MethodScore) -> None:
    curves, matches, features = [], [], []
    with open_features(predictions.features) as store:
        for sequence in data.sequences:
            slow = slow_mma(sequence, store)
            curves += slow[0]
            matches += slow[1]
            features += slow[2]
            mean = scored.sequences[sequence.name]
            np.testing.assert_allclose(mean.mma, np.mean(slow[0], axis=0), err_msg=sequence.name)
    np.testing.assert_allclose([pair.mma for pair in scored.pairs], curves)
    whole = scored.groups["overall"]
    np.testing.assert_allclose(whole.mma, np.mean(curves, axis=0))
    assert (whole.matches, whole.features, whole.pairs) == (np.mean(matches), np.mean(features), 15)
    assert list(scored.groups) == ["illumination", "viewpoint", "overall"]
    assert scored.groups["viewpoint"].pairs == 5
    np.testing.assert_allclose(scored.groups["viewpoint"].mma, np.mean(curves[10:], axis=0))
    assert whole.mma_score == pytest.approx(
        sum((2 - t / 10) * np.mean(curves, axis=0)[t - 1] for t in range(1, 11)) / 14.5
    )


def test_a_pair_without_matches_counts_as_zero(scored: MethodScore) -> None:
    blank = next(pair for pair in scored.pairs if (pair.sequence, pair.image) == (WITHOUT_FEATURES, 6))
    assert blank.matches == blank.features[1] == 0
    assert blank.mma.max() == 0
    assert blank.corner_error_px == float("inf")
    others = [pair.mma for pair in scored.pairs if pair.sequence == WITHOUT_FEATURES and pair.image < 6]
    np.testing.assert_allclose(scored.sequences[WITHOUT_FEATURES].mma, np.sum(others, axis=0) / 5)
    assert scored.as_json()["pairs"][scored.pairs.index(blank)]["corner_error_px"] is None


def test_exact_views_match(scored: MethodScore) -> None:
    for group in ("illumination", "viewpoint"):
        whole = [pair for pair in scored.pairs if pair.matches and pair.sequence[0] == group[0]]
        assert np.mean([pair.mma[2] for pair in whole]) > 0.8, group
        assert np.median([pair.corner_error_px for pair in whole]) < 1, group


def test_pixel_centres_are_whole_numbers(data: SequenceSet, predictions: Predictions) -> None:
    """A homography of the other convention, whose pixels are counted from the image's corner, is seen in the errors."""
    assert predictions.matches is not None
    half = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    there, elsewhere = [], []
    with open_features(predictions.features) as store, open_matches(predictions.matches) as matches:
        for pair in data.pairs():
            if pair.sequence.name != "v_texture":
                continue
            names = pair.pair
            found = store.keypoints(names.name0), store.keypoints(names.name1), matches.read(names)
            errors = transfer_errors(*found, pair.homography)
            right = errors < 3
            there += errors[right].tolist()
            other = np.linalg.inv(half) @ pair.homography  # adds half a pixel in image N alone
            elsewhere += transfer_errors(*found, other)[right].tolist()
    assert np.median(there) < 0.25
    assert np.median(elsewhere) > 0.55


def slow_overlap(
    centre: np.ndarray, scale: float, other: np.ndarray, other_scale: float, back: np.ndarray, radius: float | None
) -> float:
    """Overlap error of polygons in image 1: regions of 3 scales, or magnified so that the first has that radius."""
    angles = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    middle = np.array(projected(back, *other))
    tiny = np.concatenate([other + 1e-3 * other_scale * unit, np.ones((len(unit), 1))], axis=1) @ back.T
    ring = tiny[:, :2] / tiny[:, 2:] - middle  # the local affine map, by a tiny circle
    radius = radius or 3 * scale
    ellipse = (ring * 1e3 * radius / scale + middle - centre).astype(np.float32)
    circle = (radius * unit).astype(np.float32)
    shared = cv2.intersectConvexConvex(circle, ellipse)[0]
    return 1 - shared / (cv2.contourArea(circle) + cv2.contourArea(ellipse) - shared)


def slow_pair_precision(sequence: Sequence, number: int, store: FeatureStore, rule: str, radius: float | None) -> float:
    """AP of nearest neighbours of one pair, by the rules as they are written."""
    homography = sequence.homographies[number - 2]
    back = np.linalg.inv(homography)
    first, second = store.read(sequence.image_names[0]), store.read(sequence.image_names[number - 1])
    assert first.scales is not None
    assert second.scales is not None

    def in_image(point: tuple[float, float]) -> bool:
        return -0.5 <= point[0] < SIZE[0] - 0.5 and -0.5 <= point[1] < SIZE[1] - 0.5

    rows0 = [i for i in range(len(first)) if in_image(projected(homography, *first.keypoints[i]))]
    rows1 = [j for j in range(len(second)) if in_image(projected(back, *second.keypoints[j]))]
    found: list[tuple[float, bool]] = []
    total = 0
    for i in rows0:
        right = set()
        for j in rows1:
            x, y = projected(homography, *first.keypoints[i])
            if rule == "distance":
                good = np.hypot(x - second.keypoints[j][0], y - second.keypoints[j][1]) <= 3
            else:
                good = bool(np.hypot(x - second.keypoints[j][0], y - second.keypoints[j][1]) < 70) and (
                    slow_overlap(
                        first.keypoints[i].astype(float), float(first.scales[i]),
                        second.keypoints[j].astype(float), float(second.scales[j]), back, radius,
                    ) <= 0.5
                )  # fmt: skip
            if good:
                right.add(j)
        total += bool(right)
        if rows1:
            nearest = max(rows1, key=lambda j: float(np.dot(first.descriptors[i].astype(float), second.descriptors[j])))
            distance = float(np.linalg.norm(first.descriptors[i].astype(float) - second.descriptors[nearest]))
            found.append((distance, nearest in right))
    area, hits, before = 0.0, 0, 1.0
    for rank, (_, flag) in enumerate(sorted(found), start=1):
        hits += flag
        area += flag / total * (hits / rank + before) / 2
        before = hits / rank
    return area


@pytest.fixture(scope="module")
def precise(data: SequenceSet, predictions: Predictions) -> MethodPrecision:
    return evaluate_precision(data, predictions)


@pytest.mark.parametrize(("rule", "radius"), [("overlap", None), ("overlap", 30.0), ("distance", None)])
def test_map_against_the_protocol_in_loops(
    data: SequenceSet, predictions: Predictions, rule: str, radius: float | None
) -> None:
    sequence = next(one for one in data.sequences if one.name == "v_texture")
    with open_features(predictions.features) as store:
        slow = [slow_pair_precision(sequence, number, store, rule, radius) for number in (2, 4)]
    fast = evaluate_precision(data, predictions, OxfordConfig(region_radius_px=radius))
    pairs = {pair.image: pair for pair in fast.pairs if pair.sequence == "v_texture"}
    np.testing.assert_allclose([pairs[2].ap[rule], pairs[4].ap[rule]], slow, atol=1e-3)
    assert 0.3 < slow[0] < 1


def test_map_is_a_mean_of_means(precise: MethodPrecision) -> None:
    for rule in ("overlap", "distance"):
        means = {}
        for name in precise.sequences:
            means[name] = np.mean([pair.ap[rule] for pair in precise.pairs if pair.sequence == name])
            assert precise.sequences[name][rule] == pytest.approx(means[name])
        assert precise.mean[rule] == pytest.approx(np.mean([*means.values()]))
    blank = next(pair for pair in precise.pairs if (pair.sequence, pair.image) == (WITHOUT_FEATURES, 6))
    assert blank.ap == {"overlap": 0, "distance": 0}
    assert blank.matches == 0


def test_matching_one_to_one_never_uses_a_feature_twice(data: SequenceSet, predictions: Predictions) -> None:
    one = evaluate_precision(data, predictions, OxfordConfig(matching="one_to_one"))
    for pair in one.pairs:
        assert pair.matches == min(pair.features_in_both)
        assert all(pair.right[rule] <= pair.matches for rule in pair.right)
        assert all(0 <= value <= 1 for value in pair.ap.values())


def test_metrics_are_the_same_when_made_again(data: SequenceSet, predictions: Predictions, scored: MethodScore) -> None:
    """RANSAC included: its seed is fixed."""
    again = evaluate_matching(data, predictions, MatchingConfig())
    assert again.as_json() == scored.as_json()


def test_scores_of_published_curves_are_those_of_scfeat(shared_data: Path) -> None:
    """18 curves: 12 of table II, 1 of table III, and 5 that neither has, whose scores the file itself gives."""
    path = shared_data.parent / "reference" / "hpatches_mma.json"
    if not path.is_file():
        pytest.skip("the published curves are not here (../shared/reference)")
    methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
    table = {row.name: row.values[2:] for one in reversed(published("hpatches_mma").tables) for row in one.rows}
    groups = ("viewpoint", "illumination", "overall")
    compared = 0
    assert len(methods) == 18
    for name, method in methods.items():
        printed = table.get(name.removesuffix(" (20k)"))
        compared += printed is not None
        scores = [100 * mma_score(np.array(method[group])) for group in groups]
        expected = printed or [method["mma_score"][group] for group in groups]
        np.testing.assert_allclose(scores, expected, atol=0.1, err_msg=name)
    assert compared == 13
