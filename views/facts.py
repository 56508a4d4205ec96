"""Facts of a model, from its graph alone: what ``inspect`` reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regraft.ir.cost import cost, parameters
from regraft.ir.graph import Graph, layer_of, relative
from regraft.ir.hardware import Device, device
from regraft.ir.kinds import block_kinds, ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Embed
from regraft.views.describe import describe

SCHEMA = "regraft.inspect/1"
RUNS = 6  # of layers that a line spells out


@dataclass(frozen=True)
class ParameterFacts:
    """Counts of parameters; tied tensors once. ``buffers`` are what no gradient moves."""

    total: int
    active: int
    active_without_embedding: int
    embedding: int
    per_layer_embedding: int
    buffers: int


@dataclass(frozen=True)
class CacheFacts:
    """Bytes of the memories of ``batch`` sequences of one length, and what the same model would hold otherwise.

    ``bytes_without_windows``: if every memory kept all rows. ``bytes_without_sharing``: if every layer that reads a
    memory kept its own.
    """

    bytes: int
    bytes_without_windows: int
    bytes_without_sharing: int


@dataclass(frozen=True)
class DecodeFacts:
    """One decode step of ``batch`` sequences at one context, the new token included.

    ``attention_flops`` are the products of queries with keys and of weights with values alone. ``bytes_read`` are the
    parameters that a step needs and the rows that each layer reads.
    """

    flops: int
    attention_flops: int
    bytes_read: int


@dataclass(frozen=True)
class KindFacts:
    """A block kind: its name, its layers and what it is made of, in words."""

    name: str
    layers: tuple[int, ...]
    words: str


@dataclass(frozen=True)
class MemoryFacts:
    """Memories that are alike: what a row holds, which layers own one, and which layers read that of another.

    ``window`` is how many rows are kept at most, None for all; ``fixed`` how many are held whatever the length,
    ``rate`` how many tokens make a row where that is more than one.
    """

    row: str
    row_bytes: int
    window: int | None
    fixed: int | None
    rate: int | None
    owners: tuple[int, ...]
    readers: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Facts:
    """What can be said of a model without its weights. `to_json` gives the schema ``regraft.inspect/1``."""

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
    cache: dict[int, CacheFacts]
    decode: dict[int, DecodeFacts]
    device: Device | None

    def limit(self, context: int) -> float:
        """Return how many tokens a second the device's bandwidth allows, for the whole batch.

        Raises:
            ValueError: The facts were taken without a device.
        """
        if self.device is None:
            raise ValueError("no device")
        return self.batch * self.device.bandwidth_bytes_per_s / self.decode[context].bytes_read

    def to_json(self) -> dict[str, Any]:
        """Return the facts as the JSON of ``regraft.inspect/1``; contexts are keys, as strings."""
        limits = {} if self.device is None else {str(n): {"tokens_per_s_limit": self.limit(n)} for n in self.decode}
        return {
            "schema": SCHEMA,
            "family": self.family,
            "layers": self.layers,
            "block_kinds": len(self.kinds),
            "parameters": dict(vars(self.parameters)),
            "cache": {
                "dtype": self.cache_dtype,
                "batch": self.batch,
                "fixed_bytes": self.fixed_bytes,
                "at": {str(n): dict(vars(each)) for n, each in self.cache.items()},
            },
            "decode": {"at": {str(n): dict(vars(each)) for n, each in self.decode.items()}},
            "device": None if self.device is None else {"name": self.device.key, "at": limits},
        }


def facts(
    graph: Graph, contexts: Sequence[int] = (4096, 131072), device_key: str | None = None, batch: int = 1
) -> Facts:
    """Return the facts of ``graph``.

    Args:
        graph: A verified graph.
        contexts: Tokens that a sequence holds, the current one included; each positive.
        device_key: A key of ``hardware.json``, for limits.
        batch: Sequences.

    Raises:
        UnknownDeviceError: There is no such device.
    """
    on = None if device_key is None else device(device_key)
    memories = graph.memories()
    steps = {n: cost(graph, batch, 1, n) for n in contexts}
    fixed = sum(m.op.cost({"B": batch, "T": 0, "S": 0}).cache for m in memories if m.op is not None)
    meta = graph.meta
    return Facts(
        name=graph.name,
        family=str(meta.get("family", "")),
        dtype=str(meta.get("dtype", "")),
        trained_context=_integer(meta.get("context")),
        vocabulary=_integer(meta.get("vocab")),
        layers=graph.layer_count(),
        kinds=tuple(KindFacts(kind.name, kind.numbers, describe(kind)) for kind in block_kinds(graph)),
        memories=tuple(_memory_facts(memories)),
        parameters=_parameter_facts(graph),
        cache_dtype=memories[0].memory.dtype if memories else str(meta.get("dtype", "")),
        batch=batch,
        fixed_bytes=fixed,
        cache={n: _cache_facts(memories, step.total.cache - fixed, n, batch) for n, step in steps.items()},
        decode={
            n: DecodeFacts(
                flops=step.total.flops,
                attention_flops=step.by_family["attn"].flops if "attn" in step.by_family else 0,
                bytes_read=step.total.bytes_read,
            )
            for n, step in steps.items()
        },
        device=on,
    )


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _parameter_facts(graph: Graph) -> ParameterFacts:
    counted = parameters(graph)
    tables = {op.table: None for op in graph.ops if isinstance(op, Embed)}  # the first makes the residual stream
    sizes = [table.tensor.elements({}) for table in tables]
    return ParameterFacts(
        total=counted.total,
        active=counted.active,
        active_without_embedding=counted.active_without_embedding,
        embedding=sum(sizes[:1]),
        per_layer_embedding=sum(sizes[1:]),
        buffers=counted.buffers,
    )


def _cache_facts(memories: Sequence[Value], held: int, context: int, batch: int) -> CacheFacts:
    uncapped = own = 0
    for memory in memories:
        kept = memory.memory
        rows = kept.rows(context)
        uncapped += 0 if kept.window is None else (context - rows) * kept.row_bytes * batch
        for reader in _other_readers(memory):
            window = reader.attributes.get("window")
            own += kept.with_window(window if isinstance(window, int) else None).rows(context) * kept.row_bytes * batch
    return CacheFacts(held, held + uncapped, held + own)


def _other_readers(memory: Value) -> list[Op]:
    """Return one reading op for each layer that reads the memory of another layer."""
    home = layer_of(memory.name)
    readers = {layer_of(op.results[0].name): op for op in memory.users if op.reads_memory}
    readers.pop(home, None)
    return list(readers.values())


def _memory_facts(memories: Sequence[Value]) -> list[MemoryFacts]:
    groups: dict[tuple[str, object], list[Value]] = {}
    for memory in memories:
        groups.setdefault((relative(memory.name), memory.type), []).append(memory)
    found: list[MemoryFacts] = []
    for group in groups.values():
        kept = group[0].memory
        shared = {m: sorted(layer_of(op.results[0].name) or 0 for op in _other_readers(m)) for m in group}
        found.append(
            MemoryFacts(
                row=", ".join(f"{f.name} {' × '.join(map(str, f.shape))}" for f in kept.fields),
                row_bytes=kept.row_bytes,
                window=kept.window,
                fixed=kept.fixed,
                rate=kept.rate,
                owners=tuple(layer_of(m.name) or 0 for m in group),
                readers=tuple((layer_of(m.name) or 0, tuple(layers)) for m, layers in shared.items() if layers),
            )
        )
    return found


def layers_text(numbers: Sequence[int]) -> str:
    """Return layer numbers as text, ``0..3, 5``; of many runs the first two, the last and how many there are."""
    parts = ranges(sorted(numbers)).split(", ")
    if len(parts) <= RUNS:
        return ", ".join(parts)
    return f"{parts[0]}, {parts[1]}, ..., {parts[-1]} ({len(numbers)})"
