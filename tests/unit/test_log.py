"""Progress without a terminal: plain lines with rate and time left, on stderr; none when quiet."""

import logging
from collections.abc import Iterator

import pytest

from featkit import log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    logger = log.LOGGER
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before
    logger.setLevel(before[1])


def test_plain_lines_say_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "PLAIN_INTERVAL_S", 0.0)
    log.setup(0)
    with log.progress("extract", 4, "images") as advance:
        for _ in range(4):
            advance(1)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 4
    assert lines[1].startswith("extract: 2/4 images, ")
    assert lines[1].endswith(" s left")


def test_seldom_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(0)
    with log.progress("match", 1000, "pairs") as advance:
        for _ in range(1000):
            advance(1)
    assert len(capsys.readouterr().err.splitlines()) == 1  # the last one: all were done within the interval


def test_quiet_shows_no_progress_but_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(-1)
    with log.progress("extract", 2, "images") as advance:
        advance(2)
    logging.getLogger("featkit.somewhere").warning("look here")
    assert capsys.readouterr().err == "look here\n"


def test_importing_featkit_installs_no_handler() -> None:
    import subprocess
    import sys

    code = "import logging, featkit, featkit.log; print(logging.getLogger('featkit').handlers, logging.root.handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
