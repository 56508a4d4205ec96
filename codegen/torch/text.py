"""Target ``torch``: small pieces of Python: tables, signatures, branches, angles."""

from __future__ import annotations

from regraft.codegen.names import literal
from regraft.codegen.torch.body import WIDTH, kept
from regraft.codegen.torch.memories import pooled_view
from regraft.ir.op import Op
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.seq import Delta
from regraft.ir.types import MemoryType, TensorType

INDENT = "        "
_INTEGERS = {"i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool"}


def empty(type: TensorType) -> str:
    """Return the expression of a tensor to load into; the dtype of numbers other than integers comes with them."""
    sizes = ", ".join(map(str, type.sizes)) or "()"
    return f"torch.empty({sizes}" + (f", dtype=torch.{_INTEGERS[type.dtype]})" if type.dtype in _INTEGERS else ")")


def keeps_table(states: list[Op]) -> str:
    """Return the table of what is kept: for each memory its rows and its fields' shapes."""
    rows = [f"({_rows(op)}, {', '.join(literal(f.shape) for f in _memory(op).fields)})" for op in states]
    return f"({', '.join(rows)}{',' if len(rows) == 1 else ''})"


def keeps_lines(states: list[Op]) -> list[str]:
    """Return a class's statement of what is kept, broken as the formatter does."""
    table, told = keeps_table(states), "  # of each memory: the rows at most, and the shape of each field"
    line = f"keeps = {table}{told}"
    if len(line) + 4 <= WIDTH:
        return [line]
    return [f"keeps = ({told}", *(f"    {keeps_table([op])[1:-2]}," for op in states), ")"]


def wide_lines(attributes: list[str]) -> list[str]:
    """Return a class's statement of which tensors stay in the dtype that they are stored in."""
    told = "  # these stay in the dtype that they are stored in, unless another is given"
    table = ", ".join(map(literal, attributes)) + ("," if len(attributes) == 1 else "")
    line = f"wide = ({table})" if attributes else "wide = ()"
    if len(line) + len(told) + 4 <= WIDTH:
        return [line + told]
    return [f"wide = ({told}", *(f"    {literal(each)}," for each in attributes), ")"]


def _rows(op: Op) -> str:
    """Return how many rows a memory keeps, as the table of what is kept has it."""
    memory = kept(op).memory
    if isinstance(op, Compressed):
        overlap, gated = ", overlap=True" if op.overlap else "", "" if op.gates is not None else ", gated=False"
        return f"Every({op.rate}{overlap}{gated})"
    if memory.fixed is None:
        return literal(None if memory.window is None else memory.window + memory.first)
    return f"Fixed({memory.fixed}, wide=True)" if isinstance(op, Delta) else f"Fixed({memory.fixed})"


def _memory(op: Op) -> MemoryType:
    """Return the type of what is kept: pooled rows as their view shows them."""
    return pooled_view(op).out.memory if isinstance(op, Compressed) else kept(op).memory


def head_list(heads: tuple[int, ...]) -> str:
    """Return the tensor of a head map, by runs of equal heads."""
    runs: list[list[int]] = []
    for head in heads:
        if runs and runs[-1][0] == head:
            runs[-1][1] += 1
        else:
            runs.append([head, 1])
    spelled = " + ".join(f"[{head}] * {count}" if count > 1 else f"[{head}]" for head, count in runs)
    return f'torch.tensor({spelled}, device="cpu")'


def angles(key: tuple[object, ...]) -> str:
    """Return the expression of a rotation's angles, given its parameters."""
    base, channels, _, scaling, *scaled, pairs, _ = key
    plain = f"frequencies({base!r}, {channels!r})"
    if isinstance(pairs, int) and isinstance(channels, int):  # the others do not turn
        plain = f"F.pad({plain}[:{pairs}], (0, {channels // 2 - pairs}))"
    match scaling:
        case "linear":
            return f"{plain} / {scaled[0]!r}"
        case "llama3":
            factor, original, low, high, _ = scaled
            return f"llama3({plain}, {factor!r}, {original!r}, {low!r}, {high!r})"
        case "yarn":
            factor, original, low, high, truncate = scaled
            return f"yarn({plain}, {base!r}, {factor!r}, {original!r}, {low!r}, {high!r}, {truncate!r})"
        case "longrope":
            (factors,) = scaled
            return f"longrope({base!r}, {factors!r})"
        case _:
            return plain


def broken(call: str) -> list[str]:
    """Return the lines of a call of a number and a tuple, with a line for each item, as an argument of another call."""
    name, number, items = call.removesuffix("))").split("(")
    each = [f"        {item}," for item in items.split(", ")]
    return [f"{name}(", f"    {number}".rstrip(), "    (", *each, "    ),", "),"]


def branches(classes: list[str], calls: list[list[str]]) -> list[str]:
    """Return the calls of each class of layers, under its test where they differ; alike ones stand together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, call in zip(classes, calls, strict=True):
        groups.setdefault(tuple(call), []).append(name)
    if len(groups) == 1:
        return calls[0]
    ordered = sorted(groups.items(), key=lambda group: len(group[1]))  # the largest needs no test
    lines: list[str] = []
    for number, (call, names) in enumerate(ordered):
        tested = names[0] if len(names) == 1 else f"({', '.join(names)})"
        test = f"{'el' if number else ''}if isinstance(layer, {tested}):"
        if len(test) > WIDTH - 12:
            each = [f"        {name}," for name in names]
            test_lines = [f"{'el' if number else ''}if isinstance(", "    layer,", "    (", *each, "    ),", "):"]
        else:
            test_lines = [test]
        lines += ["else:"] if number == len(ordered) - 1 else test_lines
        lines += [f"    {line}" for line in call]
    return lines


def turn(key: tuple[object, ...]) -> str:
    """Return the function that makes cosine and sine in a rotation's layout."""
    return "rotary" if key[2] == "halves" else "rotary_pairs"


def signature(name: str, arguments: list[str], gives: str) -> str:
    """Return a method's ``def`` line, broken as the formatter does."""
    inner = ", ".join(["self", *arguments])
    line = f"    def {name}({inner}) -> {gives}:"
    if len(line) <= WIDTH:
        return line
    if len(inner) + 8 <= WIDTH:
        return f"    def {name}(\n{INDENT}{inner}\n    ) -> {gives}:"
    each = "".join(f"{INDENT}{argument},\n" for argument in ["self", *arguments])
    return f"    def {name}(\n{each}    ) -> {gives}:"


def fold(line: str, width: int) -> list[str]:
    """Break an assignment of a call after its opening bracket where the line is too long."""
    if len(line) <= width or not line.endswith(")"):
        return [line]
    opened = line.index("(", line.index("layer"))
    return [line[: opened + 1], f"    {line[opened + 1 : -1]}", ")"]
