"""A session: the tokens of one conversation and the sequence of the memory that holds their cells.

    waiting --acquire--> running --release--> idle --park--> parked
       ^                    |  ^                |  ^           |
       +------preempt-------+  +----acquire-----+  +--restore--+        and from each of them: drop

``SessionStore`` alone assigns what stands here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

SessionState = Literal["running", "waiting", "idle", "parked"]

FIRST_SEQ_ID = 1 << 20
"""Sessions use sequence ids from here on; the ones below are the caller's (``LLM.forward``)."""


@dataclass(slots=True, eq=False)
class Session:
    """``token_ids``: what its cells hold, from position 0; while running also the tokens yet to be computed.

    The memory is the one that knows how many of them are held. n_prompt: length of the last prompt;
    n_generated: tokens generated in all its turns; last_used: seconds of the scheduler's clock; has_spare: whether
    its stream may hold more cells than it uses; path: set while parked.
    """

    id: int
    token_ids: list[int] = field(default_factory=list)
    state: SessionState = "waiting"
    last_used: float = 0.0
    n_prompt: int = 0
    n_generated: int = 0
    has_spare: bool = True
    path: Path | None = None

    @property
    def seq_id(self) -> int:
        """The sequence of the memory that holds its cells."""
        return FIRST_SEQ_ID + self.id


class Owner(Protocol):
    """What runs on a session: a request. Tokens are only ever added to it.

    checkpoint_at: after how many computed tokens memory is to make a checkpoint (None: after none).
    caches_prompt: whether it may begin with cells that others have computed.
    """

    token_ids: list[int]
    n_prompt: int
    session: Session
    checkpoint_at: int | None
    caches_prompt: bool

    @property
    def n_generated(self) -> int:
        """Tokens generated so far."""
        ...
