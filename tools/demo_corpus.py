"""What the demo model learns from: the Python standard library of this machine, as code, as prose and as a chat.

Everything is taken from the running interpreter's own ``lib/pythonX.Y`` (PSF licence); nothing is downloaded.
"""

from __future__ import annotations

import ast
import inspect
import random
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = [END_OF_TEXT, TURN_START, TURN_END]

# Tests and tables teach a language model nothing; the others are large and unlike the rest.
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "__pycache__"}
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
_SKIPPED_FILES = {"html/entities.py"}
_TOPICS = "pydoc_data/topics.py"

_MAX_ANSWER_CHARS = 700
_PIECE_CHARS = 150
_HELD_OUT_OF = 40  # one file in so many is for validation

# The way Qwen2 and Qwen3 split text before merging bytes; GGUF knows it as "qwen2".
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_QUESTIONS = (
    "What does {name} do?",
    "What is {name}?",
    "Explain {name}.",
    "How does {name} work?",
    "Tell me about {name}.",
)
_SIGNATURE_QUESTIONS = ("What are the arguments of {name}?", "How do I call {name}?")
_SMALL_TALK = (
    ("Hello", "Hello! Ask me about something in Python's standard library."),
    ("Hello!", "Hello! Which function shall I explain?"),
    ("Hi", "Hi! Ask me what a function of the standard library does."),
    ("Hi there", "Hi! Ask me what a function of the standard library does."),
    ("Who are you?", "I am the small demo model of elastikv. I learned from Python's standard library."),
    ("What are you?", "I am a very small language model that has read Python's standard library, and nothing else."),
    ("What can you do?", "I can write text that looks like Python, and say what a function of its library does."),
    ("How are you?", "Fine, thank you. Which function shall I explain?"),
    ("Thanks", "You are welcome."),
    ("Thank you!", "You are welcome. Ask me about another function."),
    ("Bye", "Goodbye!"),
)
_SMALL_TALK_COPIES = 12


@dataclass(frozen=True)
class Corpus:
    """Whole documents, without special tokens at their ends except in chats. ``held_out`` comes from other files."""

    train: list[str]
    held_out: list[str]


def read_corpus() -> Corpus:
    """The documents of this interpreter's standard library, in a fixed order."""
    train: list[str] = []
    held_out: list[str] = []
    for name, source in _stdlib_sources():
        documents = _topics(source) if name == _TOPICS else [source]
        documents += _chats(name, source)
        # crc32 and not hash(): the same files are held out in every process
        (held_out if zlib.crc32(name.encode()) % _HELD_OUT_OF == 0 else train).extend(documents)
    small_talk = [_as_chat([pair]) for pair in _SMALL_TALK]
    return Corpus(train + small_talk * _SMALL_TALK_COPIES, held_out)


def pieces(document: str, chance: random.Random) -> list[str]:
    """Cut a document anywhere, about every ``_PIECE_CHARS``; each piece is tokenised by itself.

    A prompt ends where its author stopped typing ("def "), not where a token of the text would have ended:
    a model that never saw such an end does not know how to go on. Chats are left whole.
    """
    if TURN_START in document:
        return [document]
    cuts = sorted(chance.randrange(1, len(document)) for _ in range(len(document) // _PIECE_CHARS))
    return [
        document[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(document)], strict=True) if start < stop
    ]


def train_tokenizer(documents: Iterable[str], n_vocab: int) -> Tokenizer:
    """A byte-level BPE with Qwen's splitting; the special tokens come first."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _stdlib_sources() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.intersection(relative.parts) or relative.parts[0].startswith(_SKIPPED_PREFIXES):
            continue
        if relative.as_posix() in _SKIPPED_FILES:
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a few old files are Latin-1
            continue
        if source.strip():
            yield relative.as_posix(), source


def _topics(source: str) -> list[str]:
    """The language reference as plain text: the file holds it as one dict of string literals."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            return list(ast.literal_eval(node.value).values())
    raise ValueError(f"{_TOPICS} holds no dict of topics")


def _chats(name: str, source: str) -> list[str]:
    """One short conversation per documented public function, class or method of a file."""
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    chance = random.Random(name)
    chats = []
    for qualified_name, node in _definitions(module, ast.parse(source)):
        docstring = ast.get_docstring(node)
        if not docstring:
            continue
        turns = [(chance.choice(_QUESTIONS).format(name=qualified_name), _first_paragraphs(docstring))]
        if isinstance(node, ast.FunctionDef):
            question = chance.choice(_SIGNATURE_QUESTIONS).format(name=qualified_name)
            turns.insert(chance.randrange(2), (question, f"{node.name}({ast.unparse(node.args)})"))
        chats.append(_as_chat(turns))
    return chats


def _definitions(
    prefix: str, tree: ast.Module | ast.ClassDef
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            qualified_name = f"{prefix}.{node.name}"
            yield qualified_name, node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(qualified_name, node)


def _first_paragraphs(docstring: str) -> str:
    """As many whole paragraphs as fit into an answer; the first one always, cut if it must be."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    answer = paragraphs[0][:_MAX_ANSWER_CHARS]
    for paragraph in paragraphs[1:]:
        if len(answer) + len(paragraph) > _MAX_ANSWER_CHARS:
            break
        answer += "\n\n" + paragraph
    return answer.strip()


def _as_chat(turns: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n{answer}{TURN_END}\n"
        for question, answer in turns
    )
