"""``kernel``: what fusion makes. Each op stands for others, which are its meaning; it is computed in few launches.

The ops that a kernel stands for are an attribute, one a line of text as a graph has it, so that a fused graph prints,
parses, verifies, counts and runs like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from regraft.ir.attributes import STRS
from regraft.ir.dims import Sizes
from regraft.ir.errors.graph import GraphError, OpRuleError
from regraft.ir.graph import Graph
from regraft.ir.op import Cost, Op, Value, attribute, op, operands
from regraft.ir.ops.weight import Load
from regraft.ir.types import MemoryType, TensorType, Type, with_rows_of

if TYPE_CHECKING:
    from regraft.ir.interpret import Run


class Kernel(Op):
    """An op that stands for others.

    ``body`` holds these, one a line; ``takes`` is what they call the operands, in order, and ``gives`` names the values
    among them that are the results. A memory that they make is a result, and called there as it is outside.
    """

    inputs = operands("*")
    takes = attribute(STRS)
    gives = attribute(STRS)
    body = attribute(STRS)

    many_results = True
    reads_memory = True
    is_state = True

    @cached_property
    def inner(self) -> Graph:
        """The ops that this one stands for, as a graph of their own; parameters are loaded there."""
        from regraft.ir.parse import parse_lines

        if not self.gives:
            raise OpRuleError(op=self.label, problem="no results", fix="gives names what others read")
        if len(self.takes) != len(self.inputs) or len(set(self.takes)) < len(self.takes):
            problem = f"{len(self.inputs)} operands, and names for {len(set(self.takes))}"
            raise OpRuleError(op=self.label, problem=problem, fix="takes names each operand once")
        graph = Graph("kernel")
        try:
            for name, value in zip(self.takes, self.inputs, strict=True):
                if value.is_weight:
                    graph.add(Load({}, {"dtype": value.tensor.dtype, "shape": value.tensor.sizes}), [name])
                else:
                    graph.add_input(name, value.type)
            parse_lines(graph, self.body)
        except GraphError as error:
            problem = f"in its body, {error.text}"
            raise OpRuleError(op=self.label, problem=problem, fix="a body is ops over what the kernel takes") from None
        if strange := [name for name in self.gives if name not in graph]:
            raise OpRuleError(op=self.label, problem=f"no %{strange[0]} is made", fix="gives names values of the body")
        graph.set_outputs([graph[name] for name in self.gives])
        return graph

    @property
    def stands_for(self) -> list[Op]:
        """The ops that this one stands for, in order."""
        return [op for op in self.inner.ops if not op.weight_time]

    def outside(self, value: Value) -> Value | None:
        """Return the operand or the result that a value of `inner` is, or none if it stays inside."""
        for name, given in zip(self.takes, self.inputs, strict=True):
            if name == value.name:
                return given
        for name, result in zip(self.gives, self.results, strict=True):
            if name == value.name:
                return result
        return None

    def types(self) -> tuple[Type, ...]:
        return tuple(value.type for value in self.inner.outputs)

    def reference(self, run: Run, *inputs: Any) -> Any:
        from regraft.ir.interpret import execute

        values = {self.inner[name]: given for name, given in zip(self.takes, inputs, strict=True)}
        found = execute(self.stands_for, values, run, set(self.inner.outputs))
        results = [found[value] for value in self.inner.outputs]
        return tuple(results) if len(results) > 1 else results[0]

    def cost(self, at: Sizes) -> Cost:
        """Count what the body does; of run-time tensors those alone that enter and leave."""
        parts = [op.cost(at) for op in self.stands_for]
        whole = sum(parts, Cost())
        outside = [*(v for v in self.inputs if not v.is_weight), *self.results]
        moved = sum(v.type.nbytes(at) for v in dict.fromkeys(outside) if isinstance(v.type, TensorType))
        return Cost(
            flops=whole.flops,
            weights=whole.weights,
            cache_read=whole.cache_read,
            cache_written=whole.cache_written,
            activations=moved,
            cache=whole.cache,
        )

    def idle_parameters(self) -> int:
        return sum(op.idle_parameters() for op in self.stands_for)

    def memory_of(self, inner: Value) -> Value:
        """Return the memory outside that a memory of the body is."""
        found = self.outside(inner)
        assert found is not None, "memories are results"
        return found


def stand_in(kind: type[Kernel], ops: list[Op], gives: list[Value], name: Callable[[Value], str]) -> Kernel:
    """Return a kernel over the operands of ``ops`` that they do not make themselves, with ``ops`` as its body.

    Args:
        kind: The kernel's class.
        ops: In order.
        gives: Those of their results that others read.
        name: What the body calls a value that is given to it; it keeps the names of its own.
    """
    from regraft.ir.text import print_op

    own = {value for op in ops for value in op.results}
    given = list(dict.fromkeys(v for op in ops for v in op.operands if v not in own))
    names: dict[Value, str] = {value: value.name for value in own}
    taken = set(names.values())
    for value in given:
        wanted = candidate = name(value)
        number = 1
        while candidate in taken:
            number += 1
            candidate = f"{wanted}_{number}"
        taken.add(candidate)
        names[value] = candidate
    memories = {value.name: names[value] for value in given if isinstance(value.type, MemoryType)}

    def typed(type: Type) -> Type:
        return with_rows_of(type, lambda name: memories.get(name, name))

    attributes = {
        "takes": tuple(names[value] for value in given),
        "gives": tuple(value.name for value in gives),
        "body": tuple(print_op(op, names.__getitem__, type=typed) for op in ops),
    }
    return kind({"inputs": given}, cast("dict[str, object]", attributes))


def memories_made(ops: list[Op]) -> list[Value]:
    """Return the memories that ops make."""
    return [v for op in ops if op.is_state for v in op.results if isinstance(v.type, MemoryType)]


@op("kernel.rows")
class Rows(Kernel):
    """Maps of one vector, with what comes before and after them element by element: specs/kernels.md, K1, K11.

    The body holds linear maps that read one value, norms and elementwise ops on the way to it, elementwise ops on their
    results, and on the whole of these, at the end, norms again. Each program streams rows of the weights. Heads may be
    normed, and mapped by rows of their own, by the program that finishes a head.

    Example:
        %y = kernel.rows %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.embed")
