"""What single edits cost: the divergence from the original of a graph after each of several rewrites, one at a time.

Edits are taken in the order of the first layer that they touch. The unedited graph runs up to that layer once, and each
edit goes on from there on a copy: the layer is fitted on the text to fit on, and the rest runs on the text to judge by.
Weights that an edit does not touch stay as they were fitted before.

Source: specs/passes_math.md, sections 5 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft.ir.graph import Graph
from regraft.ir.interpret import Run
from regraft.ir.memory import infer_windows
from regraft.ir.op import Op, Value
from regraft.ir.ops.fits import Statistic
from regraft.ir.ops.weight import Load
from regraft.ir.source import Source, torch_dtype
from regraft.passes.fitting.fold import fitted_parameters
from regraft.passes.fitting.stream import Stream, ancestors, depths
from regraft.passes.fitting.sweep import Progress, Sweep, evaluate

if TYPE_CHECKING:
    from torch import Tensor

Edit = Callable[[Graph], object]

LOGIT_BYTES = 1 << 30  # at most so much is kept of the original's predictions


@dataclass(frozen=True)
class _Edited:
    """A copy of the graph after an edit; ``first`` is the layer of the first op that it changed."""

    place: int
    graph: Graph
    first: int


class Damage:
    """Measures edits of one graph.

    Args:
        graph: The graph to edit; it stays as it is.
        original: The graph as it was lifted.
        source: The tensors of both.
        fit: int64 ``[N, T]``, the windows to fit on.
        judge: int64 ``[N, T]``, the windows to judge by. Fewer are taken where the vocabulary is large.
        batch: Windows at a time.
        dtype: The dtype to run in.
    """

    def __init__(
        self,
        graph: Graph,
        original: Graph,
        source: Source,
        fit: Tensor,
        judge: Tensor,
        batch: int = 4,
        dtype: str = "f32",
    ) -> None:
        self.graph = graph.copy() if graph is original else graph  # streams tell the two apart by their values
        self.original, self.source, self.batch = original, source, batch
        self.dtype = torch_dtype(dtype)
        self._dtype_name = dtype
        vocab = graph.outputs[0].tensor.shape[-1]
        assert isinstance(vocab, int)
        self.fit = fit
        self.judge = judge[: max(1, LOGIT_BYTES // (4 * vocab * judge.shape[1]))]
        self.fits: dict[Value, Tensor] = {}

    def measure(self, edits: Sequence[Edit], progress: Progress | None = None) -> list[float]:
        """Return the mean KL(original ‖ edited) of each edit alone, in nats a token; an edit may change nothing.

        Args:
            edits: Each changes the copy of the graph that it is given.
            progress: Called with edits done, edits in all, and what is done.
        """
        import torch

        edited = [self._edited(place, edit) for place, edit in enumerate(edits)]
        found = [0.0] * len(edits)
        with torch.no_grad():
            wanted = fitted_parameters(self.graph)
            sweep = Sweep(self.graph, self.original, self.source, self.fit, self.batch, self._dtype_name)
            self.fits = dict(sweep.solve(wanted)) if wanted else {}
            teacher = list(self._predictions(self.original, self.begin(self.judge), {}))
            walk = _Walk(self, edited)
            for done, each in enumerate(sorted(edited, key=lambda e: e.first), 1):
                walk.advance(each.first)
                found[each.place] = self._judge(each, walk, teacher)
                if progress is not None:
                    progress(done, len(edited), "edits measured")
        return found

    # -- one edit

    def _edited(self, place: int, edit: Edit) -> _Edited:
        work = self.graph.copy()
        edit(work)
        work.drop_dead()
        infer_windows(work)
        before = {op.results[0].name: op for op in self.graph.run_time()}
        same: dict[Value, bool] = {}
        last = 0
        for depth, op in depths(work):
            other = before.get(op.results[0].name)
            if other is None or not self._same(op, other, same):
                return _Edited(place, work, max(depth, 0))
            last = max(depth, last)
        return _Edited(place, work, last + 1)

    def _same(self, op: Op, other: Op, memo: dict[Value, bool]) -> bool:
        """Whether two ops of the two graphs compute the same, given that what stands before them does."""
        alike = type(op) is type(other) and _without_window(op) == _without_window(other)
        pairs = list(zip(op.slots.values(), other.slots.values(), strict=True)) if alike else []
        if not alike or any(len(a) != len(b) for a, b in pairs):
            return False
        for mine, theirs in ((x, y) for a, b in pairs for x, y in zip(a, b, strict=True)):
            if mine.name != theirs.name and not mine.is_weight:
                return False
            if mine.is_weight and not self._same_weight(mine, theirs, memo):
                return False
        return True

    def _same_weight(self, mine: Value, theirs: Value, memo: dict[Value, bool]) -> bool:
        if mine not in memo:
            a, b = mine.op, theirs.op
            assert a is not None
            assert b is not None
            if isinstance(a, Load) and isinstance(b, Load):
                memo[mine] = a.key() == b.key()
            else:
                memo[mine] = self._same(a, b, memo)
        return memo[mine]

    def _judge(self, each: _Edited, walk: _Walk, teacher: Sequence[Tensor]) -> float:
        """Fit what the edit made, run the rest, and compare."""
        fits = self._kept_fits(each.graph)
        sweep = Sweep(
            each.graph,
            self.original,
            self.source,
            walk.fit.renamed(each.graph, self.graph),
            dtype=self._dtype_name,
            known={value.name: tensor for value, tensor in fits.items()},
        )
        fits = dict(sweep.solve(fitted_parameters(each.graph)))
        total, tokens = 0.0, 0
        judged = self._predictions(each.graph, walk.judge.renamed(each.graph, self.graph), fits)
        for mine, theirs in zip(judged, teacher, strict=True):
            total += float((theirs.exp() * (theirs - mine)).double().sum())
            tokens += mine.shape[0] * mine.shape[1]
        return total / tokens

    def _kept_fits(self, graph: Graph) -> dict[Value, Tensor]:
        """Return the parameters of an edited graph that are fitted as they were."""
        memo: dict[Value, bool] = {}
        kept: dict[Value, Tensor] = {}
        old = {value.name: value for value in self.fits}
        for value in fitted_parameters(graph):
            if value.name in old and self._same_weight(value, old[value.name], memo):
                kept[value] = self.fits[old[value.name]]
        return kept

    # -- running

    def begin(self, tokens: Tensor) -> Stream:
        """Return a text at the start of both graphs."""
        return Stream.begin(tokens, self.batch, (self.graph, self.original), self._load)

    def _load(self, op: Load) -> Tensor:
        tensor = self.source.read(op.source)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def weights(self, ops: Sequence[Op], fits: Mapping[Value, Tensor]) -> dict[Value, Tensor]:
        """Return the weights that ``ops`` read, in the dtype to run in."""
        found: dict[Value, Tensor] = {}
        for value in (v for op in ops for v in op.operands if v.is_weight):
            if value not in found:
                tensor = fits[value] if value in fits else evaluate(value, self.source, fits)
                found[value] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return found

    def _predictions(self, graph: Graph, stream: Stream, fits: Mapping[Value, Tensor]) -> Iterator[Tensor]:
        """Yield each batch's log-probabilities of the next token ``[B, T, V]``, from where a stream stands.

        The whole stream goes from layer to layer, so that a layer's weights are evaluated once.
        """
        output = graph.outputs[0]
        needed = ancestors([output], stream.present)
        todo = [(depth, op) for depth, op in depths(graph) if op in needed]
        while todo:
            depth = todo[0][0]
            ops = [op for d, op in todo if d == depth]
            todo = todo[len(ops) :]
            later = {v for _, op in todo for v in op.operands} | {output}
            stream.advance(ops, self.weights(ops, fits), later, _nothing, set())
        for batch in stream.batches:
            yield batch.values.pop(output).float().log_softmax(-1)


class _Walk:
    """The unedited graph on its way: what stands before a layer and is read from it on, over both texts."""

    def __init__(self, damage: Damage, edited: Sequence[_Edited]) -> None:
        self._damage = damage
        self.fit, self.judge = damage.begin(damage.fit), damage.begin(damage.judge)
        self._next = -1
        self._last_read: dict[str, int] = {}
        for graph in (damage.original, damage.graph, *(each.graph for each in edited)):
            self._note_reads(graph)

    def _note_reads(self, graph: Graph) -> None:
        """Note the deepest layer at which each value is read, by an op or with another value in a statistic."""
        made: dict[str, int] = {}
        for depth, op in depths(graph):
            made.update((value.name, depth) for value in op.results)
            for value in op.operands:
                self._read(value.name, depth)
        for op in graph.ops:
            if isinstance(op, Statistic):
                names = [value.name for value in op.edges(self._damage.original)]
                for name in names:
                    self._read(name, max(made.get(other, -1) for other in names))

    def _read(self, name: str, depth: int) -> None:
        self._last_read[name] = max(depth, self._last_read.get(name, depth))

    def advance(self, to: int) -> None:
        """Run everything that stands before layer ``to``."""
        damage = self._damage
        for depth in range(self._next, to):
            later = {name for name, last in self._last_read.items() if last > depth}
            keep = {v for g in (damage.original, damage.graph) for v in g.values.values() if v.name in later}
            theirs, mine = ([op for d, op in depths(g) if d == depth] for g in (damage.original, damage.graph))
            weights = damage.weights(mine, damage.fits)
            self.judge.advance(mine, weights, keep, _nothing, set())
            self.fit.advance([*theirs, *mine], {**weights, **damage.weights(theirs, {})}, keep, _nothing, set())
        self._next = max(self._next, to)


def _without_window(op: Op) -> dict[str, object]:
    """Return an op's attributes, less how far back a memory keeps its rows, which is inferred from its readers."""
    return {k: v for k, v in op.attributes.items() if not (op.is_state and k in ("window", "first"))}


def _nothing(run: Run, values: Mapping[Value, Any]) -> None:
    """See nothing."""
