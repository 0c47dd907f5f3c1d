"""Architectures without a file of their own here: transformers' modules over our memory.

Slower than the others (sequences are computed one by one, and cells are converted where their type is not the
model's), but every text model that transformers can run causally has growth, budget and sessions this way.
Compute buffers are transformers' own and are not charged to the budget.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationConfig, PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from elastikv.batch import Span, UBatch
from elastikv.errors import CorruptFile, InvalidRequest, ModelError, UnsupportedModel
from elastikv.kernels.base import Buffers
from elastikv.memory import MemoryCost, MemoryOptions
from elastikv.memory.base import LayerMemory, Memory
from elastikv.models.base import ModelInfo
from elastikv.models.checkpoint import existing
from elastikv.runtimes.base import RuntimeOptions
from elastikv.runtimes.config_identity import config_digest
from elastikv.runtimes.sequence_cache import LayerPlan, SequenceCache, plan_layers
from elastikv.runtimes.torch_runtime import TorchRuntime, open_runtime
from elastikv.weights.folders import folder_name
from elastikv.weights.hf.config import refused_by_transformers
from elastikv.weights.hf.tokenizer import read_hf_tokenizer
from elastikv.weights.tokenizer import Tokenizer

_DTYPES = {"auto": "auto", "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_DEFAULT_N_CTX = 1 << 20  # for architectures without a maximum of their own
_N_PROBE_TOKENS = 2
_N_TRIAL_TOKENS = 12
_TRIAL_TOLERANCE = 0.1  # of the largest logit; rounding in bfloat16 stays well below
_N_SAMPLED_VALUES = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FallbackConfig:
    """Of a model that only transformers knows. ``eos_token_ids`` end a text."""

    name: str
    architecture: str
    n_ctx_train: int
    eos_token_ids: tuple[int, ...]
    hf_config: PreTrainedConfig


def _read_config(path: Path) -> FallbackConfig:
    """The config in a folder, or a ``config.json``. Raises UnsupportedModel where transformers cannot run it.

    Raises CorruptFile where its class refuses a field.
    """
    refusal = UnsupportedModel(f"{path}: transformers cannot run this model")
    path = existing(path)
    if path.suffix == ".gguf":
        raise refusal
    folder = path if path.is_dir() else path.parent
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (ValueError, OSError):
        raise refusal from None
    except Exception as error:
        raise refused_by_transformers(folder_name(folder), error) from None
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise refusal
    if getattr(config, "quantization_config", None) is not None:
        raise refusal
    text = config.get_text_config(decoder=True)
    return FallbackConfig(
        name=folder_name(folder),
        architecture=config.model_type,
        n_ctx_train=getattr(text, "max_position_embeddings", None) or _DEFAULT_N_CTX,
        eos_token_ids=_eos_token_ids(folder, text),
        hf_config=config,
    )


def _memory_layers(config: FallbackConfig) -> Sequence[LayerMemory]:
    """What each layer asks of memory: shapes alone are computed, with no weights. Raises UnsupportedModel."""
    try:
        with torch.device("meta"):
            module = AutoModelForCausalLM.from_config(config.hf_config, dtype=torch.bfloat16).eval()
            _, layers, _ = _probe(module, config.name, torch.device("meta"))
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"{config.name}: what {config.architecture} needs can only be told by loading it ({error})"
        ) from None
    return layers


def _load(folder: Path, config: FallbackConfig, dtype: str, quantize: str | None) -> tuple[FallbackModel, Tokenizer]:
    """Raises ModelError, CorruptFile, UnsupportedModel or InvalidRequest."""
    if dtype not in _DTYPES:
        raise InvalidRequest(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if quantize not in (None, "none"):
        raise InvalidRequest(f"{config.name}: {config.architecture} runs through transformers and cannot be quantised")
    tokenizer = read_hf_tokenizer(folder, config.eos_token_ids)
    try:
        with _no_progress_bars():
            module, report = AutoModelForCausalLM.from_pretrained(
                folder, config=config.hf_config, dtype=_DTYPES[dtype], local_files_only=True, output_loading_info=True
            )
    except SafetensorError as error:
        raise CorruptFile(f"{config.name}: truncated or altered ({error})") from None
    except (OSError, ImportError) as error:
        raise ModelError(f"{config.name}: {error}") from None
    if report["missing_keys"]:
        raise CorruptFile(f"{config.name}: the weights lack {sorted(report['missing_keys'])[0]}")
    model = FallbackModel(module.eval(), config)
    _log.warning(
        "%s: %s has no fast path here; it runs through transformers' modules", config.name, config.architecture
    )
    return model, tokenizer


class TransformersSource:
    """A ``Source``: a Hugging Face folder, or a ``config.json`` alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.config = _read_config(path)

    def memory_layers(self) -> Sequence[LayerMemory]:
        """What each layer asks of memory: shapes alone are computed. Raises UnsupportedModel."""
        return _memory_layers(self.config)

    def cost(self, options: MemoryOptions) -> MemoryCost:
        """What sequences commit."""
        return MemoryCost(self.memory_layers(), options)

    def load(self, options: RuntimeOptions) -> TorchRuntime:
        """Read the weights and open the memory. Raises ModelError, InvalidRequest, CacheFull."""
        if options.attention_precision != "auto":
            raise InvalidRequest(
                f"{self.config.name}: {self.config.architecture} runs through transformers, which attends in the "
                "model's own type; leave out attention_precision (--attention-precision)"
            )
        use_threads = torch.set_num_threads
        if options.n_threads is not None:
            use_threads(options.n_threads)
        model, tokenizer = _load(existing(self._path), self.config, options.dtype, options.quantize)
        return open_runtime(model, tokenizer, options, use_threads)


