"""HTTP server that localizes posted images: an ASGI application around a localizer.

Every response is json; failed requests have a one-line `error`. A valid photograph that could not be localized is a
normal response: status 200, `localized` false, and the reason.

Clients are untrusted, may be slow, and may be many. A photograph is only read (to disk) if the queue has a free place.
Features are extracted in processes, which are killed on timeout. Idle connections are closed.
"""

from __future__ import annotations

import asyncio
import html
import json
import logging
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from email.parser import HeaderParser
from http import HTTPStatus
from pathlib import Path
from typing import IO, Annotated, Any, Protocol

import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from featkit import __version__
from featkit.core.errors import BadInputError, WorkerDiedError, one_line
from featkit.core.processes import Endable
from featkit.core.runtime import usable_cores
from featkit.core.types import Features
from featkit.images.read import stored_size
from featkit.io.lists import Intrinsics, parse_intrinsics
from featkit.localization.localizer import ServeConfig
from featkit.localization.stage import QueryResult, query_summary

LOGGER = logging.getLogger(__name__)
MB = 1e6
CLIENT_GONE = 499  # never received by the client, only logged
KEEP_ALIVE_S = 5
LONGEST_NAME, LONGEST_CAMERA = 255, 500  # characters
MOST_PARTS, LONGEST_HEAD = 16, 4096  # of a form; the latter in bytes
BOUNDARY = re.compile(r'boundary="?([^";]{1,70})"?')
FORM, DISPOSITION = "multipart/form-data", "content-disposition"


class WarmMap(Protocol):
    """Interface of the served localizer: a Localizer, or a test's replacement."""

    @property
    def map_images(self) -> int: ...

    @property
    def map_points(self) -> int: ...

    @property
    def extract(self) -> Callable[[Path], Features] | None:
        """Extracts a photograph's features in another process; None: `localize` does it."""
        ...

    def localize(
        self,
        image: Path,
        intrinsics: Intrinsics | str | None = None,
        *,
        name: str | None = None,
        features: Features | None = None,
    ) -> QueryResult: ...


class Answer(BaseModel):
    """Result of one photograph: its pose in the map's frame with its uncertainty, or the reason for failure."""

    name: str
    localized: bool
    reason: str | None = Field(description="why there is no pose")
    uncertain: str | None = Field(default=None, description="why the pose is unreliable; null: no reason to doubt it")
    keypoints: int
    retrieved: int = Field(description="number of map images it was matched with")
    matches_3d: int = Field(description="number of matches with 3D points of the map")
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
    """Status: whether the map is loaded, and the current load."""

    status: str
    version: str
    map_images: int
    map_points: int
    busy: int = Field(description="number of photographs being processed or waiting")


class Refusal(BaseModel):
    """The reason for an error, in one line."""

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
    422: {"model": Refusal, "description": "invalid intrinsics, or for another image size"},
    500: {"model": Refusal, "description": "unexpected error; the server continues"},
    503: {"model": Refusal, "description": "too many photographs or connections waiting; try again later"},
    504: {"model": Refusal, "description": "not localized in time"},
}
BODY = {
    "requestBody": {
        "required": True,
        "description": "the bytes of the file, in any format that featkit reads",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/jpeg", "image/png", "image/tiff", "application/octet-stream")
        }
        | {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "intrinsics": {"type": "string"},
                        "name": {"type": "string"},
                    },
                }
            }
        },
    }
}


def create_app(localizer: WarmMap, config: ServeConfig | None = None) -> FastAPI:
    """The application: POST /localize, GET /healthz, and its description at /openapi.json and /docs."""
    queue = LocalizationQueue(localizer, config or ServeConfig())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    app = FastAPI(
        title="featkit serve",
        version=__version__,
        description=__doc__ or "",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from the network
        redoc_url=None,
    )

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        LOGGER.info("%s: %d %s", request.url.path, error.status, error)
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse({"error": one_line(str(error))}, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": one_line(f"{first['loc'][-1]}: {first['msg']}")}, 422)

    @app.exception_handler(HTTPException)
    async def no_such(request: Request, error: HTTPException) -> JSONResponse:
        known = "available: POST /localize, GET /healthz, /docs and /openapi.json"
        what = f"{request.method} {request.url.path}: {error.detail}; {known}"
        return JSONResponse({"error": one_line(what)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"unexpected {type(error).__name__}; the server's log has more"}, 500)

    @app.get("/healthz")
    async def healthz() -> Health:
        images, points = localizer.map_images, localizer.map_points
        return Health(status="ok", version=__version__, map_images=images, map_points=points, busy=queue.busy)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_docs_page(app.openapi()))

    @app.post("/localize", responses=REFUSALS, openapi_extra=BODY)
    async def localize(
        request: Request,
        intrinsics: Annotated[
            str | None,
            Query(
                max_length=LONGEST_CAMERA, description="COLMAP's `MODEL width height params...`, for the file's size"
            ),
        ] = None,
        name: Annotated[
            str | None,
            Query(
                max_length=LONGEST_NAME, description="its name in the answer; default: the form's file name, or image"
            ),
        ] = None,
    ) -> Answer:
        """Find the pose of a photograph: the body, or the file of a form (`curl -F image=@photo.jpg`)."""
        return Answer(**query_summary(await queue.localize(request, intrinsics, name)))

    return app


