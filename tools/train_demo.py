"""Train the model that ships with elastikv, on the sources of Python's own standard library.

    nice -n 10 python -m tools.train_demo --minutes 40 --threads 2 --bf16 --out src/elastikv/demo

A hybrid of the Qwen3.5 text shape: eight layers, every fourth attends, the others are gated delta nets. The
schedule follows the clock: the learning rate warms up, stays, and falls to zero when ``--minutes`` are over, and
sequences become longer on the way. Every few minutes the validation loss and a sample are printed and the
model is written to ``--out``, so that a run that is cut short leaves a model too. ``--bf16`` computes in bfloat16,
which is faster where the CPU has instructions for it (avx512_bf16, amx) and slower where not.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen3_5ForCausalLM

from tools.demo_corpus import END_OF_TEXT, pieces, read_corpus, train_tokenizer
from tools.demo_model import new_model, sample, save

say = partial(print, flush=True)  # so that a log file can be followed

N_VOCAB = 3072
TOKENS_PER_STEP = 2048
# Share of the run that is over -> length of a training sequence. Short ones are cheaper per token.
SEQUENCE_LENGTHS = ((0.0, 256), (0.7, 512), (0.9, 1024))
N_VALIDATION_TOKENS = 16 * 1024
MATRIX_LR, OTHER_LR = 5e-3, 3e-3
WARM_UP, DECAY = 0.03, 0.5  # shares of the run

SAMPLE_PROMPTS = (
    "def ",
    'class Cache:\n    """',
    "<|im_start|>user\nWhat does os.path.join do?<|im_end|>\n<|im_start|>assistant\n",
)


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms, gates and convolutions."""
    matrices, vectors, embeddings = [], [], []
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            embeddings.append(parameter)
        elif parameter.ndim == 2 and min(parameter.shape) >= 64:
            matrices.append(parameter)
        else:
            vectors.append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LR, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(embeddings + vectors, lr=OTHER_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


@dataclass
class Clock:
    """Where the run stands, between 0 and 1, and what follows from that."""

    minutes: float
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / (60 * self.minutes))

    def rate(self) -> float:
        """The learning rate as a share of the highest: up, level, down to zero."""
        return max(0.0, min(1.0, self.progress / WARM_UP + 0.02, (1 - self.progress) / DECAY))

    def sequence_length(self) -> int:
        return [length for start, length in SEQUENCE_LENGTHS if self.progress >= start][-1]


def encode(tokenizer: Tokenizer, documents: list[str]) -> list[torch.Tensor]:
    end = tokenizer.token_to_id(END_OF_TEXT)
    return [torch.tensor([*encoding.ids, end]) for encoding in tokenizer.encode_batch(documents)]


def encode_in_pieces(tokenizer: Tokenizer, documents: list[str], seed: int) -> list[torch.Tensor]:
    """As ``encode``, with ends of tokens where no tokenizer would have put them: see ``pieces``."""
    end, chance = tokenizer.token_to_id(END_OF_TEXT), random.Random(seed)
    encoded = (tokenizer.encode_batch(pieces(document, chance)) for document in documents)
    return [torch.tensor([token for encoding in each for token in encoding.ids] + [end]) for each in encoded]


def batches(documents: list[torch.Tensor], clock: Clock, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless ``[n_sequences, n_tokens + 1]``: each sequence from a place of its own.

    Neighbours would come from one file, and one long file of tables would be all that many steps see.
    """
    order = torch.randperm(len(documents), generator=generator)
    stream = torch.cat([documents[i] for i in order])
    while True:
        length = clock.sequence_length()
        starts = torch.randint(len(stream) - length, (TOKENS_PER_STEP // length, 1), generator=generator)
        yield stream[starts + torch.arange(length + 1)]


def loss_of(model: nn.Module, tokens: torch.Tensor, bf16: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


@dataclass
class Validation:
    """Held-out text: its loss in nats per token and in bits per byte, which no tokenizer can flatter."""

    tokens: torch.Tensor
    n_bytes_per_token: float

    @classmethod
    def of(cls, tokenizer: Tokenizer, documents: list[str]) -> Validation:
        """Rows of 512 tokens and their successors, evenly spread over the held-out documents."""
        tokens = torch.cat(encode(tokenizer, documents))
        rows = tokens[: len(tokens) // 513 * 513].view(-1, 513)
        n_bytes = sum(len(document.encode()) for document in documents)
        return cls(rows[:: max(1, len(tokens) // N_VALIDATION_TOKENS)], n_bytes / len(tokens))

    @torch.no_grad()
    def measure(self, model: nn.Module, bf16: bool) -> tuple[float, float]:
        losses = [loss_of(model, part, bf16).item() * len(part) for part in self.tokens.split(4)]
        loss = sum(losses) / len(self.tokens)
        return loss, loss / math.log(2) / self.n_bytes_per_token


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks instead of returning them: page faults cost a third of a step."""
    if sys.platform != "linux":
        return
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 2**26), (m_arena_max, 1)):
            libc.mallopt(option, value)


@dataclass
class Run:
    """One training run: what it learns from, what it learns with, and how far it is."""

    tokenizer: Tokenizer
    model: Qwen3_5ForCausalLM
    documents: list[torch.Tensor]
    validation: Validation
    clock: Clock
    bf16: bool
    n_steps: int = 0
    smooth_loss: float = math.nan

    def train(self, generator: torch.Generator, report_every: float, out: Path) -> None:
        """Learn until the clock has run out; report and save every ``report_every`` seconds and at the end."""
        steps = optimizers(self.model)
        highest = [optimizer.param_groups[0]["lr"] for optimizer in steps]
        next_report = report_every
        for tokens in batches(self.documents, self.clock, generator):
            for optimizer, rate in zip(steps, highest, strict=True):
                optimizer.param_groups[0]["lr"] = rate * self.clock.rate()
            self._step(tokens, steps)
            if self.clock.seconds >= next_report or self.clock.progress >= 1:
                save(self.model, self.tokenizer, out)
                self._report()
                next_report = self.clock.seconds + report_every
            if self.clock.progress >= 1:
                return

    def _step(self, tokens: torch.Tensor, steps: list[torch.optim.Optimizer]) -> None:
        loss = loss_of(self.model, tokens, self.bf16)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in steps:
            optimizer.step()
            optimizer.zero_grad()
        self.n_steps += 1
        self.smooth_loss = loss.item() if self.n_steps == 1 else 0.95 * self.smooth_loss + 0.05 * loss.item()
        if self.n_steps % 20 == 0:
            seconds, speed = self.clock.seconds, self.n_steps * TOKENS_PER_STEP / self.clock.seconds
            say(f"{seconds / 60:6.1f} min  step {self.n_steps}  loss {self.smooth_loss:.3f}  {speed:.0f} tokens/s")

    def _report(self) -> None:
        loss, bits = self.validation.measure(self.model, self.bf16)
        say(f"validation: {loss:.4f} nats per token, {bits:.4f} bits per byte")
        for prompt in SAMPLE_PROMPTS:
            say("---\n" + sample(self.model, self.tokenizer, prompt))


def start(args: argparse.Namespace) -> Run:
    """A fresh model and its tokenizer, or those of ``--init``."""
    corpus = read_corpus()
    if args.init:
        tokenizer = Tokenizer.from_file(str(args.init / "tokenizer.json"))
        model = Qwen3_5ForCausalLM.from_pretrained(args.init, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(corpus.train, N_VOCAB)
        model = new_model(tokenizer)
    documents = encode_in_pieces(tokenizer, corpus.train, args.seed)
    n_params, n_tokens = sum(parameter.numel() for parameter in model.parameters()), sum(map(len, documents))
    validation = Validation.of(tokenizer, corpus.held_out)
    say(f"{n_params:,} parameters, {n_tokens:,} tokens of {validation.n_bytes_per_token:.2f} bytes")
    return Run(tokenizer, model, documents, validation, Clock(args.minutes), args.bf16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40, help="how long to train (default 40)")
    parser.add_argument("--report-minutes", type=float, default=5, help="how often to validate, sample and save")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--init", type=Path, help="folder of an earlier run to go on from, with a new schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_flush_denormal(True)  # decays underflow; set before the first parallel region, whose threads inherit it
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    run = start(args)
    run.train(torch.Generator().manual_seed(args.seed), 60 * args.report_minutes, args.out)
    say(f"{run.n_steps} steps of {TOKENS_PER_STEP} tokens in {run.clock.seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
