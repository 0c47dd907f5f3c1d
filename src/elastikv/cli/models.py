"""``elastikv models``: what the hub's cache has, what runs it, and what its KV cache would cost."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from elastikv.errors import ElastikvError, format_bytes

if TYPE_CHECKING:
    from elastikv.hub.cache import CachedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass(frozen=True, slots=True)
class Row:
    """A model. disk_bytes: of its weights. refusal: why nothing here runs it; all after it is None then.

    bytes_per_cell, cache_bytes: of the KV cache with f16 cells, and of one of ``n_ctx`` cells, the model's own maximum.
    """

    model: str
    path: str
    disk_bytes: int
    refusal: str | None
    runtime: str | None = None
    architecture: str | None = None
    n_ctx: int | None = None
    bytes_per_cell: int | None = None
    cache_bytes: int | None = None


def run(args: argparse.Namespace) -> int:
    """Print a table or JSON. Returns the exit status."""
    from elastikv.hub import cache

    rows = [row(each) for each in cache.models()]
    if args.json:
        print(json.dumps([asdict(each) for each in rows], indent=2))
    elif rows:
        _print_table(rows)
    else:
        print(f"{cache.folder()} has no models; `elastikv pull user/repo` fetches one", file=sys.stderr)
    return 0


def row(cached: CachedModel) -> Row:
    """What is known of a model without its weights."""
    from elastikv.memory import MemoryOptions
    from elastikv.runtimes import look

    name, path = str(cached.model), str(cached.path)
    try:
        found = look(cached.path)
        config = found.source.config
        cost = found.source.cost(MemoryOptions(config.n_ctx_train))
    except ElastikvError as error:
        return Row(name, path, cached.n_bytes, refusal=str(error).replace(path, cached.path.name))
    return Row(
        name,
        path,
        cached.n_bytes,
        refusal=None,
        runtime=found.runtime,
        architecture=config.architecture,
        n_ctx=config.n_ctx_train,
        bytes_per_cell=cost.bytes_per_cell,
        cache_bytes=cost.static_bytes(),
    )


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("model (-hf)", overflow="fold")
    for heading in ("on disk", "a cell", "full cache"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("runs through")
    for each in rows:
        costs, runs_through = ("", ""), "nothing here"
        if each.bytes_per_cell is not None and each.cache_bytes is not None:
            costs = (format_bytes(each.bytes_per_cell), f"{format_bytes(each.cache_bytes)} at -c {each.n_ctx}")
            runs_through = f"{each.runtime} ({each.architecture})"
        table.add_row(each.model, format_bytes(each.disk_bytes), *costs, runs_through)
    Console(highlight=False, markup=False).print(table)
    for each in rows:
        if each.refusal is not None:
            print(f"{each.model}: {each.refusal}")
