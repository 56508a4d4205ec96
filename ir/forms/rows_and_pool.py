"""The form of ``kernel.rows_and_pool``: maps of one vector and pooled memories that do not wait for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.pool import PooledRows, pool_form
from regraft.ir.forms.rows import RowsForm, rows_form
from regraft.ir.op import Op
from regraft.ir.ops.compress import Compressed


@dataclass(frozen=True)
class RowsAndPoolForm:
    """A body, by what is computed beside what.

    Attributes:
        rows: The maps.
        mapped: Their ops.
        pooled: How the rows of each memory are made.
    """

    rows: RowsForm
    mapped: tuple[Op, ...]
    pooled: tuple[PooledRows, ...]


def rows_and_pool_form(ops: Sequence[Op]) -> RowsAndPoolForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    pooling: dict[Op, None] = {}
    for op in ops:
        if isinstance(op, Compressed) or any(value.op in pooling for value in op.operands):
            pooling[op] = None
    mapped = tuple(op for op in ops if op not in pooling)
    made = {value for op in mapped for value in op.results}
    if not mapped or not pooling or any(value in made for op in pooling for value in op.operands):
        return None
    rows, pooled = rows_form(mapped), pool_form(list(pooling))
    return None if rows is None or pooled is None else RowsAndPoolForm(rows, mapped, pooled)
