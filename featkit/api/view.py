"""View a map in a browser, served on this machine or written as a folder."""

from __future__ import annotations

import logging
import os
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated, Any

from featkit.api.options import ModelNumber, Option, Param, with_options
from featkit.core.listening import LOOPBACK, address_of, listening
from featkit.core.runtime import Interrupted
from featkit.mapping.scene import find_model
from featkit.viewer.photographs import PageImageConfig
from featkit.viewer.scene import ViewedScene
from featkit.viewer.server import ViewServer, write_folder

LOGGER = logging.getLogger("featkit.view")


@with_options(PageImageConfig, photograph_px=Option("photograph_px"))
def view(
    scene: Annotated[Path, Param(help="A reconstructed scene, or a COLMAP or hloc model.")],
    *,
    config: PageImageConfig,
    images: Annotated[
        list[Path] | None,
        Param(metavar="DIR", help="The map's photographs; repeatable.", unset="found near the map"),
    ] = None,
    database: Annotated[
        Path | None, Param(metavar="FILE", help="COLMAP's database with the matches.", unset="found near the map")
    ] = None,
    localize: Annotated[
        Path | None,
        Param(metavar="DIR", help="Results of `featkit localize` to show.", unset="found near the map"),
    ] = None,
    queries: Annotated[
        Path | None, Param(metavar="DIR", help="The photographs of its queries.", unset="where they were localized")
    ] = None,
    out: Annotated[
        Path | None,
        Param("--out", "-o", metavar="DIR", help="Write the page as a folder and exit.", unset="none"),
    ] = None,
    host: Annotated[str, Param(help="Address to listen on; 0.0.0.0: all network interfaces.")] = "127.0.0.1",
    port: Annotated[int, Param(help="Port to listen on; 0: any free port.", low=0, high=65535)] = 0,
    no_browser: Annotated[bool, Param("--no-browser", help="Print the address without opening a browser.")] = False,
    number: ModelNumber = None,
    overwrite: Annotated[bool, Param("--overwrite", help="Replace a page that featkit wrote to --out.")] = False,
) -> str:
    """Show a map in a browser until Ctrl-C. Returns the address, or the page's file; raises featkit's errors."""
    folder = find_model(scene, number)
    more: dict[str, Any] = {"images": images or (), "database": database, "localize": localize, "queries": queries}
    if out is not None:
        shown = _scene_of(folder, config, more)
        return str(write_folder(shown, out, overwrite=overwrite))
    with listening(host, port) as bound:
        where = address_of(bound)
        if not host.startswith(LOOPBACK):
            LOGGER.warning("%s: whoever can reach this machine can see the photographs; there is no password", where)
        shown = _scene_of(folder, config, more)
        server = ViewServer(bound, shown)
        counts = f"{len(shown.images):,} images, {len(shown.point_ids):,} points"
        if shown.queries is not None:
            counts += f", {len(shown.queries.queries):,} queries"
        LOGGER.info("%s: %s (%s); Ctrl-C stops", folder, where, counts)
        if not no_browser and _has_browser():
            threading.Thread(target=webbrowser.open, args=(where,), daemon=True).start()
        try:
            server.serve_forever()
        except Interrupted:  # as any other command: exit code 130 or 143
            raise
        except KeyboardInterrupt:  # called from Python
            pass
        return where


def _scene_of(folder: Path, config: PageImageConfig, more: dict[str, Any]) -> ViewedScene:
    """The scene; a warning for each part of it that was not found. more: keyword arguments of `ViewedScene`."""
    shown = ViewedScene(folder, config, **more)
    for sentence in shown.missing:
        LOGGER.warning("%s", sentence)
    return shown


def _has_browser() -> bool:
    """Whether there is a screen. Without one Python would start a text-mode browser in the terminal."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
