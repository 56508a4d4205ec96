"""The output refit: an attention's output projection fitted anew by least squares, in closed form.

After a change to an attention the projection that follows is chosen to minimise ``E|W z - y|²`` over calibration text,
drawn towards its prior. ``z`` is what the projection reads in the rewritten graph. The target ``y`` is

- ``drift``: the original's residual stream after the attention, less the converted stream that enters: so the layer
  also makes up for what earlier layers changed;
- ``original``: the original projection's result. So is a drift's where something stands between the projection and
  the stream, such as Gemma's norm.

Source: specs/passes_math.md, equation (2) and section 8.
"""

from __future__ import annotations

from collections.abc import Iterable

from regraft.ir.dims import L
from regraft.ir.op import Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.fits import Moment, Refit, width
from regraft.ir.ops.weight import Combine
from regraft.passes.base import OptionKind, choice, number
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Output, Refusal, output_of

RIDGE = 1e-4
TARGET: OptionKind[str] = choice("drift", "original")
RIDGES: OptionKind[float] = number(0.0, 1e6)


def refit_refusal(output: Output) -> Refusal | None:
    """Return why an output projection cannot be refitted, or None where it can."""
    if output.linear.bias is not None:
        return Refusal(f"the output projection {output.linear.label} has a bias, which a refit does not fit")
    if output.merged.tensor.sequence == L:
        return Refusal("it sees the last tokens alone, and a refit is to all; let last-tokens-only come after")
    return None


def refits_refusal(attends: Iterable[Attend]) -> Refusal | None:
    """Return why one of the output projections after some attentions cannot be refitted, or None where all can."""
    for attend in attends:
        output = output_of(attend)
        refusal = output if isinstance(output, Refusal) else refit_refusal(output)
        if refusal is not None:
            return refusal
    return None


def aim(output: Output, target: str) -> str:
    """Return what a refit aims at: the original where something stands between the projection and the stream."""
    return "original" if output.add is None else target


def refit_text(output: Output, target: str, ridge: float) -> str:
    """Return what a refit does, for the report."""
    return f"output projection refitted ({aim(output, target)}, ridge {ridge:g})"


def undo_refit(edit: Editor, output: Output) -> tuple[str, float] | None:
    """Let an output projection read its weight as it was before a refit, which goes with its statistics.

    Returns:
        The refit's target and ridge, or None where there was none.
    """
    fitted = output.linear.weight
    if not isinstance(fitted.op, Refit) or len(fitted.users) > 1:
        return None
    found = "drift" if isinstance(fitted.op.cross.op, Combine) else "original", fitted.op.ridge
    name, prior = fitted.name, fitted.op.prior
    edit.set_operand(output.linear, "weight", prior)
    edit.erase_unread(fitted)
    edit.graph.rename(prior, name)
    return found


def add_refit(edit: Editor, output: Output, prior: Value, name: str, target: str, ridge: float) -> Value:
    """Add the statistics and the fit of an output projection before it, and return the fitted weight.

    Args:
        edit: The editor.
        output: Where the projection stands.
        prior: The weight to draw towards ``[M, Hq * Dv]``.
        name: The weight's name; the statistics are named under it.
        target: ``drift`` or ``original``; see `aim`.
        ridge: In units of the mean diagonal of ``E[z zᵀ]``.
    """
    linear, z, target = output.linear, output.merged, aim(output, target)
    rows, columns = width(z.tensor), width(linear.out.tensor)
    gram = edit.add(Moment, f"{name}.gram", a=z, b=z, rows=rows, columns=rows, before=linear)
    if target == "drift":
        assert output.add is not None
        assert output.entering is not None
        wanted = output.add.out.name
    else:
        wanted = linear.out.name
    cross = edit.add(Moment, f"{name}.wanted", a=z, source_b=wanted, rows=rows, columns=columns, before=linear)
    if target == "drift":
        assert output.entering is not None
        there = edit.add(Moment, f"{name}.entering", a=z, b=output.entering, rows=rows, columns=columns, before=linear)
        cross = edit.add(Combine, f"{name}.cross", (cross, there), factors=(1.0, -1.0), before=linear)
    return edit.add(Refit, f"{name}.fitted", gram, cross, prior, ridge=ridge, before=linear)


def refit_output(edit: Editor, output: Output, target: str, ridge: float) -> None:
    """Fit an output projection anew, in place of an earlier fit if there is one."""
    undo_refit(edit, output)

    def make(old: Value, name: str) -> Value:
        return add_refit(edit, output, old, name, target, ridge)

    edit.replace_weight(output.linear, "weight", make)
