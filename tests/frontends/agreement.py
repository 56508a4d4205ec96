"""What the tests of families share: a small twin, held to transformers and to the program that is emitted for it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.frontends.family import read_config
from regraft.frontends.folder import ModelFolder, open_model
from regraft.frontends.lift import lift, lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config, write_twin
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.op import Op
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph

torch.set_num_threads(1)  # models of kilobytes: more threads only wait for one another
LENGTH = 40
SIZES = [(LENGTH,), (1, 7, LENGTH - 8), (1,) * LENGTH]


@dataclass(frozen=True)
class Pair:
    """A twin on disk, some tokens ``[2, LENGTH]``, and the original's logits for them."""

    folder: Path
    tokens: Tensor
    logits: Tensor

    @cached_property
    def model(self) -> ModelFolder:
        return open_model(self.folder)

    @cached_property
    def graph(self) -> Graph:
        lifted = lift(self.model)
        assert not lifted.warnings
        return lifted.graph

    @cached_property
    def interpreter(self) -> Interpreter:
        return Interpreter(self.graph, self.model.require_checkpoint())

    @cached_property
    def program(self) -> Any:
        """The emitted program, loaded in float32."""
        out = self.folder.parent / "package"
        emit(self.graph, self.model.require_checkpoint(), out, target="torch")
        return load_module(out / "model.py").load(out, dtype=torch.float32)

    def check(self, found: Tensor, expected: Tensor) -> None:
        limit = 1e-5 * max(1.0, float(self.logits.abs().max()) / 4)
        torch.testing.assert_close(found, expected, rtol=0, atol=limit)

    def check_all(self, model: Any) -> None:
        """Check prefill, chunks, single tokens and a ragged batch that goes on where each row stands."""
        with torch.no_grad():
            self.check(model(self.tokens), self.logits)
            for sizes in SIZES:
                cache = model.new_cache(2, LENGTH)
                found = [model(part, cache) for part in self.tokens.split(sizes, 1)]
                self.check(torch.cat(found, 1), self.logits)
            tokens, lengths = self.tokens.clone(), torch.tensor([LENGTH, 23])
            tokens[1, 23:] = 0
            cache = model.new_cache(2, LENGTH + 5)
            found = model(tokens, cache, lengths)
            self.check(found[0], self.logits[0])
            self.check(found[1, :23], self.logits[1, :23])
            following = torch.stack((self.tokens[0, :5], self.tokens[1, 23:28]))
            self.check(model(following, cache)[1], self.logits[1, 23:28])


def load_module(path: Path) -> ModuleType:
    name = f"emitted_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def pair(config: Mapping[str, Any], folder: Path, seed: int = 1) -> Pair:
    """Write a config's twin below ``folder``, and ask transformers for its logits."""
    import transformers

    path = write_twin(config, folder / "twin", seed=seed)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
        path, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = torch.randint(0, 128, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = cast(Any, loaded)(tokens).logits
    return Pair(path, tokens, logits)


def check_text(graph: Graph) -> None:
    """Check that a graph's text reads back to the same."""
    text = print_graph(graph)
    again = parse_graph(text)
    assert print_graph(again) == text
    assert graph.equals(again)
    graph.verify()


def shift_of(config: Mapping[str, Any], wrong: Mapping[type[Op], Mapping[str, object]]) -> float:
    """Return by how much a twin's logits move when attributes of some ops are others."""
    graph = lift_config(read_config(twin_config(config)), Declared("f32"))
    weights = TensorSource({name: torch.from_numpy(array) for name, array in random_tensors(graph, 0).items()})
    tokens = torch.randint(0, 128, (1, 24), generator=torch.Generator().manual_seed(0))
    right = Interpreter(graph, weights)(tokens)
    for memory in graph.memories():
        if memory.op is not None and "window" in memory.op.attributes:
            graph.set_attribute(memory.op, "window", None)
    changed = 0
    for op in graph.ops:
        for name, value in wrong.get(type(op), {}).items():
            if op.attributes[name] not in (None, value):
                graph.set_attribute(op, name, value)
                changed += 1
    assert changed
    graph.retype()
    return float((Interpreter(graph, weights)(tokens) - right).abs().max())
