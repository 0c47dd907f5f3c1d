"""What a weight file offers to the models, whatever its format."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from elastikv.kernels.weights import PackedTensor
from elastikv.weights.tokenizer import Tokenizer


class Fields(Protocol):
    """Fields of a text model's config by the names that ``config.json`` has for them.

    name: the model's, for itself and for messages.
    """

    name: str

    def __contains__(self, key: str) -> bool:
        """Whether the file itself has a value for the field."""
        ...

    def __getitem__(self, key: str) -> Any:
        """The file's value, else its format's default, else None. Raises CorruptFile if it is required and missing."""
        ...

    def get(self, key: str, default: Any) -> Any:
        """The value of the file itself, else ``default``."""
        ...

    def rope_parameters(
        self, kinds: Collection[str], needed: Collection[str] = (), layer_type: str | None = None
    ) -> Mapping[str, Any]:
        """``rope_parameters`` as transformers 5 has them, with ``rope_type``, ``rope_theta`` and what is ``needed``.

        layer_type: whose, where they differ between layers. Raises UnsupportedModel for other than these kinds of
        scaling, and where layers differ unasked.
        """
        ...


class TensorSource(Protocol):
    """Tensors that are read one by one, when asked for; nothing is kept after it was handed out.

    They are named and laid out as in a Hugging Face checkpoint of the text model
    (``model.layers.0.self_attn.q_proj.weight``, ``[n_out, n_in]``), with the values such a checkpoint would hold.
    name: the model's, for messages.
    """

    name: str

    def names(self) -> Iterable[str]:
        """Every tensor of the text model."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def nbytes(self, name: str) -> int:
        """Bytes of the tensor in the file: what progress is counted in."""
        ...

    def get(self, name: str) -> torch.Tensor:
        """The tensor, dense: f32, f16 or bf16 as stored (f32 where the file packs it). May be read-only.

        Raises CorruptFile where the file lacks the tensor or its bytes.
        """
        ...

    def get_packed(self, name: str) -> PackedTensor | None:
        """The tensor as the file packs it, in memory of its own, or None where it is stored dense."""
        ...

    def tokenizer(self, eos_token_ids: Sequence[int]) -> Tokenizer:
        """The tokenizer that came with the weights; one without a backend if none did. Raises ModelError."""
        ...

    def close(self) -> None:
        """Let go of the files. Tensors that were handed out stay valid."""
        ...
