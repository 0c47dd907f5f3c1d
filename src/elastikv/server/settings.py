"""What ``elastikv serve`` may be told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from elastikv.engine.params import SamplingParams

DEFAULT_BODY_LIMIT = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How the server listens, whom it answers, and the defaults of requests.

    allowed_hosts: further names of the server, ``*.example.com`` for all below one, ``*`` for any.
    cors_origins: origins, such as ``https://example.com``, whose pages may use it.
    timeout: seconds for the wait for a head or a body, and for one blocked write.
    drain: seconds that running replies get when the server is told to end. The default leaves half of docker's ten
        seconds to the writing of parked sessions.
    sampling: where a request is silent. Without ``max_tokens`` a reply ends at ``n_ctx``.
    log_requests: an access log.
    pooling: of embeddings.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    timeout: float = 600.0
    drain: float = 5.0
    max_body_bytes: int = DEFAULT_BODY_LIMIT
    slot_save_path: Path | None = None
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=None))
    log_requests: bool = False
    pooling: Literal["mean", "last", "cls"] = "mean"

    @property
    def is_open_to_the_network(self) -> bool:
        """Whether others than this machine can connect."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True
