"""A local web server with faults, for tests of downloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Faults:
    """Faults of the server.

    cut_after: bytes of the body after which the connection breaks, per request in turn; None: whole.
    """

    files: dict[str, bytes]
    cut_after: list[int | None] = field(default_factory=list)
    ranges: bool = True
    wrong_range: bool = False
    stated_extra: int = 0
    no_length: bool = False
    etags: list[str] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    redirect_to: str | None = None
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of every request."""


def _handler(faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            faults.requests.append((self.path, wanted))
            if faults.redirect_to is not None and self.path != "/target":
                self.send_response(302)
                self.send_header("Location", faults.redirect_to)
                self.end_headers()
                return
            status = faults.status.pop(0) if faults.status else 200
            body = faults.files.get(self.path.lstrip("/"))
            if body is None:
                status = 404
            if status != 200:
                self.send_error(status)
                return
            assert body is not None
            self._send(body, wanted)

        def _send(self, body: bytes, wanted: str | None) -> None:
            start = 0
            etag = faults.etags.pop(0) if len(faults.etags) > 1 else (faults.etags or [""])[0]
            same = self.headers.get("If-Range") in (None, etag)
            if wanted and faults.ranges and same:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.end_headers()
                    return
                if faults.wrong_range:
                    start = max(0, start - 7)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if etag:
                self.send_header("ETag", etag)
            if not faults.no_length:
                self.send_header("Content-Length", str(len(body) - start + faults.stated_extra))
            self.end_headers()
            cut = faults.cut_after.pop(0) if faults.cut_after else None
            self.wfile.write(body[start:] if cut is None else body[start : start + cut])

    return Handler


@contextmanager
def serving(faults: Faults) -> Iterator[str]:
    """Run the server inside the block; yields its address without a trailing slash."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(faults))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


Serve = Callable[[Faults], str]
