"""Memory of a fixed size that really goes back to the system when it is let go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from typing_extensions import override

from elastikv.memory.growth import round_up
from elastikv.memory.storage import pages


class Block(Protocol):
    """Memory of a fixed size: ``data`` is a uint8 tensor over all of it."""

    data: torch.Tensor
    has_pages: bool
    """Whether parts of it can be given back in place."""

    @property
    def committed(self) -> int:
        """Bytes that are backed by memory now."""
        ...

    def give_back(self, start: int, stop: int) -> None:
        """Give back all whole pages in bytes ``[start, stop)``, if it has pages."""
        ...

    def close(self) -> None:
        """Give all of it back; ``data`` must not be written any more."""
        ...


BlockAllocator = Callable[[int, torch.device, int], Block]
"""``(n_bytes, device, unused_front) -> Block``; the first ``unused_front`` bytes need no memory.

Raises MemoryError.
"""


class PageBlock(Block):
    """Anonymous pages, resident from the start: what was promised cannot fail later."""

    has_pages = True

    def __init__(self, n_bytes: int, unused_front: int = 0) -> None:
        n_bytes = round_up(n_bytes, pages.PAGE)
        self._region = pages.Region(n_bytes)
        self._start = unused_front // pages.PAGE * pages.PAGE
        self._stop = n_bytes
        self._region.commit(self._start, self._stop)
        self.data = self._region.data

    @property
    @override
    def committed(self) -> int:
        return self._stop - self._start

    @override
    def give_back(self, start: int, stop: int) -> None:
        """The range must reach to the block's front or to its end."""
        if start <= self._start:
            last = max(min(stop // pages.PAGE * pages.PAGE, self._stop), self._start)
            self._region.discard(self._start, last)
            self._start = last
        elif stop >= self._stop:
            first = min(round_up(start, pages.PAGE), self._stop)
            self._region.discard(first, self._stop)
            self._stop = first

    @override
    def close(self) -> None:
        self._region.close()
        self._start = self._stop


class TensorBlock(Block):
    """A plain torch allocation, for devices and systems without pages to give back."""

    has_pages = False

    def __init__(self, n_bytes: int, device: torch.device) -> None:
        try:
            with torch.inference_mode(False):
                self.data = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
        except RuntimeError as error:  # torch's own out-of-memory errors are RuntimeErrors
            raise MemoryError(str(error)) from error

    @property
    @override
    def committed(self) -> int:
        return len(self.data)

    @override
    def give_back(self, start: int, stop: int) -> None:
        """There are no pages."""

    @override
    def close(self) -> None:
        self.data = self.data[:0].clone()


def committed_size(n_bytes: int, device: torch.device, unused_front: int = 0) -> int:
    """What a block of ``n_bytes`` will have committed."""
    if _has_pages(device):
        return round_up(n_bytes, pages.PAGE) - unused_front // pages.PAGE * pages.PAGE
    return n_bytes


def allocate_block(n_bytes: int, device: torch.device, unused_front: int = 0) -> Block:
    """The best block for a device. All zeros."""
    return PageBlock(n_bytes, unused_front) if _has_pages(device) else TensorBlock(n_bytes, device)


def _has_pages(device: torch.device) -> bool:
    return device.type == "cpu" and pages.supported()