class EmbedStep(Kernel):
    """What a step begins with: a token's rows of the tables, scaled or shifted: specs/kernels.md, K11.

    The same launch gives the step's cosines and sines, which are no values of the graph.

    Example:
        %y = kernel.embed %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.layer_rows")
class LayerRowsStep(Kernel):
    """What layers are given of their own: a token's rows, added to what is mapped from the stream and normed.

    Example:
        %y = kernel.layer_rows %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.attend")
class AttendStep(Kernel):
    """Attention of one token a sequence to a memory, split along it: specs/kernels.md, K3, K7.

    The body may hold the heads' norms and rotations before the memory, the memory itself, and what makes keys and
    values of its rows as they are read.

    Example:
        %y = kernel.attend %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.sparse")
class SparseStep(Kernel):
    """Attention to a window of rows and to pooled or chosen rows, keys and values in one: specs/kernels.md, K8.

    Example:
        %y = kernel.sparse %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.index")
class IndexStep(Kernel):
    """Scores of a memory's rows, and the numbers of those that are best for a token: specs/kernels.md, K9.

    Example:
        %y = kernel.index %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.experts")
class ExpertsStep(Kernel):
    """The chosen experts' gated MLPs of one token, with the shared one: specs/kernels.md, K2. Two launches.

    Example:
        %y = kernel.experts %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.route")
class RouteStep(Kernel):
    """The choice of a token's experts, from its vector or from scores: specs/kernels.md, K2.

    Example:
        %y = kernel.route %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.streams")
class StreamsStep(Kernel):
    """A boundary between sublayers of a model of several streams, and a router behind it: specs/kernels.md, K4.

    Example:
        %y = kernel.streams %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.convolved")
class ConvolvedStep(Kernel):
    """What stands before attention in a convolutional latent (CCA): specs/kernels.md, K6.

    Example:
        %y = kernel.convolved %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.short_conv")
class ShortConvStep(Kernel):
    """Convolutions of single channels along the sequence, for one token, with what they keep: specs/kernels.md, K11.

    Example:
        %y = kernel.short_conv %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.delta")
class DeltaStep(Kernel):
    """The gated delta rule, for one token with what leads to it and each head's norm and gate.

    What leads to it may be a convolution of single channels along the sequence, with what that keeps.

    Example:
        %y = kernel.delta %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.pool")
class PoolStep(Kernel):
    """A row pooled from several tokens, where one is complete, of heads or of a latent: specs/kernels.md, K10.

    Example:
        %y = kernel.pool %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.rows_and_pool")
class RowsAndPool(Kernel):
    """Maps of one vector, and beside them rows pooled from several tokens: specs/kernels.md, K1, K10. One launch.

    The body holds those of a `kernel.rows` and of a `kernel.pool` that do not wait for each other.

    Example:
        %y = kernel.rows_and_pool %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.head")
class Head(Kernel):
    """The last norm and the scores of the vocabulary: specs/kernels.md, K5.

    Example:
        %y = kernel.head %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.flash")
class Flash(Kernel):
    """Attention of many tokens to a memory, tile by tile: specs/kernels.md, K12.

    Example:
        %y = kernel.flash %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """


@op("kernel.grouped_experts")
class GroupedExperts(Kernel):
    """The chosen experts' gated MLPs of many tokens, dealt by expert: specs/kernels.md, K13.

    Example:
        %y = kernel.grouped_experts %x {takes = ["a"], gives = ["y"], body = ["%y = core.scale %a {factor = 0.5}"]}
    """

    is_state = False
