"""`featkit.integrations.hloc` was the first name of `featkit.hloc`: what was written for it goes on working."""

import subprocess
import sys

import pytest


def test_the_same_functions() -> None:
    import featkit.hloc
    import featkit.integrations.hloc

    for name in featkit.integrations.hloc.__all__:
        assert getattr(featkit.integrations.hloc, name) is getattr(featkit.hloc, name)


@pytest.mark.slow
def test_the_same_command() -> None:
    def shown(module: str) -> str:
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        return done.stdout

    assert shown("featkit.integrations.hloc") == shown("featkit.hloc")
    assert "--instead" in shown("featkit.hloc")
