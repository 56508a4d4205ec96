"""Lifting: from a model's folder to its graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.frontends.blocks import ModelBuilder
from regraft.frontends.checkpoint import Checkpoint, check_tensors
from regraft.frontends.config import Given
from regraft.frontends.decoder import Decoder
from regraft.frontends.family import family_of
from regraft.frontends.folder import ModelFolder
from regraft.frontends.tensors import Declared, Stored, Tensors
from regraft.ir.errors.base import RegraftError
from regraft.ir.errors.checkpoint import PickleRefusedError, TensorMismatchError, UnknownTensorError
from regraft.ir.errors.config import MissingGraphError
from regraft.ir.errors.files import InputMissingError
from regraft.ir.graph import Graph
from regraft.ir.json_files import read_object
from regraft.ir.ops.weight import Load, LoadEach
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorInfo

REGRAFT = "regraft"  # the model_type of a folder that no other program can load
_BLOCK = 1 << 20
_MAX_GRAPH = 64 << 20  # bytes of graph.rg: depth is folded, so a real one has kilobytes
_NOT_IN_NAMES = re.compile(r"[^\w.\-]+")


@dataclass(frozen=True)
class Lifted:
    """A model as a graph.

    Attributes:
        graph: The graph; its ``meta`` has the facts that are no ops.
        warnings: What is odd about the model and does not keep it from being lifted.
        config: The config as it stands in the file; that of the original for a model that regraft has rewritten.
        family: The family's name.
    """

    graph: Graph
    warnings: tuple[str, ...]
    config: Mapping[str, Any]
    family: str


def lift(
    folder: ModelFolder, allow_keys: Iterable[str] = (), strict: bool = True, *, published: bool = False
) -> Lifted:
    """Return a model's graph, checked against the headers of its weights where they are at hand.

    A folder that ``apply`` wrote, and a graph file, are read as they are. Weights of a Hugging Face id are fetched only
    if ``strict``.

    Args:
        folder: The model.
        allow_keys: Config keys to accept though the family does not know them.
        strict: Refuse what may make the graph another model than the config means; otherwise warn.
        published: Where there are no weights, take them to be quantised if the config says so.

    Raises:
        ConfigError: The config is not one that its family can read.
        CheckpointError: The weights are not those of the model.
        GraphError: A graph's text does not parse.
    """
    warnings: list[str] = []
    if folder.graph_path is not None:
        return _read_graph(folder, folder.graph_path, strict)
    given = Given(folder.config, folder.config_path)
    if given.values.get("model_type") == REGRAFT:
        raise MissingGraphError(config=folder.config_path, where=folder.config_path)
    config = family_of(given)(given, allow_keys, strict=strict)
    warnings += [f"{error.text} (--allow-key {error.fields['key']})" for error in config.unknown]
    checkpoint = _checkpoint(folder, strict, warnings)
    if line := config.left_out(checkpoint.names() if checkpoint else ()):
        warnings.append(line)
    tensors = Stored(checkpoint, config.dtype) if checkpoint else Declared(config.dtype)
    if published and checkpoint is None and config.quantization_config:
        tensors = Declared(config.dtype, published=True, quantized=config.quantized_tensor)
    config.locate(tensors)
    tied = config.tie_word_embeddings and not (checkpoint and _untied(config, checkpoint, tensors, warnings))
    graph = lift_config(config, tensors, _name(folder.name), tied=tied, facts=_facts(folder))
    if checkpoint is not None:
        _check(graph, checkpoint, config, strict, warnings)
    return Lifted(graph, tuple(warnings), folder.config, config.family)


def lift_config(
    config: Decoder,
    tensors: Tensors,
    name: str = "model",
    *,
    tied: bool | None = None,
    facts: Mapping[str, object] | None = None,
) -> Graph:
    """Return the graph of a config that was read, over ``tensors``."""
    graph = Graph(name)
    config.locate(tensors)
    tied = config.tie_word_embeddings if tied is None else tied
    config.build(ModelBuilder(graph, tensors), name, tied=tied, facts=facts or {})
    return graph


def _name(name: str) -> str:
    return _NOT_IN_NAMES.sub("-", name).strip("-") or "model"


def _read_graph(folder: ModelFolder, path: Path, strict: bool) -> Lifted:
    try:
        if path.stat().st_size > _MAX_GRAPH:
            raise InputMissingError(path=path, reason=f"it is larger than {_MAX_GRAPH >> 20} MB")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputMissingError(path=path, reason=error.strerror) from None
    except UnicodeDecodeError:
        raise InputMissingError(path=path, reason="it is no UTF-8 text") from None
    graph = parse_graph(text, str(path))
    checkpoint = _checkpoint(folder, strict, [])
    if checkpoint is not None:
        check_tensors(checkpoint, expected_tensors(graph))
    config = folder.config.get("base") if folder.config.get("model_type") == REGRAFT else folder.config
    config = config if isinstance(config, dict) else {}
    return Lifted(graph, (), config, str(graph.meta.get("family", "")))


def _checkpoint(folder: ModelFolder, strict: bool, warnings: list[str]) -> Checkpoint | None:
    if folder.hub_id and not strict:
        return None
    try:
        return folder.checkpoint
    except PickleRefusedError as error:
        if strict:
            raise
        warnings.append(error.text)
        return None


def expected_tensors(graph: Graph) -> Iterator[TensorInfo]:
    """Yield the tensors that a graph loads, in order; one that is loaded twice comes twice."""
    for op in graph.ops:
        if isinstance(op, Load | LoadEach):
            yield from op.tensor_infos


def _check(graph: Graph, checkpoint: Checkpoint, config: Decoder, strict: bool, warnings: list[str]) -> None:
    """Check that the checkpoint holds the model and nothing else that belongs to it."""
    known: set[str] = set()

    def noted() -> Iterator[TensorInfo]:
        for info in expected_tensors(graph):
            known.add(info.name)
            yield info

    check_tensors(checkpoint, noted())
    for op in graph.ops:
        if isinstance(op, LoadEach):
            _same_dtype(op, checkpoint)
    if graph.meta["tied"]:
        known.add(config.head)
    strangers = [name for name in checkpoint.names() if name not in known and not config.inert_tensor(name)]
    if not strangers:
        return
    shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
    error = UnknownTensorError(family=config.family, count=len(strangers), names=shown, where=str(checkpoint.folder))
    if strict and any(name.startswith(f"{config.prefix}.") for name in strangers):
        raise error  # a part of the model that the graph would lack
    warnings.append(error.text)


def _same_dtype(op: LoadEach, checkpoint: Checkpoint) -> None:
    """Check that tensors which become one have the same element type."""
    for name in op.sources:
        found = checkpoint.info(name)
        if found.dtype != op.dtype:
            expected = TensorInfo(name, op.dtype, op.shape[1:])
            raise TensorMismatchError(tensor=name, found=found, expected=expected, where=checkpoint.where(name))


def _untied(config: Decoder, checkpoint: Checkpoint, tensors: Tensors, warnings: list[str]) -> bool:
    """Return whether a checkpoint holds a head of its own though the config ties it, as transformers decides it."""
    embedding, head = config.embedding_name, config.head
    if not (tensors.has(head) and tensors.has(embedding)) or _equal(checkpoint, head, embedding):
        return False
    warnings.append(
        f"tie_word_embeddings is true, and the checkpoint's {head} differs from {embedding}: it is used, untied"
    )
    return True


def _equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    """Return whether two tensors have the same bytes."""
    info = checkpoint.info(first)
    if (info.dtype, info.shape) != (checkpoint.info(second).dtype, checkpoint.info(second).shape):
        return False
    for start in range(0, info.nbytes, _BLOCK):
        a, b = (bytearray(min(_BLOCK, info.nbytes - start)) for _ in range(2))
        checkpoint.readinto(first, start, a)
        checkpoint.readinto(second, start, b)
        if a != b:
            return False
    return True


def _facts(folder: ModelFolder) -> dict[str, object]:
    """Return what generation_config.json says better than config.json: the tokens that end a text."""
    path = folder.folder / "generation_config.json" if folder.folder else None
    if path is None or not path.is_file():
        return {}
    try:
        eos = read_object(path).get("eos_token_id")
    except RegraftError:
        return {}
    ids = eos if isinstance(eos, list) else [eos]
    return {"eos": tuple(ids)} if all(isinstance(each, int) and not isinstance(each, bool) for each in ids) else {}
