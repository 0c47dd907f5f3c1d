"""``elastikv doctor``: what this machine and this installation give, and what would make it faster."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

from elastikv.cli.checks import SECTIONS, Fact, Section
from elastikv.errors import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns the exit status: 1 if something is broken."""
    sections = {name: _checked(check) for name, check in SECTIONS.items()}
    if args.json:
        print(json.dumps({name: asdict(section) for name, section in sections.items()}, indent=2))
    else:
        _print(sections)
    return 1 if any(section.broken for section in sections.values()) else 0


def _checked(check: Callable[[], Section]) -> Section:
    """Whatever is wrong there, the other sections are told."""
    try:
        return check()
    except Exception as error:
        return Section(broken=[f"{type(error).__name__}: {one_line(error)}"])


def _print(sections: Mapping[str, Section]) -> None:
    for name, section in sections.items():
        print(name)
        for fact, value in section.facts.items():
            print(f"  {fact:<42} {_shown(value)}")
    for heading, lines in (
        ("could be faster", [line for section in sections.values() for line in section.advice]),
        ("broken", [f"{name}: {line}" for name, section in sections.items() for line in section.broken]),
    ):
        print(heading if lines else f"{heading}: nothing")
        for line in lines:
            print(f"  - {line}")


def _shown(value: Fact) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
