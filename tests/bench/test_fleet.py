"""The simulated cluster: what it finds is what its model makes certain."""

from __future__ import annotations

import json

import pytest

from bench.fleet import trace
from bench.fleet.__main__ import ROUTERS, main
from bench.fleet.replica import Machine, Replica
from bench.fleet.scaling import Bounds
from bench.fleet.simulation import Outcome, Simulation

MACHINE = Machine(n_cells=30_000)


def run(name: str, requests: list[trace.Request], bounds: Bounds) -> Outcome:
    return Simulation(MACHINE, bounds, lambda clock: ROUTERS[name](MACHINE, 0, clock)).run(requests)


def test_a_router_that_knows_beginnings_finds_them_and_says_the_same_again() -> None:
    turns = trace.made_up(rate=0.4, seconds=60, seed=1)
    requests = list(trace.requests(turns))
    ours, again, blind = (run(name, requests, Bounds(4, 4)) for name in ("prefix", "prefix", "round-robin"))
    assert ours == again
    assert ours.n_prompt == sum(request.n_prompt for request in requests)
    assert ours.n_cached > 1.5 * blind.n_cached


def test_memory_brings_replicas_and_lets_them_go() -> None:
    requests = list(trace.requests(trace.made_up(rate=0.5, seconds=60, seed=1)))
    outcome = run("prefix", requests, Bounds(1, 6))
    sizes = [size for _, size in outcome.sizes]
    assert (sizes[0], sizes[-1]) == (1, 1)
    assert max(sizes) > 2
    assert len(outcome.waits) + outcome.n_refused == len(requests)


def test_a_replica_copies_what_others_hold_and_goes_on_where_one_was() -> None:
    replica = Replica(0, MACHINE)
    system, reply = ("s", 1000), ("a", 50)
    asked = [trace.request(0, "c", [system, ("u", 10)], reply), trace.request(0, "d", [system, ("v", 10)], ("b", 50))]
    for request in asked:
        assert replica.offer(request)
    first, second = replica.start(0.0)
    assert (first.n_cached, second.n_cached) == (0, 1000)
    assert not replica.offer(trace.request(0, "e", [("x", MACHINE.n_cells)], reply))
    replica.finish(first.session, 2.0)
    assert replica.offer(trace.request(2, "c", [system, ("u", 10), reply, ("w", 5)], ("z", 50)))
    (third,) = replica.start(2.0)
    assert (third.n_cached, third.session.id, len(replica.sessions)) == (1060, first.session.id, 2)


def test_traces_are_read_as_they_were_written_and_as_mooncake_writes_them(tmp_path, capsys) -> None:
    path = tmp_path / "trace.jsonl"
    turns = trace.made_up(rate=1, seconds=5, seed=2)
    trace.write(path, turns)
    assert trace.read(path) == list(trace.requests(turns))
    line = {"timestamp": 1500, "input_length": 700, "output_length": 9, "hash_ids": [46, 47]}
    path.write_text(json.dumps(line) + "\n")
    (request,) = trace.read(path)
    assert (request.seconds, request.prompt, request.reply[1]) == (1.5, (("b46", 512), ("b47", 188)), 9)
    path.write_text(json.dumps({**line, "input_length": 2000}) + "\n")
    with pytest.raises(SystemExit):
        main(["--trace", str(path)])
    assert "line 1" in capsys.readouterr().err
