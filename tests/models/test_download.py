"""A download from the hub: what and how large is said before, and the progress is shown. The hub is a local server."""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from shears.errors import InputError
from shears.models import fetching
from shears.models.ref import resolve
from shears.progress import Meter

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": bytes(2_500_000), "pytorch_model.bin": bytes(9_000_000)}


class Hub(BaseHTTPRequestHandler):
    """Answers for one repository, as the hub does."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        if not path.startswith(("/api/models/org/tiny", "/org/tiny/")):
            self.send_error(404)
            return
        name = path.rsplit("/", 1)[-1]
        if "/tree/" in path:
            listing = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in FILES.items()
            ]
            body = json.dumps(listing).encode()
        elif path.startswith("/api/"):
            body = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": f} for f in FILES]}).encode()
        else:
            body = FILES[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", hashlib.sha1(body).hexdigest())
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.chdir(tmp_path)
    yield
    server.shutdown()
    server.server_close()


def test_a_download_says_what_and_how_large_and_shows_progress(
    hub: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    moved: list[int] = []
    monkeypatch.setattr(Meter, "advance", lambda self, count=1, **_: moved.append(count))
    with caplog.at_level(logging.INFO, "shears"):
        folder = resolve("org/tiny").folder
    assert caplog.messages == ["downloading org/tiny from the hub into its cache: 2 files, 2.5 MB"]
    assert sum(moved) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    caplog.clear()
    with caplog.at_level(logging.INFO, "shears"):
        assert resolve("org/tiny").folder == folder
    assert caplog.messages == []


def test_a_repository_that_is_not_there_is_one_line(hub: None) -> None:
    with pytest.raises(InputError, match="got 'org/none': "):
        resolve("org/none")


def test_offline_the_cache_is_taken(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve("org/tiny").folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetching.download("org/tiny") == folder
