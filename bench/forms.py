"""What a given form costs: a mask for every token, and what is gained where the form forces tokens.

    python -m bench.forms -m MODEL -n 128 --repeats 5 --json bench/results/forms.json
    python -m bench.forms                          # the demo model

    free   no form
    mask   a regular expression that leaves a choice at every token: each is drawn from a mask
    keys   a JSON schema with long names and short values: most tokens are forced, and appended without a step each

Replies come from one process and in turns; each figure is the median of the repeats. The compiling of the form is not
counted: it happens once, before the first token. "free/mask" near 1 says that masks cost nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.report import new_parser, write_json
from elastikv import LLM, SamplingParams

_NAMES = ("date_of_the_first_measurement", "number_of_the_measuring_station", "whether_the_station_was_inspected")
_KEYS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {name: {"enum": [0, 1]} for name in _NAMES},
        "required": list(_NAMES),
        "additionalProperties": False,
    },
    "minItems": 100,
}


def forms(n_predict: int) -> dict[str, dict[str, Any]]:
    """Fields of SamplingParams by the name of the case."""
    return {
        "free": {"ignore_eos": True},
        "mask": {"regex": f"[a-z .,]{{{100 * n_predict}}}"},  # longer than the reply, whatever its tokens are
        "keys": {"json_schema": _KEYS},
    }


def measure(llm: LLM, n_predict: int, n_repeats: int) -> dict[str, float]:
    """Tokens per second of each case."""
    speeds: dict[str, list[float]] = {}
    for _ in range(n_repeats + 1):
        for name, fields in forms(n_predict).items():
            params = SamplingParams(temperature=0, max_tokens=n_predict, **fields)
            timings = llm.generate(["Once upon a time"], params)[0].timings
            speeds.setdefault(name, []).append(timings.predicted_n / timings.predicted_seconds)
    return {name: statistics.median(each[1:]) for name, each in speeds.items()}  # the first compiles


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    args = _parser().parse_args(argv)
    with LLM(args.model, n_ctx=4096, n_threads=args.threads) as llm:
        speeds = measure(llm, args.predict, args.repeats)
        n_vocab = llm.model.info.n_vocab
    print(f"vocabulary of {n_vocab}, tokens per second: " + ", ".join(f"{k} {v:.1f}" for k, v in speeds.items()))
    print(f"free/mask {speeds['free'] / speeds['mask']:.3f}, keys/free {speeds['keys'] / speeds['free']:.2f}")
    if args.json:
        write_json(args.json, {"n_vocab": n_vocab, "tokens_per_second": speeds})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("-m", "--model", help="none: the demo model")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-n", "--predict", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
