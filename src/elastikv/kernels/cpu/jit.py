"""Compilation of the kernels: once per machine, kept on disk where a directory can be written."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.dispatcher import Dispatcher


@functools.cache
def _sources_digest() -> str:
    """Changes with any file of this package: a kernel is compiled together with the helpers it inlines."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _PackageCacheImpl(CompileResultCacheImpl):
    """numba's cache, but stale as soon as any source of the package has changed, not only the kernel's own."""

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        self.locator.get_source_stamp = _sources_digest


class _PackageCache(FunctionCache):
    _impl_class = _PackageCacheImpl


def kernel(function: Callable[..., Any]) -> Dispatcher:
    """Compile a function that Python calls: may use ``prange``, and is kept on disk.

    Where numba finds no directory to write to (next to the sources, then the user's cache), the
    kernel is compiled anew in each process.
    """
    dispatcher = numba.njit(parallel=True, nogil=True, error_model="numpy")(function)
    try:
        dispatcher._cache = _PackageCache(function)
    except RuntimeError:  # "no locator available": nothing writable
        return dispatcher
    return dispatcher


def inlined(function: Callable[..., Any]) -> Dispatcher:
    """Compile a helper that only kernels call."""
    return numba.njit(nogil=True, error_model="numpy")(function)


def is_cached(dispatcher: Dispatcher) -> bool:
    """Whether any compiled version of the kernel is in memory or, up to date, on disk."""
    if dispatcher.signatures:
        return True
    cache = dispatcher._cache
    return isinstance(cache, _PackageCache) and bool(cache._cache_file._load_index())


def kernels_of(module: Any) -> list[Dispatcher]:
    """The kernels that a module defines."""
    dispatchers = (value for _, value in inspect.getmembers(module) if isinstance(value, Dispatcher))
    return [dispatcher for dispatcher in dispatchers if dispatcher.targetoptions.get("parallel")]
