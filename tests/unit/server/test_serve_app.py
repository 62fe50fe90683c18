"""The server's manners, around a localizer that is slow or broken as a test wants it. The real one: tests/pipeline."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

httpx = pytest.importorskip("httpx")
testclient = pytest.importorskip("fastapi.testclient", reason="the extra `serve` is not installed")

from featkit.core.errors import BadInputError  # noqa: E402
from featkit.images.read import DecodeConfig, decode  # noqa: E402
from featkit.io.lists import Intrinsics  # noqa: E402
from featkit.localization.stage import QueryResult  # noqa: E402
from featkit.server import ServeConfig, create_app  # noqa: E402


class StandIn:
    """Decodes, then does what `then` says. seen: name, image size and camera of every call."""

    map_images, map_points, extract = 6, 700, None

    def __init__(self, then: Callable[[str], None] = lambda name: None):
        self.then = then
        self.seen: list[tuple[str, tuple[int, int], Intrinsics | None]] = []

    def localize(
        self, image: Path, intrinsics: Any = None, *, name: str | None = None, features: Any = None
    ) -> QueryResult:
        assert name is not None
        self.seen.append((name, decode(image, DecodeConfig()).stored_size, intrinsics))
        self.then(name)
        return QueryResult(name, "12 inliers are needed", 30, 20, 5, intrinsics, "guess")


def photograph(size: tuple[int, int] = (40, 30), suffix: str = ".jpg") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0]), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def client(localizer: StandIn | None = None, **limits: Any) -> Any:
    app = create_app(localizer or StandIn(), ServeConfig(**limits))
    return testclient.TestClient(app, raise_server_exceptions=False)


def refused(response: Any, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert words in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_an_answer_and_what_is_asked() -> None:
    warm = StandIn()
    with client(warm) as web:
        answer = web.post("/localize", content=photograph(), params={"name": "a b.jpg"})
        assert answer.status_code == 200
        assert answer.json()["reason"] == "12 inliers are needed"
        assert (answer.json()["localized"], answer.json()["qvec"], answer.json()["inliers"]) == (False, None, 0)
        camera = "PINHOLE 40 30 36 36 20 15"
        answer = web.post("/localize", content=photograph(suffix=".png"), params={"intrinsics": camera})
        assert answer.json()["camera"] == ["PINHOLE", 40, 30, 36, 36, 20, 15]
    assert [(name, size) for name, size, _ in warm.seen] == [("a b.jpg", (40, 30)), ("image", (40, 30))]
    assert warm.seen[1][2] == Intrinsics("PINHOLE", 40, 30, (36, 36, 20, 15))


def test_health_and_description() -> None:
    with client() as web:
        health = web.get("/healthz").json()
        assert (health["status"], health["map_images"], health["map_points"], health["busy"]) == ("ok", 6, 700, 0)
        described = web.get("/openapi.json").json()
    post = described["paths"]["/localize"]["post"]
    assert set(post["responses"]) == {"200", "400", "408", "413", "422", "500", "503", "504"}
    assert post["requestBody"]["content"]["image/jpeg"]["schema"] == {"type": "string", "format": "binary"}
    assert {"centre_std", "inliers", "qvec"} <= set(described["components"]["schemas"]["Answer"]["properties"])


@pytest.mark.parametrize(
    ("content", "params", "status", "words"),
    [
        (b"", {}, 400, "empty body"),
        (b"no image at all", {}, 400, "the photograph: not an image"),
        (b"\xff\xd8\xff\xe0", {}, 400, "the photograph: not an image"),
        (photograph((400, 300))[:4000], {}, 400, "cut off"),
        (photograph((400, 300), ".png")[:4000], {}, 400, "cut off"),
        (photograph((2100, 1000), ".png"), {}, 413, "2100 x 1000 pixels, more than 2 megapixels"),
        (b"\xff" * 3_000_001, {}, 413, "more than 3 MB"),
        (photograph(), {"intrinsics": "PINHOLE 40 30 36"}, 422, "PINHOLE takes width, height and 4"),
        (photograph(), {"intrinsics": "CUBE 40 30 36 36 20 15"}, 422, "no camera model 'CUBE'"),
        (photograph(), {"intrinsics": "PINHOLE 41 30 36 36 20 15"}, 422, "for 41 x 30, but the photograph is 40 x 30"),
        (photograph(), {"intrinsics": "PINHOLE 40 30 nan 36 20 15"}, 422, "not finite"),
        (photograph(), {"name": "x" * 300}, 422, "name"),
    ],
)
def test_bad_input_gets_a_reason_and_the_next_goes_on(
    content: bytes, params: dict[str, str], status: int, words: str
) -> None:
    with client(max_mb=3, max_megapixels=2) as web:
        refused(web.post("/localize", content=content, params=params), status, words)
        assert web.post("/localize", content=photograph()).status_code == 200
        assert web.get("/localize").status_code == 405


def test_a_body_without_a_length_is_capped_too() -> None:
    sent = 0

    def parts() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"\xff" * 100_000

    with client(max_mb=1) as web:
        refused(web.post("/localize", content=parts()), 413, "more than 1 MB")


def test_no_trace_of_the_servers_files() -> None:
    def fails(name: str) -> None:
        raise BadInputError("/tmp/featkit-serve-x/photograph: features that are not finite")

    with client(StandIn(fails)) as web:
        refused(web.post("/localize", content=photograph()), 400, "not finite")
        told = web.post("/localize", content=b"x").json()["error"]
    assert "/" not in told


def test_a_broken_request_does_not_stop_the_next(caplog: pytest.LogCaptureFixture) -> None:
    def breaks(name: str) -> None:
        if name == "bad":
            raise RuntimeError("secret of the machine")

    with client(StandIn(breaks), threads=1) as web:
        for _ in range(3):
            refused(web.post("/localize", content=photograph(), params={"name": "bad"}), 500, "RuntimeError")
            assert "secret" not in web.post("/localize", content=photograph(), params={"name": "bad"}).text
        assert web.post("/localize", content=photograph()).status_code == 200
        assert web.get("/healthz").json()["busy"] == 0
    assert "secret of the machine" in caplog.text


async def together(app: Any, *names: str) -> list[Any]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as web:
        return await asyncio.gather(
            *(web.post("/localize", content=photograph(), params={"name": name}) for name in names)
        )


def test_a_slow_request_does_not_stop_the_next() -> None:
    """One hangs until its time is over; another is answered meanwhile, and so is the one after."""
    release = threading.Event()
    answered: dict[str, float] = {}

    def hangs(name: str) -> None:
        if name == "slow":
            release.wait(20)
        answered[name] = time.monotonic()

    app = create_app(StandIn(hangs), ServeConfig(threads=2, timeout_s=1.0))
    started = time.monotonic()
    slow, quick = asyncio.run(together(app, "slow", "quick"))
    refused(slow, 504, "within 1 s")
    assert quick.status_code == 200
    assert answered["quick"] - started < 0.9
    (later,) = asyncio.run(together(app, "later"))
    assert later.status_code == 200
    release.set()


def test_two_at_once_and_too_many() -> None:
    """Two are worked on together, one waits, the fourth is sent away."""
    both = threading.Barrier(2, timeout=10)

    def meet(name: str) -> None:
        if name in {"a", "b"}:
            both.wait()

    app = create_app(StandIn(meet), ServeConfig(threads=2, max_waiting=1))
    answers = asyncio.run(together(app, "a", "b", "c", "d"))
    assert [answer.status_code for answer in answers[:3]] == [200, 200, 200]
    refused(answers[3], 503, "3 photographs are already waiting")
    assert answers[3].headers["retry-after"] == "1"


def test_one_that_arrives_slowly_is_let_go() -> None:
    async def drip() -> AsyncIterator[bytes]:
        yield photograph()[:10]
        await asyncio.sleep(5)
        yield photograph()[10:]

    async def ask(app: Any) -> Any:
        messages = drip()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": await anext(messages), "more_body": True}

        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/localize", "headers": [], "query_string": b"",
            "server": ("test", 80), "scheme": "http", "http_version": "1.1", "root_path": "", "client": ("test", 1),
        }  # fmt: skip
        started = time.monotonic()
        await app(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"]), time.monotonic() - started

    status, body, seconds = asyncio.run(ask(create_app(StandIn(), ServeConfig(upload_s=0.3))))
    assert (status, list(body)) == (408, ["error"])
    assert seconds < 2
