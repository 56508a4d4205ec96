from __future__ import annotations

from typing import Any, cast

import pytest

from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.errors.usage import UnknownDeviceError
from regraft.ir.graph import Graph
from regraft.ir.hardware import Device
from regraft.passes.latent_forms import decoding_form
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.views.card import card
from regraft.views.facts import facts, layers_text
from regraft.views.table import markdown, plain

ROW = 2 * 2 * 8 * 2  # bytes: keys and values, 2 heads of 8, bf16
LAYER = 32 * 32 * 2 + 8 + 3 * 32 * 64  # parameters of a layer without its own memory
OWN = 2 * 16 * 32  # of its key and value projections
TABLE = 100 * 32


def shared(found: Any, wanted: Any) -> Any:
    """Return ``found`` with just the keys that ``wanted`` has: a schema may grow."""
    if not isinstance(wanted, dict):
        return found
    return {key: shared(found.get(key), each) for key, each in cast("dict[str, Any]", wanted).items()}


def test_the_json_has_the_documented_numbers(tiny: Graph) -> None:
    found = facts(tiny, contexts=(64,), on="h200-sxm", batch=2).to_json()
    total = 4 * LAYER + 3 * OWN + TABLE
    held = (64 + 16 + 16) * ROW * 2
    weights = (total + 1 * 32 * 2) * 2  # bf16; the table as the head, and a row for each new token
    read = weights + held + 64 * ROW * 2  # layer 3 reads layer 0's rows again
    wanted = {
        "schema": "regraft.inspect/1",
        "family": "qwen3",
        "layers": 4,
        "block_kinds": 3,
        "parameters": {
            "total": total,
            "active": total,
            "active_without_embedding": total - TABLE,
            "embedding": TABLE,
            "per_layer_embedding": 0,
            "buffers": 0,
        },
        "cache": {
            "dtype": "bf16",
            "batch": 2,
            "fixed_bytes": 0,
            "at": {
                "64": {
                    "bytes": held,
                    "bytes_without_windows": 3 * 64 * ROW * 2,
                    "bytes_without_sharing": held + 64 * ROW * 2,
                }
            },
        },
        "decode": {
            "at": {
                "64": {
                    "flops": 2 * 2 * (total - 4 * 8) + 2 * 2 * 4 * 16 * (64 + 16 + 16 + 64),
                    "attention_flops": 2 * 2 * 4 * 16 * (64 + 16 + 16 + 64),
                    "bytes_read": read,
                }
            }
        },
        "device": {"name": "h200-sxm", "at": {"64": {"tokens_per_s_limit": 2 * 4.8e12 / read}}},
    }
    assert shared(found, wanted) == wanted


def test_without_a_device_there_is_no_limit(tiny: Graph) -> None:
    assert facts(tiny, contexts=(64,)).to_json()["device"] is None


def test_an_unknown_device_is_refused_with_the_nearest(tiny: Graph) -> None:
    with pytest.raises(UnknownDeviceError, match="did you mean h200-sxm"):
        facts(tiny, on="h200")


def test_the_card_names_kinds_layers_and_shared_memories(tiny: Graph) -> None:
    text = plain(card(facts(tiny, contexts=(64, 4096), on="h200-sxm")))
    assert text.startswith(
        "tiny\n  qwen3, 4 layers of 3 kinds, 39.1 k parameters, bf16, vocabulary 100, trained for 512"
    )
    assert "first layer to last: A B×2 C\n" in text
    assert "  B  sliding ×2: layers 1..2\n" in text
    assert (
        "      4 query heads of 8 over 2 KV heads, window 16, q/k norm, rope base 10,000\n      MLP 64, silu\n" in text
    )
    assert "reads another layer's memory" in text
    assert "layer 0's is also read by layer 3" in text
    assert "keys and values, 2 heads of 8, of the last 16 tokens\n" in text
    assert "exact, with neither windows nor sharing" in text
    assert "the embedding is the head too" in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_markdown_tables_have_as_many_cells_in_every_row(tiny: Graph) -> None:
    text = markdown(card(facts(tiny, contexts=(64,))))
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 3
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "Qwen3-Next-80B-A3B",
            ["gated delta rule, 32 heads of 128 × 128", "convolution over 4 tokens", "512 experts of 512"],
        ),
        ("Qwen3-30B-A3B", ["q/k norm", "128 experts of 768, 8 a token, silu"]),
        ("Llama-3.1-8B", ["rope base 500,000 llama3", "MLP 14336, silu"]),
    ],
)
def test_kinds_are_described_by_what_is_in_them(name: str, words: list[str]) -> None:
    found = facts(lift(open_model(f"builtin:{name}"), strict=False).graph, (64,))
    text = "\n".join(kind.words for kind in found.kinds)
    assert [each for each in words if each not in text] == []
    assert "MLP 32, sigmoid" not in text


def test_many_runs_of_layers_are_counted() -> None:
    assert layers_text(range(4)) == "0..3"
    assert layers_text([0, 2, 4]) == "0, 2, 4"
    assert layers_text(range(0, 40, 2)) == "0, 2, ..., 38 (20)"


