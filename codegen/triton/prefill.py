"""Target ``triton``: calls of many tokens, by kernels where they run, elsewhere as target ``torch`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from regraft.codegen.names import suffixes
from regraft.codegen.torch.body import Body, kept
from regraft.codegen.torch.code import ATOM, Code, Far, Sight
from regraft.codegen.torch.memories import written_by_readers
from regraft.codegen.torch.ops import emit_op
from regraft.codegen.triton.convolved import emit_convolved_in_blocks
from regraft.codegen.triton.delta_rows import emit_rule_in_blocks
from regraft.codegen.triton.experts import emit_grouped
from regraft.codegen.triton.flash import emit_flash, emit_gathered, emit_scores
from regraft.codegen.triton.pool import emit_pool_in_blocks
from regraft.codegen.triton.streams import emit_streams_in_blocks
from regraft.ir.dims import T
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Windowed
from regraft.ir.ops.kernels import (
    ConvolvedStep,
    DeltaStep,
    Flash,
    GroupedExperts,
    IndexStep,
    Kernel,
    PoolStep,
    SparseStep,
    StreamsStep,
)
from regraft.ir.ops.memory import ViewRows
from regraft.ir.ops.pos import Rope
from regraft.ir.types import MemoryType, TensorType

if TYPE_CHECKING:
    from regraft.codegen.triton.target import SharedKernels


class PrefillBody(Body):
    """The statements of a call of many tokens: of what has a kernel both forms, of which the call chooses."""

    shared: SharedKernels

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._masked = True  # whether what is written reads the masks of the views that it asks for
        self._outer: dict[Value, Value] = {}  # what a kernel gives, of which its body has values too

    def view(self, kept: Sight, seen: Sight) -> str:
        """Return the variable that says what a query sees of a memory, noting whether its mask is always needed."""
        name = super().view(kept, seen)
        if self._masked:
            self.shared.masked.add(name)
        return name

    def every(self, far: Far) -> str:
        """Return the variable that says what a query sees of pooled rows, noting the same."""
        name = super().every(far)
        if self._masked:
            self.shared.masked.add(name)
        return name

    def keep(self, op: Op) -> None:
        """Declare a memory, in the order in which the module keeps them."""
        super().past(op)

    def past(self, op: Op) -> str:
        """Return the variable that holds a memory's rows of earlier calls, by the memory's name."""
        past = self.past_of(kept(op))
        assert past is not None
        return past

    def past_of(self, memory: Value) -> str | None:
        """Return that variable of a memory if it is one that is kept here."""
        named = {self.local(kept(op).name): past for op, past in self.pasts.items()}
        return named.get(self.local(memory.name))

    def readers(self, memory: Value) -> list[Op]:
        """Return the ops that read a memory, for one of a kernel's body those that read what it gives."""
        return super().readers(self._outer.get(memory, memory))

    def write(self, op: Op, kept: set[Value]) -> None:
        """Add an op."""
        self._masked = not isinstance(op, Kernel | ViewRows | Windowed)
        if not isinstance(op, Kernel):
            super().write(op, kept)
            return
        for name, value in zip(op.takes, op.inputs, strict=True):
            if value.op is None and all(isinstance(user, Rope) for user in op.inner[name].users):
                continue  # positions: rotations are given cosine and sine
            code = self.of(value).within(ATOM)
            self.names.alias(op.inner[name], code)
            if not value.is_weight:
                self.names.alias(value, code)
        for name, value in zip(op.gives, op.results, strict=True):
            inner = op.inner[name]
            self._outer[inner] = value
            if inner.op is None or not written_by_readers(inner.op):
                self.names.alias(inner, self.names.give(value, *suffixes(self.local(value.name))))
        x = next(value for value in op.inputs if isinstance(value.type, TensorType) and value.tensor.shape[1] == T)
        self.shared.in_blocks = True
        test = f"in_blocks({self.of(x).text})"
        if isinstance(op, GroupedExperts):  # plain ones loop over what tokens chose, which no trace can follow
            test = f"torch.compiler.is_compiling() or {test}"
        self.lines.append(f"if {test}:" if isinstance(op, _LEARNING) else f"if {test} and not torch.is_grad_enabled():")
        start = len(self.lines)
        self.width -= 4
        emit = KERNELS.get(type(op))
        if emit is None:
            raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
        code = emit(op, self)
        if code is not None:
            self._gives(op.results, code)
        between = len(self.lines)
        for each in op.stands_for:
            if not self.left_to_readers(each):
                self._gives(each.results, emit_op(each, self))
        self.width += 4
        first, second = (
            [f"    {line}" for line in lines] for lines in (self.lines[start:between], self.lines[between:])
        )
        self.lines[start:] = [*first, "else:", *second]

    def passed(self, value: Value) -> str:
        """Return the code of an operand of a kernel, which takes contiguous tensors."""
        code = self.of(value)
        as_is = value.is_weight or isinstance(value.op, Kernel) or isinstance(value.type, MemoryType)
        return code.text if as_is else f"{code.within(ATOM)}.contiguous()"

    def _gives(self, results: Sequence[Value], code: Code) -> None:
        """Add an assignment to an op's results, the memories among them that nobody reads left out."""
        results = [v for v in results if not isinstance(v.type, MemoryType) or self.readers(v)] or results
        names = [self.names.give(value, *suffixes(self.local(value.name))) for value in results]
        self.assign(", ".join(names), code.text, ", ".join(map(self.told, results)))


KERNELS: Mapping[type[Kernel], Callable[[Any, PrefillBody], Code | None]] = {  # None: it has written all lines
    ConvolvedStep: emit_convolved_in_blocks,
    DeltaStep: emit_rule_in_blocks,
    Flash: emit_flash,
    GroupedExperts: emit_grouped,
    IndexStep: emit_scores,
    PoolStep: emit_pool_in_blocks,
    SparseStep: emit_gathered,
    StreamsStep: emit_streams_in_blocks,
}

_LEARNING = (
    ConvolvedStep,
    DeltaStep,
    Flash,
    GroupedExperts,
    IndexStep,
    SparseStep,
)  # through these gradients flow, or none do at all
