"""The page's server over real sockets: what it hands out, what it refuses; and the same page as a folder."""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_view import MadeView, make_view

from featkit.core.errors import BadInputError, UsageError
from featkit.core.listening import listening
from featkit.viewer.scene import ViewedScene
from featkit.viewer.server import PAGE, PAGE_FILES, ViewServer, page_file, write_folder

SECRET = b"nobody may read this"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeView:
    """Never written to. A file that must not be served lies beside its photographs."""
    found = make_view(tmp_path_factory.mktemp("view") / "scene")
    (found.scene / "secret.txt").write_bytes(SECRET)
    (found.scene / "images" / "secret.txt").write_bytes(SECRET)
    return found


@pytest.fixture(scope="module")
def scene(made: MadeView) -> ViewedScene:
    return ViewedScene(made.model)


@pytest.fixture(scope="module")
def port(scene: ViewedScene) -> Iterator[int]:
    with listening("127.0.0.1", 0) as bound:
        server = ViewServer(bound, scene)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield bound.getsockname()[1]
        server.shutdown()
        thread.join(10)
        assert not thread.is_alive()


def ask(
    port: int, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Exactly this path, which urllib would tidy up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def test_the_page_and_what_it_asks_for(port: int, scene: ViewedScene) -> None:
    assert ask(port, "/")[:2] == ask(port, f"/{PAGE}")[:2] == (200, page_file(PAGE))
    for name, kind in PAGE_FILES.items():
        status, data, headers = ask(port, f"/{name}")
        assert (status, data, headers["content-type"]) == (200, page_file(name), kind)
    for path in scene.paths():
        answer = scene.answer(path)
        assert answer is not None
        status, data, headers = ask(port, f"/{path}")
        assert (status, data, headers["content-type"]) == (200, answer.data, answer.kind)
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
    assert ask(port, "/scene.json?again")[0] == 200
    assert ask(port, "/favicon.ico")[0] == 204


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for name in ("index.html", "view.css", "view.js", "map.js"):
        text = page_file(name).decode()
        assert not re.search(r"https?://|//[a-z]+\.|@import|import\(", text), name
    scripts = re.findall(r'(?:src|href)="([^"]+)"', page_file(PAGE).decode())
    assert {one for one in scripts if not one.startswith("data:")} == PAGE_FILES.keys() - {PAGE}


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../secret.txt",
            "/photo/../secret.txt",
            "/photo/..%2fsecret.txt",
            "/%2e%2e/secret.txt",
            "/images/secret.txt",
        ),
        *("//etc/passwd", "/photo//etc/passwd", "/photo/secret.txt", "/photo/0.jpg/../../../secret.txt"),
        *("/..\\secret.txt", "/photo/%30.jpg", "/scene.py", "/__init__.py", "/three.min.js/../scene.py"),
    ],
)
def test_no_path_leads_to_a_file(port: int, path: str) -> None:
    status, data, _ = ask(port, path)
    assert status == 404
    assert SECRET not in data
    assert json.loads(data) == {"error": "there is nothing at this address"}


def test_only_this_machine_by_its_own_name(port: int) -> None:
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST"):
        assert ask(port, "/scene.json", host=host)[0] == 200
    for host in ("example.org", f"example.org:{port}", "127.0.0.1.example.org", ""):
        status, data, _ = ask(port, "/scene.json", host=host)
        assert (status, json.loads(data)["error"]) == (403, "this page is for this machine only")


def test_nothing_but_get(port: int) -> None:
    for method in ("POST", "PUT", "DELETE", "HEAD"):
        status, data, headers = ask(port, "/scene.json", method)
        assert (status, headers["Connection"]) == (501, "close")
        assert method == "HEAD" or json.loads(data)["error"].startswith("Unsupported method")
    for request in (b"\x16\x03\x01 nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(request)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert b"<" not in answer, "the page of another program"
        assert b'{"error": "' in answer


def test_a_broken_photograph_is_an_error_of_one_line(made: MadeView, tmp_path: Path) -> None:
    other = make_view(tmp_path / "scene", points=10, frames=2)
    (other.scene / "images" / other.names()[1]).write_bytes(b"\xff\xd8 no photograph")
    with listening("127.0.0.1", 0) as bound:
        server = ViewServer(bound, ViewedScene(other.model))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        number = bound.getsockname()[1]
        status, data, _ = ask(number, "/photo/1.jpg")
        assert status == 422
        assert "not an image that can be read" in json.loads(data)["error"]
        assert ask(number, "/image/1.json")[0] == ask(number, "/photo/0.jpg")[0] == 200
        server.shutdown()
    assert write_folder(ViewedScene(other.model), tmp_path / "page").is_file()  # which goes on without it


def test_a_client_that_goes_away(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /photo/0.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert ask(port, "/scene.json")[0] == 200


def test_a_port_in_use(port: int) -> None:
    with pytest.raises(UsageError, match=rf"--port {port}: Address already in use; choose another"):
        listening("127.0.0.1", port)
    with pytest.raises(UsageError, match="not the name of a host"):
        listening("a" * 300, 0)


def test_the_page_as_a_folder(scene: ViewedScene, tmp_path: Path) -> None:
    page = write_folder(scene, tmp_path / "page")
    assert page == tmp_path / "page" / PAGE
    assert "<html data-folder " in page.read_text()
    for path in scene.paths():
        answer = scene.answer(path)
        assert answer is not None
        if path.startswith("photo/"):
            assert (page.parent / path).read_bytes() == answer.data
            continue
        script = (page.parent / f"{path}.js").read_text()
        called = re.fullmatch(r'featkitGiven\("(.*)","(.*)"\);\n', script)
        assert called is not None
        assert (called[1], base64.b64decode(called[2])) == (path, answer.data)
    with pytest.raises(BadInputError, match="exists already; --overwrite replaces it"):
        write_folder(scene, tmp_path / "page")
    write_folder(scene, tmp_path / "page", overwrite=True)
    (page.parent / "view.js").write_text("somebody's own")
    with pytest.raises(BadInputError, match=r"view\.js"):
        write_folder(scene, tmp_path / "page", overwrite=True)
    assert (page.parent / "view.js").read_text() == "somebody's own"
