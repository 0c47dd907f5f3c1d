"""The runtime "llama.cpp": any GGUF that llama.cpp runs, on any device that it has."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from elastikv.batch import Batch
from elastikv.errors import InvalidRequest, UnsupportedModel
from elastikv.memory import MemoryOptions
from elastikv.memory.growth import round_up
from elastikv.models.base import ModelInfo, Output
from elastikv.models.checkpoint import existing
from elastikv.runtimes.base import RuntimeOptions
from elastikv.runtimes.llama_cpp.context import CELL_TYPES, Context, ContextSize
from elastikv.runtimes.llama_cpp.cost import CELLS, LlamaCppCost, Simulation
from elastikv.runtimes.llama_cpp.growing import GrowingContext
from elastikv.runtimes.llama_cpp.library import device_pools, has_device, load_library
from elastikv.runtimes.llama_cpp.memory import LlamaCppMemory
from elastikv.runtimes.llama_cpp.model import Model
from elastikv.runtimes.llama_cpp.tokenizer import LlamaCppBackend
from elastikv.weights.gguf.file import read_gguf_header
from elastikv.weights.gguf.header import GGUFHeader
from elastikv.weights.tokenizer import Tokenizer

_FIRST_SEQUENCES = 4
"""Sequences that the first context tells apart; it is replaced when there are more. A state is never spared."""

_PLANNED_UBATCH = 512
_FINGERPRINT_BYTES = 1 << 20
_SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}


class LlamaCppConfig(NamedTuple):
    """What a GGUF's header says."""

    name: str
    architecture: str
    n_ctx_train: int


class LlamaCppSource:
    """A ``Source``: a GGUF file."""

    def __init__(self, path: Path) -> None:
        path = existing(path)
        if path.suffix != ".gguf":
            raise UnsupportedModel(f"{path}: llama.cpp runs GGUF files only")
        load_library()
        self._path = path
        self._header = read_gguf_header(path)
        header = self._header
        n_ctx_train = int(header.of_architecture("context_length", 2048))
        self.config = LlamaCppConfig(header.name, header.architecture, n_ctx_train)

    def cost(self, options: MemoryOptions) -> LlamaCppCost:
        """What sequences commit: llama.cpp is asked, with no weights read. Raises ModelError."""
        return LlamaCppCost(Simulation(Model(self._path, 0, simulate=True), options, _PLANNED_UBATCH), options)

    def load(self, options: RuntimeOptions) -> LlamaCppRuntime:
        """Read the weights and make the first context. Raises ModelError, InvalidRequest, CacheFull."""
        _check(options)
        with ExitStack() as unless_opened:
            model = unless_opened.enter_context(closing(Model(self._path, options.n_gpu_layers)))
            simulated = unless_opened.enter_context(closing(Model(self._path, options.n_gpu_layers, simulate=True)))
            simulation = Simulation(simulated, options.memory, options.n_ubatch)
            runtime = LlamaCppRuntime(model, simulation, self._info(model), self._tokenizer(model), options)
            unless_opened.pop_all()
        return runtime

    def _info(self, model: Model) -> ModelInfo:
        config = self.config
        return ModelInfo(
            architecture=config.architecture,
            name=config.name,
            n_layers=model.n_layers,
            n_vocab=model.n_vocab,
            n_ctx_train=config.n_ctx_train,
            eos_token_ids=model.end_tokens(),
            weight_bytes=model.n_bytes,
            fingerprint=_fingerprint(self._path),
        )

    def _tokenizer(self, model: Model) -> Tokenizer:
        header = self._header
        template = header.metadata.get("tokenizer.chat_template")
        return Tokenizer(
            LlamaCppBackend(model) if header.strings("tokenizer.ggml.tokens") else None,
            eos_token_ids=model.end_tokens(),
            chat_template=template,
            special_tokens=_special_tokens(header),
        )


class LlamaCppModel(NamedTuple):
    """What those above a runtime know of a model."""

    info: ModelInfo


