"""``elastikv serve``: the HTTP server, from its flags to its end."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from elastikv.cli.options import add_model_arguments, llm_from_args
from elastikv.errors import InvalidRequest
from elastikv.memory.growth import parse_size

if TYPE_CHECKING:
    from elastikv.engine.async_llm import AsyncLLM
    from elastikv.engine.llm import LLM
    from elastikv.engine.policy import SchedulerOptions
    from elastikv.server import ServerSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    http = parser.add_argument_group("HTTP")
    http.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every network")
    http.add_argument("--port", type=int, default=8080, help="0: any free one")
    http.add_argument("--api-key", metavar="KEY", help="ask for this key; several, separated by commas, may serve")
    http.add_argument("-a", "--alias", metavar="NAME", help="what the model is called; none: what it calls itself")
    http.add_argument(
        "-to",
        "--timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="for slow clients, and for the last replies",
    )
    http.add_argument("--max-body", default="16MiB", metavar="SIZE", help="largest body of a request")
    http.add_argument("--slot-save-path", type=Path, metavar="DIR", help="where /slots/{id}?action=save writes")
    sessions = parser.add_argument_group("sessions")
    sessions.add_argument(
        "-np", "--parallel", type=int, default=4, metavar="N", help="replies that are computed at once"
    )
    sessions.add_argument("--max-queue", type=int, default=64, metavar="N", help="requests that may wait")
    sessions.add_argument(
        "--kv-idle-release", type=float, metavar="SECONDS", help="give back an idle session's spare memory; none: never"
    )
    sessions.add_argument(
        "--kv-idle-drop",
        type=float,
        metavar="SECONDS",
        help="park or drop an idle session; none: when memory is wanted",
    )
    sessions.add_argument("--kv-park", type=Path, metavar="DIR", help="keep sessions here when their memory is wanted")
    sessions.add_argument(
        "--prefix-reuse", action=argparse.BooleanOptionalAction, default=True, help="keep what prompts have in common"
    )
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; running replies then get ``--timeout`` to end. Raises what keeps the model from loading."""
    import uvicorn

    from elastikv.server import create_app

    settings = settings_from_args(args)
    scheduling = scheduling_from_args(args)
    listener = _listen(settings)
    failures: list[BaseException] = []

    def load_failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, lambda: _load_engine(args, scheduling), load_failed)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.timeout)),
    )
    server = uvicorn.Server(config)
    # uvicorn drains, and then raises the signal again; but a server that has drained has ended well.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    if failures:
        raise failures[0]
    return 0


def settings_from_args(args: argparse.Namespace) -> ServerSettings:
    """Raises InvalidRequest."""
    from elastikv.server import ServerSettings

    if not 0 <= args.port < 65536:
        raise InvalidRequest(f"--port must be in 0..65535, got {args.port}")
    if not args.timeout > 0:
        raise InvalidRequest(f"--timeout must be above 0, got {args.timeout:g}")
    if args.slot_save_path is not None:
        try:
            args.slot_save_path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidRequest(f"--slot-save-path {args.slot_save_path}: {error.strerror}") from error
    return ServerSettings(
        host=args.host,
        port=args.port,
        api_keys=tuple(key for key in (args.api_key or "").split(",") if key),
        alias=args.alias,
        timeout=args.timeout,
        max_body_bytes=parse_size(args.max_body),
        slot_save_path=args.slot_save_path,
    )


def scheduling_from_args(args: argparse.Namespace) -> SchedulerOptions:
    """Raises InvalidRequest."""
    from elastikv.engine.policy import SchedulerOptions

    return SchedulerOptions(
        n_parallel=args.parallel,
        max_queue=args.max_queue,
        idle_release_seconds=args.kv_idle_release,
        idle_drop_seconds=args.kv_idle_drop,
        park_dir=args.kv_park,
        prefix_reuse=args.prefix_reuse,
    )


def _load_engine(args: argparse.Namespace, scheduling: SchedulerOptions) -> AsyncLLM:
    from elastikv.engine.async_llm import AsyncLLM

    llm = llm_from_args(args, scheduler=scheduling)
    _warm_up(llm)
    return AsyncLLM(llm)


def _warm_up(llm: LLM) -> None:
    """Kernels compile when they are first used: better now than while a client waits."""
    for n_tokens in (min(40, llm.n_ctx), 1):
        llm.forward([0] * n_tokens, seq_id=0)
        llm.memory.seq_rm(0)


def _listen(settings: ServerSettings) -> socket.socket:
    """The port is open before the model loads, so that health checks find somebody. Raises InvalidRequest."""
    if settings.is_open_to_the_network and not settings.api_keys:
        _say(f"warning: with --host {settings.host} everyone on the network can use this server; set --api-key")
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidRequest(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
    _say(f"listening on http://{host}:{listener.getsockname()[1]}")
    return listener


def _say(line: str) -> None:
    print(f"elastikv: {line}", file=sys.stderr, flush=True)
