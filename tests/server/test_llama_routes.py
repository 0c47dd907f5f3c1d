"""llama-server's own routes, and what of its parameters the others take."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fake_engine import FakeAsyncLLM
from openai import OpenAI
from real_engine import serving
from running import RunningServer
from support.tiny_models import tiny_model
from support.tiny_tokenizers import byte_level_tokenizer, replace_tokenizer
from test_chat_messages import Templated

FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningServer]:
    with serving() as handle:
        yield handle


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A model with tokens to fill in."""
    folder = tiny_model("qwen2", tmp_path_factory.mktemp("fim") / "model")
    tokenizer = byte_level_tokenizer("qwen2")
    tokenizer.add_special_tokens([*FIM, "<|file_sep|>"])
    replace_tokenizer(folder, tokenizer, eos_token="<|im_end|>")
    with serving(folder) as handle:
        yield handle


def events(text: str) -> list[dict]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_a_completion_in_llama_servers_words(demo: RunningServer) -> None:
    body = {"prompt": "def f(x):", "n_predict": 6, "seed": 1, "n_probs": 2, "return_tokens": True}
    reply = demo.post("/completion", **body).json()
    assert (reply["stop"], reply["stop_type"], reply["tokens_predicted"]) == (True, "limit", 6)
    assert len(reply["tokens"]) == len(reply["completion_probabilities"]) == 6
    assert len(reply["completion_probabilities"][0]["top_logprobs"]) == 2
    assert reply["prompt"] == "def f(x):"
    assert reply["generation_settings"]["n_predict"] == 6
    assert reply["timings"]["predicted_n"] == 6
    assert demo.post("/completion", **{**body, "return_tokens": None}).json()["tokens"] == []
    *news, last = events(demo.post("/completion", **body, stream=True).text)
    assert "".join(one["content"] for one in news) == reply["content"]
    assert [token_id for one in news for token_id in one["tokens"]] == reply["tokens"]
    assert (last["stop"], last["content"], last["stop_type"]) == (True, "", "limit")
    assert not any(one["stop"] for one in news)


def test_a_stop_string_is_told(demo: RunningServer) -> None:
    body = {"prompt": "x", "grammar": 'root ::= "one two three"', "stop": [" tw"]}
    reply = demo.post("/completion", **body).json()
    assert (reply["content"], reply["stop_type"], reply["stopping_word"]) == ("one", "word", " tw")
    assert demo.post("/completion", **{**body, "stop": []}).json()["stop_type"] == "eos"


def test_only_the_fields_that_are_asked_for(demo: RunningServer) -> None:
    fields = ["content", "generation_settings/n_predict", "no/such"]
    reply = demo.post("/completion", prompt="x", n_predict=2, response_fields=fields).json()
    assert set(reply) == {"content", "generation_settings/n_predict"}


@pytest.mark.parametrize(
    ("prompt", "n_replies"),
    [
        ("x", 1),
        ({"prompt_string": "x"}, 1),
        ([[120], {"prompt_string": "x"}], 2),
        ([120, 121], 1),
        ([120, "y"], 1),
        (["x"], 1),
        (["x", "y"], 2),
        ([[120], "y", [121]], 3),
    ],
)
def test_prompts_of_all_kinds(server: RunningServer, prompt: object, n_replies: int) -> None:
    reply = server.post("/completion", prompt=prompt, n_predict=1).json()
    assert len(reply if isinstance(reply, list) else [reply]) == n_replies


@pytest.mark.parametrize("prompt", [[], "", [""], [[]], [[1], 2], [999]])
def test_no_prompt_is_refused(server: RunningServer, prompt: object) -> None:
    response = server.post("/completion", prompt=prompt)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([[97, -100], [98, False]], {97: -100, 98: -100}),
        ({"97": 5}, {97: 5}),
        ({"ab": -1.5}, {97: -1.5, 98: -1.5}),
        ([["c", 1]], {99: 1}),
        ([], None),
    ],
)
def test_a_bias_in_llama_servers_words(server: RunningServer, given: object, expected: dict | None) -> None:
    assert server.post("/completion", prompt="x", logit_bias=given).status_code == 200
    assert server.engine.requests[-1].logit_bias == expected
    assert server.post("/completion", prompt="x", logit_bias=[[999, 1]]).json()["error"]["param"] == "logit_bias"


def test_a_prompt_may_be_computed_anew(demo: RunningServer) -> None:
    body = {"prompt": "def computed_before(n): return n + 1\n" * 8, "n_predict": 2}
    demo.post("/completion", **body)
    assert demo.post("/completion", **body).json()["timings"]["cache_n"] > 0
    assert demo.post("/completion", **body, cache_prompt=False).json()["timings"]["cache_n"] == 0


def test_no_tokens_are_computed_but_the_prompts(demo: RunningServer) -> None:
    text = "def unheard_of(n): return n"
    reply = demo.post("/completion", prompt=text, n_predict=0).json()
    assert (reply["content"], reply["tokens_predicted"], reply["stop_type"]) == ("", 0, "limit")
    again = demo.post("/completion", prompt=text + " + 1", n_predict=1).json()
    assert again["timings"]["cache_n"] >= reply["tokens_evaluated"] - 1
    for path, body in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": [_user("x")]})):
        whole = demo.post(path, **body, max_tokens=0).json()
        assert whole["usage"]["completion_tokens"] == 0
        assert events(demo.post(path, **body, max_tokens=0, stream=True).text)[-1]["choices"][0]["finish_reason"]


