"""Which of a repository's files make a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

PREFERRED = ("Q4_K_M", "Q8_0")
"""Quantisations that are taken when none is asked for, before the first, as llama.cpp does."""

_NO_MODEL = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})")
_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")

Parts = tuple[str, ...]
"""Files of one model, the one to open first."""


def quantisations(names: Iterable[str]) -> dict[str, Parts]:
    """The GGUF models among files by what ``user/repo:NAME`` calls each: the quantisation, else the file."""
    found: dict[str, Parts] = {}
    for name in sorted(names):
        stem, parts = _parts(name)
        if not parts:
            continue
        taken = {label.lower() for label in found}
        short = re.sub(r".*[-.]", "", PurePosixPath(stem).name)
        label = next((each for each in (short, PurePosixPath(stem).name) if each.lower() not in taken), stem)
        found[label] = parts
    return found


def pick(models: Mapping[str, Parts], quant: str | None) -> Parts | None:
    """The model that ``quant`` names, in any case; without it the first of ``PREFERRED``, or of all; else None."""
    for wanted in PREFERRED if quant is None else (quant,):
        for label, parts in models.items():
            if label.lower() == wanted.lower():
                return parts
        # As llama.cpp looks for it, but from a word's beginning: F16 is not BF16.
        pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(wanted)}[.-]", re.IGNORECASE)
        for parts in models.values():
            if pattern.search(parts[0]):
                return parts
    return next(iter(models.values()), None) if quant is None else None


def beside_weights(names: Iterable[str]) -> list[str]:
    """What a Hugging Face folder needs but for its weights: configs, tokenizer, chat template, index of shards."""
    return [
        name for name in names if any(fnmatchcase(name, pattern) for pattern in _BESIDE_WEIGHTS) and "/" not in name
    ]


def is_safe(name: str) -> bool:
    """Whether it is a path below the repository's folder, on any system."""
    return "\\" not in name and ":" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def _parts(name: str) -> tuple[str, Parts]:
    """The name without what tells parts apart, and all parts if it is the first; none if it is no model."""
    stem = name.removesuffix(".gguf")
    if stem == name or any(word in PurePosixPath(name).name for word in _NO_MODEL):
        return stem, ()
    split = _SPLIT.fullmatch(stem)
    if split is None:
        return stem, (name,)
    stem, part, count = split["stem"], int(split["part"]), int(split["count"])
    return stem, tuple(f"{stem}-{each:05d}-of-{count:05d}.gguf" for each in range(1, count + 1)) if part == 1 else ()
