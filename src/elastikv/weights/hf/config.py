"""Hugging Face's ``config.json``.

Knows transformers 5's layout (older ones are read by transformers itself) and the text model's part of a
vision-language config (``text_config``). What a config leaves out is what transformers' own config class makes of the
rest.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.weights.base import Fields
from elastikv.weights.folders import folder_name

_OUTSIDE_OF_ROPE = {"partial_rotary_factor", "original_max_position_embeddings"}
"""Belong into ``rope_parameters``, but older configs have them beside."""


class HFConfig:
    """A parsed ``config.json``. classes, model_type: what it says that it is a config of.

    eos_token_id: what another file says about it, before this one.
    """

    def __init__(self, raw: Mapping[str, Any], *, name: str, eos_token_id: int | list[int] | None = None) -> None:
        self.name = name
        self.classes = tuple(raw.get("architectures") or ())
        self.model_type: str | None = raw.get("model_type")
        self._text = {**raw, **raw["text_config"]} if "text_config" in raw else dict(raw)
        if "tie_word_embeddings" in raw:
            self._text["tie_word_embeddings"] = raw["tie_word_embeddings"]
        if eos_token_id is not None:
            self._text["eos_token_id"] = eos_token_id

    def __contains__(self, key: str) -> bool:
        """Whether the text model's config has this field."""
        return self._text.get(key) is not None

    def fields(self, model_type: str) -> HFFields:
        """The fields of the text model; ``model_type`` names transformers' config class for it.

        Raises UnsupportedModel for weights that are quantised in ways of their own.
        """
        if self._text.get("quantization_config"):
            method = self._text["quantization_config"].get("quant_method", "unknown")
            raise UnsupportedModel(
                f"{self.name}: weights quantised by {method!r} are not supported; take the GGUF or 16-bit ones"
            )
        return HFFields(self._text, model_type, self.name)


class HFFields(Fields):
    """Fields of a ``config.json``; those that it lacks have the default of transformers' config class.

    The class is asked only where a field is missing or null, for to import it takes longer than to load a small model.
    """

    def __init__(self, written: Mapping[str, Any], model_type: str, name: str) -> None:
        self.name = name
        self._written = written
        self._model_type = model_type

    @override
    def __contains__(self, key: str) -> bool:
        return self._written.get(key) is not None

    @override
    def __getitem__(self, key: str) -> Any:
        return self._written[key] if key in self else getattr(self._reference, key, None)

    @override
    def get(self, key: str, default: Any) -> Any:
        return self._written[key] if key in self else default

    @functools.cached_property
    def _reference(self) -> Any:
        """transformers' config of the same fields."""
        from transformers import AutoConfig

        fields = {key: value for key, value in self._written.items() if key != "model_type"}
        try:
            return AutoConfig.for_model(self._model_type, **copy.deepcopy(fields))
        except Exception as error:
            raise refused_by_transformers(self.name, error) from None

    @override
    def rope_parameters(
        self, kinds: Collection[str], needed: Collection[str] = (), layer_type: str | None = None
    ) -> Mapping[str, Any]:
        given = self._written.get("rope_scaling") or self._written.get("rope_parameters") or {}
        if layer_type is not None:
            given = given.get(layer_type, {})
        kind = given.get("rope_type", given.get("type", "default"))
        if kind not in kinds:
            raise UnsupportedModel(
                f"{self.name}: RoPE scaling {kind!r} is not supported; supported are {', '.join(kinds)}"
            )
        if _OUTSIDE_OF_ROPE & self._written.keys() or not {"rope_type", "rope_theta", *needed} <= given.keys():
            of_all = self._reference.rope_parameters
            given = of_all if layer_type is None else of_all[layer_type]
        if "rope_theta" not in given:
            raise UnsupportedModel(f"{self.name}: RoPE that differs between layers is not supported")
        return given


def refused_by_transformers(name: str, error: Exception) -> CorruptFile:
    """What a config class raised, as one line: its validation has an error tree of its own, and KeyError."""
    return CorruptFile(f"{name}: config.json: {' '.join(str(error).split())}")


def read_hf_config(path: Path) -> HFConfig:
    """Parse a ``config.json``; its folder's ``generation_config.json`` adds the tokens that end a text.

    Raises CorruptFile where one is no JSON object.
    """
    eos = None
    generation = path.parent / "generation_config.json"
    if generation.is_file():
        eos = _read_json(generation).get("eos_token_id")
    return HFConfig(_read_json(path), name=folder_name(path.parent), eos_token_id=eos)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CorruptFile(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise CorruptFile(f"{path}: a JSON object was expected")
    return parsed
