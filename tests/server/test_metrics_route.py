from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fake_engine import FakeAsyncLLM
from prometheus_client.parser import text_string_to_metric_families
from running import RunningServer, running, wait_for


def read(server: RunningServer) -> dict[tuple[str, tuple], float]:
    text = server.http.get("/metrics").text
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_the_engine_is_told_in_bytes_and_counts(server: RunningServer) -> None:
    server.post("/v1/completions", prompt="hello")
    metrics = {name: value for (name, labels), value in read(server).items() if not labels}
    assert metrics["elastikv_kv_committed_bytes"] == 256 * 1024
    assert metrics["elastikv_kv_used_cells"] == 10
    assert metrics["elastikv_kv_budget_bytes"] == 1 << 20
    assert metrics["elastikv_kv_resize_seconds_total"] == 0.125
    assert metrics["elastikv_kv_refusals_total"] == 1
    assert metrics["elastikv_preemptions_total"] == 2
    assert metrics["elastikv_parks_total"] == 3
    assert metrics["elastikv_restores_total"] == 4
    assert metrics["elastikv_generated_tokens_total"] == 5
    assert metrics["process_resident_memory_bytes"] > 0


def test_llama_servers_names_say_the_same(server: RunningServer) -> None:
    server.post("/v1/completions", prompt="hello")
    metrics = {name: value for (name, labels), value in read(server).items() if not labels}
    assert metrics["llamacpp:tokens_predicted_total"] == metrics["elastikv_generated_tokens_total"] == 5
    assert metrics["llamacpp:prompt_tokens_seconds"] == 3
    assert metrics["llamacpp:predicted_tokens_seconds"] == 10
    assert metrics["llamacpp:n_busy_slots_per_decode"] == 1.5
    assert metrics["llamacpp:requests_processing"] == metrics["llamacpp:requests_deferred"] == 0
    assert "\nllamacpp:n_tokens_max 9\n" in server.http.get("/metrics").text


def test_routers_of_kubernetes_find_the_names_that_they_know() -> None:
    with running(FakeAsyncLLM()) as server, ThreadPoolExecutor() as beside:
        server.engine.hold = asyncio.Event()
        reply = beside.submit(server.post, "/v1/completions", prompt="hello")
        try:
            wait_for(lambda: read(server)["vllm:num_requests_running", ()] == 1)
            metrics = read(server)
            assert metrics["vllm:num_requests_waiting", ()] == 0
            assert metrics["vllm:kv_cache_usage_perc", ()] == 256 * 1024 / (1 << 20)
        finally:
            server.call(server.engine.hold.set)
        assert reply.result().status_code == 200
        wait_for(lambda: read(server)["vllm:num_requests_running", ()] == 0)
        assert read(server)["vllm:kv_cache_usage_perc", ()] == 0


def test_latencies_count_every_token_once(server: RunningServer) -> None:
    server.post("/v1/completions", prompt="hello", n=2)
    metrics = read(server)
    assert metrics["elastikv_first_token_seconds_count", ()] == 2
    assert metrics["elastikv_next_token_seconds_count", ()] == 8


def test_routes_are_labels_but_made_up_paths_are_not(server: RunningServer) -> None:
    server.post("/v1/completions", prompt="hello")
    server.post("/slots/17?action=erase")
    for path in ("/one", "/two"):
        server.http.get(path)
    counts = {labels: value for (name, labels), value in read(server).items() if name == "elastikv_http_requests_total"}
    assert counts[(("route", "/v1/completions"), ("status", "200"))] == 1
    assert counts[(("route", "/slots/{slot_id}"), ("status", "400"))] == 1
    assert counts[(("route", "other"), ("status", "404"))] == 2
