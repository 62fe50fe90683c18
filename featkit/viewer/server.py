"""The page of `featkit view`, served by the standard library's HTTP server or written as a folder.

The server answers only GET requests for the paths of `ViewedScene` and the page's own files; the page loads nothing
else. On a loopback address, requests with another host name are refused, against DNS rebinding: a web page whose host
name resolves to this machine could otherwise read the answers.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import socket
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from featkit.core.errors import FeatkitError, one_line
from featkit.core.listening import LOOPBACK
from featkit.io.artifact import inside, part_of, place_files, scratch, write_bytes
from featkit.viewer.photographs import Response
from featkit.viewer.scene import ViewedScene

LOGGER = logging.getLogger(__name__)
IDLE_S = 60  # idle connections are closed after this time
PAGE = "index.html"
PAGE_FILES = {
    PAGE: "text/html; charset=utf-8",
    "view.css": "text/css; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
    "queries.js": "text/javascript; charset=utf-8",
    "map.js": "text/javascript; charset=utf-8",
    "three.min.js": "text/javascript; charset=utf-8",
}
"""Files of the page, next to this one."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # the next scene may be served at the same address
}
ICON = "favicon.ico"  # requested by browsers automatically


@functools.cache
def page_file(name: str) -> bytes:
    """One of the page's own files."""
    return files("featkit.viewer").joinpath(name).read_bytes()


class ViewServer(ThreadingHTTPServer):
    """Serves one scene on a bound socket until `shutdown`, or KeyboardInterrupt."""

    daemon_threads = True

    def __init__(self, bound: socket.socket, scene: ViewedScene):
        self.address_family = bound.family
        super().__init__(bound.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.scene = bound, scene
        self.server_activate()
        host = str(bound.getsockname()[0])
        self.hosts = {host, f"[{host}]", "localhost"} if host.startswith(LOOPBACK) else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log closed connections only for debugging: browsers may close them during a response."""
        LOGGER.debug("%s: the connection ended", client_address, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "featkit", ""
    timeout = IDLE_S

    def do_GET(self) -> None:  # the name is http.server's
        """Answer with a file of the page or of the scene, or with one line of json."""
        host = (self.headers.get("Host") or "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.server.hosts is not None and name not in self.server.hosts:
            return self._refuse(403, "this page is for this machine only")
        path = urlsplit(self.path).path.removeprefix("/") or PAGE
        if path == ICON:
            return self._send(204, Response("image/x-icon", b""))
        if path in PAGE_FILES:
            return self._send(200, Response(PAGE_FILES[path], page_file(path)))
        try:
            answer = self.server.scene.answer(path)
        except FeatkitError as error:
            return self._refuse(422, str(error))
        if answer is None:
            return self._refuse(404, "there is nothing at this address")
        return self._send(200, answer)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses on its own (other methods, what is no HTTP), in the form of all other errors."""
        self.close_connection = True  # what follows of the request is not read as another one
        self._refuse(int(code), message or HTTPStatus(code).phrase)

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, Response("application/json", json.dumps({"error": one_line(message)}).encode()))

    def _send(self, status: int, answer: Response) -> None:
        self.send_response(status)
        headers = {"Content-Type": answer.kind, "Content-Length": str(len(answer.data)), **HEADERS}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log requests only with -v."""
        LOGGER.debug(format, *args)


# ----------------------------------------------------------------------------------------------------------------------
# The same page as a folder, to be opened from disk. For such a page a browser only loads pictures and scripts, so all
# other data are written as scripts.


def write_folder(scene: ViewedScene, folder: Path, *, overwrite: bool = False) -> Path:
    """Write the page with all data it may request; returns the page. overwrite: replace an earlier export.

    Raises BadInputError, also for files in the folder that featkit did not write, and NotWritableError.
    """
    with scratch(part_of(folder)) as part:
        for name in PAGE_FILES:
            data = page_file(name)
            if name == PAGE:
                data = data.replace(b"<html ", b"<html data-folder ", 1)
            write_bytes(part / name, data)
        for path, data in _folder_files(scene):
            write_bytes(inside(part, path), data)
        place_files(part, folder, overwrite=overwrite, only=overwrite, kind="view")
    return folder / PAGE


def _folder_files(scene: ViewedScene) -> Iterator[tuple[str, bytes]]:
    for path in scene.paths():
        try:
            answer = scene.answer(path)
        except FeatkitError as error:  # a damaged photograph: the page shows it empty
            LOGGER.warning("%s", error)
            continue
        if answer is None:
            continue
        if path.startswith(("photo/", "query-photo/")):
            yield path, answer.data
        else:
            text = base64.b64encode(answer.data).decode("ascii")
            yield f"{path}.js", f'featkitGiven("{path}","{text}");\n'.encode("ascii")
