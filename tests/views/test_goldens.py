"""Facts against the specs' golden files: every figure that ``inspect`` shows, to the last byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.kinds import block_kinds
from regraft.views.facts import Facts, facts
from regraft.views.parts import Parts, Work

DATA = Path(__file__).resolve().parents[1] / "data"
CONTEXTS = {"4K": 4096, "32K": 32768, "128K": 131072, "1M": 1 << 20}
LONG = (4096, 32768, 131072, 262144, 1_000_000, 1 << 20)


def golden(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}_golden.json").read_text(encoding="utf-8"))


@cache
def found(model: str) -> Facts:
    return facts(lift(open_model(f"builtin:{model}"), strict=False).graph, LONG)


GEMMA = golden("gemma4")
RELATIVES = {**golden("relatives")["models"], "laguna-XS.2": golden("laguna")}
MLA: dict[str, Any] = golden("mla")["models"]
V4 = golden("deepseek_v4")
V4_MODELS = {"Flash": "DeepSeek-V4-Flash", "Pro": "DeepSeek-V4-Pro"}
ZAYA = golden("zaya")


@pytest.mark.parametrize("model", GEMMA["variants"])
def test_gemma4(model: str) -> None:
    wanted, held = GEMMA["variants"][model], found(model)
    params, parts = wanted["params"], held.parameters.by_part
    components = params["components"]
    assert held.parameters.total == params["text_total"]
    assert held.parameters.total - held.parameters.per_layer_embedding == params["text_total_minus_ple_table"]
    assert held.parameters.active == (params["active_per_token"] or params["text_total"])
    whole = held.parameters.total - held.parameters.embedding - held.parameters.per_layer_embedding
    assert whole == params["text_total_minus_all_embeddings"]
    assert held.parameters.buffers == components["layer_scalar_buffers"]
    assert parts["embedding"] == components["embed_tokens"]
    assert parts["attention"] == components["attention"]
    assert parts["mlp"] == components["dense_mlp"]
    assert parts["norms"] == components["layer_norms"] + components["final_norm"]
    assert parts.get("experts", 0) == components.get("moe_experts", 0)
    assert parts.get("router", 0) == components.get("moe_router", 0)
    assert parts.get("per_layer_embedding", 0) == components.get("ple_table", 0)
    within = components.get("ple_in_block", 0) + components.get("ple_model_projection", 0)
    assert parts.get("per_layer_input", 0) == within
    for context, modes in wanted["kv_cache_bytes_bf16_batch1"].items():
        at = held.cache[int(context)]
        assert at.bytes == modes["windowed_with_sharing"]
        assert at.bytes_without_windows == modes["full_with_sharing"]
        assert at.bytes_without_sharing == modes["windowed_no_sharing"]
        assert at.bytes_without_either == modes["full_no_sharing"]
        assert at.bytes_without_either - at.bytes_without_windows == modes["full_saving"]
        assert at.bytes_without_sharing - at.bytes == modes["windowed_saving"]
    assert held.fixed_bytes == 0


@pytest.mark.parametrize("model", GEMMA["variants"])
def test_gemma4_layers(model: str) -> None:
    wanted, held = GEMMA["variants"][model]["layers"], found(model)
    assert held.layers == wanted["num_hidden_layers"]
    source = {layer: layer for memory in held.memories for layer in memory.owners}
    source |= {layer: owner for memory in held.memories for owner, layers in memory.readers for layer in layers}
    assert [source[layer] for layer in range(held.layers)] == wanted["kv_source_layer"]
    assert sum(len(memory.owners) for memory in held.memories) == wanted["num_own_kv_layers"]
    rows = {layer: memory.row_bytes for memory in held.memories for layer in memory.owners}
    per_layer = wanted["kv_bytes_per_token_per_layer_bf16"]
    assert rows == {layer: per_layer[layer] for layer in rows}
    full = [layer for kind in held.kinds if kind.name.startswith("full") for layer in kind.layers]
    assert sorted(full) == wanted["full_attention_layers"]
    windows = {memory.window for memory in held.memories}
    assert windows == {None, GEMMA["variants"][model]["sliding_window"]}


@pytest.mark.parametrize("model", GEMMA["article_check"])
def test_as_the_article_counts(model: str) -> None:
    wanted = GEMMA["article_check"][model]
    at = found(model).cache[wanted["context"]]
    assert at.bytes_as_article_without_sharing == wanted["gqa_total_bytes"]
    assert at.bytes_as_article == wanted["gqa_plus_sharing_bytes"]
    assert at.bytes_as_article_without_sharing - at.bytes_as_article == wanted["saving_bytes"]
    assert at.bytes_without_either - at.bytes_without_windows == wanted["saving_bytes_real_head_dims"]


@pytest.mark.parametrize("model", RELATIVES)
def test_relatives_and_laguna(model: str) -> None:
    wanted, held = RELATIVES[model], found(model)
    params, mine = wanted["params"], held.parameters
    assert mine.total == params["params_total"]
    assert mine.active == params["params_active_per_token"]
    assert mine.active_without_embedding == params["params_active_excluding_embedding"]
    assert mine.embedding == params["params_embedding"]
    assert mine.head == params["params_lm_head"]
    names = {"dense_mlp": "mlp", "routed_experts": "experts", "lm_head": "head"}
    groups: dict[str, int] = params.get("by_group", {})
    for group, number in groups.items():
        assert mine.by_part.get(names.get(group, group), 0) == number, group
    for label, sizes in wanted["kv_cache_bytes_bf16"].items():
        if label in CONTEXTS:
            scale = {"bf16": 1, "f32": 2}[held.cache_dtype]  # OpenELM is published in float32
            assert held.cache[CONTEXTS[label]].bytes == sizes["window_capped"] * scale
            assert held.cache[CONTEXTS[label]].bytes_without_windows == sizes["uncapped"] * scale
    states = [size for label, size in wanted["kv_cache_bytes_bf16"].items() if label.startswith("linear_")]
    assert held.fixed_bytes == sum(states)


def decoded(wanted: dict[str, Any]) -> Iterator[tuple[int, dict[str, int]]]:
    flops = wanted["attention_flops_per_decoded_token"]
    for label, numbers in flops.get("per_layer_budget_48_full_64_sliding", flops).items():
        if label in CONTEXTS:
            yield CONTEXTS[label], numbers


@pytest.mark.parametrize("model", RELATIVES)
def test_operations_of_attention(model: str) -> None:
    held = found(model)
    for context, numbers in decoded(RELATIVES[model]):
        step = held.decode[context]
        assert step.attention_flops == numbers["core"]
        assert step.by_part["attention"].flops == numbers["projections"]
        both = step.by_part["attention"] + step.by_part["attention_core"]
        assert both.flops == numbers["total"]


def test_laguna_layers() -> None:
    wanted, held = golden("laguna"), found("laguna-XS.2")
    layers = {kind.name: kind for kind in held.kinds}
    params = wanted["params"]
    assert layers["full"].parameters == params["params_layer_dense_full_0"]
    assert layers["sliding_moe"].parameters == params["params_layer_sparse_sliding_1"]
    assert layers["full_moe"].parameters == params["params_layer_sparse_full_4"]
    assert layers["full_moe"].by_part["attention"] == params["params_attention_full_layer"]
    assert layers["sliding_moe"].by_part["attention"] == params["params_attention_sliding_layer"]
    full = [n for n, name in enumerate(held.pattern) if name.startswith("full")]
    assert full == wanted["layer_types_full_indices"]
    assert {memory.row_bytes for memory in held.memories} == {
        wanted["kv_cache_bytes_bf16"]["bytes_per_token_per_attention_layer"]
    }
    head_free = held.parameters.active_without_embedding - held.parameters.head
    assert head_free == params["params_active_excluding_embedding_and_head"]


@pytest.mark.parametrize("model", MLA)
def test_mla(model: str) -> None:
    wanted, held = MLA[model], found(model)
    params, mine = wanted["parameters"], held.parameters
    assert mine.total == params["total"]
    assert mine.embedding == params["embedding"]
    assert mine.head == params["lm_head"]
    assert mine.by_part["experts"] == params["routed_experts"]
    assert mine.active == params["active_including_embedding"]
    assert mine.active_without_embedding == params["active_excluding_embedding"] == mine.effective
    assert mine.by_part["attention"] + mine.by_part.get("index", 0) == params["attention_all_layers"]
    assert mine.by_part.get("index", 0) == params.get("indexer_all_layers", 0)
    assert mine.buffers == params.get("buffers_e_score_correction_bias", 0)
    cache = wanted.get("cache") or wanted["cache_with_bf16_indexer_keys"]
    assert held.bytes_per_token == cache["bytes_per_token_bf16"]
    for label, size in cache["kv_bytes_bf16"].items():
        assert held.cache[CONTEXTS[label]].bytes == size
        assert held.cache[CONTEXTS[label]].bytes_transformers == size
    rows = sum(memory.row_bytes for memory in held.memories) // 2
    assert rows == cache["values_per_token_per_layer"]


def test_what_a_uniform_head_formula_says_of_latents() -> None:
    for model, heads in (("DeepSeek-V3", "DeepSeek-V3 (128 heads, 192 key + 128 value)"), ("DeepSeek-V2-Lite",) * 2):
        words = heads if heads != model else "DeepSeek-V2-Lite (16 heads)"
        values = golden("mla")["mha_equivalent_values_per_token_per_layer"][words]
        held = found(model)
        assert held.cache[4096].bytes_uniform == values * 2 * held.layers * 4096


@pytest.mark.parametrize("variant", V4_MODELS)
def test_deepseek_v4_cache_beside_v32_as_both_are_served(variant: str) -> None:
    # the article's 10 % and 7 %: a million tokens, float8 mixed with what stays wider, scales included
    mine, other = (found(name).cache[1 << 20].bytes_served for name in (V4_MODELS[variant], "DeepSeek-V3.2"))
    assert mine is not None
    assert other is not None
    wanted = V4["kv_ratio_vs_V3.2_at_1048576"][variant]["fp8_mixed_with_scales"]["fraction"]
    assert mine / other == pytest.approx(wanted, abs=5e-6)
    assert found("Llama-3.1-8B").cache[4096].bytes_served is None


@pytest.mark.parametrize("variant", V4_MODELS)
def test_deepseek_v4_parameters(variant: str) -> None:
    params, held = V4["params"][variant], found(V4_MODELS[variant])
    mine, schedule = held.parameters, V4["schedule"][variant]
    assert mine.total == params["total_parameters_main_model"]
    assert mine.by_part["experts"] == params["routed_expert_parameters"]
    assert mine.embedding == params["embedding_parameters"]
    assert mine.head == params["lm_head_parameters"]
    assert mine.effective == params["active_per_token_excluding_embedding_row_table"]
    assert mine.active == params["active_per_token_including_embedding_table"]
    types = {"sliding": "sliding_moe", "csa": "every_4_", "hca": "every_128_"}
    for kind in held.kinds:
        name = next(name for name, part in types.items() if part in kind.name or kind.name == part)
        attention = kind.by_part["attention"] + kind.by_part.get("index", 0)
        assert attention == params["per_layer"][name]["attention_parameters"]
        assert kind.by_part["residual"] == params["per_layer"]["mhc_parameters_both_sites"]
        assert kind.by_part["norms"] == params["per_layer"]["two_block_norms"]
        moe = sum(kind.by_part[part] for part in ("experts", "shared_expert", "router"))
        assert moe == params["per_layer"]["moe_parameters_without_router_bias"]
    assert held.layers == schedule["layers"]
    collapse = mine.by_part["residual"] - held.layers * params["per_layer"]["mhc_parameters_both_sites"]
    assert collapse == params["head_collapse_parameters"]


@pytest.mark.parametrize("variant", V4_MODELS)
def test_deepseek_v4_cache(variant: str) -> None:
    held, wanted = found(V4_MODELS[variant]), V4["kv_cache_bytes"][variant]
    for context, sizes in wanted["bf16"].items():
        assert held.cache[int(context)].bytes == sizes["total"]
        by_name: dict[str, int] = {}
        for memory in held.memories:
            rows = min(int(context), memory.window or int(context)) // (memory.rate or 1)
            by_rate = {None: "window", 4: "csa_compressed", 128: "hca_compressed"}
            part = "indexer" if "index" in memory.name else by_rate[memory.rate]
            by_name[part] = by_name.get(part, 0) + rows * memory.row_bytes * len(memory.owners)
        assert by_name == {part: sizes[part] for part in by_name}
    worst = wanted["tail_and_overlap_state_fp32"]["1048576"]
    assert held.fixed_bytes == worst["worst_case_csa"] + worst["worst_case_hca"]
    theirs = V4["kv_cache_bytes"]["V3.2"]["bf16"]["1048576"]
    assert found("DeepSeek-V3.2").cache[1 << 20].bytes == theirs
    ratio = V4["kv_ratio_vs_V3.2_at_1048576"][variant]["bf16"]
    assert round(held.cache[1 << 20].bytes / theirs, 5) == ratio["fraction"]
    assert round(theirs / held.cache[1 << 20].bytes, 3) == ratio["times_smaller"]


@pytest.mark.parametrize("variant", V4_MODELS)
@pytest.mark.parametrize("context", [1_000_000, 1 << 20])
def test_deepseek_v4_operations(variant: str, context: int) -> None:
    raw = V4["decode_flops"][f"T={context}"][variant]["raw"]
    step = found(V4_MODELS[variant]).decode[context]
    assert step.attention_flops == raw["core_attention"]
    scores = raw["indexer_scores"]
    linear = step.flops - step.attention_flops - scores
    assert linear == raw["linear"]
    assert step.flops == raw["total"]
    biases_and_norms = V4["schedule"][variant]["csa"] * (4 * 256 + 128)  # of the index: they multiply no matrix
    index = found(V4_MODELS[variant]).parameters.by_part["index"]
    assert step.by_part["index"].flops - scores == 2 * (index - biases_and_norms)


def test_zaya() -> None:
    held, params, cache = found("ZAYA1-8B"), ZAYA["parameters"], ZAYA["cache"]
    mine = held.parameters
    assert mine.total == params["total"]
    assert mine.buffers == params["buffers_balancing_biases"]
    assert mine.embedding == params["embedding"]
    assert mine.total - mine.embedding == params["non_embedding"]
    assert mine.by_part["experts"] == params["routed_experts"]
    assert mine.active == params["active_per_token_including_embedding"]
    assert mine.effective == params["active_per_token_excluding_embedding"]
    assert mine.by_part["attention"] == params["attention_all_layers"]
    assert {kind.by_part["attention"] for kind in held.kinds} == {params["attention_per_layer"]}
    assert mine.by_part["router"] == params["router_all_layers"]
    assert held.layers == ZAYA["geometry"]["layers"]
    assert held.bytes_per_token == cache["kv_bytes_per_token_bf16"]
    assert held.fixed_bytes == cache["fixed_state_bytes_bf16_native"]
    for label, size in cache["kv_bytes_bf16"].items():
        at = held.cache[CONTEXTS[label]]
        assert at.bytes == size
        assert at.bytes + held.fixed_bytes == at.bytes_transformers == cache["total_bytes_bf16_native"][label]
    flops = ZAYA["flops_per_token_per_layer"]
    step = held.decode[4096].by_part
    assert step["attention"].flops == held.layers * (flops["projections"] + flops["convolutions"])
    assert step["attention_core"].flops == held.layers * flops["attention_core_per_key"] * 4096


@pytest.mark.parametrize("model", ["gemma-4-E2B", "DeepSeek-V4-Flash", "Qwen3-Next-80B-A3B", "DeepSeek-V3.2"])
def test_the_parts_sum_to_the_cost_model(model: str) -> None:
    from regraft.ir.cost import cost, parameters

    graph = lift(open_model(f"builtin:{model}"), strict=False).graph
    parts = Parts(graph, block_kinds(graph))
    for tokens, context in ((1, 5000), (300, 300), (7, 4096)):
        total, whole = parts.call(3, tokens, context).total, cost(graph, 3, tokens, context).total
        assert total == Work(whole.flops, whole.weights, whole.cache_read)
    counted = parameters(graph)
    by_part, active = parts.parameters()
    assert sum(by_part.values()) == counted.total
    assert sum(active.values()) == counted.active
    assert "other" not in by_part
