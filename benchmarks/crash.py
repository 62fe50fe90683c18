"""SIGKILL at random moments, many times: what is lost by hloc's way of writing, and by featkit's stages.

    python benchmarks/crash.py [--kills 1000] [--seed 0] [--only NAME ...] [--jobs 2]

A process that does nothing but write is killed after a random part of the time that a whole run takes, and started
again until all is written; then it begins anew. It says of every item when it is done. Rows: hloc's pattern (an HDF5
file with libver="latest", opened and closed for each image; what has a dataset counts as done), featkit's extract and
match stages (with features and matches that cost nothing to make, so that most kills meet a write), and its database
stage with real verification. After each kill three things are counted:

* unreadable: the file does not open any more;
* silently wrong: an item that would be taken as done is not what an undisturbed run writes;
* lost: items that were done and are not there any more, beyond the one in hand.

Writes benchmarks/results/crash.json.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("GLOG_minloglevel", "2")

import numpy as np
from crash_database import DATABASE
from crash_ways import WAYS, Way
from machine import write_result

EVERY = (*WAYS, DATABASE)


@dataclass
class Row:
    """What the kills of one way of writing cost."""

    method: str
    kills: int = 0
    finished: int = 0
    unreadable: int = 0
    silently_wrong: int = 0
    lost: int = 0
    final_files_that_differ: int = 0
    seconds_of_a_run: float = 0.0


def run_once(way: Way, folder: Path, kill_after_s: float | None) -> tuple[bool, int]:
    """Whether the writer came to its end, and how many items it said were done (or that are there in all)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            way.write(folder, lambda count: os.write(writer, count.to_bytes(4, "little")))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)  # not waited for yet: the number is still its own
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reader, "rb") as pipe:
        message = np.frombuffer(pipe.read(), "<u4").astype(int)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{way.method}: the writer failed")
    total = int(message.max(initial=0)) if way.counts_all else int(message.sum())
    return code == 0, total


def started(way: Way, folder: Path) -> Path:
    """A folder where nothing is written yet."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    child = os.fork()
    if child == 0:
        way.prepare(folder)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError(f"{way.method}: its input could not be made")
    return folder


def kill_often(way: Way, kills: int, seed: int, work: Path) -> Row:
    """Kill a way of writing so often; see the head of this file."""
    row, moments = Row(way.method), random.Random(f"{seed} {way.method}")
    whole = started(way, work / "whole")
    begun = time.monotonic()
    if not run_once(way, whole, None)[0]:
        raise RuntimeError(f"{way.method}: an undisturbed run does not end")
    row.seconds_of_a_run = round(time.monotonic() - begun, 3)
    folder, before, fresh = started(way, work / "killed"), 0, True
    while row.kills < kills:
        begun = time.monotonic()
        ended, done = run_once(way, folder, moments.uniform(0, row.seconds_of_a_run))
        if ended and fresh:  # a whole run, and faster than the one that was timed
            row.seconds_of_a_run = min(row.seconds_of_a_run, round(time.monotonic() - begun, 3))
        fresh = False
        row.kills += not ended
        found = way.look(folder)
        expected = max(before, done) if way.counts_all else before + done
        row.unreadable += not found.readable
        row.silently_wrong += found.wrong
        row.lost += max(0, expected - found.right)
        before = found.right
        if ended:
            row.finished += 1
            row.final_files_that_differ += found != way.look(whole)
        if ended or not found.readable or found.wrong:
            folder, before, fresh = started(way, work / "killed"), 0, True
    return row


def kill_named(method: str, kills: int, seed: int) -> Row:
    """`kill_often` in a folder of its own, for a process of its own."""
    way = next(way for way in EVERY if way.method == method)
    with tempfile.TemporaryDirectory() as work:
        return kill_often(way, kills, seed, Path(work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="of each way of writing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="ways of writing at a time")
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of the ways")
    parser.add_argument("--no-result", action="store_true", help="print only")
    arguments = parser.parse_args()
    ways = [way for way in EVERY if not arguments.only or any(word in way.method for word in arguments.only)]
    kill = partial(kill_named, kills=arguments.kills, seed=arguments.seed)
    rows = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(kill, [way.method for way in ways]):
            rows.append(asdict(row))
            print(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in rows[-1].items()), flush=True)
    if not arguments.no_result:
        print(write_result("crash", {"items_in_a_run": {way.method: way.items for way in ways}, "rows": rows}))


if __name__ == "__main__":
    sys.exit(main())
