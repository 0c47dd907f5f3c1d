"""The public face: a model with its memory, used from one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import torch

from elastikv.batch import Batch, SeqTokens
from elastikv.engine.events import EventLog
from elastikv.engine.loading import ModelOptions, cell_types, load, storage_kind
from elastikv.engine.options import SchedulerOptions
from elastikv.engine.outputs import Delta, GenerationOutput
from elastikv.engine.params import SamplingParams
from elastikv.engine.requests import Request, raise_if_failed
from elastikv.engine.scheduler import Scheduler
from elastikv.engine.sessions import FIRST_SEQ_ID
from elastikv.errors import InvalidRequest
from elastikv.memory import Budget, Memory, MemoryStats
from elastikv.models.base import Model

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A language model whose KV cache grows on demand.

        with LLM("path/to/model", n_ctx=131072) as llm:
            print(llm.generate("Once upon a time")[0].text)

    model: a Hugging Face folder or a GGUF file; None is the demo model.
    n_ctx: cells a sequence may ever have, an upper bound and no allocation; None: the model's own maximum.
    kv_dynamic: grow on demand; False commits all of n_ctx when a sequence starts.
    kv_growth: ``"double:1GiB"``, ``"step:256"``, ``"exact"``; None: what suits the storage.
    kv_initial: cells of a new sequence. kv_budget: ``"4GiB"``, bytes, ``"auto"`` or ``"none"``, for cells and
    compute buffers together. kv_storage: ``"auto"``, ``"mmap"`` or ``"copy"``.
    kv_dtype: type of the cells, ``"f32"``, ``"f16"``, ``"bf16"`` or ``"q8_0"``, or a pair for K and V.
    dtype, quantize: of the weights; see ``models.load_model``. n_batch: tokens of one decode call at most;
    n_ubatch: tokens computed at once. n_threads: None leaves torch's setting as it is.
    kernels: ``"auto"``, ``"cpu"`` or ``"reference"``. scheduler: how sequences share the memory.
    progress: called while loading with bytes read and bytes in all.

    Raises ModelError and its kinds, InvalidRequest, CacheFull.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        n_ctx: int | None = None,
        kv_dynamic: bool = True,
        kv_growth: str | None = None,
        kv_initial: int = 256,
        kv_budget: str | int | None = "auto",
        kv_storage: str = "auto",
        kv_dtype: str | tuple[str, str] = "f16",
        dtype: str = "auto",
        quantize: str | None = None,
        kernels: str = "auto",
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        scheduler: SchedulerOptions | None = None,
        progress: Callable[[int, int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        options = scheduler or SchedulerOptions()
        _check_sizes(n_batch, n_ubatch, options.n_parallel)
        memory_options = {
            "dynamic": kv_dynamic,
            "growth": kv_growth,
            "initial": kv_initial,
            "storage": storage_kind(kv_storage),
            **cell_types(kv_dtype),
        }
        self.events = EventLog(clock)
        self.budget = Budget.parse(kv_budget)
        model_options = ModelOptions(_model_path(model), dtype, quantize, kernels, n_threads, progress)
        loaded = load(model_options, memory_options, self.budget, n_ctx, n_ubatch, self.events)
        self.n_batch = n_batch
        self.n_ubatch = n_ubatch
        self.engine = loaded.engine
        self.tokenizer = loaded.tokenizer
        self.cost = loaded.cost
        self._workspace = loaded.workspace
        self.scheduler = Scheduler(
            self.engine,
            self.tokenizer,
            self.budget,
            self.cost,
            options,
            self.events,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            clock=clock,
        )

    @property
    def model(self) -> Model:
        return self.engine.model

    @property
    def memory(self) -> Memory:
        return self.engine.memory

    @property
    def n_ctx(self) -> int:
        return self.memory.n_ctx

    # Generating

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[GenerationOutput]:
        """Complete prompts (texts or token ids), as many at once as the scheduler allows; outputs in their order.

        params: for all, or one for each. Raises InvalidRequest or PromptTooLong before anything is computed;
        CacheFull or GenerationCut if the budget cannot hold even one of them alone.
        """
        tokens = [self._tokens(prompt) for prompt in _as_prompts(prompts)]
        each = _one_for_each(params, len(tokens))
        for token_ids, param in zip(tokens, each, strict=True):
            self.scheduler.check(token_ids, param)
        requests: list[Request] = []
        try:
            for token_ids, param in zip(tokens, each, strict=True):
                while not self.scheduler.has_place:
                    self.scheduler.step()
                requests.append(self.scheduler.submit(token_ids, param))
            while not all(request.finished for request in requests):
                self.scheduler.step()
        finally:
            self._abort(requests)
        for request in requests:
            raise_if_failed(request)
        return [output for request in requests for delta in request.deltas if (output := delta.output)]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Complete one prompt, news as they come; the last delta carries the whole output.

        Closing the iterator, or Ctrl-C, ends the generation; the session's cells stay for the next turn.
        Raises as ``generate``, at the first step.
        """
        request = self.submit(prompt, params)
        try:
            while not request.finished:
                self.scheduler.step()
                while request.deltas:
                    yield request.deltas.popleft()
            raise_if_failed(request)
        finally:
            self._abort([request])

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = ..., *, stream: Literal[False] = ..., **variables: Any
    ) -> GenerationOutput: ...

    @overload
    def chat(
        self, messages: Messages, params: SamplingParams | None = ..., *, stream: Literal[True], **variables: Any
    ) -> Iterator[Delta]: ...

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        stream: bool = False,
        **variables: Any,
    ) -> GenerationOutput | Iterator[Delta]:
        """Reply to ``[{"role": ..., "content": ...}]`` in the model's chat template; ``variables`` go to it.

        max_tokens defaults to no bound here. Raises InvalidRequest if the model has no template.
        """
        token_ids = self.tokenizer.apply_chat_template(messages, **variables)
        params = params or SamplingParams(max_tokens=None)
        return self.stream(token_ids, params) if stream else self.generate([token_ids], params)[0]

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> Request:
        """Queue a prompt for whoever calls ``scheduler.step`` himself. Raises as ``generate``, and QueueFull."""
        return self.scheduler.submit(self._tokens(prompt), params or SamplingParams())

    def forward(self, token_ids: Sequence[int], seq_id: int = 0) -> torch.Tensor:
        """Append tokens to a sequence of the caller's own; float32 logits ``[n_tokens, n_vocab]``.

        The sequence lives in ``memory`` until ``memory.seq_rm(seq_id)``. All tokens are appended or none.
        Raises InvalidRequest, and CacheFull when idle sessions have given way and it is still too much.
        """
        if not 0 <= seq_id < FIRST_SEQ_ID:
            raise InvalidRequest(f"seq_id must be in 0..{FIRST_SEQ_ID - 1}, got {seq_id}")
        batch = Batch([SeqTokens(seq_id, list(token_ids), n_logits=len(token_ids))])
        return self.scheduler.make_room_for(lambda: self.engine.decode(batch))

    # Memory

    def stats(self) -> MemoryStats:
        """What the memory holds now."""
        return self.memory.stats()

    def static_bytes(self) -> int:
        """What one sequence would hold without ``kv_dynamic``."""
        return self.cost.static_bytes()

    def set_budget(self, budget: str | int | None) -> None:
        """Another limit, as ``kv_budget``. Raises InvalidRequest."""
        self.budget.set_limit(budget)
        self.scheduler.memory_changed()

    def shrink_to_fit(self) -> int:
        """Give back capacity that no token uses; returns the bytes given back."""
        n_bytes = self.memory.shrink_to_fit()
        self.scheduler.memory_changed()
        return n_bytes

    def clear(self) -> None:
        """End all generations and forget all sequences; their memory is given back."""
        self.scheduler.clear()
        self.memory.clear()

    def close(self) -> None:
        """End everything; idle sessions are parked if there is a place. May be called again."""
        self.scheduler.close()
        self.memory.close()
        self._workspace.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _tokens(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token_id) for token_id in prompt]

    def _abort(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.scheduler.abort(request)


def _model_path(model: str | Path | None) -> Path:
    if model is None:
        from elastikv import demo

        return demo.path()
    return Path(model)


def _check_sizes(n_batch: int, n_ubatch: int, n_parallel: int) -> None:
    if n_ubatch < 1:
        raise InvalidRequest(f"n_ubatch (-ub) must be at least 1, got {n_ubatch}")
    if n_batch < n_parallel:
        raise InvalidRequest(f"n_batch (-b) must be at least n_parallel = {n_parallel}, got {n_batch}")


def _as_prompts(prompts: str | Sequence[int] | Sequence[Prompt]) -> list[Prompt]:
    """A single text or token list becomes a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    if all(isinstance(item, int) for item in prompts):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _one_for_each(params: SamplingParams | Sequence[SamplingParams] | None, n: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * n
    if len(params) != n:
        raise InvalidRequest(f"there are {n} prompts but {len(params)} SamplingParams; give one, or one for each")
    return list(params)
