"""One synthetic scene through featkit's mapping with each version of pycolmap, each in a fresh environment.

    python benchmarks/versions.py [--versions 4.0.4 4.1.1 4.2.0 4.2.1] [--keep FOLDER]

The scene is `pycolmap.synthesize_dataset`'s. featkit writes keypoints, matches and two-view geometries, with their
`config`, into the database; it is then mapped, and triangulated with the true poses, and the points are counted. A
version that ignores or mistakes what was written gives no points. Environments are made from the one that runs this:
pip installs only the other pycolmap over its packages. Writes benchmarks/results/versions.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VERSIONS = ("4.0.4", "4.1.1", "4.2.0", "4.2.1")
COLUMNS = ("pycolmap", "configs", "mapped_images", "mapped_points", "mapped_error_px", "triangulated_points")


def environment(folder: Path, version: str) -> Path:
    """A Python with this pycolmap, and everything else from the environment that runs this; its interpreter."""
    venv.EnvBuilder(with_pip=True, symlinks=True).create(folder)
    python = folder / "bin" / "python"
    (place,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (place / "outer.pth").write_text("".join(f"{path}\n" for path in others))  # behind its own: the pycolmap here wins
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "-I", f"pycolmap=={version}"], check=True)
    return python


def scene(folder: Path) -> dict[str, Any]:
    """Run the scene with the pycolmap that is installed."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from synthetic_scene import counted, write_scene

    return counted(write_scene(folder), folder)


def measured(version: str, folder: Path) -> dict[str, Any]:
    """The row of one version; what went wrong instead, where it does."""
    try:
        python = environment(folder / version, version)
        command = [str(python), str(Path(__file__).resolve()), "--scene", str(folder / f"scene_{version}")]
        variables = {**os.environ, "PYTHONPATH": str(HERE.parent), "GLOG_minloglevel": "2"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    except subprocess.CalledProcessError as error:
        return {"pycolmap": version, "failed": (error.stderr or str(error)).strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="*", default=VERSIONS)
    parser.add_argument("--keep", type=Path, help="folder of the environments (else they are removed)")
    parser.add_argument("--no-result", action="store_true", help="print only")
    parser.add_argument("--scene", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scene:
        arguments.scene.mkdir(parents=True)
        print(json.dumps(scene(arguments.scene)))
        return
    from machine import write_result

    print(" | ".join(COLUMNS))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        for version in arguments.versions:
            rows.append(measured(version, folder.resolve()))
            print(rows[-1].get("failed") or " | ".join(str(rows[-1][column]) for column in COLUMNS), flush=True)
    if not arguments.no_result:
        print(write_result("versions", {"rows": rows}))


if __name__ == "__main__":
    main()
