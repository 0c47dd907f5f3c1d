"""What goes to standard error, in each of the three forms."""

from __future__ import annotations

import json
import logging
import re
import warnings

import pytest

from elastikv.cli.logs import on_stderr

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def say(capfd: pytest.CaptureFixture[str], log_format: str) -> list[str]:
    log = logging.getLogger("elastikv.test")
    with on_stderr(log_format):
        log.info("news")
        log.warning("odd", extra={"fields": {"n": 3}})
        log.error("bad")
        warnings.warn("beware", stacklevel=1)
        logging.getLogger("another.package").info("chatter")
    log.error("when nobody listens")
    return capfd.readouterr().err.splitlines()


def test_a_user_at_a_terminal_reads_lines(capfd: pytest.CaptureFixture[str]) -> None:
    assert say(capfd, "plain") == [
        "elastikv: news",
        "elastikv: odd",
        "elastikv: error: bad",
        "elastikv: warning: beware",
    ]


def test_a_log_has_times_and_levels(capfd: pytest.CaptureFixture[str]) -> None:
    lines = say(capfd, "text")
    assert all(re.match(f"{TIME} elastikv: ", line) for line in lines)
    assert [line.split(" ", 1)[1] for line in lines] == [
        "elastikv: news",
        "elastikv: warning: odd",
        "elastikv: error: bad",
        "elastikv: warning: beware",
    ]


def test_json_has_one_object_a_line_with_its_fields(capfd: pytest.CaptureFixture[str]) -> None:
    entries = [json.loads(line) for line in say(capfd, "json")]
    assert all(re.fullmatch(TIME, entry.pop("time")) for entry in entries)
    assert entries[0] == {"level": "info", "logger": "elastikv.test", "message": "news"}
    assert entries[1] == {"level": "warning", "logger": "elastikv.test", "message": "odd", "n": 3}
    assert [entry["level"] for entry in entries] == ["info", "warning", "error", "warning"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_belongs_to_its_record(capfd: pytest.CaptureFixture[str], log_format: str) -> None:
    with on_stderr(log_format):
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            logging.getLogger("elastikv.test").exception("a bug")
    text = capfd.readouterr().err
    if log_format == "json":
        (line,) = text.splitlines()
        assert "ZeroDivisionError" in json.loads(line)["exception"]
    else:
        assert text.splitlines()[-1].startswith("ZeroDivisionError")
