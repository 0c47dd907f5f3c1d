"""``elastikv run``: a prompt in, text out as it comes."""

from __future__ import annotations

import argparse
import sys
import time

from elastikv.cli.options import (
    add_model_arguments,
    add_sampling_arguments,
    add_speculation_arguments,
    llm_from_args,
    read_prompt,
    sampling_from_args,
    scheduler_from_args,
)
from elastikv.cli.report import ResizeLog, print_stats
from elastikv.errors import GenerationCut


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the text to go on from")
    prompt.add_argument("-f", "--file", metavar="FILE", help="read the prompt from a file")
    prompt.add_argument(
        "--display-prompt", action=argparse.BooleanOptionalAction, default=True, help="print the prompt before the text"
    )
    prompt.add_argument("--stats", action="store_true", help="a table of memory and speed at the end")
    prompt.add_argument("-v", "--verbose", action="store_true", help="a line on stderr for every resize")
    add_model_arguments(parser)
    add_speculation_arguments(parser)
    add_sampling_arguments(parser, n_predict=256)


def run(args: argparse.Namespace) -> int:
    """Complete one prompt. Returns the exit status."""
    prompt = read_prompt(args)
    params = sampling_from_args(args)
    started = time.perf_counter()
    with llm_from_args(args, scheduler=scheduler_from_args(args)) as llm:
        load_seconds = time.perf_counter() - started
        resizes = ResizeLog(llm, enabled=args.verbose)
        # Shown with the first token and not before: what the log has to say stands above the text, not in it.
        unshown = prompt if args.display_prompt else ""
        output = None
        cut: GenerationCut | None = None
        try:
            for delta in llm.stream(prompt, params):
                _write(unshown + delta.text)
                unshown = ""
                resizes.update()
                output = delta.output or output
        except GenerationCut as error:
            cut, output = error, error.output
        _write("\n")
        if args.stats and output is not None:
            print_stats(llm, output, load_seconds)
        if cut is not None:
            raise cut
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
