"""Target ``triton``: calls of many tokens, by kernels where they run, elsewhere as target ``torch`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from regraft.codegen.names import suffixes
from regraft.codegen.torch.body import Body
from regraft.codegen.torch.code import ATOM, Code, Sight
from regraft.codegen.torch.ops import emit_op
from regraft.codegen.triton.experts import emit_grouped
from regraft.codegen.triton.flash import emit_flash, emit_pooled, emit_scores
from regraft.codegen.triton.streams import emit_streams_in_blocks
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Windowed
from regraft.ir.ops.kernels import Flash, GroupedExperts, IndexStep, Kernel, SparseStep, StreamsStep
from regraft.ir.types import MemoryType

if TYPE_CHECKING:
    from regraft.codegen.triton.target import SharedKernels


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
        for name, value in zip(op.gives, op.results, strict=True):
            self.names.alias(op.inner[name], self.names.give(value, *suffixes(self.local(value.name))))
        x = next(value for value in op.inputs if not value.is_weight)
        self.shared.in_blocks = True
        test = f"in_blocks({self.of(x).text})"
        self.lines.append(f"if {test}:" if isinstance(op, _LEARNING) else f"if {test} and not torch.is_grad_enabled():")
        self._within(op.results, _call(op, self))
        self.lines.append("else:")
        for each in op.stands_for:
            self._within(each.results, emit_op(each, self))

    def passed(self, value: Value) -> str:
        """Return the code of an operand of a kernel, which takes contiguous tensors."""
        code = self.of(value)
        as_is = value.is_weight or isinstance(value.op, Kernel) or isinstance(value.type, MemoryType)
        return code.text if as_is else f"{code.within(ATOM)}.contiguous()"

    def _within(self, results: Sequence[Value], code: Code) -> None:
        """Add an assignment that stands under a condition."""
        start = len(self.lines)
        self.width -= 4
        names = [self.names.give(value, *suffixes(self.local(value.name))) for value in results]
        self.assign(", ".join(names), code.text, ", ".join(map(self.told, results)))
        self.width += 4
        self.lines[start:] = [f"    {line}" for line in self.lines[start:]]


KERNELS: Mapping[type[Kernel], Callable[[Any, PrefillBody], Code]] = {
    Flash: emit_flash,
    GroupedExperts: emit_grouped,
    IndexStep: emit_scores,
    SparseStep: emit_pooled,
    StreamsStep: emit_streams_in_blocks,
}

_LEARNING = (Flash, GroupedExperts, IndexStep, SparseStep)  # through these gradients flow, or none do at all


def _call(op: Kernel, at: PrefillBody) -> Code:
    """Return the call of a kernel."""
    emitter = KERNELS.get(type(op))
    if emitter is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    return emitter(op, at)
