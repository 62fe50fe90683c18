"""How large featkit is, and how far things travel in it: files, lines, imports, and the files that a job passes.

    python benchmarks/house.py --name after [--tests] [--root .] [--out benchmarks/results/house.json]

Counted in the source: files and lines per room, files that exactly one other file imports, imports of featkit inside
functions (all, and those outside the command line), public names defined in more than one file, README lines.

Counted while it runs: the files of featkit in which some function was executed between a photograph and features.h5
(`extract`), a folder of photographs and sparse/ (`reconstruct`), patches and a weight (`train`, `export`).
Every command runs once before, so that what is executed by importing counts for nothing. Under sys.setprofile, in all
threads of one process; of a few photographs of one scene (--images), reduced.

--tests: also the seconds of `make test-fast` and `make test`, on a machine with nothing else to do. An entry keeps its
seconds when it is measured again without.

--root: the checkout that is measured, so that an older one can be measured by the same script. Each --name is one entry
of the result; the others in the file stay.
"""

from __future__ import annotations

import argparse
import ast
import collections
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from machine import origin

RESULT = Path(__file__).resolve().parent / "results" / "house.json"
OWN_NAMES = 0x2  # CO_NEWLOCALS: a function's code, neither a module's nor a class's body
STEPS, IMAGES = 4, 6
SMALL = ("--resize-max", 400, "--workers", 1)
PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "eth" / "fountain-P11" / "images"


def sources(root: Path) -> dict[str, ast.Module]:
    """The files of the package by their path below it."""
    package = root / "featkit"
    return {
        path.relative_to(package).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(package.rglob("*.py"))
    }


