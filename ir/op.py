"""What an op is: one class that declares operands, results and attributes, infers types, and says cost and meaning.

    @op("core.scale")
    class Scale(Op):
        x = operand("...")
        factor = attribute(FLOAT)
        out = result("...", dtype="x")

Shapes are written in dimension letters. A letter that occurs twice must agree; ``...`` stands for any leading
dimensions, ``*`` for any shape. ``B`` is the batch, ``T`` any one sequence axis, every other letter an integer. A
memory operand names its fields: ``memory("k Hkv D, v Hkv Dv")``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast, overload

from regraft.ir.attributes import Kind, shown
from regraft.ir.dims import Dim, L, Sizes, Sym, T
from regraft.ir.errors.base import nearest
from regraft.ir.errors.graph import (
    AttributeRgError,
    MemoryRowsError,
    MemoryRuleError,
    OperandCountError,
    OperandTypeError,
    UnknownOpError,
)
from regraft.ir.types import FLOATS, MemoryType, TensorType, Type

if TYPE_CHECKING:
    from regraft.ir.interpret import Run

A = TypeVar("A")


class Value:
    """An SSA value: made once, by an op or as a graph's input.

    ``users`` counts the uses by each op, so that a rewrite can ask who else reads a value.
    """

    __slots__ = ("name", "op", "type", "users")

    def __init__(self, name: str, type: Type, op: Op | None = None) -> None:
        self.name = name
        self.type: Type = type
        self.op = op
        self.users: dict[Op, int] = {}

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"

    @property
    def tensor(self) -> TensorType:
        """The type of a value that is known to be a tensor."""
        assert isinstance(self.type, TensorType), self
        return self.type

    @property
    def memory(self) -> MemoryType:
        """The type of a value that is known to be a memory."""
        assert isinstance(self.type, MemoryType), self
        return self.type

    @property
    def is_weight(self) -> bool:
        """Whether the value is known before run time."""
        return self.op is not None and self.op.weight_time


@dataclass(frozen=True)
class Cost:
    """What an op does in one call: ``flops`` (two for a multiply-add) and bytes by what they are.

    ``weights`` are parameter bytes read, ``cache_read`` and ``cache_written`` bytes of memories, ``activations`` bytes
    of run-time tensors read and written. ``cache`` are bytes that the memory holds after the call.
    """

    flops: int = 0
    weights: int = 0
    cache_read: int = 0
    cache_written: int = 0
    activations: int = 0
    cache: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.weights + other.weights,
            self.cache_read + other.cache_read,
            self.cache_written + other.cache_written,
            self.activations + other.activations,
            self.cache + other.cache,
        )

    @property
    def bytes_read(self) -> int:
        """The least bytes that must be read: parameters and memories."""
        return self.weights + self.cache_read


@dataclass(eq=False)
class _Slot:
    """An operand's declaration."""

    pattern: str
    dtype: str = ""
    is_memory: bool = False
    optional: bool = False
    variadic: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        self.words = tuple(self.pattern.split())

    @property
    def form(self) -> str:
        """What the operand must be, for messages."""
        return f"memory<{self.pattern}>" if self.is_memory else f"{self.dtype or 'any'}[{', '.join(self.words)}]"

    def __set_name__(self, owner: type[Op], name: str) -> None:
        self.name = name


class Operand(_Slot):
    """Exactly one value."""

    @overload
    def __get__(self, op: None, owner: type[Op]) -> Operand: ...
    @overload
    def __get__(self, op: Op, owner: type[Op]) -> Value: ...
    def __get__(self, op: Op | None, owner: type[Op]) -> Operand | Value:
        return self if op is None else op.slots[self.name][0]


class OptionalOperand(_Slot):
    """One value or none; spelled ``name=%value``."""

    @overload
    def __get__(self, op: None, owner: type[Op]) -> OptionalOperand: ...
    @overload
    def __get__(self, op: Op, owner: type[Op]) -> Value | None: ...
    def __get__(self, op: Op | None, owner: type[Op]) -> OptionalOperand | Value | None:
        if op is None:
            return self
        values = op.slots[self.name]
        return values[0] if values else None


