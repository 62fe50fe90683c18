"""Every metric of patch descriptors against a slow reference that does what the benchmark's rules say, step by step."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from synthetic_patches import SEQUENCES, thumbnails, write_hpatches, write_rome

from featkit.data.hpatches import HPatches, read_hpatches, read_rome
from featkit.data.hpatches_tasks import DrawnTasksConfig, HPatchesTasks, draw_tasks, read_tasks, write_tasks
from featkit.data.patch_set import PatchSet
from featkit.data.phototour import TestPairs, write_phototour, write_phototour_pairs
from featkit.evaluation.hpatches_patches import HPatchesConfig, HPatchesScores, evaluate_hpatches
from featkit.evaluation.metrics import average_precision
from featkit.evaluation.ubc import evaluate_pairs, evaluate_rome, read_ubc

POOLS = (8, 14, 20, 1000)
BINARY = [0, 16]  # bits of the descriptor; 0: real values


# --- the references: plain loops ---


def slow_distance(a: np.ndarray, b: np.ndarray) -> float:
    if a.dtype == np.uint8:
        return float(sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(a, b, strict=True)))
    return float(np.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))))


def slow_curve(distances: list[float], right: list[bool]) -> list[tuple[int, int]]:
    """(true, false) positives after each item in order of distance, from none on; equal ones stay in order."""
    counts = [(0, 0)]
    for place in sorted(range(len(distances)), key=lambda i: distances[i]):  # Python's sort is stable
        true, false = counts[-1]
        counts.append((true + right[place], false + (not right[place])))
    return counts


def slow_ap(distances: list[float], right: list[bool], total: int | None = None, rule: str = "trapezoid") -> float:
    """Area under the precision-recall curve."""
    total = sum(right) if total is None else total
    area, last_recall, last_precision = 0.0, 0.0, 1.0
    for true, false in slow_curve(distances, right)[1:]:
        recall, precision = true / total, true / (true + false)
        height = (precision + last_precision) / 2 if rule == "trapezoid" else precision
        area += (recall - last_recall) * height
        last_recall, last_precision = recall, precision
    return area


def slow_auc(distances: list[float], right: list[bool]) -> float:
    counts = slow_curve(distances, right)
    matches, others = counts[-1]
    area = 0.0
    for (t0, f0), (t1, f1) in itertools.pairwise(counts):
        area += (f1 - f0) / others * (t0 + t1) / (2 * matches)
    return area


def described(data: HPatches, method: object, sequence: str, kind: str) -> np.ndarray:
    return method.describe(data.patches(sequence, kind))  # type: ignore[attr-defined]


def kind_of(image: int, level: str) -> str:
    return "ref" if image == 0 else f"{level}{image}"


def slow_verification(
    data: HPatches, tasks: HPatchesTasks, method: object, level: str, kind: str
) -> tuple[float, float]:
    """(ROC area, AP): non-matches are listed first, then the matches, of which the AP takes the first fifth."""
    cache: dict[tuple[str, str], np.ndarray] = {}

    def one(sequence: int, image: int, point: int) -> np.ndarray:
        key = (data.sequences[sequence], kind_of(image, level))
        if key not in cache:
            cache[key] = described(data, method, *key)
        return cache[key][point]

    def distances(rows: np.ndarray) -> list[float]:
        return [slow_distance(one(a, b, c), one(d, e, f)) for a, b, c, d, e, f in rows]

    assert tasks.positive is not None
    near, far = distances(tasks.positive.rows), distances(getattr(tasks, kind).rows)
    few = int(0.2 * len(near))
    auc = slow_auc(far + near, [False] * len(far) + [True] * len(near))
    return auc, slow_ap(far + near[:few], [False] * len(far) + [True] * few)


def slow_matching(data: HPatches, method: object, level: str, sequence: str) -> float:
    scores = []
    reference = described(data, method, sequence, "ref")
    for view in range(1, 6):
        other = described(data, method, sequence, f"{level}{view}")
        found, right = [], []
        for number, query in enumerate(reference):
            row = [slow_distance(query, patch) for patch in other]
            found.append(min(row))
            right.append(row.index(min(row)) == number)
        scores.append(slow_ap(found, right, total=len(reference)))
    return sum(scores) / 5


def slow_retrieval(data: HPatches, tasks: HPatchesTasks, method: object, level: str, size: int, ties: str) -> float:
    assert tasks.queries is not None
    assert tasks.distractors is not None
    scores = []
    for sequence, point in tasks.queries.rows:
        name = data.sequences[sequence]
        query = described(data, method, name, "ref")[point]
        right = [slow_distance(query, described(data, method, name, f"{level}{view}")[point]) for view in range(1, 6)]
        wrong = [
            slow_distance(query, described(data, method, data.sequences[s], "ref")[p])
            for s, p in tasks.distractors.rows
            if s != sequence
        ][: size - 5]
        labels = [True] * 5 + [False] * len(wrong)
        if ties == "official":
            scores.append(slow_ap(right + wrong, labels))
        else:
            scores.append(slow_ap(wrong + right, labels[::-1]))
    return sum(scores) / len(scores)


# --- HPatches ---


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> HPatches:
    return read_hpatches(write_hpatches(tmp_path_factory.mktemp("hpatches")))


@pytest.fixture(scope="module")
def tasks(data: HPatches) -> HPatchesTasks:
    config = DrawnTasksConfig(pairs=300, queries=12, distractors=25)
    return draw_tasks(data, data.sequences, config, np.random.default_rng(3))


@pytest.fixture(scope="module", params=BINARY, ids=["real", "binary"])
def scored(request: pytest.FixtureRequest, data: HPatches, tasks: HPatchesTasks) -> tuple[object, HPatchesScores]:
    method = thumbnails(request.param)
    return method, evaluate_hpatches(data, data.sequences, tasks, method, HPatchesConfig(pool_sizes=POOLS))


@pytest.mark.parametrize("level", ["e", "h", "t"])
@pytest.mark.parametrize("kind", ["intra", "inter"])
def test_verification(data: HPatches, tasks: HPatchesTasks, scored: tuple, level: str, kind: str) -> None:
    method, scores = scored
    auc, ap = slow_verification(data, tasks, method, level, kind)
    found = scores.verification[level][kind]
    assert found["auc"] == pytest.approx(auc, abs=1e-9)
    assert found["ap"] == pytest.approx(ap, abs=1e-9)
    assert 0.2 < ap < 1


@pytest.mark.parametrize("level", ["e", "h", "t"])
def test_matching(data: HPatches, scored: tuple, level: str) -> None:
    method, scores = scored
    for kind in ("i", "v"):
        slow = [slow_matching(data, method, level, name) for name in SEQUENCES if name.startswith(kind)]
        assert scores.matching[level][kind] == pytest.approx(np.mean(slow), abs=1e-9)
    assert 0.05 < scores.matching[level]["v"] < 1


@pytest.mark.parametrize("level", ["e", "t"])
@pytest.mark.parametrize("size", POOLS)
def test_retrieval(data: HPatches, tasks: HPatchesTasks, scored: tuple, level: str, size: int) -> None:
    method, scores = scored
    slow = slow_retrieval(data, tasks, method, level, size, "official")
    assert scores.retrieval[level][size] == pytest.approx(slow, abs=1e-9)


def test_ties_of_binary_descriptors_can_count_against_them(data: HPatches, tasks: HPatchesTasks) -> None:
    method = thumbnails(16)
    found = {}
    for ties in ("official", "against"):
        config = HPatchesConfig(pool_sizes=(20,), tasks=("retrieval",), ties=ties)
        found[ties] = evaluate_hpatches(data, data.sequences, tasks, method, config).retrieval["t"][20]
        assert found[ties] == pytest.approx(slow_retrieval(data, tasks, method, "t", 20, ties), abs=1e-9)
    assert found["against"] < found["official"] - 0.01


def test_means_are_those_of_the_tables(scored: tuple) -> None:
    _, scores = scored
    aps = [scores.verification[level][kind]["ap"] for level in "eht" for kind in ("intra", "inter")]
    assert scores.means["verification_ap"] == pytest.approx(np.mean(aps))
    both = [np.mean([scores.matching[level][kind] for level in "eht"]) for kind in "iv"]
    assert scores.means["matching"] == pytest.approx(np.mean(both))
    pools = [scores.retrieval[level][size] for level in "eht" for size in POOLS]
    assert scores.means["retrieval"] == pytest.approx(np.mean(pools))


def test_files_of_tasks_give_the_same(data: HPatches, tasks: HPatchesTasks, scored: tuple, tmp_path: Path) -> None:
    method, scores = scored
    write_tasks(tmp_path, "a", tasks)
    read = read_tasks(tmp_path, "a", data)
    assert read is not None
    again = evaluate_hpatches(data, data.sequences, read, method, HPatchesConfig(pool_sizes=POOLS))
    assert again.means == scores.means


# --- average precision by itself ---


@pytest.mark.parametrize("rule", ["trapezoid", "precision"])
@pytest.mark.parametrize("seed", range(8))
def test_average_precision(rule: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 30 if seed % 2 else 5, 40).astype(float)
    right = rng.random(40) < 0.3
    for total in (None, int(right.sum()) + 4):
        found = average_precision(distances, right, total, rule)  # type: ignore[arg-type]
        assert found == pytest.approx(slow_ap(distances.tolist(), right.tolist(), total, rule), abs=1e-12)


def test_average_precision_by_hand() -> None:
    """Right, wrong, right: precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1."""
    distances, right = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])
    assert average_precision(distances, right, rule="precision") == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(distances, right) == pytest.approx(0.5 * 1 + 0.5 * (1 / 2 + 2 / 3) / 2)
    assert average_precision(distances, np.zeros(3, bool)) == 0


# --- RomePatches and UBC ---


@pytest.mark.parametrize("bits", BINARY)
@pytest.mark.parametrize("rule", ["trapezoid", "precision"])
def test_rome(tmp_path: Path, bits: int, rule: str) -> None:
    rome = read_rome(write_rome(tmp_path), "test")
    method = thumbnails(bits)
    descriptors = method.describe(rome.patches)
    scores = []
    for query in range(rome.num_queries):
        rest = range(rome.num_queries, len(rome.labels))
        row = [slow_distance(descriptors[query], descriptors[other]) for other in rest]
        scores.append(slow_ap(row, [rome.labels[other] == rome.labels[query] for other in rest], rule=rule))
    found = evaluate_rome(rome, method, rule)  # type: ignore[arg-type]
    assert found.mean_ap == pytest.approx(np.mean(scores), abs=1e-9)
    assert (found.queries, found.searched) == (12, 48)
    assert 0.1 < found.mean_ap < 0.99


@pytest.mark.parametrize("bits", BINARY)
def test_ubc(tmp_path: Path, bits: int) -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(40), 3)
    from synthetic_patches import textures

    seen = textures(40, 64, rng)[classes] + 130 * (textures(len(classes), 64, rng) / 128 - 1)
    patches = seen.clip(0, 255).astype(np.uint8)
    folder = write_phototour(tmp_path / "set", PatchSet("set", patches, classes, np.zeros(120, int), ("set",)))
    index0, index1 = rng.integers(30, 90, 400), rng.integers(30, 90, 400)
    index1[:150] = index0[:150] // 3 * 3 + (index0[:150] + 1) % 3
    write_phototour_pairs(folder, TestPairs(index0, index1, classes[index0] == classes[index1]), classes)

    asked = []
    method = thumbnails(bits)
    counting = type(method)("counting", lambda p: (asked.append(len(p)), method.describe(p))[1], {})
    found = evaluate_pairs(read_ubc(folder), counting)
    assert asked == [60], "patches without a pair are not described"
    descriptors = method.describe(patches)
    distances = [slow_distance(descriptors[a], descriptors[b]) for a, b in zip(index0, index1, strict=True)]
    right = (classes[index0] == classes[index1]).tolist()
    needed, passed = int(np.ceil(0.95 * sum(right))), 0
    for place in sorted(range(400), key=lambda i: (distances[i], right[i])):
        passed += right[place]
        if passed == needed:
            let_through = sum(d <= distances[place] for d, r in zip(distances, right, strict=True) if not r)
            break
    assert found == pytest.approx(let_through / (400 - sum(right)))
    assert 0.01 < found < 0.9
