"""Architectures without a file here: ``LLM(folder)`` says what transformers' own ``generate`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_architectures import ARCHITECTURES, WINDOW, tiny_config
from support.tiny_models import N_VOCAB, tiny_tokenizer
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from elastikv import LLM, SamplingParams
from elastikv.errors import CorruptFile, InvalidRequest, UnsupportedModel
from elastikv.memory.base import KVLayer, RecurrentLayer
from elastikv.models import memory_layers, read_config

N_NEW = 2 * WINDOW
OWN_FILES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_5_text")
FALLBACK = tuple(name for name in ARCHITECTURES if name not in OWN_FILES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder and model by architecture, made when first asked for."""
    made: dict[str, tuple[Path, PreTrainedModel]] = {}

    def get(model_type: str) -> tuple[Path, PreTrainedModel]:
        if model_type not in made:
            folder = tmp_path_factory.mktemp(model_type)
            made[model_type] = folder, _save(model_type, folder)
        return made[model_type]

    return get


def _save(model_type: str, folder: Path) -> PreTrainedModel:
    torch.manual_seed(1)
    sizes = {"vocab_size": N_VOCAB, "eos_token_id": 2}
    if "vocab_size_per_layer_input" in ARCHITECTURES[model_type]:
        sizes["vocab_size_per_layer_input"] = N_VOCAB
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **sizes), dtype=torch.float32).eval()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def _expected(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    argument = "cache_params" if model.config.model_type == "mamba2" else "past_key_values"
    out = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=N_NEW,
        min_new_tokens=N_NEW,
        do_sample=False,
        **{argument: DynamicCache(config=model.config)},
    )
    return out[0, len(prompt) :].tolist()


def _prompt(n_tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(4, N_VOCAB - 8, (n_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


GREEDY = SamplingParams(temperature=0.0, max_tokens=N_NEW, ignore_eos=True)


@pytest.mark.parametrize("model_type", FALLBACK)
def test_same_tokens_as_transformers(model_type: str, folders: Any) -> None:
    """Two sequences at once, one longer than a ubatch and than the window."""
    folder, model = folders(model_type)
    prompts = [_prompt(5), _prompt(3 * WINDOW, seed=1)]
    with LLM(folder, n_ctx=128, kv_dtype="f32", n_ubatch=8) as llm:
        outputs = llm.generate(prompts, GREEDY)
        assert [output.token_ids for output in outputs] == [_expected(model, prompt) for prompt in prompts]
        llm.memory.check()
