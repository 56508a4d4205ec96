"""Models at their real sizes without a checkpoint: a config, its program, and random weights made on the device."""

from __future__ import annotations

import importlib.util
import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from regraft.codegen.torch.target import Program
from regraft.codegen.triton.target import TritonTarget
from regraft.frontends.config import Given
from regraft.frontends.family import family_of
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import Spread
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.weight import Load
from regraft.ir.source import torch_dtype
from regraft.passes.fusion import fuse_decode
from regraft.passes.fusion.prefill import fuse_prefill
from regraft.passes.latent_forms import decoding_form

SLICED = {"DeepSeek-V4-Flash": 4}  # models of which only the first layers fit on a device
MODELS = (
    "gemma-4-E2B",
    "gemma-4-E4B",
    "gemma-4-31B",
    "laguna-XS.2",
    "ZAYA1-8B",
    "Llama-3.1-8B",
    "Qwen3-8B",
    "DeepSeek-V4-Flash",
)
PROGRAM, WEIGHTS = "model.py", "tensors.json"


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: What its rows are called.
        config: Its config, as transformers reads it.
        graph: What it computes.
    """

    name: str
    config: Mapping[str, Any]
    graph: Graph


def subject(name: str, config: Mapping[str, Any] | None = None, dtype: str = "bf16") -> Subject:
    """Return a model, by default the builtin one of that name, of which `SLICED` may say how many layers.

    Args:
        name: The model.
        config: Another config.
        dtype: Of all its weights but whole numbers.
    """
    known = dict(open_model(f"builtin:{name}").config) if config is None else dict(config)
    if config is None and name in SLICED:
        known = sliced(known, SLICED[name])
    given = Given(known, name)
    model = family_of(given)(given, (), strict=False)
    return Subject(name, known, lift_config(model, Declared(dtype), name))


def sliced(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return the config of a model's first layers; lists with an entry for each layer are cut."""
    whole = config["num_hidden_layers"]
    extra = config.get("num_nextn_predict_layers", 0)  # layers after them, which this does not have
    cut = {
        key: value[:layers] if isinstance(value, list) and len(value) in (whole, whole + extra) else value
        for key, value in config.items()
    }
    return cut | {"num_hidden_layers": layers} | ({"num_nextn_predict_layers": 0} if extra else {})


def fused_step(graph: Graph) -> Graph:
    """Return the step of one token, as a package for target ``triton`` has it."""
    form = decoding_form(graph)
    return fuse_decode(graph if form is None else form)


def write_program(graph: Graph, folder: Path) -> Program:
    """Write the package of a graph, of its weights only shapes and ranges; `read_program` reads it."""
    program = TritonTarget(graph, [], graph.name, fused_step(graph), fuse_prefill(graph)).program()
    context = graph.meta.get("context")
    config = {
        "vocab": graph.outputs[0].tensor.shape[-1],
        "context": context if isinstance(context, int) else 2048,
        "dtype": str(torch_dtype(graph.outputs[0].tensor.dtype)).removeprefix("torch."),
        "layers": program.layers,
    }
    spread = Spread(graph)
    tensors = {
        name: [
            value.tensor.dtype,
            value.tensor.sizes,
            *(spread.values(value.tensor.sizes, value.name, x) for x in (-1, 1)),
        ]
        for name, value in program.tensors.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROGRAM).write_text(program.model_py, encoding="utf-8")
    (folder / WEIGHTS).write_text(json.dumps({"config": config, "tensors": tensors}), encoding="utf-8")
    return program


def read_program(folder: Path, state: Mapping[str, Tensor], device: str) -> tuple[ModuleType, Any]:
    """Return a written program's module, and its model over some tensors."""
    name = f"measured_{zlib.crc32(str(folder.resolve()).encode())}"
    spec = importlib.util.spec_from_file_location(name, folder / PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.device("meta"):
        model = module.Model(json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))["config"])
    model.load_state_dict(state, assign=True)
    return module, model.to(device).eval()


def tensor_name(value: Value) -> str:
    """Return what a parameter's tensor is called in a checkpoint, or in the graph where it comes from several."""
    return value.op.source if isinstance(value.op, Load) else value.name


def random_weights(graph: Graph, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Return a tensor for each parameter of a graph, by `tensor_name`.

    A tensor's values depend on its name, its shape, the seed and the kind of device alone: other processes make the
    same ones, and so does another graph that has it too. The graph's fits and folds are not computed.
    """
    spread = Spread(graph)
    found: dict[str, Tensor] = {}
    for value in graph.parameters():
        name, shape = tensor_name(value), value.tensor.sizes
        generator = torch.Generator(device).manual_seed(seed << 32 | zlib.crc32(name.encode()))
        experts = spread.experts.get(value.name)
        if experts is not None:
            order = torch.rand(shape[0], experts, generator=generator, device=device).argsort(1)
            found[name] = order[:, : shape[1]].contiguous()
            continue
        noise = torch.empty(shape, dtype=torch_dtype(value.tensor.dtype), device=device)
        found[name] = spread.values(shape, value.name, noise.uniform_(-1, 1, generator=generator))
    return found


def program_state(program: Program, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a program's state dict over weights by `tensor_name`; tensors are shared."""
    return {name: weights[tensor_name(value)] for name, value in program.tensors.items()}
