"""The text form of a graph (``.rg``): parsing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from regraft.ir.dims import Dim, parse_dim
from regraft.ir.errors.base import RegraftError, nearest
from regraft.ir.errors.graph import DuplicateValueError, GraphError, ResultTypeError, SyntaxRgError, UnknownValueError
from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value, op_class
from regraft.ir.types import ITEM_BITS, Field, MemoryType, TensorType, Type

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|//[^\n]*)
      | (?P<value>%-1\.[\w.*\-]+|%[\w.*\-]+)
      | (?P<symbol>@[\w.\-]+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>-?\d+(?:\.(?!\.)\d*)?(?:[eE][+-]?\d+)?)
      | (?P<word>[A-Za-z_][\w.]*)
      | (?P<mark>\.\.|[(){}\[\]<>=:,;])""",
    re.VERBOSE,
)


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
    params: list[str]
    lines: list[_Line] = field(default_factory=list["_Line"])


def parse_graph(text: str, file: str = "graph.rg") -> Graph:
    """Return the graph that ``text`` spells, verified.

    Args:
        text: One graph.
        file: The name to report errors under.

    Raises:
        GraphError: The text does not parse, or the graph breaks a rule; with file, line and column.
    """
    return _Parser(text, file).graph()


class _Parser:
    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.tokens = list(self._scan())
        self.at = 0
        self.blocks: dict[str, _Block] = {}

    # -- tokens

    def _scan(self) -> Iterator[Token]:
        place = 0
        while place < len(self.text):
            found = _TOKEN.match(self.text, place)
            if found is None:
                raise self.placed(SyntaxRgError(expected="a token", found=repr(self.text[place])), place)
            if found.lastgroup != "space":
                yield Token(str(found.lastgroup), found[0], place)
            place = found.end()
        yield Token("end", "the end of the text", len(self.text))

    def placed(self, error: RegraftError, start: int) -> RegraftError:
        """Return ``error`` with the line and column of ``start``, and the line itself."""
        line = self.text.count("\n", 0, start) + 1
        column = start - (self.text.rfind("\n", 0, start) + 1)
        scope = f"   {error.where}" if error.where else ""
        error.where = f"{self.file}:{line}:{column + 1}{scope}"
        source = self.text.split("\n")[line - 1]
        error.excerpt = (f"{line} |   {source.strip()}",)
        return error

    @contextmanager
    def at_place(self, token: Token) -> Iterator[None]:
        """Report what fails within at ``token``."""
        try:
            yield
        except GraphError as error:
            raise error if error.excerpt else self.placed(error, token.start) from None

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self, kind: str, text: str = "") -> Token:
        token = self.next
        if token.kind != kind or (text and token.text != text):
            raise self.placed(SyntaxRgError(expected=repr(text) if text else f"a {kind}", found=repr(token.text)), token.start)
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
            token = self.take("value")
            self.take("mark", ":")
            with self.at_place(token):
                graph.add_input(token.text[1:], self.type())

        self.separated(declare, ")")
        self.take("mark", "{")
        self.body(graph)
        end = self.take("mark", "}")
        self.take("end")
        with self.at_place(end):
            graph.verify()
        return graph

    def body(self, graph: Graph) -> None:
        while True:
            if self.accept("block"):
                self.block()
            elif self.next.text == "layers" and self.next.kind == "word":
                self.layers(graph)
            elif self.accept("return"):
                outputs = [self.value(graph, self.take("value"))]
                while self.accept(","):
                    outputs.append(self.value(graph, self.take("value")))
                graph.set_outputs(outputs)
                return
            else:
                line = self.line()
                self.make(graph, line, lambda name: name, lambda t: self.value(graph, t))

    def block(self) -> None:
        name = self.take("symbol")
        if name.text in self.blocks:
            raise self.placed(DuplicateValueError(name=name.text), name.start)
        block = self.blocks[name.text] = _Block([])
        self.take("mark", "(")

        def declare() -> None:
            block.params.append(self.take("value").text[1:])
            self.take("mark", ":")
            self.type()

        self.separated(declare, ")")
        self.take("mark", "{")
        while not self.accept("}"):
            block.lines.append(self.line())

    def layers(self, graph: Graph) -> None:
        """Read a run of ``layers`` lines, and make the layers in order."""
        calls: dict[int, tuple[Token, _Block, list[Token]]] = {}
        while self.next.text == "layers" and self.accept("layers"):
            numbers = self.numbers()
            self.take("mark", "=")
            symbol = self.take("symbol")
            if symbol.text not in self.blocks:
                near = nearest(symbol.text, list(self.blocks))
                raise self.placed(UnknownValueError(name=symbol.text, near=near), symbol.start)
            arguments: list[Token] = []
            self.take("mark", "(")
            self.separated(lambda arguments=arguments: arguments.append(self.take("value")), ")")
            block = self.blocks[symbol.text]
            if len(arguments) != len(block.params):
                expected = f"{len(block.params)} arguments"
                raise self.placed(SyntaxRgError(expected=expected, found=str(len(arguments))), symbol.start)
            for number in numbers:
                if number in calls:
                    raise self.placed(DuplicateValueError(name=f"layers.{number}"), symbol.start)
                calls[number] = (symbol, block, arguments)
        for number, (_, block, arguments) in sorted(calls.items()):
            self.layer(graph, number, block, arguments)

    def layer(self, graph: Graph, number: int, block: _Block, arguments: list[Token]) -> None:
        values = {
            param: self.value(graph, token, token.text[1:].replace("-1.", f"layers.{number - 1}.", 1))
            if token.text.startswith("%-1.")
            else self.value(graph, token)
            for param, token in zip(block.params, arguments, strict=True)
        }

        def absolute(local: str) -> str:
            here = f"layers.{number}."
            return local.replace("layers.*.", here, 1) if "layers.*." in local else here + local

        def find(token: Token) -> Value:
            local = token.text[1:]
            return values[local] if local in values else self.value(graph, token, absolute(local))

        for line in block.lines:
            self.make(graph, line, absolute, find)

    def numbers(self) -> list[int]:
        found: list[int] = []
        while True:
            first = self.integer()
            last = self.integer() if self.accept("..") else first
            if last < first or last - first > 100_000:
                raise self.placed(
                    SyntaxRgError(expected="an ascending range", found=f"{first}..{last}"), self.next.start
                )
            found.extend(range(first, last + 1))
            if not self.accept(","):
                return found

    def integer(self) -> int:
        token = self.take("number")
        if not token.text.isdecimal():
            raise self.placed(SyntaxRgError(expected="an integer", found=repr(token.text)), token.start)
        return int(token.text)

    # -- ops

    def value(self, graph: Graph, token: Token, name: str = "") -> Value:
        name = name or token.text[1:]
        if name not in graph:
            raise self.placed(UnknownValueError(name=name, near=nearest(name, list(graph.values))), token.start)
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

    def make(
        self, graph: Graph, line: _Line, absolute: Callable[[str], str], find: Callable[[Token], Value]
    ) -> None:
        with self.at_place(line.token):
            cls = op_class(line.opname)
            slots = self.slots(cls, line, find)
            attributes = {k: absolute(v) if isinstance(v, str) and "layers.*." in v else v for k, v in line.attributes.items()}
            if cls.typed_attributes and line.types:
                attributes |= cls.attributes_of(line.types[0])
            op = cls(slots, attributes)
            results = graph.add(op, [absolute(name) for name in line.results])
            for stated, value in zip(line.types, results, strict=False):
                if stated != value.type:
                    raise ResultTypeError(op=op.label, stated=stated, inferred=value.type, where=op.scope)

    def slots(self, cls: type[Op], line: _Line, find: Callable[[Token], Value]) -> dict[str, list[Value]]:
        """Deal the operands to the declared slots: named ones by name, the others in order."""
        slots: dict[str, list[Value]] = {slot.name: [] for slot in cls.spec.slots}
        order = [slot for slot in cls.spec.slots if not slot.optional]
        for name, token in line.operands:
            if name:
                if name not in slots:
                    expected = f"an operand of {cls.opname} ({cls.spec.signature})"
                    raise self.placed(SyntaxRgError(expected=expected, found=f"{name}="), token.start)
                slots[name].append(find(token))
                continue
            if not order:
                expected = f"the operands of {cls.opname} ({cls.spec.signature})"
                raise self.placed(SyntaxRgError(expected=expected, found=token.text), token.start)
            slots[order[0].name].append(find(token))
            if not order[0].variadic:
                order.pop(0)
        if len(line.results) != len(cls.spec.results):
            expected = f"{len(cls.spec.results)} results of {cls.opname}"
            raise self.placed(SyntaxRgError(expected=expected, found=str(len(line.results))), line.token.start)
        return slots

    # -- attributes and types

    def braced(self) -> dict[str, object]:
        attributes: dict[str, object] = {}
        self.take("mark", "{")

        def one() -> None:
            key = self.take("word")
            self.take("mark", "=")
            if key.text in attributes:
                raise self.placed(DuplicateValueError(name=key.text), key.start)
            attributes[key.text] = self.literal()

        self.separated(one, "}")
        return attributes

    def literal(self) -> object:
        token = self.next
        self.at += 1
        match token.kind, token.text:
            case "string", text:
                try:
                    return str(json.loads(text))
                except ValueError:
                    raise self.placed(SyntaxRgError(expected="a JSON string", found=text), token.start) from None
            case "number", text:
                return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
            case "word", ("true" | "false") as text:
                return text == "true"
            case "word", "none":
                return None
            case "mark", "[":
                items: list[object] = []
                self.separated(lambda: items.append(self.literal()), "]")
                return tuple(items)
            case _:
                raise self.placed(
                    SyntaxRgError(expected="a number, string, list, true, false or none", found=repr(token.text)),
                    token.start,
                )

    def type(self) -> Type:
        word = self.take("word")
        if word.text == "memory":
            return self.memory_type()
        if word.text not in ITEM_BITS:
            raise self.placed(SyntaxRgError(expected="a dtype", found=repr(word.text)), word.start)
        return TensorType(word.text, self.shape())

    def shape(self) -> tuple[Dim, ...]:
        opened = self.take("mark", "[")
        end = self.text.find("]", opened.start)
        inner = self.text[opened.start + 1 : end] if end >= 0 else ""
        with self.at_place(opened):
            dims = tuple(parse_dim(part) for part in inner.split(",")) if inner.strip() else ()
        while self.next.kind != "end" and self.next.start < end:
            self.at += 1
        self.take("mark", "]")
        return dims

    def memory_type(self) -> MemoryType:
        self.take("mark", "<")
        dtype = self.take("word")
        if dtype.text not in ITEM_BITS:
            raise self.placed(SyntaxRgError(expected="a dtype", found=repr(dtype.text)), dtype.start)
        self.take("mark", ";")
        fields: list[Field] = []
        while True:
            name = self.take("word")
            shape = self.shape()
            if not all(isinstance(dim, int) for dim in shape):
                raise self.placed(SyntaxRgError(expected="integers", found=f"{shape}"), name.start)
            fields.append(Field(name.text, TensorType(dtype.text, shape).sizes))
            if not self.accept(","):
                break
        window = None
        if self.accept(";"):
            self.take("word", "window")
            window = self.integer()
        self.take("mark", ">")
        return MemoryType(dtype.text, tuple(fields), window)
