"""Architectures without a file here: ``LLM(folder)`` says what transformers' own ``generate`` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_architectures import ARCHITECTURES, WINDOW, parametrised, tiny_config
from support.tiny_models import N_VOCAB, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from elastikv import LLM, SamplingParams
from elastikv.errors import CorruptFile, InvalidRequest, UnsupportedModel
from elastikv.memory.base import KVLayer, RecurrentLayer
from elastikv.runtimes import find

N_NEW = 2 * WINDOW
OWN_FILES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_5_text", "qwen3_moe")
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


@pytest.mark.parametrize("model_type", parametrised(FALLBACK))
def test_same_tokens_as_transformers(model_type: str, folders: Any) -> None:
    """Two sequences at once, one longer than a ubatch and than the window."""
    folder, model = folders(model_type)
    prompts = [_prompt(5), _prompt(3 * WINDOW, seed=1)]
    with LLM(folder, n_ctx=128, kv_dtype="f32", n_ubatch=8) as llm:
        outputs = llm.generate(prompts, GREEDY)
        assert [output.token_ids for output in outputs] == [_expected(model, prompt) for prompt in prompts]
        llm.memory.check()


def test_the_user_is_told_which_path_runs(folders: Any, caplog: pytest.LogCaptureFixture) -> None:
    with LLM(folders("smollm3")[0], n_ctx=64) as llm:
        assert llm.model.info.architecture == "smollm3"
    lines = [record.getMessage() for record in caplog.records if "runtimes.transformers" in record.name]
    assert len(lines) == 1
    assert "smollm3" in lines[0]
    assert "transformers" in lines[0]


@pytest.mark.parametrize(
    "model_type", ["gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in FALLBACK if name != "gemma2")]
)
def test_through_the_command_line(model_type: str, folders: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from elastikv.cli.main import main

    folder, model = folders(model_type)
    prompt = tiny_tokenizer()("once upon a time")["input_ids"]
    arguments = ["-p", "once upon a time", "-n", str(N_NEW), "--temp", "0", "-ctk", "f32", "-ctv", "f32"]
    assert main(["run", "-m", str(folder), *arguments, "--ignore-eos"]) == 0
    assert tiny_tokenizer().decode(_expected(model, prompt), skip_special_tokens=True) in capsys.readouterr().out


@pytest.mark.parametrize("model_type", ["gemma2", "falcon_h1", "deepseek_v3", "bamba", "gpt_oss"])
def test_memory_is_told_from_the_config_alone(model_type: str, folders: Any) -> None:
    folder, _ = folders(model_type)
    with LLM(folder, n_ctx=64) as llm:
        assert list(find(folder / "config.json").memory_layers()) == list(llm.model.memory_layers)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "deepseek_v3"])
def test_what_a_config_leaves_out_is_what_transformers_has(model_type: str, tmp_path: Path) -> None:
    small = {"model_type": model_type, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(small))
    left_out = find(tmp_path)
    AutoConfig.for_model(**small).save_pretrained(tmp_path)
    written = find(tmp_path)
    assert list(left_out.memory_layers()) == list(written.memory_layers())
    assert (left_out.config.n_ctx_train, left_out.config.eos_token_ids) == (
        written.config.n_ctx_train,
        written.config.eos_token_ids,
    )


def test_a_field_that_transformers_refuses_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2", "hidden_size": "x"}')
    with pytest.raises(CorruptFile, match="'hidden_size' expected int, got str") as caught:
        find(tmp_path)
    assert "\n" not in str(caught.value)


def test_layers_of_a_hybrid(folders: Any) -> None:
    folder, _ = folders("lfm2")
    assert list(find(folder).memory_layers()) == [
        RecurrentLayer(((32, 3),)),
        KVLayer(2, 8, 8),
        RecurrentLayer(((32, 3),)),
    ]


@pytest.mark.parametrize("model_type", ["gemma2", "granitemoehybrid"])
def test_a_second_turn_reuses_the_first(model_type: str, folders: Any) -> None:
    folder, model = folders(model_type)
    with LLM(folder, n_ctx=128, kv_dtype="f32") as llm:
        first = _prompt(11)
        second = first + llm.generate(first, GREEDY)[0].token_ids + _prompt(4, seed=2)
        output = llm.generate(second, GREEDY)[0]
        assert output.cached_tokens >= len(first)
        assert output.token_ids == _expected(model, second)


@pytest.mark.parametrize(("kv_dtype", "tolerance"), [("f16", 0.02), ("bf16", 0.3), ("q8_0", 0.3)])
def test_cells_of_another_type(kv_dtype: str, tolerance: float, folders: Any) -> None:
    """Logits move by about the type's precision, which a random model amplifies."""
    folder, _ = folders("granite")
    greedy = SamplingParams(temperature=0.0, max_tokens=1, logprobs=5)
    with LLM(folder, n_ctx=64, kv_dtype="f32") as exact, LLM(folder, n_ctx=64, kv_dtype=kv_dtype) as llm:
        # The second turn reads all of the first from its cells.
        outputs = []
        for each in (exact, llm):
            each.generate(_prompt(20), greedy)
            outputs.append(each.generate([*_prompt(20), 9], greedy)[0])
    expected, got = (output.logprobs[0].logprob for output in outputs if output.logprobs)
    assert got == pytest.approx(expected, abs=tolerance)


def test_a_model_that_lacks_weights(tmp_path: Path) -> None:
    model = _save("olmo2", tmp_path)
    state = {name: weight for name, weight in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CorruptFile, match=r"layers\.1\.mlp"):
        LLM(tmp_path)


def test_what_it_refuses(folders: Any, tmp_path: Path) -> None:
    folder, _ = folders("smollm3")
    with pytest.raises(InvalidRequest, match="quantised"):
        LLM(folder, quantize="q8_0")
    with pytest.raises(InvalidRequest, match="attention_precision"):
        LLM(folder, attention_precision="f32")
    for config in (
        '{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}',
        '{"model_type": "nonsense"}',
    ):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(UnsupportedModel):
            find(tmp_path)
