"""Target ``triton``: the file of target ``torch``, with kernels and a step that is made of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from regraft.codegen.kernels.kernel import Kernel
from regraft.codegen.kernels.tables import COUNTED, Tiles
from regraft.codegen.names import Namespace, suffixes
from regraft.codegen.torch.body import GLOBALS, Body, Shared, kept
from regraft.codegen.torch.code import ATOM
from regraft.codegen.torch.forms import StepForm
from regraft.codegen.torch.target import TorchTarget
from regraft.codegen.torch.text import signature
from regraft.codegen.triton.ops import emit_kernel
from regraft.codegen.triton.prefill import PrefillBody
from regraft.codegen.wiring import Place, Wiring, local_value
from regraft.ir.errors.codegen import WiringError
from regraft.ir.graph import Graph
from regraft.ir.kinds import Kind, Layer, ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Flatten, Unflatten
from regraft.ir.ops.kernels import EmbedStep
from regraft.ir.ops.kernels import Kernel as KernelOp
from regraft.ir.ops.memory import ViewRows
from regraft.ir.ops.pos import Rope
from regraft.ir.types import MemoryType, TensorType

_KERNEL_GLOBALS = """
    able activated arrivals bring_compiled build_launchers Choice choice chosen compared COMPILED compiled_names
    contextmanager ContextVar copy_bandwidth counted COUNTERS Counters counting Decoder distance drawn functools
    hashlib INTERPRETED Iterator itertools least_bytes math MIXED now on_kernels os PLAIN self_check sigmoid_of
    SimpleNamespace softplus_of SPACE suppress sys take_tuned tanh_of target tell_compiled ThreadPoolExecutor tile
    time tl told_able trial triton
"""
_VIEWS = (Flatten, Unflatten, ViewRows)  # what launches nothing
_PREFILL_GLOBALS = ("best_shown", "for_prompts", "held", "in_blocks", "leave", "masked", "unfinished")


class Turning(NamedTuple):
    """A rotation that a step's layers are given.

    Attributes:
        of: The one whose angles it has, itself perhaps.
        key: Their parameters.
        rate: It turns by the first position of so many tokens.
        offset: Added to that.
    """

    of: str
    key: tuple[object, ...]
    rate: int = 1
    offset: float = 0.0


class SharedKernels(Shared):
    """What the blocks of one program share, kernels among it."""

    def __init__(self, tiles: Tiles) -> None:
        super().__init__()
        self.tiles = tiles
        self.kernels: dict[Kernel, str] = {}  # without its name, and that
        self.called: list[Kernel] = []  # in the order in which calls are written
        self.masked: set[str] = set()  # views of which a call of many tokens reads masks even where kernels run
        self.in_blocks = False  # whether such a call has kernels
        self.turns: dict[str, Turning] = {}  # rotations that a step's layers are given
        self._kernel_names = Namespace([*GLOBALS, *_KERNEL_GLOBALS.split()])

    def kernel(self, stem: str, make: Callable[[str], Kernel]) -> str:
        """Return the name of a kernel's function; kernels of equal constants are one."""
        bare = make("")
        if bare not in self.kernels:
            self.kernels[bare] = self._kernel_names.give(bare, stem)
        name = self.kernels[bare]
        self.called.append(replace(bare.called(name), counted=self.tiles.of(bare).get(COUNTED)))
        return name

    @property
    def unmasked(self) -> set[str]:
        """Views of which a call of many tokens reads masks only where its kernels do not run."""
        return {*self.views.values(), *self.everies.values()} - self.masked if self.in_blocks else set()

    def reserved(self) -> list[str]:
        """Return the names that no variable may have."""
        return [*super().reserved(), *_KERNEL_GLOBALS.split(), *_PREFILL_GLOBALS, *self.kernels.values()]

    def texts(self) -> list[str]:
        """Return each kernel's part of the file."""
        return [kernel.called(name).text(self.tiles.of(kernel)) for kernel, name in self.kernels.items()]


