"""What ``elastikv serve`` says before it serves."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import pytest

from elastikv.cli import serve
from elastikv.cli.main import main
from elastikv.engine.params import SamplingParams
from elastikv.errors import InvalidRequest
from elastikv.server import ServerSettings


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f" elastikv: error: cannot listen on 127.0.0.1 port {port}: Address already in use" in line


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
        (["--drain", "-1"], "--drain must be at least 0"),
        (["--drain", "nan"], "--drain must be at least 0"),
        (["--max-body", "huge"], "'huge' is not a size"),
        (["-n", "0"], "-n must be at least 1"),
        (["--temp", "-1"], "temperature must be at least 0"),
        (["--api-key", ","], "--api-key holds no key"),
        (["--api-key-file", "/no/such/file"], "--api-key-file /no/such/file: No such file"),
        (["--parallel", "0"], "n_parallel must be at least 1"),
        (["--max-queue", "-1"], "max_queue must be at least 1"),
        (["--spec-ngram-simple-size-m", "0"], "ngram_size_m must be at least 1"),
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


@pytest.mark.parametrize("flag", ["--slot-save-path", "--kv-park"])
def test_a_folder_that_cannot_be_made_is_one_line_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["serve", "-m", "/no/such/model", flag, str(tmp_path / "file" / "folder")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {flag} {tmp_path}/file/folder: Not a directory" in line


def test_speculation_is_off_unless_it_is_asked_for_in_llama_servers_words() -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    silent = serve.scheduling_from_args(parser.parse_args([]))
    asked = serve.scheduling_from_args(
        parser.parse_args(["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "5"])
    )
    assert (silent.speculation, asked.speculation, asked.ngram_size_n) == ("none", "ngram-simple", 5)


# The keys


def settings_of(*flags: str) -> ServerSettings:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return serve.settings_from_args(parser.parse_args(flags))


def test_keys_need_not_stand_in_the_process_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("one\n\n  two \r\n")
    from_file = ("--api-key-file", str(tmp_path / "keys"))
    assert settings_of().api_keys == ()
    assert settings_of(*from_file).api_keys == ("one", "two")
    monkeypatch.setenv("ELASTIKV_API_KEY", "three")
    assert settings_of().api_keys == ("three",)
    assert settings_of("--api-key", "a,b").api_keys == ("a", "b")
    assert settings_of(*from_file).api_keys == ("three", "one", "two")


def test_a_place_without_a_key_does_not_open_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(InvalidRequest, match="keys holds no key"):
        settings_of("--api-key-file", str(tmp_path / "keys"))
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="not a text file"):
        settings_of("--api-key-file", str(tmp_path / "keys"))
    monkeypatch.setenv("ELASTIKV_API_KEY", "")
    with pytest.raises(InvalidRequest, match="ELASTIKV_API_KEY holds no key"):
        settings_of()


def test_sampling_flags_are_the_servers_defaults() -> None:
    assert settings_of().sampling == SamplingParams(max_tokens=None)
    given = settings_of("-n", "9", "--temp", "0.1", "--top-k", "3", "--repeat-penalty", "1.2", "--stop", "x").sampling
    assert given == SamplingParams(max_tokens=9, temperature=0.1, top_k=3, repeat_penalty=1.2, stop=["x"])
