"""A compiled step is one graph, in which each kind of layer stands once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.codegen.programs import DECODERS, emitted, tokens_of
from tests.ir.models import FULL, LayerSpec, decoder

torch = pytest.importorskip("torch")


class Recorder:
    """A backend that runs graphs as they are, and keeps them and how often they run."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []
        self.calls = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        self.graphs.append(graph)

        def run(*arguments: Any) -> Any:
            self.calls += 1
            return graph.forward(*arguments)

        return run

    def regions(self) -> tuple[int, int]:
        """Return how many regions there are in the only graph, and how many times they are called."""
        (graph,) = self.graphs
        calls = [n for n in graph.graph.nodes if "invoke_subgraph" in str(n.target) and n.op == "call_function"]
        return len({n.args[0].target for n in calls}), len(calls)


def steps(model: Any, count: int) -> Any:
    tokens = tokens_of(2, 9 + count)
    cache = model.new_cache(2, 9 + count)
    model(tokens[:, :9], cache, torch.tensor([9, 4]))
    return torch.cat([model(tokens[:, 9 + i : 10 + i], cache) for i in range(count)], 1)


@pytest.mark.parametrize(
    ("layers", "kinds", "regions", "called"),
    [
        ([FULL] * 4, 1, 1, 4),
        ([FULL] * 9, 1, 1, 9),
        ([LayerSpec(window=4), FULL] * 3, 2, 2, 6),
        (DECODERS["shared"], 4, 1, 2),  # in one graph, a kind of a single layer is written in line
        (DECODERS["moe"], 3, 0, 0),
    ],
)
def test_each_kind_is_compiled_once(
    layers: list[LayerSpec], kinds: int, regions: int, called: int, tmp_path: Path
) -> None:
    torch.compiler.reset()
    model = emitted(decoder(layers), tmp_path / "package").model
    plain = steps(model, 5)
    single, whole = Recorder(), Recorder()
    model.compile(whole=False, backend=single)
    assert torch.allclose(steps(model, 5), plain, atol=1e-6)
    assert len(single.graphs) == kinds  # for any number of layers and steps
    assert single.calls == 5 * len(layers)
    model.compile(whole=True, backend=whole)
    assert torch.allclose(steps(model, 5), plain, atol=1e-6)
    assert whole.regions() == (regions, called)
    assert whole.calls == 5


@pytest.mark.parametrize("whole", [False, True])
def test_other_sizes_are_compiled_once_more_at_most(whole: bool, tmp_path: Path) -> None:
    torch.compiler.reset()
    model = emitted(decoder([FULL] * 2), tmp_path / "package").model
    recorder = Recorder()
    model.compile(whole=whole, backend=recorder)
    for context in range(20, 40):
        model(tokens_of(1, 1), model.new_cache(1, context))
    assert len(recorder.graphs) <= 2


def test_compiled_again_and_called_otherwise(tmp_path: Path) -> None:
    torch.compiler.reset()
    program = emitted(decoder([FULL] * 2), tmp_path / "package")
    program.model.compile(backend=Recorder())
    program.model.compile(backend=Recorder())
    tokens = tokens_of(1, 8)
    assert torch.equal(program.model(tokens), program.interpreter(tokens))
    program.model(tokens).sum().backward()


@pytest.mark.slow
def test_compiled_by_inductor(tmp_path: Path) -> None:
    program = emitted(decoder(DECODERS["shared"]), tmp_path / "package")
    done = subprocess.run(
        [sys.executable, "verify.py", "--compile"], cwd=program.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one by one, compiled" in done.stdout
    assert json.loads((program.folder / "config.json").read_text())["layers"]
