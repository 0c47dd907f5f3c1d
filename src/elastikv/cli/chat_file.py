"""A conversation of ``elastikv chat`` in a file, and the cells of its session in another beside it.

The first is JSON, ``{"messages": [...]}``, as OpenAI's API has them; ``FILE.kv`` saves computing the cells again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastikv.errors import CacheFull, InvalidRequest, SnapshotError

if TYPE_CHECKING:
    from elastikv import LLM

Messages = list[dict[str, str]]

_ROLES = ("system", "user", "assistant")


def save(path: Path, messages: Messages, llm: LLM) -> int:
    """Write both files, atomically and for the owner alone; returns how many cells were saved.

    Raises InvalidRequest where the folder cannot be written.
    """
    from elastikv.memory import checked_file

    try:
        with checked_file.replacing(path) as file:
            file.write(json.dumps({"messages": messages}, ensure_ascii=False, indent=1).encode())
        idle = llm.scheduler.store.idle()
        if not idle:
            _cells_path(path).unlink(missing_ok=True)  # of a conversation that was saved here before
            return 0
        return llm.scheduler.store.save(idle[-1].id, _cells_path(path))
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or error}") from None


def load(path: Path, llm: LLM) -> tuple[Messages, int]:
    """The messages, and how many cells came back with them: none if they are another model's, or do not fit.

    Raises InvalidRequest for a file that cannot be read, or holds something else.
    """
    try:
        messages = _checked(json.loads(path.read_bytes()))
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InvalidRequest(f"{path} is no saved conversation: {error}") from None
    try:
        session_id = llm.scheduler.store.load(_cells_path(path))
    except (OSError, SnapshotError, CacheFull):
        return messages, 0
    return messages, next(each.used_cells for each in llm.scheduler.sessions() if each.id == session_id)


def _cells_path(path: Path) -> Path:
    return path.with_name(path.name + ".kv")


def _checked(content: Any) -> Messages:
    messages = content.get("messages") if isinstance(content, dict) else None
    if not isinstance(messages, list):
        raise ValueError('it has no "messages"')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise ValueError(f"every message needs a role, one of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str):
            raise ValueError("every message needs a text as its content")
    return [{"role": message["role"], "content": message["content"]} for message in messages]
