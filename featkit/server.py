"""POST a photograph, get its pose: an ASGI application around a localizer.

Every answer is json; one that is no pose has an `error` of one line. A photograph that was understood but could not be
localized is an answer like any other: status 200, `localized` false, and the reason.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from featkit import __version__
from featkit.core.errors import BadInputError
from featkit.images.read import stored_size
from featkit.io.lists import Intrinsics, parse_intrinsics
from featkit.localization.localizer import ServeConfig
from featkit.localization.stage import QueryResult, describe

LOGGER = logging.getLogger(__name__)
MB = 1e6
CLIENT_GONE = 499  # nobody reads it: only the log shows it


class WarmMap(Protocol):
    """What is served: a Localizer, or what a test puts in its place."""

    @property
    def map_images(self) -> int: ...

    @property
    def map_points(self) -> int: ...

    def localize(
        self, image: Path, intrinsics: Intrinsics | str | None = None, *, name: str | None = None
    ) -> QueryResult: ...


class Answer(BaseModel):
    """One photograph: its pose in the map's frame with its uncertainty, or the reason why there is none."""

    name: str
    localized: bool
    reason: str | None = Field(description="why there is no pose")
    uncertain: str | None = Field(
        default=None, description="why the pose is not to be trusted; null: nothing against it"
    )
    keypoints: int
    retrieved: int = Field(description="images of the map that it was matched with")
    matches_3d: int = Field(description="matches with points of the map")
    inliers: int
    intrinsics_source: str = Field(description="list (given with the request), params, map, exif or guess")
    camera: list[str | int | float] | None = Field(default=None, description="model, width, height, parameters")
    qvec: list[float] | None = Field(default=None, description="rotation world to camera, (w, x, y, z)")
    tvec: list[float] | None = Field(default=None, description="translation world to camera, map units")
    centre: list[float] | None = Field(default=None, description="camera centre, map units")
    residual_px: float | None = Field(default=None, description="RMS of the inliers per coordinate")
    median_px: float | None = Field(default=None, description="median of the inliers' distances")
    centre_std: float | None = Field(default=None, description="standard deviation of the centre, map units")
    rotation_std_deg: float | None = Field(default=None, description="standard deviation of the rotation, degrees")


class Health(BaseModel):
    """That the map is loaded, and how much is asked of it now."""

    status: str
    version: str
    map_images: int
    map_points: int
    busy: int = Field(description="photographs that are worked on or wait")


class Refusal(BaseModel):
    """Why there is no answer, in one line."""

    error: str


