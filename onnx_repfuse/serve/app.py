"""The addresses of the server, behind the guard: the page, its parts, and the jobs.

All are below `/TOKEN/`:

    GET    .                              the page; style.css and page.js beside it
    GET    jobs                           the limits, and all jobs
    POST   jobs                           {"kind", "settings"}: a new job; returns its id
    PUT    jobs/ID/files/SIDE/NAME        a file of the first or second model, as the body
    POST   jobs/ID/start                  all files are there
    DELETE jobs/ID                        end and remove it
    GET    jobs/ID/report, jobs/ID/json   the report
    GET    jobs/ID/files/NAME             a file that was written
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from onnx_repfuse.serve.jobs import Job, Jobs, Refused, State

__all__ = ["make_app"]

_LONGEST_BODY = 1 << 16  # bytes, of a request that brings no file
# The report is shown in a frame. Sandboxed, it is of no origin: even if a name in a model could run as a script, it
# would not reach this server. The page's own policy allows one script by its digest; this one must not forbid it.
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)


def make_app(jobs: Jobs, token: str) -> Starlette:
    """The application, to be put behind a `Guard`; it carries out the jobs while it runs."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with jobs.working():
            yield

    routes = _Routes(jobs)
    inner = [
        Route("/", _asset("page.html", "text/html")),
        Route("/style.css", _asset("page.css", "text/css")),
        Route("/page.js", _asset("page.js", "text/javascript")),
        Route("/jobs", routes.show_all, methods=["GET"]),
        Route("/jobs", routes.create, methods=["POST"]),
        Route("/jobs/{id}", routes.remove, methods=["DELETE"]),
        Route("/jobs/{id}/start", routes.start, methods=["POST"]),
        Route("/jobs/{id}/files/{side}/{name}", routes.upload, methods=["PUT"]),
        Route("/jobs/{id}/files/{name}", routes.download, methods=["GET"]),
        Route("/jobs/{id}/report", routes.report, methods=["GET"]),
        Route("/jobs/{id}/json", routes.document, methods=["GET"]),
    ]
    app = Starlette(routes=[Mount(f"/{token}", routes=inner)], lifespan=lifespan)
    app.add_exception_handler(Refused, _refused)
    return app


def _asset(name: str, media_type: str) -> Any:
    """The endpoint of a file of the page."""
    text = files("onnx_repfuse.serve").joinpath(name).read_text(encoding="utf-8")
    if name == "page.css":  # the colours are those of the report
        text = files("onnx_repfuse.report").joinpath(name).read_text(encoding="utf-8") + text

    async def answer(_: Request) -> Response:
        return Response(text, media_type=media_type)

    return answer


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": str(error)}, error.status)


class _Routes:
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def _job(self, request: Request) -> Job:
        return self._jobs.get(request.path_params["id"])

    async def show_all(self, _: Request) -> Response:
        limits = self._jobs.limits
        shown = [_shown(job, self._jobs.ahead_of(job)) for job in self._jobs.all()]
        return JSONResponse({"limits": {"bytes": limits.bytes, "seconds": limits.seconds}, "jobs": shown})

    async def create(self, request: Request) -> Response:
        try:
            asked = json.loads(await _small_body(request))
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            raise Refused(400, "a job is asked for as a JSON object")
        job = self._jobs.create(asked.get("kind"), asked.get("settings", {}))
        return JSONResponse({"id": job.id}, 201)

    async def upload(self, request: Request) -> Response:
        job = self._job(request)
        place = self._jobs.place_for(job, request.path_params["side"], request.path_params["name"])
        try:
            await asyncio.wait_for(self._receive(request, job, place), self._jobs.limits.seconds)
        except asyncio.TimeoutError:
            raise Refused(408, f"the upload took more than {self._jobs.limits.seconds:.0f} s") from None
        except ClientDisconnect:
            raise Refused(400, "the upload broke off") from None
        except OSError as error:
            raise Refused(507, f"the file cannot be stored: {error.strerror or error}") from None
        return Response(status_code=204)

    async def _receive(self, request: Request, job: Job, place: Path) -> None:
        """Write the body to a file; there is none if that fails."""
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) + job.received > self._jobs.limits.bytes:
            self._jobs.take(job, int(announced))
        try:
            with place.open("xb") as file:
                async for chunk in request.stream():
                    self._jobs.take(job, len(chunk))
                    file.write(chunk)
        except BaseException:
            place.unlink(missing_ok=True)
            raise

    async def start(self, request: Request) -> Response:
        self._jobs.start(self._job(request))
        return Response(status_code=204)

    async def remove(self, request: Request) -> Response:
        self._jobs.remove(self._job(request))
        return Response(status_code=204)

    async def report(self, request: Request) -> Response:
        headers = {"Content-Security-Policy": _REPORT_POLICY}
        job = self._job(request)
        return FileResponse(_existing(job, job.report), media_type="text/html", headers=headers)

    async def document(self, request: Request) -> Response:
        job = self._job(request)
        place = _existing(job, job.document)
        name = f"{Path(job.names[0]).stem}.{job.kind}.json"
        return FileResponse(place, media_type="application/json", filename=name)

    async def download(self, request: Request) -> Response:
        for place in self._job(request).results():
            if place.name == request.path_params["name"]:
                return FileResponse(place, media_type="application/octet-stream", filename=place.name)
        raise Refused(404, "there is no such file")


async def _small_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_BODY:
            raise Refused(413, "this request brings no file, and is too long")
    return body


def _existing(job: Job, place: Path) -> Path:
    """A report; raises Refused if there is none, or if it may be half written."""
    if job.state is not State.DONE or not place.is_file():
        raise Refused(404, "there is no report: the run goes on, or did not get as far")
    return place


def _shown(job: Job, ahead: int) -> dict[str, Any]:
    """What the page shows of a job."""
    passed = job.seconds if not job.unfinished else time.monotonic() - job.since
    return {
        "id": job.id,
        "kind": job.kind,
        "models": job.names,
        "state": job.state.value,
        "ahead": ahead,
        "seconds": round(passed, 1),
        "progress": job.progress,
        "answer": job.answer,
        "files": [{"name": place.name, "bytes": place.stat().st_size} for place in job.results()],
        "report": job.report.is_file() and job.state is State.DONE,
    }