class Operands(_Slot):
    """One value or more; an op has at most one of these, after its single operands."""

    @overload
    def __get__(self, op: None, owner: type[Op]) -> Operands: ...
    @overload
    def __get__(self, op: Op, owner: type[Op]) -> tuple[Value, ...]: ...
    def __get__(self, op: Op | None, owner: type[Op]) -> Operands | tuple[Value, ...]:
        return self if op is None else op.slots[self.name]


@dataclass(eq=False)
class Result:
    """A result's declaration."""

    pattern: str
    dtype: str = ""
    name: str = ""

    def __set_name__(self, owner: type[Op], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, op: None, owner: type[Op]) -> Result: ...
    @overload
    def __get__(self, op: Op, owner: type[Op]) -> Value: ...
    def __get__(self, op: Op | None, owner: type[Op]) -> Result | Value:
        return self if op is None else op.results[op.spec.result_index[self.name]]


@dataclass(eq=False)
class Attribute(Generic[A]):
    """An attribute's declaration."""

    kind: Kind[Any]
    default: object
    required: bool
    choices: tuple[object, ...] = ()
    name: str = ""

    def __set_name__(self, owner: type[Op], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, op: None, owner: type[Op]) -> Attribute[A]: ...
    @overload
    def __get__(self, op: Op, owner: type[Op]) -> A: ...
    def __get__(self, op: Op | None, owner: type[Op]) -> Attribute[A] | A:
        return self if op is None else cast(A, op.attributes[self.name])

    def coerce(self, op: str, value: object) -> object:
        """Return ``value`` as this attribute's type, or raise AttributeRgError."""
        if value is None and not self.required and self.default is None:
            return None
        try:
            coerced = self.kind.coerce(value)
        except ValueError:
            legal = f"{self.name} = {self.kind.name}"
            problem = f"{shown(value)} is not {self.kind.name}"
            raise AttributeRgError(op=op, name=self.name, problem=problem, legal=legal) from None
        if self.choices and coerced not in self.choices:
            legal = f"{self.name} = one of {', '.join(map(str, self.choices))}"
            raise AttributeRgError(op=op, name=self.name, problem=f"{shown(value)} is not a choice", legal=legal)
        return coerced


def operand(pattern: str, dtype: str = "") -> Operand:
    """Declare an operand; ``dtype`` is "float", "int", a dtype, an operand's name for that one's dtype, or empty."""
    return Operand(pattern, dtype)


def optional_operand(pattern: str, dtype: str = "") -> OptionalOperand:
    """Declare an operand that may be absent."""
    return OptionalOperand(pattern, dtype, optional=True)


def operands(pattern: str, dtype: str = "") -> Operands:
    """Declare one operand or more of the same form."""
    return Operands(pattern, dtype, variadic=True)


def memory(fields: str) -> Operand:
    """Declare a memory operand by the fields of its rows; ``*`` takes any, a last field with ``?`` may be absent."""
    return Operand(fields, is_memory=True)


def optional_memory(fields: str) -> OptionalOperand:
    """Declare a memory operand that may be absent."""
    return OptionalOperand(fields, is_memory=True, optional=True)


def result(pattern: str = "", dtype: str = "") -> Result:
    """Declare a result; ``dtype`` is the name of the operand that gives it, or a dtype."""
    return Result(pattern, dtype)


def attribute(kind: Kind[A], choices: tuple[A, ...] = ()) -> Attribute[A]:
    """Declare an attribute that must be given."""
    return Attribute(kind, None, True, choices)


def defaulted(kind: Kind[A], default: A, choices: tuple[A, ...] = ()) -> Attribute[A]:
    """Declare an attribute with a default, which text leaves out."""
    return Attribute(kind, default, False, choices)


def optional(kind: Kind[A]) -> Attribute[A | None]:
    """Declare an attribute that may be none."""
    return Attribute(kind, None, False)


@dataclass(frozen=True)
class Spec:
    """The declarations of an op class, in the order in which they are written."""

    slots: tuple[_Slot, ...]
    results: tuple[Result, ...]
    attributes: Mapping[str, Attribute[Any]]
    result_index: Mapping[str, int]

    @property
    def signature(self) -> str:
        """What the op takes, for messages."""
        marks = ["?" if slot.optional else "+" if slot.variadic else "" for slot in self.slots]
        forms = [f"{slot.name}: {slot.form}{mark}" for slot, mark in zip(self.slots, marks, strict=True)]
        return ", ".join(forms) or "no operands"

    @property
    def legal_attributes(self) -> str:
        """The attributes that the op takes, for messages."""
        return ", ".join(f"{a.name} = {a.kind.name}" for a in self.attributes.values()) or "no attributes"


