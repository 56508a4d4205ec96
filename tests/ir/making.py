"""Graphs in the making, for property tests: what draws values and adds ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from regraft.ir.dims import B, Dim, T, parse_dim
from regraft.ir.graph import Graph
from regraft.ir.op import Value, op_class
from regraft.ir.types import FLOATS, TensorType

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True)
SCOPES = st.sampled_from(
    ["", "", "layers.0.", "layers.3.attn.", "layers.12.moe.x_1.", "model.layers.7.", "enc.9.", "a-b."]
)
FLOAT_TYPES = st.sampled_from(FLOATS)
SMALL = st.integers(1, 6)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)
POSITIVE = st.floats(1e-12, 1e12)
STRINGS = st.text() | st.sampled_from(
    [
        "",
        '"',
        "\\",
        "\n\r\t\0",
        "// no comment",
        "layers.3.attn.q",
        "layers.*.x",
        "model.layers.3.w",
        "**",
        "ünïcode ∞ 𝄞",
        "\ud800",
    ]
)
DIMS: st.SearchStrategy[Dim] = st.sampled_from(["S", "S // 4", "S // 4 - (S - T) // 4", "B * T", "2 * S + 1"]).map(
    parse_dim
)


class Making:
    """A graph in the making: draws values and adds ops under random names."""

    def __init__(self, draw: DrawFn) -> None:
        self.draw = draw
        self.graph = Graph("made")
        self.scope = draw(SCOPES)

    def size(self) -> int:
        return self.draw(SMALL)

    def name(self, stem: str) -> str:
        return self.graph.fresh(self.scope + stem)

    def input(self, dtype: str, *shape: Dim) -> Value:
        return self.graph.add_input(self.graph.fresh(self.draw(NAMES)), TensorType(dtype, shape))

    def weight(self, dtype: str, *shape: int) -> Value:
        return self.add("weight.load", dtype=dtype, shape=shape)[0]

    def leading(self) -> tuple[Dim, ...]:
        """Dimensions before the channels: a run-time value's, or none."""
        return self.draw(
            st.sampled_from([(B, T), (B, T), (B, T, 3), (B, parse_dim("S@layers.0.m")), (T,), (B,), ()])
            | st.tuples(st.just(B), DIMS)
        )

    def add(self, opname: str, *values: Value | Sequence[Value], **rest: object) -> tuple[Value, ...]:
        cls = op_class(opname)
        slots: dict[str, Sequence[Value]] = {
            slot.name: [value] if isinstance(value, Value) else value
            for slot, value in zip(cls.spec.slots, values, strict=False)
        }
        slots |= {key: [value] for key, value in rest.items() if isinstance(value, Value)}
        attributes = {key: value for key, value in rest.items() if not isinstance(value, Value)}
        names: list[str] = []
        for _ in cls.spec.results:
            name = self.name(self.draw(NAMES))
            while name in names:
                name += "x"
            names.append(name)
        return self.graph.add(cls(slots, attributes), names)


Rule = Callable[[Making], Sequence[Value]]
RULES: dict[str, Rule] = {}


def rule(opname: str) -> Callable[[Rule], Rule]:
    def register(made: Rule) -> Rule:
        RULES[opname] = made
        return made

    return register
