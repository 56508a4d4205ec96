"""Twins: the same structure, small, with random weights in the layout that the family is published in."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.frontends.config import Given
from regraft.frontends.family import family_of
from regraft.frontends.folder import CONFIG
from regraft.frontends.lift import expected_tensors, lift_config
from regraft.frontends.tensors import Declared
from regraft.ir.errors.config import NotQuantizedError
from regraft.ir.files import OutputFolder
from regraft.ir.graph import Graph, layer_of
from regraft.ir.header import build_header
from regraft.ir.ops.attn import KV, Attend, Temper
from regraft.ir.ops.core import Add, Embed, Gain, LayerNorm, Norm
from regraft.ir.ops.moe import Assign, Route
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.quantized import Unpack
from regraft.ir.ops.seq import Conv
from regraft.ir.ops.weight import Load, LoadEach
from regraft.ir.sink import SINGLE
from regraft.ir.source import TensorInfo, to_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_DTYPES = {"f": "f32", "i": "i64"}
_HEAD_GAIN = 1.5  # logits then spread by more than one


def twin_config(
    config: Mapping[str, Any], path: str = CONFIG, allow_keys: Iterable[str] = (), *, packed: bool = False
) -> dict[str, Any]:
    """Return the config of a model's small twin: every kind of layer twice, every mechanism at work.

    Args:
        config: The model's config.
        path: Where it stands, for messages.
        allow_keys: Keys to accept though the family does not know them.
        packed: Whether its weights are quantised as the model's are published, in blocks so small that several share a
            tensor.

    Raises:
        ConfigError: The config cannot be read.
        NotQuantizedError: ``packed``, and the config names no quantisation.
    """
    given = Given(config, path)
    model = family_of(given)(given, allow_keys)
    packing = model.twin_packing() if packed else {}
    if packed and not packing:
        raise NotQuantizedError(config=path, where=path)
    return dict(sorted({**model.twin(), **packing}.items()))


def write_twin(
    config: Mapping[str, Any],
    out: Path,
    seed: int = 0,
    *,
    path: str = CONFIG,
    allow_keys: Iterable[str] = (),
    packed: bool = False,
) -> Path:
    """Write a model's small twin, and return its folder; the same config and seed give the same bytes.

    No parameter has a value that would hide a mistake: norms differ from one, biases from zero.

    Args:
        config: The model's config.
        out: The folder to write.
        seed: Chooses the weights.
        path: Where the config stands, for messages.
        allow_keys: Keys to accept though the family does not know them.
        packed: Whether to quantise the weights as the model's are published; otherwise all are float32.

    Raises:
        ConfigError: The config cannot be read.
        NotQuantizedError: ``packed``, and the config names no quantisation.
        OutputExistsError: ``out`` exists.
    """
    allow = tuple(allow_keys)
    small = twin_config(config, path, allow, packed=packed)
    given = Given(small, path)
    model = family_of(given)(given, allow)
    graph = lift_config(model, Declared("f32", published=True, quantized=model.quantized_tensor if packed else None))
    tensors: dict[str, tuple[TensorInfo, bytes]] = {}
    for name, array in random_tensors(graph, seed, model.twin_gain).items():
        tensors[name] = TensorInfo(name, _DTYPES[array.dtype.kind], array.shape), array.tobytes()
    if packed:
        tensors |= {info.name: (info, data) for info, data in _packed_tensors(graph, seed, model.twin_gain)}
    wide_first = sorted(tensors.values(), key=lambda tensor: -tensor[0].itemsize)  # each at a multiple of its width
    data = b"".join([build_header(info for info, _ in wide_first), *(data for _, data in wide_first)])
    with OutputFolder(out, f"twin {seed} {zlib.crc32(data)}") as folder:
        folder.write(CONFIG, json.dumps(small, indent=2) + "\n")
        folder.write(SINGLE, data)
        return folder.commit()


def random_tensors(graph: Graph, seed: int, gain: float = 1.0) -> dict[str, Array]:
    """Return a value for every tensor that a graph loads, as far from special values as training leaves them.

    What is quantised has none.

    Args:
        graph: The graph.
        seed: Chooses the values.
        gain: What a map within the layers does to a stream's spread: attention then prefers some tokens.
    """
    fill = _filler(graph, seed, gain)
    return {
        info.name: fill(info, info.name if info.name in graph else op.out.name)
        for op in graph.ops
        if isinstance(op, Load | LoadEach) and not any(isinstance(user, Unpack) for user in op.out.users)
        for info in op.tensor_infos
    }


def _packed_tensors(graph: Graph, seed: int, gain: float) -> Iterator[tuple[TensorInfo, bytes]]:
    """Yield the codes and scales of what is quantised; its values are spread as `random_tensors` has them."""
    import torch

    fill = _filler(graph, seed, gain)
    for op in graph.ops:
        if not isinstance(op, Unpack):
            continue
        loads = [value.op for value in op.operands]
        codes = op.packed.op
        assert isinstance(codes, Load | LoadEach)
        shape = op.results[0].tensor.sizes
        single = shape if isinstance(codes, Load) else shape[1:]
        arrays = [fill(TensorInfo(name, "f32", single), op.results[0].name) for name in codes.sources]
        values = torch.stack([torch.from_numpy(array) for array in arrays])
        for load, packed in zip(loads, op.pack(values.reshape(shape)), strict=True):
            assert isinstance(load, Load | LoadEach)
            parts = packed.unbind() if isinstance(load, LoadEach) else [packed]
            yield from ((info, bytes(to_bytes(part))) for info, part in zip(load.tensor_infos, parts, strict=True))


def _filler(graph: Graph, seed: int, gain: float) -> Callable[[TensorInfo, str], Array]:
    """Return what makes a tensor's values, given also the name of the value that it is in the graph."""
    import numpy

    spread = Spread(graph, gain)

    def fill(info: TensorInfo, name: str) -> Array:
        generator = numpy.random.default_rng([seed, zlib.crc32(info.name.encode())])
        experts = spread.experts.get(name)
        if experts is not None:  # some of them for each token, none twice
            order = generator.random((info.shape[0], experts)).argsort(1)
            return order[:, : info.shape[1]].astype(numpy.int64)
        noise = generator.random(info.shape) * 2 - 1
        return spread.values(info.shape, name, noise).astype(numpy.float32)

    return fill


