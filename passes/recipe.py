"""Recipes: which passes to run, with which options, on which calibration text, under which constraints.

A recipe is YAML (or JSON, such as ``regraft.lock.json``) or a pipeline string; both read to the same `Recipe`, and a
recipe prints as either. Everything is checked here but what depends on the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from regraft.ir.errors.base import nearest
from regraft.ir.errors.files import InputMissingError
from regraft.ir.errors.recipe import (
    MissingKeyError,
    NoCalibrationError,
    OptionConflictError,
    OptionRangeError,
    RecipeError,
    RecipeSyntaxError,
    ShortWindowsError,
    UnknownKeyError,
)
from regraft.passes import pass_class
from regraft.passes.base import TEXT, Constraints, OptionKind, Pass, integer, read_integer, read_options, type_error
from regraft.passes.located import YAML_FORM, Node, Plain, escape_odd, read_pipeline, read_yaml, spell

VERSION = 1
TOKENS = 65536
CONTEXT = 512
RECORDS = ("inputs", "outputs", "measured", "dequantized")  # what a lock file holds besides the recipe


@dataclass(frozen=True, slots=True)
class Calibration:
    """The text that fits and decisions are measured on.

    Args:
        text: A file, a ``.jsonl`` file, a folder, or ``builtin:sample``; relative to the recipe.
        tokens: How many tokens, in whole windows.
        seed: Draws the windows.
        context: Tokens in a window.
    """

    text: str
    tokens: int = TOKENS
    seed: int = 0
    context: int = CONTEXT

    @property
    def plain(self) -> dict[str, Plain]:
        """The section as a recipe holds it; the context only where it is not the default."""
        section: dict[str, Plain] = {"text": self.text, "tokens": self.tokens, "seed": self.seed}
        return section if self.context == CONTEXT else {**section, "context": self.context}


@dataclass(frozen=True)
class Recipe:
    """Passes in order, with calibration and constraints.

    Args:
        passes: The steps.
        calibration: The text for fits and measured decisions, if any.
        constraints: What every pass must respect.
        records: What else a lock file holds: hashes of ``inputs`` and ``outputs``, what was ``measured``, and the
            element types of tensors that were ``dequantized``.
    """

    passes: tuple[Pass, ...]
    calibration: Calibration | None = None
    constraints: Constraints = field(default_factory=Constraints)
    records: Mapping[str, Plain] = field(default_factory=dict[str, Plain], compare=False, repr=False)

    def check_calibration(self) -> None:
        """Refuse a recipe whose passes fit or decide on text where it names none; and options that change nothing.

        Raises:
            OptionIdleError: With the first such option, and what it needs.
            NoCalibrationError: With the first such pass, and the bundled sample as a way out.
            ShortWindowsError: The text's windows are too short to show what such a pass changes.
        """
        for step in self.passes:
            step.check_needs()
            if not step.needs_text:
                continue
            if self.calibration is None:
                raise NoCalibrationError(owner=step.name, why=step.needs_text, where=step.place())
            context, shortest = self.calibration.context, step.shortest_context
            if context < shortest:
                raise ShortWindowsError(owner=step.name, context=context, shortest=shortest, where=step.place())

    def plain(self, *, expanded: bool = False) -> dict[str, Plain]:
        """Return the recipe as plain data; ``expanded`` spells every default and decision out."""
        steps: list[Plain] = []
        for step in self.passes:
            options = step.options(expanded=expanded)
            steps.append({step.name: options} if options else step.name)
        recipe: dict[str, Plain] = {"regraft": VERSION, "pipeline": steps}
        if self.calibration is not None:
            recipe["calibration"] = self.calibration.plain
        if self.constraints.tensor_parallel:
            recipe["constraints"] = {"tensor_parallel": list(self.constraints.tensor_parallel)}
        return recipe

    def to_yaml(self, *, expanded: bool = False) -> str:
        """Return the recipe as YAML, a pass a line."""
        plain = self.plain(expanded=expanded)
        steps = cast("list[Plain]", plain.pop("pipeline"))
        lines = [f"regraft: {plain.pop('regraft')}", "pipeline:" if steps else "pipeline: []"]
        for step in steps:
            if isinstance(step, dict):
                lines += [f"  - {name}: {spell(options)}" for name, options in step.items()]
            else:
                lines.append(f"  - {spell(step)}")
        lines += [f"{key}: {spell(value)}" for key, value in plain.items()]
        return "\n".join([*lines, ""])

    def to_pipeline(self, *, expanded: bool = False) -> str:
        """Return the recipe as a pipeline string, calibration and constraints at its end."""
        plain = self.plain(expanded=expanded)
        steps = list(cast("list[Plain]", plain["pipeline"]))
        steps += [{key: plain[key]} for key in ("calibration", "constraints") if key in plain]
        return ",".join(_step_text(step) for step in steps)

    def to_lock(self, **records: Mapping[str, object]) -> str:
        """Return ``regraft.lock.json``: the expanded recipe, and of `RECORDS` those that are given.

        The lock is a valid recipe. Equal arguments give equal text.
        """
        unknown = set(records) - set(RECORDS)
        assert not unknown, unknown
        document = {**self.plain(expanded=True), **{key: records[key] for key in RECORDS if key in records}}
        return escape_odd(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def _step_text(step: Plain) -> str:
    if not isinstance(step, Mapping):
        return str(step)
    (name, options), *_ = step.items()
    inner = ", ".join(f"{key}={spell(value)}" for key, value in cast("Mapping[str, Plain]", options).items())
    return f"{name}{{{inner}}}"


# -- reading


def load_recipe(path: Path) -> Recipe:
    """Return the recipe in a YAML file or a lock file.

    Raises:
        InputMissingError: The file cannot be read.
        RecipeError: It is no valid recipe, with file, line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InputMissingError(path=path, reason=reason) from None
    return parse_recipe(text, path.name)


