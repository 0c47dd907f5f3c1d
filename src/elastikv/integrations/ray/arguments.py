"""What ``serve run elastikv.integrations.ray:app`` may be told: the flags of ``elastikv serve``, and the cluster's."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastikv.cli import serve
from elastikv.errors import InvalidRequest
from elastikv.server.settings import ServerSettings

_OF_RAY = {
    "host": "http_options.host",
    "port": "http_options.port",
    "log_format": "logging_config.encoding",
}
"""Flags of a server that listens itself, and what Ray Serve calls them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Arguments that have been checked. Paths are absolute: replicas start in folders of their own."""

    flags: argparse.Namespace
    settings: ServerSettings


def plan(arguments: Mapping[str, Any]) -> Plan:
    """Read arguments named as the flags, with underscores: ``kv_budget="8GiB"``. Raises InvalidRequest."""
    for name in arguments:
        if name in _OF_RAY:
            raise InvalidRequest(f"{name}: it is Ray Serve that listens and logs; set its {_OF_RAY[name]}")
    parser = argparse.ArgumentParser(prog="elastikv", exit_on_error=False, allow_abbrev=False, add_help=False)
    serve.add_arguments(parser)
    _add_cluster_arguments(parser)
    try:
        flags, unknown = parser.parse_known_args(list(_words(arguments)))
    except argparse.ArgumentError as error:
        flag = (error.argument_name or "").split("/")[-1]
        raise InvalidRequest(f"{flag.lstrip('-').replace('-', '_')}: {error.message}") from error
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-").replace("-", "_")
        raise InvalidRequest(f"{name}: there is no such argument; elastikv serve --help lists them, with dashes")
    _check_cluster_arguments(flags)
    if flags.threads is None:
        flags.threads = max(1, int(flags.num_cpus))
    for source in flags.sources or ():
        if source["model"] is not None and Path(source["model"]).expanduser().exists():
            source["model"] = str(Path(source["model"]).expanduser().absolute())
    for name in ("kv_park", "slot_save_path", "api_key_file"):
        path = getattr(flags, name)
        if path is not None:
            setattr(flags, name, path.expanduser().absolute())
    serve.models_from_args(flags)  # what is wrong with them shows now
    return Plan(flags, serve.settings_from_args(flags))


def _add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """As ``serve run`` is told them; ``elastikv serve`` has none of them."""
    parser.add_argument("--min-replicas", type=int, default=1)
    parser.add_argument("--max-replicas", type=int, default=8)
    parser.add_argument("--num-cpus", type=float, default=1.0)  # of a replica
    parser.add_argument("--fronts", type=int, default=1)  # that read requests and route them
    parser.add_argument("--target-used", type=float, default=0.7)  # share of a budget that working sets may take
    parser.add_argument("--working-set-seconds", type=float, default=60.0)
    parser.add_argument("--upscale-delay", type=float, default=10.0)
    parser.add_argument("--downscale-delay", type=float, default=120.0)


def _check_cluster_arguments(flags: argparse.Namespace) -> None:
    if not 1 <= flags.min_replicas <= flags.max_replicas:
        raise InvalidRequest(
            f"min_replicas: it must be in 1..max_replicas ({flags.max_replicas}), got {flags.min_replicas}"
        )
    if not 0 < flags.target_used <= 1:
        raise InvalidRequest(f"target_used: it must be above 0 and at most 1, got {flags.target_used:g}")
    for name, least in (("fronts", 1), ("num_cpus", 0), ("working_set_seconds", 0)):
        if not getattr(flags, name) >= least:
            raise InvalidRequest(f"{name}: it must be at least {least}, got {getattr(flags, name):g}")


def _words(arguments: Mapping[str, Any]) -> Iterator[str]:
    """The command line that says the same."""
    for name, given in arguments.items():
        flag = name.replace("_", "-")
        for value in given if isinstance(given, list | tuple) else [given]:
            if str(value).lower() in ("true", "false"):
                yield f"--{flag}" if str(value).lower() == "true" else f"--no-{flag}"
            elif value is not None:
                yield f"--{flag}={value}"
