"""Templates made into text. They hold code and no decisions; a name that is not given is an error."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("regraft.codegen", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Python and Markdown; what is put in has been spelled by codegen.names
    )


def render(template: str, **given: object) -> str:
    """Return the text of a template of ``codegen/templates``."""
    return _environment().get_template(template).render(**given)
