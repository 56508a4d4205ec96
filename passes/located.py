"""Trees with places: what a recipe says, and where it says so.

YAML, JSON and pipeline strings all become the same tree of `Node`, so that one reader checks them and every error can
name file, line and column. Scalars follow one small grammar in all three: integers, finite numbers, ``true``,
``false``, ``null``; every other word is a string. (YAML's own reading of ``no``, ``1e-5`` and ``4:30`` is not used.)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

from regraft.ir.errors.recipe import DuplicateKeyError, RecipeSyntaxError

if TYPE_CHECKING:
    import yaml

Scalar = None | bool | int | float | str
Plain = Scalar | Sequence["Plain"] | Mapping[Any, "Plain"]

YAML_FORM = "a recipe is YAML: regraft: 1, then pipeline: with one `- pass: {option: value}` a line"
STRING_FORM = (
    "a pipeline is pass{option=value, ...},pass{...}; strings in double quotes, lists in [], maps as {key: value}"
)
LONGEST = 72


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a source text; line and column count from 1."""

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}   {self.text}".rstrip()


def place_at(text: str, index: int, file: str) -> Place:
    """Return the place of the character ``index`` of ``text``, with its line, cut where it is long."""
    start = text.rfind("\n", 0, index) + 1
    end = text.find("\n", index)
    line = text[start : end if end >= 0 else len(text)]
    column = index - start
    if len(line.strip()) > LONGEST:
        first = max(0, min(column - 24, len(line) - LONGEST))
        cut = line[first : first + LONGEST].strip()
        line = f"{'…' if first else ''}{cut}{'…' if first + LONGEST < len(line) else ''}"
    return Place(file, text.count("\n", 0, index) + 1, column + 1, line.strip())


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place: a scalar, ``items`` of a list, or ``entries`` of a map."""

    place: Place
    scalar: Scalar = None
    items: tuple[Node, ...] | None = None
    entries: tuple[tuple[Node, Node], ...] | None = None

    @property
    def plain(self) -> Plain:
        """The value without places."""
        if self.items is not None:
            return [item.plain for item in self.items]
        if self.entries is not None:
            return {key.scalar: value.plain for key, value in self.entries}
        return self.scalar

    @property
    def is_scalar(self) -> bool:
        """Whether the node is neither list nor map."""
        return self.items is None and self.entries is None

    def __str__(self) -> str:
        text = spell(self.plain)
        return text if len(text) <= 60 else f"{text[:57]}..."


_INT = re.compile(r"[-+]?\d{1,18}")
_FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d{1,3})?")
_WORDS: dict[str, Scalar] = {"true": True, "false": False, "null": None, "none": None, "~": None, "": None}


def resolve(word: str) -> Scalar:
    """Return what an unquoted word stands for."""
    if word in _WORDS:
        return _WORDS[word]
    if _INT.fullmatch(word):
        return int(word)
    if _FLOAT.fullmatch(word) and math.isfinite(float(word)):
        return float(word)
    return word


# -- printing

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_ODD = re.compile(
    "[^\\t\\n\\r\\x20-\\x7e\\xa0-\\ud7ff\\ue000-\\ufefe\\uff00-\\ufffd\\U00010000-\\U0010ffff]|[\\u2028\\u2029]"
)


def _string(text: str) -> str:
    if _BARE.fullmatch(text) and isinstance(resolve(text), str):
        return text
    return escape_odd(json.dumps(text, ensure_ascii=False))


def escape_odd(text: str) -> str:
    """Return JSON text with the characters escaped that YAML does not allow, or folds."""
    return _ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def spell(value: Plain) -> str:
    """Return ``value`` on one line, in a form that is flow YAML and pipeline text at once."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return _string(value)
        case Mapping():
            return f"{{{', '.join(f'{spell(k)}: {spell(v)}' for k, v in value.items())}}}"
        case _:
            return f"[{', '.join(spell(each) for each in value)}]"


# -- YAML and JSON


def read_yaml(text: str, file: str) -> Node:
    """Return the tree of one YAML (or JSON) document.

    Raises:
        RecipeSyntaxError: It does not parse, is empty, nests too deeply, or uses anchors, aliases or tags.
        DuplicateKeyError: A map has a key twice.
    """
    import yaml

    try:
        root = yaml.SafeLoader(text).get_single_node()
        if root is None:
            _fail(text, 0, file, "it is empty", YAML_FORM)
        return _from_yaml(root, text, file, set())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _fail(text, mark.index if mark else 0, file, str(error.problem or error.context), YAML_FORM)
    except yaml.YAMLError as error:  # a character that YAML does not allow
        _fail(text, 0, file, str(error).splitlines()[0], YAML_FORM)
    except RecursionError:
        _fail(text, 0, file, "it nests too deeply", YAML_FORM)


