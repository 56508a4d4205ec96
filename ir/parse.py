"""The text form of a graph (``.rg``): parsing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from regraft.ir.attributes import LARGEST, shown, spell
from regraft.ir.dims import Dim, parse_dim
from regraft.ir.errors.base import RegraftError, nearest
from regraft.ir.errors.graph import DuplicateValueError, GraphError, ResultTypeError, SyntaxRgError, UnknownValueError
from regraft.ir.graph import Graph
from regraft.ir.kinds import absolute, absolute_attribute, absolute_type
from regraft.ir.op import Op, Value, op_class
from regraft.ir.types import ITEM_BITS, Field, MemoryType, TensorType, Type

_TOKENS = r"""(?P<value>%-1\.[\w.*\-]+|%[\w.*\-]+)
      | (?P<symbol>@[\w.\-]+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>-?[0-9]+(?:\.(?!\.)[0-9]*)?(?:[eE][+-]?[0-9]+)?)
      | (?P<word>[A-Za-z_][\w.]*)"""
_TOKEN = re.compile(
    rf"(?P<space>[ \t\r\n]+|//[^\n]*) | {_TOKENS} | (?P<mark>\.\.|[(){{}}\[\]<>=:,;])", re.VERBOSE | re.ASCII
)
_TOKEN_IN_BRACKETS = re.compile(  # there // divides
    rf"(?P<space>[ \t\r\n]+) | {_TOKENS} | (?P<mark>//|[()\[\],*+\-])", re.VERBOSE | re.ASCII
)
_WANTED = {"symbol": "a name such as @model", "value": "a value such as %x", "end": "the end of the text"}
_KEPT = {  # what a memory may say of its rows, and what it takes
    "window": "a window of at least one row",
    "fixed": "rows, at least one",
    "every": "tokens, at least one",
}
_DEEPEST = 16  # brackets in brackets
_MOST_LAYERS = 100_000
_MOST_OPS = 1_000_000


@dataclass(frozen=True)
class Token:
    """A piece of text and where it starts."""

    kind: str
    text: str
    start: int


@dataclass
class _Line:
    """An op before its names are known: a block's line is made once for each layer that it serves."""

    token: Token
    results: list[str]
    opname: str
    operands: list[tuple[str, Token]]
    attributes: dict[str, object]
    types: list[Type]


@dataclass
class _Block:
    """A block kind: its lines, the types of its inputs by name, and whether some layer uses it."""

    token: Token
    params: dict[str, Type] = field(default_factory=dict[str, Type])
    lines: list[_Line] = field(default_factory=list["_Line"])
    used: bool = False


def parse_graph(text: str, file: str = "graph.rg") -> Graph:
    """Return the graph that ``text`` spells, verified.

    Args:
        text: One graph.
        file: The name to report errors under.

    Raises:
        GraphError: The text does not parse, or the graph breaks a rule; with file, line and column.
    """
    return _Parser(text, file).graph()


def parse_lines(graph: Graph, lines: Sequence[str]) -> None:
    """Add the ops that ``lines`` spell, one each, to a graph that has what they read.

    Raises:
        GraphError: A line does not parse, or its op breaks a rule; with line and column.
    """
    parser = _Parser("\n".join(lines), "body")
    while parser.next.kind != "end":
        parser.make(graph, parser.line(), None, lambda token: parser.value(graph, token))