class StepBody(Body):
    """The statements of a step: calls of kernels, and what has none as target ``torch`` writes it."""

    shared: SharedKernels

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.calls: list[Kernel | Op] = []  # what a step does, in order
        self.turned: dict[str, tuple[str, str]] = {}  # rotations that a kernel gives: their cosine and sine
        self._shown: dict[Value, str] = {}  # views of rows as they are kept, and where they are

    @property
    def launched(self) -> list[Kernel | Op]:
        """What a step launches, in order: kernels, and ops that PyTorch computes."""
        return [call for call in self.calls if not isinstance(call, _VIEWS)]

    def write(self, op: Op, kept: set[Value]) -> None:
        """Add an op; a memory that it makes is where it is kept."""
        if not isinstance(op, KernelOp):
            self.calls.append(op)
            super().write(op, kept)
            return
        before = len(self.shared.called)
        code = emit_kernel(op, self)
        self.calls += self.shared.called[before:]
        tensors = [v for v in op.results if isinstance(v.type, TensorType)]
        names = [self.names.give(v, *suffixes(self.local(v.name))) for v in tensors]
        turned = self.turned if isinstance(op, EmbedStep) else {}
        targets = [*names, *(name for pair in turned.values() for name in pair)]
        self.assign(", ".join(targets), code.text, ", ".join(map(self.told, tensors)))
        for rope, pair in turned.items():
            self.assign(rope, ", ".join(pair))

    def turned_first(self) -> dict[str, Turning]:
        """Return the rotations of a step, with their parameters: the kernel that asks for them gives them all."""
        turns = self.shared.turns
        self.turned = {rope: (self.names.give((rope, 0), "cos"), self.names.give((rope, 1), "sin")) for rope in turns}
        return turns

    def angles(self, op: Rope) -> str:
        """Return the variable that holds what a position adds to the angle of each pair."""
        return self._use(f"{self.shared.turn(op)}_angles")

    def past(self, op: Op) -> str:
        """Return the variable that holds a memory's rows of earlier calls, by the memory's name."""
        return self.memory(kept(op))

    def memory(self, memory: Value) -> str:
        """Return the variable that holds a memory, of this layer or given to it."""
        own = {self.local(kept(op).name): past for op, past in self.pasts.items()}
        return own.get(self.local(memory.name)) or self._shown.get(memory) or self.names[memory]

    def show(self, view: Value, past: str, fields: int = 1) -> None:
        """Let a view be the first fields of a memory, which has its rows as they are seen."""
        self._shown[view] = past
        self.names.alias(view, f"{past}[:{fields}]")

    def keep(self, op: Op) -> None:
        """Declare a memory, in the order in which the module keeps them."""
        super().past(op)

    def passed(self, value: Value) -> str:
        """Return the code of an operand of a kernel, which takes contiguous tensors."""
        code = self.of(value)
        op = value.op
        if value.is_weight or op is None or isinstance(op, KernelOp) or isinstance(value.type, MemoryType):
            return code.text
        return f"{code.within(ATOM)}.contiguous()"


@dataclass(frozen=True)
class Step:
    """A class's ``step``: its signature and lines, and whether some of these are no kernels and launch something."""

    signature: str
    lines: tuple[str, ...]
    mixed: bool = False


@dataclass(frozen=True)
class Fused:
    """What the template needs of a step.

    Attributes:
        steps: Each class's, by name.
        lines: The model's.
        pasts: Variables of the model's own memories.
        used: Rotations and views that the layers are given and no kernel gives.
        placed: Whether anything reads the positions.
        kernels: Their texts.
        space: Where custom ops are registered.
    """

    steps: dict[str, Step]
    lines: tuple[str, ...]
    pasts: tuple[str, ...]
    used: frozenset[str]
    placed: bool
    kernels: list[str]
    space: str

    @property
    def mixed(self) -> list[str]:
        """Classes whose steps hold operations beside kernels."""
        return [name for name, step in self.steps.items() if step.mixed]


