"""The public face on small real models: the texts transformers would write, and every way a generation ends."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.tiny_models import ARCHITECTURES, tiny_model, tiny_transformers_model

from elastikv import LLM, SamplingParams, SchedulerOptions
from elastikv.batch import UBatch
from elastikv.errors import CacheFull, GenerationCut, InvalidRequest, ModelError, PromptTooLong

GREEDY = SamplingParams(temperature=0, max_tokens=20)
PROMPTS = ["Once upon a time there was", "def grow(n", "The quick brown fox jumps over the lazy dog; 1234 " * 3, "x"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {arch: tiny_model(arch, root / arch) for arch in ARCHITECTURES}


def open_llm(path: Path, **options: object) -> LLM:
    keywords = {"n_ctx": 512, "kv_dtype": "f32", "kernels": "reference", "n_batch": 64, "n_ubatch": 16}
    return LLM(path, **{**keywords, **options})  # type: ignore[arg-type]


@pytest.fixture
def llm(folders: dict[str, Path]) -> Iterator[LLM]:
    with open_llm(folders["qwen3_5"]) as opened:
        yield opened


def transformers_tokens(arch: str, prompts: list[list[int]], n: int) -> list[list[int]]:
    model = tiny_transformers_model(arch)
    outputs = [
        model.generate(torch.tensor([prompt]), max_new_tokens=n, do_sample=False, pad_token_id=0) for prompt in prompts
    ]
    return [output[0, len(prompt) :].tolist() for prompt, output in zip(prompts, outputs, strict=True)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_texts_are_those_of_transformers(folders: dict[str, Path], arch: str) -> None:
    """Together, with prompts longer than several ubatches; and once more, from the cells that are there."""
    with open_llm(folders[arch]) as llm:
        outputs = llm.generate(PROMPTS, GREEDY)
        expected = transformers_tokens(arch, [llm.tokenizer.encode(prompt) for prompt in PROMPTS], 20)
        assert [output.token_ids for output in outputs] == expected
        again = llm.generate(PROMPTS, GREEDY)
        assert [output.token_ids for output in again] == expected
        assert again[2].cached_tokens == again[2].prompt_tokens - 1
        llm.memory.check()


def test_forward_appends_and_returns_all_logits(folders: dict[str, Path]) -> None:
    reference = tiny_transformers_model("llama")
    tokens = torch.arange(5, 75).unsqueeze(0)
    with open_llm(folders["llama"]) as llm, torch.no_grad():
        first = llm.forward(tokens[0, :50].tolist(), seq_id=3)
        second = llm.forward(tokens[0, 50:].tolist(), seq_id=3)
        assert first.dtype == torch.float32
        torch.testing.assert_close(torch.cat([first, second]), reference(tokens).logits[0], atol=1e-3, rtol=1e-3)
        assert llm.memory.seq_pos_max(3) == 69


def test_forward_does_not_meet_the_schedulers_sessions(llm: LLM) -> None:
    expected = llm.generate("a story", GREEDY)[0].token_ids
    for seq_id in range(3):
        llm.forward([1, 2, 3], seq_id=seq_id)
    llm.generate("a story", GREEDY)
    assert [llm.memory.seq_pos_max(seq_id) for seq_id in range(3)] == [2, 2, 2]
    assert llm.generate("a story", GREEDY)[0].token_ids == expected
    with pytest.raises(InvalidRequest, match="seq_id"):
        llm.forward([1], seq_id=1 << 20)


def test_a_stream_adds_up_to_its_output(llm: LLM) -> None:
    deltas = list(llm.stream("Once", SamplingParams(seed=3, max_tokens=30, logprobs=2)))
    output = deltas[-1].output
    assert output is not None
    assert all(delta.output is None for delta in deltas[:-1])
    assert "".join(delta.text for delta in deltas) == output.text
    assert [token_id for delta in deltas for token_id in delta.token_ids] == output.token_ids
    assert [entry for delta in deltas for entry in delta.logprobs or []] == output.logprobs
    assert output.finish_reason == deltas[-1].finish_reason == "length"
    assert output.timings.predicted_n == 30
    assert output.timings.prompt_n == output.prompt_tokens


def test_a_stream_tells_how_far_its_prompt_is(llm: LLM) -> None:
    params = SamplingParams(max_tokens=2, return_progress=True)
    *deltas, first, last = llm.stream([7] * 150, params)
    told = [delta.progress for delta in deltas if delta.progress]
    assert len(told) == len(deltas)
    assert {0, 64, 128, 150} <= {one.processed for one in told}  # of batches of 64
    assert [one.total for one in told] == [150] * len(told)
    assert told[-1].processed == 150
    assert told[0].seconds == 0 < told[-1].seconds
    assert [delta.timings.prompt_n for delta in deltas] == [one.processed for one in told]
    assert (first.timings.predicted_n, last.timings.predicted_n) == (1, 2)
    assert last.output.session_id in [session.id for session in llm.scheduler.sessions()]
    again = next(iter(llm.stream([7] * 150, params))).progress
    assert again.processed == again.cached > 0


def test_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    token_ids = llm.tokenizer.encode("Once")
    output = llm.generate([token_ids], SamplingParams(temperature=0, max_tokens=3, logprobs=2))[0]
    logits = llm.forward([*token_ids, *output.token_ids])
    expected = logits.log_softmax(-1)[len(token_ids) - 1 : -1]
    assert output.logprobs is not None
    for entry, row in zip(output.logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-3)
        assert [top.token_id for top in entry.top] == row.topk(2).indices.tolist()


def test_a_seed_gives_the_same_text_alone_and_in_company(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=11, max_tokens=12)
    alone = llm.generate("a story", params)[0].token_ids
    llm.clear()
    outputs = llm.generate(["a story", "another one", "b"], [params, SamplingParams(), SamplingParams(seed=2)])
    assert outputs[0].token_ids == alone


def test_a_stop_string_ends_the_text_and_is_not_in_it(llm: LLM) -> None:
    whole = llm.generate("Once", GREEDY)[0]
    pieces = [llm.tokenizer.decode(whole.token_ids[: n + 1]) for n in range(20)]
    stop = whole.text[6:9]
    output = llm.generate("Once", SamplingParams(temperature=0, max_tokens=20, stop=stop))[0]
    assert output.finish_reason == "stop"
    assert output.text == whole.text[: whole.text.index(stop)]
    assert len(output.token_ids) < len(pieces)


def test_the_end_token_ends_the_text_unless_it_is_ignored(llm: LLM) -> None:
    (end,) = llm.tokenizer.eos_token_ids
    forced = {"temperature": 0, "max_tokens": 5, "logit_bias": {end: 100.0}}
    output = llm.generate("Once", SamplingParams(**forced))[0]
    assert (output.token_ids, output.text, output.finish_reason) == ([end], "", "stop")
    ignored = llm.generate("Once", SamplingParams(**forced, ignore_eos=True))[0]
    assert end not in ignored.token_ids
    assert ignored.finish_reason == "length"


def test_a_chat_continues_where_it_was(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Tell me of the cache that grew with every token."}]
    first = llm.chat(messages, GREEDY)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And then?"}]
    second = llm.chat(messages, GREEDY)
    assert second.cached_tokens >= first.prompt_tokens - 1
    deltas = list(llm.chat(messages, GREEDY, stream=True))
    assert deltas[-1].output is not None
    assert deltas[-1].output.token_ids == second.token_ids


def test_a_closed_stream_ends_its_request_and_keeps_its_session(llm: LLM) -> None:
    stream = llm.stream("Once upon a time", SamplingParams(max_tokens=None, seed=1, ignore_eos=True))
    tokens = [token_id for _ in range(4) for token_id in next(stream).token_ids]
    stream.close()
    assert not llm.scheduler.has_work
    prompt = [*llm.tokenizer.encode("Once upon a time"), *tokens]
    assert llm.generate([[*prompt, 1]], GREEDY)[0].cached_tokens == len(prompt) - 1


def test_ctrl_c_leaves_everything_usable(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    story = "Once upon a time there was a cache. " * 3
    expected = llm.generate(story, GREEDY)[0].token_ids
    llm.clear()
    forward, calls = llm.model.forward, iter(range(100))

    def interrupted(ubatch: UBatch, *arguments: object) -> torch.Tensor:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return forward(ubatch, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(llm.model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([story, "another"], GREEDY)
    llm.memory.check()
    assert not llm.scheduler.has_work
    output = llm.generate(story, GREEDY)[0]
    assert output.token_ids == expected
    assert output.cached_tokens > 0


def test_two_streams_at_once_do_not_disturb_each_other(llm: LLM) -> None:
    prompts = ["a story", "another"]
    alone = [llm.generate(prompt, GREEDY)[0].text for prompt in prompts]
    streams = [llm.stream(prompt, GREEDY) for prompt in prompts]
    texts = ["", ""]
    for deltas in zip(*streams, strict=True):
        texts = [text + delta.text for text, delta in zip(texts, deltas, strict=True)]
    assert texts == alone


def test_more_prompts_than_the_queue_holds(folders: dict[str, Path]) -> None:
    with open_llm(folders["llama"], scheduler=SchedulerOptions(n_parallel=2, max_queue=2)) as llm:
        outputs = llm.generate([[i + 5, i + 6] for i in range(9)], SamplingParams(temperature=0, max_tokens=3))
    assert len(outputs) == 9


def test_n_ctx_ends_a_text_with_length(folders: dict[str, Path]) -> None:
    with open_llm(folders["llama"], n_ctx=24) as llm:
        output = llm.generate([[5] * 10], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))[0]
        assert output.finish_reason == "length"
        assert len(output.token_ids) == 14
        with pytest.raises(PromptTooLong, match="25 tokens, which exceeds the available context size of 24"):
            llm.generate([[5] * 25])


@pytest.mark.parametrize("arch", ["llama", "qwen3_5"])
def test_a_budget_that_ends_a_text_hands_it_over_and_the_session_goes_on(folders: dict[str, Path], arch: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
    prompt = list(range(5, 45))
    with open_llm(folders[arch], kv_growth="exact", kv_initial=16) as llm:
        whole = llm.generate([prompt], params)[0].token_ids
        llm.clear()
        llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1))
        llm.set_budget(llm.stats().committed_bytes + llm.stats().compute_bytes + 40_000 + 120_000 * (arch == "llama"))
        deltas = []
        with pytest.raises(GenerationCut) as caught:
            deltas.extend(llm.stream(prompt, params))
        cut = caught.value.output
        assert 0 < len(cut.token_ids) < 300
        assert cut.token_ids == whole[: len(cut.token_ids)]
        assert cut.text.startswith(llm.tokenizer.decode(cut.token_ids[:-4]))
        llm.memory.check()
        llm.set_budget("none")
        rest = llm.generate([[*prompt, *cut.token_ids]], SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))
        assert rest[0].token_ids == whole[len(cut.token_ids) :][:10]
        assert rest[0].cached_tokens >= len(prompt)


@pytest.mark.parametrize("arch", ["llama", "qwen3_5"])
def test_on_a_third_of_the_memory_every_text_is_the_same(folders: dict[str, Path], arch: str) -> None:
    prompts = [f"{i}: once upon a time there was a cache" for i in range(6)]
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    with open_llm(folders[arch], kv_growth="exact", kv_initial=16, scheduler=SchedulerOptions(n_parallel=6)) as llm:
        expected = [output.token_ids for output in llm.generate(prompts, params)]
        wanted = llm.stats().committed_bytes
        llm.clear()
        llm.set_budget(llm.stats().compute_bytes + wanted // 3)
        llm.budget.reset_peak()
        assert [output.token_ids for output in llm.generate(prompts, params)] == expected
        assert llm.scheduler.stats().n_preemptions > 0
        assert llm.stats().peak_committed_bytes <= llm.stats().budget_bytes
        llm.memory.check()


def test_clear_and_close_give_all_memory_back(folders: dict[str, Path]) -> None:
    llm = open_llm(folders["qwen3_5"])
    llm.generate(PROMPTS, GREEDY)
    llm.forward([1, 2, 3])
    llm.clear()
    assert llm.stats().committed_bytes == 0
    assert llm.generate("x", GREEDY)[0].cached_tokens == 0
    llm.close()
    llm.close()
    assert llm.budget.committed_bytes == 0


def test_without_kv_dynamic_all_of_n_ctx_is_committed(folders: dict[str, Path]) -> None:
    with open_llm(folders["llama"], kv_dynamic=False) as llm:
        llm.generate("x", GREEDY)
        assert llm.stats().capacity_cells == 512
        assert llm.stats().committed_bytes == llm.static_bytes() == 512 * 3 * 2 * 2 * 32 * 4


# Bad input


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"n_ctx": 0}, "n_ctx .* leave it out"),
        ({"kv_growth": "sideways"}, "growth"),
        ({"kv_initial": 0}, "initial"),
        ({"kv_budget": "a lot"}, "a lot"),
        ({"kv_dtype": "f8"}, "kv_dtype .* must be one of f32"),
        ({"kv_storage": "tape"}, "storage"),
        ({"n_ubatch": 0}, "n_ubatch"),
        ({"n_batch": 3}, "n_batch .* n_parallel = 4"),
        ({"n_threads": 0}, "n_threads"),
        ({"kernels": "gpu"}, "kernels"),
        ({"dtype": "f8"}, "dtype"),
    ],
)
def test_bad_options_are_refused_by_name(folders: dict[str, Path], keywords: dict, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        open_llm(folders["llama"], **keywords)


def test_a_budget_that_holds_not_even_the_buffers_is_refused_at_once(folders: dict[str, Path]) -> None:
    with pytest.raises(CacheFull, match="--kv-budget"):
        open_llm(folders["llama"], kv_budget="1KiB")


def test_a_model_that_is_not_there_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        LLM(tmp_path / "nothing")


def test_n_ctx_beyond_the_models_is_a_warning(folders: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="5000 is above the model's maximum of 4096"):
        open_llm(folders["llama"], n_ctx=5000).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_llm(folders["llama"], n_ctx=None) as llm:
            assert llm.n_ctx == 4096


def test_an_empty_prompt_is_refused(llm: LLM) -> None:
    for prompt in ("", []):
        with pytest.raises(InvalidRequest, match="empty"):
            llm.generate([prompt])


def test_params_must_be_one_or_one_for_each(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="2 prompts but 3"):
        llm.generate(["a", "b"], [GREEDY] * 3)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, elastikv; assert 'torch' not in sys.modules; elastikv.SamplingParams; import elastikv.errors"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there() -> None:
    import elastikv

    for name in elastikv.__all__:
        assert getattr(elastikv, name) is not None
    assert set(elastikv.__all__) <= set(dir(elastikv))
    with pytest.raises(AttributeError, match="nonsense"):
        elastikv.nonsense  # noqa: B018
