"""The public face: a model with its memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, get_args, overload

import torch

from elastikv import arguments
from elastikv.arguments import TokenIds, is_array, whole_number
from elastikv.batch import Batch, SeqTokens
from elastikv.engine import forks
from elastikv.engine.events import EventLog
from elastikv.engine.loading import cell_types, check_choice, load, storage_kind, type_name
from elastikv.engine.options import SchedulerOptions
from elastikv.engine.outputs import Delta, GenerationOutput
from elastikv.engine.params import SamplingParams
from elastikv.engine.requests import Request, raise_if_failed
from elastikv.engine.scheduler import Scheduler
from elastikv.engine.sessions import FIRST_SEQ_ID
from elastikv.engine.sharing import SharedBudget
from elastikv.errors import EngineClosed, InvalidRequest
from elastikv.hub import local_path
from elastikv.kernels.base import AttentionPrecision
from elastikv.memory import Memory, MemoryStats
from elastikv.runtimes.base import Described, Runtime

Prompt: TypeAlias = "str | TokenIds"
Pooling = Literal["mean", "last", "cls"]
Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A language model whose KV cache grows on demand.

        with LLM("path/to/model", n_ctx=131072) as llm:
            print(llm.generate("Once upon a time")[0].text)

    model: a Hugging Face folder or a GGUF file; or, where no path is called so, a model of the Hugging Face Hub
    (``"user/repo"``, ``"user/repo:Q4_K_M"``), which is fetched unless the hub's cache has it; None is the demo model.
    n_ctx: cells a sequence may ever have, an upper bound and no allocation; None: the model's own maximum.
    kv_dynamic: grow on demand; False commits all of n_ctx when a sequence starts.
    kv_growth: ``"double:1GiB"``, ``"step:256"``, ``"exact"``; None: what suits the storage.
    kv_initial: cells of a new sequence. kv_budget: ``"4GiB"``, bytes, ``"auto"`` or ``"none"``, for cells and
    compute buffers together; or a ``SharedBudget``, for several models together.
    kv_storage: ``"auto"``, ``"mmap"`` or ``"copy"``.
    kv_dtype: type of the cells, ``"f32"``, ``"f16"``, ``"bf16"`` or ``"q8_0"``, or a pair for K and V.
    runtime: ``"elastikv"`` for architectures that have a file in ``models/``, ``"transformers"`` for folders of others,
    ``"llama.cpp"`` for any GGUF that it runs; ``"auto"``: the first of them that can, llama.cpp with n_gpu_layers.
    device: of our own weights and memory; only ``"cpu"`` is served. n_gpu_layers: layers whose weights and cells
    llama.cpp puts on its device (Metal, CUDA, Vulkan, ...), -1 for all.
    dtype, quantize: of the weights; see ``models.load_model``. Types are also known by torch's names
    (``"float32"``, ``torch.bfloat16``). n_batch: tokens of one decode call at most;
    n_ubatch: tokens computed at once. n_threads: None leaves torch's setting as it is.
    kernels: ``"cpu"`` (compiled at first use), ``"reference"`` (plain torch) or ``"auto"``: the first, and where these
    are not on disk yet the second, until another process has compiled them.
    attention_precision: ``"auto"`` rounds what attention over prompts multiplies to 16-bit integers where the
    processor gains by it, ``"f32"`` never does. scheduler: how sequences share the memory.
    progress: called while loading with bytes read and bytes in all.

    Several threads may use it at once. There is one lock, held for a step and not for a generation: a thread that
    waits for its own text computes a step for all that wait, so what they ask for is computed together. Whoever
    uses ``engine``, ``scheduler`` or ``memory`` directly beside other threads does so inside ``with llm.turn():``.

    Raises ModelError and its kinds, InvalidRequest, CacheFull; after ``close()``, and in a process that was forked
    from this one, EngineClosed.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        n_ctx: int | None = None,
        kv_dynamic: bool = True,
        kv_growth: str | None = None,
        kv_initial: int = 256,
        kv_budget: str | int | SharedBudget | None = "auto",
        kv_storage: str = "auto",
        kv_dtype: str | torch.dtype | tuple[str | torch.dtype, str | torch.dtype] = "f16",
        runtime: str = "auto",
        device: str = "cpu",
        dtype: str | torch.dtype = "auto",
        quantize: str | None = None,
        kernels: str = "auto",
        attention_precision: AttentionPrecision = "auto",
        n_gpu_layers: int = 0,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        scheduler: SchedulerOptions | None = None,
        progress: Callable[[int, int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        forks.about_to_compute()
        options = SchedulerOptions() if scheduler is None else scheduler
        arguments.instance("scheduler", options, SchedulerOptions, "SchedulerOptions")
        n_ubatch = whole_number("n_ubatch (-ub)", n_ubatch, 1, arguments.MOST)
        n_batch = whole_number("n_batch (-b)", n_batch, None, arguments.MOST)
        if n_batch < options.n_parallel:
            raise InvalidRequest(f"n_batch (-b) must be at least n_parallel = {options.n_parallel}, got {n_batch}")
        memory_options = {
            "dynamic": kv_dynamic,
            "growth": kv_growth,
            "initial": whole_number("kv_initial", kv_initial, 1, arguments.MOST),
            "storage": storage_kind(kv_storage),
            **cell_types(kv_dtype),
        }
        arguments.instance("model", model, (str, Path, type(None)), "the path of a folder or a GGUF file")
        self.path = local_path(model)
        self.events = EventLog(clock)
        self._shared = kv_budget if isinstance(kv_budget, SharedBudget) else SharedBudget(kv_budget)
        self.budget = self._shared.budget
        self._runtime = load(
            self.path,
            memory_options,
            self._shared,
            n_ctx,
            n_ubatch,
            self.events,
            runtime=runtime,
            device=device,
            dtype=type_name("dtype", dtype),
            quantize=quantize,
            kernels=kernels,
            attention_precision=attention_precision,
            n_gpu_layers=n_gpu_layers,
            n_threads=n_threads,
            progress=progress,
        )
        self.n_batch = n_batch
        self.n_ubatch = n_ubatch
        self._n_threads = n_threads
        self._of_thread = threading.local()
        self._is_closed = False
        self.tokenizer = self._runtime.tokenizer
        self.cost = self._runtime.cost
        self._scheduler = Scheduler(self._runtime, self._shared, options, self.events, n_batch=n_batch, clock=clock)

    # Everything that computes or commits memory goes through these two.

    @property
    def engine(self) -> Runtime:
        """What runs the model. Raises EngineClosed after ``close()``, and in a forked process."""
        self._require_open()
        return self._runtime

    @property
    def scheduler(self) -> Scheduler:
        """Who computes when. Raises EngineClosed after ``close()``, and in a forked process."""
        self._require_open()
        return self._scheduler

    @property
    def model(self) -> Described:
        """The loaded model, with its facts in ``info``. Raises EngineClosed."""
        return self.engine.model

    @property
    def memory(self) -> Memory:
        """The cells and states of all sequences. Raises EngineClosed."""
        return self.engine.memory

    @property
    def n_ctx(self) -> int:
        """Cells that a sequence may ever have. Raises EngineClosed."""
        return self.memory.n_ctx

    # Generating

    def generate(
        self,
        prompts: str | TokenIds | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[GenerationOutput]:
        """Complete prompts, as many at once as the scheduler allows; outputs in their order.

        A prompt is a text, or token ids in a list, an array or a tensor.

        params: for all, or one for each. Raises InvalidRequest or PromptTooLong before anything is computed;
        CacheFull or GenerationCut if the budget cannot hold even one of them alone.
        """
        tokens = [self._tokens(prompt) for prompt in _as_prompts(prompts)]
        each = _one_for_each(params, len(tokens))
        with self.turn():
            requests = [self.scheduler.new_request(ids, param) for ids, param in zip(tokens, each, strict=True)]
        try:
            for request in requests:
                self._enqueue(request)
            for request in requests:
                while not request.finished:
                    self._step_for(request)
        finally:
            self.abort(*requests)
        for request in requests:
            raise_if_failed(request)
        return [output for request in requests for delta in request.deltas if (output := delta.output)]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Complete one prompt, news as they come; the last delta carries the whole output.

        Closing the iterator, or Ctrl-C, ends the generation; the session's cells stay for the next turn.
        Raises as ``generate``, at the first step.
        """
        with self.turn():
            request = self.scheduler.new_request(self._tokens(prompt), _checked(params))
        try:
            self._enqueue(request)
            while not request.finished:
                self._step_for(request)
                while request.deltas:
                    yield request.deltas.popleft()
            while request.deltas:
                yield request.deltas.popleft()
            raise_if_failed(request)
        finally:
            self.abort(request)

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
        self._require_open()
        if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
            raise InvalidRequest(f"messages must be a list of {{'role': ..., 'content': ...}}, got {messages!r:.60}")
        token_ids = self.tokenizer.apply_chat_template(messages, **variables)
        params = SamplingParams(max_tokens=None) if params is None else _checked(params)
        return self.stream(token_ids, params) if stream else self.generate([token_ids], params)[0]

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> Request:
        """Queue a prompt for whoever calls ``step`` himself. Raises as ``generate``, and QueueFull."""
        tokens, params = self._tokens(prompt), _checked(params)
        with self.turn():
            return self.scheduler.submit(tokens, params)

    def step(self) -> None:
        """Compute once for all that was submitted."""
        with self.turn():
            was_idle = not self.scheduler.step() and self.scheduler.has_work
        self._shared.pass_on(was_idle=was_idle)

    def abort(self, *requests: Request) -> None:
        """End what was submitted; the sessions stay for the next turn. What has ended is left as it is."""
        if forks.is_stranded():
            return
        with self._shared.turn():
            for request in requests:
                self._scheduler.abort(request)

    def forward(self, token_ids: TokenIds, seq_id: int = 0) -> torch.Tensor:
        """Append tokens to a sequence of the caller's own; float32 logits ``[n_tokens, n_vocab]``.

        token_ids: a list, numpy array or tensor of one dimension. The sequence lives in ``memory`` until
        ``memory.seq_rm(seq_id)``. All tokens are appended or none.
        Raises InvalidRequest, and CacheFull when idle sessions have given way and it is still too much.
        """
        seq_id = whole_number("seq_id", seq_id, 0, FIRST_SEQ_ID - 1)
        tokens = arguments.token_ids(token_ids)
        arguments.in_vocabulary(tokens, self.model.info.n_vocab)
        batch = Batch([SeqTokens(seq_id, tokens, n_logits=len(tokens))])
        with self.turn():
            return self.scheduler.make_room_for(lambda: self.engine.decode(batch))

    def embed(
        self, prompts: str | TokenIds | Sequence[Prompt], *, pooling: Pooling = "mean", normalize: bool = True
    ) -> torch.Tensor:
        """Embeddings of texts or token ids, float32 ``[n_prompts, n_hidden]``, from after the model's last norm.

        pooling: ``"mean"`` of all tokens, or of the ``"last"`` or the first (``"cls"``) alone. normalize: to length 1.
        Raises InvalidRequest, PromptTooLong, and CacheFull when idle sessions have given way and it is still too much.
        """
        check_choice("pooling", pooling, get_args(Pooling))
        pooled = [self._embedding(self._tokens(prompt), pooling) for prompt in _as_prompts(prompts)]
        vectors = torch.stack(pooled) if pooled else torch.empty(0, 0)
        return torch.nn.functional.normalize(vectors, dim=-1) if normalize else vectors

    def _embedding(self, tokens: list[int], pooling: Pooling) -> torch.Tensor:
        """Of one prompt, in a sequence of its own that is gone afterwards. Others compute between its batches."""
        with self.turn():
            self.scheduler.check(tokens, SamplingParams())
            seq_id = self.scheduler.store.new().seq_id
        total: torch.Tensor | None = None
        try:
            for start in range(0, len(tokens), self.n_batch):
                part = tokens[start : start + self.n_batch]
                n_rows = 1 if pooling == "last" else len(part)
                batch = Batch([SeqTokens(seq_id, part, n_logits=n_rows)])
                with self.turn():
                    rows = self.scheduler.make_room_for(lambda batch=batch: self.engine.decode(batch, "hidden"))  # type: ignore[misc]
                    self.scheduler.totals.n_steps += 1
                    self.scheduler.totals.tokens_prompt += len(part)
                if pooling == "cls":
                    return rows[0]
                total = rows.sum(0) if total is None or pooling == "last" else total + rows.sum(0)
        finally:
            with self.turn():
                self.memory.seq_rm(seq_id)
        assert total is not None
        return total / len(tokens) if pooling == "mean" else total

    # Memory

    def stats(self) -> MemoryStats:
        """What the memory holds now."""
        with self.turn():
            return self.memory.stats()

    def static_bytes(self) -> int:
        """What one sequence would hold without ``kv_dynamic``."""
        self._require_open()
        return self.cost.static_bytes()

    def set_budget(self, budget: str | int | None) -> None:
        """Another limit, as ``kv_budget``. Raises InvalidRequest."""
        with self.turn():
            self.budget.set_limit(budget)
            self.scheduler.memory_changed()

    def shrink_to_fit(self) -> int:
        """Give back capacity that no token uses; returns the bytes given back."""
        with self.turn():
            n_bytes = self.memory.shrink_to_fit()
            self.scheduler.memory_changed()
        return n_bytes

    def clear(self) -> None:
        """End all generations and forget all sequences; their memory is given back."""
        with self.turn():
            self.scheduler.clear()

    def close(self) -> None:
        """End everything; idle sessions are parked if there is a place. May be called again."""
        if forks.is_stranded():  # memory and parked sessions are the parent's
            return
        with self._shared.turn():
            self._scheduler.close()
            self._runtime.close()
            self._shared.leave(self._scheduler)
            self._is_closed = True

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # Threads

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else computes or changes memory meanwhile. Raises EngineClosed."""
        self._require_open()
        with self._shared.turn():
            self._require_open()
            self._set_threads()
            yield

    def _step_for(self, request: Request) -> None:
        """A step for everybody, unless another thread's step has ended this request meanwhile."""
        was_idle = False
        with self.turn():
            if not request.finished and not self.scheduler.step() and not request.finished:
                was_idle = not self._shared.step_others(self.scheduler.store)
        self._shared.pass_on(was_idle=was_idle)

    def _enqueue(self, request: Request) -> None:
        """Put it in the queue; as long as there is no place, compute for those that are in it."""
        is_queued = False
        while not is_queued:
            with self.turn():
                is_queued = self.scheduler.has_place
                if is_queued:
                    self.scheduler.enqueue(request)
            if not is_queued:
                self.step()

    def _set_threads(self) -> None:
        """The number of cores is a setting of each thread that computes."""
        if self._n_threads is not None and not hasattr(self._of_thread, "has_set_threads"):
            self._runtime.set_threads(self._n_threads)
            self._of_thread.has_set_threads = True

    def _require_open(self) -> None:
        forks.require_threads()
        if self._is_closed:
            raise EngineClosed("this LLM was closed; make another one")

    def _tokens(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else arguments.token_ids(prompt)


def _as_prompts(prompts: str | TokenIds | Sequence[Prompt]) -> list[Prompt]:
    """A single text or list of token ids becomes a list of one; an empty list is a list of no prompts."""
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        return [prompts]  # not a text: refused by name later
    items = list(prompts)
    if is_array(prompts):
        is_one = prompts.ndim == 1  # type: ignore[union-attr]
    else:
        is_one = not any(isinstance(item, (str, Iterable)) and getattr(item, "ndim", 1) for item in items)
    return [prompts] if is_one and items else items  # type: ignore[list-item]


def _checked(params: SamplingParams | None) -> SamplingParams:
    if params is None:
        return SamplingParams()
    arguments.instance("params", params, SamplingParams, "SamplingParams")
    return params


def _one_for_each(params: SamplingParams | Sequence[SamplingParams] | None, n: int) -> list[SamplingParams]:
    if not isinstance(params, Sequence):
        return [_checked(params)] * n
    if len(params) != n:
        raise InvalidRequest(f"there are {n} prompts but {len(params)} SamplingParams; give one, or one for each")
    return [_checked(each) for each in params]
