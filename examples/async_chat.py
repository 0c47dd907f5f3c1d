"""Several conversations at once from asyncio; one of them ends early by breaking out of its stream."""

import asyncio
import sys
from contextlib import aclosing

from elastikv import LLM, AsyncLLM, SamplingParams


async def ask(llm: AsyncLLM, question: str, max_chars: int) -> str:
    prompt = llm.llm.tokenizer.apply_chat_template([{"role": "user", "content": question}])
    text = ""
    async with aclosing(llm.stream(prompt, SamplingParams(max_tokens=64, seed=1))) as deltas:
        async for delta in deltas:
            text += delta.text
            if len(text) >= max_chars:
                break  # the generation ends within a step, and its place is free for another
    return text


async def main() -> None:
    with LLM(*sys.argv[1:], n_ctx=32768) as model:
        llm = AsyncLLM(model)  # `model` belongs to its worker thread from here on
        await llm.start()
        try:
            questions = {"What does os.getcwd do?": 1000, "What is json.loads?": 1000, "Explain re.match.": 20}
            replies = await asyncio.gather(*(ask(llm, question, n) for question, n in questions.items()))
            for question, reply in zip(questions, replies, strict=True):
                print(f"> {question}\n{reply}\n")
        finally:
            await llm.close()


asyncio.run(main())
