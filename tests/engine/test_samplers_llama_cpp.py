"""Each sampler leaves what llama.cpp's own leaves of the same logits, with the same probabilities."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from support.llama_cpp_shapes import write_gguf

from elastikv.engine.params import SAMPLERS, SamplingParams
from elastikv.engine.sampling import Breakers, BreakersOfTokenizer, Sampler
from elastikv.weights.tokenizer import Tokenizer

C = pytest.importorskip("llama_cpp.llama_cpp", reason="llama-cpp-python is not installed", exc_type=ImportError)
from elastikv.runtimes.llama_cpp.model import Model  # noqa: E402
from elastikv.runtimes.llama_cpp.tokenizer import LlamaCppBackend  # noqa: E402

N_VOCAB = 300
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "seed": 0}
ROWS = [np.random.default_rng(i).normal(scale=scale, size=N_VOCAB).astype(np.float32) for i, scale in enumerate((1, 3))]

Init = Callable[[], Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    loaded = Model(write_gguf("qwen3", tmp_path_factory.mktemp("gguf")), 0)
    yield loaded
    loaded.close()


def theirs(inits: Sequence[Init], logits: np.ndarray, context: Sequence[int] = ()) -> dict[int, float]:
    """Token ids and probabilities of what llama.cpp's samplers, one after the other, leave."""
    data = (C.llama_token_data * len(logits))(*((i, logit, 0.0) for i, logit in enumerate(logits.tolist())))
    array = C.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    for init in inits:
        sampler = init()
        for token_id in context:
            C.llama_sampler_accept(sampler, token_id)
        C.llama_sampler_apply(sampler, ctypes.byref(array))
        C.llama_sampler_free(sampler)
    left = {array.data[i].id: array.data[i].logit for i in range(array.size) if array.data[i].logit > -np.inf}
    return _probabilities(np.array(list(left)), np.array(list(left.values())))


def ours(
    logits: np.ndarray, context: Sequence[int] = (), breakers: Breakers | None = None, **settings: Any
) -> dict[int, float]:
    """The same of ours."""
    left = Sampler(SamplingParams(**{**OFF, **settings}), (), breakers).candidates(logits, context)
    token_ids = np.arange(len(logits)) if left.token_ids is None else left.token_ids
    return _probabilities(token_ids, left.scores.astype(np.float64))


def _probabilities(token_ids: np.ndarray, scores: np.ndarray) -> dict[int, float]:
    weights = np.exp(scores - scores.max())
    return dict(zip(token_ids.tolist(), (weights / weights.sum()).tolist(), strict=True))


def check(mine: dict[int, float], other: dict[int, float]) -> None:
    assert mine.keys() == other.keys()
    assert mine == pytest.approx(other, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("p", [0.05, 0.3, 0.7, 0.95, 1.0])
def test_typical(row: np.ndarray, p: float) -> None:
    check(ours(row, typical_p=p), theirs([lambda: C.llama_sampler_init_typical(p, 0)], row))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("n", [-1.0, 0.0, 0.5, 1.0, 2.5])
def test_top_n_sigma(row: np.ndarray, n: float) -> None:
    check(ours(row, top_n_sigma=n), theirs([lambda: C.llama_sampler_init_top_n_sigma(n)], row))


def test_top_n_sigma_does_not_count_what_is_banned() -> None:
    row = ROWS[0].copy()
    row[100:] = -np.inf
    check(ours(row, top_n_sigma=1.0), theirs([lambda: C.llama_sampler_init_top_n_sigma(1.0)], row))


@pytest.mark.parametrize("row", [ROWS[1], np.log(np.float32([0.4, 0.3, 0.2, 0.1])), np.float32([5, 0, 0])])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.15, 0.25, 0.5, 0.6])
def test_xtc(row: np.ndarray, threshold: float) -> None:
    """Always applied: whether it is, is chance."""
    mine = ours(row, xtc_probability=1.0, xtc_threshold=threshold)
    other = theirs([lambda: C.llama_sampler_init_xtc(1.0, threshold, 0, 1)], row)
    assert sorted(mine.values()) == pytest.approx(sorted(other.values()), rel=1e-4, abs=1e-12)
    if len(set(row.tolist())) == len(row):  # which one of equals stays, its sort decides
        check(mine, other)


