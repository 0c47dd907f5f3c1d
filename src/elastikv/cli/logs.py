"""What the program says on standard error: a line, a line with the time, or a JSON object."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from typing_extensions import override

_WARNINGS = "py.warnings"
"""The logger that Python's own ``captureWarnings`` would use."""


class Line(logging.Formatter):
    """``elastikv: error: what happened``, for a user at a terminal; what is only worth knowing has no such word."""

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        is_grave = record.levelno >= logging.ERROR or record.name == _WARNINGS
        return f"elastikv: {_level(record) if is_grave else ''}{record.message}"


class TimedLine(logging.Formatter):
    """``2026-01-31T12:00:00.000Z elastikv: warning: what happened``, for what runs for days."""

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        level = _level(record) if record.levelno >= logging.WARNING else ""
        return f"{_utc(record)} elastikv: {level}{record.message}"


class JsonLine(logging.Formatter):
    """One object a record: ``time``, ``level``, ``logger``, ``message``, and what the record brings as ``fields``."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


FORMATS: dict[str, type[logging.Formatter]] = {"plain": Line, "text": TimedLine, "json": JsonLine}


@contextmanager
def on_stderr(log_format: str) -> Iterator[None]:
    """Logging and warnings in one of ``FORMATS``: our own news, and what other packages warn of."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[log_format]())
    root, ours = logging.getLogger(), logging.getLogger("elastikv")
    level_before = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _log_warning  # type: ignore[assignment]
            yield
    finally:
        ours.setLevel(level_before)
        root.removeHandler(handler)


def take_over(package: str) -> None:
    """What a package that has been imported logs is told once, by us: some print it themselves as well."""
    logging.getLogger(package).handlers.clear()


def _log_warning(message: Warning | str, *_: object) -> None:
    """Without the place in the code that raised it."""
    logging.getLogger(_WARNINGS).warning("%s", message)


def _level(record: logging.LogRecord) -> str:
    return f"{record.levelname.lower()}: "


def _utc(record: logging.LogRecord) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
