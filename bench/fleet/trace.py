"""Requests and when they come: conversations made up with a seed, or recorded in a file of JSON lines."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from elastikv.integrations.ray.prefixes import Marks, marks_of

BLOCK = 512
"""Tokens that one of the ``hash_ids`` of Mooncake's traces stands for."""

BYTES_PER_TOKEN = 4

Segment = tuple[str, int]
"""A piece of a prompt: a name, the same for the same text, and its tokens."""


@dataclass(frozen=True, slots=True)
class Request:
    """seconds: when it comes; reply: the segment that its answer will be, in the prompt of the next turn.

    marks: of some text that has as much in common with those of other requests as the prompts have.
    """

    seconds: float
    conversation: str
    prompt: tuple[Segment, ...]
    reply: Segment
    n_prompt: int
    marks: Marks


def request(seconds: float, conversation: str, prompt: Sequence[Segment], reply: Segment) -> Request:
    """With what is computed of it."""
    text = "".join(_repeated(f"{name} ", BYTES_PER_TOKEN * n_tokens) for name, n_tokens in prompt)
    n_prompt = sum(n_tokens for _, n_tokens in prompt)
    return Request(seconds, conversation, tuple(prompt), reply, n_prompt, marks_of(text))


def _repeated(words: str, n_bytes: int) -> str:
    return (words * (n_bytes // len(words) + 1))[:n_bytes]


@dataclass(frozen=True, slots=True)
class Turn:
    """A line of our own traces: what is new in it, after the system prompt and what has been said before."""

    seconds: float
    conversation: str
    system: str
    system_tokens: int
    prompt_tokens: int
    output_tokens: int


def made_up(
    *, rate: float, seconds: float, seed: int, n_systems: int = 100, n_turns: float = 5, think_seconds: float = 20
) -> list[Turn]:
    """Conversations that begin ``rate`` times a second for ``seconds``, by a Poisson process.

    Each has one of ``n_systems`` system prompts (by Zipf's law; some 1,000 tokens, lognormal) and geometrically many
    turns; user's turns have some 80 tokens, replies 150 (lognormal, sigma 1), pauses between turns are exponential.
    """
    chance, now = random.Random(seed), 0.0
    turns: list[Turn] = []
    systems = [_about(chance, 1000, 0.7, 8000) for _ in range(n_systems)]
    weights = list(accumulate(1 / (rank + 1) for rank in range(n_systems)))
    while (now := now + chance.expovariate(rate)) < seconds:
        name, system = f"c{len(turns)}", chance.choices(range(n_systems), cum_weights=weights)[0]
        at = now
        while True:
            sizes = _about(chance, 80, 1, 4000), _about(chance, 150, 1, 1000)
            turns.append(Turn(round(at, 3), name, f"s{system}", systems[system], *sizes))
            at += 5 + chance.expovariate(1 / think_seconds)
            if chance.random() < 1 / n_turns:
                break
    return sorted(turns, key=lambda turn: turn.seconds)


def _about(chance: random.Random, median: int, sigma: float, most: int) -> int:
    return min(most, max(1, round(chance.lognormvariate(math.log(median), sigma))))


def requests(turns: Iterable[Turn]) -> Iterator[Request]:
    """Turns with all that came before them."""
    said: dict[str, list[Segment]] = {}
    for turn in turns:
        before = said.setdefault(turn.conversation, [(turn.system, turn.system_tokens)])
        number = len(before) // 2
        before.append((f"{turn.conversation}u{number}", turn.prompt_tokens))
        reply = (f"{turn.conversation}a{number}", turn.output_tokens)
        yield request(turn.seconds, turn.conversation, before, reply)
        before.append(reply)


def write(path: Path, turns: Iterable[Turn]) -> None:
    """As JSON lines, which ``read`` takes."""
    path.write_text("".join(json.dumps(asdict(turn)) + "\n" for turn in turns))


def read(path: Path) -> list[Request]:
    """Requests of a file of our own lines or of Mooncake's (timestamp in ms, input_length, output_length, hash_ids).

    Raises ValueError that names the line.
    """
    turns: list[Turn] = []
    found: list[Request] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
            if "hash_ids" in entry:
                found.append(_of_mooncake(number, entry))
            else:
                turns.append(Turn(**entry))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: no request of a trace ({error})") from error
    return sorted([*found, *requests(sorted(turns, key=lambda turn: turn.seconds))], key=lambda each: each.seconds)


def _of_mooncake(number: int, entry: dict[str, Any]) -> Request:
    """Conversations have no names there: the first block stands for one."""
    n_left, prompt = int(entry["input_length"]), []
    for block in entry["hash_ids"]:
        prompt.append((f"b{block}", min(BLOCK, n_left)))
        n_left -= BLOCK
    if n_left > 0 or not prompt or prompt[-1][1] < 1:
        raise ValueError(f"{len(prompt)} hash_ids do not make {entry['input_length']} tokens")
    reply = (f"r{number}", int(entry["output_length"]))
    return request(entry["timestamp"] / 1000, prompt[0][0], prompt, reply)
