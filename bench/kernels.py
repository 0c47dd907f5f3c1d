"""How fast the cpu kernels move bytes and multiply, beside what the machine can do.

    python -m bench.kernels                      # everything, a few minutes
    python -m bench.kernels --only attention --cell-types f16,q8_0 --depths 4096,16384
    python -m bench.kernels --only products      # packed weights in integers, by rows of x
    python -m bench.kernels --json bench/results/kernels.json

Reading is measured in the same rounds as the kernels (they take turns), because a shared machine's
bandwidth changes from second to second; medians and the ratio of medians are reported.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from bench.bandwidth import PlainRead
from bench.products import measure_product
from bench.report import lengths, new_parser, write_json
from elastikv.batch import Span, UBatch
from elastikv.kernels import quants
from elastikv.kernels.base import AttentionPrecision
from elastikv.kernels.cpu import CpuKernels, set_threads
from elastikv.kernels.cpu.attention import decode
from elastikv.kernels.cpu.formats import CELLS
from elastikv.kernels.weights import PackedTensor, Weight
from elastikv.memory import Budget, KVCache, KVLayer, MemoryOptions
from elastikv.memory.base import CellType
from tools.gguf_files import K_QUANTS, random_blocks

PRECISIONS: tuple[AttentionPrecision, ...] = ("f32", "auto")


@dataclass
class Result:
    """One line of the table. gb_s or gflop_s is None where it does not apply; share: of the read bandwidth."""

    group: str
    case: str
    microseconds: float
    gb_s: float | None
    gflop_s: float | None
    share: float | None


class Bench:
    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.kernels = CpuKernels()
        self.results: list[Result] = []
        self.read = PlainRead()
        self.matrix = torch.randn(2048, 2048)

    def measure(self, group: str, case: str, call: Callable[[], object], n_bytes: int = 0, flop: float = 0) -> None:
        """Median of the rounds; plain reads take turns with the calls, and leave the caches cold for them."""
        call()
        self.read.rate()
        times, rates = [], []
        for _ in range(self.rounds):
            rates.append(self.read.rate())
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        rate = n_bytes / seconds
        self.results.append(
            Result(
                group,
                case,
                seconds * 1e6,
                rate / 1e9 if n_bytes else None,
                flop / seconds / 1e9 if flop else None,
                rate / statistics.median(rates) if n_bytes else None,
            )
        )
        print(format_line(self.results[-1]), flush=True)

    def compare(self, group: str, case: str, call: Callable[[], object], flop: float) -> None:
        """The same beside torch.mm of large matrices, which takes turns with the calls."""
        call()
        times: list[float] = []
        rates: list[float] = []
        for _ in range(self.rounds):
            rates.append(self.matrix_rate())
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        self.results.append(Result(group, case, seconds * 1e6, None, flop / seconds / 1e9, None))
        share = flop / seconds / statistics.median(rates)
        print(f"{format_line(self.results[-1])}  {share:.2f} x torch.mm", flush=True)

    def matrix_rate(self) -> float:
        """FLOP a second of torch.mm."""
        start = time.perf_counter()
        torch.mm(self.matrix, self.matrix)
        return float(2 * len(self.matrix) ** 3 / (time.perf_counter() - start))


def decode_ubatch(depths: list[int]) -> UBatch:
    spans = tuple(Span(index, index, index + 1, depth - 1) for index, depth in enumerate(depths))
    positions = np.array([depth - 1 for depth in depths], dtype=np.int64)
    return UBatch(np.zeros(len(depths), dtype=np.int64), positions, spans, positions[:0])


def make_cache(layer: KVLayer, depths: list[int], cell_type: CellType) -> KVCache:
    options = MemoryOptions(n_ctx=max(depths), initial=1, k_type=cell_type, v_type=cell_type)
    cache = KVCache([layer], options, Budget.parse("none"))
    for seq_id, depth in enumerate(depths):
        cache.resize(depth, seq_id)
        for plane in _planes(cache, seq_id):
            plane.copy_(torch.rand(plane.shape) * (100 if plane.dtype == torch.int8 else 1))
    return cache


def _planes(cache: KVCache, seq_id: int) -> list[torch.Tensor]:
    cells = cache.cells(0, seq_id)
    return [*cells.k.planes, *cells.v.planes]


def bench_attention(bench: Bench, n_heads: int, layer: KVLayer, depths: list[int], cell_type: CellType) -> None:
    """The compiled kernel alone, as a fused layer calls it."""
    cache, n_rows = make_cache(layer, depths, cell_type), len(depths)
    q, out = torch.randn(n_rows, n_heads, layer.head_dim), torch.empty(n_rows, n_heads, layer.head_dim_v)
    layout, heads = CELLS[cell_type], (n_heads, layer.n_kv_heads, layer.head_dim, layer.head_dim_v)
    scratch = torch.empty(n_rows * decode.scratch_floats(*heads, layout, layout))
    addresses, ends = cache.addresses(0, tuple(range(n_rows))), np.array(depths, dtype=np.int64)
    tensors, strides = [tensor.data_ptr() for tensor in (q, scratch, out)], (q.stride(0) * 4, q.stride(1) * 4)

    def attend() -> None:
        decode.attend(layout, layout, addresses, ends, 0, tensors[0], strides, heads, 0.1, tensors[1], tensors[2])

    n_bytes = sum(plane.nbytes for seq_id in range(len(depths)) for plane in _planes(cache, seq_id))
    case = f"{cell_type} {n_heads}/{layer.n_kv_heads} x {layer.head_dim} @ {depths[0]}"
    if n_rows > 1:
        case += f" x {n_rows} sequences"
    bench.measure("attention", case, attend, n_bytes)
    cache.close()


def bench_prefill(
    bench: Bench,
    precision: AttentionPrecision,
    n_heads: int,
    layer: KVLayer,
    depth: int,
    cell_type: CellType,
    q_factor: float = 1,
    n_tokens: int = 512,
) -> None:
    """q_factor: how peaked scores are. FLOP are those of pairs of a query and a cell that it sees."""
    cache = make_cache(layer, [depth + n_tokens], cell_type)
    span = Span(0, 0, n_tokens, depth)
    positions = np.arange(depth, depth + n_tokens, dtype=np.int64)
    ubatch = UBatch(np.zeros(n_tokens, dtype=np.int64), positions, (span,), positions[:0])
    q = torch.randn(n_tokens, n_heads, layer.head_dim) * q_factor
    out = torch.empty(n_tokens, n_heads, layer.head_dim_v)
    kernels = CpuKernels(precision)
    pairs = n_tokens * depth + n_tokens * (n_tokens + 1) / 2
    flop = 2 * n_heads * (layer.head_dim + layer.head_dim_v) * pairs
    case = f"{cell_type} {n_heads}/{layer.n_kv_heads} x {layer.head_dim}, {n_tokens} tokens @ {depth}, {precision}"
    if q_factor != 1:
        case += f", q x {q_factor:g}"
    bench.compare("prefill", case, lambda: kernels.attention(q, cache, 0, ubatch, 0.1, out), flop)
    cache.close()


def make_weight(kind: str, n_out: int, n_in: int) -> Weight:
    values = torch.randn(n_out, n_in)
    if kind in quants.TARGETS:
        return PackedTensor(kind, (n_out, n_in), quants.pack(values, kind))
    if kind in K_QUANTS:
        return PackedTensor(kind, (n_out, n_in), torch.from_numpy(random_blocks(kind, n_out, n_in)))
    return values.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[kind])


def bench_linear(bench: Bench, kind: str, n: int, n_out: int, n_in: int) -> None:
    weight, x, out = make_weight(kind, n_out, n_in), torch.randn(n, n_in), torch.empty(n, n_out)
    case = f"{kind} {n_out} x {n_in}, {n} row{'s' if n > 1 else ''}"
    flop, n_bytes = (2 * n * n_out * n_in, 0) if n > 16 else (0, weight.nbytes)
    bench.measure("linear", case, lambda: bench.kernels.linear(x, weight, None, out), n_bytes, flop)


def bench_products(bench: Bench, kind: str, n: int, n_out: int, n_in: int) -> None:
    """Prints multiply-adds a second, beside the instruction's own rate and torch.mm's."""
    weight = make_weight(kind, n_out, n_in)
    rates = measure_product(bench.kernels, weight, n, torch.get_num_threads(), bench.rounds, bench.read.rate)
    case = f"{kind} {n_out} x {n_in}, {n} row{'s' if n > 1 else ''}"
    n_bytes = weight.nbytes / rates.seconds / 1e9
    result = Result("products", case, rates.seconds * 1e6, n_bytes, 2 * rates.product / 1e9, None)
    bench.results.append(result)
    shares = f"{rates.product / rates.peak:.0%} of {rates.peak / 1e9:.0f}, {rates.product / rates.torch:.2f} x torch.mm"
    print(f"{format_line(result)}  {rates.product / 1e9:.0f} GMAC/s, {shares}", flush=True)


def bench_glue(bench: Bench) -> None:
    """The small operations of one layer of Qwen3-0.6B, one token, and their sum."""
    kernels = bench.kernels
    layer = KVLayer(8, 128, 128)
    cache, ubatch = make_cache(layer, [100], "f16"), decode_ubatch([100])
    x, residual, weight = torch.randn(1, 1024), torch.randn(1, 1024), torch.ones(1024)
    gate_up, inner = torch.randn(1, 6144), torch.empty(1, 3072)
    q, k, v = torch.randn(1, 16, 128), torch.randn(1, 8, 128), torch.randn(1, 8, 128)
    angles, norm = torch.ones(1, 64), torch.ones(128)

    def one_layer() -> None:
        kernels.add_rms_norm(x, residual, weight, 1e-6, x)
        kernels.rope_store(q, k, v, angles, angles, (norm, norm, 1e-6), cache, 0, ubatch)
        kernels.add_rms_norm(x, residual, weight, 1e-6, x)
        kernels.silu_mul(gate_up, inner)

    bench.measure("glue", "Qwen3-0.6B, one layer, one token", one_layer)
    cache.close()


def run(bench: Bench, args: argparse.Namespace) -> None:
    if args.only in (None, "attention"):
        for cell_type in args.cell_types.split(","):
            for depth in args.depths:
                bench_attention(bench, 16, KVLayer(8, 128, 128), [depth], cell_type)
        bench_attention(bench, 16, KVLayer(8, 128, 128), [2048] * 8, "f16")
        bench_attention(bench, 32, KVLayer(8, 128, 128), [8192], "f16")
        bench_attention(bench, 32, KVLayer(8, 128, 128), [8192], "q8_0")
        bench_attention(bench, 8, KVLayer(2, 256, 256), [16384], "f16")
    if args.only in (None, "prefill"):
        for cell_type in args.cell_types.split(","):
            for depth in (0, 4096, 16384):
                for precision in PRECISIONS:
                    bench_prefill(bench, precision, 16, KVLayer(8, 128, 128), depth, cell_type)
        for precision in PRECISIONS:
            for q_factor in (10, 100):
                bench_prefill(bench, precision, 16, KVLayer(8, 128, 128), 4096, "f16", q_factor)
            bench_prefill(bench, precision, 16, KVLayer(4, 64, 64), 4096, "f16")
            bench_prefill(bench, precision, 8, KVLayer(2, 256, 256), 4096, "f16")
    if args.only in (None, "linear"):
        for kind in args.weight_types.split(","):
            for n in (1, 2, 4, 8, 16, 512):
                bench_linear(bench, kind, n, 12288, 4096)
    if args.only in (None, "products"):
        for kind in args.packed_types.split(","):
            for n in args.rows:
                bench_products(bench, kind, n, 6144, 1024)
    if args.only in (None, "glue"):
        bench_glue(bench)


def format_line(result: Result) -> str:
    def cell(value: float | None, pattern: str) -> str:
        return " " * 8 if value is None else format(value, pattern)

    rates = f"{cell(result.gb_s, '8.1f')} {cell(result.share, '8.0%')} {cell(result.gflop_s, '8.0f')}"
    return f"{result.group:10} {result.case:52} {result.microseconds:10.0f} {rates}"


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--only", choices=["attention", "prefill", "linear", "products", "glue"])
    parser.add_argument("--cell-types", default="f16,bf16,q8_0,f32")
    parser.add_argument("--weight-types", default="q8_0,q4_0,bf16,f16,f32")
    parser.add_argument("--packed-types", default="q8_0,q4_0,q4_k,q5_k,q6_k", help="of the section products")
    parser.add_argument("--rows", type=lengths, default=[1, 2, 4, 8, 16, 32, 64, 128, 512], help="as well")
    parser.add_argument("--depths", type=lengths, default=[512, 4096, 16384, 65536])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-t", "--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the results there, too")
    args = parser.parse_args()
    set_threads(args.threads)
    bench = Bench(args.rounds)
    print(f"{'group':10} {'case':52} {'us':>10} {'GB/s':>8} {'of read':>8} {'GFLOP/s':>8}")
    read = statistics.median(bench.read.rate() for _ in range(10)) / 1e9
    print(f"{'read':10} {f'{args.threads} threads':52} {'':>10} {read:8.1f}")
    run(bench, args)
    results = [asdict(result) for result in bench.results]
    write_json(args.json, {"threads": args.threads, "read_gb_s": read, "results": results})


if __name__ == "__main__":
    main()