def parse_recipe(text: str, file: str = "recipe.yaml") -> Recipe:
    """Return the recipe that YAML or JSON text spells.

    Raises:
        RecipeError: Something is unknown, missing, of the wrong type or out of range; with ``file``, line and column.
    """
    root = read_yaml(text, file)
    if root.entries is None:
        raise RecipeSyntaxError(problem=f"a map is expected, not {root}", form=YAML_FORM, where=str(root.place))
    sections = _known(root, "recipe", ("regraft", "pipeline", "calibration", "constraints", *RECORDS))
    _version(sections, root)
    if "pipeline" not in sections:
        fix = "add pipeline: with one `- pass: {option: value}` a line"
        raise MissingKeyError(owner="recipe", name="pipeline", fix=fix, where=str(root.place))
    steps = sections["pipeline"]
    if steps.items is None:
        raise type_error(steps, "recipe", "pipeline", "a list of passes")
    records = {key: sections[key].plain for key in RECORDS if key in sections}
    return _recipe(steps.items, sections.get("calibration"), sections.get("constraints"), records)


def parse_pipeline(text: str, file: str = "pipeline") -> Recipe:
    """Return the recipe that a pipeline string spells: ``share-kv{layers="4..7", refit=true},dce``.

    ``calibration{text=..., tokens=..., seed=...}`` and ``constraints{tensor_parallel=[...]}`` may stand among them.

    Raises:
        RecipeError: As `parse_recipe` does.
    """
    steps: list[Node] = []
    sections: dict[str, Node] = {}
    for step in read_pipeline(text, file).items or ():
        assert step.entries
        key, options = step.entries[0]
        if key.scalar not in ("calibration", "constraints"):
            steps.append(step)
        elif key.scalar in sections:
            problem = f"{key.scalar} stands twice"
            raise RecipeSyntaxError(problem=problem, form="give it once", where=str(key.place))
        else:
            sections[str(key.scalar)] = options
    return _recipe(steps, sections.get("calibration"), sections.get("constraints"), {})


