"""Localize photographs in a map: a folder of them, or one by one over HTTP."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Annotated, Any

from featkit.api.options import Device, ModelNumber, Option, Overwrite, Param, with_options
from featkit.api.stages import camera_options
from featkit.core.config import load_pipeline
from featkit.core.errors import UsageError
from featkit.core.listening import LOOPBACK, address_of, listening
from featkit.localization.localizer import Localizer, LocalizerConfig, ServedConfig

LOCALIZE = load_pipeline("localize")
LOGGER = logging.getLogger("featkit.serve")
Map = Annotated[Path, Param(metavar="MAP", help="A reconstructed scene, or its sparse model.")]
MapFeatures = Annotated[Path | None, Param(help="The map's features.h5.", unset="found next to the map")]


def query_options() -> dict[str, Option]:
    """Options shared by all localization commands."""
    camera = camera_options("localize.camera.")
    del camera["camera_mode"]  # every query has its own camera
    return {"num": Option("localize.num_retrieved"), "matcher": Option("matcher"), **camera}


@with_options(
    LOCALIZE.LocalizationConfig,
    **query_options(),
    workers=Option("workers"),
    keypoints=Option("keypoints", metavar="FILE"),
    seed=Option("seed", also=("localize.pose.seed",)),
)
def localize(
    map_folder: Map,
    queries: Annotated[Path, Param("--queries", help="Folder of photographs to localize.")],
    *,
    config: Any,
    intrinsics: Annotated[
        Path | None, Param(help="`name MODEL width height params...` a line; only these are localized.")
    ] = None,
    out: Annotated[
        Path | None, Param("--out", "-o", help="Folder for the poses.", unset="MAP/featkit/localize")
    ] = None,
    features: MapFeatures = None,
    pairs: Annotated[Path | None, Param(help="Pairs file: query, map image.", unset="retrieval")] = None,
    retrieval: Annotated[
        list[Path] | None,
        Param(
            metavar="FILE",
            help="Pair by global descriptors of map and queries in hloc's layout; given twice: one file each.",
        ),
    ] = None,
    truth: Annotated[Path | None, Param(help="True poses (of the map's images too): prints the recall.")] = None,
    number: ModelNumber = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> Any:
    """Find the poses of new photographs in a map. Returns `pipelines/localize.py`'s result; raises featkit's errors."""
    if retrieval and pairs:
        raise UsageError("--retrieval makes the pairs; it does not go with --pairs")
    return LOCALIZE.run(
        config,
        map_folder,
        queries,
        out,
        intrinsics=intrinsics,
        features=features,
        pairs=pairs,
        retrieval=retrieval or (),
        truth=truth,
        number=number,
        device=device,
        overwrite=overwrite,
    )


@with_options(
    ServedConfig,
    **query_options(),
    points_only=Option("points_only", help="Match with the map's 3D points alone, each once: faster."),
    max_mb=Option("serve.max_mb"),
    max_megapixels=Option("serve.max_megapixels"),
    timeout=Option("serve.timeout_s"),
    threads=Option("serve.threads"),
    seed=Option("seed", also=("localize.pose.seed",)),
)
def serve(
    map_folder: Map,
    *,
    config: ServedConfig,
    host: Annotated[str, Param(help="Address to listen on; 0.0.0.0: all network interfaces.")] = "127.0.0.1",
    port: Annotated[int, Param(help="Port to listen on; 0: any free port.", low=0, high=65535)] = 8000,
    features: MapFeatures = None,
    number: ModelNumber = None,
    device: Device = "auto",
) -> str:
    """Localize photographs over HTTP until Ctrl-C. Returns the address; raises featkit's errors."""
    try:
        import uvicorn

        from featkit.server import create_app, uvicorn_config
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"fastapi", "uvicorn", "starlette"}:
            raise
        raise UsageError(f'featkit serve needs {error.name}; pip install "featkit[serve]"') from None

    warm_config = LocalizerConfig(**{name: getattr(config, name) for name in LocalizerConfig.model_fields})
    with (
        listening(host, port) as bound,
        Localizer(map_folder, warm_config, features=features, device=device, number=number) as warm,
    ):
        where = address_of(bound)
        if not host.startswith(LOOPBACK):
            LOGGER.warning("%s: whoever can reach this machine can send photographs; there is no password", where)
        bound.listen()  # before reporting ready: requests that arrive from now on wait for the server to start
        LOGGER.info("ready: %s (%d images, %d points); Ctrl-C stops", where, warm.map_images, warm.map_points)
        app = create_app(warm, config.serve)
        server = uvicorn.Server(uvicorn_config(app, config.serve))
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[bound])
        return where
