"""What ``inspect --schedule`` shows: a step's kernels, and the bytes that they move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from regraft.views.numbers import context, flops, size
from regraft.views.table import Block, Heading, table

if TYPE_CHECKING:
    from regraft.codegen.kernels.kernel import Moved
    from regraft.codegen.schedule import Schedule
    from regraft.ir.graph import Graph


def schedules(graph: Graph, contexts: Sequence[int], batch: int) -> list[Schedule]:
    """Return the schedule of one decoded token at each context.

    Args:
        graph: The model.
        contexts: Tokens of each sequence after the step.
        batch: Sequences.

    Raises:
        MissingEmitterError: Target ``triton`` lacks an op of the model.
    """
    from regraft.codegen.schedule import schedule
    from regraft.passes.fusion import fuse_decode
    from regraft.passes.latent_forms import decoding_form

    fused = fuse_decode(decoding_form(graph) or graph)
    return [schedule(graph, fused, batch, length) for length in contexts]


def blocks(name: str, found: Sequence[Schedule]) -> list[Block]:
    """Return schedules for any of the ways in which `views.table` shows them."""
    made: list[Block] = [Heading(f"{name}: a decoded token", 1)]
    for each in found:
        title = f"At {context(each.context)} tokens of context"
        made.append(Heading(title if each.batch == 1 else f"{title}, {each.batch} sequences"))
        head = ("", "layers", "kernels", "read", "written", "least", "over it", "matrix work")
        rows = [(part.name, str(len(part.layers) or ""), *_row(part.each)) for part in each.parts]
        made.append(table(head, [*rows, ("in all", "", *_row(each.whole))]))
    made.append(Heading("Kernels in order"))
    for part in found[0].parts:
        names = ", ".join(line.name if line.fused else f"{line.name} (PyTorch)" for line in part.lines)
        made.append(f"{part.name}: {names}")
    return made


def _row(moved: Moved) -> tuple[str, ...]:
    over = f"{moved.total / moved.least:.3f}" if moved.least else ""
    return (
        str(moved.launches),
        size(moved.read),
        size(moved.written),
        size(moved.least),
        over,
        flops(moved.flops),
    )


def to_json(name: str, found: Sequence[Schedule]) -> dict[str, Any]:
    """Return schedules as JSON: bytes and operations of one step."""
    return {"schema": "regraft.schedule/1", "model": name, "schedules": [_schedule(each) for each in found]}


def _schedule(found: Schedule) -> dict[str, Any]:
    parts = [
        {
            "name": part.name,
            "layers": list(part.layers),
            "each": _moved(part.each),
            "kernels": [{"name": line.name, "fused": line.fused, **_moved(line.moved)} for line in part.lines],
        }
        for part in found.parts
    ]
    return {"batch": found.batch, "context": found.context, "total": _moved(found.whole), "parts": parts}


def _moved(moved: Moved) -> dict[str, int]:
    return {
        "kernels": moved.launches,
        "bytes_read": moved.read,
        "bytes_written": moved.written,
        "bytes_least": moved.least,
        "flops": moved.flops,
    }
