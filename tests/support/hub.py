"""A Hub in this process, and a process of its own to ask it.

The server answers the few routes that the real client libraries need to read repositories, with
the real status codes and headers; what it serves are folders on disk. The client is a Python
process of its own, with an empty cache, that takes the server for the Hub.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support import quick_python

ROOT = Path(__file__).parent.parent.parent
#: The only commit of a repository, unless the server is told otherwise.
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves folders as repositories, as a context manager.

    Args:
        models: Repository id -> folder, whose files may lie in nested folders.
        datasets: The same for datasets.
        gated: Ids of repositories whose files nobody may read; what they are about, all may.
        down: Ids of repositories that are out of order.
        commits: Repository id -> its only commit, where that is not `COMMIT`.

    Attributes:
        endpoint: What to set HF_ENDPOINT to.
        asked: The path of every request so far.
    """

    daemon_threads = True

    def __init__(
        self,
        models: Mapping[str, Path],
        datasets: Mapping[str, Path] | None = None,
        gated: Collection[str] = (),
        down: Collection[str] = (),
        commits: Mapping[str, str] | None = None,
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {"models": models, "datasets": datasets or {}}
        self.gated, self.down, self.commits = gated, down, commits or {}
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []

    def __enter__(self) -> Hub:
        Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request: ``[api/]{models,datasets}/{owner}/{name}/{verb}/{revision}/{path}``.

    Files of models are asked for without ``models/``.
    """

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

    def answer(self, form: Mapping[str, list[str]] | None = None):
        url = urlsplit(self.path)
        self.server.asked.append(url.path)
        # A revision may have a slash of its own, which comes quoted.
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        api = parts[0] == "api"
        parts = parts[api:]
        kind = parts.pop(0) if parts[0] in self.server.repositories else "models"
        repo, path = "/".join(parts[:2]), "/".join(parts[4:])
        verb = parts[2] if len(parts) > 2 else "revision"
        revision = parts[3] if len(parts) > 3 else "main"
        self.commit = self.server.commits.get(repo, COMMIT)
        if repo in self.server.gated and (not api or verb == "auth-check"):
            return self.refuse(401, "GatedRepo", f"Access to {kind[:-1]} {repo} is restricted.")
        if repo in self.server.down:
            return self.refuse(418, "", "out of order")
        if repo not in self.server.repositories[kind]:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        if revision not in ("main", self.commit):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        folder = self.server.repositories[kind][repo]
        if api:
            query = {**parse_qs(url.query), **(form or {})}
            self.describe(verb, repo, folder, path, query)
        elif (folder / path).is_file():
            self.send((folder / path).read_bytes())
        else:
            self.refuse(404, "EntryNotFound", "Entry not found")

    def describe(self, verb: str, repo: str, folder: Path, path: str, query: dict[str, list[str]]):
        """What a repository is and has, without its files."""
        if verb == "auth-check":
            return self.send(b"")
        if verb == "paths-info":
            found = [folder / name for name in query["paths"]]
            return self.send_json([entry(folder, item) for item in found if item.exists()])
        if verb == "tree":
            if not (folder / path).is_dir():
                return self.refuse(404, "EntryNotFound", "Entry not found")
            deep = query.get("recursive", [""])[0].lower() == "true"
            found = sorted((folder / path).rglob("*") if deep else (folder / path).iterdir())
            return self.send_json([entry(folder, item) for item in found])
        files = [entry(folder, item) for item in sorted(folder.rglob("*")) if item.is_file()]
        siblings = [{"rfilename": file["path"], "size": file["size"]} for file in files]
        self.send_json({"id": repo, "sha": self.commit, "siblings": siblings, "tags": []})

    def refuse(self, status: int, code: str, message: str):
        self.send(b"", status, {"X-Error-Code": code, "X-Error-Message": message})

    def send_json(self, content: Any):
        self.send(json.dumps(content).encode())

    def send(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None):
        self.send_response(status)
        etag = hashlib.sha1(body).hexdigest()
        known = {"X-Repo-Commit": self.commit, "ETag": f'"{etag}"'}
        for name, value in {**known, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def entry(folder: Path, item: Path) -> dict[str, Any]:
    """A file or folder as the Hub lists it."""
    path = item.relative_to(folder).as_posix()
    listed = {"path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}
    if item.is_dir():
        return {**listed, "type": "directory"}
    return {**listed, "type": "file", "size": item.stat().st_size}


def client(
    home: Path, endpoint: str, *command: str, timeout: float = 120, **env: str
) -> subprocess.CompletedProcess:
    """Run a Python program that takes ``endpoint`` for the Hub and ``home`` for its cache.

    Args:
        home: The folder of the cache; it may not exist yet.
        endpoint: Where the Hub is.
        *command: What follows ``python``.
        timeout: Seconds.
        **env: Further environment variables.
    """
    dropped = ("HF_", "HUGGING", "TRANSFORMERS_", "TRIMIX_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    path = os.pathsep.join(filter(None, [str(ROOT), env.pop("PYTHONPATH", "")]))
    clean |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "*", "PYTHONPATH": path}
    return subprocess.run(
        [quick_python.python("libraries"), *command],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
