"""A model that llama.cpp has loaded."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from elastikv.errors import ModelError, UnsupportedModel
from elastikv.runtimes.llama_cpp.library import LOG, load_library


class Closable(Protocol):
    """What is of no use without the model."""

    def close(self) -> None:
        """Give everything back. May be called again."""
        ...


class Model:
    """A model that llama.cpp has loaded. simulate: without its weights; contexts of it tell what real ones would take.

    Raises ModelError if llama.cpp refuses the file.
    """

    def __init__(self, path: Path, n_gpu_layers: int, *, simulate: bool = False) -> None:
        self._library = load_library()
        self.contexts: weakref.WeakSet[Closable] = weakref.WeakSet()
        params = self._library.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        if simulate:
            params.no_alloc, params.load_mode = True, self._library.LLAMA_LOAD_MODE_NONE
        LOG.clear()
        self.handle = self._library.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise ModelError(f"{path}: llama.cpp cannot load it: {LOG.reason()}")
        if self._library.llama_model_has_encoder(self.handle) or not self._library.llama_model_has_decoder(self.handle):
            self.close()
            raise UnsupportedModel(f"{path}: it has an encoder; only models that continue a text are served")
        self.vocab = self._library.llama_model_get_vocab(self.handle)

    @property
    def n_vocab(self) -> int:
        """Tokens that it knows."""
        return int(self._library.llama_vocab_n_tokens(self.vocab))

    @property
    def n_layers(self) -> int:
        """Blocks that it has."""
        return int(self._library.llama_model_n_layer(self.handle))

    @property
    def n_bytes(self) -> int:
        """Of its weights."""
        return int(self._library.llama_model_size(self.handle))

    @property
    def cuts_anywhere(self) -> bool:
        """Whether it has neither recurrent states nor windows, so that any token can be taken back."""
        library = self._library
        is_recurrent = library.llama_model_is_recurrent(self.handle) or library.llama_model_is_hybrid(self.handle)
        return not is_recurrent and not library.llama_model_n_swa(self.handle)

    def tokenize(self, text: bytes, *, add_special: bool) -> list[int]:
        """Token ids of UTF-8; add_special: with what the model wants around a text."""
        n_most = len(text) + 2
        ids = (ctypes.c_int32 * n_most)()
        n = self._library.llama_tokenize(self.vocab, text, len(text), ids, n_most, add_special, True)
        if n < 0:
            ids = (ctypes.c_int32 * -n)()
            n = self._library.llama_tokenize(self.vocab, text, len(text), ids, -n, add_special, True)
        return list(ids[:n])

    def detokenize(self, ids: Sequence[int], *, with_special: bool) -> bytes:
        """The bytes of tokens."""
        tokens, n_most = (ctypes.c_int32 * len(ids))(*ids), 16 * len(ids) + 16
        text = ctypes.create_string_buffer(n_most)
        n = self._library.llama_detokenize(self.vocab, tokens, len(ids), text, n_most, False, with_special)
        if n < 0:
            text = ctypes.create_string_buffer(-n)
            n = self._library.llama_detokenize(self.vocab, tokens, len(ids), text, -n, False, with_special)
        return text.raw[:n]

    def token_text(self, token: int) -> str:
        """How the file spells a token."""
        return str(self._library.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace"))

    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        is_end = self._library.llama_vocab_is_eog
        return tuple(token for token in range(self.n_vocab) if is_end(self.vocab, token))

    def control_tokens(self) -> tuple[int, ...]:
        """Tokens that are no text."""
        is_control = self._library.llama_vocab_is_control
        return tuple(token for token in range(self.n_vocab) if is_control(self.vocab, token))

    def close(self) -> None:
        """Free the weights, and before them contexts that are still there. May be called again."""
        for context in list(self.contexts):
            context.close()
        if self.handle:
            handle, self.handle = self.handle, None
            self._library.llama_model_free(handle)
