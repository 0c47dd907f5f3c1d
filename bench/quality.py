"""What smaller cells, packed weights and attention over prompts in integers cost in quality.

    python -m bench.quality
    python -m bench.quality -m ./Qwen3-0.6B --text some.txt

Perplexity per token on held-out text (the demo model: files of Python's library that it was not trained on), and
the error of the logits against 32-bit cells and weights, as relative rms. Most tokens go through prefill, the
last ones of each document one at a time, because decoding multiplies in other ways.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch

from bench.report import new_parser, write_json
from elastikv import LLM

# Cells, weights, attention over prompts.
CELLS = tuple((cells, "none", "f32") for cells in ("f32", "f16", "bf16", "q8_0"))
ATTENTION = tuple((cells, "none", "auto") for cells in ("f32", "f16", "q8_0"))
WEIGHTS = tuple((cells, weights, "auto") for cells, weights in (("f16", "q8_0"), ("f16", "q4_0"), ("q8_0", "q8_0")))
N_DECODED = 32


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("-m", "--model", help="default: the demo model")
    parser.add_argument("--text", type=Path, help="a file of text; default: the demo model's held-out documents")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512, help="of each document at most")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with LLM(args.model, n_threads=args.threads) as llm:
        documents = [llm.tokenizer.encode(text) for text in read_texts(args)]
    documents = [tokens[: args.tokens] for tokens in documents if len(tokens) > 2 * N_DECODED][: args.documents]
    print(f"{len(documents)} documents, {sum(map(len, documents))} tokens")
    columns = f"{'cells':8} {'weights':8} {'attention':9} {'perplexity':>10} {'change':>8}"
    print(f"{columns} {'logits: prefill':>16} {'decode':>8}")
    exact: list[torch.Tensor] = []
    rows: list[dict[str, Any]] = []
    for cells, weights, precision in CELLS + ATTENTION + WEIGHTS:
        forms: dict[str, Any] = {"kv_dtype": cells, "quantize": weights, "attention_precision": precision}
        with LLM(args.model, dtype="f32", n_threads=args.threads, **forms) as llm:
            llm.engine.warm_up()
            logits = [logits_of(llm, tokens) for tokens in documents]
        exact = exact or logits
        loss = sum(loss_of(each, tokens) for each, tokens in zip(logits, documents, strict=True))
        perplexity = math.exp(loss / sum(len(tokens) - 1 for tokens in documents))
        row = {
            "cells": cells,
            "weights": weights,
            "attention": precision,
            "perplexity": perplexity,
            "change": perplexity / (rows[0]["perplexity"] if rows else perplexity) - 1,
            "prefill": relative_rms([each[:-N_DECODED] for each in logits], [each[:-N_DECODED] for each in exact]),
            "decode": relative_rms([each[-N_DECODED:] for each in logits], [each[-N_DECODED:] for each in exact]),
        }
        rows.append(row)
        print(
            f"{cells:8} {'f32' if weights == 'none' else weights:8} {precision:9} {perplexity:10.4f} "
            f"{row['change']:+8.3%} {row['prefill']:16.4%} {row['decode']:8.4%}",
            flush=True,
        )
    write_json(args.json, rows)


def read_texts(args: argparse.Namespace) -> list[str]:
    if args.text:
        return [args.text.read_text(encoding="utf-8")]
    if args.model:
        sys.exit("give --text FILE; only the demo model has held-out documents of its own")
    from tools.demo_corpus import read_corpus

    held_out = read_corpus().held_out
    return held_out[:: max(len(held_out) // (4 * args.documents), 1)]


def logits_of(llm: LLM, tokens: list[int]) -> torch.Tensor:
    """float32 ``[n_tokens, n_vocab]``."""
    head, tail = tokens[:-N_DECODED], tokens[-N_DECODED:]
    parts = [llm.forward(head), *(llm.forward([token]) for token in tail)]
    llm.memory.seq_rm(0)
    return torch.cat(parts)


def loss_of(logits: torch.Tensor, tokens: list[int]) -> float:
    return float(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]), reduction="sum"))


def relative_rms(logits: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    error = sum(float((a - b).double().square().sum()) for a, b in zip(logits, exact, strict=True))
    return math.sqrt(error / sum(float(b.double().square().sum()) for b in exact))


if __name__ == "__main__":
    main()
