"""Target ``torch``: the lines of one forward, whether of a block or of the model around the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from regraft.codegen.names import Namespace, comment, suffixes
from regraft.codegen.torch.code import Code, Far, Sight
from regraft.codegen.torch.memories import written_by_readers
from regraft.codegen.torch.ops import absorbs, emit_op
from regraft.codegen.wiring import Place
from regraft.ir.dims import Sym
from regraft.ir.op import Op, Value
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.kernels import Kernel
from regraft.ir.ops.memory import RowPositions
from regraft.ir.ops.pos import Rope
from regraft.ir.types import MemoryType

WIDTH = 120  # columns
_LONGEST = 64  # characters of an expression that is written into another one

# Names that the emitted file gives to other things, and those of the function around the layers.
_GLOBALS = """
    annotations json math Callable Sequence Path Any NamedTuple torch F load_file Tensor nn Memory Rope View
    inverse_rms rms_norm rms_norm_plain rms_norm_offset rms_norm_wide rms_norm_offset_wide rms_norm_clamped
    frequencies llama3 yarn longrope rotary
    rotary_pairs rotate rotate_pairs bias view keep by_head best_rows best_groups among causal attend route
    route_normalized mix_experts gelu_tanh anchored_view anchored_rows anchored_rows_at widen
    attend_by_scores chosen_rows softmax sqrt_softplus route_by quick_gelu grouped_linear
    grouped_linear_back
    back rows_at pooled_view window_starts pool pool_overlapping with_ring windows keep_pooled Every
    stream_maps spread_streams read_streams write_streams collapse_streams
    with_tail convolve log_decay delta_rule delta_chunk Fixed start count
    at_places kept_at last_rows last_rope last_view new_memories Cache Model load KINDS self
"""
_RUN = "tokens pos memory start count pasts context alone dtype last i layer"
GLOBALS = frozenset(_GLOBALS.split())
RUN_LOCALS = frozenset(_RUN.split())


class Shared:
    """What the blocks of one program share: helper functions, rotations, views, each under one name.

    Attributes:
        helpers: The functions that are used, each with the forms in which it is.
        ropes: Parameters of each rotation, and its variable's name.
        views: What a memory keeps and what a query sees of it, and the variable's name.
        everies: What is seen of pooled rows, and the name of the view of them.
        row_ropes: A rotation's name, the tokens of a pooled row or none, what is kept, and
            what is added to their positions; and the variable for turning such rows.
    """

    def __init__(self) -> None:
        self.helpers: dict[str, set[str]] = {}
        self.ropes: dict[tuple[object, ...], str] = {}
        self.views: dict[tuple[Sight, Sight], str] = {}
        self.everies: dict[Far, str] = {}
        self.row_ropes: dict[tuple[str, int | None, Sight, float], str] = {}
        self._names = Namespace(GLOBALS)

    def helper(self, name: str, *flags: str) -> str:
        """Return the name of a function, noting that it is used in the forms ``flags``."""
        self.helpers.setdefault(name, set()).update(flags)
        return name

    def turn(self, op: Rope) -> str:
        """Return the name of a rotation of tokens; rotations with equal parameters share it."""
        scaled = (op.factor, op.original, op.low, op.high, op.truncate) if op.scaling != "none" else ()
        scaled = (op.factors,) if op.factors else scaled
        key = (op.base, op.channels, op.layout, op.scaling, *scaled, op.pairs, op.amplitude)
        if key not in self.ropes:
            self.ropes[key] = self._names.give(key, "rope")
        return self.ropes[key]

    def rope(self, op: Rope) -> str:
        """Return the name of a rotation's cosine and sine."""
        rope = self.turn(op)
        if not isinstance(op.pos.op, RowPositions):
            return rope
        kept = op.pos.op.memory.memory
        sight = Sight(kept.window, kept.first)
        name = f"{rope}_every_{kept.rate}" if kept.rate else f"{rope}_rows" + (f"_{sight.name}" if kept.window else "")
        key = (rope, kept.rate, sight, op.offset)
        return self.row_ropes.setdefault(key, self._names.give(key, name))

    def view(self, kept: Sight, seen: Sight) -> str:
        """Return the name of a view."""
        key = (kept, seen)
        if key not in self.views:
            name = seen.name
            name += "" if kept == seen._replace(rate=1) else "_of_all" if kept.window is None else f"_of_{kept.name}"
            self.views[key] = self._names.give(key, name)
        return self.views[key]

    def every(self, far: Far) -> str:
        """Return the name of the view of rows that are made of several tokens each."""
        if far not in self.everies:
            self.everies[far] = self._names.give(far, far.name)
        return self.everies[far]

    def type_of(self, name: str) -> str:
        """Return the type of what is called ``name``."""
        if name in self.ropes.values() or name in self.row_ropes.values():
            return "Rope"
        return "View" if name in self.views.values() or name in self.everies.values() else "Tensor"

    def reserved(self) -> Iterable[str]:
        """Return the names that no variable may have."""
        named = (self.ropes, self.views, self.everies, self.row_ropes)
        angles = [f"{rope}_angles" for rope in self.ropes.values()]
        return [*GLOBALS, *angles, *(name for names in named for name in names.values())]


