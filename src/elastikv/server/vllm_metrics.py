"""The numbers that routers of Kubernetes choose a server by, by vLLM's names, which these know.

The Gateway API's inference extension and llm-d ask for them (its model server protocol).
"""

from __future__ import annotations

from collections.abc import Iterable

from elastikv.engine.stats import EngineStats, SessionInfo
from elastikv.server.llama_metrics import Number, metrics_text


def vllm_metrics(stats: EngineStats, sessions: Iterable[SessionInfo]) -> str:
    """Prometheus text. As vLLM's, the share of the cache leaves out what idle sessions would give up."""
    running_bytes = sum(session.committed_bytes for session in sessions if session.state == "running")
    budget = stats.memory.budget_bytes
    numbers: list[Number] = [
        ("gauge", "num_requests_running", stats.n_running, "Generations that run"),
        ("gauge", "num_requests_waiting", stats.n_waiting, "Generations in the queue"),
    ]
    if budget:
        share = min(1.0, running_bytes / budget)
        numbers.append(("gauge", "kv_cache_usage_perc", share, "Share of the budget that running generations hold"))
    return metrics_text("vllm", numbers)