class LlamaCppRuntime:
    """A ``Runtime`` over a context that is replaced when it is too small."""

    def __init__(
        self, model: Model, simulation: Simulation, info: ModelInfo, tokenizer: Tokenizer, options: RuntimeOptions
    ) -> None:
        memory = options.memory
        self._library_model = model
        self._simulation = simulation
        self.model = LlamaCppModel(info)
        self.tokenizer = tokenizer
        self.n_ubatch = options.n_ubatch
        self._n_threads = options.n_threads or torch.get_num_threads()
        if options.n_gpu_layers:
            for pool, machine in device_pools().items():
                options.budget.add_pool(pool, machine)
        first = min(memory.initial, memory.n_ctx) if memory.dynamic else memory.n_ctx
        make = partial(self._make_context, memory, options.n_ubatch)
        size = ContextSize(round_up(first, CELLS), 1 if simulation.has_states else _FIRST_SEQUENCES)
        self._contexts = options.make_room_for(lambda: GrowingContext(make, simulation.n_bytes, size, options.budget))
        self.cost = LlamaCppCost(simulation, memory)
        self.memory = LlamaCppMemory(
            self._contexts, memory, options.budget, cuts_anywhere=model.cuts_anywhere, name=info.architecture
        )

    def decode(self, batch: Batch, output: Output = "logits") -> torch.Tensor:
        """See ``Runtime.decode``. A call that fails in llama.cpp forgets sequences whose state cannot go back."""
        if output != "logits":
            raise InvalidRequest("embeddings are not served for a model that runs through llama.cpp")
        memory = self.memory
        n_outputs = sum(entry.n_logits for entry in batch.entries)
        logits = torch.empty((n_outputs, self.model.info.n_vocab))
        n_done = 0
        try:
            for ubatch in memory.init_batch(batch, self.n_ubatch):
                memory.apply(ubatch)
                wanted = set(ubatch.output_rows.tolist())
                tokens = [
                    (int(ubatch.token_ids[row]), int(ubatch.positions[row]), memory.number(span.seq_id), row in wanted)
                    for span in ubatch.spans
                    for row in range(span.start, span.stop)
                ]
                rows = self._contexts.now.decode(tokens)
                logits[n_done : n_done + len(rows)] = torch.from_numpy(rows)
                n_done += len(rows)
            memory.commit()
        except BaseException:
            memory.rollback()
            raise
        return logits

    def warm_up(self) -> None:
        """Nothing: all that computes is compiled."""

    def set_threads(self, n_threads: int) -> None:
        """Compute on so many cores, whichever thread calls."""
        self._n_threads = n_threads
        self._contexts.set_threads(n_threads)

    def close(self) -> None:
        """Free the context, then the weights."""
        self.memory.close()
        self._simulation.close()
        self._library_model.close()

    def _make_context(self, memory: MemoryOptions, n_ubatch: int, size: ContextSize) -> Context:
        return Context(self._library_model, size, n_ubatch, memory.k_type, memory.v_type, self._n_threads)


def _check(options: RuntimeOptions) -> None:
    """Refuse what llama.cpp has no part in, and what would end the process in C."""
    memory = options.memory
    asked = {
        "dtype": options.dtype != "auto",
        "quantize": options.quantize not in (None, "none"),
        "kernels": options.kernels != "auto",
        "attention_precision": options.attention_precision != "auto",
        "kv_storage": memory.storage != "auto",
    }
    if any(asked.values()):
        names = ", ".join(name for name, is_asked in asked.items() if is_asked)
        raise InvalidRequest(f"{names}: not with the runtime llama.cpp, which runs the file as it is; leave it out")
    for cell_type in (memory.k_type, memory.v_type):
        if cell_type not in CELL_TYPES:
            raise InvalidRequest(f"kv_dtype (-ctk, -ctv) must be one of {', '.join(CELL_TYPES)}, got {cell_type!r}")
    if options.n_gpu_layers and not has_device():
        raise InvalidRequest(
            f"n_gpu_layers (-ngl) is {options.n_gpu_layers}, but this llama-cpp-python has no device: build it for "
            "one, for instance with CMAKE_ARGS=-DGGML_CUDA=on"
        )


def _special_tokens(header: GGUFHeader) -> dict[str, str]:
    tokens = header.strings("tokenizer.ggml.tokens")
    ids = {name: header.metadata.get(f"tokenizer.ggml.{key}") for name, key in _SPECIAL.items()}
    return {name: tokens[token] for name, token in ids.items() if token is not None and token < len(tokens)}


def _fingerprint(path: Path) -> str:
    """Of the file's size, its beginning and its end."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"llama.cpp {size}".encode())
    with path.open("rb") as file:
        digest.update(file.read(_FINGERPRINT_BYTES))
        file.seek(max(size - _FINGERPRINT_BYTES, 0))
        digest.update(file.read())
    return digest.hexdigest()
