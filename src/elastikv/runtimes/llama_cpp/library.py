"""llama.cpp's C interface, through ``llama_cpp``'s low-level module: loading it, what it says, its devices.

``model.py`` and ``context.py`` call the rest of it, no other file does. Errors of C become exceptions there.
"""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

from elastikv.errors import NotInstalled
from elastikv.memory.machine import MachineMemory

_DISCRETE = 1
"""GGML_BACKEND_DEVICE_TYPE_GPU: a device that may have memory of its own."""

_UNIFIED = ("MTL", "Metal")
"""How devices are called that say they are discrete but compute in the host's memory."""


_MOST_LINES = 4096


@functools.cache
def load_library() -> Any:
    """``llama_cpp``'s low-level module. Raises NotInstalled."""
    try:
        import llama_cpp.llama_cpp as library
    except ImportError:
        raise NotInstalled("llama.cpp is not installed: pip install elastikv[llama-cpp]") from None
    except (OSError, RuntimeError) as error:
        raise NotInstalled(f"llama.cpp is broken ({error}): pip install --force-reinstall llama-cpp-python") from None
    LOG.install(library)
    library.llama_backend_init()
    return library


class Log:
    """What llama.cpp says while something is made: how large buffers are, and why it failed."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._callback: Any = None

    @property
    def text(self) -> str:
        """All that it has said since the last ``clear``."""
        return "".join(self._lines)

    def install(self, library: Any) -> None:
        """Listen to it, instead of letting it print."""

        @library.llama_log_callback  # type: ignore[untyped-decorator]
        def callback(level: int, text: bytes, user_data: Any) -> None:
            self._lines.append(text.decode(errors="replace"))

        self._callback = callback  # C keeps no reference
        library.llama_log_set(callback, ctypes.c_void_p(0))

    def clear(self) -> None:
        """Forget what it has said."""
        self._lines.clear()

    def reason(self) -> str:
        """The first thing that it said of a failure; what follows says only that there was one."""
        failures = [line for line in self.text.splitlines() if "fail" in line or "error" in line]
        return failures[0].strip() if failures else "no reason given"


LOG = Log()


def has_device() -> bool:
    """Whether this build can compute anywhere but on the processor."""
    return bool(load_library().llama_supports_gpu_offload())


@functools.cache
def device_pools() -> dict[str, Callable[[], MachineMemory]]:
    """Devices with memory of their own, as buffers name them, and what asks each how much it has and has left."""
    load_library()
    from llama_cpp._ggml import libggml

    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    libggml.ggml_backend_dev_get.argtypes, libggml.ggml_backend_dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
    for function, result in (("name", ctypes.c_char_p), ("type", ctypes.c_int)):
        of_device = getattr(libggml, f"ggml_backend_dev_{function}")
        of_device.argtypes, of_device.restype = [ctypes.c_void_p], result
    sizes = [ctypes.POINTER(ctypes.c_size_t)] * 2
    libggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *sizes]
    pools: dict[str, Callable[[], MachineMemory]] = {}
    for index in range(libggml.ggml_backend_dev_count()):
        device = libggml.ggml_backend_dev_get(index)
        name = libggml.ggml_backend_dev_name(device).decode()
        if libggml.ggml_backend_dev_type(device) == _DISCRETE and not name.startswith(_UNIFIED):
            pools[name] = functools.partial(_device_memory, libggml, device)
    return pools


def _device_memory(libggml: Any, device: int) -> MachineMemory:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    libggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return MachineMemory(total.value, free.value)