def test_an_echo_begins_with_the_prompt(demo: RunningServer) -> None:
    with OpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
        request = {"model": "any", "prompt": ["def f(", "x ="], "max_tokens": 3, "seed": 1}
        plain = client.completions.create(**request).choices
        echoed = client.completions.create(**request, echo=True).choices
        assert [choice.text for choice in echoed] == ["def f(" + plain[0].text, "x =" + plain[1].text]
        streamed = ["", ""]
        for chunk in client.completions.create(**request, echo=True, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].text
        assert streamed == [choice.text for choice in echoed]
    assert demo.post("/v1/completions", prompt="x", echo=True, logprobs=1).json()["error"]["param"] == "echo"


def test_a_text_in_the_middle(filler: RunningServer) -> None:
    body = {"input_prefix": "def f(x):\n", "input_suffix": "\n    return y", "prompt": "    y", "n_predict": 3}
    reply = filler.post("/infill", **body).json()
    assert reply["prompt"] == f"{FIM[0]}def f(x):\n    y{FIM[1]}\n    return y{FIM[2]}"
    extra = [{"filename": "a.py", "text": "import b\n"}]
    reply = filler.post("/infill", **body, input_extra=extra).json()
    assert reply["prompt"].startswith("<|file_sep|>a.py\nimport b\n<|file_sep|>filename\n<|fim_prefix|>def f")
    reply = filler.post("/v1/completions", prompt="def f(x):\n", suffix="\n    return y", max_tokens=3).json()
    tokens = filler.post("/tokenize", content=f"{FIM[0]}def f(x):\n{FIM[1]}\n    return y{FIM[2]}").json()["tokens"]
    assert reply["usage"]["prompt_tokens"] == len(tokens)


def test_a_model_without_such_tokens_says_so(server: RunningServer) -> None:
    response = server.post("/infill", input_prefix="a", input_suffix="b")
    assert response.json()["error"]["param"] == "input_prefix"
    assert server.post("/v1/completions", prompt="a", suffix="b").json()["error"]["param"] == "suffix"


def _user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_apply_template(demo: RunningServer) -> None:
    prompt = "<|im_start|>user\nhi<|im_end|>\n"
    assert demo.post("/apply-template", messages=[_user("hi")]).json()["prompt"] == prompt + "<|im_start|>assistant\n"
    bare = demo.post("/apply-template", messages=[_user("hi")], add_generation_prompt=False)
    assert bare.json()["prompt"] == prompt


@pytest.mark.parametrize(
    ("end", "turn", "expected"),
    [
        ("", {"content": "It r"}, "It r"),
        ("", {"content": [{"type": "text", "text": "It r"}]}, "It r"),
        ("", {"content": "It r", "reasoning_content": "Hm."}, "<think>\nHm.\n</think>\n\nIt r"),
        ("<think>\n", {"content": "It r"}, "<think>\n\n</think>\n\nIt r"),
        ("<think>\n", {"content": "", "reasoning_content": "Hm"}, "<think>\nHm"),
    ],
)
def test_an_answer_that_has_begun_goes_on(server: RunningServer, end: str, turn: dict, expected: str) -> None:
    template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}" + end + "{% endif %}"
    )
    server.engine.llm.tokenizer = Templated(template)
    messages = [_user("is it raining?"), {"role": "assistant", **turn}]
    assert server.post("/apply-template", messages=messages).json()["prompt"] == f"[is it raining?]{expected}"
    whole = server.post("/apply-template", messages=messages, continue_final_message=False).json()["prompt"]
    assert whole.startswith("[is it raining?][")


def test_tokens_are_counted(demo: RunningServer) -> None:
    prompt = demo.post("/apply-template", messages=[_user("hi")]).json()["prompt"]
    tokens = demo.post("/tokenize", content=prompt).json()["tokens"]
    for path in ("/v1/chat/completions/input_tokens", "/chat/completions/input_tokens", "/v1/messages/count_tokens"):
        assert demo.post(path, messages=[_user("hi")]).json()["input_tokens"] == len(tokens)


def test_a_prompt_for_nothing_is_refused(server: RunningServer) -> None:
    turns = [_user("x"), {"role": "assistant", "content": "y"}]
    both = {"add_generation_prompt": True, "continue_final_message": True}
    response = server.post("/v1/chat/completions", messages=turns, **both)
    assert response.json()["error"]["param"] == "continue_final_message"
    response = server.post("/v1/chat/completions", messages=[_user("x")], add_generation_prompt=False)
    assert response.json()["error"]["param"] == "add_generation_prompt"


def test_the_same_without_v1(server: RunningServer, engine: FakeAsyncLLM) -> None:
    assert server.http.get("/models").json() == server.http.get("/v1/models").json()
    assert server.http.get("/models/fake-model").status_code == 200
    for path, body in (
        ("/chat/completions", {"messages": [_user("x")]}),
        ("/chat/completions/input_tokens", {"messages": [_user("x")]}),
        ("/responses", {"input": "x"}),
        ("/responses/input_tokens", {"input": "x"}),
    ):
        assert server.post(path, **body).json()["object"] == server.post(f"/v1{path}", **body).json()["object"]
    # These two are llama-server's own.
    assert server.post("/completions", prompt="x").json()["content"] == "x"
    assert server.post("/embeddings", input="x").json() == server.post("/embedding", input="x").json()
    assert server.http.get("/props").json()["model_path"] == "models/fake.gguf"
