"""`elastikv doctor`: all of it here, and what it says of machines that are not this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elastikv.cli import checks, doctor
from elastikv.memory.machine import read_machine_memory

GIB = 1 << 30


def test_every_section_is_told_and_nothing_is_broken(elastikv):
    result = elastikv("doctor", "--json")
    assert result.code == 0
    sections = json.loads(result.out)
    assert list(sections) == list(checks.SECTIONS)
    assert [name for name, section in sections.items() if section["broken"]] == []
    assert sections["memory"]["facts"]["total"] == read_machine_memory().total_bytes
    assert sections["software"]["facts"]["torch"]
    assert sections["demo model"]["facts"]["goes on from 'def ' with"]


def only(monkeypatch, **sections):
    monkeypatch.setattr(doctor, "SECTIONS", sections)


def test_people_get_units_and_a_list_of_what_to_do(elastikv, monkeypatch):
    only(
        monkeypatch, memory=lambda: checks.Section({"left": checks.Bytes(3 * GIB), "token": False, "x": None}, ["more"])
    )
    lines = elastikv("doctor").out.splitlines()
    assert [line.split() for line in lines] == [
        ["memory"],
        ["left", "3", "GiB"],
        ["token", "no"],
        ["x", "none"],
        ["could", "be", "faster"],
        ["-", "more"],
        ["broken:", "nothing"],
    ]


def test_what_is_broken_hides_nothing_else_and_sets_the_exit_status(elastikv, monkeypatch):
    def broken():
        raise RuntimeError("two\nlines")

    only(monkeypatch, first=broken, second=lambda: checks.Section({"fact": 1}))
    result = elastikv("doctor")
    assert result.code == 1
    assert "  - first: RuntimeError: two lines\n" in result.out
    assert "fact" in result.out


@pytest.mark.parametrize(
    ("can_reserve", "huge_pages", "overcommit", "limit", "words"),
    [
        (True, "madvise", "0", None, []),
        (True, "", "2", 4 * GIB, []),
        (False, "always", "0", 4 * GIB, ["ulimit -v is 4 GiB"]),
        (False, "madvise", "2", None, ["vm.overcommit_memory is 2"]),
        (False, "madvise", "0", None, ["the system refuses it"]),
        (True, "never", "0", None, ["huge pages are off"]),
    ],
)
def test_address_space_and_pages(can_reserve, huge_pages, overcommit, limit, words):
    advice = checks.of_pages(can_reserve, huge_pages, overcommit, limit)
    assert len(advice) == len(words)
    assert all(word in line for word, line in zip(words, advice, strict=True))


def test_more_address_space_than_there_is_cannot_be_reserved():
    assert checks.can_reserve(1 << 38)
    assert not checks.can_reserve(1 << 60)


@pytest.mark.parametrize(
    ("n_threads", "load", "variables", "words"),
    [
        (4, 3.9, {}, []),
        (8, 1.0, {}, ["give -t 4"]),
        (4, 9.0, {}, ["OMP_WAIT_POLICY=passive"]),
        (4, 9.0, {"OMP_WAIT_POLICY": "PASSIVE"}, []),
    ],
)
def test_threads_on_four_cores(n_threads, load, variables, words):
    advice = checks.of_threads(n_threads, 4, load, variables)
    assert len(advice) == len(words)
    assert all(word in line for word, line in zip(words, advice, strict=True))


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)])
def test_a_containers_quota_bounds_its_cores(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8))
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert checks.usable_cores(tmp_path / "cpu.max") == cores
    assert checks.usable_cores(tmp_path / "absent") == 8


def test_kernels_that_are_not_kept_or_not_compiled():
    assert "NUMBA_CACHE_DIR" in checks.of_compiled((), 0, 0).advice[0]
    assert "no kernel is compiled yet" in checks.of_compiled((Path("/x/a"), Path("/x/b")), 0, 0).advice[0]
    done = checks.of_compiled((Path("/x/a"), Path("/x/b")), 7, 100)
    assert (done.facts, done.advice) == ({"folder": "/x", "files": 7, "size": 100}, [])
