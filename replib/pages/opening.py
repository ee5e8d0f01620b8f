"""What a page shows while marimo loads, for which a browser needs some seconds.

It is HTML of its own, part of the page that the server answers with, and makes room as soon as
marimo has drawn the same.
"""

import re
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio import to_thread
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replib.pages.failures import STYLE

WAIT_S = 0.3  # for what is not known yet; after that the page comes without
ROOT = b'<div id="root">'  # where marimo draws
TEMPLATE = Path(__file__).with_name("opening.html").read_text(encoding="utf-8")


class Opening:
    """Puts what `html` makes above what marimo will draw, until that has something of `drawn`, a
    CSS selector; nothing where it is empty, takes longer than WAIT_S to make, or fails."""

    def __init__(self, app: ASGIApp, html: Callable[[], str], drawn: str):
        self.app, self.html, self.drawn = app, html, drawn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path not in ("", "/"):
            return await self.app(scope, receive, send)
        opening = await self._made()

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in ("Content-Length", "ETag", "Last-Modified"):
                    del headers[name]
                headers["Cache-Control"] = "no-cache"  # verdicts follow the rows
            elif opening:
                body = message.get("body", b"").replace(ROOT, opening + ROOT, 1)
                message = {**message, "body": body}
            await send(message)

        await self.app(scope, receive, send_with)

    async def _made(self) -> bytes:
        with anyio.move_on_after(WAIT_S):
            try:
                shown = await to_thread.run_sync(self.html, abandon_on_cancel=True)
            except Exception:  # the page's own cell will say what is wrong
                shown = ""
            if not shown:
                return b""
            parts = {"STYLE": STYLE, "SHOWN": shown, "DRAWN": self.drawn}
            return re.sub(r"{{ (\w+) }}", lambda name: parts[name[1]], TEMPLATE).encode()
        return b""
