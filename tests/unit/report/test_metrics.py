"""Memory in metrics.json: megabytes of 10^6 bytes, and workers apart from the process that started them."""

import json
import subprocess
import sys

import pytest

from featkit.report.maps import peak_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_is_what_the_kernel_says() -> None:
    with open("/proc/self/status") as status:
        (kib,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert peak_memory()["peak_memory_mb"] == pytest.approx(kib * 1024 / 1e6, rel=0.02)


WITH_A_LARGE_WORKER = """
import json, subprocess, sys
from featkit.report.maps import peak_memory
before = peak_memory()
megabytes = int(max(before.values())) + 60  # a process counts at least what the one that started it held
subprocess.run([sys.executable, "-c", f"b'x' * {megabytes * 10**6}"], check=True)
print(json.dumps([megabytes, before, peak_memory()]))
"""


@pytest.mark.slow
def test_a_large_worker_is_seen_apart() -> None:
    ran = subprocess.run([sys.executable, "-c", WITH_A_LARGE_WORKER], capture_output=True, text=True, check=True)
    megabytes, before, after = json.loads(ran.stdout)
    assert megabytes <= after["peak_worker_memory_mb"] < megabytes + 200
    assert after["peak_memory_mb"] < before["peak_memory_mb"] + 50