class LocalizationQueue:
    """Receives photographs and passes them to a limited number of threads."""

    def __init__(self, localizer: WarmMap, config: ServeConfig):
        self.localizer, self.config = localizer, config
        self.busy = 0
        self._threads = ThreadPoolExecutor(config.threads, thread_name_prefix="localize")
        cores = max(1, usable_cores() // config.threads)
        extract = localizer.extract
        self._extractors = None if extract is None else Endable(extract, config.threads, cores)

    async def localize(self, request: Request, intrinsics: str | None, name: str | None) -> QueryResult:
        """The result of one photograph. Raises RefusedError; if the queue is full, before reading any of the body."""
        if self.busy >= self.config.threads + self.config.max_waiting:
            raise RefusedError(503, f"{self.busy} photographs are already waiting; try again later")
        self.busy += 1
        upload = tempfile.NamedTemporaryFile(prefix="featkit-serve-")  # noqa: SIM115 closed once a thread is done with it
        try:
            await self._receive(request, upload)
            until = time.monotonic() + self.config.timeout_s
            form = request.headers.get("content-type", "")
            work = self._threads.submit(self._localize_upload, upload, form, intrinsics, name, until)
        except BaseException:
            self._release(upload)
            raise
        loop = asyncio.get_running_loop()
        work.add_done_callback(lambda done: _call_in_loop(loop, self._release, upload))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), self.config.timeout_s)
        except (asyncio.TimeoutError, TimeoutError):  # a waiting job is cancelled, a running process is killed
            raise RefusedError(504, f"not localized within {self.config.timeout_s:g} s") from None
        except BadInputError as error:
            raise RefusedError(400, str(error)) from None
        except RefusedError:
            raise
        except WorkerDiedError as error:
            raise RefusedError(500, str(error)) from None
        except Exception as error:
            LOGGER.exception("localize: unexpected")
            raise RefusedError(500, f"unexpected {type(error).__name__}; the server's log has more") from None

    def _release(self, upload: IO[bytes]) -> None:
        self.busy -= 1
        upload.close()  # which removes the file

    async def _receive(self, request: Request, upload: IO[bytes]) -> None:
        """Write the body to a file. Raises RefusedError if it is empty, too large or too slow."""
        try:
            total = await asyncio.wait_for(self._read(request, upload), self.config.upload_s)
        except asyncio.TimeoutError:  # not the builtin before Python 3.11
            raise RefusedError(408, f"the photograph did not arrive within {self.config.upload_s:g} s") from None
        except ClientDisconnect:
            raise RefusedError(CLIENT_GONE, "the client disconnected") from None
        if not total:
            raise RefusedError(400, "an empty body; POST the bytes of a photograph")
        upload.flush()

    async def _read(self, request: Request, upload: IO[bytes]) -> int:
        """Read the body, at most the size limit, regardless of what the client declares. Returns its size, bytes."""
        limit = self.config.max_mb * MB
        announced = request.headers.get("content-length", "")
        total = int(announced) if announced.isdigit() else 0
        if total <= limit:
            total = 0
            async for part in request.stream():
                total += len(part)
                if total > limit:
                    break
                upload.write(part)
        if total > limit:
            raise RefusedError(413, f"more than {self.config.max_mb:g} MB; scale the photograph down")
        return total

    def _localize_upload(
        self, upload: IO[bytes], form: str, intrinsics: str | None, name: str | None, until: float
    ) -> QueryResult:
        """Check and localize a photograph. Runs in a thread."""
        path = Path(upload.name)
        if form.partition(";")[0].strip().lower() == FORM:
            fields = _unpack_form(path, form)
            intrinsics, name = fields.get("intrinsics", intrinsics), name or fields.get("name")
        camera = _parse_camera(intrinsics)
        try:
            size = stored_size(path)
            if size[0] * size[1] > self.config.max_megapixels * 1e6:
                limit = f"{self.config.max_megapixels:g} megapixels"
                raise RefusedError(413, f"{size[0]} x {size[1]} pixels, more than {limit}; scale it down")
            if camera is not None and size != (camera.width, camera.height):
                given = f"{camera.width} x {camera.height}"
                raise RefusedError(422, f"intrinsics for {given}, but the photograph is {size[0]} x {size[1]}")
            features = None if self._extractors is None else self._extractors.call(path, until)
            return self.localizer.localize(path, camera, name=name or "image", features=features)
        except BadInputError as error:  # its message names a temporary file unknown to the client
            raise BadInputError(str(error).replace(str(path), "the photograph")) from None

    def close(self) -> None:
        """Stop accepting photographs; processes are terminated, threads finish by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._extractors is not None:
            self._extractors.close()


def _unpack_form(path: Path, content_type: str) -> dict[str, str]:
    """Replace a form sent by a browser or `curl -F` by the file it contains, and return its fields, including `name`.

    RFC 7578: parts between boundary lines, each with headers (read by Python's email package) followed by an empty
    line. Raises RefusedError.
    """
    boundary = BOUNDARY.search(content_type)
    if boundary is None:
        raise RefusedError(400, "a form without a boundary; POST the bytes of a photograph")
    data, photograph = path.read_bytes(), None
    fields: dict[str, str] = {}
    between = b"\r\n--" + boundary[1].encode()
    parts = (b"\r\n" + data).split(between, MOST_PARTS + 1)[1:]
    if len(parts) > MOST_PARTS:
        raise RefusedError(400, f"a form of more than {MOST_PARTS} parts; curl -F image=@photo.jpg")
    for part in parts:
        head, empty, content = part.partition(b"\r\n\r\n")
        if empty and len(head) > LONGEST_HEAD:
            raise RefusedError(400, f"a part of the form has a head of more than {LONGEST_HEAD} bytes")
        if not empty:  # the line at the end
            continue
        headers = HeaderParser().parsestr(head.decode("utf-8", "replace").lstrip())
        field, filename = str(headers.get_param("name", "", DISPOSITION)), headers.get_filename()
        if filename is not None:
            if photograph is None:
                photograph = content
                fields.setdefault("name", filename or "image")
        elif field == "intrinsics" and len(content) > LONGEST_CAMERA:
            raise RefusedError(422, f"intrinsics of more than {LONGEST_CAMERA} characters")
        elif len(content) <= LONGEST_CAMERA:
            fields[field] = content.decode("utf-8", "replace")
    if photograph is None:
        raise RefusedError(400, "a form without a file in it; curl -F image=@photo.jpg")
    if not photograph:
        raise RefusedError(400, "an empty file; send a photograph")
    path.write_bytes(photograph)
    return {key: value[:LONGEST_NAME] if key == "name" else value for key, value in fields.items()}


def _docs_page(described: dict[str, Any]) -> str:
    """The contents of /openapi.json as one self-contained page."""
    rows = []
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            rows.append(
                f"<h2>{method.upper()} {html.escape(path)}</h2><p>{html.escape(operation.get('description', ''))}</p>"
            )
            named = [(p["name"], p.get("description", "")) for p in operation.get("parameters", [])]
            named += [(status, each.get("description", "")) for status, each in operation["responses"].items()]
            cells = "".join(
                f"<tr><td><code>{html.escape(a)}</code></td><td>{html.escape(b)}</td></tr>" for a, b in named
            )
            rows.append(f"<table>{cells}</table>")
    answer = described["components"]["schemas"]["Answer"]["properties"]
    cells = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(each.get('description', ''))}</td></tr>"
        for name, each in answer.items()
    )
    return (
        "<!doctype html><meta charset='utf-8'><title>featkit serve</title>"
        "<style>body{font:16px sans-serif;max-width:50em;margin:2em auto}td{padding:.2em 1em .2em 0}</style>"
        f"<h1>featkit serve {html.escape(described['info']['version'])}</h1>"
        "<pre>curl --data-binary @photo.jpg ADDRESS/localize\ncurl -F image=@photo.jpg ADDRESS/localize</pre>"
        "<form action='localize' method='post' enctype='multipart/form-data'>"
        "<input type='file' name='image'> <button>Localize</button></form>"
        f"{''.join(rows)}<h2>The answer</h2><table>{cells}</table><p><a href='openapi.json'>openapi.json</a></p>"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Connections: invalid and incomplete requests.


def uvicorn_config(app: FastAPI, config: ServeConfig) -> uvicorn.Config:
    """uvicorn's configuration for the application."""
    return uvicorn.Config(
        app, http=http_protocol(config), ws="none", log_level="warning", timeout_keep_alive=KEEP_ALIVE_S
    )


def http_protocol(config: ServeConfig) -> type[H11Protocol]:
    """uvicorn's connection with a connection limit, a request timeout, and errors as json."""

    class GuardedProtocol(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > config.max_connections:
                self._refuse(503, f"{config.max_connections} connections are already open; try again later")
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self._is_answering():
                self._unwatch()
            elif self._late is None:
                self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self._is_answering():  # the rest of a refused body is discarded, for a limited time
                self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "not an HTTP/1.1 request")

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _watch(self) -> None:
            self._unwatch()
            self._late = self.loop.call_later(config.header_s, self._too_late)

        def _unwatch(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _too_late(self) -> None:
            if self.cycle is None:
                self._refuse(408, f"no request within {config.header_s:g} s")
            else:
                self.transport.close()

        def _refuse(self, status: int, message: str) -> None:
            """Send this response and close the connection, discarding any other response."""
            self._unwatch()
            if self.transport.is_closing():
                return
            body = json.dumps({"error": message}).encode()
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
            self.transport.close()

    return GuardedProtocol


def _parse_camera(text: str | None) -> Intrinsics | None:
    if text is None:
        return None
    try:
        return parse_intrinsics(text, "intrinsics")
    except BadInputError as error:
        raise RefusedError(422, str(error)) from None


def _call_in_loop(loop: asyncio.AbstractEventLoop, call: Any, *arguments: Any) -> None:
    """Call in the event loop's thread, if the loop is still running."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, *arguments)
