"""What a pass is: options declared as data, a decision, a rewrite, and what it preserves.

    @dataclass(frozen=True)
    class ShareKV(Pass):
        name: ClassVar[str] = "share-kv"
        refit: bool = option(BOOL, True, "fit the output projection to the original's residual stream")

A pass has three steps. `Pass.decide` turns options into an explicit list for each layer; it may measure. `Pass.rewrite`
changes structure and weight expressions and needs no data. Folding is the same for all (`passes.fitting.fold`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

from regraft.ir.errors.base import nearest
from regraft.ir.errors.recipe import ChoiceError, OptionIdleError, OptionRangeError, OptionTypeError, RecipeError
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Linear
from regraft.ir.ops.fits import Statistic
from regraft.passes.located import Node, Place, Plain

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

Preserves = Literal["exact", "refit", "structural"]


class Measurements(Protocol):
    """What a decision may ask of a model whose weights and calibration text are at hand."""

    def projections(self, graph: Graph, linears: Sequence[Linear]) -> Iterator[tuple[Linear, Tensor, Tensor]]:
        """Yield each linear op of ``graph`` with statistics of what it reads, and with its weight.

        The statistic is ``E[z zᵀ]``, float64 ``[I, I]``, over the calibration text's tokens; the weight ``[O, I]`` is
        evaluated, and fitted where an earlier pass says so. Ops come in the order given; where that is by depth, one
        statistic is in memory at a time.
        """
        ...

    def statistics(self, graph: Graph, wanted: Sequence[Statistic]) -> Iterator[Tensor]:
        """Yield each of some statistics over edges of ``graph``, in the order given; the ops are in no graph yet."""
        ...

    def damage(self, graph: Graph, edits: Sequence[Callable[[Graph], object]]) -> list[float]:
        """Return KL(original ‖ edited), in nats a token, of each edit of a copy of ``graph`` alone, refits included."""
        ...

    def gate_gradients(self, graph: Graph, attends: Sequence[Attend]) -> list[Tensor]:
        """Return ``E|dL/dξ|``, float64 ``[Hq]``, of a gate on each head of some attentions; ``L`` is the loss."""
        ...

    def result_gradients(self, graph: Graph, linears: Sequence[Linear]) -> list[Tensor]:
        """Return ``E[g gᵀ]``, float64 ``[O, O]``, of the loss's gradient by the result of some linear ops."""
        ...

    def weight(self, graph: Graph, value: Value) -> Tensor:
        """Return a weight-time value of ``graph``, evaluated; one that an earlier pass fits is fitted for it."""
        ...

    def weights(self, graph: Graph, values: Sequence[Value]) -> Iterator[tuple[Value, Tensor]]:
        """Yield weight-time values of ``graph``, statistics among them, as one sweep gives them."""
        ...


@dataclass(frozen=True, slots=True)
class Constraints:
    """What every pass of a recipe must respect.

    ``tensor_parallel``: numbers of devices over which query and key/value heads must split evenly.
    """

    tensor_parallel: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """What a pass did, or why it did not, at one place."""

    where: str
    applied: bool
    text: str
    layer: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass did, layer by layer."""

    notes: tuple[Note, ...]

    @property
    def applied(self) -> tuple[Note, ...]:
        """The places where the pass changed something."""
        return tuple(note for note in self.notes if note.applied)

    @property
    def refused(self) -> tuple[Note, ...]:
        """The places where it did not, and why."""
        return tuple(note for note in self.notes if not note.applied)


# -- options


def _itself(value: Any) -> Plain:
    return value


@dataclass(frozen=True)
class OptionKind(Generic[T]):
    """A type of option: how it is read from a recipe, and spelled in one.

    ``read`` takes the node, the owner and the option's name, for messages, and raises a RecipeError without a place.
    """

    name: str
    read: Callable[[Node, str, str], T]
    spell: Callable[[T], Plain] = _itself


@dataclass(frozen=True, slots=True)
class Option:
    """A pass's option, as `regraft passes NAME` shows it."""

    name: str
    kind: OptionKind[Any]
    default: object
    doc: str
    required: bool
    needs: str = ""

    @property
    def text(self) -> str:
        """What it does, and what it needs."""
        return f"{self.doc}; only with {self.needs}" if self.needs else self.doc

    @property
    def default_text(self) -> str:
        """The default as a recipe spells it."""
        from regraft.passes.located import spell

        return "required" if self.required else spell(self.kind.spell(self.default))


