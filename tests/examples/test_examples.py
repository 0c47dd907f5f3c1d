"""Every script of ``examples/`` runs as it is, on the demo model, and prints what its first line promises."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numba
import pytest

from elastikv import demo

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTS = {
    "generate": "32 tokens",
    "stream": "> Thanks",
    "async_chat": "> Explain re.match.",
    "openai_client": "CompletionUsage(",
    "transformers_generate": "given back:",
    "budget_refusal": "of 257 tokens were still in memory",
    "park_and_restore": "of them from the session before",
}


@pytest.fixture
def run(monkeypatch, capsys):
    n_threads = numba.get_num_threads()
    numba.set_num_threads(1)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield run
    numba.set_num_threads(n_threads)


def test_each_has_its_test():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", sorted(PRINTS.keys() - {"openai_client"}))
def test_it_runs(name, run):
    assert PRINTS[name] in run(name)


def test_a_session_that_was_parked_is_found_again(run):
    first, second = run("park_and_restore").splitlines()
    assert " 0 of them" in first
    assert " 0 of them" not in second


@pytest.mark.slow
def test_openais_client_is_served(run):
    pytest.importorskip("openai")
    pytest.importorskip("httpx")
    from tools.servers import elastikv_serve, serving

    with serving(lambda port: elastikv_serve(port, {"-m": demo.path(), "-c": 4096, "-t": 1})) as server:
        assert PRINTS["openai_client"] in run("openai_client", server.url)
        assert server.end() == 0
