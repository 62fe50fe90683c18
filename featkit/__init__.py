"""featkit: local features trained, run and proven.

`featkit.extract(...)` does what `featkit extract` does, with the same names and defaults; so do the others below.
Importing this package does nothing: no handlers, seeds, downloads or device calls.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featkit.api.data import fetch_data, make_patches, make_posed_pairs, pack_data
    from featkit.api.evaluation import evaluate, evaluate_all
    from featkit.api.localization import localize, serve
    from featkit.api.maps import align, export, extend, merge, reconstruct, run_demo
    from featkit.api.stages import extract, frames, match, pairs, run, verify
    from featkit.api.stores import check_store, merge_stores, repair_store
    from featkit.api.train import informativeness, train_patch, train_scfeat
    from featkit.api.view import view
    from featkit.api.weights import (
        export_weights,
        fetch_weights,
        import_weights,
        list_methods,
        list_weights,
        show_weights,
    )
    from featkit.localization.localizer import Localizer

__all__ = [
    "Localizer",
    "__version__",
    "align",
    "check_store",
    "evaluate",
    "evaluate_all",
    "export",
    "export_weights",
    "extend",
    "extract",
    "fetch_data",
    "fetch_weights",
    "frames",
    "import_weights",
    "informativeness",
    "list_methods",
    "list_weights",
    "localize",
    "make_patches",
    "make_posed_pairs",
    "match",
    "merge",
    "merge_stores",
    "pack_data",
    "pairs",
    "reconstruct",
    "repair_store",
    "run",
    "run_demo",
    "serve",
    "show_weights",
    "train_patch",
    "train_scfeat",
    "verify",
    "view",
]
PLACES = {
    "featkit.api.data": ("fetch_data", "make_patches", "make_posed_pairs", "pack_data"),
    "featkit.api.evaluation": ("evaluate", "evaluate_all"),
    "featkit.api.localization": ("localize", "serve"),
    "featkit.api.maps": ("align", "export", "extend", "merge", "reconstruct", "run_demo"),
    "featkit.api.stages": ("extract", "frames", "match", "pairs", "run", "verify"),
    "featkit.api.stores": ("check_store", "merge_stores", "repair_store"),
    "featkit.api.train": ("informativeness", "train_patch", "train_scfeat"),
    "featkit.api.view": ("view",),
    "featkit.api.weights": (
        "export_weights",
        "fetch_weights",
        "import_weights",
        "list_methods",
        "list_weights",
        "show_weights",
    ),
    "featkit.localization.localizer": ("Localizer",),
}

try:
    __version__ = version("featkit")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0+checkout"


def __getattr__(name: str) -> Any:
    """What brings pycolmap and more is imported when somebody asks for it."""
    for module, names in PLACES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'featkit' has no attribute {name!r}")
