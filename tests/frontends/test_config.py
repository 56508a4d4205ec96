"""What configs may say: keys nobody knows, and values that cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.frontends.config import INERT
from regraft.frontends.family import family_names, load_family
from regraft.frontends.folder import ModelFolder, open_model
from regraft.frontends.lift import Lifted, lift
from regraft.ir.errors import RegraftError
from regraft.ir.errors.config import UnknownKeyError

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def folder(tmp_path: Path, config: dict[str, Any]) -> ModelFolder:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return open_model(path)


def refused(tmp_path: Path, config: dict[str, Any], strict: bool = True) -> RegraftError:
    with pytest.raises(RegraftError) as caught:
        lift(folder(tmp_path, config), strict=strict)
    return caught.value


def small(model_type: str = "llama", /, **rest: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": 2, **rest}
    return {"model_type": model_type, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, **sizes}


def test_an_unknown_key_is_refused_and_the_way_on_named(tmp_path: Path) -> None:
    error = refused(tmp_path, small(mlp_biases=True))
    assert error.code == "RG202"
    assert error.exit_code == 3
    assert str(error) == (
        "error[RG202]: llama does not know the key mlp_biases = true; did you mean mlp_bias?\n"
        f"  --> {tmp_path / 'config.json'}:7   mlp_biases\n"
        "  = help: if it does not change what the model computes, pass --allow-key mlp_biases"
    )


def test_an_unknown_key_is_a_warning_where_nothing_is_built(tmp_path: Path) -> None:
    lifted = lift(folder(tmp_path, small(altup=3)), strict=False)
    assert len(lifted.warnings) == 1
    assert "altup = 3" in lifted.warnings[0]
    assert "--allow-key altup" in lifted.warnings[0]


def test_an_unknown_key_can_be_allowed(tmp_path: Path) -> None:
    assert not lift(folder(tmp_path, small(altup=3)), allow_keys=["altup"]).warnings


@pytest.mark.parametrize("key", ["altup", "per_layer_config", "text_config"])
def test_null_says_nothing(tmp_path: Path, key: str) -> None:
    assert not lift(folder(tmp_path, small(**{key: None}))).warnings


def test_inert_keys_pass(tmp_path: Path) -> None:
    inert = dict.fromkeys(INERT - {"model_type", "architectures"}, 1)
    assert not lift(folder(tmp_path, small(pretraining_tp=2, **inert))).warnings


def test_a_key_that_another_family_reads_is_unknown(tmp_path: Path) -> None:
    assert refused(tmp_path, small("llama", sliding_window=512)).fields["key"] == "sliding_window"
    assert refused(tmp_path, small("mistral", attention_bias=True)).fields["key"] == "attention_bias"
    assert refused(tmp_path, small("qwen3", num_experts=4)).fields["key"] == "num_experts"


def test_rope_keys_are_known_by_type(tmp_path: Path) -> None:
    error = refused(tmp_path, small(rope_scaling={"rope_type": "linear", "factor": 2.0, "beta_fast": 32}))
    assert isinstance(error, UnknownKeyError)
    assert error.fields["key"] == "rope_scaling.beta_fast"
    table = {"rope_type": "linear", "factor": 2.0, "beta": 32}
    assert refused(tmp_path, small(rope_scaling=table)).fields["key"] == "rope_scaling.beta"
    lift(folder(tmp_path, small(rope_scaling=table)), allow_keys=["rope_scaling.beta"])
    assert lift(folder(tmp_path, small(rope_scaling=table)), strict=False).warnings


BAD: dict[str, tuple[dict[str, Any], str, int, list[str]]] = {
    # what: keys, code, exit code, words of the message
    "an unknown architecture": ({"model_type": "gpt9"}, "RG201", 3, ["gpt9", "llama, mistral", "adding-a-family.md"]),
    "no architecture at all": ({"model_type": None}, "RG201", 3, ["model_type null"]),
    "a model_type that is no string": ({"model_type": 7}, "RG203", 2, ["model_type is 7, expected a string"]),
    "a model_type that is a list": ({"model_type": ["llama"]}, "RG203", 2, ["expected a string"]),
    "an architecture that is no list": (
        {"architectures": "LlamaForCausalLM"},
        "RG203",
        2,
        ["architectures is 'LlamaForCausalLM', expected a list"],
    ),
    "another head": (
        {"architectures": ["LlamaForSequenceClassification"]},
        "RG205",
        3,
        ["LlamaForSequenceClassification", "supported: LlamaForCausalLM"],
    ),
    "a string for an integer": ({"hidden_size": "64"}, "RG203", 2, ["hidden_size is '64', expected an integer", ":3"]),
    "a float for an integer": ({"hidden_size": 64.0}, "RG203", 2, ["hidden_size is 64.0"]),
    "a boolean for an integer": ({"num_hidden_layers": True}, "RG203", 2, ["num_hidden_layers is true"]),
    "null for an integer": ({"hidden_size": None}, "RG203", 2, ["hidden_size is null"]),
    "an integer for a boolean": ({"attention_bias": 1}, "RG203", 2, ["attention_bias is 1", "true or false"]),
    "a boolean for a number": ({"rms_norm_eps": True}, "RG203", 2, ["rms_norm_eps is true"]),
    "an object for a number": ({"rope_theta": {"a": 1}}, "RG203", 2, ["rope_theta"]),
    "a list for an object": ({"rope_scaling": [1]}, "RG203", 2, ["rope_scaling is [1], expected an object"]),
    "a word for a token": ({"eos_token_id": "</s>"}, "RG203", 2, ["eos_token_id", "a token id"]),
    "a null activation": ({"hidden_act": None}, "RG203", 2, ["hidden_act is null"]),
    "an end beyond the vocabulary": (
        {"vocab_size": 100, "eos_token_id": [2, 100]},
        "RG206",
        2,
        ["eos_token_id names token 100 of 100", "0 to 99"],
    ),
    "nothing wide": ({"hidden_size": 0}, "RG204", 2, ["hidden_size is 0, expected 1 to 1,048,576"]),
    "a negative size": ({"intermediate_size": -8}, "RG204", 2, ["intermediate_size is -8"]),
    "an absurd depth": ({"num_hidden_layers": 10**9}, "RG204", 2, ["1000000000", "1 to 1,024"]),
    "an absurd vocabulary": ({"vocab_size": 1 << 60}, "RG204", 2, ["vocab_size", "16,777,216"]),
    "no eps": ({"rms_norm_eps": 0.0}, "RG204", 2, ["rms_norm_eps is 0.0"]),
    "a base below one": ({"rope_theta": 0.5}, "RG204", 2, ["rope_theta is 0.5"]),
    "an unknown activation": ({"hidden_act": "xielu"}, "RG205", 3, ["hidden_act = 'xielu'", "supported: silu, swish"]),
    "an unknown dtype": ({"torch_dtype": "int8"}, "RG205", 3, ["torch_dtype = 'int8'", "bfloat16"]),
    "a quantised model": ({"quantization_config": {"bits": 4}}, "RG205", 3, ["quantization_config", "supported: null"]),
    "an encoder beside": ({"is_encoder_decoder": True}, "RG205", 3, ["is_encoder_decoder = true", "supported: false"]),
    "two dtypes": ({"dtype": "float16", "torch_dtype": "float32"}, "RG206", 2, ["dtype is 'float16' and torch_dtype"]),
    "heads that cannot be dealt": ({"num_key_value_heads": 3}, "RG206", 2, ["4 query heads", "3 key/value heads"]),
    "a width that heads do not divide": ({"hidden_size": 66}, "RG206", 2, ["hidden_size 66 is no multiple of 4 heads"]),
    "heads of odd width": ({"hidden_size": 60}, "RG206", 2, ["heads are 15 wide"]),
    "heads of an odd width of their own": ({"head_dim": 17}, "RG206", 2, ["heads are 17 wide", "head_dim"]),
    "an unknown rope": (
        {"rope_scaling": {"type": "dynamic"}},
        "RG205",
        3,
        ["dynamic", "default, linear, llama3, yarn"],
    ),
    "a rope without its factor": ({"rope_scaling": {"type": "linear"}}, "RG207", 2, ["rope_scaling.factor is missing"]),
    "a rope with half its factors": (
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
        "RG207",
        2,
        ["rope_parameters.high_freq_factor is missing"],
    ),
    "a rope's factor of the wrong type": (
        {"rope_scaling": {"type": "linear", "factor": "2"}},
        "RG203",
        2,
        ["factor is '2'", "rope_scaling.factor"],
    ),
    "factors that do not leave a range": (
        {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
        "RG206",
        2,
        ["high_freq_factor 1.0 does not exceed"],
    ),
    "a part that rotates": (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "RG205",
        3,
        ["partial_rotary_factor = 0.5", "supported: 1.0"],
    ),
    "two ropes": (
        {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}},
        "RG206",
        2,
        ["rope_parameters", "rope_scaling", "two names of one key"],
    ),
    "too few layer types": (
        {"model_type": "qwen3", "layer_types": ["full_attention"]},
        "RG206",
        2,
        ["layer_types has 1 entries for 2 layers"],
    ),
    "an unknown layer type": (
        {"model_type": "qwen3", "layer_types": ["full_attention", "chunked_attention"]},
        "RG205",
        3,
        ["layer_types", "supported: a list of full_attention, sliding_attention"],
    ),
    "sliding layers without a window": (
        {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
        "RG206",
        2,
        ["there is no window", "use_sliding_window"],
    ),
    "more experts chosen than there are": (
        {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 8},
        "RG206",
        2,
        ["8 experts a token of 4"],
    ),
    "layers without experts that are no numbers": (
        {"model_type": "qwen3_moe", "mlp_only_layers": [0, "1"]},
        "RG203",
        2,
        ["mlp_only_layers", "a list of integers"],
    ),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("strict", [True, False])
def test_bad_values(tmp_path: Path, what: str, strict: bool) -> None:
    keys, code, exit_code, said = BAD[what]
    error = refused(tmp_path, {**small(), **keys}, strict)
    assert error.code == code, error
    assert error.exit_code == exit_code
    for part in (*said, "config.json"):
        assert part in str(error)


def test_a_bundled_config_is_named_in_messages() -> None:
    model = open_model("builtin:Qwen3-0.6B")
    with pytest.raises(RegraftError) as caught:
        lift(replace(model, config={**model.config, "hidden_size": "wide"}))
    assert caught.value.where == "builtin:Qwen3-0.6B   hidden_size"


def same(first: Lifted, second: Lifted) -> bool:
    from regraft.ir.text import print_graph

    return print_graph(first.graph) == print_graph(second.graph)


def test_old_and_new_spellings_say_the_same(tmp_path: Path) -> None:
    new = {"rope_parameters": {**LLAMA3, "rope_theta": 500000, "original_max_position_embeddings": 64}}
    kept = {key: value for key, value in LLAMA3.items() if key != "rope_type"}
    old = {
        "rope_theta": 500000.0,
        "rope_scaling": {"type": "llama3", **kept, "original_max_position_embeddings": 64},
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = lift(replace(folder(tmp_path / "a", small(dtype="float16", **new)), name="same"))
    second = lift(replace(folder(tmp_path / "b", small(torch_dtype="float16", **old)), name="same"))
    assert same(first, second)
    assert "low = 1.0" not in str(first.graph.meta)
    third = replace(folder(tmp_path / "b", {**small("qwen3_moe"), "num_local_experts": 16}), name="same")
    fourth = replace(folder(tmp_path / "b", {**small("qwen3_moe"), "num_experts": 16}), name="same")
    assert same(lift(third), lift(fourth))


def test_the_family_is_found_by_its_class_too(tmp_path: Path) -> None:
    config = {**small(), "architectures": ["Qwen3ForCausalLM"]}
    del config["model_type"]
    assert lift(folder(tmp_path, config)).family == "qwen3"


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-2, 5), max_size=3),
    st.dictionaries(st.sampled_from(["factor", "rope_type", "rope_theta", "low_freq_factor"]), st.floats(), max_size=3),
)
KEYS = sorted({name for family in family_names() for key in load_family(family).keys().values() for name in key.names})


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(family_names()), st.dictionaries(st.sampled_from(KEYS), JUNK, min_size=1, max_size=3))
def test_junk_is_refused_or_lifted_and_never_a_crash(family: str, junk: dict[str, Any]) -> None:
    try:
        lift(ModelFolder("config", "junk", {**small(family), **junk}, "config.json"), strict=False)
    except RegraftError as error:
        assert error.code.startswith("RG2")
