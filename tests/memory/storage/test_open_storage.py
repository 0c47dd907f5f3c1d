from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from elastikv.errors import InvalidRequest
from elastikv.memory import Budget
from elastikv.memory.storage import Plane, open_storage, pages

LAYERS = [(Plane("k", (4, 64), torch.float16),)]


def test_auto_is_mmap_on_linux() -> None:
    expected = "mmap" if sys.platform == "linux" else "copy"
    assert open_storage("auto", LAYERS, 100, Budget()).name == expected
    assert open_storage("copy", LAYERS, 100, Budget()).name == "copy"


def test_unknown_storage_is_named() -> None:
    with pytest.raises(InvalidRequest, match="disk"):
        open_storage("disk", LAYERS, 100, Budget())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["auto", "mmap"])
def test_falls_back_with_a_message_where_address_space_cannot_be_had(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("no address space")

    monkeypatch.setattr(pages, "Region", refuse)
    with caplog.at_level(logging.WARNING):
        storage = open_storage(kind, LAYERS, 100, Budget())  # type: ignore[arg-type]
    assert storage.name == "copy"
    assert "falling back to the copy storage: no address space" in caplog.text


def test_other_devices_are_served_by_copying(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        storage = open_storage("mmap", LAYERS, 100, Budget(), "meta")
    assert storage.name == "copy"
    assert "meta" in caplog.text


_UNDER_A_LIMIT = """
import resource, sys
from elastikv.memory import Budget, KVLayer, MemoryOptions, make_memory
from elastikv.batch import Batch, SeqTokens
import logging; logging.basicConfig(stream=sys.stdout, format="%(message)s")
memory = make_memory([KVLayer(8, 128, 128)] * 4, MemoryOptions(n_ctx=1 << 24), Budget(1 << 30))
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
for _ in range(2):
    memory.init_batch(Batch([SeqTokens(0, [1, 2, 3])]), 8)
    memory.rollback()
memory.check()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space limits are Linux's")
def test_under_a_limit_of_address_space_the_cache_works_and_says_so_once() -> None:
    done = subprocess.run([sys.executable, "-c", _UNDER_A_LIMIT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("falling back to the copy storage") == 1
