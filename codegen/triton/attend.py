"""Target ``triton``: calls of ``kernel.attend``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from regraft.codegen.kernels.attend import AttendStep
from regraft.codegen.kernels.attention import Entries, HeadNorm
from regraft.codegen.torch.code import ATOM, Code
from regraft.codegen.triton.attend_rows import emit_attend_rows
from regraft.codegen.triton.heads import LONG, head_norm, outside, rope_codes, sight, slots, stem, turn_of, weight_of
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.across import AcrossForm, across_form
from regraft.ir.forms.attend import AttendForm, LatentForm, ValuesForm, attend_form, latent_form, values_form
from regraft.ir.forms.attend_rows import attend_rows_form
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


def emit_attend(op: KernelOp, at: StepBody) -> Code:
    """Return the call of a step's attention, by the first of the forms that its ops have."""
    for read, emit in _FORMS:
        form = read(op.stands_for)
        if form is not None:
            return emit(op, form, at)
    raise MissingEmitterError(target="triton", op=op.label, where=op.scope)


def _apart(op: KernelOp, form: AttendForm, at: StepBody) -> Code:
    attend, kept = form.attend, form.memory.memory
    heads, width = (int(str(dim)) for dim in attend.q.tensor.shape[2:])
    kv_heads, value_width = kept.field("v").shape
    kernel = AttendStep(
        name="",
        heads=heads,
        kv_heads=kv_heads,
        width=width,
        value_width=value_width,
        slots=slots(kept),
        scale=attend.scale,
        ring=kept.window is not None,
        kept=kept.first,
        **sight(attend),
        q_norm=head_norm(form.q.norm),
        k_norm=None if form.k is None else head_norm(form.k.norm),
        v_norm=None if form.v is None else head_norm(form.v.norm),
        turn=turn_of(form.q.rope, 0),
        temper=form.k is not None and form.k.temper is not None,
        writes=form.state is not None,
        pooled=_pooled(attend),
    )
    given = {"q": form.q.x, "q_norm": weight_of(form.q.norm), "sink": attend.sink}
    if form.k is not None and form.v is not None:
        temper = None if form.k.temper is None else form.k.temper.by
        given |= {"k": form.k.x, "v": form.v.x, "k_norm": weight_of(form.k.norm), "temper": temper}
    codes = {name: at.passed(outside(op, value)) for name, value in given.items() if value is not None}
    codes["q"] = at.of(outside(op, form.q.x)).text  # its heads may stand apart
    memory = at.memory(outside(op, form.memory))
    if attend.entries is not None:
        rows = at.memory(outside(op, attend.entries))
        codes |= {"far_keys": f"{rows}[0]", "far_values": f"{rows}[1]"}
    if attend.chosen is not None:
        codes["chosen"] = at.passed(outside(op, attend.chosen))
    return _call(kernel, at, {**codes, **rope_codes(form.q.rope, at), "keys": f"{memory}[0]", "values": f"{memory}[1]"})


