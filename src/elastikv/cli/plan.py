"""``elastikv plan``: what a KV cache would cost, from a model's configuration alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from elastikv.cli.options import add_kv_arguments, add_runtime_argument, add_source_arguments, model_path
from elastikv.errors import InvalidRequest, format_bytes

DEFAULT_AT = (100, 1_000, 6_000, 32_000, 80_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    plan = parser.add_argument_group("plan")
    add_source_arguments(plan, "folder, GGUF file or config.json")
    add_runtime_argument(plan)
    plan.add_argument("--at", metavar="N,...", help="tokens to tell the cost of")
    plan.add_argument("-np", "--parallel", type=int, default=1, metavar="N", help="sequences that hold as many each")
    plan.add_argument("-b", "--batch-size", type=int, default=2048, metavar="N", help="tokens of one decode call")
    plan.add_argument("--json", action="store_true", help="print JSON")
    add_kv_arguments(parser)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; bytes of all sequences together, recurrent state left out."""

    tokens: int
    cells: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the table is made of. ``fits_tokens``: per sequence, in the memory this machine has now."""

    model: str
    n_ctx: int
    n_parallel: int
    growth: str
    bytes_per_cell: int
    recurrent_bytes: int
    static_bytes: int
    weight_bytes: int
    available_bytes: int
    fits_tokens: int
    rows: list[Row]


def run(args: argparse.Namespace) -> int:
    """Print what a cache would cost, as a table or JSON. Returns the exit status."""
    plan = make_plan(args)
    if args.json:
        print(json.dumps(asdict(plan), indent=2))
    else:
        _print(plan)
    return 0


def make_plan(args: argparse.Namespace) -> Plan:
    """Raises InvalidRequest, UnsupportedModel, CorruptFile."""
    path = model_path(args, weights=False)

    from elastikv.memory import Budget, MemoryOptions
    from elastikv.runtimes import find

    source = find(path, args.runtime)
    config = source.config
    n_ctx = config.n_ctx_train if args.ctx_size is None else args.ctx_size
    for flag, value in (("-c", n_ctx), ("--parallel", args.parallel), ("--kv-initial", args.kv_initial)):
        if value < 1:
            raise InvalidRequest(f"{flag} must be at least 1, got {value}")
    options = MemoryOptions(
        n_ctx,
        dynamic=args.kv_dynamic,
        growth=args.kv_growth,
        initial=args.kv_initial,
        storage=args.kv_storage,
        k_type=args.cache_type_k,
        v_type=args.cache_type_v,
    )
    cost = source.cost(options)
    rows = []
    for tokens in _tokens_asked(args.at, n_ctx):
        cells = cost.n_cells(tokens, args.batch_size)
        rows.append(Row(tokens, cells, (cost.n_bytes(tokens, cells) - cost.state_bytes) * args.parallel))
    weights = weight_bytes(path)
    available = Budget.parse(args.kv_budget).left()
    return Plan(
        model=config.name,
        n_ctx=n_ctx,
        n_parallel=args.parallel,
        growth=cost.growth,
        bytes_per_cell=cost.bytes_per_cell,
        recurrent_bytes=cost.state_bytes * args.parallel,
        static_bytes=(cost.static_bytes() - cost.state_bytes) * args.parallel,
        weight_bytes=weights,
        available_bytes=available,
        fits_tokens=cost.most_tokens((available - weights) // args.parallel),
        rows=rows,
    )


def _tokens_asked(text: str | None, n_ctx: int) -> list[int]:
    if text is None:
        return [*(tokens for tokens in DEFAULT_AT if tokens < n_ctx), n_ctx]
    try:
        tokens = [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidRequest(f"--at takes whole numbers separated by commas, got {text!r}") from None
    for n in tokens:
        if not 1 <= n <= n_ctx:
            raise InvalidRequest(f"--at {n} is not between 1 and -c {n_ctx}")
    return tokens


def weight_bytes(path: Path) -> int:
    """Size of the weight files beside the configuration; 0 where there are none."""
    if path.suffix == ".gguf":
        return path.stat().st_size
    folder = path if path.is_dir() else path.parent
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _print(plan: Plan) -> None:
    print(f"{plan.model}: {format_bytes(plan.bytes_per_cell)} a cell, -c {plan.n_ctx}, growth {plan.growth}")
    if plan.recurrent_bytes:
        print(f"recurrent state: {format_bytes(plan.recurrent_bytes)}, whatever the length (once more during a call)")
    if plan.n_parallel > 1:
        print(f"{plan.n_parallel} sequences that hold as many tokens each:")
    print(f"\n{'tokens':>10} {'cells':>10} {'elastic':>12} {'static':>12} {'share':>8}")
    for row in plan.rows:
        share = row.bytes / plan.static_bytes if plan.static_bytes else 1.0
        sizes = f"{format_bytes(row.bytes):>12} {format_bytes(plan.static_bytes):>12}"
        print(f"{row.tokens:>10,} {row.cells:>10,} {sizes} {share:>8.1%}")
    print(f"\nThis machine can spare {format_bytes(plan.available_bytes)}; ", end="")
    print(
        f"the weights take {format_bytes(plan.weight_bytes)}. " if plan.weight_bytes else "no weights were found. ",
        end="",
    )
    verdict = "all of -c fits" if plan.fits_tokens >= plan.n_ctx else f"{plan.fits_tokens:,} tokens a sequence fit"
    print(f"{verdict[0].upper()}{verdict[1:]}.")
