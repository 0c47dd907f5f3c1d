from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from elastikv.errors import InvalidRequest
from elastikv.integrations.ray.arguments import plan


def test_arguments_are_the_flags_of_serve_as_text_or_as_values(tmp_path: Path) -> None:
    for given in (
        {"kv_budget": "8GiB", "ctx_size": "4096", "prefix_reuse": "false", "max_replicas": "3"},
        {"kv_budget": "8GiB", "ctx_size": 4096, "prefix_reuse": False, "max_replicas": 3, "model": None},
    ):
        planned = pickle.loads(pickle.dumps(plan(given)))
        assert planned.flags.kv_budget == "8GiB"
        assert planned.flags.ctx_size == 4096
        assert planned.flags.prefix_reuse is False
        assert (planned.flags.min_replicas, planned.flags.max_replicas) == (1, 3)
    assert plan({"stop": ["a", "b"]}).settings.sampling.stop == ("a", "b")


def test_paths_are_good_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").touch()
    planned = plan({"model": "./model.gguf", "kv_park": "park"})
    assert planned.flags.sources == [{"model": str(tmp_path / "model.gguf"), "hf_repo": None}]
    assert planned.flags.kv_park == tmp_path / "park"


def test_a_list_is_several_models(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.gguf").touch()
    paths = [str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")]
    assert [source["model"] for source in plan({"model": paths}).flags.sources] == paths
    with pytest.raises(InvalidRequest, match="2 models are called a"):
        plan({"model": paths[:1] * 2})


def test_a_replica_computes_on_the_processors_that_it_is_given() -> None:
    assert plan({"num_cpus": 4}).flags.threads == 4
    assert plan({"num_cpus": 0.5}).flags.threads == 1
    assert plan({"num_cpus": 4, "threads": 2}).flags.threads == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kv_bugdet": "8GiB"}, "kv_bugdet: there is no such argument"),
        ({"kv": "8GiB"}, "kv: there is no such argument"),
        ({"port": 80}, "port: it is Ray Serve that listens"),
        ({"ctx_size": "many"}, "ctx_size: invalid int value: 'many'"),
        ({"kv_storage": "tape"}, "kv_storage: invalid choice"),
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas: it must be in 1..max_replicas"),
        ({"target_used": 0}, "target_used: it must be above 0"),
        ({"fronts": 0}, "fronts: it must be at least 1"),
        ({"parallel": 0}, "n_parallel"),
        ({"kv_park": "/dev/null/park"}, "--kv-park"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(given: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        plan(given)
