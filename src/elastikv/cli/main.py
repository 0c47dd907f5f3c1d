"""``elastikv COMMAND``: dispatch, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from elastikv.cli.logs import on_stderr
from elastikv.errors import ElastikvError

log = logging.getLogger(__name__)

COMMANDS = {
    "run": "complete a prompt",
    "chat": "talk to a model in the terminal",
    "serve": "serve the OpenAI API over HTTP",
    "top": "watch a running server's memory and sessions",
    "plan": "what a KV cache would cost, without loading weights",
    "bench": "tokens per second of prefill and decode",
    "doctor": "what this machine and this installation give, and what would make it faster",
    "pull": "fetch a model of the Hugging Face Hub into its cache",
    "models": "what the hub's cache has, and what it would cost",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; errors become one line on stderr. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parse(arguments)
    with on_stderr(getattr(args, "log_format", "plain")):
        try:
            return int(args.run(args))
        except ElastikvError as error:
            log.error("%s", error)
            return 1
        except KeyboardInterrupt as stop:
            print(stop, file=sys.stderr)  # mostly an empty line, after the terminal's ^C
            return 130
        except BrokenPipeError:
            # The reader (`| head`) has gone. Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Import only the module of the command that is asked for: `--help` stays instant."""
    parser = argparse.ArgumentParser(
        prog="elastikv", description="Language models with a KV cache that costs what is used, not what is allowed."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        if name == asked:
            module = importlib.import_module(f"elastikv.cli.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser.parse_args(arguments)


def _version() -> str:
    from importlib.metadata import version

    return f"elastikv {version('elastikv')}"


if __name__ == "__main__":
    sys.exit(main())
