"""The notebooks as one site on the reader's own machine, at short addresses.

A page of another site, or a name that somebody has bound to this machine, must not start runs
here: hosts and origins are checked, pages are not framed elsewhere, and only so many are open.
"""

import contextlib
import hashlib
import hmac
import ipaddress
import mimetypes
import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import marimo
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import URL, Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replib import files
from replib.pages import failures
from replib.pages.opening import Opening

MAX_SESSIONS = 24  # open pages, each a thread; those that were closed make room first
MIN_TOKEN = 8  # characters
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ASSETS = Path(marimo.__file__).parent / "_static" / "assets"
HEAD = Path(__file__).with_name("head.html")
CONNECTED = ("http", "websocket")
_SECRET = secrets.token_bytes()  # of this process: a cookie is of no use to the next


@dataclass(frozen=True)
class Page:
    """A notebook, and what its page shows until marimo has drawn what the CSS selector `drawn`
    finds: the HTML that `opening` makes."""

    notebook: Path
    opening: Callable[[], str] = str
    drawn: str = "*"


def application(
    pages: Mapping[str, Page],
    *,
    host: str = LOOPBACK[0],
    token: str | None = None,
    max_sessions: int = MAX_SESSIONS,
) -> Starlette:
    """The ASGI application that serves notebooks.

    Args:
        pages: by their address, such as {"": ..., "convergence": ...}.
        host: what the server listens at. Requests for this name and the loopback names are
            answered; of a server at every address (0.0.0.0) for any name, if they have the token.
        token: what a browser has to bring along once; None where none is wanted.

    Raises:
        ValueError: the host can be reached from other machines, and the token is missing or short.
    """
    if not is_loopback(host) and token is None:
        raise ValueError(f"--host {host} lets other machines in: use --token, or leave --host out")
    if token is not None and len(token) < MIN_TOKEN:
        raise ValueError(f"--token has {len(token)} characters: use at least {MIN_TOKEN}")
    with contextlib.chdir(files.ROOT):  # where marimo looks for the project's settings
        builder = marimo.create_asgi_app(quiet=True, html_head=HEAD.read_text(encoding="utf-8"))
        for address, page in pages.items():
            builder = builder.with_app(path=f"/{address}", root=str(page.notebook))
        notebooks = builder.build()
    managers = []
    for route in notebooks.routes:
        if isinstance(route, Mount):
            page, state = pages[route.path.strip("/")], route.app.state
            managers.append(state.session_manager)
            if route.path:  # all pages have the start page's scripts, which a browser loads once
                state.asset_url = ".."
            route.app = Opening(route.app, page.opening, page.drawn)
    failures.show_on_pages()
    hosts = ["*"] if is_any(host) else [*LOOPBACK, "[::1]", host]
    return Starlette(
        # marimo's own redirect to the address with a slash loses the query.
        routes=[
            *(Route(f"/{address}", _with_slash) for address in pages if address),
            Route("/assets/{name}", _asset),
            Mount("/", notebooks),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(OwnPages, hosts=hosts),
            *([Middleware(WithToken, token=token)] if token else []),
            Middleware(LimitedSessions, managers=managers, most=max_sessions),
        ],
    )


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server that listens at a host."""
    return host in LOOPBACK or (_address(host) is not None and _address(host).is_loopback)


def is_any(host: str) -> bool:
    """Whether a host stands for every address of this machine."""
    return _address(host) is not None and _address(host).is_unspecified


def address(host: str, port: int, token: str | None) -> str:
    """Where a browser on this machine finds the start page of a server."""
    if is_any(host):
        host = LOOPBACK[0]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?{urlencode({'token': token})}" if token else "")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def _with_slash(request: Request) -> RedirectResponse:
    return RedirectResponse(_here(request.url.replace(path=f"{request.url.path}/")))


@cache
def _read_asset(name: str) -> tuple[bytes, str]:
    """A file of marimo's that all pages need, and its media type."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return (ASSETS / name).read_bytes(), kind


async def _asset(request: Request) -> Response:
    """A page asks for some 250 files before it shows anything: they are answered from memory, and
    kept by the browser, as their names change with their content."""
    try:
        content, kind = _read_asset(request.path_params["name"])
    except OSError:
        return PlainTextResponse("Not found.", 404)
    kept = {"Cache-Control": "private, max-age=31536000, immutable"}
    return Response(content, media_type=kind, headers=kept)


def _here(url: URL) -> str:
    """An address without the server, by whatever name it was reached."""
    return f"/{url.path.lstrip('/')}" + f"?{url.query}" * bool(url.query)


