"""Who may talk to the server: who knows the token, from this machine, and from our own page.

Other users of the machine, and pages of other sites in the user's browser, reach the port too. The first do not know
the token. The second may guess the port, and send requests in the user's name, or let a host name of theirs point to
127.0.0.1 and so read answers; the headers `Host` and `Origin`, which no page can forge, tell them.
"""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard"]

_SAFE = ("GET", "HEAD")
# The page may load its own script and style, talk to this server, and nothing else: no other host, no inline script.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; frame-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _PAGE_POLICY,
    "Referrer-Policy": "no-referrer",  # or the token would go along
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """An ASGI application in front of another, which sees requests of our own page only.

    Args:
        app: the other.
        token: the first part of every path.
        port: where the server listens.
    """

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        self._app, self._token = app, token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] != "http":  # the start and end of the server
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._refusal(scope) or self._app
        await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that the application does not see; None if it may."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._hosts:
            return _error(421, "this server answers to 127.0.0.1 and localhost only")
        first, _, rest = scope["path"].removeprefix("/").partition("/")
        if not secrets.compare_digest(first.encode(), self._token.encode()):
            return _error(404, "use the address that 'onnx-repfuse serve' has printed")
        if scope["method"] not in _SAFE and headers.get("origin") != f"http://{host}":
            return _error(403, "only the page of this server may ask for this")
        if not rest and not scope["path"].endswith("/"):
            return RedirectResponse(f"/{self._token}/")
        return None


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)