def option(kind: OptionKind[T], default: T, doc: str, *, needs: str = "") -> T:
    """Declare an option of a pass.

    Args:
        kind: How it is read and spelled.
        default: Its value where a recipe gives none.
        doc: What it does.
        needs: What it does nothing without: another option, as ``chosen``, or one of its values, as ``refit: true``. A
            recipe that sets it without is refused.
    """
    return field(default=default, metadata={"kind": kind, "doc": doc, "needs": needs})


def optional_option(kind: OptionKind[T], doc: str, *, required: bool = False, needs: str = "") -> T | None:
    """Declare an option that is None until a recipe or a decision gives it."""
    nullable = OptionKind(kind.name, kind.read, lambda value: None if value is None else kind.spell(value))
    return field(default=None, metadata={"kind": nullable, "doc": doc, "required": required, "needs": needs})


def type_error(node: Node, owner: str, name: str, expected: str) -> OptionTypeError:
    """Return the error that says what stands at ``node`` and what should."""
    found = "nothing" if node.is_scalar and node.scalar is None else str(node)
    return OptionTypeError(owner=owner, name=name, found=found, expected=expected, where=str(node.place))


def _read_bool(node: Node, owner: str, name: str) -> bool:
    if not isinstance(node.scalar, bool):
        raise type_error(node, owner, name, "true or false")
    return node.scalar


def _read_text(node: Node, owner: str, name: str) -> str:
    if not isinstance(node.scalar, str) or not node.scalar:
        raise type_error(node, owner, name, "a string")
    return node.scalar


def read_integer(node: Node, owner: str, name: str, least: int, most: int) -> int:
    """Return the integer at ``node``, checked to lie from ``least`` to ``most``."""
    value = node.scalar
    if isinstance(value, bool) or not isinstance(value, int):
        raise type_error(node, owner, name, "an integer")
    if not least <= value <= most:
        legal = f"from {least} to {most}"
        raise OptionRangeError(owner=owner, name=name, found=value, legal=legal, where=str(node.place))
    return value


def read_key(node: Node, owner: str, name: str, most: int) -> int:
    """Return the integer that a map's key spells, from 0 to ``most``; JSON has only strings there."""
    word = node.scalar
    if isinstance(word, str) and word.isdecimal() and len(word) < 10:
        node = Node(node.place, int(word))
    return read_integer(node, owner, name, 0, most)


def integer(least: int, most: int) -> OptionKind[int]:
    """Return the kind of integers from ``least`` to ``most``."""
    return OptionKind(f"an integer from {least} to {most}", lambda n, o, k: read_integer(n, o, k, least, most))


def number(least: float, most: float) -> OptionKind[float]:
    """Return the kind of finite numbers from ``least`` to ``most``."""

    def read(node: Node, owner: str, name: str) -> float:
        value = node.scalar
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise type_error(node, owner, name, "a number")
        if not least <= value <= most:
            legal = f"from {least:g} to {most:g}"
            raise OptionRangeError(owner=owner, name=name, found=value, legal=legal, where=str(node.place))
        return float(value)

    return OptionKind(f"a number from {least:g} to {most:g}", read)


def choice(*choices: str) -> OptionKind[str]:
    """Return the kind of one of several words."""

    def read(node: Node, owner: str, name: str) -> str:
        legal = ", ".join(choices)
        if not isinstance(node.scalar, str):
            raise type_error(node, owner, name, f"one of {legal}")
        if node.scalar not in choices:
            near = nearest(node.scalar, choices)
            raise ChoiceError(owner=owner, name=name, found=node, near=near, legal=legal, where=str(node.place))
        return node.scalar

    return OptionKind(f"one of {', '.join(choices)}", read)


BOOL = OptionKind("true or false", _read_bool)
TEXT = OptionKind("a string", _read_text)


# -- passes


