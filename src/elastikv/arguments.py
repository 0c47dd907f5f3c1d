"""Checks of what callers pass in: one sentence that names the argument, as InvalidRequest."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from elastikv.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np
    import torch

TokenIds: TypeAlias = "Sequence[int] | np.ndarray | torch.Tensor"

MOST = 2**31 - 1
"""Of sizes and counts; also llama.cpp's."""


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None, remedy: str = "") -> int:
    """``value`` as an int, numpy's and torch's included. Raises InvalidRequest."""
    number = _index(value)
    if number is None:
        raise InvalidRequest(f"{name} must be a whole number, got {value!r}{_and(remedy)}")
    if least is not None and number < least:
        raise InvalidRequest(f"{name} must be at least {least}, got {number}{_and(remedy)}")
    if most is not None and number > most:
        raise InvalidRequest(f"{name} must be at most {most}, got {number}{_and(remedy)}")
    return number


def instance(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raises InvalidRequest unless ``value`` is one of ``kinds``, which ``expected`` describes."""
    if not isinstance(value, kinds):
        raise InvalidRequest(f"{name} must be {expected}, got {_shown(value)}")


def is_array(value: Any) -> bool:
    """Whether it is numpy's or torch's."""
    return hasattr(value, "tolist") and hasattr(value, "ndim")


def token_ids(ids: TokenIds) -> list[int]:
    """Token ids from a list, a numpy array or a tensor of one dimension. Raises InvalidRequest."""
    if is_array(ids) and ids.ndim == 1:  # type: ignore[union-attr]
        ids = ids.tolist()  # type: ignore[union-attr]
    if isinstance(ids, (str, bytes, bytearray, Mapping)) or not isinstance(ids, Iterable) or is_array(ids):
        raise InvalidRequest(f"a prompt is a text or a list of token ids, got {_shown(ids)}")
    found = []
    for token_id in ids:
        number = token_id if type(token_id) is int else _index(token_id)
        if number is None:
            raise InvalidRequest(f"token ids must be whole numbers, got {_shown(token_id)}")
        found.append(number)
    return found


def in_vocabulary(ids: Iterable[int], n_vocab: int) -> None:
    """Raises InvalidRequest for the first id that is no token of the model's."""
    for token_id in ids:
        if not 0 <= token_id < n_vocab:
            raise InvalidRequest(f"token {token_id} is none of the model's {n_vocab} tokens")


def _index(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):  # a tensor of several values is a ValueError
        return None


def _and(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""


def _shown(value: Any) -> str:
    """A short description: what is wrongly typed may be a whole batch of images."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