class StepTarget(TorchTarget):
    """Writes the step of one token: the fused graph, with parameters and classes of the plain one.

    Args:
        fused: The graph of a call of one token, kernels among its ops.
        plain: The target that writes the file.
    """

    called = "layer.step"

    def __init__(self, fused: Graph, plain: TorchTarget) -> None:
        super().__init__(fused, [], "")
        self.plain = plain
        self.shared = plain.shared
        self.wiring.places = {
            fused[value.name]: place for value, place in plain.wiring.places.items() if value.name in fused
        }
        classes = {kind.numbers: plain.classes[kind.name] for kind in plain.wiring.kinds}
        for kind in self.wiring.kinds:
            if kind.numbers not in classes:
                raise WiringError(kind=kind.name, layers=ranges(kind.numbers), name="a step of another kind")
            self.classes[kind.name] = classes[kind.numbers]

    def steps(self) -> tuple[dict[str, Step], Body]:
        """Return each class's step, by the class's name, and the body of the model's."""
        model = self.written()
        steps = {self.classes[kind.name]: self._step(kind) for kind in self.wiring.kinds}
        return steps, model

    def _step(self, kind: Kind) -> Step:
        written = self.blocks[kind.name]
        values = [local_value(kind.layers[0], name) for name in written.results]
        count = sum(isinstance(v.type, TensorType) for v in values)
        gives = ("None", "Tensor")[count] if count < 2 else f"tuple[{', '.join(['Tensor'] * count)}]"
        gives = "tuple[Tensor, ...]" if any(map(_rebuilt, values)) else gives
        arguments = [f"{name}: {type}" for name, type in written.arguments]
        body = written.body
        assert isinstance(body, StepBody)
        return Step(
            signature("step", arguments, gives), tuple(body.lines), any(isinstance(call, Op) for call in body.launched)
        )

    def _model(self) -> Body:
        """Return the body of the model's step, which may begin with a kernel that gives the rotations."""
        shared = self.shared
        assert isinstance(shared, SharedKernels)
        keys, used = {name: key for key, name in shared.ropes.items()}, self.used
        turns = {name: Turning(name, key) for name, key in keys.items()}
        for (of, rate, _, offset), name in shared.row_ropes.items():
            if rate is not None:  # of one token, the one row that it may complete
                turns[name] = Turning(of, keys[of], rate, offset)
        shared.turns = {name: turn for name, turn in turns.items() if name in used}
        return super()._model()

    @property
    def used(self) -> set[str]:
        """Rotations, views and facts of the call that layers are given."""
        return {name for written in self.blocks.values() for name in written.body.used}

    # -- what differs from a call of many tokens

    def new_body(
        self, places: dict[Value, Place], owner: int | None, local: Callable[[str], str], names: Namespace, width: int
    ) -> Body:
        """Return an empty body; its memories are all at hand, in the order in which they are kept."""
        shared = self.shared
        assert isinstance(shared, SharedKernels)
        body = StepBody(shared, places, owner, local, names, width)
        for op in self._states(owner):
            body.keep(op)
        return body

    def _states(self, owner: int | None) -> list[Op]:
        """Return the plain graph's state ops of a module, in the order in which it keeps their memories."""
        if owner is None:
            return [op for op in self.plain.wiring.items if isinstance(op, Op) and op.is_state]
        layer = self.plain.wiring.layers[owner]
        return [op for op in layer.ops if op.is_state]

    def _give_back(self, body: Body, kind: Kind, layer: Layer, results: list[str], first: str) -> None:
        """Return the tensors, and what was made of a memory's rows for other layers; memories are in the cache."""
        values = [local_value(layer, name) for name in results]
        given = [body.names[v] for v in values if isinstance(v.type, TensorType)]
        given += [f"*{body.names[v]}" for v in values if _rebuilt(v)]
        body.assign("", f"return {', '.join(given)}" if given else "return None")

    def _target(self, name: str, value: Value) -> str:
        in_cache = isinstance(value.type, MemoryType) and not _rebuilt(value)
        return "" if in_cache else super()._target(name, value)

    def _kept_memory(self, kind: Kind, value: Value) -> str:
        if _rebuilt(value):
            return "tuple(memory)"
        layer = kind.layers[0]
        names = [layer.local(kept(op).name) for op in self._states(self.wiring.index[layer.number])]
        return f"pasts[i][{names.index(layer.local(value.name))}]"

    def _only_turns(self, layer: Layer, value: Value) -> bool:
        """Return whether a layer reads a value only to rotate by it, within kernels too."""
        if value.op is not None or value.name != "pos":
            return False
        users = [op for op in layer.ops if value in op.operands]
        inner = [user for op in users if isinstance(op, KernelOp) for user in op.inner["pos"].users]
        return all(isinstance(op, KernelOp | Rope) for op in users) and all(isinstance(op, Rope) for op in inner)

    def _last_rows(self, body: Body, before: Sequence[object], after: Sequence[object]) -> None:
        """Leave all rows: there is one."""