class OwnPages:
    """Answers what the server's own pages ask for, and what a reader opens: with 403 whatever a
    page of another origin asks for. Other sites cannot show the pages in a frame."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in CONNECTED and not self._is_own(Headers(scope=scope)):
            refusal = PlainTextResponse("Refused: asked for by a page of another site.", 403)
            return await refusal(scope, receive, send)

        async def send_own(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = "frame-ancestors 'self'"
                headers["X-Frame-Options"] = "SAMEORIGIN"
            await send(message)

        await self.app(scope, receive, send_own)

    def _is_own(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None:  # of every websocket and of every POST that a browser sends
            return self._is_own_origin(origin, headers.get("host", ""))
        # An image or a script of another site comes without an origin, and says so here.
        fetched = headers.get("sec-fetch-mode", "navigate") != "navigate"
        return not fetched or headers.get("sec-fetch-site") in ("same-origin", "none")

    def _is_own_origin(self, origin: str, host: str) -> bool:
        """Whether an origin has the port of the host that was asked, and its name or another of
        the server's."""
        try:
            found, asked = urlsplit(origin), urlsplit(f"//{host}")
            same_port = found.netloc == asked.netloc or found.port == asked.port
        except ValueError:
            return False
        names = {asked.hostname} if "*" in self.hosts else set(self.hosts)
        return found.scheme in ("http", "https") and same_port and found.hostname in names


class WithToken:
    """Answers a browser that has brought the token along once (`?token=...`), and has a cookie
    since."""

    def __init__(self, app: ASGIApp, token: str):
        self.app, self.token = app, token
        self.proof = hmac.new(_SECRET, token.encode(), hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in CONNECTED:
            return await self.app(scope, receive, send)
        connection = HTTPConnection(scope)
        _, port = scope.get("server") or ("", 0)
        cookie = f"replib_{port}"
        if hmac.compare_digest(connection.cookies.get(cookie, "").encode(), self.proof.encode()):
            return await self.app(scope, receive, send)
        brought = connection.query_params.get("token", "")
        if scope["type"] == "http" and hmac.compare_digest(brought.encode(), self.token.encode()):
            url = _here(connection.url.remove_query_params("token"))
            answer = RedirectResponse(url, 303, {"Referrer-Policy": "same-origin"})
            answer.set_cookie(cookie, self.proof, httponly=True, samesite="lax")
        else:
            answer = PlainTextResponse(
                "This server wants its token: open the address that `python -m replib serve` "
                "has printed.",
                401,
            )
        await answer(scope, receive, send)


class LimitedSessions:
    """Opens a page where there is room for it. A page that was closed is kept for a while, as its
    reader may come back; where there is no room the oldest such one makes some."""

    def __init__(self, app: ASGIApp, managers: Sequence, most: int):
        self.app, self.managers, self.most = app, managers, most
        self.connected: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope) if scope["type"] in CONNECTED else None
        session = connection and connection.query_params.get("session_id")
        if session is None or not scope["path"].endswith(("/ws", "/sse")):
            return await self.app(scope, receive, send)
        if not self._has_room(session):
            told = f"{self.most} pages are open here, which is the most: close one, then reload."
            return await PlainTextResponse(told, 503)(scope, receive, send)
        self.connected.add(session)
        try:
            await self.app(scope, receive, send)
        finally:
            self.connected.discard(session)

    def _has_room(self, session: str) -> bool:
        live = self.connected.union(*(manager.sessions for manager in self.managers))
        if session in live or len(live) < self.most:
            return True
        for manager in self.managers:
            for name, one in manager.sessions.items():
                if name not in self.connected and one.connection_state().name != "OPEN":
                    return manager.close_session(name)
        return False


def run(
    app: ASGIApp, listener: socket.socket, *, browser: str | None, warm: Callable[[], None]
) -> None:
    """Serve until the process ends; once it listens, open an address in the browser and let `warm`
    prepare what the first page would wait for."""
    config = uvicorn.Config(
        app,
        log_level="error",
        timeout_keep_alive=300,
        timeout_graceful_shutdown=1,
        # Pages that are busy answer late; what has not answered for so long is gone.
        ws_ping_interval=1,
        ws_ping_timeout=60,
    )
    server = uvicorn.Server(config)

    def begin() -> None:
        while not server.started:
            time.sleep(0.02)
        if browser:
            webbrowser.open(browser)
        warm()

    threading.Thread(target=begin, daemon=True).start()
    server.run(sockets=[listener])


def listening(host: str, first: int, n_ports: int = 100) -> socket.socket:
    """A socket that listens at the first free port from `first` on.

    Raises:
        ValueError: there is none among the next ones, or no such host.
    """
    try:
        (family, *_, place), *_ = socket.getaddrinfo(host, first, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"--host {host}: {error.strerror}: use 127.0.0.1") from error
    for port in range(first, first + n_ports):
        listener = socket.socket(family)
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((place[0], port, *place[2:]))
            listener.listen()
            return listener
        listener.close()
    raise ValueError(f"no free port from {first} to {first + n_ports - 1}: use --port")
