"""featkit: local features trained, run and proven.

Importing this package does nothing: no handlers, seeds, downloads or device calls.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("featkit")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0+checkout"
