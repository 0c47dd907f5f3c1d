"""One context of llama.cpp: cells that sequences share, and what computes in them."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from elastikv.errors import UnsupportedModel
from elastikv.memory.budget import HOST
from elastikv.runtimes.llama_cpp.library import LOG, device_pools, load_library
from elastikv.runtimes.llama_cpp.model import Model

CELL_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
"""ggml's numbers of the types that cells may have."""

_FLASH_ATTENTION_ON = 1
"""Pinned, and not left to llama.cpp: a saved state is read only by a context that attends in the same way."""

_PARTIAL = 1
"""LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: what cannot be taken back token by token (recurrent states, window caches)."""

_ROTATED = ("f32", "f16")
"""Types of K that it rotates to other positions; with others that would end the process."""

MOST_SEQUENCES = 256
"""LLAMA_MAX_SEQ: sequences that one context can tell apart."""

_BUFFER = re.compile(r"(?P<buffer>\S+)\s+(?P<what>KV|RS|compute|output) buffer size =\s+(?P<mib>[0-9.]+) MiB")
_CACHE = re.compile(r"llama_kv_cache: size =\s+(?P<mib>[0-9.]+) MiB")


@dataclass(frozen=True, slots=True)
class ContextSize:
    """What a context has room for."""

    n_cells: int
    n_sequences: int


@dataclass(frozen=True, slots=True)
class ContextBytes:
    """What a context holds, by the pool of memory where it lies: cells, recurrent states, compute buffers."""

    cells: Mapping[str, int]
    states: Mapping[str, int]
    compute: Mapping[str, int]

    @property
    def kv(self) -> int:
        """Cells and states in all pools."""
        return sum(self.cells.values()) + sum(self.states.values())

    def by_pool(self) -> Counter[str]:
        """All of it."""
        return Counter(self.cells) + Counter(self.states) + Counter(self.compute)


NOTHING = ContextBytes({}, {}, {})


