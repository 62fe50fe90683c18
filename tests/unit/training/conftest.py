"""Patches to train on."""

from __future__ import annotations

import pytest
from textures import textured_patches

from featkit.data.patch_set import PatchSet


@pytest.fixture(scope="session")
def textures() -> PatchSet:
    return textured_patches(150)
