"""The same tokens from ``generate`` with ElasticCache and with DynamicCache, on every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_architectures import N_VOCAB, WINDOW, parametrised, tiny_model
from transformers import DynamicCache, PreTrainedModel

from elastikv.integrations.transformers_cache import ElasticCache

N_NEW = 3 * WINDOW + 8  # enough for the window to pass its slack and move


def _prompt(n_rows: int, n_tokens: int = 9) -> torch.Tensor:
    return torch.randint(2, N_VOCAB, (n_rows, n_tokens), generator=torch.Generator().manual_seed(n_rows))


def _generate(model: PreTrainedModel, cache: Any, input_ids: torch.Tensor, **options: Any) -> list[list[int]]:
    argument = "cache_params" if model.config.model_type == "mamba2" else "past_key_values"
    options = {"max_new_tokens": N_NEW, "do_sample": False, **options, argument: cache}
    return model.generate(input_ids, **options).tolist()


def _small(model: PreTrainedModel, **options: Any) -> ElasticCache:
    """Grows at every page, so that a run of these lengths meets several growths."""
    return ElasticCache(model.config, n_ctx=128, growth="exact", **options)


def _stateful(model: PreTrainedModel) -> bool:
    return bool(model._is_stateful)


@pytest.mark.parametrize("storage", ["mmap", "copy"])
@pytest.mark.parametrize("model_type", parametrised())
def test_greedy(model_type: str, storage: Any) -> None:
    model = tiny_model(model_type)
    expected = _generate(model, DynamicCache(config=model.config), _prompt(1))
    assert _generate(model, _small(model, storage=storage), _prompt(1)) == expected


@pytest.mark.parametrize("model_type", parametrised())
def test_beams(model_type: str) -> None:
    model = tiny_model(model_type)
    options = {"num_beams": 3, "num_return_sequences": 2}
    expected = _generate(model, DynamicCache(config=model.config), _prompt(2), **options)
    assert _generate(model, _small(model), _prompt(2), **options) == expected


@pytest.mark.parametrize("model_type", parametrised())
def test_left_padded_batch(model_type: str) -> None:
    model = tiny_model(model_type)
    input_ids = _prompt(3)
    mask = torch.ones_like(input_ids)
    for row, n_padding in enumerate((4, 0, 2)):
        input_ids[row, :n_padding] = mask[row, :n_padding] = 0
    expected = _generate(model, DynamicCache(config=model.config), input_ids, attention_mask=mask)
    assert _generate(model, _small(model), input_ids, attention_mask=mask) == expected


@pytest.mark.parametrize("helper", ["assistant", "prompt lookup"])
@pytest.mark.parametrize("model_type", parametrised())
def test_assisted(model_type: str, helper: str) -> None:
    """Drafts are appended and, where they are wrong, cropped away again."""
    model = tiny_model(model_type)
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if helper == "assistant":
        options = {"assistant_model": tiny_model(model_type, seed=1)}
    if _stateful(model):
        with pytest.raises(ValueError, match="stateful"):  # transformers' own refusal, whatever the cache
            _generate(model, _small(model), _prompt(1), **options)
        return
    expected = _generate(model, DynamicCache(config=model.config), _prompt(1), **options)
    assert _generate(model, _small(model), _prompt(1), **options) == expected


@pytest.mark.parametrize("model_type", parametrised())
def test_going_on_with_the_same_cache(model_type: str) -> None:
    model = tiny_model(model_type)
    answers = []
    for cache in (DynamicCache(config=model.config), _small(model)):
        first = torch.tensor(_generate(model, cache, _prompt(1), max_new_tokens=5))
        second = torch.cat((first, _prompt(1, 11)), dim=1)
        answers.append(_generate(model, cache, second, max_new_tokens=5))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("model_type", parametrised())
def test_chunked_prefill(model_type: str) -> None:
    model = tiny_model(model_type)
    if model_type == "mamba2":
        pytest.skip("transformers' chunked prefill passes past_key_values only, which this model does not know")
    options = {"prefill_chunk_size": 7}
    expected = _generate(model, DynamicCache(config=model.config), _prompt(1, 40), **options)
    assert _generate(model, _small(model), _prompt(1, 40), **options) == expected
