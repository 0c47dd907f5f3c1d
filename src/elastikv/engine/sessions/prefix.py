"""Which cells a new request need not compute, because another session holds them already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from elastikv.engine.sessions.session import Session
from elastikv.memory.base import Memory

# Below this many tokens a copy is not worth the memory that it holds twice.
WORTH_SHARING = 32

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Reuse:
    """Begin with the first ``n_tokens`` of ``session``.

    ``"continue"``: on the session's own cells, whose rest is forgotten; ``"copy"``: on a copy of them;
    ``"restore"``: as continue, after reading them from disk.
    """

    session: Session
    n_tokens: int
    how: Literal["continue", "copy", "restore"]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two lists share from the start; whole blocks are compared at once."""
    n_max = min(len(a), len(b))
    n = 0
    while n < n_max and a[n : n + _BLOCK] == b[n : n + _BLOCK]:
        n = min(n + _BLOCK, n_max)
    while n < n_max and a[n] == b[n]:
        n += 1
    return n


def best_reuse(token_ids: Sequence[int], sessions: Iterable[Session], memory: Memory) -> Reuse | None:
    """The longest reusable prefix; None if there is none. At least one token is left to compute.

    Cells in memory win over a file, and continuing over copying, where they hold as much. A file keeps no checkpoints.
    """
    reuses = (_reuse_of(session, token_ids, memory) for session in sessions)
    found = [reuse for reuse in reuses if reuse]
    preference = {"restore": 0, "copy": 1, "continue": 2}
    return max(found, key=lambda reuse: (reuse.n_tokens, preference[reuse.how]), default=None)


def _reuse_of(session: Session, token_ids: Sequence[int], memory: Memory) -> Reuse | None:
    n_common = min(common_prefix(session.token_ids, token_ids), len(token_ids) - 1)
    # Its last prompt again, perhaps with the reply to it rewritten, is the same conversation going on. One that
    # parts earlier is another conversation, and leaves this one its cells. (n_prompt - 1: one token is computed anew.)
    same = n_common >= min(session.n_prompt - 1, len(session.token_ids))
    if session.state == "parked":
        usable = memory.cuts_anywhere or n_common >= len(session.token_ids) - 1  # the last token has no cell yet
        return Reuse(session, n_common, "restore") if same and n_common and usable else None
    n_held = min(n_common, memory.n_tokens(session.seq_id))
    n_tokens = memory.truncation_point(session.seq_id, n_held) if n_held else 0
    if session.state == "idle" and same and n_tokens:
        return Reuse(session, n_tokens, "continue")
    return Reuse(session, n_tokens, "copy") if n_tokens >= WORTH_SHARING else None