def _pooled(attend: Attend) -> Entries | None:
    if attend.entries is None:
        return None
    rate = attend.entries.memory.rate or 1
    chosen = None if attend.chosen is None else int(str(attend.chosen.tensor.shape[2]))
    return Entries(rate, LONG // rate, attend.entries_bias, chosen)


def _latent(op: KernelOp, form: LatentForm, at: StepBody) -> Code:
    attend = form.attend
    heads, width = (int(str(dim)) for dim in attend.q.tensor.shape[2:])
    latent = int(str(form.plain.tensor.shape[3]))
    kept, norm = form.memory.memory, form.norm
    kernel = AttendStep(
        name="",
        heads=heads,
        kv_heads=1,
        width=width,
        value_width=latent,
        rows="shared",
        slots=slots(kept),
        scale=attend.scale,
        ring=kept.window is not None,
        kept=kept.first,
        **sight(attend),
        q_apart=form.turned is not None,
        k_apart=form.row is None and form.key is not None,
        k_norm=None if norm is None else HeadNorm(norm.eps, norm.weight is not None, norm.offset, latent),
        turn=turn_of(form.rope, latent),
        writes=form.state is not None,
    )
    given = {"q": form.plain, "q_turned": form.turned, "k_norm": weight_of(norm), "sink": attend.sink}
    codes = {name: at.passed(outside(op, value)) for name, value in given.items() if value is not None}
    made = {"k": form.row or form.latent, "k_turned": form.key if kernel.k_apart else None}
    for name, value in made.items():
        if value is not None:
            codes[name] = _one_head(at, outside(op, value))
    codes["keys"] = f"{at.memory(outside(op, form.memory))}[0].unflatten(-1, (1, {width}))"
    return _call(kernel, at, {**codes, **rope_codes(form.rope, at)})


def _values(op: KernelOp, form: ValuesForm, at: StepBody) -> Code:
    attend, norm = form.attend, form.norm
    eps = 0.0 if norm is None else norm.eps  # of new rows
    heads, width = (int(str(dim)) for dim in attend.q.tensor.shape[2:])
    kept = form.memory.memory
    kernel = AttendStep(
        name="",
        heads=heads,
        kv_heads=form.heads,
        width=width,
        value_width=width,
        rows="values",
        slots=slots(kept),
        scale=attend.scale,
        ring=kept.window is not None,
        kept=kept.first,
        **sight(attend),
        q_norm=head_norm(form.q.norm),
        k_norm=HeadNorm(eps, form.weight is not None),
        v_norm=HeadNorm(eps, weighted=False),
        turn=turn_of(form.rope, 0),
        writes=norm is not None,
    )
    given = {"q": form.q.x, "q_norm": weight_of(form.q.norm), "k_norm": form.weight, "sink": attend.sink}
    given |= {} if norm is None else {"k": norm.x}
    codes = {name: at.passed(outside(op, value)) for name, value in given.items() if value is not None}
    shape = f"({form.heads}, {kernel.row_width})"
    codes["keys"] = f"{at.memory(outside(op, form.memory))}[0].unflatten(-1, {shape})"
    return _call(kernel, at, {**codes, **rope_codes(form.rope, at)})


def _across(op: KernelOp, form: AcrossForm, at: StepBody) -> Code:
    attend, kept = form.attend, form.memory.memory
    heads, width = (int(str(dim)) for dim in attend.q.tensor.shape[2:])
    turn = turn_of(form.rope, 0)
    kernel = AttendStep(
        name="",
        heads=heads,
        kv_heads=1,
        width=width,
        value_width=int(str(attend.out.tensor.shape[3])),
        slots=slots(kept),
        scale=attend.scale,
        ring=kept.window is not None,
        kept=kept.first,
        **sight(attend),
        turn=None if turn is None else replace(turn, every=form.head),
        writes=False,
    )
    memory = at.memory(outside(op, form.memory))
    codes = {name: f"{memory}[{i}].flatten(2).unflatten(2, (1, -1))" for i, name in enumerate(("keys", "values"))}
    given = {"q": form.q, "sink": attend.sink}
    codes |= {name: at.passed(outside(op, value)) for name, value in given.items() if value is not None}
    return _call(kernel, at, {**codes, **rope_codes(form.rope, at)})


def _one_head(at: StepBody, value: Value) -> str:
    """Return the code of a vector as the only head."""
    code = at.of(value)
    if len(value.tensor.shape) == 4:
        return code.text
    return f"{code.within(ATOM)}.unflatten(-1, (1, {value.tensor.shape[-1]}))"


def _call(kernel: AttendStep, at: StepBody, codes: dict[str, str]) -> Code:
    codes["start"] = at.call("start")
    name = at.shared.kernel(stem(kernel, "attention"), kernel.called)
    return Code(f"{name}({', '.join(codes[argument] for argument in kernel.arguments)})")


_FORMS: tuple[tuple[Callable[[Sequence[Op]], Any], Callable[[KernelOp, Any, StepBody], Code]], ...] = (
    (attend_form, _apart),
    (latent_form, _latent),
    (values_form, _values),
    (across_form, _across),
    (attend_rows_form, emit_attend_rows),
)
