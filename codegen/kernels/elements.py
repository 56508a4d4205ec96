"""Values of a token written in Triton element by element, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from regraft.codegen.names import literal
from regraft.ir.forms.elements import width
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import PickHeads
from regraft.ir.ops.core import (
    Activation,
    Add,
    Bias,
    Clamp,
    Concat,
    Flatten,
    Gain,
    InverseRMS,
    LayerNorm,
    Mul,
    Norm,
    Repeat,
    Scale,
    Slice,
    Softcap,
    Unflatten,
)
from regraft.ir.ops.precision import CastLike, Widen

Leaf = Callable[[Value, str], str | None]


class Elements:
    """Writes the statements that compute elements of values.

    Args:
        leaf: Gives the expression of a value's element at an index, or none where it has to be computed.
        sums: What stands for the sums of each norm: its factor, and for a layer norm its mean too.
        stem: Names values in the text.
        taken: Names that mean something else there.
    """

    def __init__(
        self,
        leaf: Leaf,
        sums: Mapping[Op, tuple[str, ...]],
        stem: Callable[[Value], str],
        taken: Iterable[str] = (),
    ) -> None:
        self.leaf, self.sums, self.stem = leaf, sums, stem
        self.lines: list[str] = []
        self._made: dict[tuple[Value, str], str] = {}
        self._names = set(taken)

    def at(self, value: Value, index: str) -> str:
        """Return the variable that holds a value's element at ``index``, an expression of element numbers."""
        key = (value, index)
        if key not in self._made:
            found = self.leaf(value, index)
            code = found if found is not None else self._computed(value, index)
            if code.isidentifier():
                self._made[key] = code
            else:
                self._made[key] = self._name(value)
                self.lines.append(f"{self._made[key]} = {code}")
        return self._made[key]

    def _name(self, value: Value) -> str:
        stem = name = self.stem(value)
        if name in self._names:
            stem = name = f"{name}_at"
        number = 1
        while name in self._names:
            number += 1
            name = f"{stem}_{number}"
        self._names.add(name)
        return name

    def _computed(self, value: Value, index: str) -> str:
        op = value.op
        assert op is not None, value
        return _WRITERS[type(op)](self, op, index)

    def normed(self, op: Norm, index: str) -> str:
        """Return elements of a norm."""
        x = f"{self.at(op.x, index)} * {self.sums[op][0]}"
        if op.weight is None:
            return x
        weight = self.at(op.weight, index)
        return f"{x} * ({weight} + {literal(op.offset)})" if op.offset else f"{x} * {weight}"

    def clamped(self, op: Clamp, index: str) -> str:
        """Return elements cut at bounds."""
        code = self.at(op.x, index)
        code = code if op.low is None else f"tl.maximum({code}, {literal(op.low)})"
        return code if op.high is None else f"tl.minimum({code}, {literal(op.high)})"

    def sliced(self, op: Slice, index: str) -> str:
        """Return which elements a slice takes."""
        whole, part = (dims[-1] for dims in (op.x.tensor.shape, op.out.tensor.shape))
        if width(op.x) == whole:
            return f"{index} + {op.start}" if op.start else index
        return f"({index}) // {part} * {whole} + ({index}) % {part} + {op.start}"

    def picked(self, op: PickHeads, index: str) -> str:
        """Return which elements are those of heads: for each run of heads in order the same distance away."""
        size = int(str(op.out.tensor.shape[-1]))
        moved = [(head - place) * size for place, head in enumerate(op.heads)]
        ends = [place for place in range(1, len(moved)) if moved[place] != moved[place - 1]]
        away = str(moved[-1])
        for end in reversed(ends):
            away = f"tl.where({index} < {end * size}, {moved[end - 1]}, {away})"
        return index if away == "0" else f"{index} + {away}"

    def joined(self, op: Concat, index: str) -> str:
        """Return elements of parts side by side: of each head, where there are heads."""
        whole = op.out.tensor.shape[-1]
        heads = width(op.out) > int(str(whole))
        place = f"(({index}) % {whole})" if heads else f"({index})"
        head = f"({index}) // {whole}" if heads else ""
        code, start = "", 0
        for x in op.xs:
            part = int(str(x.tensor.shape[-1]))
            own = f"tl.minimum(tl.maximum({place} - {start}, 0), {part - 1})"  # elsewhere another part is taken
            element = self.at(x, f"{head} * {part} + {own}" if heads else own)
            code = f"tl.where({place} < {start}, {code}, {element})" if code else element
            start += part
        return code


