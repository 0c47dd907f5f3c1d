"""How many replicas a load needs: memory first, since that is what conversations take."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from elastikv.engine.stats import SessionInfo


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica reports; means over some time may be fractions.

    used: share of its budget that its working set takes, 0 to 1; n_running, n_waiting: requests that it computes, and
    in its queue; n_refusals: growth that was refused since its last report.
    """

    used: float
    n_running: float
    n_waiting: float
    n_refusals: float


def replicas_wanted(needs: Collection[Need], *, n_parallel: int = 4, target: float = 0.7) -> int:
    """Replicas whose memory the working sets fill to ``target``; more than there are while requests wait.

    So many waiting requests as a replica computes at once want one more, and so does a growth that was refused. There
    are never fewer than compute what runs.
    """
    used, n_running = sum(need.used for need in needs), sum(need.n_running for need in needs)
    wanted = max(math.ceil(used / target - 1e-9), math.ceil(n_running / n_parallel - 1e-9))
    n_waiting, n_refusals = sum(need.n_waiting for need in needs), sum(need.n_refusals for need in needs)
    if n_waiting >= 1 or n_refusals >= 1:
        wanted = max(wanted, len(needs) + max(1, int(n_waiting / n_parallel)))
    return wanted


def working_set_bytes(sessions: Iterable[SessionInfo], now: float, seconds: float) -> int:
    """What sessions hold that run or were used in the last ``seconds``; the cells of others may go."""
    recent = (session for session in sessions if session.state == "running" or now - session.last_used <= seconds)
    return sum(session.committed_bytes for session in recent)
