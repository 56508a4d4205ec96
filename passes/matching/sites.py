"""What passes look for in a graph: a layer's attention, its memory, and the output projection, found by structure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from regraft.ir.graph import Graph, feeds_only_statistics, layer_of
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Add, Linear, Norm, Scale
from regraft.ir.ops.memory import ViewRows
from regraft.ir.ops.pos import Rope


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a rule does not fire."""

    reason: str


def run_time_users(value: Value) -> list[Op]:
    """Return the ops that read ``value`` in every call; statistics over calibration text do not count."""
    users = [op for op in value.users if not op.weight_time]
    return users if len(users) < 2 else [op for op in users if not feeds_only_statistics(op)]


@dataclass(frozen=True, slots=True)
class Attention:
    """A layer's attention.

    ``owner`` is the layer that makes the memory: the layer itself unless it reads another's. ``split`` says that other
    heads of the layer attend in another way, as after a window for some of them.
    """

    layer: int
    attend: Attend
    split: bool = False

    @property
    def memory(self) -> Value:
        """The memory that is read."""
        return self.attend.memory

    @property
    def owner(self) -> int:
        """The layer that makes the memory."""
        maker = self.memory.op
        found = layer_of((maker.memory if isinstance(maker, ViewRows) else self.memory).name)
        return self.layer if found is None else found

    @property
    def window(self) -> int | None:
        """How many rows back the layer looks, or None for all."""
        return self.attend.window

    @property
    def kind(self) -> str:
        """``sliding`` or ``full``."""
        return "full" if self.window is None else "sliding"

    @property
    def described(self) -> str:
        """The kind for messages: ``sliding, window 4096`` or ``full``."""
        return "full" if self.window is None else f"sliding, window {self.window}"

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return len(self.attend.groups)

    @property
    def kv_heads(self) -> int:
        """The number of key/value heads in the memory."""
        return self.memory.memory.fields[0].shape[0]


def attentions(graph: Graph) -> dict[int, Attention]:
    """Return the attention of each layer, in order; a second one of the same layer is left alone."""
    found: dict[int, Attention] = {}
    for op in graph.ops:
        if isinstance(op, Attend):
            layer = layer_of(op.out.name)
            if layer is not None:
                found[layer] = replace(found[layer], split=True) if layer in found else Attention(layer, op)
    return dict(sorted(found.items()))


def key_rotation(memory: Value) -> Rope | None:
    """Return the rotation that a memory's keys went through, or None where they carry no position."""
    op = memory.op
    if not isinstance(op, KV | ViewRows):
        return None
    value = op.k
    while True:
        maker = value.op
        if isinstance(maker, Rope):
            return maker
        if not isinstance(maker, Norm | Scale):
            return None
        value = maker.x


def rotation_text(rope: Rope | None) -> str:
    """Return a rotation for messages."""
    if rope is None:
        return "no rotation"
    stated = {
        name: value
        for name, value in rope.attributes.items()
        if name in ("base", "channels") or value != rope.spec.attributes[name].default
    }
    return "rotary " + ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                                 for name, value in stated.items())  # fmt: skip


@dataclass(frozen=True, slots=True)
class Output:
    """How an attention's result reaches the residual stream.

    ``chain`` are the ops from the attention to ``linear``, the output projection, neither included; ``merged`` is what
    ``linear`` reads. ``add`` puts its result on the stream ``entering``; both are None where something stands between.
    """

    chain: tuple[Op, ...]
    linear: Linear
    merged: Value
    add: Add | None
    entering: Value | None


def output_of(attend: Attend) -> Output | Refusal:
    """Return an attention's output projection: the first linear op that its result reaches, one op at a time."""
    chain: list[Op] = []
    value = attend.out
    while True:
        users = run_time_users(value)
        if len(users) != 1:
            return Refusal(f"%{value.name} is read by {len(users)} ops, so it has no single output projection")
        user = users[0]
        if isinstance(user, Linear):
            break
        if len(user.results) != 1 or user.is_state or user.reads_memory or isinstance(user, Add):
            return Refusal(f"{user.label} stands between the attention and an output projection")
        chain.append(user)
        value = user.results[0]
    after = run_time_users(user.out)
    if len(after) == 1 and isinstance(after[0], Add):
        add = after[0]
        entering = add.b if add.a is user.out else add.a
        return Output(tuple(chain), user, value, add, entering)
    return Output(tuple(chain), user, value, None, None)


def mlp_output_of(output: Output) -> Output | Refusal:
    """Return the linear op whose result is the next to be put on the stream after an attention's."""
    stream = None if output.add is None else output.add.out
    adds = [] if stream is None else [user for user in run_time_users(stream) if isinstance(user, Add)]
    if stream is None or len(adds) != 1:
        return Refusal("nothing is added to the stream after the attention")
    made = (adds[0].b if adds[0].a is stream else adds[0].a).op
    if not isinstance(made, Linear) or not made.weight.is_weight or len(run_time_users(made.out)) != 1:
        return Refusal(f"what {adds[0].label} adds is made by no projection alone")
    return Output((), made, made.x, adds[0], stream)
