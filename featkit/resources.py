"""Where `configs/`, `pipelines/` and `weights/` lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from featkit.errors import UsageError

PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """Folder of `name` ("configs", "pipelines" or "weights")."""
    installed = PACKAGE / f"_{name}"
    return installed if installed.is_dir() else PACKAGE.parent / name


def load_pipeline(name: str) -> ModuleType:
    """Import the recipe `pipelines/<name>.py` from wherever it lies. Raises UsageError when there is none."""
    path = resource_dir("pipelines") / f"{name}.py"
    if not path.is_file():
        raise UsageError(f"no pipeline named {name!r} in {path.parent}; see `pipelines/` for what there is")
    full_name = f"featkit_pipeline_{name}"
    if full_name in sys.modules:
        return sys.modules[full_name]
    spec = importlib.util.spec_from_file_location(full_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module  # dataclasses and pydantic look annotations up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[full_name]
        raise
    return module