def _from_yaml(node: yaml.Node, text: str, file: str, seen: set[yaml.Node]) -> Node:
    import yaml

    if node in seen:  # an alias can make a tree of any size from a few lines
        _fail(text, node.start_mark.index, file, "anchors and aliases are not used in recipes", YAML_FORM)
    seen.add(node)
    place = place_at(text, node.start_mark.index, file)
    if isinstance(node, yaml.ScalarNode):
        word = cast("str", node.value)
        plain = node.style is None  # pyright: ignore[reportUnknownMemberType]
        return Node(place, resolve(word) if plain else word)
    if isinstance(node, yaml.SequenceNode):
        children = cast("list[yaml.Node]", node.value)
        return Node(place, items=tuple(_from_yaml(child, text, file, seen) for child in children))
    pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
    read = [(_from_yaml(k, text, file, seen), _from_yaml(v, text, file, seen)) for k, v in pairs]
    return mapping(place, read)


def mapping(place: Place, pairs: Sequence[tuple[Node, Node]], owner: str = "recipe") -> Node:
    """Return a map node, its keys checked to be scalars and different."""
    seen: dict[str, Place] = {}
    for key, _ in pairs:
        if not key.is_scalar:
            raise RecipeSyntaxError(problem=f"{key} is no key", form=YAML_FORM, where=str(key.place))
        if str(key.scalar) in seen:
            first = seen[str(key.scalar)]
            where = f"{first.file}:{first.line}:{first.column}"
            raise DuplicateKeyError(owner=owner, name=key, first=where, where=str(key.place))
        seen[str(key.scalar)] = key.place
    return Node(place, entries=tuple(pairs))


def _fail(text: str, index: int, file: str, problem: str, form: str) -> NoReturn:
    where = str(place_at(text, min(index, len(text)), file))
    raise RecipeSyntaxError(problem=problem, form=form, where=where) from None


# -- pipeline strings

_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'[^'\n]*')
      | (?P<mark>[{}\[\],:=])
      | (?P<word>[^\s{}\[\],:="']+(?::(?=[A-Za-z/\\])[^\s{}\[\],:="']+)*)""",  # builtin:sample, but {full: 6}
    re.VERBOSE,
)


def read_pipeline(text: str, file: str) -> Node:
    """Return the tree of a pipeline string, in the form of a recipe's ``pipeline``: a list of one-entry maps.

    Raises:
        RecipeSyntaxError: It does not parse.
        DuplicateKeyError: An option or key stands twice.
    """
    try:
        return _Pipeline(text, file).read()
    except RecursionError:
        _fail(text, 0, file, "it nests too deeply", STRING_FORM)


class _Pipeline:
    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                self.fail(at, "a quote is not closed")
            if found.lastgroup != "space":
                self.tokens.append((str(found.lastgroup), found[0], at))
            at = found.end()
        self.tokens.append(("end", "the end", len(text)))
        self.at = 0

    def fail(self, index: int, problem: str) -> NoReturn:
        _fail(self.text, index, self.file, problem, STRING_FORM)

    def place(self) -> Place:
        return place_at(self.text, self.tokens[self.at][2], self.file)

    def accept(self, mark: str) -> bool:
        kind, text, _ = self.tokens[self.at]
        if kind == "mark" and text == mark:
            self.at += 1
            return True
        return False

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            _, text, index = self.tokens[self.at]
            self.fail(index, f"expected {mark!r}, found {text!r}")

    def read(self) -> Node:
        start = self.place()
        items: list[Node] = []
        if len(self.tokens) > 1:  # no text at all is the pipeline that does nothing
            items.append(self.step())
            while self.accept(","):
                items.append(self.step())
        kind, text, index = self.tokens[self.at]
        if kind != "end":
            self.fail(index, f"expected ',' or the end, found {text!r}")
        return Node(start, items=tuple(items))

    def step(self) -> Node:
        place = self.place()
        name = self.scalar()
        options = Node(place, entries=())
        if self.accept("{"):
            options = self.entries(self.place(), "=", str(name.scalar))
        return Node(place, entries=((name, options),))

    def entries(self, place: Place, sign: str, owner: str) -> Node:
        pairs: list[tuple[Node, Node]] = []
        if not self.accept("}"):
            while True:
                key = self.scalar()
                self.expect(sign)
                pairs.append((key, self.value(owner)))
                if not self.accept(","):
                    break
            self.expect("}")
        return mapping(place, pairs, owner)

    def value(self, owner: str) -> Node:
        place = self.place()
        if self.accept("{"):
            return self.entries(place, ":", owner)
        if not self.accept("["):
            return self.scalar()
        items: list[Node] = []
        if not self.accept("]"):
            items.append(self.value(owner))
            while self.accept(","):
                items.append(self.value(owner))
            self.expect("]")
        return Node(place, items=tuple(items))

    def scalar(self) -> Node:
        place = self.place()
        kind, text, index = self.tokens[self.at]
        if kind not in ("word", "string"):
            self.fail(index, f"expected a name or a value, found {text!r}")
        self.at += 1
        if kind == "word":
            return Node(place, resolve(text))
        if text.startswith("'"):
            return Node(place, text[1:-1])
        try:
            return Node(place, str(json.loads(text)))
        except ValueError:
            self.fail(index, f"{text} is no JSON string")
