"""Flags that several commands share, named as llama.cpp names them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastikv.cli.logs import take_over
from elastikv.errors import InvalidRequest

if TYPE_CHECKING:
    from elastikv import LLM, SamplingParams, SchedulerOptions
    from elastikv.hub import HubModel

CELL_TYPES = ("f32", "f16", "bf16", "q8_0")
DTYPES = ("auto", "f32", "bf16", "f16")
RUNTIMES = ("auto", "elastikv", "transformers", "llama.cpp")
QUANTS = ("none", "q8_0", "q4_0")


def add_model_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """``-m``, the sizes of a run, and what the KV cache may do. several: see ``each_model``."""
    model = parser.add_argument_group("model")
    add_source_arguments(model, "Hugging Face folder or GGUF file", several=several)
    model.add_argument("-t", "--threads", type=int, metavar="N", help="CPU threads; none: all cores")
    model.add_argument("-b", "--batch-size", type=int, default=2048, metavar="N", help="tokens of one decode call")
    model.add_argument("-ub", "--ubatch-size", type=int, default=512, metavar="N", help="tokens computed at once")
    add_runtime_argument(model)
    model.add_argument(
        "-ngl", "--n-gpu-layers", "--gpu-layers", type=int, default=0, metavar="N", help="layers on a device; -1: all"
    )
    model.add_argument("--device", default="cpu", metavar="NAME", help="where weights and memory are: cpu")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="weights in memory; auto: as in the file")
    model.add_argument("--quantize", choices=QUANTS, help="pack the weights; none given: as in the file")
    model.add_argument(
        "--kernels",
        choices=("auto", "cpu", "reference"),
        default="auto",
        help="numba's, or plain torch; auto: plain torch until numba's are compiled (first run only)",
    )
    model.add_argument(
        "--attention-precision",
        choices=("auto", "f32"),
        default="auto",
        help="of attention over prompts; auto: 16-bit integers where these are faster",
    )
    add_kv_arguments(parser)


def add_source_arguments(group: argparse._ArgumentGroup, kinds: str, *, several: bool = False) -> None:
    """``-m`` and ``-hf``: which model; or several, in ``sources``, see ``each_model``."""

    def into_sources(name: str) -> dict[str, Any]:
        return {"dest": "sources", "action": "append", "type": partial(_source, name)} if several else {}

    source = group if several else group.add_mutually_exclusive_group()
    end = "; repeatable" if several else ""
    source.add_argument(
        "-m", "--model", metavar="PATH", help=f"{kinds}; none: the demo model{end}", **into_sources("model")
    )
    source.add_argument(
        "-hf",
        "-hfr",
        "--hf-repo",
        metavar="NAME",
        help=f"user/repo[:quant] of the Hugging Face Hub, fetched unless its cache has it; see elastikv pull{end}",
        **into_sources("hf_repo"),
    )


def _source(name: str, text: str) -> dict[str, str | None]:
    return {"model": None, "hf_repo": None, name: text}


def each_model(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments of each model that ``-m`` and ``-hf`` name, as if it were the only one."""
    sources = args.sources or [{"model": None, "hf_repo": None}]  # the demo model
    return [argparse.Namespace(**{**vars(args), **source}) for source in sources]


def hub_model(name: str) -> HubModel:
    """The model of the hub that is called so. Raises InvalidRequest."""
    import huggingface_hub.utils

    from elastikv.hub import HubModel

    take_over(huggingface_hub.__name__)
    return HubModel.parse(name)


def model_path(args: argparse.Namespace, *, weights: bool = True) -> Path:
    """Where the model lies that ``-m`` or ``-hf`` asks for, see ``local_path``. Raises InvalidRequest, HubError."""
    from elastikv.hub import HubModel, local_path

    if args.hf_repo is not None:
        return local_path(hub_model(args.hf_repo), weights=weights)
    if args.model is None:
        return local_path(None)
    path = Path(args.model)
    if not path.expanduser().exists() and HubModel.is_name(args.model):
        raise InvalidRequest(f"{path}: no such file or folder; for the model of the hub: -hf {args.model}")
    return local_path(path)


def add_runtime_argument(group: argparse._ArgumentGroup) -> None:
    """What runs the model."""
    group.add_argument("--runtime", choices=RUNTIMES, default="auto", help="auto: the first that can")


