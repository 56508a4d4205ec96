"""Single wrong choices of a number or an input: each moves a twin's logits, so comparing them can tell.

Wrong choices of structure are in test_wrong_structure.py, forgotten tensors in test_twins.py. What scales an index
(`seq.index`) is in none: it is positive, and an index only orders.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter, Rows
from regraft.ir.op import Op
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Activation, Clamp, Norm, Scale, Slice, Softcap
from regraft.ir.ops.hyper import Collapse, FromStreams, Read
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import RowPositions
from regraft.ir.ops.moe import Experts, Route
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.quantized import SliceEach
from regraft.ir.source import TensorSource
from tests.frontends.agreement import twin_graph
from tests.frontends.cases import CASES

TOKENS = torch.randint(0, 128, (1, 32), generator=torch.Generator().manual_seed(0))
Change = Callable[[Graph, Op], bool]


def other(kind: type[Op], part: str = "", /, **attributes: object) -> Change:
    """Return a change of the attributes of a kind's ops, of those with ``part`` in their result's name."""

    def change(graph: Graph, op: Op) -> bool:
        if not isinstance(op, kind) or part not in op.results[0].name:
            return False
        changed = {name: value for name, value in attributes.items() if op.attributes[name] not in (None, value)}
        for name, value in changed.items():
            graph.set_attribute(op, name, value)
        return bool(changed)

    return change


def without(kind: type[Op], *slots: str) -> Change:
    """Return a change that takes operands from a kind's ops."""

    def change(graph: Graph, op: Op) -> bool:
        if not isinstance(op, kind) or not op.slots[slots[0]]:
            return False
        for slot in slots:
            graph.set_operand(op, slot, ())
        return True

    return change


def dealt_in_turn(graph: Graph, op: Op) -> bool:
    """Deal query heads to key/value heads in turn, where each has its neighbours."""
    if not isinstance(op, Attend):
        return False
    heads = op.q.tensor.shape[2]
    graph.set_attribute(op, "head_map", [head % 2 for head in range(int(str(heads)))])
    return True


def keys_before_values(graph: Graph, op: Op) -> bool:
    """Read the latent's expansion as all keys and then all values, where they alternate by head."""
    if not isinstance(op, SliceEach):
        return False
    start, side = (0, 24 * 4) if op.start == 0 else (24 * 4, 20 * 4)
    for name, value in (("parts", 1), ("start", start), ("stop", start + side)):
        graph.set_attribute(op, name, value)
    return True


