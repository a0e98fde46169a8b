"""A server as a user starts it, and a client that speaks to it as the page does."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).parent.parent.parent


class Server:
    """A running `onnx-repfuse serve`."""

    def __init__(self, process, folder):
        self.process, self.folder = process, folder
        line = process.stdout.readline()
        assert re.fullmatch(r"onnx-repfuse: open http://127\.0\.0\.1:\d+/[\w-]{32}/\n", line), line
        self.address = line.split()[-1]
        self.port = int(self.address.split(":")[2].split("/")[0])
        self.token = self.address.split("/")[3]
        self.origin = f"http://127.0.0.1:{self.port}"

    def ask(self, method, path, body=None, *, headers=None, whole=None, timeout=30):
        """(status, headers, body) of a request for a path below the token; `whole` is a path of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        sent = {"Origin": self.origin, **(headers or {})}
        sent = {name: value for name, value in sent.items() if value is not None}
        try:
            connection.request(method, whole or f"/{self.token}/{path}", body, sent)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def json(self, method, path, body=None):
        """The answer to a request that is expected to succeed."""
        status, _, text = self.ask(method, path, body if body is None else json.dumps(body))
        assert status < 300, (status, text)
        return json.loads(text) if text else None

    def create(self, kind="fuse", **settings):
        """The id of a new job."""
        return self.json("POST", "jobs", {"kind": kind, "settings": settings})["id"]

    def put(self, job, name, data, side="first", **rest):
        """The status of an upload."""
        return self.ask("PUT", f"jobs/{job}/files/{side}/{quote(name, safe='')}", data, **rest)[0]

    def head_of_upload(self, job):
        """The bytes of a request that brings 5 of 1,000 bytes."""
        return (
            f"PUT /{self.token}/jobs/{job}/files/first/m.onnx HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Origin: {self.origin}\r\nContent-Length: 1000\r\n\r\nbegin".encode()
        )

    def show(self, job):
        """What the page is told of a job."""
        (shown,) = (entry for entry in self.json("GET", "jobs")["jobs"] if entry["id"] == job)
        return shown

    def until(self, job, states=("done", "failed"), seconds=120):
        """Wait for a state, and tell what the page is told then."""
        end = time.monotonic() + seconds
        while (shown := self.show(job))["state"] not in states:
            assert time.monotonic() < end, shown
            time.sleep(0.05)
        return shown

    def run(self, *models, kind="fuse", **settings):
        """A job from files, each a path or (name, bytes), to its end."""
        job = self.create(kind, **settings)
        for side, model in zip(("first", "second"), models, strict=False):
            name, data = model if isinstance(model, tuple) else (model.name, model.read_bytes())
            assert self.put(job, name, data, side) == 204
        self.json("POST", f"jobs/{job}/start")
        return self.until(job)

    def left(self):
        """What is in the server's folder for temporary files, but the lock that tells that it is in use."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name != ".lock")


@contextmanager
def running(folder, *words) -> Iterator[Server]:
    """A server with its temporary files in `folder`; it ends by Ctrl-C, and leaves none unless it was killed."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "onnx_repfuse", "serve", "--port", "0", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        yield Server(process, folder)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        if process.returncode == -signal.SIGKILL:
            return
        assert (process.returncode, errors) == (0, ""), (process.returncode, errors)
        assert list(folder.iterdir()) == [], list(folder.iterdir())
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