class Spread:
    """How random values of a graph's weights are spread: none is as training would not leave it.

    Args:
        graph: The graph.
        gain: What a map within the layers does to a stream's spread.

    Attributes:
        experts: Of the tables that choose experts for a token, by name, how many experts there are.
    """

    def __init__(self, graph: Graph, gain: float = 1.0) -> None:
        self.gain = gain
        norms = {op.weight.name: op.offset for op in graph.ops if isinstance(op, Norm) and op.weight is not None}
        norms |= {op.by.name: 0.0 for op in graph.ops if isinstance(op, Gain)}
        norms |= {op.gain.name: 0.0 for op in graph.ops if isinstance(op, Route) and op.gain is not None}
        norms |= {op.weight.name: 0.0 for op in graph.ops if isinstance(op, LayerNorm)}
        norms |= {op.by.name: 0.0 for op in graph.ops if isinstance(op, Temper)}
        self._norms = norms
        self._biases = {op.bias.name for op in graph.ops if isinstance(op, Route) and op.bias and op.score == "softmax"}
        self._taps = {op.weight.name for op in graph.ops if isinstance(op, Conv)}
        self._calm = _calm_norms(graph)
        self._tables = {op.table.name for op in graph.ops if isinstance(op, Embed)}
        given = {op.given.op: op for op in graph.ops if isinstance(op, Route) and op.given is not None}
        self.experts = {
            op.table.name: int(str(given[op].logits.tensor.shape[-1])) for op in given if isinstance(op, Assign)
        }

    def values(self, shape: tuple[int, ...], name: str, noise: Any) -> Any:
        """Return a weight's values, made of noise between -1 and 1 of its shape, an array or a tensor."""
        if name in self._norms:
            return (1 + 0.3 * noise) * self._calm.get(name, 1.0) - self._norms[name]
        if name in self._tables:
            return math.sqrt(3) / 4 * noise
        if name in self._biases:
            return 0.1 * noise
        if len(shape) == 1:
            return 0.5 * noise
        terms = math.prod(shape[1:]) if name in self._taps else shape[-1]
        return (_HEAD_GAIN if layer_of(name) is None else self.gain) * math.sqrt(3 / terms) * noise


def _calm_norms(graph: Graph) -> dict[str, float]:
    """Return factors that keep rounding errors from growing where norms alone decide how much a branch counts.

    These are the norms of queries and keys whose scores are not divided by the root of a head's width, and those of
    what is added to the stream.
    """
    factors: dict[str, float] = {}
    for op in graph.ops:
        if isinstance(op, Norm) and op.weight is not None and any(isinstance(user, Add) for user in op.out.users):
            factors[op.weight.name] = 0.5
        if not isinstance(op, Attend):
            continue
        made = op.memory.op
        for value in (op.q, made.k) if isinstance(made, KV) else (op.q,):
            source = value.op.x.op if isinstance(value.op, Rope) else value.op
            if isinstance(source, Norm) and source.weight is not None:
                width = op.q.tensor.shape[-1]
                assert isinstance(width, int)
                factors[source.weight.name] = min(1.0, (op.scale * width**0.5) ** -0.5)
    return factors


def golden_tensors(graph: Graph, *, zero_centred: bool = False) -> dict[str, Array]:
    """Return the weights that specs/*_golden.json give their tiny models, by the formula stated there.

    Args:
        graph: The tiny model, with fused experts.
        zero_centred: Whether its norms multiply by ``1 + weight``.
    """
    import numpy

    def fill(info: TensorInfo) -> Array:
        offset, amplitude = _golden_range(info.name, zero_centred)
        x = numpy.arange(1, math.prod(info.shape) + 1, dtype=numpy.uint64) * numpy.uint64(2654435761)
        x = (x + numpy.uint64(zlib.crc32(info.name.encode()))) & _MASK
        x ^= x >> numpy.uint64(15)
        x = (x * numpy.uint64(2246822519)) & _MASK
        x ^= x >> numpy.uint64(13)
        x = (x * numpy.uint64(3266489917)) & _MASK
        x ^= x >> numpy.uint64(16)
        values = offset + amplitude * (2 * (x.astype(numpy.float64) / 2**32) - 1)
        return values.astype(numpy.float32).reshape(info.shape)

    return {info.name: fill(info) for info in expected_tensors(graph)}


_MASK = 0xFFFFFFFF


def _golden_range(name: str, zero_centred: bool) -> tuple[float, float]:
    """Return the centre and the half-width of a tensor's values: the first rule that matches."""
    rules = (
        (name.endswith("linear_attn.norm.weight"), (1.0, 0.2)),
        (name.endswith(("A_log", "dt_bias", "sinks")), (0.0, 1.0)),
        ("norm" in name and name.endswith(".weight"), (0.0 if zero_centred else 1.0, 0.2)),
        (name.endswith("e_score_correction_bias"), (0.0, 0.1)),
        ("embed" in name, (0.0, 1.0)),
        (name.endswith("bias"), (0.0, 0.2)),
    )
    return next((values for matches, values in rules if matches), (0.0, 0.25))
