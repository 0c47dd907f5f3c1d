"""What the benchmarks decode: arbitrary tokens, appended in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elastikv import LLM


def tokens(n_tokens: int, salt: int = 1) -> list[int]:
    """Fixed ids that every side's vocabulary has; two salts give prompts that begin differently."""
    return [(7919 * i + 104729 * salt) % 2000 + 10 for i in range(n_tokens)]


def append(llm: LLM, token_ids: Sequence[int], seq_id: int = 0) -> None:
    """Prefill ``token_ids`` behind what the sequence holds, ``n_batch`` at a time."""
    from elastikv.batch import Batch, SeqTokens

    for start in range(0, len(token_ids), llm.n_batch):
        llm.engine.decode(Batch([SeqTokens(seq_id, token_ids[start : start + llm.n_batch])]))
