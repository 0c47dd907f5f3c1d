"""``elastikv serve``: the HTTP server, from its flags to its end."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from elastikv.cli.options import (
    add_model_arguments,
    add_sampling_arguments,
    add_speculation_arguments,
    llm_from_args,
    sampling_from_args,
    scheduler_from_args,
)
from elastikv.errors import InvalidRequest

if TYPE_CHECKING:
    from elastikv.engine.async_llm import AsyncLLM
    from elastikv.engine.llm import LLM
    from elastikv.engine.options import SchedulerOptions
    from elastikv.server import ServerSettings

log = logging.getLogger(__name__)

API_KEY_VARIABLE = "ELASTIKV_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    http = parser.add_argument_group("HTTP")
    http.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every network")
    http.add_argument("--port", type=int, default=8080, help="0: any free one")
    http.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"ask for this key; several, separated by commas, may serve; none: what {API_KEY_VARIABLE} holds",
    )
    http.add_argument("--api-key-file", type=Path, metavar="FILE", help="keys too, one a line")
    http.add_argument(
        "--allowed-hosts", metavar="NAMES", help="further names of this server where no key is asked for; *: any"
    )
    http.add_argument(
        "--cors-origin", metavar="ORIGINS", help="pages of these origins may use it, such as https://x.org"
    )
    http.add_argument("-a", "--alias", metavar="NAME", help="what the model is called; none: what it calls itself")
    http.add_argument(
        "-to",
        "--timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="for slow clients",
    )
    http.add_argument(
        "--drain", type=float, default=5, metavar="SECONDS", help="for running replies, when the server is told to end"
    )
    http.add_argument("--max-body", default="16MiB", metavar="SIZE", help="largest body of a request")
    http.add_argument("--slot-save-path", type=Path, metavar="DIR", help="where /slots/{id}?action=save writes")
    http.add_argument("--pooling", choices=("mean", "last", "cls"), default="mean", help="of embeddings")
    http.add_argument("--log-format", choices=("text", "json"), default="text", help="lines on standard error")
    http.add_argument("--log-requests", action="store_true", help="a line for every request")
    sessions = parser.add_argument_group("sessions")
    sessions.add_argument(
        "-np", "--parallel", type=int, default=4, metavar="N", help="replies that are computed at once"
    )
    sessions.add_argument("--max-queue", type=int, default=4096, metavar="N", help="requests that may wait")
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
    add_speculation_arguments(parser)
    add_model_arguments(parser)
    add_sampling_arguments(parser, n_predict=-1, title="sampling, where a request is silent")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; running replies then get ``--drain`` to end. Raises what keeps the model from loading."""
    from elastikv.server import Server, create_app

    settings = settings_from_args(args)
    scheduling = scheduling_from_args(args)
    _allow_connections(args.max_queue)
    listener = _listen(settings)
    failures: list[BaseException] = []

    def load_failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, lambda: _load_engine(args, scheduling), load_failed)
    server = Server(app)
    server.run(sockets=[listener])
    if failures:
        raise failures[0]
    if app.state.server.engine is None:
        # A thread still loads. An interpreter that ends under C++ code which waits for it is aborted (SIGABRT).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def settings_from_args(args: argparse.Namespace) -> ServerSettings:
    """Raises InvalidRequest."""
    from elastikv.memory.growth import parse_size
    from elastikv.server import ServerSettings

    if not 0 <= args.port < 65536:
        raise InvalidRequest(f"--port must be in 0..65535, got {args.port}")
    if not args.timeout > 0:
        raise InvalidRequest(f"--timeout must be above 0, got {args.timeout:g}")
    if not args.drain >= 0:
        raise InvalidRequest(f"--drain must be at least 0, got {args.drain:g}")
    _make_folder("--slot-save-path", args.slot_save_path)
    return ServerSettings(
        host=args.host,
        port=args.port,
        api_keys=_api_keys(args),
        allowed_hosts=_allowed_hosts(args.allowed_hosts),
        cors_origins=_cors_origins(args.cors_origin),
        pooling=args.pooling,
        alias=args.alias,
        timeout=args.timeout,
        drain=args.drain,
        max_body_bytes=parse_size(args.max_body),
        slot_save_path=args.slot_save_path,
        sampling=sampling_from_args(args),
        log_requests=args.log_requests,
    )


def _allowed_hosts(flag: str | None) -> tuple[str, ...]:
    from elastikv.server.origins import host_name

    for name in _names(flag):
        if name != "*" and host_name(name.removeprefix("*.")) is None:
            raise InvalidRequest(f"--allowed-hosts: {name!r} is no host; give names such as llm.example.org, or *")
    return _names(flag)


def _cors_origins(flag: str | None) -> tuple[str, ...]:
    from elastikv.server.origins import is_origin

    for origin in _names(flag):
        if not is_origin(origin):
            raise InvalidRequest(f"--cors-origin: {origin!r} is no origin; give scheme://host[:port], or *")
    return _names(flag)


def _names(flag: str | None) -> tuple[str, ...]:
    """What stands between the commas."""
    return tuple(name.strip() for name in (flag or "").split(",") if name.strip())


def scheduling_from_args(args: argparse.Namespace) -> SchedulerOptions:
    """Raises InvalidRequest."""
    _make_folder("--kv-park", args.kv_park)
    return scheduler_from_args(
        args,
        n_parallel=args.parallel,
        max_queue=args.max_queue,
        idle_release_seconds=args.kv_idle_release,
        idle_drop_seconds=args.kv_idle_drop,
        park_dir=args.kv_park,
        prefix_reuse=args.prefix_reuse,
    )


def _api_keys(args: argparse.Namespace) -> tuple[str, ...]:
    """A source that is named and holds no key is a mistake: without one the server would let everybody in."""
    sources = {}
    if args.api_key is not None:
        sources["--api-key"] = args.api_key.split(",")
    elif API_KEY_VARIABLE in os.environ:
        sources[API_KEY_VARIABLE] = os.environ[API_KEY_VARIABLE].split(",")
    if args.api_key_file is not None:
        try:
            sources[f"--api-key-file {args.api_key_file}"] = args.api_key_file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InvalidRequest(f"--api-key-file {args.api_key_file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"--api-key-file {args.api_key_file} is not a text file") from error
    keys: list[str] = []
    for source, words in sources.items():
        found = [key for word in words if (key := word.strip())]
        if not found:
            raise InvalidRequest(f"{source} holds no key; leave it out to serve without one")
        keys += found
    return tuple(keys)


def _make_folder(flag: str, folder: Path | None) -> None:
    """For sessions, which are the owner's alone. What is wrong with it shows now, not when the model has loaded."""
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"{flag} {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidRequest(f"{flag} {folder}: it cannot be written to")


def _allow_connections(n_waiting: int) -> None:
    """A client that waits holds a file descriptor, of which a process often gets 1024 unless it asks for more."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_waiting + 1024
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
        log.warning("with --host %s everyone on the network can use this server; set --api-key-file", settings.host)
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidRequest(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
    log.info("listening on http://%s:%d", host, listener.getsockname()[1])
    return listener
