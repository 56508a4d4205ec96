from __future__ import annotations

import pytest

from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.graph import Graph
from regraft.views.drawing.scene import Scene, Section
from regraft.views.drawing.staging import scene
from regraft.views.pattern import fold, letter, spelled


def _bundled(name: str) -> Scene:
    return scene(lift(open_model(f"builtin:{name}")).graph)


def _kind(found: Scene, key: str) -> Section:
    return next(kind for kind in found.kinds if kind.key == key)


def test_the_small_model_folds_to_three_kinds(tiny: Graph) -> None:
    found = scene(tiny)
    assert "".join(found.letters) == "ABBC"
    assert [section.name for section in found.sections] == [
        "before the layers",
        *("full", "sliding", "full_reader"),
        "after the layers",
    ]
    assert [[memory.form for memory in kind.memories] for kind in found.kinds] == [["kv"], ["window"], []]
    (link,) = found.links
    assert (link.owner, link.readers, link.memory.form) == (0, (3,), "kv")


def test_every_operand_has_its_source_in_the_section(tiny: Graph) -> None:
    for found in (scene(tiny), _bundled("gemma-4-E2B"), _bundled("DeepSeek-V4-Flash"), _bundled("ZAYA1-8B")):
        for section in found.sections:
            ids = [node.id for node in section.nodes]
            ports = [port.id for port in (*section.inputs, *section.outputs)]
            assert len({*ids, *ports}) == len(ids) + len(ports)
            assert {o.source for node in section.nodes for o in node.operands} <= {*ids, *ports}
            assert {port.source for port in section.outputs} <= set(ids)


def test_the_stream_runs_from_input_to_output(tiny: Graph) -> None:
    kind = _kind(scene(tiny), "A")
    assert [node.id for node in kind.nodes if node.stream] == ["attn.residual", "out"]
    assert [(port.name, port.role) for port in kind.inputs] == [("embed", "stream"), ("pos", "positions")]
    assert [(port.id, port.role, port.source) for port in kind.outputs] == [
        ("out:attn.memory", "memory", "attn.memory"),
        ("out:out", "stream", "out"),
    ]


def test_streams_with_scales_and_several_streams_are_found() -> None:
    zaya, deepseek = _kind(_bundled("ZAYA1-8B"), "B"), _kind(_bundled("DeepSeek-V4-Pro"), "C")
    assert [node.opname for node in zaya.nodes if node.stream] == ["core.bias", "core.gain", "core.add"] * 2
    assert [node.opname for node in deepseek.nodes if node.stream] == ["hyper.write"] * 2


_DENSE, _SPARSE = "attention + MLP", "attention + mixture of experts"
_DELTA, _PER_LAYER = "gated delta rule", "attention + MLP + per-layer embedding"

GOLDEN = {  # the layers' pattern; of each kind what stands beside the stream, and the memories that a layer owns
    "DeepSeek-V2-Lite": ("A B×26", [(_DENSE, "latent"), (_SPARSE, "latent")]),
    "DeepSeek-V3": ("A×3 B×58", [(_DENSE, "latent"), (_SPARSE, "latent")]),
    "DeepSeek-V3.2": ("A×3 B×58", [(_DENSE, "latent index"), (_SPARSE, "latent index")]),
    "DeepSeek-V4-Flash": (
        "A×2 B (C D)×20",
        [(_SPARSE, f"{kept}window") for kept in ("", "compressed index ", "compressed ", "compressed index ")],
    ),
    "DeepSeek-V4-Pro": (
        "A×2 B (C D)×29",
        [(_SPARSE, f"compressed {kept}window") for kept in ("", "index ", "", "index ")],
    ),
    "Llama-3.1-8B": ("A×32", [(_DENSE, "kv")]),
    "Llama-3.2-1B": ("A×16", [(_DENSE, "kv")]),
    "Mistral-7B-v0.3": ("A×32", [(_DENSE, "kv")]),
    "OpenELM-270M": ("A B C D E F G H I J K L M N O P", 16 * [(_DENSE, "kv")]),
    "OpenELM-3B": ("A B C D E F G H … AD AE AF AG AH AI AJ", 36 * [(_DENSE, "kv")]),
    "Qwen3-0.6B": ("A×28", [(_DENSE, "kv")]),
    "Qwen3-8B": ("A×36", [(_DENSE, "kv")]),
    "Qwen3-30B-A3B": ("A×48", [(_SPARSE, "kv")]),
    "Qwen3-Next-80B-A3B": ("(A×3 B)×12", [(f"{_DELTA} + mixture of experts", "tail recurrent"), (_SPARSE, "kv")]),
    "Qwen3.6-27B": ("(A×3 B)×16", [(f"{_DELTA} + MLP", "tail recurrent"), (_DENSE, "kv")]),
    "Qwen3.6-35B-A3B": ("(A×3 B)×10", [(f"{_DELTA} + mixture of experts", "tail recurrent"), (_SPARSE, "kv")]),
    "ZAYA1-8B": ("A B×39", 2 * [(_SPARSE, "tail tail tail kv")]),
    "gemma-4-26B-A4B": ("(A×5 B)×5", [(_SPARSE, "window"), (_SPARSE, "kv")]),
    "gemma-4-31B": ("(A×5 B)×10", [(_DENSE, "window"), (_DENSE, "kv")]),
    "gemma-4-E2B": ("(A×4 B)×3 (C×4 D)×4", [(_PER_LAYER, kept) for kept in ("window", "kv", "", "")]),
    "gemma-4-E4B": ("(A×5 B)×4 (C×5 D)×3", [(_PER_LAYER, kept) for kept in ("window", "kv", "", "")]),
    "gpt-oss-20b": ("(A B)×12", [(_SPARSE, "window"), (_SPARSE, "kv")]),
    "laguna-XS.2": ("A (B×3 C)×9 B×3", [(_DENSE, "kv"), (_SPARSE, "window"), (_SPARSE, "kv")]),
}


@pytest.mark.parametrize("model", GOLDEN)
def test_patterns_branches_and_memories_of_bundled_models(model: str) -> None:
    found = _bundled(model)
    kinds = [
        (" + ".join(branch.title for branch in kind.branches), " ".join(memory.form for memory in kind.memories))
        for kind in found.kinds
    ]
    assert (spelled(fold(found.letters)), kinds) == GOLDEN[model]


def test_readers_of_shared_memories() -> None:
    links = {link.owner: link.readers for link in _bundled("gemma-4-E2B").links}
    assert links == {13: tuple(n for n in range(15, 35) if n % 5 != 4), 14: (19, 24, 29, 34)}


def test_what_some_layers_of_a_kind_give_away_is_a_port_with_their_names() -> None:
    found = _bundled("gemma-4-E2B")
    given = {kind.key: {port.name: port.origins for port in kind.outputs} for kind in found.kinds}
    assert given["A"]["attn.memory"] == ("layers.13.attn.memory",)
    assert given["B"]["attn.memory"] == ("layers.14.attn.memory",)
    assert list(given["C"]) == ["out"]


def test_equal_operations_outside_of_layers_stand_as_one() -> None:
    before = _bundled("gemma-4-E2B").sections[0]
    slices = [node for node in before.nodes if node.times > 1]
    assert [(node.id, node.times) for node in slices] == [("ple.of_*", 35)]
    assert [port.name for port in before.outputs] == ["embed", "ple.of_*"]


def test_keys_go_on_after_the_alphabet() -> None:
    assert [letter(i) for i in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]
