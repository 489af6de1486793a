"""A server on loopback that keeps runs as W&B's does, as far as W&B's own client process asks.

It answers the client's GraphQL by the names of the operations, takes lines of a run's files at the offsets that
the client names (`file_stream`), and takes uploads. What it was told stays in `runs`, `requests` and `uploads`.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "team"


@dataclass
class Kept:
    """A run as the server has it."""

    project: str
    name: str
    config: dict = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    told: dict = field(default_factory=dict)
    """Display name, group, job type, tags."""
    exit_code: int | None = None
    written: int = 0
    """History lines that came in, repeated ones included."""
    upserts: int = 0

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]

    @property
    def state(self) -> str:
        if self.exit_code is None:
            return "running"
        return "finished" if self.exit_code == 0 else "failed"


class Server(ThreadingHTTPServer):
    """`with Server() as server`: `server.url` is for WANDB_BASE_URL."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, Kept] = {}
        self.requests: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.refused: set[str] = set()
        """Runs that may not be written."""
        self.take_lines: int | None = None
        """When a run has so many history lines, no more are taken and no answer comes."""
        self.hanging = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that has gone."""

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    # ------------------------------------------------------------ GraphQL

    def answer(self, query: str, values: dict) -> dict:
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = name.group(1) if name else ""
        self.requests.append(operation)
        made = getattr(self, f"on_{operation}", None)
        if made is None:
            return {"errors": [{"message": f"no operation {operation}: {query}"}]}
        if operation == "UpsertBucket" and values["name"] in self.refused:
            return {"errors": [{"message": "permission denied"}]}
        return {"data": made(values)}

    def on_Viewer(self, values: dict) -> dict:
        return {"viewer": {"id": "u1", "entity": ENTITY, "username": "me", "email": "me@example.org", "flags": "{}",
                           "teams": {"edges": []}}}  # fmt: skip

    on_GetDefaultEntity = on_Viewer

    def on_ServerFeaturesQuery(self, values: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def on_RunResumeStatus(self, values: dict) -> dict:
        run = self.runs.get(values["name"])
        found = None if run is None else self._bucket(run)
        return {
            "model": {
                "id": "p1",
                "name": values["project"],
                "entity": {"id": "e1", "name": ENTITY},
                "bucket": found,
            }
        }

    def on_UpsertBucket(self, values: dict) -> dict:
        inserted = values["name"] not in self.runs
        run = self.runs.setdefault(values["name"], Kept(values["project"], values["name"]))
        run.upserts += 1
        run.exit_code = None if values.get("state") in (None, "running") else run.exit_code
        if values.get("config"):
            run.config = json.loads(values["config"])
        for key in ("displayName", "groupName", "jobType", "tags"):
            if values.get(key) is not None:
                run.told[key] = values[key]
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def on_Run(self, values: dict) -> dict:
        """For `wandb.Api().run`."""
        run = self.runs.get(values["name"])
        if run is None or run.project != values["project"]:
            return {"project": {"run": None}}
        found = self._bucket(run) | {
            "projectId": "1", "state": run.state, "group": run.told.get("groupName"), "jobType": run.told.get("jobType"),
            "commit": None, "readOnly": False, "createdAt": "2026-01-01T00:00:00", "heartbeatAt": None, "systemMetrics": "{}",
            "historyKeys": None, "user": {"name": "me", "username": "me"},
        }  # fmt: skip
        return {"project": {"run": found}}

    def on_CreateRunFiles(self, values: dict) -> dict:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in values["files"]]
        return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}

    def _bucket(self, run: Kept) -> dict:
        return {
            "id": f"id-{run.name}", "name": run.name, "displayName": run.told.get("displayName"), "description": "",
            "summaryMetrics": json.dumps(run.summary), "logLineCount": 0, "historyLineCount": len(run.lines),
            "eventsLineCount": 0, "historyTail": json.dumps(run.lines[-1:]), "eventsTail": "[]", "sweepName": None,
            "config": json.dumps(run.config), "tags": run.told.get("tags", []), "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
            "project": {"id": "p1", "name": run.project, "entity": {"id": "e1", "name": ENTITY}},
        }  # fmt: skip

    # ------------------------------------------------------------ files

    def stream(self, name: str, told: dict) -> None:
        with self.lock:
            run = self.runs[name]
            history = told.get("files", {}).get("wandb-history.jsonl")
            full = False
            if history:
                start, new = history["offset"], history["content"]
                if self.take_lines is not None:
                    new = new[: max(self.take_lines - start, 0)]
                run.lines[start : start + len(new)] = new
                run.written += len(new)
                full = len(run.lines) == self.take_lines
            if full:
                told = {}
            summary = told.get("files", {}).get("wandb-summary.json")
            if summary:
                run.summary = json.loads(summary["content"][-1])
            if told.get("complete"):
                run.exit_code = told["exitcode"]
        if full:
            self.hanging.set()
            threading.Event().wait(600)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            told = json.loads(body)
            self._send(self.server.answer(told["query"], told.get("variables") or {}))
        elif self.path.endswith("/file_stream"):
            self.server.requests.append("file_stream")
            self.server.stream(self.path.split("/")[-2], json.loads(body))
            self._send({"exitcode": None, "limits": {}})
        else:
            self.server.requests.append(self.path)
            self._send({})

    def do_PUT(self) -> None:
        self.server.uploads[self.path.removeprefix("/upload/")] = self._body()
        self._send({})

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self._send({})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""