class FallbackModel:
    """A ``Model`` over a transformers module."""

    rotate_k = None  # where the rotation happens is the module's secret, so sequences cannot be shifted

    def __init__(self, module: Any, config: FallbackConfig) -> None:
        self._module = module
        self.device: torch.device = module.device
        self._selects_logits = "logits_to_keep" in _parameters(module)
        self._plans: list[LayerPlan]
        self._plans, self.memory_layers, n_vocab = _probe(module, config.name, self.device)
        stateful = any(plan.recurrent is not None for plan in self._plans)
        self._one_by_one = stateful and not _continues_in_chunks(module)
        self.info = ModelInfo(
            architecture=config.architecture,
            name=config.name,
            n_layers=len(self._plans),
            n_vocab=n_vocab,
            n_ctx_train=config.n_ctx_train,
            eos_token_ids=config.eos_token_ids,
            weight_bytes=sum(weight.nbytes for weight in module.parameters()),
            fingerprint=_fingerprint(module, config),
        )

    def buffer_bytes(self, n_ubatch: int) -> dict[str, int]:
        """None: transformers' modules allocate for themselves."""
        return {}

    def scratch_bytes(self, n_ubatch: int, max_capacity: int) -> int:
        """0: what transformers' modules allocate for themselves is not known here."""
        return 0

    @torch.inference_mode()
    def forward(self, ubatch: UBatch, memory: Memory, buffers: Buffers) -> torch.Tensor:
        """float32 logits ``[n_outputs, n_vocab]``; spans are computed one after the other."""
        logits = [self._forward_span(ubatch, span, memory) for span in ubatch.spans]
        return torch.cat(logits).float()

    def hidden(self, ubatch: UBatch, memory: Memory, buffers: Buffers) -> torch.Tensor:
        """Not served: modules differ in what they call hidden states. Raises InvalidRequest."""
        raise InvalidRequest("embeddings are not served for a model that runs through transformers' modules")

    def _forward_span(self, ubatch: UBatch, span: Span, memory: Memory) -> torch.Tensor:
        rows = ubatch.output_rows
        wanted = torch.from_numpy(rows[(rows >= span.start) & (rows < span.stop)] - span.start)
        token_ids = torch.from_numpy(ubatch.token_ids[span.start : span.stop])[None]
        cache = SequenceCache(self._plans, memory, span)
        if self._one_by_one and span.pos:
            only = torch.tensor([0])
            steps = [self._run(token_ids[:, i : i + 1], cache, span.pos + i, only) for i in range(span.n_tokens)]
            logits = torch.cat(steps)[wanted]
        else:
            logits = self._run(token_ids, cache, span.pos, wanted)
        cache.store_states()
        return logits

    def _run(self, token_ids: torch.Tensor, cache: SequenceCache, pos: int, wanted: torch.Tensor) -> torch.Tensor:
        """Logits of the ``wanted`` ones of ``token_ids`` ``[1, n]``, the first of them at ``pos``."""
        # An empty selection is not for every module; one row is computed and dropped.
        options = {"logits_to_keep": wanted if len(wanted) else 1} if self._selects_logits else {}
        logits = _call(self._module, token_ids, cache, pos, **options)[0]
        return logits[: len(wanted)] if self._selects_logits else logits[wanted]


