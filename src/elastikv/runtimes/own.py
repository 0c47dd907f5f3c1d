"""The runtime "elastikv": the architectures in ``models/``, on our kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from elastikv.kernels import Kernels, select_kernels
from elastikv.memory import MemoryCost, MemoryOptions
from elastikv.memory.base import LayerMemory
from elastikv.models import LoadedModel, load_model, memory_layers, read_config
from elastikv.runtimes.base import RuntimeOptions
from elastikv.runtimes.torch_runtime import TorchRuntime, open_runtime


class OwnSource:
    """A ``Source``: a Hugging Face folder, a GGUF file, or a ``config.json`` alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.config = read_config(path)

    def memory_layers(self) -> Sequence[LayerMemory]:
        """What each layer asks of memory, in layer order."""
        return memory_layers(self.config)

    def cost(self, options: MemoryOptions) -> MemoryCost:
        """What sequences commit."""
        return MemoryCost(self.memory_layers(), options)

    def load(self, options: RuntimeOptions) -> TorchRuntime:
        """Read the weights and open the memory. Raises ModelError, InvalidRequest, CacheFull."""
        kernels = select_kernels(options.kernels, options.device, options.attention_precision)
        use_threads = partial(_set_threads, kernels)
        if options.n_threads is not None:
            use_threads(options.n_threads)
        loaded = load_model(
            self._path, dtype=options.dtype, quantize=options.quantize, kernels=kernels, progress=options.progress
        )
        # Who asks for the cpu kernels by name waits for them.
        if kernels.name == "cpu" and options.kernels == "auto" and _can_compile_beside():
            return _open_at_once(loaded, options, use_threads, kernels)
        return open_runtime(loaded.model, loaded.tokenizer, options, use_threads)


def _can_compile_beside() -> bool:
    from elastikv.runtimes.first_run import can_compile_beside

    return can_compile_beside()


def _open_at_once(
    loaded: LoadedModel, options: RuntimeOptions, use_threads: Callable[[int], None], kernels: Kernels
) -> TorchRuntime:
    """Decode without waiting for the cpu kernels to be compiled."""
    from elastikv.runtimes.first_run import FirstRun

    cells = options.memory.k_type, options.memory.v_type
    make = partial(FirstRun, cells=cells, attention_precision=options.attention_precision)
    runtime = open_runtime(loaded.model, loaded.tokenizer, options, use_threads, make)
    runtime.look_ahead(kernels)
    return runtime


def _set_threads(kernels: Kernels, n_threads: int) -> None:
    """Torch and the kernels take turns on the same number of cores."""
    if kernels.name == "cpu":
        from elastikv.kernels.cpu.threads import set_threads

        set_threads(n_threads)
    else:
        torch.set_num_threads(n_threads)
