"""Text to tokens and back, and conversations to text."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from elastikv.server.chat_schemas import ApplyTemplateRequest
from elastikv.server.llama_schemas import DetokenizeRequest, TokenizeRequest
from elastikv.server.prompts import chat_prompt, check_token_ids
from elastikv.server.state import ModelState, used_model
from elastikv.server.tools import check_tools

router = APIRouter()


@router.post("/apply-template")
async def apply_template(
    body: ApplyTemplateRequest, state: Annotated[ModelState, Depends(used_model)]
) -> dict[str, str]:
    """The prompt that a conversation becomes, as ``/v1/chat/completions`` would compute it."""
    check_tools(body)
    return {"prompt": await chat_prompt(body, state)}


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, state: Annotated[ModelState, Depends(used_model)]) -> dict[str, Any]:
    """Token ids of a text; ``with_pieces`` gives each token's text beside its id."""
    tokenizer = state.ready_engine().llm.tokenizer
    token_ids = await asyncio.to_thread(tokenizer.encode, body.content, add_special=body.add_special)
    if not body.with_pieces:
        return {"tokens": token_ids}
    return {"tokens": [{"id": token_id, "piece": tokenizer.decode([token_id])} for token_id in token_ids]}


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, state: Annotated[ModelState, Depends(used_model)]) -> dict[str, str]:
    """The text of token ids."""
    check_token_ids(body.tokens, state, "tokens")
    tokenizer = state.ready_engine().llm.tokenizer
    return {"content": await asyncio.to_thread(tokenizer.decode, body.tokens)}