def test_limits_of_a_device_by_hand(tiny: Graph) -> None:
    own = Device("own", "Own", memory_bytes=200_000, bandwidth_bytes_per_s=1_000_000, bf16_dense_flops=10_000_000)
    found = facts(tiny, contexts=(64,), on=own, batch=2)
    step, prompt, held = found.decode[64], found.prefill[64], found.device
    assert held is not None
    weights = (4 * LAYER + 3 * OWN + TABLE) * 2
    one = (64 + 16 + 16) * ROW
    assert held.weight_bytes == weights
    assert held.devices_for_weights == 1
    limits = held.at[64]
    assert limits.tokens_per_s_limit == 2 * 1_000_000 / step.bytes_read
    assert limits.tokens_per_s_compute_limit == 2 / (step.flops / 10_000_000)
    assert limits.tokens_per_s == limits.tokens_per_s_limit
    assert limits.bottleneck == "reading weights"
    assert limits.time_to_first_token_s == prompt.flops / 10_000_000
    assert limits.first_token_bottleneck == "arithmetic"
    assert limits.largest_batch == (200_000 - weights) // one
    room = 200_000 - weights
    assert held.largest_context is not None
    grows = [2 * ROW * (n + 2 * min(n, 16)) for n in (held.largest_context, held.largest_context + 1)]
    assert grows[0] <= room < grows[1]


def test_weights_that_do_not_fit_and_speeds_that_nobody_states(tiny: Graph) -> None:
    small = Device("small", "Small", memory_bytes=10_000, bandwidth_bytes_per_s=1_000_000)
    found = facts(tiny, contexts=(64,), on=small)
    assert found.device is not None
    limits = found.device.at[64]
    assert (found.device.devices_for_weights, found.device.largest_context, limits.largest_batch) == (8, 0, 0)
    assert (limits.tokens_per_s_compute_limit, limits.time_to_first_token_s) == (None, None)
    text = plain(card(found))
    assert "which do not fit: at least 8 of these are needed" in text
    assert "no figure for arithmetic" in text


def test_a_prompts_logits_are_those_of_its_last_token(tiny: Graph) -> None:
    found = facts(tiny, contexts=(64,))
    assert found.prefill[64].by_part["head"].flops == found.decode[64].by_part["head"].flops == 2 * TABLE
    assert found.prefill[64].by_part["mlp"].flops == 64 * found.decode[64].by_part["mlp"].flops


def test_the_form_in_which_a_step_attends_to_latents() -> None:
    graph = lift(open_model("builtin:DeepSeek-V2-Lite"), strict=False).graph
    expanded, absorbed = (facts(graph, (131072,), "h200-sxm", step=step) for step in (None, decoding_form(graph)))
    step, other = expanded.decode[131072], absorbed.decode[131072]
    assert step.expansion_flops == 27 * 2 * 512 * 16 * (128 + 128) * 131072
    assert other.expansion_flops == 0
    assert other.attention_flops == 27 * 34_816 * 131072  # specs/mla.md, section 9
    assert absorbed.prefill == expanded.prefill
    for found in (expanded, absorbed):
        assert found.device is not None
        limit = found.device.at[131072].tokens_per_s_compute_limit
        assert limit == pytest.approx(989.4e12 / found.decode[131072].flops)
    assert (expanded.decode_form, absorbed.to_json()["decode"]["form"]) == ("", "absorbed")
    assert "make keys and values of kept latents anew" in plain(card(expanded))
    assert "a step attends to kept latents themselves, absorbed" in plain(card(absorbed))


def test_absorbed_attention_to_chosen_rows_reads_these_alone() -> None:
    # specs/mla.md, section 8: at 128K decode 2.15 + 0.57 GFLOP a layer, not 36.5; rows of 576 and index keys of 128
    graph = lift(open_model("builtin:DeepSeek-V3.2"), strict=False).graph
    parts = facts(graph, (131072,), step=decoding_form(graph)).decode[131072].by_part
    assert parts["attention_core"].flops == 61 * 278_528 * 2048
    assert parts["index"].flops == pytest.approx(61 * 16_384 * 131072, rel=0.02)  # and its projections
    assert parts["attention_rows"].cache_bytes == 61 * 2 * 576 * 2048
    assert parts["index"].cache_bytes == 61 * 2 * 128 * 131072


def test_kinds_that_are_the_same_in_words_say_what_differs() -> None:
    kinds = facts(lift(open_model("builtin:ZAYA1-8B"), strict=False).graph, (64,)).kinds
    assert kinds[0].unlike == ""
    assert kinds[1].unlike == "as full_moe, with moe.state_in, moe.carried"


def test_many_kinds_are_a_table_of_what_differs() -> None:
    text = plain(card(facts(lift(open_model("builtin:OpenELM-270M"), strict=False).graph, (64,))))
    assert "  A  full     0       12 query heads of 64 over 3 KV heads, MLP 768   " in text
    assert "all of them: all tokens, q/k norm, rope base 10,000, silu" in text


def test_the_card_counts_what_is_held_at_any_length() -> None:
    found = facts(lift(open_model("builtin:Qwen3-Next-80B-A3B"), strict=False).graph, (4096,))
    assert found.held(4096) == found.cache[4096].bytes + found.fixed_bytes
    text = plain(card(found))
    assert "  exact                                                     170 MiB\n" in text
    assert "73.7 MiB of the exact figures are held at any length\n" in text


def test_pooled_keys_and_values_are_called_so() -> None:
    options = "rate=4, window=16, layers=0, chosen=2, index=light, refit=false"
    graph = lift(open_model("builtin:Llama-3.2-1B"), strict=False).graph
    graph = run_pipeline(graph, parse_pipeline(f"compress-seq{{{options}}}")).graph
    held = {each["holds"] for each in facts(graph, contexts=(64,)).to_json()["memories"]}
    assert {"pooled keys and values, 8 heads of 64", "pooled index keys of 32"} < held
