"""Language models with a KV cache that costs what is used, not what is allowed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from elastikv.errors import (
    CacheFull,
    CorruptFile,
    ElastikvError,
    EngineClosed,
    GenerationCut,
    HubError,
    InvalidRequest,
    ModelError,
    PromptTooLong,
    QueueFull,
    SnapshotError,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from elastikv.engine.async_llm import AsyncLLM
    from elastikv.engine.llm import LLM
    from elastikv.engine.options import SchedulerOptions
    from elastikv.engine.outputs import Delta, GenerationOutput, Timings, TokenLogprobs, TopLogprob
    from elastikv.engine.params import Reasoning, SamplingParams
    from elastikv.engine.sharing import SharedBudget
    from elastikv.engine.stats import EngineStats, SessionInfo
    from elastikv.integrations.transformers_cache import ElasticCache
    from elastikv.memory.base import MemoryStats, SequenceStats

__all__ = [
    "LLM",
    "AsyncLLM",
    "CacheFull",
    "CorruptFile",
    "Delta",
    "ElasticCache",
    "ElastikvError",
    "EngineClosed",
    "EngineStats",
    "GenerationCut",
    "GenerationOutput",
    "HubError",
    "InvalidRequest",
    "MemoryStats",
    "ModelError",
    "PromptTooLong",
    "QueueFull",
    "Reasoning",
    "SamplingParams",
    "SchedulerOptions",
    "SequenceStats",
    "SessionInfo",
    "SharedBudget",
    "SnapshotError",
    "Timings",
    "TokenLogprobs",
    "TopLogprob",
    "UnsupportedModel",
]

# Imported when first asked for: `import elastikv` must not wait for torch.
_MODULES = {
    "AsyncLLM": "elastikv.engine.async_llm",
    "LLM": "elastikv.engine.llm",
    "Delta": "elastikv.engine.outputs",
    "GenerationOutput": "elastikv.engine.outputs",
    "Timings": "elastikv.engine.outputs",
    "TokenLogprobs": "elastikv.engine.outputs",
    "TopLogprob": "elastikv.engine.outputs",
    "Reasoning": "elastikv.engine.params",
    "SamplingParams": "elastikv.engine.params",
    "SchedulerOptions": "elastikv.engine.options",
    "SharedBudget": "elastikv.engine.sharing",
    "EngineStats": "elastikv.engine.stats",
    "ElasticCache": "elastikv.integrations.transformers_cache",
    "SessionInfo": "elastikv.engine.stats",
    "MemoryStats": "elastikv.memory.base",
    "SequenceStats": "elastikv.memory.base",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'elastikv' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
