"""The command line, the files and the pictures that the benchmarks have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring as it stands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def lengths(text: str) -> list[int]:
    """Whole numbers separated by commas; an empty text is none."""
    return [int(part) for part in text.split(",") if part]


def quantile(values: Sequence[float], q: float) -> float:
    """The value that a share ``q`` of all is below; not a number where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(q * len(ordered)))] if ordered else float("nan")


def write_json(path: Path | None, document: object) -> None:
    """Nothing where no file was asked for. Paths are written as text."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, default=str) + "\n")


def pyplot() -> Any:
    """matplotlib's, which draws to files only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Write a picture and say so."""
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"wrote {path}")
