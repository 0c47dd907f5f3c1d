"""Which pages may talk to the server: a browser lends its place in the network to every page it shows.

``RequireHost`` ends DNS rebinding, by which a page reads what a server without a key tells this machine.
``RefuseCrossSite`` ends requests that change something and that a page of another origin made.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from elastikv.server.errors import APIError
from elastikv.server.settings import ServerSettings

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[\w.-]+)(?P<port>:\d*)?", re.IGNORECASE | re.ASCII)


class RequireHost:
    """403 unless the ``Host`` header has a name of this machine's own, ``--host``, or one of ``--allowed-hosts``.

    Not where a key is asked for: a page that got here by rebinding does not have it.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self._names = {host_name(name) or name.lower() for name in (settings.host, *settings.allowed_hosts)}
        self._takes_all = bool(settings.api_keys) or "*" in self._names
        self._takes_addresses = bool(self._names & {"0.0.0.0", "::"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request for a host name that is not the server's; pass others on."""
        if scope["type"] != "http" or self._takes_all or self._is_allowed(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send)
            return
        message = "this Host is not one of the server's names; start it with --allowed-hosts NAME, or with --api-key"
        error = APIError(403, message, type="permission_error", code="host_not_allowed")
        await error.response(scope["path"])(scope, receive, send)

    def _is_allowed(self, authority: str) -> bool:
        name = host_name(authority)
        if name is None:
            return False
        if name in self._names or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return any(pattern.startswith("*.") and name.endswith(pattern[1:]) for pattern in self._names)
        # Rebinding needs a name, so that a server of every network may be called by any address.
        return address.is_loopback or self._takes_addresses


class RefuseCrossSite:
    """403 for what changes something and comes from a page of another origin that ``--cors-origin`` does not name.

    In the order of Go's ``http.CrossOriginProtection``: what is not a browser sends neither header; a browser says
    itself whether the page is ours, and an old one at least whose it is.
    """

    def __init__(self, app: ASGIApp, cors_origins: Sequence[str]) -> None:
        self.app = app
        self._trusted = cors_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request from a page of another origin; pass others on."""
        if scope["type"] != "http" or scope["method"] in _SAFE_METHODS or self._is_ours(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        message = "a page of another origin asked for this; start the server with --cors-origin ORIGIN to let it"
        error = APIError(403, message, type="permission_error", code="cross_site")
        await error.response(scope["path"])(scope, receive, send)

    def _is_ours(self, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and ("*" in self._trusted or origin in self._trusted):
            return True
        if site is not None:
            return site in ("same-origin", "none")
        return origin is None or origin.partition("://")[2] == headers.get("host", "").lower()


def host_name(authority: str) -> str | None:
    """The host of ``host[:port]`` in one spelling (small letters, no brackets, no last dot), or None."""
    match = _AUTHORITY.fullmatch(authority)
    try:
        # An IPv6 address has no brackets among the flags, and many spellings.
        return str(ipaddress.ip_address(match["host"].strip("[]") if match else authority))
    except ValueError:
        return match["host"].lower().rstrip(".") or None if match and match["host"][0] != "[" else None


def is_origin(text: str) -> bool:
    """``scheme://host[:port]`` as browsers write it, or ``null``, or ``*`` for all."""
    scheme, _, authority = text.partition("://")
    return text in ("*", "null") or bool(re.fullmatch("[a-z][a-z0-9+.-]*", scheme) and _AUTHORITY.fullmatch(authority))
