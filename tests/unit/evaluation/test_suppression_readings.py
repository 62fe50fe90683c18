"""SCFeat's N x N of the non-maximum suppression: both readings are there, and nothing else is different."""

from __future__ import annotations

from typing import Any

import pytest

from featkit.core.config import Config, resource_dir
from featkit.core.registry import resolve

SIDE = "-side"
KIND = {"aachen": "benchmark", "eth": "benchmark", "scfeat": "extractor"}
# N as printed (SCFeat's Tables V and VII, section IV-B; PoSFeat's code): of all images, or of the map and of queries.
PRINTED = {
    "aachen-scfeat": (5, 3),
    "aachen-scfeat-n1-e100": (1, 1),
    "aachen-scfeat-n3-e030": (3, 3),
    "aachen-scfeat-n3-e050": (3, 3),
    "aachen-scfeat-n5n3-e050": (5, 3),
    "aachen-posfeat": (3, 3),
    "eth-scfeat-075": (1,),
    "eth-scfeat-080": (3,),
    "eth-scfeat-090": (3,),
    "eth-scfeat-092": (3,),
    "eth-posfeat": (3,),
    "scfeat": (1,),
}


def leaves(values: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """All values of nested dictionaries, by the keys that lead to them."""
    if not isinstance(values, dict):
        return {path: values}
    return {where: value for key, one in values.items() for where, value in leaves(one, (*path, key)).items()}


def fields(name: str) -> dict[tuple[str, ...], Any]:
    config = resolve(KIND[name.split("-")[0]], name).own
    assert isinstance(config, Config)
    return leaves(config.result_fields())


@pytest.mark.parametrize("name", PRINTED)
def test_readings_differ_in_the_window_alone(name: str) -> None:
    radius, side = fields(name), fields(name + SIDE)
    assert radius.keys() == side.keys()
    changed = [path for path in radius if radius[path] != side[path]]
    assert {path[-1] for path in changed} == {"nms_window"}
    assert [side[path] for path in changed] == list(PRINTED[name])
    assert [radius[path] for path in changed] == [2 * n + 1 for n in PRINTED[name]]


def test_every_setting_has_both_readings() -> None:
    shipped = {path.stem for path in resource_dir("configs").glob("*.yaml")}
    families = ("aachen-scfeat", "aachen-posfeat", "eth-scfeat", "eth-posfeat")
    found = {name.removesuffix(SIDE) for name in shipped if name.startswith(families) or name.endswith(SIDE)}
    assert found | {"scfeat"} == PRINTED.keys()
    assert {name + SIDE for name in PRINTED} == {name for name in shipped if name.endswith(SIDE)}
