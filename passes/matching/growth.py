"""New parts of a model: what their tensors are called, and what they hold at the start."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Fill, Random
from regraft.ir.ops.core import Flatten, Gain, Linear, Mul, Scale
from regraft.ir.ops.weight import Combine
from regraft.passes.fitting.refit import add_refit, undo_refit
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Output, Refusal


def module_of(weight: Value) -> str:
    """Return the module whose submodule a weight belongs to: ``model.layers.0.self_attn`` for its ``o_proj.weight``."""
    return ".".join(weight.name.split(".")[:-2]) or "model"


def layer_module(graph: Graph, layer: int) -> str:
    """Return what the names of a layer's tensors start with, such as ``model.layers.0``."""
    here = f"layers.{layer}."
    names = (value.name for value in graph.parameters() if here in value.name)
    before = next((name.partition(here)[0] for name in names if not name.startswith(here)), "model.")
    return f"{before}layers.{layer}"


def free_module(graph: Graph, module: str) -> str:
    """Return ``module``, or the first of ``module_2``, ``module_3``, ... under which the model has no tensor yet."""
    taken = {name.rpartition(".")[0] for name in graph.values} | set(graph.values)
    candidate, number = module, 1
    while candidate in taken:
        number += 1
        candidate = f"{module}_{number}"
    return candidate


class Start:
    """Makes the tensors that a new part starts with, before an op.

    Args:
        edit: The editor.
        dtype: Their element type.
        before: The op that they are to stand before.
    """

    def __init__(self, edit: Editor, dtype: str, before: Op) -> None:
        self.edit, self.dtype, self.before = edit, dtype, before

    def fill(self, name: str, shape: Sequence[int], value: float = 0.0) -> Value:
        """Return a tensor of one number."""
        facts = {"dtype": self.dtype, "shape": tuple(shape), "value": value}
        return self.edit.add(Fill, name, before=self.before, **facts)

    def random(self, name: str, shape: Sequence[int], std: float, seed: int) -> Value:
        """Return a tensor drawn around zero; layers that are alike start alike."""
        facts = {"dtype": self.dtype, "shape": tuple(shape), "std": std, "seed": seed}
        return self.edit.add(Random, name, before=self.before, **facts)


def scalable(output: Output) -> Refusal | None:
    """Return why a constant in an attention's result cannot be made up for in its output projection, or None."""
    for op in output.chain:
        if not isinstance(op, Flatten | Mul | Gain | Scale):
            return Refusal(f"{op.label} stands between the attention and its output projection, and is not linear")
    return None


def scale_output(edit: Editor, output: Output, factor: float) -> None:
    """Multiply an output projection by a number; a fit of it is done anew from there."""
    linear, fit = output.linear, undo_refit(edit, output)

    def make(old: Value, name: str) -> Value:
        scaled = edit.add(Combine, f"{name}.scaled", [old], factors=(factor,), before=linear)
        return add_refit(edit, output, scaled, name, *fit) if fit else scaled

    edit.replace_weight(linear, "weight", make)


def input_of(value: Value, like: Value) -> Value | None:
    """Return what the first linear op on the way up from ``value`` reads that is as wide as ``like``, if one does."""
    queue, seen = [value], set[Value]()
    while queue:
        at = queue.pop(0)
        op = at.op
        if at in seen or op is None or op.weight_time or op.is_state:
            continue
        seen.add(at)
        if isinstance(op, Linear) and op.x.type == like.type:
            return op.x
        queue.extend(op.operands)
    return None
