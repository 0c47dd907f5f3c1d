"""Random texts of what tells ways to cut a text apart: the same for the same seed.

But for the long s (U+017F): the models' own patterns take it for the s of a contraction, llama.cpp's do not.
"""

from __future__ import annotations

import random

_LATIN = ["a", "b", "Z", "the", " The", "camelCase", "ß", "É", "ǅ", "ʰ", "ª", "ﬁ", "x's"]
_SCRIPTS = ["東京", "ひらがな", "カ", "한국", "Привет", "ΑΩ", "ς", "İ", "ก", "अ", "א", "ب", "\u0640", "ꙮ", "𝔘", "𐍈"]
_MARKS = ["e\u0301", "\u0301", "\u0e31", "की", "\u093f"]
_DIGITS = ["1", "42", "12345", "Ⅷ", "½", "٣", "²"]
_SPACES = [
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\v",
    "\f",
    "\x1c",
    "\x85",
    "\xa0",
    "\u1680",
    "\u2028",
    "\u3000",
]
_CONTRACTIONS = ["'s", "'T", "'re", "'VE", "'LL", "'d", "\u2019s"]
_PUNCTUATION = [*"!$#+=<|~^`_-(\"'«。、€°©/", "?!", "...", "//", "/\n"]
_OTHERS = [
    "🙂",
    "👩\u200d👧",
    "🏽",
    "🇩🇪",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\ue000",
    "\U000e0041",
    "\u0378",
    "\0",
    "\x7f",
    "\xad",
]
_SPECIAL = ["<|im_start|>", "</s>"]
_PIECES = [*_LATIN, *_SCRIPTS, *_MARKS, *_DIGITS, *_SPACES, *_CONTRACTIONS, *_PUNCTUATION, *_OTHERS, *_SPECIAL]


def fuzzed_texts(n_texts: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices(_PIECES, k=generator.randint(1, 14))) for _ in range(n_texts)]
