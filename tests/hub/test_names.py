"""What a model of the hub may be called, and which files of a repository its name picks."""

from __future__ import annotations

import pytest

from elastikv.errors import InvalidRequest
from elastikv.hub import HubModel
from elastikv.hub.files import beside_weights, is_safe, pick, quantisations

FILES = [
    "README.md",
    "imatrix.gguf",
    "mmproj-F16.gguf",
    "model-BF16.gguf",
    "model-F16.gguf",
    "model-IQ4_XS.gguf",
    "model-Q4_K_M.gguf",
    "model-Q8_0.gguf",
    "big/model-Q6_K-00001-of-00002.gguf",
    "big/model-Q6_K-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    "text", ["user/repo", "a1/Qwen3-0.6B_x", "user/repo:Q4_K_M", "user/repo:UD-Q4_K_XL", "u/r:a/b"]
)
def test_a_name_is_taken_apart_and_put_together(text):
    model = HubModel.parse(text)
    assert model.repo == text.partition(":")[0]
    assert str(model) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "repo",
        "/repo",
        "user/",
        "user/repo/x",
        "../repo",
        "./user/repo",
        "user/..",
        "user/.x",
        "user/a..b",
        "user/-x",
        "a--b/c",
        "user/re po",
        "user/repo\n",
        "user/repo:",
        "user/repo:../x",
        "user/repo:/etc",
        "user/repo:a:b",
    ],
)
def test_what_could_be_a_path_or_a_flag_is_no_name(text):
    with pytest.raises(InvalidRequest, match="user/repo:QUANT"):
        HubModel.parse(text)


def test_each_quantisation_has_a_name_and_all_its_parts():
    models = quantisations(FILES)
    assert list(models) == ["Q6_K", "BF16", "F16", "IQ4_XS", "Q4_K_M", "Q8_0"]
    assert models["Q6_K"] == ("big/model-Q6_K-00001-of-00002.gguf", "big/model-Q6_K-00002-of-00002.gguf")


@pytest.mark.parametrize(
    ("quant", "file"),
    [
        (None, "model-Q4_K_M.gguf"),
        ("q8_0", "model-Q8_0.gguf"),
        ("F16", "model-F16.gguf"),
        ("Q6_K", "big/model-Q6_K-00001-of-00002.gguf"),
        ("model-Q8_0", "model-Q8_0.gguf"),
    ],
)
def test_a_name_picks_its_file_in_any_case(quant, file):
    assert pick(quantisations(FILES), quant)[0] == file


@pytest.mark.parametrize("quant", ["Q4_XS", "Q3_K_M", "mmproj-F16", "Q8"])
def test_what_there_is_not_picks_nothing(quant):
    assert pick(quantisations(FILES), quant) is None


def test_without_a_name_the_preferred_come_before_the_first():
    assert pick(quantisations(["a-Q2_K.gguf", "a-Q8_0.gguf"]), None) == ("a-Q8_0.gguf",)
    assert pick(quantisations(["a-Q6_K.gguf", "a-Q2_K.gguf"]), None) == ("a-Q2_K.gguf",)
    assert pick({}, None) is None


def test_names_tell_apart_what_has_one_quantisation():
    models = quantisations(["x-Q8_0.gguf", "y-Q8_0.gguf", "z/y-Q8_0.gguf", "plain.gguf"])
    assert list(models) == ["plain", "Q8_0", "y-Q8_0", "z/y-Q8_0"]
    assert all(pick(models, HubModel.parse(f"user/repo:{label}").quant) == parts for label, parts in models.items())


def test_code_pickles_and_other_folders_are_not_needed():
    names = ["config.json", "modeling_x.py", "pytorch_model.bin", "tokenizer.model", "onnx/config.json", "vocab.txt"]
    assert beside_weights(names) == ["config.json", "tokenizer.model", "vocab.txt"]


@pytest.mark.parametrize(
    "name", ["../x.gguf", "a/../../x.gguf", "/etc/x.gguf", "a//x.gguf", "a\\..\\x.gguf", "C:x.gguf"]
)
def test_a_file_cannot_leave_the_repository(name):
    assert not is_safe(name)
    assert is_safe("a/x.gguf")
