"""ElasticCache beyond token for token: memory, sessions, files, devices, and bad use."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_architectures import N_VOCAB, WINDOW, tiny_config, tiny_model
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, T5Config

from elastikv import CacheFull, ElasticCache, InvalidRequest, SnapshotError
from elastikv.memory import Budget

KINDS = ("llama", "gemma2", "mistral", "bamba", "lfm2", "falcon_h1", "deepseek_v3", "gemma3n_text")
"""One of each: full, sliding beside full, sliding only, recurrent, convolution, both in a layer, MLA, shared."""


def _ids(n_tokens: int, n_rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, N_VOCAB, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _logits(model: PreTrainedModel, input_ids: torch.Tensor, cache: Any) -> torch.Tensor:
    n_held = cache.get_seq_length()
    positions = torch.arange(n_held, n_held + input_ids.shape[1])[None].expand(len(input_ids), -1)
    return model(input_ids=input_ids, position_ids=positions, past_key_values=cache).logits[:, -1]


def _generate(model: PreTrainedModel, cache: Any, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(input_ids, past_key_values=cache, **{"max_new_tokens": 6, "do_sample": False, **options})


def _held(cache: ElasticCache) -> dict[str, torch.Tensor]:
    """Copies of all that the cache remembers."""
    tensors: dict[str, torch.Tensor] = {}
    for index, member in enumerate(cache.memory.members):
        facts, planes = member.snapshot()
        tensors |= {f"{index}.{name}": plane.clone() for name, plane in planes.items()}
        tensors |= {f"{index}.{name}": torch.tensor(fact) for name, fact in facts.items() if name == "length"}
    return tensors


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Memory


def test_construction_allocates_nothing() -> None:
    cache = ElasticCache(tiny_config("llama"), n_ctx=1 << 17)
    assert cache.stats().committed_bytes == cache.stats().reserved_bytes == 0
    assert cache.stats().sequences == ()


def test_stats_follow_what_is_used() -> None:
    model = tiny_model("llama")
    cache = ElasticCache(model.config, n_ctx=1 << 17, growth="step:512", initial=512)
    _logits(model, _ids(20, n_rows=2), cache)
    stats = cache.stats()
    bytes_per_cell = 3 * 2 * 2 * 8 * 4  # layers, K and V, heads, dim, float32
    assert (stats.used_cells, stats.capacity_cells) == (2 * 20, 2 * 512)
    assert stats.committed_bytes == cache.budget.kv_bytes == 2 * 512 * bytes_per_cell
    assert [sequence.used_cells for sequence in stats.sequences] == [20, 20]
    _logits(model, _ids(500, n_rows=2), cache)
    assert cache.stats().capacity_cells == 2 * 1024
    assert cache.stats().n_resizes == 3 + 1  # one for each new layer, then one for all


@pytest.mark.parametrize("storage", ["mmap", "copy"])
def test_a_refused_policy_gives_way_step_by_step_and_not_cell_by_cell(storage: Any) -> None:
    model = tiny_model("llama")
    bytes_per_cell = 3 * 2 * 2 * 8 * 4
    cache = ElasticCache(
        model.config, n_ctx=4096, growth="double:1GiB", storage=storage, budget=600 * bytes_per_cell * 4 // 3
    )
    _logits(model, _ids(256), cache)
    n_before = cache.stats().n_resizes
    for token in _ids(300)[0]:
        _logits(model, token[None, None], cache)
    assert cache.get_seq_length() == 556
    assert cache.stats().n_resizes - n_before <= 12


@pytest.mark.parametrize("storage", ["mmap", "copy"])
@pytest.mark.parametrize("model_type", KINDS)
def test_shrink_to_fit_keeps_the_contents(model_type: str, storage: Any) -> None:
    model = tiny_model(model_type)
    cache, expected = (
        ElasticCache(model.config, n_ctx=4096, initial=2048, storage=storage),
        DynamicCache(config=model.config),
    )
    for each in (cache, expected):
        _logits(model, _ids(30), each)
    before = cache.stats().committed_bytes
    freed = cache.shrink_to_fit()
    assert freed == before - cache.stats().committed_bytes
    assert freed > 0 or model_type == "mistral"  # whose window is less than a page
    assert cache.shrink_to_fit() == 0
    assert torch.allclose(_logits(model, _ids(3), cache), _logits(model, _ids(3), expected), atol=1e-5)


@pytest.mark.parametrize("storage", ["mmap", "copy"])
def test_a_sliding_window_holds_no_more_than_it_reaches(storage: Any) -> None:
    model = tiny_model("mistral", dtype=torch.float32)
    cache = ElasticCache(model.config, n_ctx=250, growth="exact", storage=storage)
    _generate(model, cache, _ids(10), max_new_tokens=230)
    assert cache.get_seq_length() == 239
    assert max(layer.n_used for layer in cache.layers) <= WINDOW - 1 + 16
    assert cache.layers[0].keys.shape[2] >= WINDOW - 1


def test_a_long_prompt_fills_a_window_only() -> None:
    model = tiny_model("mistral")
    cache, expected = ElasticCache(model.config, growth="exact"), DynamicCache(config=model.config)
    for each in (cache, expected):
        _logits(model, _ids(100), each)
    assert cache.layers[0].n_used == WINDOW - 1
    assert torch.allclose(_logits(model, _ids(60), cache), _logits(model, _ids(60), expected), atol=1e-5)


def test_reset_gives_everything_back_and_takes_another_batch() -> None:
    for model_type in KINDS:
        model = tiny_model(model_type)
        cache = ElasticCache(model.config)
        _generate(model, cache, _ids(9, n_rows=2))
        cache.reset()
        assert cache.budget.kv_bytes == cache.stats().committed_bytes == 0
        expected = _generate(model, DynamicCache(config=model.config), _ids(9))
        assert torch.equal(_generate(model, cache, _ids(9)), expected)


def test_the_budget_is_given_back_with_the_cache() -> None:
    model, budget = tiny_model("bamba"), Budget()
    cache = ElasticCache(model.config, budget=budget)
    _logits(model, _ids(9), cache)
    assert budget.kv_bytes > 0
    del cache
    assert budget.kv_bytes == 0


def test_views_outlive_the_cache() -> None:
    model = tiny_model("llama")
    cache = ElasticCache(model.config, storage="mmap")
    _logits(model, _ids(9), cache)
    keys = cache.layers[0].keys
    copy_of_keys = keys.clone()
    del cache
    assert torch.equal(keys, copy_of_keys)


def test_inference_mode_and_outside_of_it_take_turns() -> None:
    for model_type in KINDS:
        model = tiny_model(model_type)
        cache, expected = ElasticCache(model.config, growth="exact"), DynamicCache(config=model.config)
        with torch.inference_mode():
            _logits(model, _ids(9), cache)
        _logits(model, _ids(9), expected)
        for _ in range(20):
            assert torch.allclose(_logits(model, _ids(1), cache), _logits(model, _ids(1), expected), atol=1e-4)


# What generate and its users do with a cache


@pytest.mark.parametrize("model_type", KINDS)
def test_rows_of_a_batch_can_be_repeated_chosen_and_reordered(model_type: str) -> None:
    model = tiny_model(model_type)
    cache = ElasticCache(model.config, growth="exact")
    prompts = _ids(9, n_rows=2)
    _logits(model, prompts, cache)
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 1, 0, 1]))
    cache.batch_select_indices(torch.tensor([0, 2, 3]))
    assert cache.batch_size in (3, -1)

    expected = DynamicCache(config=model.config)
    rows = [prompts[1], prompts[0], prompts[0]]  # 0 0 1 1 -> 1 0 0 0 -> 1 0 0
    _logits(model, torch.stack(rows), expected)
    got, wanted = (_logits(model, _ids(1, n_rows=3), each) for each in (cache, expected))
    assert torch.allclose(got, wanted, atol=1e-5)
    cache.reset()
    assert cache.budget.kv_bytes == 0


def test_a_reorder_moves_rows_in_place() -> None:
    model = tiny_model("llama")
    cache = ElasticCache(model.config)
    _logits(model, _ids(9, n_rows=3), cache)
    address, rows = cache.layers[0].keys.data_ptr(), cache.layers[0].keys.clone()
    cache.reorder_cache(torch.tensor([1, 1, 0]))
    assert cache.layers[0].keys.data_ptr() == address
    assert torch.equal(cache.layers[0].keys, rows[[1, 1, 0]])


@pytest.mark.parametrize("model_type", KINDS)
def test_a_deep_copy_goes_its_own_way(model_type: str) -> None:
    model = tiny_model(model_type)
    cache = ElasticCache(model.config)
    _logits(model, _ids(20), cache)
    before = _held(cache)
    twin = copy.deepcopy(cache)
    assert twin.budget is cache.budget
    _generate(model, twin, torch.cat((_ids(20), _ids(5, seed=1)), dim=1))
    assert _same(_held(cache), before)
    assert not _same(_held(twin), before)


@pytest.mark.parametrize("model_type", KINDS)
def test_a_pickled_cache_goes_on_where_it_was(model_type: str) -> None:
    model = tiny_model(model_type)
    cache = ElasticCache(model.config, n_ctx=1000, growth="step:64", budget="1GiB")
    _logits(model, _ids(30, n_rows=2), cache)
    pickled = pickle.dumps(cache)
    assert len(pickled) < 2 * sum(tensor.nbytes for tensor in _held(cache).values()) + 20_000, "no spare capacity"
    twin = pickle.loads(pickled)
    assert _same(_held(twin), _held(cache))
    assert (twin.n_ctx, twin.budget.limit_bytes) == (1000, 1 << 30)
    assert twin.budget.kv_bytes == twin.stats().committed_bytes > 0
    more = _ids(8, n_rows=2, seed=1)
    torch.testing.assert_close(_logits(model, more, twin), _logits(model, more, cache))
    assert pickle.loads(pickle.dumps(ElasticCache(model.config))).get_seq_length() == 0


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mistral", "falcon_h1", "gemma3n_text"])
def test_iterating_gives_what_dynamic_cache_gives(model_type: str) -> None:
    model = tiny_model(model_type)
    cache, expected = ElasticCache(model.config), DynamicCache(config=model.config)
    for given in (cache, expected):
        _logits(model, _ids(40), given)
    assert len(cache) == len(expected)
    for ours, theirs in zip(cache, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_iterating_over_layers_without_cells_gives_none_for_them() -> None:
    model = tiny_model("bamba")
    cache = ElasticCache(model.config)
    _logits(model, _ids(5), cache)
    assert {keys is None for keys, _, _ in cache} == {True, False}


def test_sampling() -> None:
    model, outputs = tiny_model("qwen3"), []
    for cache in (DynamicCache(config=model.config), ElasticCache(model.config)):
        torch.manual_seed(7)
        outputs.append(_generate(model, cache, _ids(9, n_rows=2), do_sample=True, max_new_tokens=20))
    assert torch.equal(*outputs)


def test_a_streamed_address_never_moves() -> None:
    """What ``DynamicCache`` does at every token, this one never does."""
    model = tiny_model("llama")
    cache = ElasticCache(model.config, n_ctx=200, growth="exact", storage="mmap")
    _logits(model, _ids(3), cache)
    address = cache.layers[0].keys.data_ptr()
    _generate(model, cache, _ids(3), max_new_tokens=100)
    assert cache.layers[0].keys.data_ptr() == address


def test_layers_on_several_devices() -> None:
    """Each layer is where its keys are; the meta device stands for a second accelerator."""
    config = tiny_config("llama")
    cache = ElasticCache(config, storage="copy")
    for layer, device in enumerate(("cpu", "meta", "cpu")):
        states = torch.ones(1, 2, 5, 8, device=device)
        keys, values = cache.update(states, states, layer)
        assert keys.device.type == values.device.type == device
    assert cache.layers[1].keys.shape == (1, 2, 5, 8)


def test_gradients_reach_the_tokens_of_the_pass() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("gemma2"))
    gradients = []
    for cache in (DynamicCache(config=model.config), ElasticCache(model.config, storage="copy")):
        _logits(model, _ids(20), cache)
        model.zero_grad()
        model(input_ids=_ids(3), position_ids=torch.arange(20, 23)[None], past_key_values=cache).logits.sum().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    assert torch.allclose(*gradients, atol=1e-5)


# Files


@pytest.mark.parametrize("model_type", KINDS)
def test_save_and_load(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    cache = ElasticCache(model.config)
    _logits(model, _ids(30), cache)
    cache.save(tmp_path / "prompt")
    restored = ElasticCache.load(tmp_path / "prompt", model.config, n_ctx=100, growth="exact")
    assert _same(_held(restored), _held(cache))
    assert torch.equal(_logits(model, _ids(4), restored), _logits(model, _ids(4), cache))
    assert [path.name for path in tmp_path.iterdir()] == ["prompt"]


def test_load_refuses_what_is_not_whole_or_not_of_this_model(tmp_path: Path) -> None:
    model = tiny_model("lfm2")
    cache, path = ElasticCache(model.config), tmp_path / "prompt"
    _logits(model, _ids(30), cache)
    cache.save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", whole[:-9] + b"x" + whole[-8:], b"\xff" * 8 + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(SnapshotError):
            ElasticCache.load(path, model.config)
    path.write_bytes(whole)
    with pytest.raises(SnapshotError, match="another model"):
        ElasticCache.load(path, tiny_config("llama"))
    budget = Budget(4096)
    with pytest.raises(CacheFull):
        ElasticCache.load(path, model.config, budget=budget)
    assert budget.kv_bytes == 0
    with pytest.raises(CacheFull, match="n_ctx"):
        ElasticCache.load(path, model.config, n_ctx=20)


# Bad use


@pytest.mark.parametrize("model_type", KINDS)
def test_a_second_generate_that_would_pass_n_ctx(model_type: str) -> None:
    model = tiny_model(model_type)
    cache = ElasticCache(model.config, n_ctx=16)
    first = _generate(model, cache, _ids(9), max_new_tokens=4)
    with pytest.raises(CacheFull, match="raise -c / n_ctx") as caught:
        _generate(model, cache, torch.cat((first, _ids(2, seed=1)), dim=1), max_new_tokens=6)
    assert (caught.value.asked, caught.value.left, caught.value.limit) == (1, 0, 16)
    assert cache.get_seq_length() == 16


@pytest.mark.parametrize("storage", ["mmap", "copy"])
@pytest.mark.parametrize("model_type", [kind for kind in KINDS if kind != "mistral"])  # which needs a page only
def test_a_growth_refused_in_the_middle_of_generate(model_type: str, storage: Any) -> None:
    """The cache holds every finished pass, and goes on from there once it may grow."""
    model = tiny_model(model_type)
    whole = _generate(model, DynamicCache(config=model.config), _ids(100), max_new_tokens=40)
    budget = Budget()
    cache = ElasticCache(model.config, n_ctx=256, budget=budget, growth="exact", storage=storage)
    _logits(model, whole[:, :100], cache)
    budget.set_limit(budget.kv_bytes)
    with pytest.raises(CacheFull, match="raise --kv-budget / kv_budget"):
        _generate(model, cache, whole[:, :101], max_new_tokens=39)
    n_held = cache.get_seq_length()
    assert n_held > 101
    before = _held(cache)
    for n_new in (1, 50):
        with pytest.raises(CacheFull):
            _logits(model, _ids(n_new), cache)
    assert _same(_held(cache), before)
    assert {layer.length for layer in cache.memory.owners if layer.cells} == {n_held}

    budget.set_limit("none")
    expected = DynamicCache(config=model.config)
    _logits(model, whole[:, :100], expected)
    _generate(model, expected, whole[:, :101], max_new_tokens=n_held - 100)
    outputs = [_generate(model, each, whole[:, : n_held + 1], max_new_tokens=20) for each in (cache, expected)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("model_type", KINDS)
def test_a_prompt_that_never_fits_leaves_the_cache_empty(model_type: str) -> None:
    model = tiny_model(model_type)
    budget = Budget(24 << 10)
    cache = ElasticCache(model.config, n_ctx=4096, budget=budget)
    with pytest.raises(CacheFull):
        _logits(model, _ids(600), cache)
    assert cache.get_seq_length() == 0
    assert budget.kv_bytes == 0
    assert cache.stats().committed_bytes == 0


@pytest.mark.parametrize("model_type", KINDS)
def test_a_batch_size_that_changes(model_type: str) -> None:
    model = tiny_model(model_type)
    cache = ElasticCache(model.config)
    _logits(model, _ids(9, n_rows=2), cache)
    before = _held(cache)
    with pytest.raises(InvalidRequest, match="batch of 2 sequences"):
        _logits(model, _ids(3, n_rows=3), cache)
    assert _same(_held(cache), before)


def test_a_cache_of_another_config() -> None:
    larger = AutoModelForCausalLM.from_config(tiny_config("llama", num_hidden_layers=4))
    with pytest.raises(InvalidRequest, match="3 layers of another config"):
        _logits(larger, _ids(3), ElasticCache(tiny_config("llama")))
    cache = ElasticCache(tiny_config("llama"))
    _logits(tiny_model("llama"), _ids(3), cache)
    with pytest.raises(InvalidRequest, match="another model"):
        _logits(tiny_model("gpt2"), _ids(3), cache)
    assert cache.get_seq_length() == 3


def test_what_it_does_not_do_is_said() -> None:
    with pytest.raises(InvalidRequest, match="encoder-decoder"):
        ElasticCache(T5Config())
    with pytest.raises(InvalidRequest, match="DynamicCache"):
        ElasticCache(tiny_config("llama"), offloading=True)
    for wrong in ({"n_ctx": -1}, {"initial": 0}, {"growth": "triple"}, {"budget": "much"}, {"storage": "disk"}):
        with pytest.raises(InvalidRequest):
            ElasticCache(tiny_config("llama"), **wrong)  # type: ignore[arg-type]


def test_crop() -> None:
    model = tiny_model("gemma2")
    cache = ElasticCache(model.config)
    _logits(model, _ids(4), cache)
    cache.crop(-1)
    assert cache.get_seq_length() == 3
    with pytest.raises(InvalidRequest, match="negative"):
        cache.crop(2)
    _logits(model, _ids(60), cache)
    with pytest.raises(InvalidRequest, match="activate_past_recording"):
        cache.crop(-30)
    recurrent = ElasticCache(tiny_config("bamba"))
    _logits(tiny_model("bamba"), _ids(4), recurrent)
    with pytest.raises(InvalidRequest, match="recurrent state"):
        recurrent.crop(-1)
