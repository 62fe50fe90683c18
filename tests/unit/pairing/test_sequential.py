import numpy as np
import pytest

from featkit.core.types import Pair
from featkit.pairing.by_name import Exhaustive, ExhaustiveConfig, Sequential, SequentialConfig, natural_key

RNG = np.random.default_rng(0)


def test_natural_order() -> None:
    ordered = ["1.jpg", "2.jpg", "10.jpg", "a/img2.jpg", "a/img10.jpg", "a/img10b.jpg", "b", "img002", "img02", "img2"]
    shuffled = [ordered[i] for i in (7, 2, 9, 0, 5, 1, 8, 4, 6, 3)]
    assert sorted(shuffled, key=natural_key) == ordered


def test_natural_order_takes_any_name() -> None:
    names = ["²", "٣", "7", "", "-1", "a b", "é1"]
    assert sorted(sorted(names, key=natural_key)) == sorted(names)


def test_each_image_is_paired_with_the_next_ones() -> None:
    pairs = Sequential(SequentialConfig(overlap=2)).pairs(["img10", "img2", "img1", "img11"], None, RNG)
    assert pairs == [
        Pair("img1", "img2"),
        Pair("img1", "img10"),
        Pair("img2", "img10"),
        Pair("img2", "img11"),
        Pair("img10", "img11"),
    ]


@pytest.mark.parametrize(
    ("overlap", "quadratic", "steps"),
    [
        (3, False, [1, 2, 3]),
        (3, True, [1, 2, 3, 4]),
        (6, True, [1, 2, 3, 4, 5, 6, 8, 16, 32]),
        (1, True, [1]),
        (100, True, list(range(1, 40))),
    ],
)
def test_steps_ahead(overlap: int, quadratic: bool, steps: list[int]) -> None:
    names = [f"{i}" for i in range(40)]
    pairs = Sequential(SequentialConfig(overlap=overlap, quadratic=quadratic)).pairs(names, None, RNG)
    assert [int(p.name1) for p in pairs if p.name0 == "0"] == steps
    assert len({p.key() for p in pairs}) == len(pairs)
    assert len(pairs) == sum(40 - step for step in steps)


def test_exhaustive_has_every_pair_once() -> None:
    names = [f"{i}" for i in range(7)]
    pairs = Exhaustive(ExhaustiveConfig()).pairs(names, None, RNG)
    assert len(pairs) == len({p.key() for p in pairs}) == 21
    assert pairs[:2] == [Pair("0", "1"), Pair("0", "2")]


def test_a_name_given_twice_counts_once() -> None:
    assert Exhaustive(ExhaustiveConfig()).pairs(["a", "b", "a"], None, RNG) == [Pair("a", "b")]
    assert Sequential(SequentialConfig()).pairs(["a", "b", "a"], None, RNG) == [Pair("a", "b")]
