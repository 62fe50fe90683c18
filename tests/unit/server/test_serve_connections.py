"""The server on a socket: clients that are slow, silent, many or no browsers, and work that cannot be interrupted."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from slow_work import HOLD_S, by_width  # noqa: E402
from test_serve_app import StandIn, photograph  # noqa: E402

from featkit.server import ServeConfig, create_app, uvicorn_config  # noqa: E402


class Working(StandIn):
    """Its features are found in another process. found: how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.extract: Any = by_width
        self.found: list[int] = []

    def localize(self, image: Path, intrinsics: Any = None, *, name: str | None = None, features: Any = None) -> Any:
        self.found.append(len(features))
        return super().localize(image, intrinsics, name=name)


@contextmanager
def serving(localizer: StandIn, **limits: Any) -> Iterator[int]:
    """The port of a server in a thread."""
    config = ServeConfig(**limits)
    server = uvicorn.Server(uvicorn_config(create_app(localizer, config), config))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        yield bound.getsockname()[1]
        server.should_exit = server.force_exit = True
        thread.join(20)


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=HOLD_S) as client:
        yield client


def answer_of(client: socket.socket) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, json and headers of what comes until the server closes, or its length is reached."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(65536)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += client.recv(65536)
    return int(first.split()[1]), json.loads(body), headers


def request(port: int, path: str = "/localize", body: bytes = b"", method: str = "POST", **headers: str) -> Any:
    with connected(port) as client:
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        head += "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in headers.items())
        client.sendall(head.encode() + b"\r\n" + body)
        return answer_of(client)


def is_refusal(answer: Any, status: int, words: str) -> None:
    assert answer[0] == status, answer
    assert list(answer[1]) == ["error"]
    assert words in answer[1]["error"], answer
    assert "\n" not in answer[1]["error"]
    assert answer[2]["content-type"] == "application/json"


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    found: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        found[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HOLD_S)
    return found


@pytest.mark.slow
def test_native_work_is_ended_in_time() -> None:
    """Both processes hold their locks for two minutes: the answer comes after 3 s, and others meanwhile."""
    warm = Working()
    with serving(warm, threads=2, timeout_s=3) as port:
        until_answered(port)
        health: list[float] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                began = time.monotonic()
                assert request(port, "/healthz", method="GET")[0] == 200
                health.append(time.monotonic() - began)
                time.sleep(0.05)

        asking = threading.Thread(target=ask)
        asking.start()
        began = time.monotonic()
        answers = in_threads([partial(request, port, body=photograph((41, 30)))] * 2)
        took = time.monotonic() - began
        over.set()
        asking.join(HOLD_S)
        for answer in answers:
            is_refusal(answer, 504, "within 3 s")
        assert took < HOLD_S / 4
        assert max(health) < HOLD_S / 8
        until_answered(port)
        assert request(port, "/healthz", method="GET")[1]["busy"] == 0
    assert set(warm.found) == {40}


def until_answered(port: int) -> None:
    """New processes take a while to start."""
    began = time.monotonic()
    while (answer := request(port, body=photograph()))[0] == 504:
        assert time.monotonic() - began < 2 * HOLD_S
    assert answer[0] == 200


def test_a_process_that_dies_or_fails_does_not_stop_the_next(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Working(), threads=1, timeout_s=HOLD_S) as port:
        is_refusal(request(port, body=photograph((42, 30))), 500, "the process died")
        is_refusal(request(port, body=photograph((43, 30))), 400, "the photograph: features that are not finite")
        is_refusal(request(port, body=photograph((44, 30))), 500, "unexpected RuntimeError")
        assert request(port, body=photograph())[0] == 200
    assert "a secret of the machine" in caplog.text


def test_the_queue_is_asked_before_a_body_is_read() -> None:
    """The fourth client is sent away by its headers; the three before it have sent nothing yet either."""
    announced = b"POST /localize HTTP/1.1\r\nhost: x\r\ncontent-length: 30000000\r\n\r\n"
    with serving(StandIn(), threads=1, max_waiting=2, upload_s=20) as port:
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        for client in waiting:
            client.sendall(announced)
        while request(port, "/healthz", method="GET")[1]["busy"] < 3:
            time.sleep(0.02)
        with connected(port) as client:
            client.sendall(announced)
            began = time.monotonic()
            is_refusal(answer := answer_of(client), 503, "3 photographs are already waiting")
            assert answer[2]["retry-after"] == "1"
            assert time.monotonic() - began < 5
            client.sendall(bytes(30_000_000))  # what comes all the same is passed over, and the connection goes on
            client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answer_of(client)[1]["busy"] == 3
        for client in waiting:
            client.close()
        while request(port, "/healthz", method="GET")[1]["busy"]:
            time.sleep(0.02)
        assert request(port, body=photograph())[0] == 200


@pytest.mark.parametrize("sent", [b"", b"G", b"POST /localize HTTP/1.1\r\nhost: x\r\nx-long: "])
def test_connections_that_never_ask(sent: bytes) -> None:
    with serving(StandIn(), header_s=0.5) as port, connected(port) as client:
        client.sendall(sent)
        began = time.monotonic()
        for _ in range(3):  # one more byte now and then does not help
            time.sleep(0.1)
            if sent:
                client.sendall(b"a")
        is_refusal(answer_of(client), 408, "no request within 0.5 s")
        assert client.recv(10) == b""
        assert time.monotonic() - began < 5
        assert request(port, "/healthz", method="GET")[0] == 200


