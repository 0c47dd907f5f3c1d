"""elastikv on several machines, by Ray Serve: ``serve run elastikv.integrations.ray:app model=./model.gguf``.

Only ``app`` needs Ray (``pip install elastikv[ray]``); what decides is plain Python, in ``prefixes``, ``routing`` and
``scaling``.
"""

from __future__ import annotations

from typing import Any


def app(arguments: dict[str, Any]) -> Any:
    """What Ray Serve runs, told by the flags of ``elastikv serve``, with underscores. Raises InvalidRequest."""
    from elastikv.integrations.ray.deployment import build

    return build(arguments)
