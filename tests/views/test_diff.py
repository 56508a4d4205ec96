"""Structural differences: a rewritten graph against its base, and models that have little in common."""

from __future__ import annotations

import json
from functools import cache

import pytest

from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.graph import Graph
from regraft.ir.memory import infer_windows
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.weight import Cast
from regraft.views.compare import diff
from regraft.views.diff import Change, Diff
from regraft.views.facts import facts
from regraft.views.side_by_side import side_by_side
from regraft.views.table import markdown, plain


@cache
def bundled(name: str) -> Graph:
    return lift(open_model(f"builtin:{name}"), strict=False).graph


def shared(graph: Graph, reader: int, donor: int) -> Graph:
    """Return a graph in which one layer reads another's memory, as share-kv leaves it."""
    copy = graph.copy()
    (attend,) = copy.in_layer(reader, Attend)
    copy.set_operand(attend, "memory", copy[f"layers.{donor}.attn.memory"])
    copy.drop_dead()
    copy.verify()
    return copy


def report(found: Diff) -> str:
    return plain(side_by_side([found.before, found.after], found))


def test_a_graph_and_itself(tiny: Graph) -> None:
    found = diff(tiny, tiny.copy())
    assert found.identical
    assert [kind.status for kind in found.kinds] == ["same"] * 3
    assert "nothing: the same operations, shapes, memories and readers" in report(found)
    assert "~" not in report(found)


def test_a_shared_memory(tiny: Graph) -> None:
    found = diff(tiny, shared(tiny, 2, 1))
    assert not found.identical
    assert found.by_layer
    (changed,) = (kind for kind in found.kinds if kind.status != "same")
    assert (changed.before, changed.after) == ("sliding", "sliding_reader")
    assert changed.layers_before == changed.layers_after == (2,)
    removed = [op.name for op in changed.ops if op.status == "removed"]
    assert removed == ["attn.k_proj", "attn.k", "attn.v_proj", "attn.v", "attn.memory"]
    (attend,) = (op for op in changed.ops if op.status == "changed")
    assert attend.name == "attn.ctx"
    assert attend.changes == (Change("memory", "attn.memory", "another layer's memory"),)
    assert changed.parameters == (9224, 8200)
    (memory,) = found.memories
    assert (memory.status, memory.layers, memory.after) == ("removed", (2,), None)
    (rewired,) = found.rewired
    assert (rewired.layers, rewired.before, rewired.after) == ((2,), None, 1)
    text = report(found)
    assert "~ sliding → sliding_reader: layer 2\n" in text
    assert "      - attn: k_proj, k, v_proj, v, memory\n" in text
    assert "      + reads another layer's memory\n" in text
    assert "~ layer 2 reads layer 1's attn.memory, not its own" in text


def test_another_donor_is_the_same_kind_and_yet_differs(tiny: Graph) -> None:
    one, other = shared(shared(tiny, 1, 0), 2, 0), shared(tiny, 1, 0)
    (attend,) = other.in_layer(2, Attend)
    other.set_operand(attend, "memory", other["layers.0.attn.memory"])
    other.drop_dead()
    assert diff(one, other).identical
    twice = shared(tiny, 3, 0)
    (attend,) = twice.in_layer(3, Attend)
    found = diff(twice, shared(tiny, 2, 1))
    assert [(each.layers, each.before, each.after) for each in found.rewired] == [((2,), None, 1)]


def test_a_window(tiny: Graph) -> None:
    narrow = tiny.copy()
    (attend,) = narrow.in_layer(2, Attend)
    narrow.set_attribute(attend, "window", 8)
    infer_windows(narrow)
    found = diff(tiny, narrow)
    (changed,) = (kind for kind in found.kinds if kind.status != "same")
    assert {op.name: op.changes for op in changed.ops} == {
        "attn.memory": (Change("keeps", "bf16; k [2, 8], v [2, 8]; window 16", "bf16; k [2, 8], v [2, 8]; window 8"),),
        "attn.ctx": (Change("window", "16", "8"),),
    }
    (memory,) = found.memories
    assert memory.before == "keys and values, 2 heads of 8, of the last 16 tokens, bf16"
    assert memory.after == "keys and values, 2 heads of 8, of the last 8 tokens, bf16"
    assert found.rewired == ()
    assert "      - window 16\n      + window 8\n" in report(found)


