"""`featkit view`: view a map in a browser."""

from __future__ import annotations

from featkit.api import view as api
from featkit.cli.app import Outcome
from featkit.cli.command import command

VIEW_HELP = """View a map in a browser: points, cameras, photographs, matches and tracks.

Example: `featkit view scene/`, then open the address that it prints; Ctrl-C stops it

A click on a camera shows its photograph, keypoints and matched pairs with their inliers; on a pair both photographs
with their matches as lines; on a point its track. Takes the output of `featkit reconstruct`, and models of COLMAP and
hloc; missing parts (photographs, database.db) are reported and left out. Nothing is loaded from the network, no file is
changed, and only this machine can open the page, unless --host is given. With --out the page is written as a folder:
index.html opens without a server."""


@command(api.view)
def view_command(where: str) -> Outcome:
    if where.startswith("http"):
        return Outcome({"address": where}, [f"{where}: stopped"])
    return Outcome({"page": where}, [f"page: {where}"])