class Context:
    """A context of a model: cells that all of its sequences share. Sequences are numbered from 0."""

    _handle: Any = None
    _batch: Any = None

    def __init__(
        self, model: Model, size: ContextSize, n_ubatch: int, k_type: str, v_type: str, n_threads: int
    ) -> None:
        """Raises MemoryError if llama.cpp makes none."""
        self._library = library = load_library()
        params = library.llama_context_default_params()
        params.n_ctx, params.n_seq_max = size.n_cells, size.n_sequences
        params.n_batch = params.n_ubatch = min(n_ubatch, size.n_cells)
        params.type_k, params.type_v = CELL_TYPES[k_type], CELL_TYPES[v_type]
        self._k_type = k_type
        params.flash_attn_type = _FLASH_ATTENTION_ON
        params.kv_unified = params.no_perf = True
        params.swa_full = False
        params.n_threads = params.n_threads_batch = n_threads
        model.contexts.add(self)
        LOG.clear()
        self._handle = library.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise MemoryError(f"llama.cpp makes no context of {size.n_cells} cells: {LOG.reason()}")
        self.size = ContextSize(int(library.llama_n_ctx(self._handle)), size.n_sequences)
        self.n_batch = int(params.n_batch)
        self.n_bytes = _bytes_in(LOG.text)
        self._memory = library.llama_get_memory(self._handle)
        if not self._memory:
            raise UnsupportedModel("this model makes embeddings; only models that continue a text are served")
        self._n_vocab = model.n_vocab
        self._batch = library.llama_batch_init(self.n_batch, 0, 1)

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> np.ndarray:
        """Compute up to ``n_batch`` tokens ``(id, position, sequence, wants logits)``; float32 ``[n_wanted, n_vocab]``.

        Raises RuntimeError if llama.cpp does not.
        """
        batch = self._batch
        batch.n_tokens = len(tokens)
        for row, (token, position, sequence, wants) in enumerate(tokens):
            batch.token[row], batch.pos[row], batch.logits[row] = token, position, wants
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        LOG.clear()
        code = self._library.llama_decode(self._handle, batch)
        if code:
            raise RuntimeError(f"llama.cpp could not decode {len(tokens)} tokens (code {code}): {LOG.reason()}")
        wanted = [row for row, token in enumerate(tokens) if token[3]]
        logits = np.empty((len(wanted), self._n_vocab), dtype=np.float32)
        for index, row in enumerate(wanted):
            pointer = self._library.llama_get_logits_ith(self._handle, row)
            if not pointer:
                raise RuntimeError("llama.cpp has computed no logits")
            logits[index] = np.ctypeslib.as_array(pointer, shape=(self._n_vocab,))
        return logits

    # Sequences

    def remove(self, sequence: int, p0: int, p1: int = -1) -> bool:
        """Remove positions ``[p0, p1)``; False if they cannot be, with nothing changed."""
        return bool(self._library.llama_memory_seq_rm(self._memory, sequence, p0, p1))

    def copy(self, source: int, target: int, stop: int) -> None:
        """Let ``target``, an empty sequence, share the first ``stop`` positions of another."""
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, stop)

    @property
    def can_shift(self) -> bool:
        """Whether K can be rotated to other positions."""
        return self._k_type in _ROTATED and bool(self._library.llama_memory_can_shift(self._memory))

    def close_gap(self, sequence: int, p0: int, p1: int, stop: int) -> None:
        """Remove ``[p0, p1)`` and move ``[p1, stop)`` down: all that follow, in cells of this sequence alone."""
        self.remove(sequence, p0, p1)
        self._library.llama_memory_seq_add(self._memory, sequence, p1, -1, p0 - p1)
        # K is rotated by the next decode, and a state that is saved before would say that it was. So that one is now.
        end = stop - (p1 - p0)
        self.decode([(0, end, sequence, False)])
        self.remove(sequence, end)

    def last_position(self, sequence: int) -> int:
        """The largest position that it holds, -1 if there is none."""
        return int(self._library.llama_memory_seq_pos_max(self._memory, sequence))

    # States

    def state_bytes(self) -> int:
        """Of everything that all sequences hold."""
        return int(self._library.llama_state_get_size(self._handle))

    def state(self) -> np.ndarray:
        """Everything that all sequences hold, uint8."""
        return self._read(self.state_bytes(), self._library.llama_state_get_data)

    def restore(self, state: np.ndarray) -> None:
        """Hold what another context held. Raises RuntimeError where it has no room, or other cells."""
        self._write(state, self._library.llama_state_set_data)

    def sequence_state(self, sequence: int, *, partial: bool = False) -> np.ndarray:
        """What one sequence holds, uint8. partial: only what cannot be taken back."""
        flags = _PARTIAL if partial else 0
        n_bytes = int(self._library.llama_state_seq_get_size_ext(self._handle, sequence, flags))
        return self._read(n_bytes, self._library.llama_state_seq_get_data_ext, sequence, flags)

    def restore_sequence(self, sequence: int, state: np.ndarray, *, partial: bool = False) -> None:
        """Let a sequence hold this. Raises RuntimeError if it cannot; the sequence is empty then."""
        flags = _PARTIAL if partial else 0
        self._write(state, self._library.llama_state_seq_set_data_ext, sequence, flags)

    def _read(self, n_bytes: int, get: Any, *more: int) -> np.ndarray:
        state = np.empty(n_bytes, dtype=np.uint8)
        n_read = int(get(self._handle, _pointer(state), n_bytes, *more))
        if n_read > n_bytes or (n_bytes and not n_read):
            raise RuntimeError("llama.cpp could not say what it holds")
        return state[:n_read]

    def _write(self, state: np.ndarray, put: Any, *more: int) -> None:
        if int(put(self._handle, _pointer(state), len(state), *more)) != len(state):
            raise RuntimeError(f"llama.cpp does not take a state of {len(state)} bytes back: {LOG.reason()}")

    # The rest

    def set_threads(self, n_threads: int) -> None:
        """Compute on so many cores from now on."""
        self._library.llama_set_n_threads(self._handle, n_threads, n_threads)

    def __del__(self) -> None:  # of an interrupted swap
        self.close()

    def close(self) -> None:
        """Give everything back. May be called again."""
        if self._handle:
            handle, self._handle = self._handle, None
            if self._batch is not None:
                self._library.llama_batch_free(self._batch)
            self._library.llama_free(handle)


def _pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _bytes_in(text: str) -> ContextBytes:
    """From what llama.cpp says when it makes a context. Cells that are only simulated are in one pool."""
    sizes: dict[str, Counter[str]] = {what: Counter() for what in ("KV", "RS", "compute", "output")}
    for found in _BUFFER.finditer(text):
        pool = found["buffer"] if found["buffer"] in device_pools() else HOST
        sizes[found["what"]][pool] += _mib(found)
    simulated = sum(map(_mib, _CACHE.finditer(text)))
    cells = sizes["KV"] if sizes["KV"].total() else Counter({next(iter(sizes["KV"]), HOST): simulated})
    return ContextBytes(cells, sizes["RS"], sizes["compute"] + sizes["output"])


def _mib(found: re.Match[str]) -> int:
    return round(float(found["mib"]) * (1 << 20))