def test_models_of_one_family_are_aligned_kind_by_kind() -> None:
    found = diff(bundled("gemma-4-E2B"), bundled("gemma-4-E4B"))
    assert not found.by_layer
    assert [(kind.before, kind.after) for kind in found.kinds] == [
        (name, name) for name in ("sliding", "full", "sliding_reader", "full_reader")
    ]
    assert Change("layers", "35", "42") in found.model
    text = report(found)
    assert "- (sliding×4 full)×3 (sliding_reader×4 full_reader)×4" in text
    assert "+ (sliding×5 full)×4 (sliding_reader×5 full_reader)×3" in text
    assert "      ~ mlp.gate, mlp.up: weight bf16[6144, 1536] → bf16[10240, 2560]" in text


def test_kinds_without_a_counterpart_are_added_or_removed() -> None:
    found = diff(bundled("Llama-3.2-1B"), bundled("laguna-XS.2"))
    counterparts = {(kind.before, kind.after): kind.status for kind in found.kinds}
    assert counterparts == {("full", "full"): "changed", (None, "sliding_moe"): "added", (None, "full_moe"): "added"}
    back = diff(bundled("laguna-XS.2"), bundled("Llama-3.2-1B"))
    assert {kind.status for kind in back.kinds} == {"changed", "removed"}
    assert "+ sliding_moe: layers 1..3" in report(found)


@pytest.mark.parametrize("name", ["DeepSeek-V4-Pro", "ZAYA1-8B", "Qwen3-Next-80B-A3B", "OpenELM-270M"])
def test_every_make_is_the_same_as_itself(name: str) -> None:
    assert diff(bundled(name), bundled(name)).identical


def test_the_json_has_all_of_it(tiny: Graph) -> None:
    found = json.loads(json.dumps(diff(tiny, shared(tiny, 2, 1)).to_json()))
    assert found["identical"] is False
    changed = next(kind for kind in found["kinds"] if kind["status"] == "changed")
    assert {op["status"] for op in changed["ops"]} == {"removed", "changed"}
    assert found["memories"][0]["status"] == "removed"
    assert found["rewired"] == [{"name": "layers.*.attn.memory", "layers": [2], "before": None, "after": 1}]


def test_three_models_have_a_table_and_no_difference() -> None:
    models = [facts(bundled(name), (64,)) for name in ("Qwen3-0.6B", "Llama-3.2-1B", "OpenELM-270M")]
    text = plain(side_by_side(models))
    assert text.startswith("3 models side by side\n")
    assert "What differs in structure" not in text
    assert "change" not in text
    row = next(line for line in text.splitlines() if "vocabulary" in line)
    assert row.split() == ["~", "vocabulary", "151,936", "128,256", "32,000"]
    narrow = plain(side_by_side(models), width=40)
    assert max(map(len, narrow.splitlines())) <= 64  # a name and one column, where no more fit
    tables = [part for part in markdown(side_by_side(models)).split("\n\n") if part.startswith("|")]
    assert {line.count("|") for part in tables for line in part.splitlines()} == {5}


def test_a_weight_that_is_made_otherwise(tiny: Graph) -> None:
    other = tiny.copy()
    (attend,) = other.in_layer(1, Attend)
    flat = next(iter(attend.results[0].users))
    out = next(iter(flat.results[0].users))
    weight = out.slots["weight"][0]
    with_cast = Cast({"x": (weight,)}, {"dtype": "bf16"})
    (cast,) = other.add(with_cast, ["layers.1.attn.cast"], before=out)
    other.set_operand(out, "weight", cast)
    other.verify()
    found = diff(tiny, other)
    (changed,) = (kind for kind in found.kinds if kind.status != "same")
    assert changed.layers_after == (1,)
    assert "~ attn.out: weight made by weight.cast\n" in report(found)