@dataclass(frozen=True)
class Pass:
    """A rewrite of graph and weights. Subclasses are frozen dataclasses whose fields are options.

    Args:
        places: Where the recipe gives each option; ``""`` is the pass itself.
    """

    name: ClassVar[str]
    preserves: ClassVar[Preserves]
    source: ClassVar[str] = ""

    places: Mapping[str, Place] = field(default_factory=dict[str, Place], compare=False, repr=False, kw_only=True)

    @classmethod
    def declared(cls) -> tuple[Option, ...]:
        """Return the options, in the order in which recipes print them."""
        return tuple(
            Option(
                f.name,
                f.metadata["kind"],
                f.default,
                f.metadata["doc"],
                f.metadata.get("required", False),
                f.metadata.get("needs", ""),
            )
            for f in fields(cls)
            if "kind" in f.metadata
        )

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    @property
    def claim(self) -> Preserves:
        """What the pass preserves with these options."""
        return self.preserves

    @property
    def needs_data(self) -> bool:
        """Whether `decide` still has to measure."""
        return False

    @property
    def open_choice(self) -> tuple[str, str]:
        """What an open choice goes by, and the option that would spell it out."""
        return "measurement", "options"

    @property
    def needs_text(self) -> str:
        """What calibration text is needed for, to decide or to fit; empty where it is not."""
        return ""

    @property
    def shortest_context(self) -> int:
        """How long the windows of calibration text have to be, in tokens, to show what the pass changes."""
        return 0

    def check_needs(self) -> None:
        """Refuse options that would change nothing, since what they need is not given.

        Raises:
            OptionIdleError: With the first of them, and what it needs.
        """
        from regraft.passes.located import spell

        declared = {each.name: each for each in self.declared()}
        for each in declared.values():
            value = getattr(self, each.name)
            other, _, wanted = each.needs.partition(": ")
            if not other or value == each.default:
                continue
            found = getattr(self, other)
            if found is None if not wanted else spell(declared[other].kind.spell(found)) != wanted:
                text, where = spell(each.kind.spell(value)), self.place(each.name)
                raise OptionIdleError(owner=self.name, name=each.name, found=text, needs=each.needs, where=where)

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> Self:
        """Return the pass with a choice for each layer spelled out.

        Without ``measurements``, choices that need them stay open and `needs_data` stays true.

        Raises:
            IllegalPassError: The model does not allow what the options ask for.
        """
        return self

    def assume(self, graph: Graph) -> Self:
        """Return a pass whose open choices are filled so that predictions of size and speed can be made."""
        return self

    def rewrite(self, graph: Graph) -> Report:
        """Change ``graph`` as decided, and say what was done in each layer. No weight is read."""
        raise NotImplementedError(self.name)

    # -- printing

    def options(self, *, expanded: bool = False) -> dict[str, Plain]:
        """Return the options as a recipe holds them: those that differ from their defaults, or all with a value."""
        found: dict[str, Plain] = {}
        for each in self.declared():
            value = getattr(self, each.name)
            if value != each.default or (expanded and value is not None):
                found[each.name] = each.kind.spell(value)
        return found

    def __str__(self) -> str:
        from regraft.passes.located import spell

        inner = ", ".join(f"{key}={spell(value)}" for key, value in self.options().items())
        return f"{self.name}{{{inner}}}" if inner else self.name

    def place(self, option: str = "") -> str:
        """Return where the recipe gives ``option``, else where it names the pass, for errors."""
        place = self.places.get(option) or self.places.get("")
        return str(place) if place else ""


def read_options(cls: type[Pass], node: Node, named: Place) -> Pass:
    """Return a pass from the options at ``node``.

    Raises:
        RecipeError: An option is unknown, missing, or has a wrong type or range; with its place.
    """
    from regraft.ir.errors.recipe import MissingKeyError, UnknownKeyError

    if node.is_scalar and node.scalar is None:
        node = Node(node.place, entries=())
    if node.entries is None:
        raise type_error(node, cls.name, "what follows", "a map of options such as {refit: true}")
    declared = {each.name: each for each in cls.declared()}
    values: dict[str, Any] = {}
    places = {"": named}
    for key, value in node.entries:
        each = declared.get(str(key.scalar))
        if each is None:
            near, legal = nearest(str(key.scalar), list(declared)), ", ".join(declared) or "none"
            raise UnknownKeyError(owner=cls.name, name=key, near=near, legal=legal, where=str(key.place))
        places[each.name] = value.place
        if value.is_scalar and value.scalar is None and each.default is None and not each.required:
            continue
        try:
            values[each.name] = each.kind.read(value, cls.name, each.name)
        except RecipeError as error:
            error.where = error.where or str(value.place)
            raise
    for each in declared.values():
        if each.required and each.name not in values:
            fix = f"add {each.name}: {each.kind.name}"
            raise MissingKeyError(owner=cls.name, name=each.name, fix=fix, where=str(named))
    return cls(**values, places=places)
