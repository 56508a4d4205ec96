"""Finding the family that reads a config. A family is a module of `frontends.families` with one class in it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from regraft.frontends.config import Given, show
from regraft.frontends.decoder import Decoder
from regraft.ir.errors.config import KeyTypeError, KeyValueError, UnknownFamilyError

_FOLDER = Path(__file__).resolve().parent / "families"


def family_of(given: Given) -> type[Decoder]:
    """Return the family that reads a config, by its ``model_type``, or by ``architectures`` where it has none.

    Raises:
        UnknownFamilyError: There is none.
        KeyTypeError: One of the two keys is of the wrong type.
        KeyValueError: The family is known, and the model is another than a plain language model.
    """
    model_type, architectures = given.values.get("model_type"), given.values.get("architectures")
    if not isinstance(model_type, str | None):
        expected = "a string"
        raise KeyTypeError(key="model_type", found=show(model_type), expected=expected, where=given.where("model_type"))
    if architectures is not None and (not isinstance(architectures, list) or not _strings(architectures)):
        found, where = show(architectures), given.where("architectures")
        raise KeyTypeError(key="architectures", found=found, expected="a list of class names", where=where)
    names = _strings(architectures)
    family = _by_type(model_type) if isinstance(model_type, str) else _by_architecture(names)
    if family is None:
        key = "model_type" if model_type is not None or not architectures else "architectures"
        what = f"{key} {show(given.values.get(key))}"
        raise UnknownFamilyError(what=what, families=", ".join(family_names()), where=given.where(key))
    if names and not set(names) & set(family.architectures):
        raise KeyValueError(
            family=family.family,
            key="architectures",
            found=show(architectures),
            legal=", ".join(family.architectures),
            where=given.where("architectures"),
        )
    return family


def family_names() -> list[str]:
    """Return the names of the families; each is a module's."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "__init__")


@cache
def load_family(name: str) -> type[Decoder]:
    """Return the family of the module called ``name``."""
    module = importlib.import_module(f"regraft.frontends.families.{name}")
    return next(
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Decoder) and each.__module__ == module.__name__
    )


def _by_type(model_type: str) -> type[Decoder] | None:
    names = family_names()
    likely = [model_type] if model_type in names else names  # a module is mostly called as its model_type
    return next((family for name in likely if model_type in (family := load_family(name)).model_types), None)


def _by_architecture(architectures: tuple[str, ...]) -> type[Decoder] | None:
    families = (load_family(name) for name in family_names())
    return next((family for family in families if set(architectures) & set(family.architectures)), None)


def _strings(value: object) -> tuple[str, ...]:
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def read_config(values: Mapping[str, Any], path: str = "config.json", *, strict: bool = True) -> Decoder:
    """Return a config's values as a family reads them.

    Raises:
        ConfigError: No family reads them, or one refuses.
    """
    given = Given(values, path)
    return family_of(given)(given, strict=strict)
