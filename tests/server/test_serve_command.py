"""What ``elastikv serve`` says before it serves."""

from __future__ import annotations

import socket

import pytest

from elastikv.cli.main import main


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"elastikv: error: cannot listen on 127.0.0.1 port {port}: Address already in use")


@pytest.mark.parametrize(("key", "is_warned"), [([], True), (["--api-key", "k"], False)])
def test_a_wide_bind_without_a_key_is_warned_about(
    capsys: pytest.CaptureFixture[str], key: list[str], is_warned: bool
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        assert main(["serve", "--host", "0.0.0.0", "--port", str(taken.getsockname()[1]), *key]) == 1
    assert ("warning: with --host 0.0.0.0 everyone" in capsys.readouterr().err) is is_warned


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--port", "70000"], "--port must be in 0..65535"),
        (["--timeout", "0"], "--timeout must be above 0"),
        (["--max-body", "huge"], "'huge' is not a size"),
        (["--parallel", "0"], "n_parallel must be at least 1"),
        (["--max-queue", "-1"], "max_queue must be at least 1"),
        (["--kv-idle-drop", "-3"], "idle_drop_seconds must be at least 0"),
        (["--allowed-hosts", "good.example,http://bad"], "--allowed-hosts: 'http://bad' is no host"),
        (["--cors-origin", "x.org"], "--cors-origin: 'x.org' is no origin"),
        (["--cors-origin", "http://["], "--cors-origin: 'http://[' is no origin"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_flags_that_make_no_sense(capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str) -> None:
    assert main(["serve", *flags]) == 1
    assert complaint in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["serve", "--slot-save-path", str(tmp_path / "file" / "slots")]) == 1
    assert "--slot-save-path" in capsys.readouterr().err
