"""`featkit doctor` and `info`: check the installation, describe a file. Loads nothing that may be missing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from featkit import __version__
from featkit.cli.app import Outcome, RunOptions, verb
from featkit.core import log
from featkit.core.config import load_pipeline
from featkit.core.errors import EmptyResultError, FeatkitError, refuse_pipe

# ----------------------------------------------------------------------------------------------------------------------
# `featkit doctor`: what is installed, what is missing, and whether the main job runs.


DOCTOR_HELP = """Check the installation: what is missing and how to get it; then run the main job on a tiny scene.

Example: `featkit doctor`

Renders four small photographs into a temporary folder, extracts, matches and maps them. The exit code is 0 if all four
are in the map at their true positions, else 4."""

VIEWS = 4
WIDTH_PX, HEIGHT_PX = 320, 240
ARC_DEG = 30.0  # arc covered by the cameras
TEXEL_M = 0.03  # coarse textures render fast
KEYPOINTS = 500
MAX_CENTRE_ERROR_M = 0.1  # for a scene of about 10 m; 0.007 is usual


@verb
def doctor_command(*, run: RunOptions) -> Outcome:
    from dataclasses import asdict

    found = [*versions(), *machine(), *disk_space(Path.cwd()), *extras(), *known_problems()]
    started = time.monotonic()
    if not run.verbose:
        log.setup(-1)  # hide the progress of the tiny scene
    try:
        job, error = _main_job(run.device), None
    except Exception as problem:  # any failure of the main job is a finding
        job, error = {}, _error_text(problem)
    job["seconds"] = round(time.monotonic() - started, 2)
    data = {"works": error is None, "error": error, "main_job": job, "findings": [asdict(item) for item in found]}
    lines = _format_findings(found)
    if error is None:
        ran = (
            f"{job['registered']} views mapped, {job['points']} points, errors up to {1e3 * job['centre_max_m']:.0f} mm"
        )
        return Outcome(
            data, [*lines, _format_line("main job", "extract, match, map", "ok", f"{ran}, {job['seconds']:.1f} s")]
        )
    lines.append(_format_line("main job", "extract, match, map", "wrong", error))
    wrong = [f"{item.name}: {item.found}; {item.advice}" for item in found if item.state == "wrong"]
    return Outcome(
        data, lines, error=EmptyResultError(f"the main job does not run here: {wrong[0] if wrong else error}")
    )


def _main_job(device: str) -> dict[str, Any]:
    """Map a rendered scene. Raises the error of any step, and EmptyResultError if the map is wrong."""
    from featkit.demo.scene import RenderedConfig, render_scene

    sfm = load_pipeline("sfm")
    scene = RenderedConfig(
        width=WIDTH_PX,
        height=HEIGHT_PX,
        num_map=VIEWS,
        num_queries=0,
        arc_deg=ARC_DEG,
        texel_m=TEXEL_M,
        supersampling=1,
    )
    with tempfile.TemporaryDirectory(prefix="featkit-doctor-") as folder:
        rendered = render_scene(scene, Path(folder))
        known = rendered.intrinsics
        camera = {"mode": "single", "model": known.model, "params": known.params, "refine": False}
        extract = {"workers": 1, "extractor": {"max_keypoints": KEYPOINTS}}
        config = sfm.SfmConfig(extract=extract, map={"camera": camera})
        done = sfm.run(config, rendered.images, Path(folder) / "out", truth=rendered.poses_file, device=device)
    metrics = done.metrics
    worst = float(metrics["truth"]["centre_max"])
    if metrics["registered"] < VIEWS or worst > MAX_CENTRE_ERROR_M:
        raise EmptyResultError(
            f"{metrics['registered']} of {VIEWS} views mapped, errors up to {worst:.2g} m; reinstall featkit"
        )
    return {"registered": metrics["registered"], "points": metrics["points"], "centre_max_m": worst}


def _error_text(problem: Exception) -> str:
    line = str(problem).splitlines()[0] if str(problem) else "no message"
    return line if isinstance(problem, FeatkitError) else f"{type(problem).__name__}: {line}"


def _format_findings(found: list[Any]) -> list[str]:
    lines, group = [], ""
    for item in found:
        advice = f" -> {item.advice}" if item.advice else ""
        lines.append(
            _format_line(item.group if item.group != group else "", item.name, item.state, f"{item.found}{advice}")
        )
        group = item.group
    return lines


def _format_line(group: str, name: str, state: str, text: str) -> str:
    return f"{group:9} {name:25} {state:8} {text}"


# ----------------------------------------------------------------------------------------------------------------------
# The checks of `featkit doctor`, which rely on Python's standard library only.


State = Literal["ok", "note", "missing", "wrong"]
GIB = 2**30
DISK_GIB = 2.0  # warn below this free space: 1,000 photographs take about as much
MEMORY_GIB = 2.0  # warn below this free memory: extracting features of a 24-megapixel photograph takes about 1 GiB


@dataclass(frozen=True)
class Finding:
    """One line of the report. advice: what to do.

    state: "note": worth knowing; "missing": something optional; "wrong": stops the main job, or will.
    """

    group: str
    name: str
    state: State
    found: str
    advice: str = ""


# distribution -> module, purpose
NEEDED = {
    "numpy": ("numpy", "arrays"),
    "pillow": ("PIL", "headers of photographs, EXIF"),
    "opencv-python-headless": ("cv2", "decoding and resizing"),
    "h5py": ("h5py", "features.h5, matches.h5"),
    "pycolmap": ("pycolmap", "SIFT, verification, mapping, poses"),
    "torch": ("torch", "matching, networks"),
    "pydantic": ("pydantic", "configurations"),
    "PyYAML": ("yaml", "configurations"),
    "jaxtyping": ("jaxtyping", "types"),
    "plotly": ("plotly", "report.html"),
    "jinja2": ("jinja2", "report.html"),
    "safetensors": ("safetensors", "weights"),
    "rich": ("rich", "tables, progress"),
    "poselib": ("poselib", "`featkit eval pose`"),
    "lightning": ("lightning", "`featkit train`"),
    "tensorboardX": ("tensorboardX", "`featkit train`"),
}
# extra -> its modules, purpose, how to install it
EXTRAS = {
    "faiss": (("faiss",), "faster retrieval in large collections", 'pip install "featkit[faiss]"'),
    "published": (("kornia",), "ALIKED, DISK, XFeat and others", 'pip install "featkit[published]"'),
    "onnx": (("onnx", "onnxruntime"), "networks for other runtimes", 'pip install "featkit[onnx]"'),
    "serve": (("fastapi", "uvicorn"), "`featkit serve`", 'pip install "featkit[serve]"'),
    "hloc": (("hloc",), "featkit's features inside hloc", "see python -m featkit.hloc"),
}
LOCKING = "HDF5_USE_FILE_LOCKING"  # an environment variable of HDF5
PYCOLMAP_TESTED = ("4.0.4", "4.1.1", "4.2.0", "4.2.1")
PYCOLMAP_KNOWN_PROBLEMS = {
    "4.2.1": "drops two-view geometries without a `config`: featkit writes it, other programs (hloc) get 0 points"
}


def versions() -> list[Finding]:
    """featkit, Python, and every required library: whether it is installed, tested in its version, and importable."""
    place = str(Path(__file__).resolve().parents[1])
    found = [
        Finding("versions", "featkit", "ok", f"{__version__}, {place}"),
        _python(),
    ]
    ranges = _required_ranges()
    return found + [_library(name, module, use, ranges.get(name.lower(), "")) for name, (module, use) in NEEDED.items()]


def _python() -> Finding:
    return Finding("versions", "python", "ok", f"{platform.python_version()}, {platform.platform(terse=True)}")


def _required_ranges() -> dict[str, str]:
    """Version ranges that featkit requires, by lower-case name (`torch`: `<2.14,>=2.6`); empty if not installed."""
    ranges = {}
    with contextlib.suppress(Exception):  # `packaging` is not a dependency of featkit
        from packaging.requirements import Requirement

        for text in importlib.metadata.requires("featkit") or []:
            requirement = Requirement(text)
            if requirement.marker is None:
                ranges[requirement.name.lower()] = str(requirement.specifier)
    return ranges


def _library(name: str, module: str, use: str, wanted: str) -> Finding:
    version = _version(name)
    install = f'pip install "{name}{wanted}"'
    error = _import_error(module)
    if error is not None and version is None:
        return Finding("versions", name, "wrong", f"not installed ({use})", install)
    if error is not None:
        return Finding(
            "versions", name, "wrong", f"{version} cannot be imported: {error}", f"{install} --force-reinstall"
        )
    if version is not None and wanted and not _satisfies(version, wanted):
        return Finding("versions", name, "note", f"{version}, not tested with it (tested: {wanted})", install)
    return Finding("versions", name, "ok", version or "unknown version")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import_error(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:  # importing a broken library may raise anything
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return None


def _satisfies(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(wanted).contains(version, prereleases=True)
    except Exception:
        return True


def known_problems() -> list[Finding]:
    """Known problems of the installed versions and of the environment."""
    found = []
    pycolmap = _version("pycolmap")
    if pycolmap is not None:
        tested = ", ".join(PYCOLMAP_TESTED)
        if pycolmap in PYCOLMAP_KNOWN_PROBLEMS:
            found.append(Finding("traps", f"pycolmap {pycolmap}", "note", PYCOLMAP_KNOWN_PROBLEMS[pycolmap]))
        if pycolmap not in PYCOLMAP_TESTED:
            advice = f'pip install "pycolmap=={PYCOLMAP_TESTED[-1]}"'
            found.append(Finding("traps", f"pycolmap {pycolmap}", "note", f"not tested with it; {tested} are", advice))
    both = [
        name for name in ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless") if _version(name)
    ]
    if both and _version("opencv-python-headless"):
        advice = f"pip uninstall {' '.join(both)}; pip install --force-reinstall opencv-python-headless"
        found.append(Finding("traps", both[0], "note", "overwrites opencv-python-headless: either may break", advice))
    if os.environ.get(LOCKING, "TRUE").upper() in ("FALSE", "0"):
        found.append(
            Finding("traps", LOCKING, "note", "off: two processes could write to one store", f"unset {LOCKING}")
        )
    return found


def machine() -> list[Finding]:
    """Cores, memory, GPU."""
    found = [Finding("machine", "cores", "ok", f"{_cores()} usable of {os.cpu_count()}")]
    memory = _memory_gib()
    if memory is not None:
        total, free = memory
        state: State = "ok" if free >= MEMORY_GIB else "note"
        advice = "" if state == "ok" else "use fewer --workers or a smaller --resize-max"
        found.append(Finding("machine", "memory", state, f"{free:.1f} GiB free of {total:.1f}", advice))
    return [*found, _gpu()]


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _memory_gib() -> tuple[float, float] | None:
    """Total and available memory, within a container's limit; None if unknown."""
    try:
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        known = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
        total, free = known["MemTotal"], known["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return total / GIB, free / GIB


def _gpu() -> Finding:
    try:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            return Finding(
                "machine", "GPU", "ok", ", ".join(f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB" for gpu in names)
            )
        built = torch.version.cuda
    except Exception as error:
        return Finding("machine", "GPU", "note", f"torch fails to report it ({type(error).__name__})")
    why = f"torch is built for CUDA {built} and sees no device" if built else "torch is built for the CPU only"
    advice = "check the driver with nvidia-smi" if built else "https://pytorch.org has builds with CUDA"
    return Finding("machine", "GPU", "missing", f"none: {why}; all of featkit runs on the CPU", advice)


def disk_space(folder: Path) -> list[Finding]:
    """Free disk space in `folder` and for temporary files, and whether HDF5 files can be written and locked there."""
    found = []
    for name, place in (("disk here", folder), ("disk for temporary files", Path(tempfile.gettempdir()))):
        try:
            free = shutil.disk_usage(place).free / GIB
        except OSError as error:
            found.append(Finding("room", name, "wrong", f"{place}: {error.strerror}", "choose another folder"))
            continue
        state: State = "ok" if free >= DISK_GIB else "note"
        found.append(Finding("room", name, state, f"{free:.1f} GiB free in {place}", "free some" * (state != "ok")))
    return [*found, _check_store_locking(folder)]


def _check_store_locking(folder: Path) -> Finding:
    try:
        with tempfile.TemporaryDirectory(prefix=".featkit-doctor-", dir=folder) as here:
            from featkit.io.atomic import probe

            probe(Path(here) / "probe.h5")
    except PermissionError:
        return Finding("room", "stores", "note", f"{folder} cannot be written to", "give --out a folder that can be")
    except Exception as error:
        advice = "on a network folder without locks: export HDF5_USE_FILE_LOCKING=FALSE, one process at a time"
        return Finding("room", "stores", "note", f"HDF5 cannot write here ({str(error).splitlines()[0]})", advice)
    return Finding("room", "stores", "ok", "HDF5 files are written and locked here")


def extras() -> list[Finding]:
    """Optional dependencies."""
    found = []
    for name, (modules, use, how) in EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        state: State = "missing" if absent else "ok"
        found.append(Finding("extras", name, state, use, how if absent else ""))
    with contextlib.suppress(Exception):
        cuda = bool(importlib.import_module("pycolmap").has_cuda)
        how = "" if cuda else "build pycolmap with CUDA"
        found.append(Finding("extras", "dense points", "ok" if cuda else "missing", "pycolmap with CUDA: stereo", how))
    return found


# ----------------------------------------------------------------------------------------------------------------------
# `featkit info`: describe a file or folder.


INFO_HELP = """Describe a file, folder or configuration: its kind, its contents, and the configuration that made it.

Example: `featkit info scene/featkit/features.h5`

Takes a features or matches file, a pairs or poses file, a COLMAP model, a mapped scene, a folder of images, a weights
file, a yaml file, or the name of a configuration."""


@verb
def info_command(
    what: Annotated[str, typer.Argument(metavar="ANYTHING", help="A path, or the name of a configuration.")],
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.report.describe import describe, description_lines

    with contextlib.suppress(OSError, ValueError):  # no path: `describe` reports it
        refuse_pipe(Path(what))
    found = describe(what)
    return Outcome(found, description_lines(found))