DRY = {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 64}
REPETITIONS = [
    [5, 6, 7, 8, 5, 6, 7],
    [1] * 70,
    [1, 2] * 50,
    [9, 1, 2, 3, 9, 1, 2, 4, 9, 1, 2],
    [1, 2, 3],
    [],
    np.random.default_rng(0).integers(0, 3, 80).tolist(),
    [*range(40), *range(40)],
    [ord(letter) for letter in 'a: b, a: b "a: b\na: b, "a: b'],
]


def _dry(model: Model, breakers: Sequence[str], multiplier: float, base: float, allowed: int, last_n: int) -> Init:
    texts = (ctypes.c_char_p * len(breakers))(*(text.encode() for text in breakers))
    return lambda: C.llama_sampler_init_dry(model.vocab, multiplier, base, allowed, last_n, texts, len(breakers))


@pytest.mark.parametrize("context", REPETITIONS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dry_allowed_length": 0},
        {"dry_allowed_length": 5},
        {"dry_penalty_last_n": 6},
        {"dry_base": 1.0},
        {"dry_base": 6.0, "dry_penalty_last_n": 100},
        {"dry_multiplier": 3.0},
    ],
)
@pytest.mark.parametrize("texts", [(), ("\n", ":", '"', "*"), ("a", "b, ")])
def test_dry(model: Model, context: list[int], settings: dict, texts: tuple[str, ...]) -> None:
    given = {**DRY, **settings}
    breakers = BreakersOfTokenizer(Tokenizer(LlamaCppBackend(model))).find(texts)
    row = np.random.default_rng(7).normal(size=model.n_vocab).astype(np.float32)
    init = _dry(model, texts, *given.values())
    check(ours(row, context, breakers, **given, dry_sequence_breakers=texts), theirs([init], row, context))


def test_all_in_a_row_and_in_another_order(model: Model) -> None:
    """As llama.cpp's chain: each sampler gets what the one before it left."""
    context = REPETITIONS[0]
    settings = {**DRY, "repeat_penalty": 1.3, "presence_penalty": 0.2, "top_n_sigma": 2.0, "top_k": 30}
    settings |= {"typical_p": 0.9, "top_p": 0.8, "min_p": 0.1, "temperature": 0.7, "dry_sequence_breakers": ()}
    settings |= {"xtc_probability": 1.0, "xtc_threshold": 0.08}
    inits = {
        "penalties": lambda: C.llama_sampler_init_penalties(N_VOCAB, 64, 1.3, 0.0, 0.2),
        "dry": _dry(model, (), *DRY.values()),
        "top_n_sigma": lambda: C.llama_sampler_init_top_n_sigma(2.0),
        "top_k": lambda: C.llama_sampler_init_top_k(30),
        "typ_p": lambda: C.llama_sampler_init_typical(0.9, 0),
        "top_p": lambda: C.llama_sampler_init_top_p(0.8, 0),
        "min_p": lambda: C.llama_sampler_init_min_p(0.1, 0),
        "xtc": lambda: C.llama_sampler_init_xtc(1.0, 0.08, 0, 1),
        "temperature": lambda: C.llama_sampler_init_temp(0.7),
    }
    rng = np.random.default_rng(3)
    orders = [SAMPLERS, *(tuple(rng.permutation(SAMPLERS)[: rng.integers(1, 10)].tolist()) for _ in range(100))]
    for order in orders:
        if "top_n_sigma" in order and "typ_p" in order[order.index("top_n_sigma") :]:
            # Its typical sampler gets 0 * log 0 of what top-n-sigma has left out, unless top_k has cut that off.
            settings["top_n_sigma"] = -1.0
        else:
            settings["top_n_sigma"] = 2.0
        chain = [inits[name] for name in order if name != "top_n_sigma" or settings[name] > 0]
        check(ours(ROWS[1], context, samplers=order, **settings), theirs(chain, ROWS[1], context))


def test_a_chain_that_is_greedy() -> None:
    """With xtc, temperature 0 takes the likeliest of what is left."""
    row = np.log(np.float32([0.1, 0.2, 0.3, 0.4]))
    chain = [lambda: C.llama_sampler_init_xtc(1.0, 0.15, 0, 1), lambda: C.llama_sampler_init_temp(0.0)]
    (token_id,) = theirs(chain, row)
    sampler = Sampler(SamplingParams(temperature=0, xtc_probability=1.0, xtc_threshold=0.15))
    assert sampler.sample(row, ()) == token_id == 1
