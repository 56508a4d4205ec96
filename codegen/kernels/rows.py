"""K1, K11: maps of one vector, streamed row by row, with what comes before and after them (specs/kernels.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.codegen.kernels.elements import Elements, Leaf
from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile
from regraft.codegen.names import identifier, literal
from regraft.ir.forms.elements import width
from regraft.ir.forms.rows import HeadEnd, RowsForm, needed
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import GroupedLinear, InverseRMS, LayerNorm, Linear, Norm
from regraft.ir.types import ITEM_BITS

_LOCALS = """
    row block blocks i o c x w head of_head head_at normed_at at channel whole factor added begin seen live first tile
    mean total squares finished arrived BN BK tl triton activated tanh_of options results rows batch wide
"""
LOCALS: tuple[str, ...] = tuple(_LOCALS.split())  # names that nothing of a model has in a kernel's text


@dataclass(frozen=True)
class HeadMap:
    """A map of each head by rows of its own.

    Attributes:
        weight: The tensor of rows.
        tensor: The result.
        out: Channels of a head's result.
        back: Whether rows are added up, each times its channel: ``y[h, o]`` is the sum of ``x[h, i]`` times
            ``weight[h * width + i, o]``. Else there is a row for each ``o``: it is times ``weight[h * out + o, i]``.
    """

    weight: str
    tensor: str
    out: int
    back: bool

    def tile(self, width: int) -> tuple[int, int]:
        """Return how many of a head's channels, and how many of its result's, a program takes at a time."""
        channels, results = (1 << (size - 1).bit_length() for size in (width, self.out))
        if self.back:
            results = min(128, results)
            return min(8192 // results, channels), results
        channels = min(128, channels)
        return channels, min(8192 // channels, results)


@dataclass(frozen=True)
class Ending:
    """What is done to each head of a vector by the program that finishes it last.

    Attributes:
        x: The tensor of heads.
        heads: How many.
        width: Channels of a head.
        maps: What they are then multiplied by.
        eps: Of their norm; none if they have none.
        weight: The tensor of the norm's weight, or nothing.
        offset: Added to it.
        normed: The tensor that normed heads are stored in, or nothing.
    """

    x: str
    heads: int
    width: int
    maps: tuple[HeadMap, ...]
    eps: float | None = None
    weight: str = ""
    offset: float = 0.0
    normed: str = ""

    @property
    def padded(self) -> int:
        """The length of a vector that holds a head."""
        return 1 << (self.width - 1).bit_length()

    @property
    def flops(self) -> int:
        """Operations of its maps."""
        return sum(2 * self.heads * self.width * each.out for each in self.maps)


@dataclass(frozen=True)
class Part:
    """Rows that some programs own: which maps they multiply by, and what they store.

    Attributes:
        rows: How many.
        maps: For each product a row needs, the weight's name and the expression of the weight's row.
        lines: Statements that make the stored elements of the products ``y_1``, ``y_2``, ... at the rows ``o``.
        stores: Names of the tensors written, and of the elements.
        ending: What is done to each head of them, once it is there.
    """

    rows: int
    maps: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]
    stores: tuple[tuple[str, str], ...]
    ending: Ending | None = None


@dataclass(frozen=True)
class Sum:
    """A sum over a vector that all its elements wait for.

    Attributes:
        name: The variable that it gives: a norm's factor.
        size: Elements.
        lines: Statements that make elements at ``i``.
        element: The variable that holds these.
        finish: The factor, from ``mean`` of the squares.
        centered: The variable for the mean, if the squares are of distances from it.
    """

    name: str
    size: int
    lines: tuple[str, ...]
    element: str
    finish: str
    centered: str = ""


@dataclass(frozen=True)
class Store:
    """A vector that is computed element by element and stored: statements, tensor, element, size."""

    lines: tuple[str, ...]
    tensor: str
    element: str
    size: int


@dataclass(frozen=True)
class RowsKernel(Kernel):
    """Maps of one vector of a token.

    Attributes:
        name: The custom op's name.
        inputs: Names of the tensors it takes, weights among them, in order, and their elements for each token.
        weights: Which of these are weights.
        results: Names of the tensors it gives and the shape of each for a token, wide ones in float32 at least.
        wide: Which results are, and which inputs.
        inside: Names and sizes of what only the last program reads.
        depth: Elements of the vector that is mapped, or of a head of it.
        head_rows: Rows of the weight for each head, where each is mapped by rows of its own; else 0.
        vector: Statements that make its elements at ``i``.
        element: The variable that holds these.
        sums: What they wait for, in order.
        sides: Vectors on the way that others read too.
        parts: The rows.
        last_sums: What the last program sums up.
        lasts: What it then stores.
        like: The input whose batch, dtype and device results have.
        plain: The body of the plain function.
        narrow: The weight whose dtype results have that are not wide, if ``like`` is.
    """

    template: ClassVar[str] = "rows.py.j2"
    name: str
    inputs: tuple[tuple[str, int], ...]
    weights: tuple[str, ...]
    results: tuple[tuple[str, tuple[int, ...]], ...]
    wide: tuple[str, ...]
    inside: tuple[tuple[str, int], ...]
    depth: int
    head_rows: int
    vector: tuple[str, ...]
    element: str
    sums: tuple[Sum, ...]
    sides: tuple[Store, ...]
    parts: tuple[Part, ...]
    last_sums: tuple[tuple[Sum, ...], ...]
    lasts: tuple[tuple[Store, ...], ...]
    like: str
    plain: tuple[str, ...]
    narrow: str = ""

    @property
    def pointers(self) -> list[str]:
        """Names of the kernel's tensors, in order."""
        return [name for name, _ in (*self.inputs, *self.results, *self.inside)]

    @property
    def fewest(self) -> int:
        """Rows of the smallest part."""
        return min(part.rows for part in self.parts)

    @property
    def endings(self) -> list[tuple[Ending, int]]:
        """What is done to whole heads, and how many heads of others come before."""
        found = [part.ending for part in self.parts if part.ending is not None]
        return [(each, sum(other.heads for other in found[:number])) for number, each in enumerate(found)]

    @property
    def ended(self) -> int:
        """Heads that something is done to."""
        return sum(each.heads for each, _ in self.endings)

    def tiles(self) -> Sequence[Tile]:
        rows = sum(part.rows * len(part.maps) for part in self.parts)
        block = 1 << max(4, min(10, (self.depth - 1).bit_length()))
        size = rows * self.depth
        high = 4 if size >= 1 << 22 else 2 if size >= 1 << 20 else 1 if size >= 1 << 15 else 16
        deep = max(block, 16)
        if self.head_rows:  # heads are shallow
            high = max(high, 8192 // deep)
        choices = [(high, deep), (high * 2, deep), (high, min(deep * 2, 2048)), (high * 2, deep // 2)]
        whole = math.gcd(self.head_rows, *(each.width for each, _ in self.endings))  # rows of a program are one head's
        most = whole & -whole or 1 << (rows - 1).bit_length()
        choices = [(min(n, most), max(k, 16)) for n, k in choices]
        return [Tile({"BN": n, "BK": k}, warps=_warps(n * k)) for n, k in dict.fromkeys(choices)]

    def entries(self, dtype: str) -> Sequence[Entry]:
        wide = {*self.wide, *(name for name, _ in self.inside)}
        arguments = {name: "*fp32" if name in wide else f"*{dtype}" for name in self.pointers}
        if self.ended:
            arguments["finished"] = "*i32"
        if self.lasts:
            arguments["arrived"] = "*i32"
        return [Entry(f"{self.name}_kernel", arguments)]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Count each weight once for each sequence, what is read again by other programs once, and their arrivals."""
        sizes = dict(self.inputs)
        weights = sum(sizes[name] for name in self.weights) * width
        read = sum(size for name, size in self.inputs if name not in self.weights) * width
        inside = sum(size for _, size in self.inside) * 4
        made = sum(_elements(shape) * (4 if name in self.wide else width) for name, shape in self.results)
        flops = 2 * self.depth * sum(part.rows * len(part.maps) for part in self.parts)
        flops += sum(each.flops for each, _ in self.endings)
        arrivals = 4 * (self.ended + len(self.lasts))
        again = sum(_elements(shape) * width for name, shape in self.results if name in self.read_again)
        whole = (weights + read + inside + again + arrivals) * batch
        return Moved(whole, (made + inside + arrivals) * batch, weights, 1, flops * batch)

    @property
    def read_again(self) -> set[str]:
        """Results that the program reads which finishes a head."""
        return {each.x for each, _ in self.endings}


def _warps(elements: int) -> int:
    """Return how many warps load a tile 16 bytes a thread."""
    return max(1, min(4, elements // 256))


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


class RowsWriter:
    """Writes a body of the form `RowsForm` as a `RowsKernel`.

    Args:
        form: The body.
        gives: Which of its values are results.
        names: What its tensors are called: operands and results.
        taken: Names that nothing else may have in the text.
    """

    def __init__(
        self, form: RowsForm, gives: Sequence[Value], names: Mapping[Value, str], taken: Sequence[str] = LOCALS
    ) -> None:
        self.form, self.gives, self.names = form, list(gives), dict(names)
        self.factors: dict[Op, tuple[str, ...]] = {}
        made = {value for op in (*form.linears, *form.after) for value in op.results}
        late = [v for v in self.gives if v.op in form.last]
        self.inside = [
            value
            for value in dict.fromkeys([*(end.x for end in form.ends), *(v for op in form.last for v in op.operands)])
            if value in made and value not in self.gives
        ]
        for value in self.inside:
            self.names[value] = f"{self.stem(value)}_inside"
        self.stored = [value for value in [*self.gives, *self.inside] if value in made]
        self.late = late
        products = [
            f"{stem}_{number + 1}" for number in range(2 * len(form.linears)) for stem in ("sum", "at", "w", "y")
        ]
        norms = [op for op in (*form.before, *form.last) if isinstance(op, InverseRMS | LayerNorm | Norm)]
        factors = [f"{self.stem(op.out)}_{what}" for op in norms for what in ("factor", "mean")]
        self.taken = {*taken, *self.names.values(), *products, *factors}

    def kernel(self, name: str, like: str, plain: Sequence[str]) -> RowsKernel:
        """Return the kernel."""
        form = self.form
        operands = [v for v in self.names if v not in self.gives and v not in self.inside]
        sums = [self._sum(op, self._before) for op in form.before if isinstance(op, InverseRMS | LayerNorm | Norm)]
        vector = self._elements(self._before)
        mapped = form.linears[0]
        grouped = isinstance(mapped, GroupedLinear)
        depth = int(str(form.x.tensor.shape[-1]))
        element = vector.at(form.x, f"head * {depth} + i" if grouped else "i")
        sides = [self._store(v, self._before) for v in self.gives if v.op in form.before]
        parts = tuple(self._part(values) for values in self._parted())
        last_sums: list[tuple[Sum, ...]] = []
        lasts: list[tuple[Store, ...]] = []
        if self.late:
            reduced = [op for op in form.last if isinstance(op, InverseRMS | LayerNorm | Norm)]
            last_sums.append(tuple(self._sum(op, self._behind) for op in reduced))
            lasts.append(tuple(self._store(v, self._behind) for v in self.late))
        wide = tuple(self.names[v] for v in [*self.gives, *operands] if v.tensor.dtype in _wider(form))
        return RowsKernel(
            name=name,
            inputs=tuple((self.names[v], width(v)) for v in operands),
            weights=tuple(self.names[v] for v in operands if v.is_weight),
            results=tuple((self.names[v], _shape(v)) for v in self.gives),
            wide=wide,
            inside=tuple((self.names[v], width(v)) for v in self.inside),
            depth=depth,
            head_rows=int(str(mapped.out.tensor.shape[-1])) if grouped else 0,
            vector=tuple(vector.lines),
            element=element,
            sums=tuple(sums),
            sides=tuple(sides),
            parts=parts,
            last_sums=tuple(last_sums),
            lasts=tuple(lasts),
            like=like,
            plain=tuple(plain),
            narrow=self.names[mapped.weight] if like in wide else "",
        )

    # -- where elements come from

    def stem(self, value: Value) -> str:
        """Return a value's last name."""
        return identifier(value.name.rpartition(".")[2])

    def _before(self, value: Value, index: str) -> str | None:
        """Return what is loaded: weights and other operands."""
        made = value.op is not None and not value.is_weight and (value in self.gives or value in self.inside)
        if made or value not in self.names:
            return None
        return self._loaded(value, index)

    def _behind(self, value: Value, index: str) -> str | None:
        """Return what the last program loads: what others have written, too."""
        if value in self.stored:
            return self._loaded(value, index, ', cache_modifier=".cg"')
        return self._before(value, index)

    def _loaded(self, value: Value, index: str, how: str = "") -> str:
        size = width(value)
        row = "" if value.is_weight else f"row * {size} + " if size > 1 else "row + "
        if index == "0":
            return f"tl.load({self.names[value]} + {row}0{how}).to(tl.float32)"
        seen = "live" if index.startswith("o") or "(o" in index else "seen"
        return f"tl.load({self.names[value]} + {row}{index}, mask={seen}, other=0.0{how}).to(tl.float32)"

    def _elements(self, leaf: Leaf) -> Elements:
        return Elements(leaf, self.factors, self.stem, self.taken)

    # -- sums, stores, parts

    def _sum(self, op: InverseRMS | LayerNorm | Norm, leaf: Leaf) -> Sum:
        elements = self._elements(leaf)
        element = elements.at(op.x, "i")
        name = f"{self.stem(op.out)}_factor"
        mean = f"{self.stem(op.out)}_mean" if isinstance(op, LayerNorm) else ""
        finish = f"tl.rsqrt(mean + {literal(op.eps)})"
        if isinstance(op, Norm) and op.clamp:
            finish = f"1.0 / tl.maximum(tl.sqrt(mean), {literal(op.eps)})"
        self.factors[op] = (name, mean) if mean else (name,)
        return Sum(name, width(op.x), tuple(elements.lines), element, finish, mean)

    def _store(self, value: Value, leaf: Leaf) -> Store:
        elements = self._elements(leaf)
        element = elements.at(value, "i")
        return Store(tuple(elements.lines), self.names[value], element, width(value))

    def _parted(self) -> list[list[Value]]:
        """Return the stored values, those together that are made of the same maps' rows."""
        groups: dict[object, list[Value]] = {}
        ended = {end.x for end in self.form.ends}
        linears: set[Op] = set(self.form.linears)
        for value in self.stored:
            maps = tuple(op for op in needed([value], (*self.form.linears, *self.form.after)) if op in linears)
            groups.setdefault((maps, width(value), value if value in ended else None), []).append(value)
        return sorted(groups.values(), key=ended.isdisjoint)  # what others wait for comes first

    def _part(self, values: list[Value]) -> Part:
        maps: dict[tuple[str, str], str] = {}

        def leaf(value: Value, index: str) -> str | None:
            if isinstance(value.op, Linear | GroupedLinear) and value.op in self.form.linears:
                key = (self.names[value.op.weight], index)
                found = maps.setdefault(key, f"y_{len(maps) + 1}")
                if isinstance(value.op, GroupedLinear) or value.op.bias is None:
                    return found
                return f"{found} + {self._loaded(value.op.bias, index)}"
            return self._before(value, index)

        elements = self._elements(leaf)
        stores = tuple((self.names[value], elements.at(value, "o")) for value in values)
        ending = next((self._ending(end) for end in self.form.ends if end.x in values), None)
        return Part(width(values[0]), tuple(maps), tuple(elements.lines), stores, ending)

    def _ending(self, end: HeadEnd) -> Ending:
        heads, size = (int(str(dim)) for dim in end.x.tensor.shape[2:])
        maps = tuple(
            HeadMap(self.names[op.weight], self.names[op.out], int(str(op.out.tensor.shape[-1])), op.transposed)
            for op in end.maps
        )
        if end.norm is None:
            return Ending(self.names[end.x], heads, size, maps)
        weight = "" if end.norm.weight is None else self.names[end.norm.weight]
        normed = self.names.get(end.norm.out, "")
        return Ending(self.names[end.x], heads, size, maps, end.norm.eps, weight, end.norm.offset, normed)


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(int(str(dim)) for dim in value.tensor.shape[2:])


def _wider(form: RowsForm) -> set[str]:
    """Return the dtypes that are wider than the narrower one of the vector and of what maps it."""
    widths = {dtype: ITEM_BITS[dtype] for dtype in ("f16", "bf16", "f32", "f64")}
    narrow = min(widths[value.tensor.dtype] for value in (form.x, form.linears[0].weight))
    return {dtype for dtype, bits in widths.items() if bits > narrow}
