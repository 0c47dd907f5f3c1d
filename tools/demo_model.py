"""The demo model itself: its shape, how it starts, how it is written to a folder and how it speaks."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from tools.demo_corpus import END_OF_TEXT, TURN_END

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def new_model(tokenizer: Tokenizer) -> Qwen3_5ForCausalLM:
    """All widths are multiples of 256, so that every packed weight type of GGUF fits them."""
    config = Qwen3_5TextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        tie_word_embeddings=True,
        eos_token_id=[tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)],
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
    )
    model = Qwen3_5ForCausalLM(config)
    _start_with_long_memory(model)
    return model


@torch.no_grad()
def _start_with_long_memory(model: nn.Module) -> None:
    """Let every head of a delta net forget at its own, slow pace (time steps as in Mamba: 0.001 to 0.1).

    The default of transformers (a step of about 1.3) is a placeholder for loaded weights; a net that starts
    with it remembers nothing.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("dt_bias"):
            step = torch.exp(torch.empty_like(parameter).uniform_(math.log(1e-3), math.log(1e-1)))
            parameter.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
        elif name.endswith("A_log"):
            parameter.copy_(torch.log(torch.empty_like(parameter).uniform_(1, 16)))


@torch.no_grad()
def sample(model: Qwen3_5ForCausalLM, tokenizer: Tokenizer, prompt: str, n_tokens: int = 80) -> str:
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_tokens, do_sample=True, temperature=0.7, top_p=0.95
    )
    return tokenizer.decode(out[0].tolist(), skip_special_tokens=False)


def save(model: Qwen3_5ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write a Hugging Face folder; the weights as bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    copy = Qwen3_5ForCausalLM(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    copy.save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=model.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out, save_jinja_files=False)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)  # a third of the indented file