@dataclass
class Dims:
    """What the letters of an op's shapes stand for."""

    letters: dict[str, Dim] = field(default_factory=dict[str, Dim])
    leading: tuple[Dim, ...] | None = None

    def __getitem__(self, letter: str) -> Dim:
        return self.letters[letter]

    def size(self, letter: str) -> int:
        """Return the integer that ``letter`` stands for."""
        dim = self.letters[letter]
        assert isinstance(dim, int), (letter, dim)
        return dim

    def shape(self, pattern: str) -> tuple[Dim, ...]:
        """Return the shape that a result's pattern spells."""
        out: list[Dim] = []
        for word in pattern.split():
            if word == "...":
                out.extend(self.leading or ())
            else:
                out.append(int(word) if word.isdecimal() else self.letters[word])
        return tuple(out)

    def __str__(self) -> str:
        bound = [f"{letter} = {dim}" for letter, dim in self.letters.items()]
        if self.leading is not None:
            bound.insert(0, f"... = {', '.join(map(str, self.leading))}")
        return ", ".join(bound) or "nothing is fixed yet"


REGISTRY: dict[str, type[Op]] = {}


class Op:
    """An operation in a graph. Subclasses are declarations; see the module."""

    opname: ClassVar[str]
    spec: ClassVar[Spec]
    weight_time: ClassVar[bool] = False
    typed_attributes: ClassVar[tuple[str, ...]] = ()  # those that the stated type spells, so that text leaves them out
    reads_run_time: ClassVar[bool] = False  # a weight-time op that takes statistics of run-time values
    reads_memory: ClassVar[bool] = False
    is_state: ClassVar[bool] = False
    on_rows: ClassVar[bool] = False  # its operands run along the rows of a memory
    many_results: ClassVar[bool] = False  # as many as its attributes say
    on_last: ClassVar[bool] = False  # it may read a memory from the last tokens of a call alone

    def __init__(self, slots: Mapping[str, Sequence[Value]], attributes: Mapping[str, object]) -> None:
        if strange := slots.keys() - {s.name for s in self.spec.slots}:
            raise TypeError(
                f"{self.opname} has no operand {', '.join(sorted(strange))}; it takes {self.spec.signature}"
            )
        self.slots: dict[str, tuple[Value, ...]] = {s.name: tuple(slots.get(s.name, ())) for s in self.spec.slots}
        self.attributes: dict[str, object] = self._checked(attributes)
        self.results: tuple[Value, ...] = ()

    # -- structure

    @property
    def operands(self) -> Iterator[Value]:
        """All operands, in the order of declaration."""
        for values in self.slots.values():
            yield from values

    @property
    def scope(self) -> str:
        """The path that the op belongs to, such as ``layers.3.attn``."""
        return self.results[0].name.rpartition(".")[0]

    @property
    def place(self) -> str:
        """The scope, or for an op outside of scopes its first result, for messages."""
        return self.scope or f"%{self.results[0].name}"

    @property
    def label(self) -> str:
        """The op's name for messages."""
        return f"{self.opname} %{self.results[0].name}" if self.results else self.opname

    def __repr__(self) -> str:
        return f"<{self.label}>"

    def key(self) -> object:
        """What makes two ops compute the same: class, operands and attributes."""
        operands = tuple((name, values) for name, values in self.slots.items())
        return (type(self), operands, tuple(self.attributes.items()))

    def rebuilt(self, of: Callable[[Value], Value]) -> Self:
        """Return the same op over other values, without checking it again."""
        twin = object.__new__(type(self))
        twin.slots = {name: tuple(of(v) for v in values) for name, values in self.slots.items()}
        twin.attributes = dict(self.attributes)
        twin.results = ()
        return twin

    def _checked(self, given: Mapping[str, object]) -> dict[str, object]:
        declared = self.spec.attributes
        for name in given:
            if name not in declared:
                problem = f"unknown; {nearest(name, list(declared))}"
                raise AttributeRgError(op=self.opname, name=name, problem=problem, legal=self.spec.legal_attributes)
        checked: dict[str, object] = {}
        for name, declaration in declared.items():
            if name in given:
                checked[name] = declaration.coerce(self.opname, given[name])
            elif declaration.required:
                raise AttributeRgError(op=self.opname, name=name, problem="missing", legal=self.spec.legal_attributes)
            else:
                checked[name] = declaration.default
        return checked

    # -- types

    def types(self) -> tuple[Type, ...]:
        """Check the operands against the declaration and the op's own rule; return the results' types."""
        dims = self.bind()
        along = dims.letters.get("T", T)
        legal = (T, L) if self.on_last else (T,)
        if (self.is_state or self.reads_memory) and not self.on_rows and along not in legal:
            raise MemoryRowsError(op=self.label, found=along)
        self.verify(dims)
        return self.infer(dims)

    def bind(self) -> Dims:
        """Match each operand's type with its pattern and return what the letters stand for."""
        dims = Dims()
        for slot in self.spec.slots:
            for value in self._counted(slot):
                _match(self, slot, value.type, dims)
        return dims

    def _counted(self, slot: _Slot) -> tuple[Value, ...]:
        values = self.slots[slot.name]
        if (not values and not slot.optional) or (len(values) > 1 and not slot.variadic):
            wanted = "1 or more" if slot.variadic else "1 or none" if slot.optional else "1"
            raise OperandCountError(
                op=self.label, found=len(values), name=slot.name, expected=wanted, legal=self.spec.signature
            )
        return values

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        """Return the results' types; the default reads the declared patterns."""
        return tuple(self._result_type(each, dim) for each in self.spec.results)

    def _result_type(self, declared: Result, dim: Dims) -> Type:
        dtype = declared.dtype
        if dtype in self.slots:
            dtype = self.slots[dtype][0].tensor.dtype
        return TensorType(dtype, dim.shape(declared.pattern))

    @classmethod
    def attributes_of(cls, type: Type) -> dict[str, object]:
        """Return the ``typed_attributes`` that a stated result type gives."""
        return {}

    def verify(self, dim: Dims) -> None:
        """Check what the patterns cannot say; raise a GraphError."""

    # -- meaning

    def reference(self, run: Run, *inputs: Any, **options: Any) -> Any:
        """Compute the results in plain PyTorch: a value, or a tuple where there are several."""
        raise NotImplementedError(self.opname)

    # -- cost

    def cost(self, at: Sizes) -> Cost:
        """Return what one call does at ``at``, which gives ``B``, ``T`` and ``S``."""
        return Cost(flops=self.flops(at), weights=self.weight_bytes(at), activations=self.activation_bytes(at))

    def flops(self, at: Sizes) -> int:
        """Return the floating-point operations, two for a multiply-add; elementwise ops count none."""
        return 0

    def weight_bytes(self, at: Sizes) -> int:
        """Return the bytes of parameters that one call reads."""
        return sum(v.tensor.nbytes(at) for v in self.operands if v.is_weight)

    def activation_bytes(self, at: Sizes) -> int:
        """Return the bytes of run-time tensors that the op reads and writes when it stands alone."""
        values = [v for v in self.operands if not v.is_weight] + list(self.results)
        return sum(v.type.nbytes(at) for v in values if isinstance(v.type, TensorType))

    def idle_parameters(self) -> int:
        """Return how many of the op's parameters a token does not use (experts not chosen)."""
        return 0


