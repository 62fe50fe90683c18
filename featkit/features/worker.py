"""What worker processes have imported when they are forked: see `stage.prepare_workers`."""

import signal

from featkit.core.imports import uncollected

with uncollected():
    import pycolmap  # noqa: F401

    import featkit.features.sift
    import featkit.features.stage  # noqa: F401

signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pycolmap's import sets a handler that prints a stack
