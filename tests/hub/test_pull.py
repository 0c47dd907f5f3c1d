"""Models come from a hub on this machine, through the real ``huggingface_hub``."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from support import hub as hubs
from support.hub import elastikv, environment

from elastikv import demo
from tools.gguf_export import export_gguf

CHUNK = 10 << 20
"""What huggingface_hub writes at once."""

LARGE = random.Random(0).randbytes(CHUNK + 2000)
REPOSITORIES = {
    "user/gguf": {
        "m-Q4_K_M.gguf": LARGE,
        "m-Q8_0.gguf": b"eight",
        "mmproj-F16.gguf": b"pictures",
        "split/m-F16-00001-of-00002.gguf": b"one",
        "split/m-F16-00002-of-00002.gguf": b"two",
        "m-Q2_K-00001-of-00002.gguf": b"half",
        "../outside-Q5_K.gguf": b"no",
    },
    "user/demo": {path.name: path.read_bytes() for path in demo.path().iterdir() if path.is_file()}
    | {"modeling_demo.py": b"raise SystemExit(3)", "pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"x"},
    "user/empty": {"README.md": b""},
}


@pytest.fixture
def hub():
    with hubs.running(REPOSITORIES) as running:
        yield running


@pytest.fixture
def at(hub, tmp_path):
    return environment(hub.url, tmp_path)


def fetched(folder: Path) -> dict[str, bytes]:
    """What the cache has, by names in the repository."""
    snapshots = folder.glob("hub/models--*/snapshots/*")
    return {path.relative_to(top).as_posix(): path.read_bytes() for top in snapshots for path in top.rglob("*.*")}


def test_a_quantisation_comes_alone_and_is_at_the_printed_path(at, tmp_path):
    done = elastikv(at, "pull", "user/gguf:q8_0")
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).read_bytes() == b"eight"
    assert fetched(tmp_path) == {"m-Q8_0.gguf": b"eight"}


def test_all_parts_of_a_split_model_come(at, tmp_path):
    done = elastikv(at, "pull", "user/gguf:F16")
    assert Path(done.stdout.strip()).name == "m-F16-00001-of-00002.gguf"
    assert list(fetched(tmp_path).values()) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user/gguf:Q3_K", "user/gguf has no Q3_K; it has Q2_K, Q4_K_M, Q8_0, F16"),
        ("user/gguf:Q2_K", "user/gguf lacks 1 of 2 files, such as m-Q2_K-00002-of-00002.gguf"),
        ("user/demo:Q8_0", "user/demo has no GGUF files, so there is no Q8_0; ask for user/demo"),
        ("user/empty", "user/empty has neither GGUF files nor config.json and safetensors, so nothing here runs it"),
        ("user/none", "has no user/none, or it is private: then set HF_TOKEN or run `hf auth login`"),
        ("../../etc", "'../../etc' names no model of the hub"),
    ],
)
def test_what_cannot_be_had_is_one_line(at, tmp_path, name, message):
    done = elastikv(at, "pull", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert fetched(tmp_path) == {}


@pytest.mark.parametrize(("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo")])
def test_a_gated_model_needs_a_token(hub, at, status, code):
    hub.refuse["user/gguf"] = (status, code)
    done = elastikv(at, "pull", "user/gguf:Q8_0")
    assert f"user/gguf is gated: accept its terms at {hub.url}/user/gguf, then set HF_TOKEN or run" in done.stderr
    assert elastikv(at | {"HF_TOKEN": "hf_x"}, "pull", "user/gguf:Q8_0").returncode == 0


def test_a_cut_connection_is_resumed(hub, at):
    hub.cuts["m-Q4_K_M.gguf"] = [CHUNK + 1000]
    done = elastikv(at, "pull", "user/gguf")
    assert Path(done.stdout.strip()).read_bytes() == LARGE
    assert hub.ranges("m-Q4_K_M.gguf") == ["all", f"bytes={CHUNK}-"]
    assert done.stderr.count("Trying to resume download") == 1


def interrupted(process: subprocess.Popen[str]) -> str:
    """What it says when it is stopped. Python may lose a Ctrl-C in a finaliser; people press it again then."""
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=5)[1]
    raise AssertionError("it does not stop")


def test_a_stopped_pull_goes_on_where_it_was(hub, at, tmp_path):
    hub.stalls["m-Q4_K_M.gguf"] = CHUNK + 1000
    command = [sys.executable, "-m", "elastikv", "pull", "user/gguf"]
    with subprocess.Popen(command, env=at, stderr=subprocess.PIPE, text=True) as process:
        assert hub.stalled.wait(60)
        time.sleep(1)  # the client takes what was sent
        said = interrupted(process)
    assert process.returncode == 130
    assert said.split("\n")[-2:] == ["stopped; `elastikv pull user/gguf` goes on from here", ""]
    begun = [path.stat().st_size for path in tmp_path.rglob("*.incomplete")]
    assert begun == [CHUNK]

    done = elastikv(at, "pull", "user/gguf")
    assert Path(done.stdout.strip()).read_bytes() == LARGE
    assert hub.ranges("m-Q4_K_M.gguf") == ["all", f"bytes={CHUNK}-"]


def test_a_partial_file_that_was_altered_is_thrown_away(at, tmp_path):
    """A resumed file is checked: its first part may be days old."""
    partial = tmp_path / f"hub/models--user--gguf/blobs/{sha256(LARGE).hexdigest()}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"altered")
    assert "was damaged" in elastikv(at, "pull", "user/gguf").stderr
    assert elastikv(at, "pull", "user/gguf").returncode == 0


@pytest.mark.slow
def test_a_folder_runs_from_the_hub_and_then_without_it(hub, at, tmp_path):
    command = ("run", "-hf", "user/demo", "-p", "def ", "-n", "4", "--temp", "0", "--kernels", "reference")
    online = elastikv(at, *command)
    assert online.returncode == 0, online.stderr
    assert set(fetched(tmp_path)) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (tmp_path / "hub/models--user--demo/refs/main").read_text() == hub.commit
    hub.requests.clear()
    offline = elastikv(at, *command)
    assert offline.stdout == online.stdout
    assert hub.requests == []


@pytest.mark.slow
def test_a_plan_needs_the_config_alone(at, tmp_path):
    done = elastikv(at, "plan", "-hf", "user/demo")
    assert done.stdout.startswith("user/demo: 1 KiB a cell")
    assert set(fetched(tmp_path)) == {"config.json"}
    assert "first: elastikv pull user/gguf:F16" in elastikv(at, "plan", "-hf", "user/gguf:F16").stderr


@pytest.mark.slow
def test_a_plan_needs_the_beginning_of_a_gguf_alone(hub, at, tmp_path):
    gguf = export_gguf(demo.path(), tmp_path / "m-Q8_0.gguf", "q8_0").read_bytes() + bytes(40 << 20)
    hub.files["user/gguf"] = {"m-Q8_0.gguf": gguf}
    plan = json.loads(elastikv(at, "plan", "-hf", "user/gguf", "--json").stdout)
    assert (plan["bytes_per_cell"], plan["weight_bytes"]) == (1024, len(gguf))
    assert hub.ranges("m-Q8_0.gguf") == [f"bytes=0-{(32 << 20) - 1}"]
    assert fetched(tmp_path) == {}

    assert json.loads(elastikv(at, "plan", "-hf", "user/gguf", "--json").stdout)["rows"] == plan["rows"]
    assert len(hub.ranges("m-Q8_0.gguf")) == 1


@pytest.mark.parametrize(
    ("variables", "reason"),
    [({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "is out of reach")],
)
def test_without_a_network_the_command_for_later_is_told(hub, at, variables, reason):
    done = elastikv(at | variables, "plan", "-hf", "user/gguf")
    assert done.returncode == 1
    assert "user/gguf cannot be fetched" in done.stderr
    assert reason in done.stderr
    assert done.stderr.endswith("once online: elastikv pull user/gguf\n")
    assert hub.requests == []


def test_a_model_that_was_updated_serves_from_the_cache_until_it_is_pulled(hub, at):
    old = elastikv(at, "pull", "user/gguf:Q8_0").stdout
    hub.commit, hub.files["user/gguf"]["m-Q8_0.gguf"] = "f" * 40, b"newer"
    assert Path(old.strip()).read_bytes() == b"eight"
    assert Path(elastikv(at, "pull", "user/gguf:Q8_0").stdout.strip()).read_bytes() == b"newer"


def test_a_cache_that_cannot_be_written_is_one_line(at, tmp_path):
    (tmp_path / "hub").write_text("a file where the cache should be")
    done = elastikv(at, "pull", "user/gguf:Q8_0")
    assert done.returncode == 1
    assert f"user/gguf:Q8_0 cannot be fetched into {tmp_path / 'hub'}: Not a directory" in done.stderr
    assert os.linesep not in done.stderr.strip()
