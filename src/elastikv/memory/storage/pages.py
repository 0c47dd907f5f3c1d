"""Anonymous memory in pages: reserve, commit, give back. Linux; elsewhere ``supported()`` is False.

A ``Region`` lives as long as any tensor over it: Python's mmap object owns the mapping and every
tensor holds that object. So a tensor that outlives its storage reads zeros, it does not crash.
After a fork both processes keep their own copy of what was written (the mapping is private).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import sys

import torch

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20

_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_MADV_POPULATE_WRITE = 23
_PROT_NONE = 0
_PROT_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE if sys.platform != "win32" else 3


def supported() -> bool:
    """Whether this system gives pages back on request the way Linux does."""
    return sys.platform == "linux"


class Region:
    """``n_bytes`` (whole pages) of address space; ``data`` is a uint8 tensor over all of it.

    Reserved only: a page costs nothing, and may not be touched if ``guarded``, until ``commit``.
    Raises MemoryError if the address space cannot be had.
    """

    def __init__(self, n_bytes: int, *, guarded: bool = False) -> None:
        if n_bytes <= 0 or n_bytes % PAGE:
            raise ValueError(f"a region needs whole pages, got {n_bytes} bytes")
        self.n_bytes = n_bytes
        self._guarded = guarded
        try:
            self._map = mmap.mmap(
                -1,
                n_bytes,
                flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE,
                prot=_PROT_READ_WRITE,
            )
        except OSError as error:
            raise MemoryError(f"{n_bytes} bytes of address space cannot be reserved: {error}") from error
        # A tensor made in inference mode could never be written outside of it.
        with torch.inference_mode(False):
            self.data = torch.frombuffer(self._map, dtype=torch.uint8)
        self.address = self.data.data_ptr()
        # A huge page would make a small stream resident far beyond what it asked for.
        self._advise("MADV_NOHUGEPAGE", 0, n_bytes)
        if guarded:
            _protect(self.address, n_bytes, _PROT_NONE)

    def commit(self, start: int, stop: int) -> None:
        """Back bytes ``[start, stop)`` (page-aligned) by memory, now. MemoryError: none of them is.

        Huge pages are asked for where whole ones lie inside the range, so none sticks out of it.
        """
        if start >= stop:
            return
        try:
            if self._guarded:
                _protect(self.address + start, stop - start, _PROT_READ_WRITE)
            first = -(-(self.address + start) // HUGE_PAGE) * HUGE_PAGE - self.address
            last = (self.address + stop) // HUGE_PAGE * HUGE_PAGE - self.address
            if first < last:
                self._advise("MADV_HUGEPAGE", first, last)
            self._populate(start, stop)
        except OSError as error:
            self.discard(start, stop)
            raise MemoryError(f"{stop - start} bytes cannot be committed: {error}") from error

    def discard(self, start: int, stop: int, *, keep_accessible: bool = False) -> None:
        """Give bytes ``[start, stop)`` (page-aligned) back to the system.

        ``keep_accessible``: a stray read sees zeros instead of being a fault.
        """
        if start >= stop:
            return
        self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)
        # Nobody may merge the hole into a huge page behind our back.
        self._advise("MADV_NOHUGEPAGE", start, stop)
        if self._guarded and not keep_accessible:
            _protect(self.address + start, stop - start, _PROT_NONE)

    def close(self) -> None:
        """Give all memory back at once; the address space goes with the last tensor."""
        self.discard(0, self.n_bytes, keep_accessible=True)
        if self._guarded:
            _protect(self.address, self.n_bytes, _PROT_READ_WRITE)

    def _populate(self, start: int, stop: int) -> None:
        try:
            self._map.madvise(_MADV_POPULATE_WRITE, start, stop - start)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.data[start:stop:PAGE] = 0  # kernels before 5.14: touch every page

    def _advise(self, name: str, start: int, stop: int) -> None:
        """Advice about huge pages; kernels built without them refuse it, and need none."""
        with contextlib.suppress(OSError):
            self._map.madvise(getattr(mmap, name), start, stop - start)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _protect(address: int, n_bytes: int, protection: int) -> None:
    if _libc().mprotect(address, n_bytes, protection):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
