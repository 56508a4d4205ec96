"""Write the pages that are derived from the code: ``ops.md``, ``passes.md`` and ``errors.md``.

python docs/generate.py            write them
python docs/generate.py --check    exit with 1 if one of them is stale
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from textwrap import dedent

import regraft.ir.ops
from regraft.ir.errors import catalogue
from regraft.ir.op import REGISTRY, Op
from regraft.ir.types import ITEM_BITS
from regraft.passes import all_passes
from regraft.passes.describe import describe

HERE = Path(__file__).resolve().parent

FAMILIES = {
    "core": "what every decoder is made of, one token at a time",
    "pos": "rotary position embeddings",
    "state": "memories: what is kept between tokens",
    "attn": "what reads memories",
    "moe": "mixtures of experts",
    "weight": "what is known before run time; `apply` folds these",
}

OPS_HEAD = """# Ops

Written by `python docs/generate.py` from the declarations in `ir/ops/`. Do not edit.

Shapes are in dimension letters: `B` batch, `T` query tokens of this call, `L` the last of them, those whose logits are
wanted, `S` visible context, `M` model width,
`D` head width, `Hq` query heads, `Hkv` key/value heads, `F` MLP width, `E` experts, `K` experts chosen, `V` vocabulary.
A letter that occurs twice must agree; `...` stands for any leading dimensions. `?` marks an optional operand, `+` one
or more.
"""

PASSES_HEAD = """# Passes

Written by `python docs/generate.py` from the passes themselves. Do not edit. `regraft passes NAME` shows the same;
[recipes.md](recipes.md) says how they are put together.
"""

ERRORS_HEAD = """# Errors

Written by `python docs/generate.py` from the classes in `ir/errors/`. Do not edit.

Every error that a user can cause has a code. It is printed on stderr as

    error[RG301]: what is wrong, with the numbers
      --> where: a file, a line, a tensor, an op
      = note: further facts
      = help: what to do

and the command ends with the exit code given below. `{...}` stands for what the message fills in.
"""

KINDS = ("float", "int", *ITEM_BITS)  # else the operand whose dtype it is

GROUPS = {
    "0": "The graph and its text",
    "1": "Recipes and passes",
    "2": "Configs and families",
    "3": "Checkpoints and weights",
    "4": "Files, disk and memory",
    "5": "Checks, programs, calibration",
    "6": "The command line and optional packages",
}


def ops() -> str:
    """Return ``ops.md``."""
    assert regraft.ir.ops.__all__  # importing it registers the ops
    families: dict[str, list[type[Op]]] = {}
    for name, cls in REGISTRY.items():
        families.setdefault(name.partition(".")[0], []).append(cls)
    parts = [OPS_HEAD]
    for family, meaning in {**FAMILIES, **{name: "" for name in families if name not in FAMILIES}}.items():
        parts.append(f"## `{family}`{': ' if meaning else ''}{meaning}\n")
        parts += [_op(cls) for cls in families[family]]
    return "\n".join(parts)


def _op(cls: type[Op]) -> str:
    text = re.sub(r"\n*Example:\n", "\n\n", dedent(inspect.getdoc(cls) or ""))
    lines = [f"### `{cls.opname}`", "", _markdown(text), ""]
    rows = [
        (
            f"`{s.name}`{'?' if s.optional else '+' if s.variadic else ''}",
            "operand",
            _shape(s.pattern, s.dtype, s.is_memory),
        )
        for s in cls.spec.slots
    ]
    for each in cls.spec.attributes.values():
        default = "required" if each.required else f"default `{each.default}`"
        choices = f", one of {', '.join(f'`{c}`' for c in each.choices)}" if each.choices else ""
        rows.append((f"`{each.name}`", "attribute", f"{each.kind.name}{choices}; {default}"))
    rows += [
        (f"`{r.name}`", "result", _shape(r.pattern, r.dtype, False) if r.pattern else "see above")
        for r in cls.spec.results
    ]
    lines += ["| name | | |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join(lines)


def _shape(pattern: str, dtype: str, memory: bool) -> str:
    if memory:
        return f"`memory<{pattern}>`"
    kind = dtype if dtype in KINDS else f"of `{dtype}`'s dtype"
    return f"`[{pattern}]`" + (f" {kind}" if dtype else "")


def _markdown(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text)


def errors() -> str:
    """Return ``errors.md``."""
    parts = [ERRORS_HEAD]
    group = ""
    for code, cls in catalogue().items():
        if code[2] != group:
            group = code[2]
            parts.append(f"## RG{group}xx: {GROUPS[group]}\n")
        meaning = _markdown(inspect.getdoc(cls) or "")
        lines = [f"### {code}", "", meaning, "", f"    {cls.message}"]
        if cls.hint:
            lines.append(f"      = help: {cls.hint}")
        parts.append("\n".join([*lines, "", f"Exit code {cls.exit_code}.", ""]))
    return "\n".join(parts)


def passes() -> str:
    """Return ``passes.md``."""
    parts = [PASSES_HEAD]
    for each in (describe(cls) for cls in all_passes()):
        lines = [f"## `{each['name']}`", "", each["summary"], "", f"Preserves: {each['preserves']}.", ""]
        lines += [_markdown(each["text"]), ""] if each["text"] else []
        if each["options"]:
            rows = [(f"`{o['name']}`", o["type"], f"`{o['default']}`", o["text"]) for o in each["options"]]
            lines += ["| option | type | default | |", "|---|---|---|---|"]
            lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
        lines += [f"Source: {' '.join(each['source'].split())}.", ""] if each["source"] else []
        parts.append("\n".join(lines))
    return "\n".join(parts)


def main() -> int:
    """Write the files, or with ``--check`` compare them; return the exit code."""
    made = {"ops.md": ops(), "passes.md": passes(), "errors.md": errors()}
    if "--check" not in sys.argv:
        for name, text in made.items():
            (HERE / name).write_text(text, encoding="utf-8")
        return 0
    stale = [name for name, text in made.items() if (HERE / name).read_text(encoding="utf-8") != text]
    for name in stale:
        print(f"docs/{name} is stale: run python docs/generate.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
