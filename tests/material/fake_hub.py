"""A hub of one repository on this machine, as huggingface_hub asks one: names, sizes, files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(model: str, folder: Path, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Serve so many files of a folder under `model`: the endpoint's address, and a list that fills with the
    files that are fetched."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            said: object = None
            if path in (f"/api/models/{model}", f"/api/models/{model}/revision/main"):
                said = {"id": model, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            elif path.startswith(f"/api/models/{model}/tree/"):
                said = [
                    {"type": "file", "path": name, "size": _size(name), "oid": _etag(name)} for name in names
                ]
            name = path.partition(f"/{model}/resolve/")[2].partition("/")[2]
            if said is None and name not in names:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
            elif said is not None:
                self._send(200, json.dumps(said).encode(), {"Content-Type": "application/json"}, body)
            else:
                if body:
                    fetched.append(name)
                headers = {"ETag": f'"{_etag(name)}"', "X-Repo-Commit": COMMIT}
                self._send(200, (folder / name).read_bytes(), headers, body)

        def _send(self, code: int, data: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(code)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    def _size(name: str) -> int:
        return (folder / name).stat().st_size

    def _etag(name: str) -> str:
        return hashlib.sha1((folder / name).read_bytes()).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
