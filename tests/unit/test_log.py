"""Progress without a terminal: plain lines with rate and time left, on stderr; none when quiet."""

import io
import logging
import re
import subprocess
import sys

import pytest

from featkit.core import log


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


def test_more_than_announced_is_not_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "PLAIN_INTERVAL_S", 0.0)
    log.setup(0)
    with log.progress("extract", 4, "images") as advance:
        for count in (3, 2, 1):
            advance(count)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["extract: 3/4 images", "extract: 4/4 images"]
    assert lines[-1].endswith(" 0 s left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_and_a_warning_share_one_console(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(log, "_CONSOLES", [])
    log.setup(0)
    with log.progress("extract", 4, "images") as advance:
        advance(3)
        logging.getLogger("featkit.somewhere").warning("look here")
        print("a result")
        advance(3)
    assert [handler.console for handler in log.LOGGER.handlers] == log._CONSOLES  # type: ignore[attr-defined]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()
    assert "look here" in [line.strip() for line in plain], "a line of its own, not torn by the bar"
    assert "4/4" in plain[-1]
    assert "6/4" not in terminal.getvalue()
    assert "-" not in plain[-1].split("images/s")[1]
    assert capsys.readouterr().out == "a result\n"


def test_importing_featkit_installs_no_handler() -> None:
    code = (
        "import logging, featkit, featkit.core.log; print(logging.getLogger('featkit').handlers, logging.root.handlers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
