"""Facts of a model, from its graph alone: what ``inspect`` reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from regraft.ir.cost import is_buffer
from regraft.ir.graph import Graph
from regraft.ir.hardware import Device, device
from regraft.ir.kinds import Kind, block_kinds, ranges
from regraft.ir.types import ITEM_BITS
from regraft.views.cache import CONVENTIONS, CacheFacts, Memories, MemoryFacts
from regraft.views.describe import FOR_EACH_TOKEN, describe, jobs
from regraft.views.limits import DeviceFacts, Limits, largest_context, limits
from regraft.views.parts import Call, Parts, Work

SCHEMA = "regraft.inspect/1"
RUNS = 6  # of layers that a line spells out

# Vendors count what a token uses without the table that it only looks up in; all others with it.
_WITHOUT_EMBEDDING = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "gpt_oss", "zaya")


@dataclass(frozen=True)
class ParameterFacts:
    """Counts of parameters; tied tensors once. ``buffers`` are what no gradient moves, and no part of the others.

    Attributes:
        total: All of them.
        active: Those that a token uses: all but the experts that it does not choose.
        active_without_embedding: The same without tables that are only looked up, and those that serve as head too.
        embedding: The table of tokens.
        per_layer_embedding: Tables that give every layer an input of its own.
        head: The head's matrix; 0 where the table of tokens serves as such.
        buffers: Numbers that no gradient moves.
        effective: What the vendor calls active or effective, by the convention of ``effective_is``.
        effective_is: That convention, in words.
        by_part: The parameters of each part, by the keys of `regraft.views.parts.PARTS`.
        active_by_part: Those that a token uses.
    """

    total: int
    active: int
    active_without_embedding: int
    embedding: int
    per_layer_embedding: int
    head: int
    buffers: int
    effective: int
    effective_is: str
    by_part: dict[str, int]
    active_by_part: dict[str, int]


@dataclass(frozen=True)
class CallFacts:
    """One call of ``batch`` sequences: a decode step, the new token included in the context, or a prompt.

    ``attention_flops`` are the products of queries with keys and of weights with values alone. ``bytes_read`` are the
    parameters that the call needs and the rows of memories that each layer reads. Of a prompt only the last token's
    logits are computed.
    """

    flops: int
    attention_flops: int
    bytes_read: int
    by_part: dict[str, Work]

    @property
    def expansion_flops(self) -> int:
        """Operations that make keys and values of kept latents, anew in each call, as the graph stands."""
        return self.by_part.get("attention_rows", Work()).flops


@dataclass(frozen=True)
class KindFacts:
    """A block kind.

    Attributes:
        name: Its name.
        layers: The layers that it serves.
        words: What it is made of, in one line.
        mixer: How it mixes tokens, in words.
        mlp: What it does with each token, in words.
        unlike: Where an earlier kind is the same in words, what differs: that kind's name, ops that this one lacks, and
            ops that it has beside those; empty otherwise.
        parameters: Parameters of one layer.
        active: Those of them that a token uses.
        by_part: Parameters of one layer by part.
        cache: Bytes of the memories that one layer owns, of all sequences, by context.
        decode: The work of one layer in a decode step, by context.
    """

    name: str
    layers: tuple[int, ...]
    words: str
    mixer: str
    mlp: str
    unlike: str
    parameters: int
    active: int
    by_part: dict[str, int]
    cache: dict[int, int]
    decode: dict[int, Work]


@dataclass(frozen=True)
class Facts:
    """What can be said of a model without its weights. `to_json` gives the schema ``regraft.inspect/1``.

    ``cache``, ``decode`` and ``prefill`` are by context, in tokens. ``decode_form`` says how a step attends to kept
    latents, where it is in another form than the graph's own: ``absorbed``; empty otherwise.
    """

    name: str
    family: str
    dtype: str
    trained_context: int | None
    vocabulary: int | None
    layers: int
    kinds: tuple[KindFacts, ...]
    memories: tuple[MemoryFacts, ...]
    parameters: ParameterFacts
    cache_dtype: str
    batch: int
    fixed_bytes: int
    bytes_per_token: float
    cache: dict[int, CacheFacts]
    decode: dict[int, CallFacts]
    decode_form: str
    prefill: dict[int, CallFacts]
    device: DeviceFacts | None

    @property
    def contexts(self) -> tuple[int, ...]:
        """The contexts that were asked for."""
        return tuple(self.cache)

    @property
    def pattern(self) -> tuple[str, ...]:
        """The name of each layer's block kind, in order; empty for a layer that is of none."""
        names = {layer: kind.name for kind in self.kinds for layer in kind.layers}
        return tuple(names.get(layer, "") for layer in range(self.layers))

    def held(self, context: int) -> int:
        """Return the bytes that all sequences hold at a context that was asked for, with those held at any length."""
        return self.cache[context].bytes + self.fixed_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the facts as the JSON of ``regraft.inspect/1``; contexts are keys, as strings."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "family": self.family,
            "dtype": self.dtype,
            "trained_context": self.trained_context,
            "vocabulary": self.vocabulary,
            "layers": self.layers,
            "block_kinds": len(self.kinds),
            "kinds": [_kind_json(kind) for kind in self.kinds],
            "memories": [_memory_json(memory) for memory in self.memories],
            "parameters": asdict(self.parameters),
            "cache": {
                "dtype": self.cache_dtype,
                "batch": self.batch,
                "fixed_bytes": self.fixed_bytes,
                "bytes_per_token": self.bytes_per_token,
                "conventions": dict(CONVENTIONS),
                "at": _by_context({n: asdict(each) for n, each in self.cache.items()}),
            },
            "decode": {
                "form": self.decode_form,
                "at": _by_context({n: _call_json(each) for n, each in self.decode.items()}),
            },
            "prefill": {"at": _by_context({n: _call_json(each) for n, each in self.prefill.items()})},
            "device": None if self.device is None else _device_json(self.device),
        }


