"""What a picture of a model shows, before anybody says where: sections, layers, memories and their readers.

A section is a block kind, or the operations that stand before, between or after the layers. All that draws, as HTML,
SVG, DOT, Mermaid or for Model Explorer, starts from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regraft.ir.op import Cost

CONTEXT = 4096  # tokens at which the cost of an operation is given

Form = Literal["kv", "window", "latent", "index", "compressed", "tail", "recurrent"]
Role = Literal["tokens", "positions", "stream", "memory", "carried"]


@dataclass(frozen=True)
class Memory:
    """A memory, drawn as what it is.

    ``form``: keys and values of all tokens; a window of rows; a latent row a token; keys of an index; a row for several
    tokens; the last rows before a convolution; a recurrent matrix. ``window``, ``first``, ``fixed`` and ``rate`` are as
    in `ir.types.MemoryType`.
    """

    name: str
    form: Form
    fields: str
    row_bytes: int
    window: int | None
    first: int
    fixed: int | None
    rate: int | None

    @property
    def kept(self) -> str:
        """Which rows are kept, in words."""
        if self.fixed is not None:
            return f"{self.fixed} row{'s' if self.fixed > 1 else ''} at any length"
        if self.rate is not None:
            return f"a row for {self.rate:,} tokens"
        if self.window is None:
            return "a row a token"
        return f"last {self.window:,} rows" + (f" and first {self.first:,}" if self.first else "")


@dataclass(frozen=True)
class Weight:
    """A parameter that an operation reads; ``made`` names the operations that compute it, none where it is loaded."""

    slot: str
    name: str
    type: str
    elements: int
    bytes: int
    made: tuple[str, ...]


@dataclass(frozen=True)
class Operand:
    """A run-time value that an operation reads; ``source`` is the id of the node or the port that gives it."""

    slot: str
    source: str
    name: str
    type: str


@dataclass(frozen=True)
class Node:
    """An operation. ``id`` is the name of its first result, as the section has it; ``group`` the part that it is of.

    ``cost`` is that of decoding one token of one sequence at `CONTEXT` tokens. ``stream`` says that its result is the
    residual stream. ``times`` operations that differ in an attribute alone stand as one, their numbers as ``*``.
    """

    id: str
    opname: str
    group: str
    results: tuple[tuple[str, str], ...]
    operands: tuple[Operand, ...]
    weights: tuple[Weight, ...]
    attributes: tuple[tuple[str, str], ...]
    cost: Cost
    memory: Memory | None
    stream: bool
    times: int = 1


@dataclass(frozen=True)
class Port:
    """A value that a section takes from outside or gives away. ``origins`` name it in the model, first layers first.

    ``id`` begins with ``in:`` or ``out:``; ``source`` is the id of the node that gives it away, none for what is taken.
    """

    id: str
    name: str
    type: str
    role: Role
    memory: Memory | None
    origins: tuple[str, ...]
    source: str = ""


@dataclass(frozen=True)
class Branch:
    """What is computed beside the residual stream: its nodes' ids, and where it leaves the stream and comes back.

    ``enters`` is the id of the stream's node whose result it reads, empty for what the section takes; ``leaves`` that
    of the node that reads its result, empty where none does.
    """

    title: str
    lines: tuple[str, ...]
    nodes: tuple[str, ...]
    enters: str
    leaves: str


@dataclass(frozen=True)
class Section:
    """Operations that are drawn once: a block kind, or what stands outside of layers (``layers`` is then empty).

    ``key`` is a short name for pictures: a letter for a kind. ``parameters`` counts those of one layer.
    """

    key: str
    name: str
    words: str
    layers: tuple[int, ...]
    inputs: tuple[Port, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Port, ...]
    branches: tuple[Branch, ...]
    parameters: int

    @property
    def memories(self) -> tuple[Memory, ...]:
        """The memories that one layer of this kind owns."""
        return tuple(node.memory for node in self.nodes if node.memory is not None)


@dataclass(frozen=True)
class Link:
    """A memory that layers read which do not own it. ``owner`` is None where no layer owns it."""

    memory: Memory
    owner: int | None
    readers: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """A model as pictures show it: its sections in order of first use, and the index of each layer's section."""

    name: str
    family: str
    sections: tuple[Section, ...]
    layers: tuple[tuple[int, int], ...]
    links: tuple[Link, ...]

    @property
    def kinds(self) -> tuple[Section, ...]:
        """The block kinds."""
        return tuple(section for section in self.sections if section.layers)

    @property
    def letters(self) -> tuple[str, ...]:
        """The key of each layer's kind, in order of layers."""
        return tuple(self.sections[index].key for _, index in self.layers)
