"""`featkit doctor`: what is here, what is missing, and whether the main job runs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from featkit.cli.common import Outcome, RunOptions, verb
from featkit.errors import FeatkitError, NothingCameOutError

HELP = """Say what is installed, what is missing and how to get it, and run the main job on a tiny scene.

Example: `featkit doctor`

Renders four small photographs into a temporary folder, extracts, matches and maps them. Ends with 0 when all four
are in the map at their true places, else with 4."""

VIEWS = 4
WIDTH_PX, HEIGHT_PX = 320, 240
ARC_DEG = 30.0  # that the cameras stand on
TEXEL_M = 0.03  # coarse textures are painted fast
KEYPOINTS = 500
MAX_CENTRE_ERROR_M = 0.1  # of a scene of about 10 m; 0.007 is what comes out


@verb
def command(*, run: RunOptions) -> Outcome:
    from dataclasses import asdict

    from featkit import log
    from featkit.cli import doctor_findings as look

    found = [*look.versions(), *look.machine(), *look.room(Path.cwd()), *look.extras(), *look.traps()]
    started = time.monotonic()
    if not run.verbose:
        log.setup(-1)  # the tiny scene's own progress is nothing to read
    try:
        job, error = _main_job(run.device), None
    except Exception as problem:  # whatever stops the main job is what a doctor is asked for
        job, error = {}, _what(problem)
    job["seconds"] = round(time.monotonic() - started, 2)
    data = {"works": error is None, "error": error, "main_job": job, "findings": [asdict(item) for item in found]}
    lines = _lines(found)
    if error is None:
        ran = (
            f"{job['registered']} views mapped, {job['points']} points, {1e3 * job['centre_max_m']:.0f} mm off at most"
        )
        return Outcome(data, [*lines, _line("main job", "extract, match, map", "ok", f"{ran}, {job['seconds']:.1f} s")])
    lines.append(_line("main job", "extract, match, map", "wrong", error))
    wrong = [f"{item.name}: {item.found}; {item.advice}" for item in found if item.state == "wrong"]
    said = f"the main job does not run here: {wrong[0] if wrong else error}"
    return Outcome(data, lines, error=NothingCameOutError(said))


def _main_job(device: str) -> dict[str, Any]:
    """Map a rendered scene. Raises whatever a step raises, NothingCameOutError for a map that is not the scene."""
    from featkit.data.rendered import RenderedConfig, render_scene
    from featkit.resources import load_pipeline

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
        raise NothingCameOutError(
            f"{metrics['registered']} of {VIEWS} views mapped, {worst:.2g} m from their true places; reinstall featkit"
        )
    return {"registered": metrics["registered"], "points": metrics["points"], "centre_max_m": worst}


def _what(problem: Exception) -> str:
    said = str(problem).splitlines()[0] if str(problem) else "no message"
    return said if isinstance(problem, FeatkitError) else f"{type(problem).__name__}: {said}"


def _lines(found: list[Any]) -> list[str]:
    lines, group = [], ""
    for item in found:
        advice = f" -> {item.advice}" if item.advice else ""
        lines.append(_line(item.group if item.group != group else "", item.name, item.state, f"{item.found}{advice}"))
        group = item.group
    return lines


def _line(group: str, name: str, state: str, text: str) -> str:
    return f"{group:9} {name:25} {state:8} {text}"