def _by_context(found: Mapping[int, Any]) -> dict[str, Any]:
    return {str(context): each for context, each in found.items()}


def _work_json(work: Work) -> dict[str, int]:
    return {"flops": work.flops, "bytes_read": work.bytes_read}


def _call_json(call: CallFacts) -> dict[str, Any]:
    parts = {part: _work_json(work) for part, work in call.by_part.items()}
    return {**vars(call), "by_part": parts}


def _kind_json(kind: KindFacts) -> dict[str, Any]:
    return {
        "name": kind.name,
        "layers": list(kind.layers),
        "structure": kind.words,
        "unlike": kind.unlike,
        "mixer": kind.mixer,
        "mlp": kind.mlp,
        "parameters": kind.parameters,
        "active": kind.active,
        "by_part": kind.by_part,
        "cache": {"at": _by_context(kind.cache)},
        "decode": {"at": _by_context({n: _work_json(work) for n, work in kind.decode.items()})},
    }


def _memory_json(memory: MemoryFacts) -> dict[str, Any]:
    return {
        **vars(memory),
        "bytes_per_token": float(memory.bytes_per_token),
        "owners": list(memory.owners),
        "readers": [{"owner": owner, "layers": list(layers)} for owner, layers in memory.readers],
    }


def _device_json(found: DeviceFacts) -> dict[str, Any]:
    return {
        "name": found.device.key,
        "full_name": found.device.name,
        "memory_bytes": found.device.memory_bytes,
        "weight_bytes": found.weight_bytes,
        "devices_for_weights": found.devices_for_weights,
        "largest_context": found.largest_context,
        "at": _by_context({n: asdict(each) for n, each in found.at.items()}),
    }


def facts(
    graph: Graph,
    contexts: Sequence[int] = (4096, 131072),
    on: Device | str | None = None,
    batch: int = 1,
    step: Graph | None = None,
) -> Facts:
    """Return the facts of ``graph``.

    Args:
        graph: A verified graph.
        contexts: Tokens that a sequence holds, the current one included; each positive.
        on: A device, a key of ``hardware.json`` or the path of a file that describes one, for limits.
        batch: Sequences.
        step: The graph as a program computes it for one token, with attention to kept latents absorbed, where that is
            another one.

    Raises:
        UnknownDeviceError: There is no such device.
        DeviceKeyError: The file describes none.
    """
    target = device(on) if isinstance(on, str) else on
    kinds = block_kinds(graph)
    parts, memories = Parts(graph, kinds), Memories(graph, batch)
    stepping = parts if step is None else Parts(step, block_kinds(step))
    steps = {n: stepping.call(batch, 1, n) for n in contexts}
    prompts = {n: parts.call(batch, n, n, last_token_only=True) for n in contexts}
    meta = graph.meta
    return Facts(
        name=graph.name,
        family=str(meta.get("family", "")),
        dtype=str(meta.get("dtype", "")),
        trained_context=_integer(meta.get("context")),
        vocabulary=_integer(meta.get("vocab")),
        layers=graph.layer_count(),
        kinds=tuple(_kind_facts(kind, kinds[:i], parts, steps, batch) for i, kind in enumerate(kinds)),
        memories=memories.facts(),
        parameters=_parameter_facts(parts),
        cache_dtype=memories.dtype or str(meta.get("dtype", "")),
        batch=batch,
        fixed_bytes=memories.fixed_bytes,
        bytes_per_token=float(memories.bytes_per_token),
        cache={n: memories.at(n) for n in contexts},
        decode={n: _call_facts(call) for n, call in steps.items()},
        decode_form="" if step is None else "absorbed",
        prefill={n: _call_facts(prompt) for n, prompt in prompts.items()},
        device=None if target is None else _device_facts(target, parts, memories, steps, prompts),
    )


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _call_facts(call: Call) -> CallFacts:
    total, core = call.total, call.parts.get("attention_core", Work())
    return CallFacts(total.flops, core.flops, total.bytes_read, call.parts)


