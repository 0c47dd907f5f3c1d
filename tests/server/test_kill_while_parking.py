"""kill -9 in the middle of parking, then a restart: nothing corrupt is served, and nothing complete is lost."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from serve_process import ServeProcess, serving
from support.tiny_models import tiny_model

pytestmark = pytest.mark.slow
PROMPTS = [f"conversation {i}: " + f"word{i} " * 150 for i in range(12)]


def ask(server: ServeProcess, prompt: str, n_tokens: int = 12) -> tuple[str, int]:
    """A greedy reply, and how much of the prompt came from a parked or held session."""
    body = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
    return reply["choices"][0]["text"], reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def ask_without_end(server: ServeProcess) -> None:
    """Each request pushes another session out to disk."""
    try:
        while True:
            for prompt in PROMPTS:
                ask(server, prompt, n_tokens=1)
    except httpx.TransportError:
        return


def wait_for_an_unfinished_file(park: Path, n_finished: int) -> None:
    """Until ``n_finished`` sessions are on disk and another is just being written."""
    deadline = time.monotonic() + 30
    while len(list(park.glob("*.safetensors"))) < n_finished or not any(park.glob(".*.tmp")):
        assert time.monotonic() < deadline, "nothing is parked"


def test_what_was_half_written_is_not_served(tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path / "model", num_hidden_layers=6)
    park = tmp_path / "park"
    with serving(model, "-c", "2048") as server:
        right = [ask(server, prompt)[0] for prompt in PROMPTS]
        memory = server.get("/memory")
    # Room for about three of the twelve conversations: the others have to be on disk.
    per_session = max(session["committed_bytes"] for session in memory["sessions"])
    budget = memory["compute_bytes"] + 3 * per_session
    flags = ("-c", "2048", "--kv-park", str(park), "--kv-budget", str(budget), "--parallel", "2")

    for n_finished in (1, 3, 5):
        with serving(model, *flags) as server:
            client = threading.Thread(target=ask_without_end, args=(server,))
            client.start()
            wait_for_an_unfinished_file(park, n_finished)
            server.end(signal.SIGKILL)
            client.join(timeout=10)

    parked = sorted(park.glob("*.safetensors"))
    assert len(parked) >= 4
    # What a machine that lost power may leave behind: half a file, and one with a bit turned over.
    parked[0].write_bytes(parked[0].read_bytes()[: parked[0].stat().st_size // 2])
    flipped = bytearray(parked[-1].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    parked[-1].write_bytes(bytes(flipped))

    with serving(model, *flags) as server:
        answers = [ask(server, prompt) for prompt in PROMPTS]
        assert [text for text, _ in answers] == right
        assert any(n_cached for _, n_cached in answers), "no session survived"
        assert server.get("/memory/check")["sound"]
        assert not any("Traceback" in line for line in server.lines)
        warnings = [line for line in server.lines if "elastikv: warning:" in line]
        assert warnings, "nobody was told of the broken files"
        assert server.end() == 0
