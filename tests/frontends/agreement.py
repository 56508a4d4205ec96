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
from regraft.ir.parse import parse_graph
from regraft.ir.text import print_graph

torch.set_num_threads(1)  # models of kilobytes: more threads only wait for one another
LENGTH = 70  # several windows, several pooled rows of each rate, and more than the longest chunk
AT_ONCE = 64
SPLITS = [(AT_ONCE, *(1,) * (LENGTH - AT_ONCE)), (7,) * (LENGTH // 7), (1,) * LENGTH]


@dataclass(frozen=True)
class Pair:
    """A twin on disk, some tokens ``[2, LENGTH]``, and the original's logits for them.

    ``decoded`` are those that it gives through its own cache, for the first of `SPLITS`; None where nobody asked.
    """

    folder: Path
    tokens: Tensor
    logits: Tensor
    decoded: Tensor | None = None

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

    def check(self, found: Tensor, expected: Tensor, factor: float = 1.0) -> None:
        torch.testing.assert_close(found, expected, rtol=0, atol=factor * limit(self.logits))

    def check_all(self, model: Any) -> None:
        """Check prefill, chunks, single tokens and a ragged batch that goes on where each row stands."""
        with torch.no_grad():
            self.check(model(self.tokens), self.logits)
            for sizes in SPLITS:
                cache = model.new_cache(2, LENGTH)
                found = [model(part, cache) for part in self.tokens.split(sizes, 1)]
                self.check(torch.cat(found, 1), self.logits)
            self.check_ragged(model)

    def check_ragged(self, model: Any) -> None:
        """Check a batch of rows of unequal length, prefilled and continued; what stands behind a row's end is junk."""
        lengths = (LENGTH - 10, 23)
        tokens = self.tokens[:, : lengths[0]].clone()
        tokens[1, lengths[1] :] = 0
        cache = model.new_cache(2, LENGTH)
        found = model(tokens, cache, torch.tensor(lengths))
        following = torch.stack([row[n : n + 5] for row, n in zip(self.tokens, lengths, strict=True)])
        further = model(following, cache)
        for row, n in enumerate(lengths):
            self.check(found[row, :n], self.logits[row, :n])
            self.check(further[row], self.logits[row, n : n + 5])


def limit(logits: Tensor) -> float:
    """Return how far logits in float32 may be from others of the same model."""
    return 1e-5 * max(1.0, float(logits.abs().max()) / 4)


def load_module(path: Path) -> ModuleType:
    name = f"emitted_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def original(folder: Path) -> Any:
    """Return transformers' model of a folder, its buffers as the checkpoint has them.

    ZAYA's router forgets one when it loads (specs/zaya_cca.md, section 5).
    """
    import transformers

    loader = cast(Any, transformers.AutoModelForCausalLM)
    model = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    source = open_model(folder).require_checkpoint()
    for name, buffer in model.named_buffers():
        if name in source.names():
            buffer.copy_(source.read(name))
    return model


def pair(config: Mapping[str, Any], folder: Path, seed: int = 0) -> Pair:
    """Write a config's twin below ``folder``, and ask transformers for its logits."""
    path = write_twin(config, folder / "twin", seed=seed)
    model = original(path)
    tokens = torch.randint(0, 128, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    cache, decoded = None, list[Tensor]()
    with torch.no_grad():
        logits = model(tokens).logits
        for part in tokens.split(SPLITS[0], 1):
            said = model(part, past_key_values=cache, use_cache=True)
            cache = said.past_key_values
            decoded.append(said.logits)
    return Pair(path, tokens, logits, torch.cat(decoded, 1))


def check_text(graph: Graph) -> None:
    """Check that a graph's text reads back to the same."""
    text = print_graph(graph)
    again = parse_graph(text)
    assert print_graph(again) == text
    assert graph.equals(again)
    graph.verify()


def twin_graph(config: Mapping[str, Any], seed: int = 0) -> tuple[Graph, dict[str, Tensor]]:
    """Return a twin's graph, as transformers names its tensors, and their values."""
    small = read_config(twin_config(config))
    graph = lift_config(small, Declared("f32"))
    arrays = random_tensors(graph, seed, small.twin_gain)
    return graph, {name: torch.from_numpy(array) for name, array in arrays.items()}
