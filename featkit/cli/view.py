"""`featkit view`: view a map in a browser."""

from __future__ import annotations

from featkit.api import view as api
from featkit.cli.app import Outcome
from featkit.cli.command import command

VIEW_HELP = """View a map in a browser: points, cameras, photographs, matches and tracks.

Example: `featkit view scene/`, then open the address that it prints

A click on a camera shows its photograph, keypoints and matched pairs with their inliers; on a pair both photographs
with their matches as lines; on a point its track. Queries that `featkit localize` found in this map are shown with
their inliers and the photographs they were matched with; results for another map are named, not drawn. Takes the output
of `featkit reconstruct`, and models of COLMAP and hloc; missing parts (photographs, database.db) are reported and left
out. Nothing is loaded from the network, no file is changed, and only this machine can open the page, unless --host is
given. Ctrl-C ends it. With --out the page is written as a folder: index.html opens without a server."""


@command(api.view)
def view_command(page: str) -> Outcome:
    return Outcome({"page": page}, [f"page: {page}"])