def kept(op: Op) -> Value:
    """Return the memory that a state op makes."""
    return next(v for v in op.results if isinstance(v.type, MemoryType))


class Body:
    """The statements of a forward, and what they need from around it.

    Args:
        shared: What all bodies of the program share.
        places: Where the parameters stand.
        owner: The layer's index, or None for the model.
        local: How a value is called in text.
        names: The scope's names; what is given to it beforehand are the arguments.
        width: Columns, as if the body stood where the forward of a class does.
    """

    def __init__(
        self,
        shared: Shared,
        places: dict[Value, Place],
        owner: int | None,
        local: Callable[[str], str],
        names: Namespace,
        width: int = WIDTH,
    ) -> None:
        self.shared, self.places, self.owner, self.local, self.names = shared, places, owner, local, names
        self.width = width
        self.lines: list[str] = []
        self.pasts: dict[Op, str] = {}
        self.used: dict[str, None] = {}  # rotations, views and facts of the call, in order of first use
        self.buffers: dict[tuple[int, ...], str] = {}
        self._pending: dict[Value, Code] = {}
        self._pooled: set[str] = set()  # memories whose rows are still to be kept

    # -- what emitters ask for

    def of(self, value: Value) -> Code:
        """Return the code of a value."""
        if value in self._pending:
            return self._pending.pop(value)
        if value in self.names:
            return Code(self.names[value])
        place = self.places[value]
        return Code(f"{self._module(place)}.{place.part}" if place.part else self._module(place))

    def module(self, value: Value, kind: str) -> str | None:
        """Return the module of that ``kind`` that holds a parameter, if it is one to call here."""
        place = self.places.get(value)
        if place is None or value in self.names or place.module != kind or place.owner != self.owner:
            return None
        return self._module(place)

    def _module(self, place: Place) -> str:
        if place.owner in (None, self.owner):
            return f"self.{place.attribute}"
        return f"self.layers[{place.owner}].{place.attribute}"

    def helper(self, name: str, *flags: str) -> str:
        """Return the name of a function of the emitted file."""
        return self.shared.helper(name, *flags)

    def rope(self, op: Rope) -> str:
        """Return the variable that holds cosine and sine for an op."""
        return self._use(self.shared.rope(op))

    def view(self, kept: Sight, seen: Sight) -> str:
        """Return the variable that says what a query sees of a memory."""
        return self._use(self.shared.view(kept, seen))

    def every(self, far: Far) -> str:
        """Return the variable that says what a query sees of pooled rows."""
        return self._use(self.shared.every(far))

    def past(self, op: Op) -> str:
        """Return the variable that holds a memory's rows of earlier calls."""
        if op not in self.pasts:
            stem = self.local(kept(op).name)
            self.pasts[op] = self.names.give(("past", op), "past" if not self.pasts else f"past_{stem}")
        return self.pasts[op]

    def past_of(self, memory: Value) -> str | None:
        """Return that variable of a memory if it is one that is kept here."""
        return None if memory.op is None else self.pasts.get(memory.op)

    def readers(self, memory: Value) -> list[Op]:
        """Return the ops that read a memory, those that kernels stand for among them."""
        return [each for user in memory.users for each in (user.stands_for if isinstance(user, Kernel) else [user])]

    def call(self, name: str) -> str:
        """Return the variable of a fact of the call."""
        return self._use(name)

    def head_map(self, heads: tuple[int, ...]) -> str:
        """Return the buffer that holds the key/value head of each query head."""
        if heads not in self.buffers:
            self.buffers[heads] = "head_map" if not self.buffers else f"head_map_{len(self.buffers) + 1}"
        return f"self.{self.buffers[heads]}"

    def _use(self, name: str) -> str:
        self.used[name] = None
        return name

    # -- statements

    def write(self, op: Op, kept: set[Value]) -> None:
        """Add an op: a line of its own, or kept back to be written into its only user's line.

        Args:
            op: A run-time op.
            kept: Values that are needed by name, whoever uses them.
        """
        if self.left_to_readers(op):
            return
        code = emit_op(op, self)
        if len(op.results) == 1:
            (result,) = op.results
            if result not in kept and len(code.text) <= _LONGEST and self._one_user_absorbs(op):
                self._pending[result] = code
                return
        results = [v for v in op.results if v.users or v in kept or not isinstance(v.type, MemoryType)] or op.results
        names = [self.names.give(v, *suffixes(self.local(v.name))) for v in results]
        told = ", ".join(map(self.told, results))
        self.assign(", ".join(names), code.text, told)

    def left_to_readers(self, op: Op) -> bool:
        """Return whether an op has no line of its own, noting whose rows are pooled in others' lines."""
        self._pooled |= {v.name for v in op.results if isinstance(op, Compressed)}
        return written_by_readers(op)

    def _one_user_absorbs(self, op: Op) -> bool:
        users = op.results[0].users
        if len(users) != 1 or next(iter(users.values())) != 1:
            return False
        return absorbs(next(iter(users)), op)

    def assign(self, target: str, code: str, told: str = "") -> None:
        """Add ``target = code``, with a comment that says what it is, where there is room for one."""
        line = f"{target} = {code}" if target else code
        remark = f"  # {told}" if told else ""
        if len(line) + 8 > self.width and line.endswith(")"):  # a call: its arguments on a line of their own
            opened = line.index("(", len(target) + 3)
            inner = line[opened + 1 : -1]
            parts = [inner] if len(inner) + 12 <= self.width else [f"{each}," for each in _arguments(inner)]
            self.lines += [line[: opened + 1], *(f"    {each}" for each in parts), ")"]
            return
        self.lines.append(line + remark if len(line) + len(remark) + 12 <= self.width else line)

    def told(self, value: Value) -> str:
        """Return a value's name and shape, for a comment; E are the pooled rows that a call may finish."""
        name = self.local(value.name)
        if isinstance(value.type, MemoryType):
            fields = ", ".join(f"{f.name} [B, S, {', '.join(map(str, f.shape))}]" for f in value.type.fields)
            return comment(f"%{name}: {fields}")
        rows = {dim: "E" if dim.memory in self._pooled else "S" for dim in value.type.shape if isinstance(dim, Sym)}
        dims = (rows[dim] if isinstance(dim, Sym) and dim.memory else str(dim) for dim in value.type.shape)
        return comment(f"%{name} [{', '.join(dims)}]")


def _arguments(inner: str) -> list[str]:
    """Return the arguments of a call, split at the commas that stand in no brackets."""
    parts, depth = [""], 0
    for char in inner:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]