def _probe(module: Any, name: str, device: torch.device) -> tuple[list[LayerPlan], list[LayerMemory], int]:
    """Run a few tokens and look at what the layers remembered; also the size of the vocabulary."""
    try:
        cache = DynamicCache(config=module.config)
    except KeyError as error:
        raise UnsupportedModel(f"{name}: layers of kind {error} are unknown to this transformers") from None
    token_ids = torch.zeros(1, _N_PROBE_TOKENS, dtype=torch.long, device=device)
    with torch.no_grad():
        logits = _call(module, token_ids, cache, 0)
    plans, layers = plan_layers(cache, name)
    return plans, layers, logits.shape[-1]


def _call(module: Any, token_ids: torch.Tensor, cache: Cache, pos: int, **options: Any) -> torch.Tensor:
    """Logits of ``token_ids`` ``[1, n]``, which follow the ``pos`` tokens in the cache."""
    parameters = _parameters(module)
    options["past_key_values" if "past_key_values" in parameters else "cache_params"] = cache
    if "position_ids" in parameters:  # Bamba would count from 0 again
        options["position_ids"] = torch.arange(pos, pos + token_ids.shape[1], device=token_ids.device)[None]
    logits: torch.Tensor = module(input_ids=token_ids, use_cache=True, **options).logits
    return logits


def _parameters(module: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(module.forward).parameters


@torch.no_grad()
def _continues_in_chunks(module: Any) -> bool:
    """Whether a state may be continued with several tokens at once.

    With some modules (Jamba in transformers 5.23) it gives other logits than the whole text does.
    """
    n_vocab = module.get_input_embeddings().weight.shape[0]
    token_ids = torch.arange(1, 1 + _N_TRIAL_TOKENS, device=module.device)[None] % n_vocab
    whole = _call(module, token_ids, DynamicCache(config=module.config), 0)[0, -1]
    cache, half = DynamicCache(config=module.config), _N_TRIAL_TOKENS // 2
    _call(module, token_ids[:, :half], cache, 0)
    last = _call(module, token_ids[:, half:], cache, half)[0, -1]
    return bool((last - whole).abs().max() <= _TRIAL_TOLERANCE * whole.abs().max())


def _eos_token_ids(folder: Path, config: PreTrainedConfig) -> tuple[int, ...]:
    eos = config.eos_token_id
    if (folder / "generation_config.json").is_file():
        eos = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id or eos
    return tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)


def _fingerprint(module: Any, config: FallbackConfig) -> str:
    """Of the config and of some values of every weight."""
    digest = hashlib.sha256(config_digest(config.hf_config).encode())
    for name, weight in module.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(weight.detach().flatten()[:_N_SAMPLED_VALUES].float().numpy().tobytes())
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """The caller shows progress in its own way."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
