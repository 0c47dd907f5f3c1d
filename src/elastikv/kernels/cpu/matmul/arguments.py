"""What the skinny products have in common: how they are told of a weight and of x, and how far they prefetch."""

from __future__ import annotations

Matrix = tuple[int, int, int, int, int]
"""A weight: its address, bytes between its rows, n_out, n_in, address of the bias (0: none)."""

Activations = tuple[int, int, int, int, int]
"""The rows of x: their address, bytes between them, how many; the address of out, bytes between its rows."""

ROWS_PER_JOB = 16
"""Weight rows that a thread takes at a time."""

WEIGHTS_PREFETCH = 4096
"""Bytes that prefetching is ahead of reading weights; their rows follow each other in memory."""