class RefusedError(Exception):
    """Ends a request with a status and one line."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "empty, not an image, cut off"},
    408: {"model": Refusal, "description": "the photograph did not arrive in time"},
    413: {"model": Refusal, "description": "too many bytes or pixels"},
    422: {"model": Refusal, "description": "intrinsics that are none, or of another image size"},
    500: {"model": Refusal, "description": "something unexpected; the server goes on"},
    503: {"model": Refusal, "description": "too many photographs wait already; try again"},
    504: {"model": Refusal, "description": "not localized in time"},
}
BODY = {
    "requestBody": {
        "required": True,
        "description": "the bytes of the file, in any format that featkit reads",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/jpeg", "image/png", "image/tiff", "application/octet-stream")
        },
    }
}


def create_app(localizer: WarmMap, config: ServeConfig | None = None) -> FastAPI:
    """The application: POST /localize, GET /healthz, and its description at /openapi.json and /docs."""
    desk = Desk(localizer, config or ServeConfig())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    app = FastAPI(title="featkit serve", version=__version__, description=__doc__ or "", lifespan=lifespan)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        LOGGER.info("%s: %d %s", request.url.path, error.status, error)
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"error": str(error)}, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    @app.get("/healthz")
    async def healthz() -> Health:
        images, points = localizer.map_images, localizer.map_points
        return Health(status="ok", version=__version__, map_images=images, map_points=points, busy=desk.busy)

    @app.post("/localize", responses=REFUSALS, openapi_extra=BODY)
    async def localize(
        request: Request,
        intrinsics: Annotated[
            str | None,
            Query(max_length=500, description="`MODEL width height params...` of COLMAP, of the file's pixels"),
        ] = None,
        name: Annotated[str, Query(max_length=255, description="what the answer calls it")] = "image",
    ) -> Answer:
        """Find the pose of a photograph."""
        data = await desk.received(request)
        return Answer(**describe(await desk.localized(data, intrinsics, name)))

    return app


class Desk:
    """Takes photographs in and hands them to the threads, so many at once."""

    def __init__(self, localizer: WarmMap, config: ServeConfig):
        self.localizer, self.config = localizer, config
        self.busy = 0
        self._threads = ThreadPoolExecutor(config.threads, thread_name_prefix="localize")

    async def received(self, request: Request) -> bytes:
        """The body. Raises RefusedError when it is empty, too large or too slow."""
        try:
            data = await asyncio.wait_for(self._read(request), self.config.upload_s)
        except asyncio.TimeoutError:  # until Python 3.11 not the builtin
            raise RefusedError(408, f"the photograph did not arrive within {self.config.upload_s:g} s") from None
        except ClientDisconnect:
            raise RefusedError(CLIENT_GONE, "the client went away") from None
        if not data:
            raise RefusedError(400, "an empty body; POST the bytes of a photograph")
        return data

    async def _read(self, request: Request) -> bytes:
        """Never holds more than the largest photograph, whatever the client says or sends."""
        limit = self.config.max_mb * MB
        announced = request.headers.get("content-length", "")
        parts: list[bytes] = []
        total = int(announced) if announced.isdigit() else 0
        if total <= limit:
            total = 0
            async for part in request.stream():
                total += len(part)
                if total > limit:
                    break
                parts.append(part)
        if total > limit:
            raise RefusedError(413, f"more than {self.config.max_mb:g} MB; scale the photograph down")
        return b"".join(parts)

    async def localized(self, data: bytes, intrinsics: str | None, name: str) -> QueryResult:
        """The result of one photograph. Raises RefusedError."""
        if self.busy >= self.config.threads + self.config.max_waiting:
            raise RefusedError(503, f"{self.busy} photographs are waiting already; try again later")
        self.busy += 1
        work = self._threads.submit(self._work, data, intrinsics, name)
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda done: _soon(loop, self._finished))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), self.config.timeout_s)
        except asyncio.TimeoutError:  # one that waits is taken back, one that runs ends by itself
            raise RefusedError(504, f"not localized within {self.config.timeout_s:g} s") from None
        except BadInputError as error:
            raise RefusedError(400, str(error)) from None
        except RefusedError:
            raise
        except Exception as error:
            LOGGER.exception("localize: unexpected")
            raise RefusedError(500, f"unexpected {type(error).__name__}; the server's log has more") from None

    def _finished(self) -> None:
        self.busy -= 1

    def _work(self, data: bytes, intrinsics: str | None, name: str) -> QueryResult:
        """In a thread: check what is cheap to check, then localize."""
        camera = _camera(intrinsics)
        with tempfile.TemporaryDirectory(prefix="featkit-serve-") as folder:
            path = Path(folder) / "photograph"
            path.write_bytes(data)
            try:
                size = stored_size(path)
                if size[0] * size[1] > self.config.max_megapixels * 1e6:
                    limit = f"{self.config.max_megapixels:g} megapixels"
                    raise RefusedError(413, f"{size[0]} x {size[1]} pixels, more than {limit}; scale it down")
                if camera is not None and size != (camera.width, camera.height):
                    given = f"{camera.width} x {camera.height}"
                    raise RefusedError(422, f"intrinsics for {given}, the photograph is {size[0]} x {size[1]}")
                return self.localizer.localize(path, camera, name=name)
            except BadInputError as error:  # its text names a file that the client has never seen
                raise BadInputError(str(error).replace(str(path), "the photograph")) from None

    def close(self) -> None:
        """Take no more photographs; those at work end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _camera(text: str | None) -> Intrinsics | None:
    if text is None:
        return None
    try:
        return parse_intrinsics(text, "intrinsics")
    except BadInputError as error:
        raise RefusedError(422, str(error)) from None


def _soon(loop: asyncio.AbstractEventLoop, call: Any) -> None:
    """Call in the loop's thread, when there still is a loop."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