def _recipe(
    steps: Iterable[Node], calibration: Node | None, constraints: Node | None, records: Mapping[str, Plain]
) -> Recipe:
    return Recipe(
        tuple(_pass(step) for step in steps),
        None if calibration is None else _calibration(calibration),
        Constraints() if constraints is None else _constraints(constraints),
        records,
    )


def _known(node: Node, owner: str, legal: tuple[str, ...]) -> dict[str, Node]:
    """Return a map's values by key, every key checked to be legal."""
    found: dict[str, Node] = {}
    for key, value in node.entries or ():
        if key.scalar not in legal:
            near = nearest(str(key.scalar), legal)
            raise UnknownKeyError(owner=owner, name=key, near=near, legal=", ".join(legal), where=str(key.place))
        found[str(key.scalar)] = value
    return found


def _version(sections: Mapping[str, Node], root: Node) -> None:
    if "regraft" not in sections:
        fix = f"begin the recipe with regraft: {VERSION}"
        raise MissingKeyError(owner="recipe", name="regraft", fix=fix, where=str(root.place))
    read_integer(sections["regraft"], "recipe", "regraft", VERSION, VERSION)


def _pass(step: Node) -> Pass:
    if step.entries is None:
        if not isinstance(step.scalar, str):
            raise type_error(step, "recipe", "pipeline", "a pass, or `pass: {option: value}`")
        cls = pass_class(step.scalar, str(step.place))
        return read_options(cls, Node(step.place, entries=()), step.place)
    if len(step.entries) != 1:
        first, second = ("nothing", "nothing") if not step.entries else (e[0] for e in step.entries[:2])
        fix = "give each pass an item of the list, with its options in {} or indented below it"
        raise OptionConflictError(owner="pipeline", first=first, second=second, fix=fix, where=str(step.place))
    ((key, options),) = step.entries
    return read_options(pass_class(str(key.scalar), str(key.place)), options, key.place)


_COUNT: OptionKind[int] = integer(1, 10**12)
_SEED: OptionKind[int] = integer(0, 2**63 - 1)
_CONTEXT: OptionKind[int] = integer(2, 2**24)


def _calibration(node: Node) -> Calibration:
    if node.entries is None:
        raise type_error(node, "recipe", "calibration", "a map: {text: sample.txt, tokens: 65536, seed: 0}")
    given = _known(node, "calibration", ("text", "tokens", "seed", "context"))
    if "text" not in given:
        fix = "add text: a file, a folder, or builtin:sample"
        raise MissingKeyError(owner="calibration", name="text", fix=fix, where=str(node.place))
    text = TEXT.read(given["text"], "calibration", "text")
    kinds = {"tokens": (_COUNT, TOKENS), "seed": (_SEED, 0), "context": (_CONTEXT, CONTEXT)}
    tokens, seed, context = (
        kind.read(given[key], "calibration", key) if key in given else default for key, (kind, default) in kinds.items()
    )
    return Calibration(text, tokens, seed, context)


def _constraints(node: Node) -> Constraints:
    if node.entries is None:
        raise type_error(node, "recipe", "constraints", "a map: {tensor_parallel: [1, 2]}")
    given = _known(node, "constraints", ("tensor_parallel",))
    sizes = given.get("tensor_parallel")
    if sizes is None:
        return Constraints()
    if sizes.items is None:
        raise type_error(sizes, "constraints", "tensor_parallel", "a list of integers")
    found = tuple(read_integer(each, "constraints", "tensor_parallel", 1, 4096) for each in sizes.items)
    if len(set(found)) < len(found):
        legal = "through different numbers"
        where = str(sizes.place)
        raise OptionRangeError(owner="constraints", name="tensor_parallel", found=sizes, legal=legal, where=where)
    return Constraints(found)


__all__ = ["Calibration", "Recipe", "RecipeError", "load_recipe", "parse_pipeline", "parse_recipe"]