def test_the_second_request_of_a_connection_too() -> None:
    with serving(StandIn(), header_s=0.5) as port, connected(port) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert answer_of(client)[0] == 200
        client.sendall(b"GET /heal")
        client.settimeout(5)
        assert client.recv(10) == b""


def test_a_slow_answer_is_not_a_silent_connection() -> None:
    with serving(StandIn(lambda name: time.sleep(1.0)), header_s=0.3) as port:
        assert request(port, body=photograph())[0] == 200


def test_a_limit_of_connections() -> None:
    with serving(StandIn(), max_connections=3, header_s=20) as port:
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        time.sleep(0.3)
        with connected(port) as client:
            is_refusal(answer_of(client), 503, "3 connections are already open")
        held.pop().close()
        time.sleep(0.3)
        assert request(port, "/healthz", method="GET")[0] == 200
        for client in held:
            client.close()


def test_errors_of_the_protocol_and_of_addresses() -> None:
    with serving(StandIn()) as port:
        is_refusal(request(port, "/nothing", method="GET"), 404, "available: POST /localize")
        is_refusal(answer := request(port, "/localize", method="GET"), 405, "GET /localize: Method Not Allowed")
        assert answer[2]["allow"] == "POST"
        for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
            with connected(port) as client:
                client.sendall(nonsense)
                is_refusal(answer_of(client), 400, "not an HTTP/1.1 request")
        with connected(port) as client:
            client.sendall(b"GET / HTTP/1.1\r\nx: " + b"x" * 200_000)
            is_refusal(answer_of(client), 400, "not an HTTP/1.1 request")


def form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    """As curl writes it."""
    boundary = "------------------------4f1e"
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def test_a_form_as_curl_sends_it() -> None:
    warm = StandIn()
    image = 'name="image"; filename="my photo.png"\r\nContent-Type: image/png'
    with serving(warm) as port:
        body, kind = form((image, photograph(suffix=".png")))
        assert request(port, body=body, content_type=kind)[1]["name"] == "my photo.png"
        camera = ('name="intrinsics"', b"PINHOLE 40 30 36 36 20 15")
        body, kind = form(camera, ('name="name"', b"mine"), (image, photograph()))
        answer = request(port, body=body, content_type=kind)[1]
        assert (answer["name"], answer["camera"]) == ("mine", ["PINHOLE", 40, 30, 36, 36, 20, 15])
        body, kind = form(camera)
        is_refusal(request(port, body=body, content_type=kind), 400, "curl -F image=@photo.jpg")
        is_refusal(request(port, body=body, content_type="multipart/form-data"), 400, "without a boundary")
        body, kind = form((image, b""))
        is_refusal(request(port, body=body, content_type=kind), 400, "an empty file")
        body, kind = form((image, photograph()[:200]))
        is_refusal(request(port, body=body, content_type=kind), 400, "the photograph")
    assert [size for _, size, _ in warm.seen] == [(40, 30), (40, 30)]


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("name=image; filename=a.jpg", "a.jpg"),
        ("name=\"image\"; filename*=utf-8''na%C3%AFve.jpg", "naïve.jpg"),
        ('name="image"; filename="ä \\"b\\".jpg"', 'ä "b".jpg'),
        ('filename="a;b.jpg"; NAME="image"', "a;b.jpg"),
    ],
)
def test_forms_as_other_clients_send_them(head: str, name: str) -> None:
    """RFC 7578 and 2183: values without quotes, names in percent encoding, escaped quotes, any order."""
    with serving(StandIn()) as port:
        body, kind = form(("name=intrinsics", b"PINHOLE 40 30 36 36 20 15"), (head, photograph()))
        answer = request(port, body=body, content_type=kind)[1]
        assert (answer["name"], answer["camera"]) == (name, ["PINHOLE", 40, 30, 36, 36, 20, 15])


def test_intrinsics_that_are_too_long_are_not_dropped() -> None:
    with serving(StandIn()) as port:
        body, kind = form(('name="intrinsics"', b"PINHOLE 40 30" + b" 1" * 300), ('filename="a.jpg"', photograph()))
        is_refusal(request(port, body=body, content_type=kind), 422, "intrinsics of more than 500 characters")


def test_docs_need_no_network() -> None:
    with serving(StandIn()) as port, connected(port) as client:
        client.sendall(b"GET /docs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        page = b"".join(iter(partial(client.recv, 65536), b"")).decode()
    assert page.startswith("HTTP/1.1 200")
    assert "POST /localize" in page
    assert "centre_std" in page
    assert "src=" not in page
    assert "://" not in page


def test_forms_of_millions_of_parts_and_endless_heads() -> None:
    """Refused before anything is looked for in them: a regular expression over 20 MB holds Python's lock."""
    head, kind = form()
    line = head[: head.index(b"\r\n") - 2]
    with serving(StandIn()) as port:
        for body, words in (
            (line + (b"\r\n" + line) * 500_000, "more than 16 parts"),
            (line + b"\r\n" + b"a" * 20_000_000, "without a file"),
            (line + b"\r\n" + b"a" * 20_000_000 + b"\r\n\r\nx\r\n" + head, "a head of more than 4096 bytes"),
        ):
            started = time.monotonic()
            is_refusal(request(port, body=body, content_type=kind), 400, words)
            assert time.monotonic() - started < 10
