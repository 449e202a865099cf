"""A stand-in for the Hugging Face hub: the part of its HTTP interface that `datasets` and `huggingface_hub` use.

It listens on 127.0.0.1 alone. A client is sent to it by the environment variable HF_ENDPOINT, which is read when the
client is imported, so tests run `octo` as a process of its own.
"""

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """A data set on the stand-in."""

    files: dict[str, bytes]
    gated: bool = False
    """Its files are given to nobody, as those of a gated data set whose terms are not accepted."""
    licence: str | None = None
    older: dict[str, bytes] | None = None
    """Files at the commit before."""

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision; None where there is none."""
        commits = {commit_of(self.files): self.files}
        if self.older is not None:
            commits[commit_of(self.older)] = self.older
        if revision in ("main", "HEAD"):
            return commit_of(self.files), self.files
        return (revision, commits[revision]) if revision in commits else None


def commit_of(files: dict[str, bytes]) -> str:
    """A commit's name: of its files alone."""
    return hashlib.sha1(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()


@dataclass
class Hub:
    """The stand-in's repositories, the faults that it makes, and the requests that it got."""

    repositories: dict[str, Repository]
    url: str = ""
    cuts: dict[str, int] = field(default_factory=dict)
    """File to the bytes after which the connection ends."""
    cut_times: dict[str, int] = field(default_factory=dict)
    """File to how often it is cut; left out: always."""
    quiet: bool = False
    """Cuts look like a proper end: no Content-Length that would tell."""
    requests: list[str] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """File to the bytes of it that were sent."""


@contextmanager
def hub_stand_in(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Serve until the body ends."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match parts:
            case ["api", "datasets", owner, name, *rest]:
                self._api(f"{owner}/{name}", rest, body)
            case ["datasets", owner, name, "resolve", revision, *path]:
                self._file(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self._error(404, "EntryNotFound", "no such page")

    def _api(self, name: str, rest: list[str], body: bytes) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:  # as the hub: without a token nobody is told what exists
            return self._error(401, "RepoNotFound", "Repository not found")
        revision = rest[1] if len(rest) > 1 else "main"
        found = repository.at(revision)
        if found is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit, files = found
        match rest:
            case [] | ["revision", _]:
                self._json({
                    "id": name, "sha": commit, "private": False, "gated": "auto" if repository.gated else False,
                    "disabled": False, "tags": [], "downloads": 0, "likes": 0,
                    "cardData": {"license": repository.licence} if repository.licence else {},
                    "siblings": [{"rfilename": path} for path in files],
                })  # fmt: skip
            case ["tree", _, *folder]:
                recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
                entries = _tree(files, "/".join(folder), recursive)
                if folder and not entries:
                    return self._error(404, "EntryNotFound", "no such folder")
                self._json(entries)
            case ["paths-info", _]:
                asked = parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
                entries = _tree(files, "", True)
                self._json([entry for entry in entries if entry["path"] in asked])
            case _:
                self._error(404, "EntryNotFound", "no such page")
        return None

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._error(401, "RepoNotFound", "Repository not found")
        found = repository.at(revision)
        if found is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit, files = found
        if path not in files:
            return self._error(404, "EntryNotFound", "no such file")
        if repository.gated and path != "README.md":
            return self._error(403, "GatedRepo", f"Access to dataset {name} is restricted; accept its terms")
        data, start, status = files[path], 0, 200
        total = len(data)
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            if start >= total:
                return self._error(416, "RangeNotSatisfiable", "beyond the end")
            data = data[start : int(last) + 1 if last else None]
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha1(files[path]).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{total}")
        cut = self._cut(path, start, len(data)) if self.command == "GET" else None
        if cut is not None:
            self.close_connection = True
            self.send_header("Connection", "close")
        if cut is None or not self.hub.quiet:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            sent = data if cut is None else data[:cut]
            self.hub.served[path] += len(sent)
            self.wfile.write(sent)
        return None

    def _cut(self, path: str, start: int, length: int) -> int | None:
        """After how many bytes of this answer the connection ends; None: it does not."""
        at = self.hub.cuts.get(path)
        if at is None or start + length <= at or self.hub.cut_times.get(path, 1) <= 0:
            return None
        if path in self.hub.cut_times:
            self.hub.cut_times[path] -= 1
        return max(at - start, 0)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    below = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        if not path.startswith(below):
            continue
        parents = [str(p) for p in PurePosixPath(path).parents if str(p) != "." and str(p).startswith(below)]
        for parent in parents:
            if recursive or "/" not in parent[len(below) :]:
                entries[parent] = {
                    "type": "directory",
                    "path": parent,
                    "oid": hashlib.sha1(parent.encode()).hexdigest(),
                }
        if recursive or "/" not in path[len(below) :]:
            oid = hashlib.sha1(data).hexdigest()
            entries[path] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    return list(entries.values())