class _Parser:
    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.tokens = list(self._scan())
        self.at = 0
        self.blocks: dict[str, _Block] = {}

    # -- tokens

    def _scan(self) -> Iterator[Token]:
        place = depth = 0
        while place < len(self.text):
            found = (_TOKEN_IN_BRACKETS if depth else _TOKEN).match(self.text, place)
            kind = found.lastgroup if found else "unknown"  # refused where it stands, as every unexpected token is
            piece = found[0] if found else self.text[place]
            if kind != "space":
                depth += {"[": 1, "]": -1}.get(piece, 0)
                yield Token(str(kind), piece, place)
            place += len(piece)
        yield Token("end", "the end of the text", len(self.text))

    def placed(self, error: RegraftError, token: Token) -> RegraftError:
        """Return ``error`` with the line and column of ``token``, and the line itself with a marker under it."""
        line = self.text.count("\n", 0, token.start) + 1
        begin = self.text.rfind("\n", 0, token.start) + 1
        column = token.start - begin
        scope = f"   {error.where}" if error.where else ""
        error.where = f"{self.file}:{line}:{column + 1}{scope}"
        cut = max(0, column - 60)  # of a long line, what is around the place
        shown_line = self.text[begin + cut : begin + cut + 140].partition("\n")[0]
        source = "".join(c if c.isprintable() else " " for c in shown_line)
        width = len(token.text) if token.kind != "end" else 1
        marker = " " * (column - cut) + "^" * max(1, min(width, len(source) - (column - cut)))
        error.excerpt = (f"{line} | {source}", f"{' ' * len(str(line))} | {marker}")
        return error

    def wrong(self, expected: str, found: str, token: Token) -> RegraftError:
        """Return a syntax error at ``token``."""
        return self.placed(SyntaxRgError(expected=expected, found=found), token)

    @contextmanager
    def at_place(self, token: Token) -> Generator[None]:
        """Report what fails within at ``token``."""
        try:
            yield
        except GraphError as error:
            raise error if error.excerpt else self.placed(error, token) from None

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self, kind: str, text: str = "") -> Token:
        token = self.next
        if token.kind != kind or (text and token.text != text):
            raise self.wrong(repr(text) if text else _WANTED.get(kind, f"a {kind}"), shown(token.text), token)
        self.at += 1
        return token

    def accept(self, text: str) -> bool:
        if self.next.text == text and self.next.kind in ("mark", "word"):
            self.at += 1
            return True
        return False

    def separated(self, item: Callable[[], None], close: str) -> None:
        """Read items with commas between them, up to ``close``."""
        if self.accept(close):
            return
        item()
        while self.accept(","):
            item()
        self.take("mark", close)

    # -- graph

    def graph(self) -> Graph:
        self.take("word", "graph")
        name = self.take("symbol").text[1:]
        meta = self.braced() if self.next.text == "{" else {}
        graph = Graph(name, meta)
        self.take("mark", "(")

        def declare() -> None:
            for token, type in self.declared():
                with self.at_place(token):
                    graph.add_input(token.text[1:], type)

        self.separated(declare, ")")
        self.take("mark", "{")
        self.body(graph)
        end = self.take("mark", "}")
        self.take("end")
        for block in self.blocks.values():
            if not block.used:
                raise self.wrong(f"a layer that is {block.token.text}", "none", block.token)
        with self.at_place(end):
            graph.verify()
        return graph

    def declared(self) -> list[tuple[Token, Type]]:
        """Read names and the type that they share: ``%q, %k: bf16[B, T, 8, 16]``."""
        tokens = [self.take("value")]
        while self.accept(","):
            tokens.append(self.take("value"))
        self.take("mark", ":")
        type = self.type()
        return [(token, type) for token in tokens]

    def body(self, graph: Graph) -> None:
        while True:
            if self.accept("block"):
                self.block()
            elif self.next.text == "layers" and self.next.kind == "word":
                self.layers(graph)
            elif self.accept("return"):
                outputs: list[Value] = []
                if self.next.kind == "value":
                    outputs.append(self.value(graph, self.take("value")))
                while outputs and self.accept(","):
                    outputs.append(self.value(graph, self.take("value")))
                graph.set_outputs(outputs)
                return
            else:
                self.make(graph, self.line(), None, lambda t: self.value(graph, t))

    def block(self) -> None:
        name = self.take("symbol")
        if name.text in self.blocks:
            raise self.placed(DuplicateValueError(name=name.text), name)
        block = self.blocks[name.text] = _Block(name)
        self.take("mark", "(")

        def declare() -> None:
            for token, type in self.declared():
                if token.text[1:] in block.params:
                    raise self.placed(DuplicateValueError(name=token.text[1:]), token)
                block.params[token.text[1:]] = type

        self.separated(declare, ")")
        self.take("mark", "{")
        while not self.accept("}"):
            block.lines.append(line := self.line())
            for result in line.results:
                if result in block.params:
                    raise self.placed(DuplicateValueError(name=result), line.token)

    def layers(self, graph: Graph) -> None:
        """Read a run of ``layers`` lines, and make the layers in order."""
        calls: dict[int, tuple[_Block, list[Token]]] = {}
        while self.next.text == "layers" and self.accept("layers"):
            start = self.next
            numbers = self.numbers()
            self.take("mark", "=")
            symbol = self.take("symbol")
            block = self.blocks.get(symbol.text)
            if block is None:
                raise self.wrong(f"a block ({nearest(symbol.text, list(self.blocks))})", symbol.text, symbol)
            block.used = True
            arguments: list[Token] = []
            self.take("mark", "(")
            self.separated(lambda arguments=arguments: arguments.append(self.take("value")), ")")
            if len(arguments) != len(block.params):
                raise self.wrong(f"{len(block.params)} arguments", str(len(arguments)), symbol)
            for number in numbers:
                if number in calls:
                    raise self.wrong("each layer once", f"layer {number} again", start)
                calls[number] = (block, arguments)
            if len(calls) * len(block.lines) > _MOST_OPS:
                raise self.wrong(f"at most {_MOST_OPS} ops", "more", symbol)
        for number, (block, arguments) in sorted(calls.items()):
            self.layer(graph, number, block, arguments)

    def layer(self, graph: Graph, number: int, block: _Block, arguments: list[Token]) -> None:
        values: dict[str, Value] = {}
        for (param, stated), token in zip(block.params.items(), arguments, strict=True):
            name = token.text[1:]
            before = f"layers.{number - 1}.{name.removeprefix('-1.')}" if name.startswith("-1.") else name
            value = values[param] = self.value(graph, token, before)
            if value.type != absolute_type(stated, number):
                expected = f"a value of type {stated} for %{param} of {block.token.text}"
                raise self.wrong(expected, f"%{value.name} of type {value.type}", token)

        def find(token: Token) -> Value:
            local = token.text[1:]
            return values[local] if local in values else self.value(graph, token, absolute(local, number))

        for line in block.lines:
            self.make(graph, line, number, find)

    def numbers(self) -> list[int]:
        found: list[int] = []
        while True:
            start = self.next
            first = self.integer()
            last = self.integer() if self.accept("..") else first
            if last < first or last >= _MOST_LAYERS or len(found) > _MOST_LAYERS:
                raise self.wrong(f"an ascending range below {_MOST_LAYERS}", f"{first}..{last}", start)
            found.extend(range(first, last + 1))
            if not self.accept(","):
                return found

    def integer(self) -> int:
        token = self.take("number")
        if not token.text.isdecimal() or len(token.text) > 19 or int(token.text) > LARGEST:
            raise self.wrong("a count of 64 bits", shown(token.text), token)
        return int(token.text)

    # -- ops

    def value(self, graph: Graph, token: Token, name: str = "") -> Value:
        name = name or token.text[1:]
        if name not in graph:
            raise self.placed(UnknownValueError(name=name, near=nearest(name, list(graph.values))), token)
        return graph[name]

    def line(self) -> _Line:
        results = [self.take("value").text[1:]]
        while self.accept(","):
            results.append(self.take("value").text[1:])
        self.take("mark", "=")
        token = self.take("word")
        operands: list[tuple[str, Token]] = []
        while self.next.kind in ("value", "word"):
            slot = ""
            if self.next.kind == "word":
                slot = self.take("word").text
                self.take("mark", "=")
            operands.append((slot, self.take("value")))
            if not self.accept(","):
                break
        attributes = self.braced() if self.next.text == "{" else {}
        types: list[Type] = []
        if self.accept(":"):
            types.append(self.type())
            while self.accept(","):
                types.append(self.type())
        return _Line(token, results, token.text, operands, attributes, types)

    def make(self, graph: Graph, line: _Line, layer: int | None, find: Callable[[Token], Value]) -> None:
        """Add the op of a line, within a layer's block if ``layer`` is its number."""
        names, attributes, types = line.results, line.attributes, line.types
        if layer is not None:
            types = [absolute_type(type, layer) for type in types]
            names = [absolute(name, layer) for name in names]
            attributes = {key: absolute_attribute(value, layer) for key, value in attributes.items()}
        with self.at_place(line.token):
            cls = op_class(line.opname)
            slots = self.slots(cls, line, find)
            typed = cls.attributes_of(line.types[0]) if line.types else {}
            for key in sorted(typed.keys() & attributes.keys()):
                if typed[key] != attributes[key]:
                    expected = f"{key} = {spell(typed[key])}, as the type says"
                    raise self.wrong(expected, spell(attributes[key]), line.token)
            results = graph.add(cls(slots, attributes | typed), names)
            if types and len(types) != len(results):
                raise self.wrong(f"{len(results)} types", str(len(types)), line.token)
            for stated, value in zip(types, results, strict=False):
                if stated != value.type:
                    raise ResultTypeError(op=line.opname, stated=stated, inferred=value.type, where=value.name)

    def slots(self, cls: type[Op], line: _Line, find: Callable[[Token], Value]) -> dict[str, list[Value]]:
        """Deal the operands to the declared slots: named ones by name, the others in order."""
        slots: dict[str, list[Value]] = {slot.name: [] for slot in cls.spec.slots}
        order = [slot for slot in cls.spec.slots if not slot.optional]
        for name, token in line.operands:
            if name:
                if name not in slots:
                    expected = f"an operand of {cls.opname} ({cls.spec.signature})"
                    raise self.wrong(expected, f"{name}=", token)
                slots[name].append(find(token))
                continue
            if not order:
                expected = f"the operands of {cls.opname} ({cls.spec.signature})"
                raise self.wrong(expected, token.text, token)
            slots[order[0].name].append(find(token))
            if not order[0].variadic:
                order.pop(0)
        if not cls.many_results and len(line.results) != len(cls.spec.results):
            expected = f"{len(cls.spec.results)} results of {cls.opname}"
            raise self.wrong(expected, str(len(line.results)), line.token)
        return slots

    # -- attributes and types

    def braced(self) -> dict[str, object]:
        attributes: dict[str, object] = {}
        self.take("mark", "{")

        def one() -> None:
            key = self.take("word")
            self.take("mark", "=")
            if key.text in attributes:
                raise self.wrong("each attribute once", f"{key.text} again", key)
            attributes[key.text] = self.literal()

        self.separated(one, "}")
        return attributes

    def literal(self, depth: int = 0) -> object:
        token = self.next
        self.at += 1
        match token.kind, token.text:
            case "string", text:
                try:
                    return str(json.loads(text))
                except ValueError:
                    raise self.wrong("a JSON string", shown(text), token) from None
            case "number", text:
                return self.number(text, token)
            case "word", ("true" | "false") as text:
                return text == "true"
            case "word", "none":
                return None
            case "mark", "[" if depth < _DEEPEST:
                items: list[object] = []
                self.separated(lambda: items.append(self.literal(depth + 1)), "]")
                return tuple(items)
            case _:
                raise self.wrong("a number, string, list, true, false or none", shown(token.text), token)

    def number(self, text: str, token: Token) -> int | float:
        if re.fullmatch(r"-?[0-9]+", text):
            if len(text) < 30 and abs(int(text)) <= LARGEST:
                return int(text)
        elif math.isfinite(float(text)):
            return float(text)
        raise self.wrong("a number of 64 bits", shown(text), token)

    def type(self) -> Type:
        word = self.take("word")
        if word.text == "memory":
            return self.memory_type()
        if word.text not in ITEM_BITS:
            raise self.wrong("a dtype", shown(word.text), word)
        return TensorType(word.text, self.shape())

    def shape(self) -> tuple[Dim, ...]:
        self.take("mark", "[")
        dims: list[Dim] = []

        def one() -> None:
            first = self.next
            while not (self.next.kind == "mark" and self.next.text in ",]") and self.next.kind != "end":
                self.at += 1
            with self.at_place(first):
                dims.append(parse_dim(self.text[first.start : self.next.start].strip()))

        self.separated(one, "]")
        return tuple(dims)

    def memory_type(self) -> MemoryType:
        self.take("mark", "<")
        dtype = self.take("word")
        if dtype.text not in ITEM_BITS:
            raise self.wrong("a dtype", shown(dtype.text), dtype)
        self.take("mark", ";")
        fields: list[Field] = []
        while True:
            name = self.take("word")
            shape = self.shape()
            if not all(isinstance(dim, int) for dim in shape):
                raise self.wrong("integers", f"[{', '.join(map(str, shape))}]", name)
            if any(name.text == field.name for field in fields):
                raise self.wrong("each field once", f"{name.text} again", name)
            fields.append(Field(name.text, TensorType(dtype.text, shape).sizes))
            if not self.accept(","):
                break
        kept: dict[str, int] = {}
        if self.accept(";"):
            place = self.next
            if place.text not in _KEPT:
                self.take("word", "window")
            self.at += 1
            kept[place.text] = self.integer()
            if place.text == "window" and self.accept(","):
                self.take("word", "first")
                kept["first"] = self.integer()
            if min(kept.values()) < 1:
                raise self.wrong(_KEPT[place.text], str(min(kept.values())), place)
        self.take("mark", ">")
        window, fixed, every = (kept.get(word) for word in _KEPT)
        return MemoryType(dtype.text, tuple(fields), window, fixed, every, kept.get("first", 0))
