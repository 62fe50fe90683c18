"""`featkit serve`: a map that answers photographs over HTTP."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featkit.cli import options
from featkit.cli.common import Outcome, RunOptions, verb
from featkit.errors import UsageError

if TYPE_CHECKING:
    import socket

HELP = """Localize photographs over HTTP: POST one to /localize, get its pose, inliers and uncertainty as json.

Example: `featkit serve scene/`, then `curl --data-binary @photo.jpg http://127.0.0.1:8000/localize`

With `?intrinsics=MODEL width height params...` (URL-encoded) the photograph's camera is known. A photograph that cannot
be localized is answered with the reason (status 200); one that cannot be read with 400, a too large one with 413.
/healthz says that the map is loaded, /openapi.json describes everything. There is no password: it listens on this
machine only, unless --host says otherwise. Needs `pip install "featkit[serve]"`."""
LOGGER = logging.getLogger("featkit.serve")
LOOPBACK = ("127.", "::1", "localhost")


@verb
def command(
    map_folder: Annotated[Path, typer.Argument(metavar="MAP", help="A reconstructed scene, or its sparse model.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535)] = 8000,
    features: Annotated[
        Path | None, typer.Option(help="The map's features.h5.", show_default="found beside the map")
    ] = None,
    num: Annotated[int | None, typer.Option(help="Map images retrieved per query.", min=1, show_default="20")] = None,
    matcher: options.Matcher = "mutual",
    points_only: Annotated[
        bool,
        typer.Option("--points-only", help="Match with the map's 3D points alone, each once: faster."),
    ] = False,
    camera_model: options.CameraModel = None,
    camera_params: options.CameraParams = None,
    max_mb: Annotated[float, typer.Option(help="Largest photograph, millions of bytes.", min=0.01)] = 32.0,
    max_megapixels: Annotated[float, typer.Option(help="Largest photograph, millions of pixels.", min=0.01)] = 50.0,
    timeout: Annotated[float, typer.Option(help="Seconds for one photograph, waiting included.", min=0.1)] = 60.0,
    threads: Annotated[int, typer.Option(help="Photographs worked on at once.", min=1)] = 2,
    settings: options.Settings = None,
    *,
    run: RunOptions,
) -> Outcome:
    try:
        import uvicorn

        from featkit.server.app import ServeConfig, create_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"fastapi", "uvicorn", "starlette"}:
            raise
        raise UsageError(f'featkit serve needs {error.name}; pip install "featkit[serve]"') from None
    from featkit.config import make, merge, overrides
    from featkit.localization.localizer import Localizer, LocalizerConfig

    limits = {"max_mb": max_mb, "max_megapixels": max_megapixels, "timeout_s": timeout, "threads": threads}
    serve = make(ServeConfig, limits, where="serve")
    camera = options.camera_fields(camera_model, camera_params)
    localize = {"pose": {"seed": run.seed}, "camera": camera, **options.given(num_retrieved=num)}
    values = {"localize": localize, "matcher": matcher, "points_only": points_only, "seed": run.seed}
    values = merge(values, overrides(settings or []))
    config = make(LocalizerConfig, values, where="localize")
    with _listening(host, port) as socket, Localizer(map_folder, config, features=features, device=run.device) as warm:
        where = _address(socket)
        if not host.startswith(LOOPBACK):
            LOGGER.warning("%s: whoever can reach this machine can send photographs; there is no password", where)
        socket.listen()  # before it is said to be ready: what comes now waits for the server's first turn
        LOGGER.info("ready: %s (%d images, %d points); Ctrl-C stops", where, warm.map_images, warm.map_points)
        server = uvicorn.Server(uvicorn.Config(create_app(warm, serve), log_level="warning", timeout_keep_alive=5))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[socket])
        return Outcome({"address": where}, [f"{where}: stopped"])


def _listening(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before the map is loaded. Raises UsageError when it cannot be."""
    import socket

    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error.strerror}; choose another port or address") from None
    return bound


def _address(socket: Any) -> str:
    host, port, *_ = socket.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
