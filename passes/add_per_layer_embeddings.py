"""`add-per-layer-embeddings`: a small embedding of each token for every layer, added to its stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.ir.errors.recipe import LayerMissingError, StructureError
from regraft.ir.graph import Graph
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Activation, Add, Embed, Flatten, Linear, Mul, Norm, Scale, Slice, Unflatten
from regraft.passes.base import (
    Constraints,
    Measurements,
    Note,
    Pass,
    Preserves,
    Report,
    integer,
    option,
    optional_option,
)
from regraft.passes.matching.growth import Start, free_module, layer_module, module_of
from regraft.passes.matching.residual import Joint, residual_stream
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Refusal, attentions
from regraft.passes.selection import LAYERS, Selection


@dataclass(frozen=True)
class AddPerLayerEmbeddings(Pass):
    """Give each layer an embedding of its own of each token, as Gemma 4's small models have them.

    A table holds a row of every layer's embeddings for each token; with a projection of the model's embedding, normed,
    it makes ``e``. After its blocks a layer adds ``norm(W (act(V x) * e))`` to its stream ``x``. The norm's weight is
    zero at the start, so nothing is added. It gets a gradient from the first step on, as all else is drawn at random;
    all else gets one from the second, once the weight is no longer zero.
    """

    name: ClassVar[str] = "add-per-layer-embeddings"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "specs/gemma4.md, sections 3 and 4"

    layers: Selection | None = optional_option(LAYERS, "which layers; by default all")
    width: int = option(integer(1, 65536), 256, "channels of an embedding")
    seed: int = option(integer(0, 2**31), 0, "draws the tensors that are not zero")

    def decide(
        self, graph: Graph, measurements: Measurements | None, constraints: Constraints
    ) -> AddPerLayerEmbeddings:
        """Return the pass with the layers listed.

        Raises:
            IllegalPassError: The model has no single residual stream, or a layer that is named adds nothing to it.
        """
        return replace(self, layers=Selection.of(self._last_joints(graph)))

    def rewrite(self, graph: Graph) -> Report:
        """Add the table, and to each layer what reads it."""
        joints = self._last_joints(graph)
        stream = residual_stream(graph)
        assert not isinstance(stream, Refusal), "decide comes first"
        added = _Added(self, Editor(graph), stream[0].values[0], list(joints))
        notes: list[Note] = []
        for layer, joint in joints.items():
            added.join(layer, joint)
            notes.append(Note(f"layer {layer}", True, f"an embedding of {self.width} channels added", layer))
        return Report(tuple(notes))

    def _last_joints(self, graph: Graph) -> dict[int, Joint]:
        """Return the layers that are selected, each with the last sum that joins its stream."""
        stream, where = residual_stream(graph), self.place("layers")
        embeds = [op for op in graph.ops if isinstance(op, Embed) and op.tokens in graph.inputs]
        if not embeds:
            stream = Refusal("no tokens are looked up in a table")
        if isinstance(stream, Refusal):
            fix = "this pass needs one stream that blocks add to"
            raise StructureError(owner=self.name, layer=0, reason=stream.reason, fix=fix, where=where)
        last = {joint.layer: joint for joint in stream if joint.layer is not None}
        if self.layers is None:
            return last
        found = {layer: each for layer, each in attentions(graph).items() if layer in last}
        wanted = self.layers.resolve(found, graph.layer_count(), self.name, where) if self.layers.predicate else []
        for first, end in [(p, p) if isinstance(p, int) else p for p in self.layers.parts]:
            wanted += range(first, end + 1)
        for layer in wanted:
            if layer >= graph.layer_count():
                legal = f"0 to {graph.layer_count() - 1}"
                raise LayerMissingError(owner=self.name, layer=layer, legal=legal, where=where)
            if layer not in last:
                reason, fix = "it adds nothing to the stream", f"layers that do: {ranges(sorted(last))}"
                raise StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=where)
        return {layer: last[layer] for layer in sorted(set(wanted))}


class _Added:
    """The embeddings of all layers, and what each layer makes of its own."""

    def __init__(self, options: AddPerLayerEmbeddings, edit: Editor, entering: Value, layers: Sequence[int]) -> None:
        self.options, self.edit, self.graph, self.entering = options, edit, edit.graph, entering
        model = entering.tensor.shape[-1]
        assert isinstance(model, int)
        self.model, self.dtype = model, entering.tensor.dtype
        norm = next((op for op in self.graph.ops if isinstance(op, Norm)), None)
        self.eps = 1e-6 if norm is None else norm.eps
        self.scope = "ple" if not any(name.startswith("ple.") for name in self.graph.values) else "ple_more"
        whole = self._embeddings(len(layers))
        self.own = {layer: self._slice(whole, place, layer) for place, layer in enumerate(layers)}

    def _following(self, value: Value) -> Op:
        assert value.op is not None
        return self.graph.ops[self.graph.ops.index(value.op) + 1]

    def _embeddings(self, count: int) -> Value:
        """Return the embeddings of all layers side by side: the table's rows and what the model's embedding gives."""
        edit, scope, width, seed = self.edit, self.scope, self.options.width, self.options.seed
        before = self._following(self.entering)
        embed = next(op for op in self.graph.ops if isinstance(op, Embed) and op.tokens in self.graph.inputs)
        start, root = Start(edit, self.dtype, before), module_of(embed.table)

        def part(op: type[Op], name: str, *values: Value, **rest: object) -> Value:
            return edit.add(op, f"{scope}.{name}", *values, before=before, **rest)

        def tensor(name: str) -> str:
            return f"{free_module(self.graph, f'{root}.{name}')}.weight"

        shape = (embed.table.tensor.sizes[0], count * width)
        table = start.random(tensor("embed_tokens_per_layer"), shape, width**-0.5, seed)
        of_token = part(Scale, "of_token", part(Embed, "rows", embed.tokens, table), factor=width**0.5)
        name = tensor("per_layer_model_projection")
        projection = start.random(name, (count * width, self.model), 1.0, seed + 1)
        projected = part(Linear, "projected", self.entering, projection)
        context = part(Scale, "context", projected, factor=self.model**-0.5)
        context = part(Unflatten, "by_layer", context, parts=count)
        one = start.fill(tensor("per_layer_projection_norm"), (width,), 1.0)
        context = part(Norm, "norm", context, weight=one, eps=self.eps)
        both = part(Add, "both", part(Flatten, "normed", context), of_token)
        return part(Scale, "all", both, factor=2**-0.5)

    def _slice(self, whole: Value, place: int, layer: int) -> Value:
        width = self.options.width
        before = self._following(whole if not place else self.last)
        span = {"start": place * width, "stop": (place + 1) * width}
        self.last = self.edit.add(Slice, f"{self.scope}.of_{layer}", whole, before=before, **span)
        return self.last

    def join(self, layer: int, joint: Joint) -> None:
        """Add a layer's embedding to its stream, after its last sum."""
        graph, edit, stream = self.graph, self.edit, joint.add.out
        width, seed, before = self.options.width, self.options.seed, self._following(joint.add.out)
        users = [user for user in stream.users if not user.weight_time]
        start, root = Start(edit, self.dtype, before), layer_module(graph, layer)
        acts = [op.kind for op in graph.in_layer(layer, Activation) if isinstance(op, Activation)]
        kind = next((kind for kind in acts if kind not in ("sigmoid", "softplus", "tanh")), "silu")

        def part(op: type[Op], name: str, *values: Value, **rest: object) -> Value:
            return edit.add(op, f"layers.{layer}.{self.scope}.{name}", *values, before=before, **rest)

        def tensor(name: str) -> str:
            return f"{free_module(graph, f'{root}.{name}')}.weight"

        inner = start.random(tensor("per_layer_input_gate"), (width, self.model), self.model**-0.5, seed + 2)
        act = part(Activation, "act", part(Linear, "gate", stream, inner), kind=kind)
        hidden = part(Mul, "hidden", act, self.own[layer])
        back = start.random(tensor("per_layer_projection"), (self.model, width), width**-0.5, seed + 3)
        projected = part(Linear, "projected", hidden, back)
        zero = start.fill(tensor("post_per_layer_input_norm"), (self.model,))
        normed = part(Norm, "norm", projected, weight=zero, eps=self.eps)
        total = part(Add, "residual", stream, normed)
        graph.replace_uses(stream, total, lambda op: op in users)
        graph.outputs = [total if value is stream else value for value in graph.outputs]