def _rebuilt(value: Value) -> bool:
    """Return whether a memory is made anew of kept rows in each call."""
    return isinstance(value.op, ViewRows)


class TritonTarget(TorchTarget):
    """Writes one graph and its step.

    Args:
        graph: A verified graph, for calls of many tokens.
        header: Lines for the top of ``model.py``: each a key and a text.
        title: The first line of its docstring.
        fused: The graph of a call of one token, fused; its parameters and memories are those of ``graph``, by name.
        prefill: That of a call of many tokens, in the same way.
        tiles: Where the kernels' tiles come from; what is shipped with us by default.

    Raises:
        MissingEmitterError: The target lacks an op.
        WiringError: The layers are fed in ways that one loop cannot spell.
    """

    def __init__(
        self,
        graph: Graph,
        header: list[tuple[str, str]],
        title: str,
        fused: Graph,
        prefill: Graph | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        super().__init__(graph, header, title)
        self.shared: SharedKernels = SharedKernels(tiles or Tiles(graph.outputs[0].tensor.dtype))
        self.fused = fused
        self.fused_wiring = Wiring(fused)
        self.many = None if prefill is None else StepForm(prefill, self.wiring)

    def new_body(
        self, places: dict[Value, Place], owner: int | None, local: Callable[[str], str], names: Namespace, width: int
    ) -> Body:
        """Return an empty body, of kernels where they run; its memories are in the order in which they are kept."""
        body = PrefillBody(self.shared, places, owner, local, names, width)
        ops = self.wiring.items if owner is None else self.wiring.layers[owner].ops
        for op in ops:
            if isinstance(op, Op) and op.is_state:
                body.keep(op)
        return body

    def _reads(self, layer: Layer) -> dict[str, int]:
        """Return the layers from which a layer takes what others keep, in a step as well."""
        wiring, number = self.fused_wiring, layer.number
        found = super()._reads(layer)
        step = wiring.reads(wiring.layers[wiring.index[number]])
        if any(found.get(name, owner) != owner for name, owner in step.items()):
            raise WiringError(kind=self.wiring.kind_of[number].name, layers=str(number), name="what a step reads")
        return found | step

    def _render(self, model: Body) -> str:
        target = StepTarget(self.fused, self)
        steps, body = target.steps()
        lines = body.lines
        if not any("return head" in line for line in lines):
            made = lines[-1].removeprefix("return ")
            lines = [*lines[:-1], f"return {made} if choice is None else chosen({made}[:, 0], choice)"]
        texts = self.shared.texts()
        digest = hashlib.sha256("".join(texts).encode()).hexdigest()[:16]
        assert isinstance(body, StepBody)
        used = frozenset((target.used | set(body.used)) - body.turned.keys())
        placed = any(self.shared.type_of(name) != "Tensor" for name in used) or bool(re.search(r"\bpos\b", str(lines)))
        pasts = tuple(body.pasts.values())
        fused = Fused(steps, tuple(lines), pasts, used, placed, texts, f"regraft_{digest}")
        return self.rendered(model, fused=fused, in_blocks=self.shared.in_blocks, unmasked=self.shared.unmasked)
