"""Comparison of two stores item by item, regardless of where the items are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featkit.io import h5, shards


def contents(path: Path) -> dict[str, Any]:
    """Every dataset and attribute of every item, by item and name."""
    found: dict[str, Any] = {}
    with h5.reading(path) as file:
        kind = h5.store_kind(file, "features")
        for name in shards.whole_items(file, kind):
            group = file[name]
            found[name] = {
                "attributes": dict(group.attrs),
                **{key: (group[key][()], dict(group[key].attrs)) for key in group},
            }
    return found


def assert_same(first: Path, second: Path) -> None:
    """Check for the same items, values, types and attributes, and the same root attributes."""
    one, other = contents(first), contents(second)
    assert one.keys() == other.keys()
    assert one
    for name, item in one.items():
        assert item.keys() == other[name].keys()
        assert item["attributes"] == other[name]["attributes"], name
        for key in item.keys() - {"attributes"}:
            (numbers, attributes), (numbers2, attributes2) = item[key], other[name][key]
            assert numbers.dtype == numbers2.dtype
            np.testing.assert_array_equal(numbers, numbers2)
            assert attributes == attributes2
    with h5py.File(first, "r") as a, h5py.File(second, "r") as b:
        assert {k: v for k, v in a.attrs.items() if k != h5.LINKED} == {
            k: v for k, v in b.attrs.items() if k != h5.LINKED
        }
