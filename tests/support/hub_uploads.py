"""The Hub of `hub.py`, which also takes uploads: the routes that a commit needs."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.hub import Handler, Hub

TOKEN = "hf_of_the_owner"


class Uploads(Hub):
    """A Hub with one repository, to which `TOKEN` may write.

    Args:
        repo: Its id.
        folder: What is in it.
        fail: The status with which every upload is refused; 0 takes them.

    Attributes:
        commits_made: Of each commit: its title, the files, whether it is a pull request.
    """

    def __init__(self, repo: str, folder: Path, fail: int = 0):
        super().__init__({repo: folder})
        self.RequestHandlerClass = Writer
        self.fail = fail
        self.commits_made: list[dict[str, Any]] = []


class Writer(Handler):
    """One request; what only reads is answered as by `Handler`."""

    server: Uploads

    def do_POST(self):
        url = urlsplit(self.path)
        verb = url.path.strip("/").split("/")
        size = self.headers["Content-Length"]
        body = self.rfile.read(int(size)) if size else self.chunks()
        self.commit = "0" * 40
        if url.path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        self.server.asked.append(url.path)
        if self.server.fail:
            return self.refuse(self.server.fail, "", "refused")
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.refuse(401, "", "Invalid username or password.")
        if "/".join(verb[2:4]) not in self.server.repositories["models"]:
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if verb[4] == "preupload":
            listed = json.loads(body)["files"]
            kept = {"uploadMode": "regular", "shouldIgnore": False}
            return self.send_json({"files": [{"path": f["path"], **kept} for f in listed]})
        self.take([json.loads(line) for line in body.splitlines()], parse_qs(url.query))

    def chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def take(self, lines: list[Mapping[str, Any]], query: Mapping[str, list[str]]):
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]).decode()
            for line in lines
            if line["key"] == "file"
        }
        header = next(line["value"] for line in lines if line["key"] == "header")
        asked = "create_pr" in query
        self.server.commits_made.append(
            {"title": header["summary"], "files": files, "pull_request": asked}
        )
        repo = next(iter(self.server.repositories["models"]))
        at = f"{self.server.endpoint}/{repo}"
        told = {"success": True, "commitOid": "1" * 40, "commitUrl": f"{at}/commit/{'1' * 40}"}
        self.send_json({**told, **({"pullRequestUrl": f"{at}/discussions/1"} if asked else {})})
