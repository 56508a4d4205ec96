"""The interpreter: a graph run op by op, by each op's reference meaning. Plain, and what all is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regraft.ir.dims import Dim, L
from regraft.ir.errors.base import nearest
from regraft.ir.errors.checkpoint import TensorMismatchError
from regraft.ir.errors.checks import CallError, ContextError, NeedsCalibrationError
from regraft.ir.errors.graph import UnknownValueError
from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value
from regraft.ir.ops.fits import Statistic
from regraft.ir.ops.weight import Load
from regraft.ir.source import Source, TensorInfo, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Rows:
    """What a memory shows: its fields ``[B, N, ...]``, and each row's position and whether it is a token ``[B, N]``."""

    fields: dict[str, Tensor]
    pos: Tensor
    valid: Tensor


@dataclass
class Cache:
    """What is kept between calls: the rows of each memory, by its name, and the tokens seen so far ``[B]``."""

    batch: int
    context: int | None = None
    rows: dict[str, Rows] = field(default_factory=dict[str, Rows])
    lengths: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the rows' fields."""
        return sum(f.numel() * f.element_size() for rows in self.rows.values() for f in rows.fields.values())


class Run:
    """One call: what the ops' reference meanings may ask for."""

    def __init__(
        self,
        pos: Tensor,
        valid: Tensor,
        cache: Cache | None,
        load: Callable[[Load], Tensor],
        statistic: Callable[[Statistic], Tensor] | None = None,
        last: int | None = None,
    ) -> None:
        self.pos, self.valid, self.cache, self.last = pos, valid, cache, last
        self.load = load
        self._statistic = statistic
        self.written: dict[str, Rows] = {}

    def wide(self, x: Tensor) -> Tensor:
        """Return ``x`` in float32, or in float64 if it is that already."""
        import torch

        return x if x.dtype == torch.float64 else x.float()

    def of_last(self, x: Tensor) -> Tensor:
        """Return the rows ``[B, L, ...]`` of the last tokens of each sequence, given those of all ``[B, T, ...]``."""
        return x if self.last is None else last_of(x, self.valid.sum(1), self.last)

    def along(self, sequence: Dim) -> Run:
        """Return the run with the positions of the tokens along ``T`` or ``L``."""
        if sequence != L or self.last is None:
            return self
        return Run(self.of_last(self.pos), self.of_last(self.valid), self.cache, self.load, self._statistic)

    def statistic(self, op: Statistic) -> Tensor:
        """Return a statistic.

        Raises:
            NeedsCalibrationError: There is no calibration text here.
        """
        if self._statistic is None:
            raise NeedsCalibrationError(name=op.results[0].name)
        return self._statistic(op)

    def past(self, memory: Value, field: str) -> Tensor | None:
        """Return what the calls before left of a memory that holds as much at any length, if there were any."""
        rows = self.cache.rows.get(memory.name) if self.cache else None
        return None if rows is None else rows.fields[field]

    def keep(self, memory: Value, field: str, rows: Tensor) -> None:
        """Note what to keep of a memory that holds as much at any length; ``rows`` are ``[B, P, ...]``."""
        import torch

        if self.cache is not None:
            pos = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
            self.written[memory.name] = Rows({field: rows}, pos, torch.ones_like(pos, dtype=torch.bool))

    def extend(self, memory: Value, fields: dict[str, Tensor]) -> Rows:
        """Return the rows kept so far and this call's, and note what to keep for the next call."""
        import torch

        rows, kept = self.continued(memory.name, Rows(fields, self.pos, self.valid)), memory.memory
        keep = rows.valid
        if kept.window is not None:
            last = torch.where(rows.valid, rows.pos, -1).amax(1, keepdim=True)
            keep = keep & ((rows.pos > last - kept.window) | (rows.pos < kept.first))
        self.keep_rows(memory.name, rows, keep)
        return rows

    def continued(self, name: str, new: Rows) -> Rows:
        """Return the rows kept so far under a name, and new ones after them."""
        import torch

        past = self.cache.rows.get(name) if self.cache else None
        if past is None:
            return new
        fields = {field: torch.cat((past.fields[field], rows), 1) for field, rows in new.fields.items()}
        return Rows(fields, torch.cat((past.pos, new.pos), 1), torch.cat((past.valid, new.valid), 1))

    def keep_rows(self, name: str, rows: Rows, keep: Tensor) -> None:
        """Note under a name which rows to keep for the next call, first rows first; ``keep`` is bool ``[B, N]``."""
        import torch

        if self.cache is None:
            return
        order = torch.argsort((~keep).to(torch.int8), dim=1, stable=True)[:, : int(keep.sum(1).amax())]

        def pick(x: Tensor) -> Tensor:
            index = order.view(*order.shape, *[1] * (x.ndim - 2)).expand(*order.shape, *x.shape[2:])
            return x.gather(1, index)

        self.written[name] = Rows({n: pick(f) for n, f in rows.fields.items()}, pick(rows.pos), pick(keep))