AnyOp = TypeVar("AnyOp", bound=Op)


def op(name: str) -> Callable[[type[AnyOp]], type[AnyOp]]:
    """Register an op class under ``name``, which is ``family.verb``."""

    def declare(cls: type[AnyOp]) -> type[AnyOp]:
        members = [m for base in reversed(cls.__mro__) for m in vars(base).values()]
        results = tuple(m for m in members if isinstance(m, Result))
        cls.opname = name
        cls.spec = Spec(
            slots=tuple(m for m in members if isinstance(m, _Slot)),
            results=results,
            attributes={m.name: cast("Attribute[Any]", m) for m in members if isinstance(m, Attribute)},
            result_index={r.name: i for i, r in enumerate(results)},
        )
        if name in REGISTRY:
            raise TypeError(f"{name} is declared twice")
        if any(slot.is_memory for slot in cls.spec.slots) and not cls.reads_memory:
            raise TypeError(f"{name} takes a memory, so it must say that it reads one")
        REGISTRY[name] = cls
        return cls

    return declare


def op_class(name: str) -> type[Op]:
    """Return the class of the op called ``name``.

    Raises:
        UnknownOpError: There is none.
    """
    importlib.import_module("regraft.ir.ops")  # each module there registers its classes
    if name not in REGISTRY:
        raise UnknownOpError(name=name, near=nearest(name, list(REGISTRY)))
    return REGISTRY[name]


