"""Imports without garbage collection: it goes on afterwards, also after errors and for threads."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import pytest

from featkit.core.imports import import_ahead, import_module, uncollected


class Node:
    """Something that only the collector frees, once it refers to itself."""

    itself: Node


def is_collected() -> bool:
    """Whether a cycle that is made now is freed by a collection."""
    node = Node()
    node.itself = node
    seen = weakref.ref(node)
    del node
    gc.collect()
    return seen() is None


@pytest.fixture(autouse=True)
def unfrozen() -> object:
    yield
    gc.unfreeze()
    gc.enable()


def test_collection_goes_on_afterwards() -> None:
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the outer block is not over"
        before = gc.get_freeze_count()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    assert is_collected()


def test_a_program_without_collection_stays_one() -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_an_import_that_fails() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("featkit.no_such_module")
    assert gc.isenabled()


def test_an_import_ahead() -> None:
    """Its error comes where the module is used; a module that is there is imported."""
    for name in ("this_is_no_module", "colorsys"):
        sys.modules.pop(name, None)
        import_ahead(name)
        for thread in threading.enumerate():
            if thread.name == f"import {name}":
                thread.join(60)
    assert "colorsys" in sys.modules
    assert gc.isenabled()
