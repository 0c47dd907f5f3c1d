"""What the scheduler says about itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from elastikv.engine.outputs import Timings
from elastikv.engine.sessions import Session, SessionState
from elastikv.memory.base import MemoryStats


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session. ``last_used`` is in seconds of the scheduler's clock; n_prompt: of its last turn."""

    id: int
    state: SessionState
    used_cells: int
    capacity_cells: int
    committed_bytes: int
    n_prompt: int
    n_generated: int
    last_used: float


@dataclass(slots=True)
class Totals:
    """What the scheduler has counted since its start.

    prompt_seconds, generated_seconds: summed over generations, which may have shared them. n_replies: generations
    that were part of a step, summed over the steps. longest: most tokens that a sequence has had. n_drafts: of tokens
    that were guessed; n_drafted of them, n_accepted of which came true.
    """

    tokens_prompt: int = 0
    tokens_cached: int = 0
    tokens_generated: int = 0
    prompt_seconds: float = 0.0
    generated_seconds: float = 0.0
    n_steps: int = 0
    n_replies: int = 0
    longest: int = 0
    n_drafts: int = 0
    n_drafted: int = 0
    n_accepted: int = 0

    def count(self, timings: Timings) -> None:
        """Add the seconds and drafts of a generation that has ended."""
        self.prompt_seconds += timings.prompt_seconds
        self.generated_seconds += timings.predicted_seconds
        self.n_drafted += timings.draft_n
        self.n_accepted += timings.draft_n_accepted


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Memory and sessions as they are now; counters since the start."""

    memory: MemoryStats
    n_running: int
    n_waiting: int
    n_idle: int
    n_parked: int
    n_refusals: int
    n_preemptions: int
    n_releases: int
    n_parks: int
    n_restores: int
    totals: Totals


def session_infos(sessions: Iterable[Session], memory: MemoryStats) -> list[SessionInfo]:
    """Sessions by their number, with what memory says of their sequences."""
    held = {sequence.seq_id: sequence for sequence in memory.sequences}
    infos = []
    for session in sorted(sessions, key=lambda session: session.id):
        sequence = held.get(session.seq_id)
        infos.append(
            SessionInfo(
                id=session.id,
                state=session.state,
                used_cells=sequence.used_cells if sequence else 0,
                capacity_cells=sequence.capacity_cells if sequence else 0,
                committed_bytes=sequence.committed_bytes if sequence else 0,
                n_prompt=session.n_prompt,
                n_generated=session.n_generated,
                last_used=session.last_used,
            )
        )
    return infos