class Interpreter:
    """Runs a graph: prefill, chunks and cached decode.

    Args:
        graph: A verified graph.
        source: Where its tensors are.
        dtype: The dtype to compute in: "f64", "f32" (default), "f16" or "bf16".
        device: A torch device.

    Raises:
        NeedsCalibrationError: A parameter is fitted to statistics that nobody has taken yet.
    """

    def __init__(self, graph: Graph, source: Source, dtype: str = "f32", device: str = "cpu") -> None:
        self.graph, self.device = graph, device
        self._source, self._dtype = source, torch_dtype(dtype)
        self._values = self._fold(graph.parameters())
        self.weights: dict[str, Tensor] = {v.name: t for v, t in self._values.items()}

    def new_cache(self, batch: int = 1, context: int | None = None) -> Cache:
        """Return an empty cache for ``batch`` sequences of at most ``context`` tokens each."""
        return Cache(batch, context)

    def __call__(
        self, tokens: Tensor, cache: Cache | None = None, lengths: Tensor | None = None, last: int | None = None
    ) -> Tensor:
        """Return logits ``[B, T, V]``, or with ``last`` those of the last tokens of each row ``[B, last, V]``.

        Args:
            tokens: int64 ``[B, T]``, right-padded; T is at least 1.
            cache: What earlier calls left; extended in place.
            lengths: int64 ``[B]``, the tokens of each row that are no padding; all by default.
            last: How many of each row's last tokens to give logits for. A row that has fewer in this call repeats its
                first one.

        Raises:
            CallError: Tensors do not fit each other or the cache; nothing was changed.
            ContextError: The call does not fit the cache's context; nothing was changed.
        """
        if last is not None and last < 1:
            raise CallError(problem=f"last is {last}")
        output = self.graph.outputs[0]
        logits = self.run(tokens, cache, lengths, [output.name], last)[output.name]
        if last is None or output.tensor.sequence == L:
            return logits
        return last_of(logits, lengths, last)

    def run(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        edges: Iterable[str] = (),
        last: int | None = None,
    ) -> dict[str, Any]:
        """Run the graph and return the values called ``edges``: run-time values and parameters.

        With ``last``, values along ``L`` hold that many of each row's last tokens; otherwise all.

        Raises:
            UnknownValueError: There is no value of such a name.
            CallError: Tensors do not fit each other, the cache or the graph's inputs; nothing was changed.
            ContextError: The call does not fit the cache's context; nothing was changed.
        """
        import torch

        for name in (names := list(edges)):
            if name not in self.graph:
                raise UnknownValueError(name=name, near=nearest(name, list(self.graph.values)))
        with torch.no_grad():
            run = self.begin(tokens, cache, lengths, last)
            wanted = {self.graph[name] for name in names}
            values: dict[Value, Any] = dict(self._values)
            given = {"tokens": tokens.to(self.device), "pos": run.pos, "valid": run.valid}
            for value in self.graph.inputs:
                if value.name not in given:
                    raise CallError(problem=f"the graph has an input %{value.name} that no call gives")
                values[value] = given[value.name]
            found = execute(list(self.graph.run_time()), values, run, wanted)
            if cache is not None:
                cache.rows.update(run.written)
                added = run.valid.sum(1)
                cache.lengths = added if cache.lengths is None else cache.lengths + added
            return {value.name: found[value] for value in wanted}

    def begin(
        self, tokens: Tensor, cache: Cache | None = None, lengths: Tensor | None = None, last: int | None = None
    ) -> Run:
        """Return what one call's ops may ask for: positions and padding.

        Raises:
            CallError: Tensors do not fit each other or the cache.
            ContextError: The call does not fit the cache's context.
        """
        import torch

        check_call(tokens, lengths, None if cache is None else cache.batch)
        batch, length = tokens.shape
        if lengths is None:
            lengths = torch.full((batch,), length)
        lengths = lengths.to(self.device)
        start = torch.zeros_like(lengths)
        if cache is not None and cache.lengths is not None:
            start = cache.lengths
        if cache is not None and cache.context is not None and int((start + lengths).amax()) > cache.context:
            raise ContextError(needed=int((start + lengths).amax()), context=cache.context)
        steps = torch.arange(length, device=self.device)
        pos = start[:, None] + steps.expand(batch, length)
        return Run(pos, steps < lengths[:, None], cache, self._load, last=last)

    def _load(self, op: Load) -> Tensor:
        found = self._source.info(op.source)
        if found.shape != op.shape:
            expected = TensorInfo(op.source, found.dtype, op.shape)
            raise TensorMismatchError(
                tensor=op.source, found=found, expected=expected, where=self._source.where(op.source)
            )
        tensor = self._source.read(op.source).to(self.device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _fold(self, wanted: list[Value]) -> dict[Value, Tensor]:
        import torch

        nothing = torch.zeros(0, 0)
        run = Run(nothing, nothing, None, self._load)
        with torch.no_grad():
            found = execute([op for op in self.graph.ops if op.weight_time], {}, run, set(wanted))
            return {v: t.to(self._dtype) if t.is_floating_point() else t for v, t in found.items()}


def execute(ops: list[Op], values: Mapping[Value, Any], run: Run, wanted: set[Value]) -> dict[Value, Any]:
    """Evaluate ``ops`` in order and return the values ``wanted``; others go after their last use.

    A statistic is asked of ``run``; the run-time values that it is over need not be present.
    """
    present = dict(values)
    given = set(values)
    reads = {op: () if op.reads_run_time else tuple(op.operands) for op in ops}
    left: dict[Value, int] = {}
    for op in ops:
        for value in reads[op]:
            left[value] = left.get(value, 0) + 1
    for op in ops:
        arguments: list[Any] = []
        for slot in () if op.reads_run_time else op.spec.slots:
            found = [present[v] for v in op.slots[slot.name]]
            arguments += found or ([None] if slot.optional else [])
        results = op.reference(run, *arguments)
        if len(op.results) == 1:
            results = (results,)
        made = zip(op.results, results, strict=True)
        present.update((value, tensor) for value, tensor in made if left.get(value) or value in wanted)
        for value in reads[op]:
            left[value] -= 1
            if not left[value] and value not in wanted and value not in given:
                del present[value]
    return {value: present[value] for value in wanted}


def check_call(tokens: Tensor, lengths: Tensor | None, batch: int | None) -> None:
    """Check the shapes, and that lengths are within them; ``batch`` is the cache's, if there is one.

    Raises:
        CallError: Something does not fit.
    """
    if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
        raise CallError(problem=f"tokens are {tokens.dtype} {list(tokens.shape)}")
    if batch is not None and len(tokens) != batch:
        raise CallError(problem=f"{len(tokens)} rows of tokens and a cache for {batch}")
    if lengths is None:
        return
    if lengths.shape != tokens.shape[:1] or lengths.is_floating_point():
        raise CallError(problem=f"lengths are {lengths.dtype} {list(lengths.shape)} for tokens {list(tokens.shape)}")
    if int(lengths.amin()) < 0 or int(lengths.amax()) > tokens.shape[1]:
        raise CallError(problem=f"lengths run from {int(lengths.amin())} to {int(lengths.amax())} of {tokens.shape[1]}")


def last_of(x: Tensor, lengths: Tensor | None, last: int) -> Tensor:
    """Return the last ``last`` real rows of ``x [B, T, ...]``, given each sequence's length; ``[B, last, ...]``."""
    import torch

    if lengths is None:
        lengths = torch.full(x.shape[:1], x.shape[1])
    index = (lengths.to(x.device)[:, None] - last + torch.arange(last, device=x.device)).clamp(min=0)
    return torch.take_along_dim(x, index.view(*index.shape, *[1] * (x.ndim - 2)), 1)
