"""Compilation of the kernels: once per machine, kept on disk where a directory can be written."""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import functools
import glob
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, NullCache

_log = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., Any])

_only_compiled = contextvars.ContextVar("only_compiled", default=False)


class NotCompiled(Exception):
    """A kernel is not compiled for what it was called with, and was not to be."""


@contextlib.contextmanager
def only_compiled() -> Iterator[None]:
    """Within it NotCompiled is raised instead of compiling a kernel; what is on disk is loaded."""
    token = _only_compiled.set(True)
    try:
        yield
    finally:
        _only_compiled.reset(token)


def is_kept(function: Any) -> bool:
    """Whether a kernel, once compiled, is kept on disk for other processes."""
    return kept_in(function) is not None


def kept_in(function: Any) -> Path | None:
    """The folder that a kernel is kept in; None: it is not kept, or no kernel."""
    cache = getattr(function, "_cache", None)
    return Path(cache.cache_path) if isinstance(cache, _PackageCache) else None


def compiled_files(folder: Path) -> list[Path]:
    """What is kept there of these very sources."""
    return list(folder.glob(f"*.{_stamp(sources_digest())}.*.nbc"))


def _stamp(digest: str) -> str:
    return digest[:16]


@functools.cache
def sources_digest(folder: Path = Path(__file__).parent) -> str:
    """Changes with any source file in a package's folder and the folders in it, and with where these files are.

    Kernels are compiled together with the helpers that they inline, so each is stale with any of them.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _PackageCacheImpl(CompileResultCacheImpl):
    """numba's cache, but stale as soon as any source of the package has changed, not only the kernel's own."""

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        self.locator.get_source_stamp = sources_digest


@functools.cache
def _announce() -> None:
    """Tell, once, why nothing happens for some seconds."""
    _log.warning("compiling CPU kernels (first run only) ...")


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Files(IndexDataCacheFile):
    """numba's files, but data files tell by their names, too, which sources they are of.

    numba numbers them from 1 for every new source, and writes the list of what there is before the data. Who reads in
    between, or after a process that was killed there, would load what an older source was compiled to.
    """

    def __init__(self, cache_path: str, filename_base: str, source_stamp: str) -> None:
        super().__init__(cache_path, filename_base, source_stamp)
        self._data_name_pattern = f"{filename_base}.{_stamp(source_stamp)}.{{number:d}}.nbc"
        self._all_data = f"{glob.escape(filename_base)}.*.nbc"

    def save(self, key: Any, data: Any) -> None:
        if not self._load_index():
            for stale in Path(self._cache_path).glob(self._all_data):
                stale.unlink(missing_ok=True)
        super().save(key, data)


class _PackageCache(FunctionCache):
    _impl_class = _PackageCacheImpl

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, sources_digest())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        compiled = super().load_overload(sig, target_context)
        if compiled is None:
            if _only_compiled.get():
                raise NotCompiled(self._name)
            _announce()
        return compiled

    def save_overload(self, sig: Any, data: Any) -> None:
        """One process at a time: numba reads the list of what there is, and then writes it with one entry more."""
        self._impl.locator.ensure_cache_path()
        with _locked(self.cache_path):
            super().save_overload(sig, data)


class _NoCache(NullCache):
    def load_overload(self, sig: Any, target_context: Any) -> None:
        _announce()


def typed(decorator: Any) -> Callable[[_Function], _Function]:
    """A decorator of numba's as type checkers should see it: numba has no types, and would take the function's away."""
    return cast(Callable[[_Function], _Function], decorator)


def kernel(function: _Function) -> _Function:
    """Compile a function that Python calls: may use ``prange``, and is kept on disk.

    Where numba finds no directory to write to (next to the sources, then the user's cache), the
    kernel is compiled anew in each process.
    """
    return _kept(numba.njit(parallel=True, nogil=True, error_model="numpy")(function), function)


def fused(function: _Function) -> _Function:
    """Compile a function that Python calls and that calls kernels, one after the other. Kept on disk as these."""
    return _kept(numba.njit(nogil=True, error_model="numpy")(function), function)


def inlined(function: _Function) -> _Function:
    """Compile a helper that only kernels call."""
    return typed(numba.njit(nogil=True, error_model="numpy"))(function)


def _kept(dispatcher: Any, function: _Function) -> _Function:
    try:
        dispatcher._cache = _PackageCache(function)
    except RuntimeError:  # "no locator available": nothing is writable
        _log.info("no directory to keep the compiled kernel %s in", function.__name__)
        dispatcher._cache = _NoCache()
    return cast(_Function, dispatcher)
