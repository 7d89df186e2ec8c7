"""Who may talk to the page: only this machine, and only pages of its own; on the WebSocket too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class OwnVisitorsOnly:
    """Lets through what was meant for this page: by its Host, and from a page of its own by its Origin.

    A browser lets any page open a WebSocket to anywhere, and sends that page's Origin with it; and a name that
    another site resolves to 127.0.0.1 arrives in the Host. Both are refused before anything else sees them.
    """

    def __init__(self, inner: Callable[[Scope, Receive, Send], Awaitable[None]], hosts: Sequence[str]) -> None:
        self._inner = inner
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_own(scope):
            await self._inner(scope, receive, _forbid_frames(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = b"this page answers to its own address only\n"
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": body})

    def _is_own(self, scope: Scope) -> bool:
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == "host"]
        origins = [value for name, value in headers if name == "origin"]
        if len(hosts) != 1 or len(origins) > 1 or _read_name(f"//{hosts[0]}") not in self._hosts:
            return False
        # Another port of this machine is another site.
        return not origins or urlsplit(origins[0]).netloc.lower() == hosts[0].lower()


def _read_name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _forbid_frames(send: Send) -> Send:
    """Return a sender that forbids every other page to show this one in a frame."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            if not any(name.lower() == b"content-security-policy" for name, _ in headers):
                headers.append((b"content-security-policy", b"frame-ancestors 'none'"))
            message["headers"] = headers
        await send(message)

    return guarded
