"""featkit: local features trained, run and proven.

Importing this package does nothing: no handlers, seeds, downloads or device calls.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featkit.localization.localizer import Localizer

__all__ = ["Localizer", "__version__"]

try:
    __version__ = version("featkit")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0+checkout"


def __getattr__(name: str) -> Any:
    """`featkit.Localizer` brings pycolmap and more: it is imported when somebody asks for it."""
    if name == "Localizer":
        return import_module("featkit.localization.localizer").Localizer
    raise AttributeError(f"module 'featkit' has no attribute {name!r}")