def _layer_normed(at: Elements, op: LayerNorm, index: str) -> str:
    factor, mean = at.sums[op]
    scaled = f"({at.at(op.x, index)} - {mean}) * {factor} * {at.at(op.weight, index)}"
    return f"{scaled} + {at.at(op.bias, index)}"


def _same(at: Elements, op: Any, index: str) -> str:
    return at.at(op.x, index)


_WRITERS: Mapping[type[Op], Callable[[Elements, Any, str], str]] = {
    Activation: lambda at, op, index: f'activated({at.at(op.x, index)}, "{op.kind}")',
    Add: lambda at, op, index: f"{at.at(op.a, index)} + {at.at(op.b, index)}",
    Bias: lambda at, op, index: f"{at.at(op.x, index)} + {at.at(op.bias, modulo(index, width(op.bias), width(op.x)))}",
    CastLike: _same,
    Clamp: Elements.clamped,
    Concat: Elements.joined,
    Flatten: _same,
    Gain: lambda at, op, index: f"{at.at(op.x, index)} * {at.at(op.by, along(index, op))}",
    InverseRMS: lambda at, op, index: at.sums[op][0],
    LayerNorm: _layer_normed,
    Mul: lambda at, op, index: f"{at.at(op.a, index)} * {at.at(op.b, index)}",
    Norm: Elements.normed,
    PickHeads: lambda at, op, index: at.at(op.x, at.picked(op, index)),
    Repeat: lambda at, op, index: at.at(op.x, repeated(index, op)),
    Scale: lambda at, op, index: f"{at.at(op.x, index)} * {literal(op.factor)}",
    Slice: lambda at, op, index: at.at(op.x, at.sliced(op, index)),
    Softcap: lambda at, op, index: f"tanh_of({at.at(op.x, index)} / {literal(op.cap)}) * {literal(op.cap)}",
    Unflatten: _same,
    Widen: _same,
}


def modulo(index: str, size: int, whole: int) -> str:
    """Return an index into ``size`` elements that repeat along ``whole``."""
    return index if size == whole else "0" if size == 1 else f"({index}) % {size}"


def repeated(index: str, op: Repeat) -> str:
    """Return the element that is repeated: of each head its parts have the same channels."""
    each = int(str(op.x.tensor.shape[-1]))
    channel = f"({index}) % {each}"
    return channel if width(op.x) == each else f"({index}) // {op.parts * each} * {each} + {channel}"


def along(index: str, op: Gain) -> str:
    """Return which element of ``by`` multiplies an element of ``x``."""
    x = [int(str(dim)) for dim in op.x.tensor.shape[2:]]
    shape = op.by.tensor.shape if op.by.is_weight else op.by.tensor.shape[2:]
    by = [1] * (len(x) - len(shape)) + [int(str(dim)) for dim in shape]
    parts: list[str] = []
    inner = outer = 1
    for size, own in zip(reversed(x), reversed(by), strict=False):
        if own > 1:
            part = index if inner == 1 else f"({index}) // {inner}"
            whole = width(op.x) == inner * size
            part = part if whole else f"({part}) % {size}"
            parts.append(part if outer == 1 else f"({part}) * {outer}")
        inner, outer = inner * size, outer * own
    return " + ".join(reversed(parts)) or "0"
