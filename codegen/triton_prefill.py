"""Target ``triton``: calls of many tokens, by kernels where they run, elsewhere as target ``torch`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from regraft.codegen.names import suffixes
from regraft.codegen.torch_body import Body
from regraft.codegen.torch_code import ATOM, Code, Sight
from regraft.codegen.torch_ops import emit_op
from regraft.codegen.triton_experts import emit_grouped
from regraft.codegen.triton_flash import emit_flash, emit_scores
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Windowed
from regraft.ir.ops.kernels import Flash, GroupedExperts, IndexStep, Kernel

if TYPE_CHECKING:
    from regraft.codegen.triton_target import SharedKernels


class PrefillBody(Body):
    """The statements of a call of many tokens: of what has a kernel both forms, of which the call chooses."""

    shared: SharedKernels

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._masked = True  # whether what is written reads the masks of the views that it asks for

    def view(self, kept: Sight, seen: Sight) -> str:
        """Return the variable that says what a query sees of a memory, noting whether its mask is always needed."""
        name = super().view(kept, seen)
        if self._masked:
            self.shared.masked.add(name)
        return name

    def write(self, op: Op, kept: set[Value]) -> None:
        """Add an op."""
        self._masked = not isinstance(op, Kernel | Windowed)
        if not isinstance(op, Kernel):
            super().write(op, kept)
            return
        for name, value in zip(op.takes, op.inputs, strict=True):
            code = self.of(value).within(ATOM)
            self.names.alias(op.inner[name], code)
            if not value.is_weight:
                self.names.alias(value, code)
        target = ", ".join(self.names.give(v, *suffixes(self.local(v.name))) for v in op.results)
        x = next(value for value in op.inputs if not value.is_weight)
        (alone,) = op.stands_for
        self.shared.in_blocks = True
        self.lines.append(f"if in_blocks({self.of(x).text}):")
        self._within(target, _call(op, self), ", ".join(map(self.told, op.results)))
        self.lines.append("else:")
        self._within(target, emit_op(alone, self))

    def _within(self, target: str, code: Code, told: str = "") -> None:
        """Add an assignment that stands under a condition."""
        start = len(self.lines)
        self.width -= 4
        self.assign(target, code.text, told)
        self.width += 4
        self.lines[start:] = [f"    {line}" for line in self.lines[start:]]


KERNELS: Mapping[type[Kernel], Callable[[Any, PrefillBody], Code]] = {
    Flash: emit_flash,
    GroupedExperts: emit_grouped,
    IndexStep: emit_scores,
}


def _call(op: Kernel, at: PrefillBody) -> Code:
    """Return the call of a kernel."""
    emitter = KERNELS.get(type(op))
    if emitter is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    return emitter(op, at)
