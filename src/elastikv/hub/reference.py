"""How a model of the hub is called."""

from __future__ import annotations

import re
from dataclasses import dataclass

from elastikv.errors import InvalidRequest

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?!.*\.\.)(?![^:]*--)(?P<repo>{_PART}/{_PART})(?::(?P<quant>{_PART}(?:/{_PART})*))?")


@dataclass(frozen=True, slots=True)
class HubModel:
    """``user/repo``, or ``user/repo:Q4_K_M`` for one quantisation of a repository with GGUF files."""

    repo: str
    quant: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubModel:
        """Raises InvalidRequest."""
        match = _NAME.fullmatch(text)
        if match is None:
            raise InvalidRequest(
                f"{text!r} names no model of the hub; give user/repo or user/repo:QUANT, and a file or folder with -m"
            )
        return cls(match["repo"], match["quant"])

    @classmethod
    def is_name(cls, text: str) -> bool:
        """Whether ``parse`` takes it, and it does not look like a file's name."""
        return _NAME.fullmatch(text) is not None and not text.endswith((".gguf", ".json"))

    def __str__(self) -> str:
        return self.repo if self.quant is None else f"{self.repo}:{self.quant}"
