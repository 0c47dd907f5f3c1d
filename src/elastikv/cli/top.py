"""``elastikv top``: a running server's memory and sessions, live."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from elastikv.cli.report import filled_columns
from elastikv.errors import ElastikvError, format_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType

_TIMEOUT = 10.0
"""Seconds for an answer: between two steps the server does not, and a step may be long."""

_STATES = {"running": "green", "waiting": "yellow", "idle": "default", "parked": "dim"}
_N_EVENTS = 5


class NoAnswer(ElastikvError):
    """The server did not say what its memory holds."""


@dataclass(frozen=True, slots=True)
class Server:
    """An address, a key for it, and which of its models is looked at (None: the first)."""

    url: str
    key: str | None
    model: str | None = None

    def memory(self, since: int = 0) -> dict[str, Any]:
        """``GET /memory?since=``. Raises NoAnswer."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            query = {"since": since} | ({"model": self.model} if self.model else {})
            request = Request(f"{self.url}/memory?{urlencode(query)}", headers=headers)
            with urlopen(request, timeout=_TIMEOUT) as response:
                answer: dict[str, Any] = json.load(response)
                answer["sessions"], answer["events"], answer["committed_bytes"]  # or KeyError
                return answer
        except HTTPError as error:
            raise NoAnswer(_explained(self.url, error)) from None
        except URLError as error:
            reason = getattr(error.reason, "strerror", None) or error.reason
            raise NoAnswer(f"no server answers at {self.url} ({reason}); start one with `elastikv serve`") from None
        except (OSError, HTTPException) as error:
            raise NoAnswer(f"{self.url} stopped in the middle of an answer ({error})") from None
        except (ValueError, KeyError, TypeError):
            raise NoAnswer(f"{self.url} answers, but is no server of elastikv's, or no address of one") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8080", metavar="URL", help="the server's address")
    parser.add_argument("--api-key", metavar="KEY", help="none given: ELASTIKV_API_KEY")
    parser.add_argument("-m", "--model", metavar="NAME", help="of a server with several; none: its first")
    parser.add_argument("-i", "--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks")
    parser.add_argument("--once", action="store_true", help="print what there is, and end")


def run(args: argparse.Namespace) -> int:
    """Show the server until Ctrl-C. Returns the exit status."""
    from rich.console import Console

    if not 0.05 <= args.interval <= 3600:
        raise NoAnswer(f"--interval must be in 0.05..3600 seconds, got {args.interval}")
    key = args.api_key or os.environ.get("ELASTIKV_API_KEY", "").partition(",")[0]
    url = args.url if "://" in args.url else f"http://{args.url}"
    server = Server(url.rstrip("/"), key or None, args.model)
    console = Console()
    if args.once or not sys.stdout.isatty():
        console.print(frame(server.url, server.memory(), console.width))
        return 0
    try:
        _watch(server, args.interval, console)
    except KeyboardInterrupt:
        return 0
    return 0


def _watch(server: Server, interval: float, console: Any) -> None:
    """A server that goes away after the first look may come back: it is waited for."""
    from rich.live import Live
    from rich.text import Text

    answer = server.memory()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(frame(server.url, answer, console.width, console.height), refresh=True)
            time.sleep(interval)
            try:
                events = answer["events"]
                answer = server.memory(since=events[-1]["number"] if events else 0)
                answer["events"] = (events + answer["events"])[-_N_EVENTS:]
            except NoAnswer as error:
                live.update(Text(f"{error}\nlooking again every {interval:g} s; Ctrl-C leaves"), refresh=True)
                time.sleep(interval)
                answer = {**answer, "events": []}  # a server that was started anew counts from 1


def frame(url: str, answer: dict[str, Any], width: int = 80, height: int | None = None) -> RenderableType:
    """What ``/memory`` said, as at most ``height`` lines. None: all of it."""
    from rich.console import Group
    from rich.text import Text

    n_lines = max(height - _N_EVENTS - 8, 1) if height else len(answer["sessions"])
    order = list(_STATES)
    sessions = sorted(answer["sessions"], key=lambda each: (order.index(each["state"]), -each["committed_bytes"]))
    more = len(sessions) - n_lines
    return Group(
        _totals(url, answer, width),
        Text(),
        _table(sessions[:n_lines]),
        *([Text(f"and {more} more", style="dim")] if more > 0 else []),
        Text(),
        *(_event(event, answer["clock"]) for event in answer["events"][-_N_EVENTS:]),
    )


def _totals(url: str, answer: dict[str, Any], width: int) -> RenderableType:
    from rich.text import Text

    held, budget, static = answer["committed_bytes"], answer["budget_bytes"], answer["static_bytes"]
    ceiling = static if budget is None else min(budget, static)
    n_columns = max(min(width - 40, 60), 10)
    n_full = filled_columns(held, ceiling, n_columns)
    n_used = min(answer["used_bytes"] * n_columns // max(ceiling, 1), n_full)
    return Text.assemble(
        (f"elastikv at {url}", "bold"),
        f"   -c {answer['n_ctx']}, --parallel {answer['n_parallel']}\n",
        f"{answer['n_running']} running, {answer['n_waiting']} waiting, {answer['n_idle']} idle; "
        f"the process holds {format_bytes(answer['process_bytes'])}\n",
        ("█" * n_used, "green"),
        ("▒" * (n_full - n_used), "green"),
        ("·" * (n_columns - n_full), "dim"),
        f" {format_bytes(held)} of {format_bytes(ceiling)}\n",
        f"peak {format_bytes(answer['peak_committed_bytes'])}; a static cache would hold {format_bytes(static)}; "
        f"{answer['n_resizes']} resizes",
    )


def _table(sessions: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("session")
    for heading in ("cells", "capacity", "KV memory", "prompt", "generated"):
        table.add_column(heading, justify="right")
    for each in sessions:
        table.add_row(
            Text.assemble(f"{each['id']:>4} ", (each["state"], _STATES[each["state"]])),
            str(each["used_cells"]),
            str(each["capacity_cells"]),
            format_bytes(each["committed_bytes"]),
            str(each["n_prompt"]),
            "" if each["state"] == "running" else str(each["n_generated"]),  # it counts turns that have ended
        )
    return table


def _event(event: dict[str, Any], clock: float) -> RenderableType:
    from rich.text import Text

    session = "" if event["session"] is None else f" of session {event['session']}"
    sizes = f"{event['n_cells']} cells, {format_bytes(event['n_bytes'])}"
    return Text(f"{clock - event['t']:6.0f} s ago  {event['kind']}{session}: {sizes}", style="dim")


def _explained(url: str, error: HTTPError) -> str:
    if error.code == 401:
        return f"{url} wants a key; give --api-key, or ELASTIKV_API_KEY"
    if error.code == 503:
        return f"{url} is loading its model; try again in a moment"
    return f"{url} answers {error.code} {error.reason}; is it a server of elastikv's?"
