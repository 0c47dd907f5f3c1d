"""The committed states of all sequences and their checkpoints: where they can be cut, and who owns which buffer."""

from __future__ import annotations

from dataclasses import dataclass, field

from elastikv.errors import CacheFull
from elastikv.memory.states import StateBuffer, StatePool


@dataclass(slots=True)
class SequenceState:
    """``committed`` holds ``n_tokens`` tokens and is never written to; ``checkpoints`` hold fewer.

    previous: how many tokens there were before the last decode call, and their state, if the call may be taken back.
    """

    committed: StateBuffer
    n_tokens: int
    checkpoints: dict[int, StateBuffer] = field(default_factory=dict)
    previous: tuple[int, StateBuffer] | None = None

    def buffers(self) -> list[StateBuffer]:
        """All that it owns."""
        return [self.committed, *self.checkpoints.values(), *([self.previous[1]] if self.previous else [])]

    def points(self) -> dict[int, StateBuffer]:
        """The states that it can go back to, by their tokens."""
        return {**self.checkpoints, **dict([self.previous] if self.previous else [])}

    def after(self, n_tokens: int) -> StateBuffer | None:
        """The state that has seen the first ``n_tokens`` tokens, if there is one."""
        return self.committed if n_tokens == self.n_tokens else self.points().get(n_tokens)

    def can_remove(self, p0: int, p1: int) -> bool:
        """Nothing, everything, or back to one of the points."""
        start, stop = clamp(p0, p1, self.n_tokens)
        if start >= stop or start == 0:
            return start >= stop or stop == self.n_tokens
        return stop == self.n_tokens and start in self.points()

    def can_copy(self, p0: int, p1: int) -> bool:
        """From the start, up to the end or to one of the points."""
        start, stop = clamp(p0, p1, self.n_tokens)
        return start >= stop or (start == 0 and self.after(stop) is not None)

    def last_point(self, p_max: int) -> int:
        """The largest number of tokens up to ``p_max`` that there is a state of; 0: none."""
        return max((point for point in (*self.points(), self.n_tokens) if point <= p_max), default=0)


@dataclass(slots=True)
class WorkingState:
    """What a sequence becomes in a call in progress, after ``n_applied`` more tokens.

    keeps_previous: whether the call may be taken back once it is committed.
    """

    buffer: StateBuffer
    keeps_previous: bool
    n_applied: int = 0
    span_is_first: bool = True


class SequenceStates:
    """The sequences of a recurrent memory by id.

    A change is one assignment, to ``of`` or to one of its keys, so that whoever interrupts it finds the one or the
    other; a buffer that is lost on the way is freed by Python.
    """

    def __init__(self, pool: StatePool, max_checkpoints: int) -> None:
        self.of: dict[int, SequenceState] = {}
        self._pool = pool
        self._max_checkpoints = max_checkpoints

    def buffers(self) -> list[StateBuffer]:
        """Of all sequences, checkpoints included."""
        return [buffer for sequence in self.of.values() for buffer in sequence.buffers()]

    def go_back(self, seq_id: int, n_tokens: int) -> None:
        """To what was before the last call, or to a checkpoint, of which another copy is kept then."""
        before = self.of[seq_id]
        undoes_call = before.previous is not None and before.previous[0] == n_tokens
        state = before.points()[n_tokens]
        kept = {
            point: buffer for point, buffer in before.checkpoints.items() if point <= n_tokens and buffer is not state
        }
        after = self.of[seq_id] = SequenceState(state, n_tokens, kept)
        if undoes_call:
            self._pool.put_aside(before.committed)
        else:
            before.committed.copy_from(state)
            after.checkpoints[n_tokens] = before.committed
            if before.previous:
                self._pool.put_aside(before.previous[1])
        for point, buffer in before.checkpoints.items():
            if point > n_tokens:
                self._pool.free(buffer)

    def forget_previous(self, seq_id: int) -> None:
        """The last call cannot be taken back any more."""
        sequence = self.of.get(seq_id)
        if sequence and sequence.previous:
            buffer = sequence.previous[1]
            sequence.previous = None
            self._pool.put_aside(buffer)

    def checkpoint(self, seq_id: int) -> bool:
        """Keep a copy of the state, in place of the oldest if there are as many as may be; False without room."""
        sequence = self.of.get(seq_id)
        if sequence is None or sequence.n_tokens in sequence.checkpoints:
            return True
        if not self._max_checkpoints:
            return False
        if len(sequence.checkpoints) >= self._max_checkpoints:
            buffer = sequence.checkpoints.pop(min(sequence.checkpoints))
        else:
            try:
                buffer = self._pool.take()
            except CacheFull:
                return False
        buffer.copy_from(sequence.committed)
        sequence.checkpoints[sequence.n_tokens] = buffer
        return True

    def copy(self, seq_id: int, p0: int, p1: int) -> tuple[StateBuffer | None, int]:
        """A copy of the state after position ``p1 - 1``, and how many tokens it stands for. CacheFull."""
        sequence = self.of.get(seq_id)
        start, stop = clamp(p0, p1, sequence.n_tokens) if sequence else (0, 0)
        state = sequence.after(stop) if sequence and start < stop else None
        if state is None:
            return None, 0
        buffer = self._pool.take()
        buffer.copy_from(state)
        return buffer, stop

    def forget(self, seq_id: int) -> None:
        """Give its buffers back; after the last sequence the spare ones too."""
        sequence = self.of.pop(seq_id, None)
        for buffer in sequence.buffers() if sequence else []:
            self._pool.free(buffer)
        if not self.of:
            self._pool.free_spare()

    def check(self) -> None:
        """Assert every invariant of the bookkeeping."""
        for seq_id, sequence in self.of.items():
            assert sequence.n_tokens, f"sequence {seq_id} is empty"
            assert len(sequence.checkpoints) <= self._max_checkpoints
            assert all(0 < point <= sequence.n_tokens for point in sequence.checkpoints)
            assert sequence.previous is None or 0 < sequence.previous[0] < sequence.n_tokens


def clamp(p0: int, p1: int, end: int) -> tuple[int, int]:
    """The part of ``[p0, p1)`` that lies in ``[0, end)``; ``p1 = -1``: to the end."""
    return max(p0, 0), end if p1 < 0 else min(p1, end)
