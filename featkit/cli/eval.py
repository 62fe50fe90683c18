"""`featkit eval ...`: features and descriptors on the field's benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import typer

from featkit.cli import eval_all, eval_eth, eval_localization, eval_matching, eval_patches, eval_pose
from featkit.cli.common import Outcome, verb
from featkit.cli.engine_options import with_engine

HELP = "Judge features and descriptors on the field's benchmarks: matching, maps, poses, patches."
COMMANDS: dict[str, tuple[Callable[..., Outcome], str]] = {
    "all": (eval_all.everything, eval_all.HELP),
    "hpatches": (eval_matching.hpatches, eval_matching.HPATCHES_HELP),
    "oxford": (eval_matching.oxford, eval_matching.OXFORD_HELP),
    "eth": (eval_eth.eth, eval_eth.HELP),
    "pose": (eval_pose.pose, eval_pose.HELP),
    "localization": (eval_localization.localization, eval_localization.HELP),
    "ubc": (eval_patches.ubc, eval_patches.UBC_HELP),
    "patches": (eval_patches.patches, eval_patches.PATCHES_HELP),
    "rome": (eval_patches.rome, eval_patches.ROME_HELP),
}

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown")
for name, (function, text) in COMMANDS.items():
    app.command(name, help=text, no_args_is_help=True)(verb(with_engine(function)))
