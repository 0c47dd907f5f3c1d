"""The first run: plain torch serves while a process beside compiles the CPU kernels, then these do.

    NotCompiled   plain torch   plain torch   CPU kernels ...
        |                                     |
        +------ another process compiles -----+

Between two ubatches all that is known of a sequence is in its cells and states, so the kernels go on with what torch
has begun. Where they are on disk, they serve from the first step on, and no process is started.
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from typing_extensions import override

from elastikv.batch import Batch, UBatch
from elastikv.errors import format_bytes
from elastikv.kernels.base import AttentionPrecision, Kernels
from elastikv.kernels.cpu import norms
from elastikv.kernels.cpu.jit import NotCompiled, is_kept, only_compiled
from elastikv.kernels.reference import ReferenceKernels
from elastikv.memory import CellType
from elastikv.memory.machine import read_machine_memory
from elastikv.models.base import Output
from elastikv.models.decoder import Decoder, DecoderWeights
from elastikv.runtimes import rehearsal
from elastikv.runtimes.torch_runtime import TorchRuntime

_COMPILER_BYTES = 1 << 29
"""What a process that compiles holds at most: torch, numba, LLVM."""

_log = logging.getLogger(__name__)


def can_compile_beside() -> bool:
    """Whether another process can compile kernels for this one: it takes a Python, and a directory to keep them in."""
    return bool(sys.executable) and not getattr(sys, "frozen", False) and is_kept(norms.rms_norm)


class FirstRun(TorchRuntime):
    """A ``Runtime``. Plain torch computes, with the same weights, until all that the CPU kernels need is compiled.

    cells: types of K and V. attention_precision: of the CPU kernels. start: begins to compile, see ``Compiler``.
    """

    model: Decoder

    def __init__(
        self,
        model: Decoder,
        *arguments: Any,
        cells: tuple[CellType, CellType],
        attention_precision: AttentionPrecision = "auto",
        start: Callable[[bytes], Compiler] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, *arguments, **options)
        self._compiled_model = model
        self._cells = cells
        self._attention_precision = attention_precision
        self._start = start or Compiler
        self._compiler: Compiler | None = None
        self._may_compile = False

    def look_ahead(self, kernels: Kernels) -> None:
        """Begin to compile now if decoding would have to. kernels: the model's."""
        try:
            with only_compiled():
                rehearsal.rehearse(self._in_small, kernels, self._cells, [rehearsal.DECODE])
        except NotCompiled:
            self._begin()

    @override
    def decode(self, batch: Batch, output: Output = "logits") -> torch.Tensor:
        """Append the batch's tokens and compute them; see ``Runtime.decode``."""
        if self._compiler is None and not self._may_compile:
            try:
                with only_compiled():
                    return super().decode(batch, output)
            except NotCompiled:  # memory is as before
                self._begin()
        return super().decode(batch, output)

    @override
    def warm_up(self) -> None:
        """Wait for the compiler, if it is at work; what is missing after that is compiled here."""
        if self._compiler is not None:
            self._compiler.wait()
            self._end(self._compiler)
        self._may_compile = True

    @override
    def close(self) -> None:
        """Give all memory back, and compile no more."""
        if self._compiler is not None:
            self._compiler.close()
        super().close()

    @functools.cached_property
    def _in_small(self) -> DecoderWeights:
        return rehearsal.in_small(self._compiled_model.weights)

    @override
    def _compute(self, ubatch: UBatch, output: Output) -> torch.Tensor:
        """The rows of one ubatch, by what serves now. Plain torch leaves a core to the compiler."""
        if self._compiler is not None and self._compiler.is_done():
            self._end(self._compiler)
        if self._compiler is None:
            return super()._compute(ubatch, output)
        n_threads = torch.get_num_threads()
        torch.set_num_threads(max(n_threads - 1, 1))
        try:
            return super()._compute(ubatch, output)
        finally:
            torch.set_num_threads(n_threads)

    def _begin(self) -> None:
        try:
            self._compiler = self._start(rehearsal.dumps((self._in_small, self._cells, self._attention_precision)))
        except OSError as error:
            _log.warning("no process can be started to compile CPU kernels beside (%s)", error)
            self._may_compile = True
            return
        self.model = Decoder(self._compiled_model.weights, ReferenceKernels())
        _log.warning("compiling CPU kernels in the background (first run only); plain torch serves until then")

    def _end(self, compiler: Compiler) -> None:
        self.model, self._may_compile = self._compiled_model, True
        self._compiler = None
        try:
            _log.info("the CPU kernels serve from now on (compiled in %.0f s)", compiler.seconds())
        except CompilerFailed as failure:
            _log.warning("CPU kernels were not compiled in the background: %s", failure)


class CompilerFailed(Exception):
    """What a process that was to compile said last."""


class Compiler:
    """A process that compiles; it ends with this one, however that ends. task: what ``rehearsal`` reads.

    Raises OSError where it cannot be started.
    """

    def __init__(self, task: bytes, module: str = rehearsal.__name__) -> None:
        if read_machine_memory().available_bytes < _COMPILER_BYTES:
            raise OSError(f"it takes up to {format_bytes(_COMPILER_BYTES)} of memory, and the machine has less left")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115, closed by close()
        path = os.pathsep.join(str(entry) or os.getcwd() for entry in sys.path)
        pipe, held = os.pipe()
        self._held = open(held, "wb")  # noqa: SIM115, its other end is closed with it
        try:
            with tempfile.TemporaryFile() as file:
                file.write(task)
                file.seek(0)
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, str(pipe)],
                    stdin=file,
                    stdout=self._said,
                    stderr=self._said,
                    env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
                    pass_fds=(pipe,),
                    start_new_session=True,  # Ctrl-C is for this process
                )
        finally:
            os.close(pipe)

    def is_done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._process.poll() is not None

    def wait(self) -> None:
        """Wait until it has ended."""
        self._process.wait()

    def seconds(self) -> float:
        """How long it took, once it has ended. Raises CompilerFailed."""
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().rpartition("\n")[2]
        code = self._process.returncode
        self.close()
        if code:
            raise CompilerFailed(f"{last or 'no reason given'} (exit status {code})")
        return float(last)

    def close(self) -> None:
        """End the process, if it has not ended; may be called again."""
        self._process.kill()
        self._process.wait()
        self._held.close()
        self._said.close()