WIDER, NARROWER = other(Attend, window=9), other(Attend, window=7)
PLAIN = other(Rope, scaling="none")
NOT_NORMALIZED, NOT_SCALED = other(Route, normalize=False), other(Route, scale=1.0)
CENTRED = other(Norm, offset=1.0)
WRONG: dict[str, dict[str, Change]] = {
    "Qwen3-30B-A3B": {
        "another scale": other(Attend, scale=0.21),
        "another base": other(Rope, base=1e5),
        "another layout": other(Rope, layout="interleaved"),
        "norms centred on zero": CENTRED,
        "weights not normalised": NOT_NORMALIZED,
        "one expert fewer": other(Route, chosen=2),
        "other activations of experts": other(Experts, activation="gelu_tanh"),
        "heads dealt in turn": dealt_in_turn,
    },
    "Llama-3.2-1B": {
        "frequencies not scaled": PLAIN,
        "another factor": other(Rope, factor=8.0),
        "another original context": other(Rope, original=32),
        "another slow end": other(Rope, low=2.0),
        "another fast end": other(Rope, high=8.0),
        "another activation": other(Activation, kind="gelu"),
    },
    "llama, as many key/value heads as query heads, biases, linear rope": {"another factor": other(Rope, factor=2.0)},
    "llama, one key/value head, yarn": {
        "no amplitude": other(Rope, amplitude=1.0),
        "another factor": other(Rope, factor=8.0),
        "another original context": other(Rope, original=32),
        "another slow end": other(Rope, low=2.0),
        "another fast end": other(Rope, high=2.0),
    },
    "mistral, window by default": {"a wider window": WIDER, "a narrower window": NARROWER},
    "gpt-oss-20b": {
        "a wider window": WIDER,
        "a narrower window": NARROWER,
        "no sinks": without(Attend, "sink"),
        "another limit": other(Experts, limit=1.5),
        "no shift": other(Experts, shift=0.0),
        "another activation": other(Experts, activation="silu"),
        "rounded ramp": other(Rope, truncate=True),
        "no amplitude": other(Rope, amplitude=1.0),
    },
    "laguna-XS.2": {
        "a narrower window": NARROWER,
        "experts not scaled": NOT_SCALED,
        "experts not normalised": NOT_NORMALIZED,
        "a softmax over experts": other(Route, score="softmax"),
        "the bias left out": without(Route, "bias"),
        "gates by a sigmoid": other(Activation, kind="sigmoid"),
        "another base": other(Rope, base=2e4),
    },
    "laguna, gates by channel, capped routing": {"another cap": other(Softcap, cap=5.0)},
    "glm4": {"halves turn": other(Rope, layout="halves"), "fewer channels turn": other(Rope, channels=4)},
    "phi3": {"all channels turn": other(Rope, channels=16)},
    "phi3, longrope within its original context": {
        "frequencies not scaled": other(Rope, factors=[1.0] * 8),
        "no amplitude": other(Rope, amplitude=1.0),
    },
    "granite": {
        "another scale": other(Attend, scale=0.25),
        "branches not scaled": other(Scale, "scaled", factor=1.0),
        "the embedding not scaled": other(Scale, "embed", factor=1.0),
        "logits not scaled": other(Scale, "logits", factor=1.0),
    },
    "gemma2": {
        "scores not capped": other(Attend, softcap=1e6),
        "norms not centred on zero": other(Norm, offset=0.0),
        "logits not capped": other(Softcap, cap=1e6),
        "the embedding not scaled": other(Scale, "embed", factor=1.0),
    },
    "gemma3, the older keys": {"scaling left out": PLAIN},
    "gemma-4-31B": {
        "a wider window": WIDER,
        "a narrower window": NARROWER,
        "scores divided by the root of the width": other(Attend, scale=0.25),
        "another base": other(Rope, base=1e5),
        "more pairs turn": other(Rope, pairs=16),
        "norms centred on zero": CENTRED,
        "no softcap": other(Softcap, cap=1e6),
    },
    "gemma-4-E2B": {
        "the embedding not scaled": other(Scale, "embed", factor=1.0),
        "the layers' embeddings not scaled": other(Scale, "ple.of_token", factor=1.0),
    },
    "gemma-4-26B-A4B": {
        "one expert fewer": other(Route, chosen=2),
        "no gains of experts": without(Route, "gain"),
        "the router's input not scaled": other(Scale, "router_in", factor=1.0),
    },
    "deepseek v2, query latent, best groups": {"one group more": other(Route, kept=3)},
    "DeepSeek-V3.2": {
        "the scale of heads without the yarn factor": other(Attend, scale=40**-0.5),
        "the scale of the latent": other(Attend, scale=48**-0.5),
        "rotation in halves": other(Rope, ".attn.q", layout="halves"),
        "an index that turns in pairs": other(Rope, ".index.", layout="interleaved"),
        "another base": other(Rope, base=1e5),
        "no yarn": PLAIN,
        "one row more": other(Index, chosen=8),
        "all rows": without(Attend, "chosen"),
        "a group counts by its best": other(Route, best=1),
        "one group more": other(Route, kept=3),
        "scores of a softmax": other(Route, score="softmax"),
        "weights not normalised": NOT_NORMALIZED,
        "weights not scaled": NOT_SCALED,
        "no bias in the choice": without(Route, "bias"),
        "norms centred on zero": CENTRED,
        "keys before values": keys_before_values,
    },
    "deepseek v3, biases, another amplitude, weights as they are": {"no amplitude": other(Rope, amplitude=1.0)},
    "DeepSeek-V4-Flash": {
        "a wider window": WIDER,
        "a narrower window": NARROWER,
        "another scale": other(Attend, scale=0.2),
        "another base of pooled rows": other(Rope, base=2e4),
        "no yarn": PLAIN,
        "rotation in halves": other(Rope, layout="halves"),
        "a result that keeps its turn": other(Rope, inverse=False),
        "one pooled row more": other(Index, chosen=4),
        "experts without a cut": other(Experts, limit=None),
        "a shared expert without a cut": other(Clamp, low=None, high=None),
        "scores of a sigmoid": other(Route, score="sigmoid"),
        "weights not normalised": NOT_NORMALIZED,
        "weights not scaled": NOT_SCALED,
        "streams that are normalised once": other(Read, iterations=1),
        "gates without a floor": other(FromStreams, floor=0.01),
        "another floor at the end": other(Collapse, floor=0.1),
        "no sinks": without(Attend, "sink"),
        "no pooled rows": without(Attend, "entries", "chosen"),
        "all pooled rows": without(Attend, "chosen"),
        "experts by score where a table has them": without(Route, "given"),
        "no bias in the choice": without(Route, "bias"),
    },
    "Qwen3.6-35B-A3B": {
        "another scale": other(Attend, scale=0.21),
        "another base": other(Rope, base=1e4),
        "twice the channels turn": other(Rope, channels=16),
        "plain norms": other(Norm, ".attn.norm", offset=0.0),
        "a zero-centred norm of DeltaNet's output": other(Norm, ".ctx_norm", offset=1.0),
        "another gate of attention": other(Activation, ".open", kind="softplus"),
        "no activation after the convolution": other(Activation, ".mixed", kind="sigmoid"),
        "queries not scaled": other(Scale, ".attn.q", factor=1.0),
        "keys scaled as queries are": other(Scale, ".attn.k", factor=0.0625),
        "another write rate": other(Activation, ".beta", kind="tanh"),
        "the gate for the query": other(Slice, ".attn.q", start=32, stop=64),
        "another gate of the shared expert": other(Activation, ".shared_share", kind="tanh"),
        "shares not normalised": NOT_NORMALIZED,
    },
    "ZAYA1-8B": {
        "another scale": other(Attend, scale=0.3),
        "another base": other(Rope, base=1e4),
        "all channels turn": other(Rope, channels=16),
        "interleaved": other(Rope, layout="interleaved"),
        "another activation": other(Activation, kind="silu"),
        "the sum for the mean": other(Scale, factor=1.0),
        "eps": other(Norm, eps=0.5),
        "one share for all": other(Route, normalize=True),
        "skipped tokens pass": other(Experts, skip="identity"),
        "no bias in the choice": without(Route, "bias"),
    },
}


