"""The text form of a graph (``.rg``): printing. Each block kind stands once, however many layers it serves.

    graph @tiny {family = "llama"} (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {
      block @full(%x: bf16[B, T, 64], %pos: i64[B, T]) {
        %attn.q = core.linear %x, %model.layers.*.self_attn.q_proj.weight : bf16[B, T, 64]
        ...
      }
      %embed = core.embed %tokens, %model.embed_tokens.weight : bf16[B, T, 64]
      layers 0 = @full(%embed, %pos)
      layers 1..7 = @full(%-1.out, %pos)
      return %logits
    }

Within a block, ``attn.q`` is ``layers.N.attn.q`` and ``*`` stands for the layer's number, in strings too, where a star
is spelled ``**``; ``%-1.out`` is the previous layer's ``out``. `regraft.ir.parse` reads the text back to the same
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from regraft.ir.attributes import spell
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import Kind, Layer, block_kinds, ranges, split_layers
from regraft.ir.op import Op, Value
from regraft.ir.types import Type

Naming = Callable[[Value], str]


def print_graph(graph: Graph) -> str:
    """Return the text of ``graph``; equal graphs give equal text."""
    kinds = block_kinds(graph)
    kind_of = {layer.number: kind for kind in kinds for layer in kind.layers}
    inputs = ", ".join(f"%{v.name}: {v.type}" for v in graph.inputs)
    lines = [f"graph @{graph.name}{_braced(graph.meta)} ({inputs}) {{"]
    for kind in kinds:
        lines += _block(kind)
    pending: list[Layer] = []
    for item in split_layers(graph):
        if isinstance(item, Layer):
            pending.append(item)
            continue
        lines += _calls(pending, kind_of)
        pending = []
        lines.append(f"  {print_op(item)}")
    lines += _calls(pending, kind_of)
    lines.append(f"  return {', '.join(f'%{v.name}' for v in graph.outputs)}".rstrip())
    return "\n".join([*lines, "}", ""])


def print_op(
    op: Op,
    name: Naming = lambda v: v.name,
    attribute: Callable[[object], object] = lambda value: value,
    type: Callable[[Type], Type] = lambda type: type,
) -> str:
    """Return one op as a line of text."""
    parts: list[str] = []
    for slot in op.spec.slots:
        prefix = f"{slot.name}=" if slot.optional else ""
        parts += [f"{prefix}%{name(v)}" for v in op.slots[slot.name]]
    stated = {
        key: attribute(value)
        for key, value in op.attributes.items()
        if key not in op.typed_attributes and value != op.spec.attributes[key].default
    }
    results = ", ".join(f"%{name(v)}" for v in op.results)
    operands = f" {', '.join(parts)}" if parts else ""
    types = ", ".join(str(type(v.type)) for v in op.results)
    return f"{results} = {op.opname}{operands}{_braced(stated)} : {types}"


def _braced(attributes: Mapping[str, object]) -> str:
    if not attributes:
        return ""
    return f" {{{', '.join(f'{key} = {spell(value)}' for key, value in attributes.items())}}}"


def _block(kind: Kind) -> list[str]:
    first = kind.layers[0]
    param = dict(zip(first.inputs, kind.params, strict=True))
    inputs = ", ".join(f"%{param[v]}: {first.local_type(v.type)}" for v in first.inputs)

    def name(value: Value) -> str:
        return param.get(value) or first.local(value.name)

    body = [f"    {print_op(op, name, first.local_attribute, first.local_type)}" for op in first.ops]
    return [f"  block @{kind.name}({inputs}) {{", *body, "  }"]


def _calls(layers: list[Layer], kind_of: Mapping[int, Kind]) -> list[str]:
    """Return a line for each kind and way of feeding it, in order of first layer."""
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for layer in layers:
        arguments = tuple(_argument(v, layer.number) for v in layer.inputs)
        groups.setdefault((kind_of[layer.number].name, arguments), []).append(layer.number)
    return [
        f"  layers {ranges(numbers)} = @{kind}({', '.join(arguments)})" for (kind, arguments), numbers in groups.items()
    ]


def _argument(value: Value, layer: int) -> str:
    if layer_of(value.name) == layer - 1 and value.name.startswith(f"layers.{layer - 1}."):
        return f"%-1.{value.name.removeprefix(f'layers.{layer - 1}.')}"
    return f"%{value.name}"
