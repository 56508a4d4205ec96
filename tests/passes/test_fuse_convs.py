"""`fuse-convs`: one convolution for two, its first tokens included, with the rows of both tails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import StructureError
from regraft.ir.interpret import Interpreter, Run
from regraft.ir.ops.algebra import JoinConvs
from regraft.ir.ops.seq import Conv
from tests.passes.exactness import TOKENS, check_blocks, check_program, close, run, sums, twin

TWINS = ["ZAYA1-8B", "zaya, windows, more taps, biases"]


def test_one_convolution_is_two() -> None:
    draw = torch.Generator().manual_seed(0)
    x, first, second, b, c = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((2, 12, 9), (12, 1, 3), (8, 3, 2), (12,), (8,))
    )
    nothing = torch.zeros(0, 0)
    joined = JoinConvs.__new__(JoinConvs).reference(Run(nothing, nothing, None, lambda _: nothing), first, second, b, c)
    conv = torch.nn.functional.conv1d
    wanted = conv(conv(torch.nn.functional.pad(x, (3, 0)), first, b, groups=12), second, c, groups=4)
    found = conv(torch.nn.functional.pad(x, (3, 0)), *joined, groups=4)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", TWINS)
def test_blocks_and_logits(name: str) -> None:
    check_blocks(name, "fuse-convs", lambda graph: [f"layers.{i}.attn.ctx" for i in range(2)] + sums(graph))
    graph, source = twin(name)
    done = run(graph, "fuse-convs").graph
    close(Interpreter(done, source)(TOKENS), Interpreter(graph, source)(TOKENS))


@pytest.mark.parametrize("name", TWINS)
def test_parameters_and_cache(name: str) -> None:
    graph, _ = twin(name)
    done = run(graph, "fuse-convs").graph
    convs = [op for op in graph.ops if isinstance(op, Conv)]
    before = sum(v.tensor.elements({}) for op in convs for v in (op.weight, op.bias) if v)
    after = sum(v.tensor.elements({}) for op in done.ops if isinstance(op, Conv) for v in (op.weight, op.bias) if v)
    (out, of, taps), first = convs[1].weight.tensor.sizes, convs[0].weight.tensor.sizes[2]
    assert after == graph.layer_count() * (out * of * (taps + first - 1) + out)
    assert parameters(done).total - parameters(graph).total == after - before
    assert cache_bytes(done, 1000) == cache_bytes(graph, 1000)


def test_it_comes_after_other_passes_and_not_twice() -> None:
    graph, source = twin(TWINS[0])
    done = run(graph, "fold-norms,fuse-projections,fuse-convs").graph
    close(Interpreter(done, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    with pytest.raises(StructureError, match=r"layer 0: seq\.conv %layers\.0\.attn\.conv_1 reads no other convolution"):
        run(done, "fuse-convs")
    with pytest.raises(StructureError, match="layer 0: it has no convolution"):
        run(twin("Qwen3-0.6B")[0], "fuse-convs")


@pytest.mark.parametrize("name", TWINS)
def test_the_program(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    check_program(run(graph, "fuse-convs").graph, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
