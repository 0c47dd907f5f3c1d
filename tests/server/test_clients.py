"""The clients that people use, each from its package, against the demo model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Literal

import jsonschema_rs
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field
from real_engine import serving
from running import RunningServer
from test_tools import ASK, TOOLS, WEATHER

NAMED = {"type": "function", "function": {"name": "weather"}}


City = Literal["Bonn", "Rome"]


class Answer(BaseModel):
    is_raining: bool
    n_days: int = Field(ge=0, le=99)  # without bounds, this model writes digits for ever


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningServer]:
    with serving() as handle:
        yield handle


@pytest.fixture
def client(demo: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client


def is_valid(arguments: object) -> bool:
    jsonschema_rs.validate(WEATHER, json.loads(arguments) if isinstance(arguments, str) else arguments)
    return True


# openai


def test_openai_streams_a_call(client: OpenAI) -> None:
    request = {"model": "any", "messages": ASK, "tools": TOOLS, "tool_choice": NAMED, "max_tokens": 200, "seed": 1}
    with client.chat.completions.stream(**request) as stream:
        kinds = {event.type for event in stream}
        choice = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    assert choice.finish_reason == "tool_calls"
    assert is_valid(choice.message.tool_calls[0].function.arguments)


def test_openai_responses(client: OpenAI) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    request = {"model": "any", "input": "is it raining?", "max_output_tokens": 200}
    reply = client.responses.create(**request, tools=tools, tool_choice={"type": "function", "name": "weather"})
    (call,) = [item for item in reply.output if item.type == "function_call"]
    assert is_valid(call.arguments)
    history = [
        {"role": "user", "content": "is it raining?"},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "it is"},
    ]
    again = client.responses.create(**{**request, "input": history, "max_output_tokens": 5}, instructions="Be brief.")
    assert again.status in ("completed", "incomplete")
    assert again.output_text is not None
    assert again.usage.output_tokens <= 5
    parsed = client.responses.parse(**request, text_format=Answer).output_parsed
    assert isinstance(parsed.is_raining, bool)


def test_openai_responses_as_a_stream(client: OpenAI) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}, {"type": "web_search"}]
    wish = {"tools": tools, "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 200}
    with client.responses.stream(model="any", input="is it raining?", **wish) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert {"response.created", "response.function_call_arguments.delta", "response.completed"} <= {
        event.type for event in events
    }
    assert is_valid(final.output[0].arguments)
    assert "web_search" in final.warning
    form = {"format": {"type": "json_schema", "name": "w", "schema": WEATHER, "strict": True}}
    with client.responses.stream(model="any", input="hello", max_output_tokens=200, text=form) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text


def test_openai_async(demo: RunningServer) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=demo.url, api_key="none") as client:  # also without /v1
            form = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER, "strict": True}}
            request = {"model": "any", "messages": ASK, "response_format": form, "max_tokens": 200}
            replies = await asyncio.gather(*(client.chat.completions.create(**request, seed=i) for i in range(4)))
            return [reply.choices[0].message.content for reply in replies]

    assert all(is_valid(text) for text in asyncio.run(ask()))


# anthropic


@pytest.mark.slow
def test_anthropic(demo: RunningServer) -> None:
    anthropic = pytest.importorskip("anthropic", reason="the anthropic package is not installed")
    tools = [{"name": "weather", "description": "It rains?", "input_schema": WEATHER}]
    request = {"model": "any", "max_tokens": 200, "messages": ASK, "extra_body": {"seed": 1}}
    with anthropic.Anthropic(base_url=demo.url, api_key="none") as client:
        reply = client.messages.create(**{**request, "max_tokens": 8}, system="Be brief.")
        assert reply.content[0].type == "text"
        assert reply.stop_reason in ("max_tokens", "end_turn")
        n_tokens = client.messages.count_tokens(model="any", messages=ASK, system="Be brief.").input_tokens
        assert n_tokens == reply.usage.input_tokens + reply.usage.cache_read_input_tokens

        chosen = {"tools": tools, "tool_choice": {"type": "tool", "name": "weather"}}
        called = client.messages.create(**request, **chosen)
        (call,) = called.content
        assert (called.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "weather")
        assert is_valid(call.input)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "it is"}]}
        turns = [
            *ASK,
            {"role": "assistant", "content": called.content},
            {"role": "user", "content": [result, {"type": "text", "text": "so?"}]},
        ]
        assert client.messages.create(**{**request, "messages": turns, "max_tokens": 4}, tools=tools).usage

        with client.messages.stream(**request, **chosen) as stream:
            kinds = {event.type for event in stream}
            message = stream.get_final_message()
        assert {"message_start", "content_block_delta", "input_json", "message_stop"} <= kinds
        assert is_valid(message.content[0].input)
        with client.messages.stream(**{**request, "max_tokens": 8}) as stream:
            text = "".join(stream.text_stream)
        assert text == stream.get_final_message().content[0].text
        with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
            client.messages.create(**request, tools=tools, tool_choice={"type": "tool", "name": "no"})


# What stands on these two


@pytest.mark.slow
def test_langchain(demo: RunningServer) -> None:
    langchain_openai = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    model = langchain_openai.ChatOpenAI(base_url=f"{demo.url}/v1", api_key="none", model="any", max_tokens=200, seed=1)
    call = model.bind_tools(TOOLS, tool_choice="weather").invoke("is it raining?").tool_calls[0]
    assert call["name"] == "weather"
    assert is_valid(call["args"])
    for method in ("json_schema", "function_calling"):
        answer = model.with_structured_output(Answer, method=method).invoke("is it raining?")
        assert isinstance(answer, Answer)


@pytest.mark.slow
def test_litellm(demo: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks another server for prices
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    request = {"messages": ASK, "tools": TOOLS, "tool_choice": NAMED, "max_tokens": 200, "api_key": "none"}
    reply = litellm.completion(model="openai/any", api_base=f"{demo.url}/v1", **request)
    assert is_valid(reply.choices[0].message.tool_calls[0].function.arguments)
    chunks = list(litellm.completion(model="openai/any", api_base=f"{demo.url}/v1", stream=True, **request))
    whole = litellm.stream_chunk_builder(chunks)
    assert is_valid(whole.choices[0].message.tool_calls[0].function.arguments)
    spoken = litellm.completion(model="anthropic/any", api_base=demo.url, **{**request, "max_tokens": 100})
    assert is_valid(spoken.choices[0].message.tool_calls[0].function.arguments)


def test_llm(demo: RunningServer, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llm", reason="llm is not installed")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    import llm
    from llm.default_plugins.openai_models import Chat

    model = Chat("elastikv", model_name="any", api_base=f"{demo.url}/v1", supports_schema=True, supports_tools=True)
    model.key = "none"
    assert llm.Model is not None
    assert is_valid(model.prompt("is it raining?", schema=WEATHER, stream=False, max_tokens=200).text())
    streamed = model.prompt("is it raining?", max_tokens=5)
    assert "".join(streamed) == streamed.text()


@pytest.mark.slow
def test_pydantic_ai_calls_a_tool_until_it_has_an_answer(demo: RunningServer) -> None:
    pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed")
    from pydantic_ai import Agent, ModelRetry
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{demo.url}/v1", api_key="none")
    agent = Agent(OpenAIChatModel("any", provider=provider), output_type=Answer, retries=40)
    asked: list[str] = []

    @agent.tool_plain
    def weather(city: City) -> str:
        """Whether it rains there."""
        asked.append(city)
        return "it rains"

    @agent.output_validator
    def not_before_it_has_asked(answer: Answer) -> Answer:
        if not asked:
            raise ModelRetry("ask for the weather first")
        return answer

    # The answer is a call, too, and the demo model's choice between the two is as good as a coin's.
    settings = {"max_tokens": 300, "parallel_tool_calls": False}
    assert isinstance(agent.run_sync("is it raining?", model_settings=settings).output, Answer)
    assert set(asked) <= {"Bonn", "Rome"}
    assert asked


@pytest.mark.slow
def test_openai_agents_run_a_tool(demo: RunningServer) -> None:
    agents = pytest.importorskip("agents", reason="openai-agents is not installed")
    asked = []

    @agents.function_tool
    def weather(city: City) -> str:
        """Whether it rains there."""
        asked.append(city)
        return "it rains"

    async def run() -> object:
        async with AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
            for model in (agents.OpenAIChatCompletionsModel("any", client), agents.OpenAIResponsesModel("any", client)):
                # The demo model's own words may take any number of tokens: a call is what can be bounded.
                settings = agents.ModelSettings(tool_choice="required", parallel_tool_calls=False, max_tokens=200)
                ends = {"tool_use_behavior": "stop_on_first_tool"}
                agent = agents.Agent("a", model=model, tools=[weather], model_settings=settings, **ends)
                config = agents.RunConfig(tracing_disabled=True)
                result = await agents.Runner.run(agent, "is it raining?", run_config=config, max_turns=4)
        return result.final_output

    assert asyncio.run(run()) == "it rains"
    assert len(asked) == 2