@cache
def right(case: str) -> tuple[Graph, TensorSource, Tensor]:
    """Return a twin's graph, its tensors and its logits."""
    graph, tensors = twin_graph(CASES[case])
    source = TensorSource(tensors)
    return graph, source, Interpreter(graph, source)(TOKENS)


def changed(case: str, change: Change) -> Graph:
    """Return a twin's graph after a wrong choice; its memories forget nothing, so that windows may be wider."""
    graph = right(case)[0].copy()
    for memory in graph.memories():
        if memory.op is not None and "window" in memory.op.attributes:
            graph.set_attribute(memory.op, "window", None)
    assert sum(change(graph, op) for op in graph.ops)
    graph.retype()
    return graph


@pytest.mark.parametrize(("case", "wrong"), [(case, wrong) for case, some in WRONG.items() for wrong in some])
def test_a_single_wrong_choice_shows_on_the_twin(case: str, wrong: str) -> None:
    _, source, expected = right(case)
    found = Interpreter(changed(case, WRONG[case][wrong]), source)(TOKENS)
    assert (found - expected).abs().max() > 1e-3


HIDDEN: dict[str, tuple[str, Change, str]] = {
    "weights of experts not normalised": ("gemma-4-26B-A4B", NOT_NORMALIZED, "layers.0.moe.routed"),
    "the layers' embeddings from context not scaled": (
        "gemma-4-E2B",
        other(Scale, "ple.context", factor=1.0),
        "ple.by_layer",
    ),
    "the layers' embeddings summed": (
        "gemma-4-E2B",
        other(Scale, "ple.all", factor=1.0),
        "layers.0.ple.projected",
    ),
}


@pytest.mark.parametrize("wrong", HIDDEN)
def test_a_factor_that_a_norm_takes_back_shows_before_the_norm(wrong: str) -> None:
    """Logits see such a factor through the norm's eps alone; what the norm is given has it in full."""
    case, change, edge = HIDDEN[wrong]
    graph, source, expected = right(case)
    edges = (edge, "logits")
    before, after = (Interpreter(each, source).run(TOKENS, edges=edges) for each in (graph, changed(case, change)))
    assert (after[edge] - before[edge]).abs().max() > 1e-3
    assert 0 < (after["logits"] - expected).abs().max() < 1e-3


def halves_for_pairs(tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def keys_first(tensor: Tensor) -> Tensor:
    return torch.cat((tensor[32:64], tensor[:32], tensor[64:]))


LAYOUT: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "gate and up projection swapped": ("Qwen3-30B-A3B", "gate_up_proj", lambda t: t.roll(32, 1)),
    "all gates and then all up projections": ("gpt-oss-20b", "gate_up_proj", halves_for_pairs),
    "keys before queries": ("Qwen3.6-35B-A3B", "in_proj_qkv.weight", keys_first),
    "a pool's own half for the one before": ("DeepSeek-V4-Flash", "compressor.kv_proj.weight", lambda t: t.roll(32, 0)),
    "what is read for what is written": ("DeepSeek-V4-Flash", "attn_hc.fn", lambda t: t.roll(4, 0)),
    "groups of results swapped": ("DeepSeek-V4-Flash", "o_a_proj.weight", lambda t: t.roll(12, 0)),
}


@pytest.mark.parametrize("wrong", LAYOUT)
def test_a_tensor_read_in_another_layout_shows_on_the_twin(wrong: str) -> None:
    case, ending, read = LAYOUT[wrong]
    graph, source, expected = right(case)
    tensors = {name: source.read(name) for name in source.names()}
    tensors |= {name: read(tensor) for name, tensor in tensors.items() if name.endswith(ending)}
    assert (Interpreter(graph, TensorSource(tensors))(TOKENS) - expected).abs().max() > 1e-3


def test_pooled_rows_that_stand_where_their_last_token_does_show(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, source, expected = right("DeepSeek-V4-Flash")

    def last(op: RowPositions, _: object, rows: Rows) -> Tensor:
        return rows.pos + (op.memory.memory.rate or 1) - 1

    monkeypatch.setattr(RowPositions, "reference", last)
    assert (Interpreter(graph, source)(TOKENS) - expected).abs().max() > 1e-3
