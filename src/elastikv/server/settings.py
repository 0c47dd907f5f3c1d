"""What ``elastikv serve`` may be told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

DEFAULT_BODY_LIMIT = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """``timeout`` (seconds) bounds the wait for a head or a body, one blocked write, and the drain at shutdown.

    ``allowed_hosts``: further names of the server, ``*.example.com`` for all below one, ``*`` for any.
    ``cors_origins``: origins, such as ``https://example.com``, whose pages may use it.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    alias: str | None = None
    timeout: float = 600.0
    max_body_bytes: int = DEFAULT_BODY_LIMIT
    slot_save_path: Path | None = None

    @property
    def is_open_to_the_network(self) -> bool:
        """Others than this machine can connect."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True
