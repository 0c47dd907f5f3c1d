"""From logits to a token. Works on one row of float32 logits; nothing here knows sequences.

``sampler`` puts the rest together: ``candidates`` is what a choice is made from, ``penalties`` change its scores,
``cuts`` leave some of it out, and ``breakers`` tells which tokens end a repetition.
"""

from elastikv.engine.sampling.breakers import Breakers, BreakersOfTokenizer
from elastikv.engine.sampling.sampler import Sampler

__all__ = ["Breakers", "BreakersOfTokenizer", "Sampler"]
