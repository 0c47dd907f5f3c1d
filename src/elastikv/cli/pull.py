"""``elastikv pull``: fetch a model of the Hugging Face Hub into its cache, or what has changed of it."""

from __future__ import annotations

import argparse

from elastikv.cli.options import hub_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "model",
        metavar="NAME",
        help="user/repo, or user/repo:QUANT where there are GGUF files; no QUANT: Q4_K_M, else Q8_0, else the first",
    )


def run(args: argparse.Namespace) -> int:
    """Print where the model lies. Returns the exit status."""
    from elastikv.hub.download import pull

    print(pull(hub_model(args.model)))
    return 0
