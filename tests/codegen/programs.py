"""Tiny decoders, emitted and loaded, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.codegen.package import emit
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.source import TensorSource
from regraft.programs import load_program
from tests.ir.models import FULL, LayerSpec, decoder, random_weights

if TYPE_CHECKING:
    from torch import Tensor

DECODERS: dict[str, Sequence[LayerSpec]] = {
    "llama-like": [FULL] * 3,
    "windowed": [LayerSpec(window=3), LayerSpec(window=6), LayerSpec(window=3)],
    "windows and full": [LayerSpec(window=4), FULL, LayerSpec(window=4), FULL],
    "moe": [FULL, LayerSpec(moe=True), LayerSpec(moe=True, window=5)],
    "shared": [FULL, LayerSpec(window=3), LayerSpec(donor=0), LayerSpec(donor=1, window=3), LayerSpec(donor=0)],
    "a reader that looks less far": [
        LayerSpec(window=5),
        LayerSpec(donor=0, window=2),
        FULL,
        LayerSpec(donor=2, window=3),
    ],
    "first rows beside windows": [
        LayerSpec(window=3, first=2),
        LayerSpec(window=4),
        LayerSpec(window=5, first=1),
        FULL,
    ],
    "first rows and nothing plain": [LayerSpec(window=4, first=3), LayerSpec(donor=0, window=2, first=1)],
    "a reader beside its owner": [FULL, LayerSpec(donor=0), LayerSpec(donor=0)],
    "uneven heads": [LayerSpec(heads=3, head_map=(0, 0, 1)), LayerSpec(heads=5, head_map=(1, 0, 1, 1, 0))],
    "uneven reader": [FULL, LayerSpec(donor=0, heads=3, head_map=(0, 1, 1))],
    "one key/value head": [LayerSpec(heads=4, kv_heads=1)] * 2,
    "as many heads": [LayerSpec(heads=2, kv_heads=2)] * 2,
    "skips": [FULL, FULL, LayerSpec(skip=0), LayerSpec(skip=1)],
    "tied layers": [LayerSpec(tied=True)]
    * 3,  # the first stands in pieces: the model declares the shared weights there
    "a reader in pieces": [LayerSpec(window=5), LayerSpec(donor=0, window=2, tied=True), LayerSpec(tied=True)],
    "one layer": [FULL],
}


@dataclass
class Emitted:
    """A graph, its numbers, and the program that was emitted for it."""

    graph: Graph
    source: TensorSource
    folder: Path
    model: Any
    interpreter: Interpreter


def source_of(graph: Graph, seed: int = 0) -> TensorSource:
    """Return a source of random tensors in each load's dtype."""
    from regraft.ir.source import torch_dtype

    weights = random_weights(graph, seed)
    return TensorSource({n: t.to(torch_dtype(graph[n].tensor.dtype)) for n, t in weights.items()})


def emitted(graph: Graph, folder: Path, dtype: str = "f32") -> Emitted:
    """Emit a graph with random weights into ``folder`` and load the program."""
    source = source_of(graph)
    emit(graph, source, folder)
    names = {"f32": "float32", "f64": "float64"}
    return Emitted(graph, source, folder, load_program(folder, dtype=names[dtype]), Interpreter(graph, source, dtype))


def tokens_of(batch: int, length: int, vocab: int = 40) -> Tensor:
    """Return fixed tokens."""
    import torch

    return (torch.arange(batch * length).view(batch, length) * 17 + 3) % vocab


def small(name: str) -> Graph:
    """Return one of `DECODERS`."""
    return decoder(DECODERS[name])
