"""A quantised checkpoint written as plain numbers, under the names that it would have had so."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from regraft.frontends.lift import REGRAFT
from regraft.ir.files import OutputFolder
from regraft.ir.graph import Graph
from regraft.ir.ops.quantized import Mxfp4, Unpack
from regraft.ir.ops.weight import Load, LoadEach
from regraft.ir.sink import ShardWriter
from regraft.ir.source import Source, TensorInfo, to_bytes
from regraft.model import Model
from regraft.passes.fitting.sweep import evaluate
from regraft.passes.packing import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

_BLOCKS = "_blocks"  # what the names of MXFP4's codes end with


def is_quantized(model: Model) -> bool:
    """Return whether a model's checkpoint is quantised, and its config is one that other programs read."""
    published = model.folder.config.get("model_type", REGRAFT) != REGRAFT
    return published and any(isinstance(op, Unpack) for op in model.graph.ops)


@contextmanager
def dequantized(model: Model) -> Generator[Path]:
    """Give a temporary folder with a quantised model dequantised: its config, and its tensors as published unpacked.

    Raises:
        DiskFullError: There is no room for it.
        CheckpointError: A tensor cannot be read.
    """
    with TemporaryDirectory(prefix="regraft-") as place:
        yield write_dequantized(model, Path(place) / "model")


def write_dequantized(model: Model, out: Path) -> Path:
    """Write a quantised model's config and its tensors without packing, and return the folder.

    Raises:
        OutputExistsError, DiskFullError: The folder cannot be written.
        CheckpointError: A tensor cannot be read.
    """
    source = model.require_source()
    config = {key: value for key, value in model.folder.config.items() if key != "quantization_config"}
    plain = {op: list(_plain_infos(op)) for op in model.graph.ops if isinstance(op, Unpack)}
    packed = {info.name for op in plain for info in read_tensors(op.operands)}
    others = [info for info in _stored(model.graph, source) if info.name not in packed]
    with OutputFolder(out, "dequantize") as folder:
        folder.write("config.json", json.dumps(config, indent=2) + "\n")
        with ShardWriter(folder, [*others, *(info for infos in plain.values() for info in infos)]) as sink:
            for info in others:
                sink.copy(info.name, source, info.name)
            for op, infos in plain.items():
                for info, tensor in zip(infos, _parts(op, evaluate(op.results[0], source)), strict=True):
                    sink.write(info.name, to_bytes(tensor))
            sink.finish()
        return folder.commit()


def _stored(graph: Graph, source: Source) -> Iterator[TensorInfo]:
    """Yield the tensors that a graph loads, each once, as they are stored."""
    loads = (op for op in graph.ops if isinstance(op, Load | LoadEach))
    for name in dict.fromkeys(info.name for op in loads for info in op.tensor_infos):
        yield source.info(name)


def _plain_infos(op: Unpack) -> Iterator[TensorInfo]:
    """Yield what the tensors that an op unpacks are without packing."""
    type = op.results[0].tensor
    codes = op.packed.op
    if isinstance(codes, LoadEach):
        yield from (TensorInfo(name, type.dtype, type.sizes[1:]) for name in codes.sources)
    elif isinstance(op, Mxfp4):  # other programs multiply by these from the right
        *leading, rows, columns = type.sizes
        yield TensorInfo(op.blocks.name.removesuffix(_BLOCKS), type.dtype, (*leading, columns, rows))
    else:
        assert isinstance(codes, Load)
        yield TensorInfo(codes.source, type.dtype, type.sizes)


def _parts(op: Unpack, value: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors that an op's value is made of, as `_plain_infos` has them."""
    if isinstance(op.packed.op, LoadEach):
        return value.unbind()
    return (value.mT if isinstance(op, Mxfp4) else value,)
