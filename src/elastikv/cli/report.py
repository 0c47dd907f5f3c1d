"""What a run tells about its memory: the table at the end, the gauge of a prompt, a line per resize."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from elastikv.errors import format_bytes

if TYPE_CHECKING:
    from elastikv import LLM
    from elastikv.engine.outputs import GenerationOutput
    from elastikv.memory import MemoryStats


def print_stats(llm: LLM, output: GenerationOutput, load_seconds: float) -> None:
    """A table on stderr, so that standard output holds nothing but the text."""
    from rich.console import Console
    from rich.table import Table

    stats = llm.stats()
    timings = output.timings
    static = llm.static_bytes()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for label, value in (
        ("load", f"{load_seconds:.2f} s"),
        ("prompt", f"{output.prompt_tokens} tokens, {_rate(timings.prompt_n, timings.prompt_seconds)}"),
        ("generated", f"{timings.predicted_n} tokens, {_rate(timings.predicted_n, timings.predicted_seconds)}"),
        ("cells", f"{stats.used_cells} used, capacity {stats.capacity_cells} of {llm.n_ctx}"),
        ("KV committed", f"{format_bytes(stats.committed_bytes)}, peak {format_bytes(stats.peak_committed_bytes)}"),
        ("with --no-kv-dynamic", f"{format_bytes(static)} ({_times(static, stats.committed_bytes)})"),
        ("compute buffers", format_bytes(stats.compute_bytes)),
        ("budget", "none" if stats.budget_bytes is None else format_bytes(stats.budget_bytes)),
        ("resizes", resizes(stats)),
    ):
        table.add_row(label, value)
    Console(stderr=True, highlight=False).print(table)


def resizes(stats: MemoryStats) -> str:
    """``12 in 3.4 ms``; what a first capacity costs is no resize, and not told."""
    return f"{stats.n_resizes} in {stats.resize_seconds * 1e3:.1f} ms" if stats.n_resizes else "none"


def gauge(llm: LLM, width: int = 10) -> str:
    """``[####      ] 12 MiB of 4 GiB``: committed bytes against the smaller of the budget and a static cache."""
    stats = llm.stats()
    ceiling = llm.static_bytes()
    if stats.budget_bytes is not None:
        ceiling = min(ceiling, stats.budget_bytes)
    filled = filled_columns(stats.committed_bytes, ceiling, width)
    bar = "#" * filled + "." * (width - filled)
    return f"[{bar}] {format_bytes(stats.committed_bytes)} of {format_bytes(ceiling)}"


def filled_columns(n_bytes: int, ceiling: int, width: int) -> int:
    """Columns of a bar of ``width`` that are full: one is, as soon as there is anything."""
    return min(width, -(-n_bytes * width // max(ceiling, 1)))


class ResizeLog:
    """Prints a line whenever the memory has resized since the last look."""

    def __init__(self, llm: LLM, *, enabled: bool) -> None:
        self._llm = llm
        self._enabled = enabled
        self._before = llm.stats()

    def update(self) -> None:
        """Print what has changed since the last call."""
        if not self._enabled:
            return
        now, before = self._llm.stats(), self._before
        if now.n_resizes != before.n_resizes:
            print(
                f"[kv] {before.capacity_cells} -> {now.capacity_cells} cells, "
                f"{format_bytes(before.committed_bytes)} -> {format_bytes(now.committed_bytes)}, "
                f"{(now.resize_seconds - before.resize_seconds) * 1e3:.2f} ms",
                file=sys.stderr,
            )
        self._before = now


def _rate(n_tokens: int, seconds: float) -> str:
    return f"{n_tokens / seconds:.1f} tok/s" if seconds > 0 else "no time"


def _times(whole: int, part: int) -> str:
    return f"{whole / part:.1f} times as much" if part else "nothing is held now"
