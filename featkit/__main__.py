"""The `featkit` command, and `python -m featkit`: answers signals before anything that takes long is imported."""

import os
import signal
from types import FrameType

from featkit.core.imports import uncollected

STOPPED = b"featkit: stopped; run the same command again to go on\n"


def main() -> None:
    """Entry point of the console script. Once the command runs, `core.runtime` takes the signals over."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _end)
    with uncollected():
        from featkit.cli.main import main as command

    command()


def _end(number: int, frame: FrameType | None) -> None:
    """Nothing is written yet, or all is: there is nothing to finish."""
    os.write(2, STOPPED)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