def _kind_facts(kind: Kind, earlier: Sequence[Kind], parts: Parts, steps: Mapping[int, Call], batch: int) -> KindFacts:
    by_part, idle = parts.layer_parameters(kind)
    total = sum(by_part.values())
    found = jobs(kind.layers[0].ops)
    states = [op for op in kind.layers[0].ops if op.is_state]
    return KindFacts(
        name=kind.name,
        layers=kind.numbers,
        words=describe(kind),
        mixer="; ".join(", ".join(words) for job, words in found if job not in FOR_EACH_TOKEN),
        mlp="; ".join(", ".join(words) for job, words in found if job in FOR_EACH_TOKEN),
        unlike=_unlike(kind, earlier),
        parameters=total,
        active=total - idle,
        by_part=by_part,
        cache={n: sum(op.cost({"B": batch, "T": 1, "S": n}).cache for op in states) for n in steps},
        decode={n: sum(step.kinds[kind.name].values(), Work()) for n, step in steps.items()},
    )


def _unlike(kind: Kind, earlier: Sequence[Kind]) -> str:
    words = describe(kind)
    other = next((each for each in earlier if describe(each) == words), None)
    if other is None:
        return ""
    mine, others = (
        {layer.local(op.results[0].name): None for op in layer.ops if not op.weight_time}
        for layer in (kind.layers[0], other.layers[0])
    )
    lacks, adds = [name for name in others if name not in mine], [name for name in mine if name not in others]
    told = [f"without {', '.join(lacks)}"] if lacks else []
    told += [f"with {', '.join(adds)}"] if adds else []
    return f"as {other.name}, {' and '.join(told) or 'in other shapes'}"


def _parameter_facts(parts: Parts) -> ParameterFacts:
    by_part, active_by_part = parts.parameters()
    total, active = sum(by_part.values()), sum(active_by_part.values())
    sizes = [table.tensor.elements({}) for table in parts.tables]
    embedding, per_layer = sum(sizes[:1]), sum(sizes[1:])
    if per_layer:
        effective, words = total - per_layer, "all but the per-layer embedding"
    elif parts.graph.meta.get("family") in _WITHOUT_EMBEDDING:
        effective, words = active - embedding, "what a token uses, without the embedding"
    else:
        effective, words = active, "what a token uses, with the embedding"
    return ParameterFacts(
        total=total,
        active=active,
        active_without_embedding=active - embedding - per_layer,
        embedding=embedding,
        per_layer_embedding=per_layer,
        head=by_part.get("head", 0),
        buffers=sum(v.tensor.elements({}) for v in parts.graph.parameters() if is_buffer(v)),
        effective=effective,
        effective_is=words,
        by_part=by_part,
        active_by_part=active_by_part,
    )


def _device_facts(
    on: Device, parts: Parts, memories: Memories, steps: Mapping[int, Call], prompts: Mapping[int, Call]
) -> DeviceFacts:
    weights = sum(v.tensor.elements({}) * ITEM_BITS[v.tensor.dtype] // 8 for v in parts.graph.parameters())
    room, fixed, batch = on.memory_bytes - weights, memories.fixed_bytes, memories.batch

    def held(context: int) -> int:
        return memories.held(context) + fixed

    at: dict[int, Limits] = {}
    for n, step in steps.items():
        at[n] = limits(on, batch, step.total, prompts[n].total, room, held(n) // batch)
    return DeviceFacts(
        device=on,
        weight_bytes=weights,
        devices_for_weights=-(-weights // on.memory_bytes),
        largest_context=largest_context(room, held),
        at=at,
    )


def layers_text(numbers: Sequence[int], *, counted: bool = True) -> str:
    """Return layer numbers as text, ``0..3, 5``; of many runs the first two, the last and how many there are.

    Args:
        numbers: Layers.
        counted: Say how many there are, where some are left out.
    """
    parts = ranges(sorted(numbers)).split(", ")
    if len(parts) <= RUNS:
        return ", ".join(parts)
    return f"{parts[0]}, {parts[1]}, ..., {parts[-1]}{f' ({len(numbers)})' if counted else ''}"