def counts(root: Path) -> dict[str, Any]:
    """What the source says."""
    trees = sources(root)
    lines = {name: (root / "featkit" / name).read_text(encoding="utf-8").count("\n") for name in trees}
    rooms: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for name, count in lines.items():
        room = name.partition("/")[0].removesuffix(".py")
        rooms[room][0] += 1
        rooms[room][1] += count
    users: dict[str, set[str]] = collections.defaultdict(set)
    late: collections.Counter[str] = collections.Counter()
    owners: dict[str, set[str]] = collections.defaultdict(set)
    for name, tree in trees.items():
        for target in imported(tree, trees):
            if target != name:
                users[target].add(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.ImportFrom | ast.Import)]
                late[name] += sum(1 for n in inner if "featkit" in ast.unparse(n).split()[1].split(".")[0])
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                owners[node.name].add(name)
    plain = {name for name in trees if not name.endswith("__init__.py")}
    twice = {name: sorted(files) for name, files in owners.items() if len(files) > 1}
    ordered = sorted(lines[name] for name in plain)
    return {
        "files": len(trees),
        "files_without_init": len(plain),
        "lines": sum(lines.values()),
        "median_lines": ordered[len(ordered) // 2],
        "longest": max(ordered),
        "rooms": {room: {"files": files, "lines": total} for room, (files, total) in sorted(rooms.items())},
        "imported_by_one_other": sum(1 for name in plain if len(users[name]) == 1),
        "imports_inside_functions": sum(late.values()),
        "imports_inside_functions_outside_cli": sum(n for name, n in late.items() if not name.startswith("cli/")),
        "public_names_defined_twice": len(twice),
        "defined_twice": twice,
        "readme_lines": (root / "README.md").read_text(encoding="utf-8").count("\n"),
    }


def imported(tree: ast.Module, trees: dict[str, ast.Module]) -> set[str]:
    """Files of the package that a file imports anywhere."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "featkit":
            base = "/".join(str(node.module).split(".")[1:])
            for alias in node.names:
                inner = f"{base}/{alias.name}.py".lstrip("/")
                found |= {inner} if inner in trees else {f"{base}.py", f"{base}/__init__.py".lstrip("/")} & trees.keys()
    return found


class Passed:
    """The files below a folder in which a function is executed while it is watched."""

    def __init__(self, root: Path):
        self._below = f"{root}{os.sep}"
        self.files: set[str] = set()

    def _see(self, frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & OWN_NAMES and code.co_filename.startswith(self._below):
            self.files.add(code.co_filename.removeprefix(self._below))

    def __enter__(self) -> Passed:
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def command(*words: object) -> None:
    """`featkit WORDS` in this process; raises RuntimeError when it fails."""
    from featkit.cli.main import app

    try:
        app([str(word) for word in words], standalone_mode=True)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"featkit {' '.join(map(str, words))}: exit {end.code}") from None


def passed(root: Path, images: Path) -> dict[str, Any]:
    """The files on three ways, in this process, whose featkit is the one of `root`."""
    import featkit

    assert Path(featkit.__file__).resolve().is_relative_to(root), featkit.__file__
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scene = folder / "scene"
        (scene / "images").mkdir(parents=True)
        for path in sorted(path for path in images.iterdir() if path.suffix.lower() in {".jpg", ".png"})[:IMAGES]:
            shutil.copy(path, scene / "images")
        command("reconstruct", scene, *SMALL, "-q")
        command("data", "patches", scene, "--out", folder / "patches", "--workers", 1, "--licence", "own", "-q")
        small = ["--steps", STEPS, "--batch-size", 64]
        ways: dict[str, list[list[object]]] = {
            "photograph_to_features": [
                [
                    "extract",
                    scene / "images",
                    "--out",
                    folder / "{}.h5",
                    "--features",
                    "dog+hynet",
                    "--workers",
                    1,
                    "-q",
                ]
            ],
            "photographs_to_sparse": [
                [
                    "reconstruct",
                    scene / "images",
                    "--out",
                    folder / "{}-map",
                    "--features",
                    "dog+hynet",
                    *SMALL,
                    "-q",
                ],
            ],
            "patches_to_weight": [
                ["train", "patch", "--data", folder / "patches", "--out", folder / "{}-run", *small, "-q"],
                ["weights", "export", folder / "{}-run", "--name", "trial", "--out", folder / "{}.safetensors", "-q"],
            ],
        }
        found = {}
        for way, commands in ways.items():
            for watched in (False, True):
                watch = Passed(root)
                for words in commands:
                    filled = [str(word).replace("{}", f"{way}{watched}") for word in words]
                    if not watched:
                        command(*filled)
                        continue
                    with watch:
                        command(*filled)
                if watched:
                    own = sorted(name for name in watch.files if name.startswith(("featkit/", "pipelines/")))
                    found[way] = {"files": len(own), "listed": own}
        return found


def seconds_of_tests(root: Path) -> dict[str, float]:
    """Wall seconds of the two test commands; raises CalledProcessError when a test fails."""
    subprocess.run(["make", ".venv/.featkit-test"], cwd=root, check=True, stdout=sys.stderr)  # what is installed once
    found = {}
    for target in ("test-fast", "test"):
        started = time.monotonic()
        subprocess.run(["make", target], cwd=root, check=True, stdout=sys.stderr)
        found[target] = round(time.monotonic() - started, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the entry: before, after")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--images", type=Path, default=PHOTOGRAPHS, help="a folder of photographs of one scene")
    parser.add_argument("--tests", action="store_true", help="also the seconds of the tests")
    parser.add_argument("--ways", action="store_true", help="only the ways, as json on stdout")
    asked = parser.parse_args()
    root = asked.root.resolve()
    if asked.ways:
        print(json.dumps(passed(root, asked.images)))
        return
    entry = counts(root)
    ran = subprocess.run(
        [
            sys.executable,
            __file__,
            "--name",
            asked.name,
            "--root",
            str(root),
            "--ways",
            "--images",
            str(asked.images.resolve()),
        ],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    entry["ways"] = json.loads(ran.stdout.splitlines()[-1])
    kept = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.is_file() else {}
    seconds = seconds_of_tests(root) if asked.tests else kept.get(asked.name, {}).get("test_seconds")
    if seconds:
        entry["test_seconds"] = seconds
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True
    )
    kept = {**kept, **origin(), asked.name: {"commit": commit.stdout.strip(), **entry}}
    asked.out.write_text(f"{json.dumps(kept, indent=1)}\n", encoding="utf-8")
    for key, value in entry.items():
        if isinstance(value, int):
            print(f"{key}: {value}")
    for way, one in entry["ways"].items():
        print(f"{way}: {one['files']} files")


if __name__ == "__main__":
    main()