def add_kv_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that decide what the KV cache may cost."""
    kv = parser.add_argument_group("KV cache")
    kv.add_argument(
        "-c", "--ctx-size", type=int, metavar="N", help="cells a sequence may have; none: the model's own maximum"
    )
    kv.add_argument("-ctk", "--cache-type-k", choices=CELL_TYPES, default="f16", help="type of K cells")
    kv.add_argument("-ctv", "--cache-type-v", choices=CELL_TYPES, default="f16", help="type of V cells")
    kv.add_argument(
        "--kv-dynamic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="grow on demand; --no-kv-dynamic commits all of -c at the start",
    )
    kv.add_argument("--kv-initial", type=int, default=256, metavar="N", help="cells of a new sequence")
    kv.add_argument("--kv-growth", metavar="POLICY", help="double:1GiB, step:256 or exact; none: the storage's default")
    kv.add_argument("--kv-budget", default="auto", metavar="SIZE", help="4GiB, auto or none: bound on KV and compute")
    kv.add_argument("--kv-storage", choices=("auto", "mmap", "copy"), default="auto", help="where cells live")


def add_sampling_arguments(parser: argparse.ArgumentParser, *, n_predict: int, title: str = "sampling") -> None:
    """How tokens are chosen and when to stop."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "-n", "--predict", "--n-predict", type=int, default=n_predict, metavar="N", help="tokens; -1: no limit but -c"
    )
    group.add_argument("--temp", type=float, default=0.8, metavar="T", help="temperature; 0: always the likeliest")
    group.add_argument("--top-k", type=int, default=40, metavar="K", help="0: off")
    group.add_argument("--top-p", type=float, default=0.95, metavar="P", help="1: off")
    group.add_argument("--min-p", type=float, default=0.05, metavar="P", help="0: off")
    group.add_argument("--repeat-penalty", type=float, default=1.0, metavar="X", help="1: off")
    group.add_argument(
        "--repeat-last-n", type=int, default=64, metavar="N", help="tokens that penalties look at; -1: all"
    )
    group.add_argument("--presence-penalty", type=float, default=0.0, metavar="X", help="0: off")
    group.add_argument("--frequency-penalty", type=float, default=0.0, metavar="X", help="0: off")
    _add_sampler_arguments(group)
    group.add_argument("-s", "--seed", type=int, metavar="N", help="none: a new one each time")
    group.add_argument(
        "-r", "--stop", action="append", default=[], metavar="TEXT", help="stop at this text; repeatable"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after the end-of-text token")


def _add_sampler_arguments(group: argparse._ArgumentGroup) -> None:
    """Samplers that are off unless they are asked for, and the order of all."""
    group.add_argument("--dry-multiplier", type=float, default=0.0, metavar="X", help="cost of repetitions; 0: off")
    group.add_argument("--dry-base", type=float, default=1.75, metavar="X", help="of what a longer one costs")
    group.add_argument("--dry-allowed-length", type=int, default=2, metavar="N", help="up to this they are free")
    group.add_argument(
        "--dry-penalty-last-n", type=int, default=64, metavar="N", help="tokens that DRY looks at; -1: all"
    )
    group.add_argument(
        "--dry-sequence-breaker",
        action="append",
        metavar="TEXT",
        help=r'repeatable; no repetition goes across it; not given: \n : " *; "none": none',
    )
    group.add_argument("--top-nsigma", "--top-n-sigma", type=float, default=-1.0, metavar="N", help="-1: off")
    group.add_argument("--typical", "--typical-p", type=float, default=1.0, metavar="P", help="1: off")
    group.add_argument("--xtc-probability", type=float, default=0.0, metavar="P", help="0: off")
    group.add_argument("--xtc-threshold", type=float, default=0.1, metavar="P", help="above 0.5: off")
    order = group.add_mutually_exclusive_group()
    order.add_argument("--samplers", metavar="A;B;...", help="those to apply, in order; none given: all, as llama.cpp")
    order.add_argument("--sampler-seq", "--sampling-seq", metavar="LETTERS", help="the same in letters: edskypmxt")


def add_speculation_arguments(parser: argparse.ArgumentParser) -> None:
    """llama-server's flags for what it calls ngram-simple."""
    group = parser.add_argument_group("speculation")
    group.add_argument(
        "--spec-type",
        choices=("none", "ngram-simple"),
        default="none",
        help="compute what the text suggests along with the next token; texts stay the same",
    )
    group.add_argument(
        "--spec-ngram-simple-size-n", type=int, default=3, metavar="N", help="tokens that must have stood there before"
    )
    group.add_argument(
        "--spec-ngram-simple-size-m", type=int, default=16, metavar="M", help="tokens that are guessed at most"
    )


def scheduler_from_args(args: argparse.Namespace, **others: Any) -> SchedulerOptions:
    """What ``add_speculation_arguments`` has read, and other fields. Raises InvalidRequest."""
    from elastikv import SchedulerOptions

    return SchedulerOptions(
        speculation=args.spec_type,
        ngram_size_n=args.spec_ngram_simple_size_n,
        ngram_size_m=args.spec_ngram_simple_size_m,
        **others,
    )


def llm_from_args(args: argparse.Namespace, **overrides: object) -> LLM:
    """Load the model that the flags ask for, with a progress bar on a terminal."""
    path = model_path(args)

    from elastikv import LLM

    keywords: dict[str, object] = {
        "n_ctx": args.ctx_size,
        "n_threads": args.threads,
        "n_batch": args.batch_size,
        "n_ubatch": args.ubatch_size,
        "runtime": args.runtime,
        "device": args.device,
        "dtype": args.dtype,
        "quantize": args.quantize,
        "kernels": args.kernels,
        "attention_precision": args.attention_precision,
        "n_gpu_layers": args.n_gpu_layers,
        "kv_dtype": (args.cache_type_k, args.cache_type_v),
        "kv_dynamic": args.kv_dynamic,
        "kv_initial": args.kv_initial,
        "kv_growth": args.kv_growth,
        "kv_budget": args.kv_budget,
        "kv_storage": args.kv_storage,
    }
    with loading_progress() as progress:
        return LLM(path, progress=progress, **{**keywords, **overrides})  # type: ignore[arg-type]


@contextmanager
def loading_progress() -> Iterator[object]:
    """A byte-counting progress bar on stderr; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def sampling_from_args(args: argparse.Namespace) -> SamplingParams:
    """What ``add_sampling_arguments`` has read. Raises InvalidRequest."""
    from elastikv import SamplingParams

    if args.predict == 0:
        raise InvalidRequest("-n must be at least 1, or -1 for no limit but -c; got 0")
    given: dict[str, Any] = {}
    if args.samplers is not None:
        given["samplers"] = [name for name in args.samplers.split(";") if name]
    elif args.sampler_seq is not None:
        given["samplers"] = args.sampler_seq
    if args.dry_sequence_breaker is not None:
        given["dry_sequence_breakers"] = _breakers(args.dry_sequence_breaker)
    return SamplingParams(
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repeat_penalty=args.repeat_penalty,
        repeat_last_n=args.repeat_last_n,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        dry_multiplier=args.dry_multiplier,
        dry_base=args.dry_base,
        dry_allowed_length=args.dry_allowed_length,
        dry_penalty_last_n=args.dry_penalty_last_n,
        top_n_sigma=args.top_nsigma,
        typical_p=args.typical,
        xtc_probability=args.xtc_probability,
        xtc_threshold=args.xtc_threshold,
        seed=args.seed,
        max_tokens=None if args.predict < 0 else args.predict,
        stop=args.stop,
        ignore_eos=args.ignore_eos,
        **given,
    )


def _breakers(texts: Sequence[str]) -> list[str]:
    """As llama.cpp reads them: ``none`` takes back those before it, and a backslash escapes."""
    if "none" in texts:
        last = len(texts) - 1 - list(reversed(texts)).index("none")
        texts = texts[last + 1 :]
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    return [re.sub(r"\\(.)", lambda match: escapes.get(match[1], match[1]), text) for text in texts]


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt of ``-p``, ``-f`` or standard input, in this order; it must be UTF-8 and not empty."""
    if args.prompt is not None:
        # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
        prompt = _decode(args.prompt.encode("utf-8", "surrogateescape"), "-p")
    elif args.file is not None:
        prompt = _decode(_read_file(args.file), args.file)
    elif not sys.stdin.isatty():
        prompt = _decode(sys.stdin.buffer.read(), "standard input")
    else:
        raise InvalidRequest("no prompt: give one with -p TEXT, -f FILE or on standard input")
    if not prompt:
        raise InvalidRequest("the prompt is empty: give some text with -p TEXT, -f FILE or on standard input")
    return prompt


def _read_file(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"cannot read the prompt file {name}: {error.strerror}") from error


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"the prompt in {where} is not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}); "
            "convert it, for instance with iconv -t UTF-8"
        ) from error
