"""`featkit demo`: the whole flow on a rendered scene, against the exact truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featkit.cli.common import Outcome, RunOptions, verb

HELP = """Render a small 3D scene with exact cameras, map it, localize queries in it, and compare with the truth.

Example: `featkit demo --out featkit-demo`

Needs no data and no network; under a minute on two cores."""


@verb
def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything.")] = Path("featkit-demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False,
    *,
    run: RunOptions,
) -> Outcome:
    from featkit.data.rendered import RenderedConfig
    from featkit.report.demo import truth_table
    from featkit.resources import load_pipeline

    demo = load_pipeline("demo")
    result = demo.run(demo.DemoConfig(scene=RenderedConfig(seed=run.seed)), out, device=run.device, overwrite=overwrite)
    return Outcome(result.metrics, [f"report: {result.report}"], [truth_table(result.metrics)])