_INTS = ("i64", "i32", "i16", "i8", "u8")


def _dtype_fits(wanted: str, found: str) -> bool:
    match wanted:
        case "":
            return True
        case "float":
            return found in FLOATS
        case "int":
            return found in _INTS
        case _:
            return found == wanted


def _match(op: Op, slot: _Slot, found: Type, dims: Dims) -> None:
    if slot.is_memory:
        if not isinstance(found, MemoryType) or not _match_memory(slot.pattern, found, dims):
            raise OperandTypeError(op=op.label, name=slot.name, found=found, expected=slot.form, bound=dims)
        return
    wanted = slot.dtype
    if wanted in op.slots and isinstance(like := op.slots[wanted][0].type, TensorType):
        wanted = like.dtype
    if not isinstance(found, TensorType) or not _dtype_fits(wanted, found.dtype):
        raise _misfit(op, slot, wanted, found, dims, dims.leading)
    words, shape, leading = slot.words, found.shape, dims.leading
    if words == ("*",):
        return
    if words and words[0] == "...":
        words = words[1:]
        cut = len(shape) - len(words)
        if cut >= 0:
            if dims.leading is None:
                dims.leading = shape[:cut]
            elif dims.leading != shape[:cut]:
                raise _misfit(op, slot, wanted, found, dims, leading)
            shape = shape[cut:]
    if len(words) != len(shape) or not all(map(_match_letter, words, shape, [dims] * len(words))):
        raise _misfit(op, slot, wanted, found, dims, leading)


def _misfit(
    op: Op, slot: _Slot, dtype: str, found: Type, dims: Dims, leading: tuple[Dim, ...] | None
) -> OperandTypeError | MemoryRuleError:
    """Return the error for an operand that does not fit what the ones before it have fixed."""
    if isinstance(found, TensorType):
        fixed = [dims.letters.get("T"), TensorType(found.dtype, leading or ()).sequence]
        for first in fixed:
            if first is not None and found.sequence is not None and first != found.sequence:
                return MemoryRuleError(op=op.label, first=first, second=found.sequence)
    before = ["..."] if leading is None else list(map(str, leading))
    words = [*before, *slot.words[1:]] if slot.words[:1] == ("...",) else slot.words
    expected = f"{dtype or 'any'}[{', '.join(words)}]"
    if slot.dtype in op.slots:
        expected += f", the dtype of {slot.dtype}"
    return OperandTypeError(op=op.label, name=slot.name, found=found, expected=expected, bound=dims)


def _match_letter(word: str, dim: Dim, dims: Dims) -> bool:
    """Bind a letter. ``B`` is the batch, ``T`` any sequence axis; all other axes are channels, known beforehand."""
    if word == "T":
        fits = isinstance(dim, Sym) and dim.is_sequence
    elif word == "B":
        fits = not (isinstance(dim, Sym) and dim.is_sequence)
    else:
        fits = isinstance(dim, int)
    if word.isdecimal():
        return dim == int(word)
    return fits and dims.letters.setdefault(word, dim) == dim


def _match_memory(pattern: str, found: MemoryType, dims: Dims) -> bool:
    if pattern == "*":
        return True
    names = [f.name for f in found.fields]
    wanted = [each.replace("?", "").split() for each in pattern.split(",") if "?" not in each or len(names) > 1]
    if [w[0] for w in wanted] != names:
        return False
    return all(
        len(words) - 1 == len(f.shape) and all(map(_match_letter, words[1:], f.shape, [dims] * len(f.shape)))
        for words, f in zip(wanted, found.fields, strict=True)
    )
