"""Parameters of OpenAI's server, llama-server and vLLM that would change an answer and are not served.

Those that are served are members of ``schemas.GenerationRequest`` and its children. Those below are refused by name.
Whatever else a request has changes no text (``user``, ``metadata``, ``store``, or the ``mirostat_tau`` of a mirostat
that is switched off), and is ignored.
"""

from __future__ import annotations

from typing import Any

from elastikv.server.chat_schemas import ChatRequest
from elastikv.server.errors import not_supported
from elastikv.server.schemas import GenerationRequest

REFUSED: dict[str, tuple[Any, ...]] = {
    # The form of the text.
    "structural_tag": (),
    # Tools, and other things to hear or say than text.
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "image_data": ([],),
    "web_search_options": (),
    "documents": ([],),
    # How the prompt is made.
    "chat_template": (),
    "add_special_tokens": (),
    "truncate_prompt_tokens": (),
    "verbosity": ("medium",),
    # Sampling.
    "mirostat": (0,),
    "adaptive_target": (-1,),
    "dynatemp_range": (0,),
    "min_keep": (0,),
    "repetition_penalty": (1,),
    "use_beam_search": (False,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "logits_processors": ([],),
    "lora": ([],),
    # Where a reply ends, and what of it is shown.
    "t_max_predict_ms": (0, -1),
    "n_indent": (0,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
}
"""Values that ask for what happens anyway. Null always does."""

REFUSED_IN_TEXT: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    # Thoughts: they stay in the text, as the model writes them.
    "reasoning_format": ("none",),
    "reasoning_effort": (),
    "reasoning_budget_tokens": (-1,),
    "thinking_budget_tokens": (-1,),
    "thinking_token_budget": (-1,),
    "include_reasoning": (True,),
    "enable_thinking": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
"""What only a chat can be given."""

REFUSED_BUT_BY_LLAMA: dict[str, tuple[Any, ...]] = {
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "return_tokens": (False,),
    "response_fields": ([],),
}
"""What only llama-server's own routes can be given."""

REFUSED_IN_CHAT: dict[str, tuple[Any, ...]] = {"echo": (False,), "suffix": ("",)}
"""What only a text completion can be given."""

_REMEDIES = {
    "tools": "use /v1/chat/completions",
    "tool_choice": "use /v1/chat/completions",
    "n_probs": "use logprobs",
    "repetition_penalty": "use repeat_penalty",
}


def refuse_unserved(body: GenerationRequest) -> None:
    """A 400 that names the first member of ``body`` that wants what is not served."""
    refused = {
        **REFUSED,
        **REFUSED_BUT_BY_LLAMA,
        **(REFUSED_IN_CHAT if isinstance(body, ChatRequest) else REFUSED_IN_TEXT),
    }
    for name, value in (body.model_extra or {}).items():
        if value is not None and name in refused and value not in refused[name]:
            raise not_supported(name, f"{name} is not supported; {_REMEDIES.get(name, 'leave it out')}")
