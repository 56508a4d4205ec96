"""DeepSeek V4: exact counts and costs, the golden tiny model, twins against transformers, single wrong choices."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import expected_tensors, lift, lift_config
from regraft.frontends.released import released_name, resaved_name
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.errors.base import RegraftError
from regraft.ir.errors.checkpoint import ExpertNumberError
from regraft.ir.graph import Graph
from regraft.ir.header import build_header
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.hyper import FromStreams, Read
from regraft.ir.ops.moe import Route
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.quantized import Dequantize, Fp4
from regraft.ir.source import TensorInfo, TensorSource, dtype_name
from tests.frontends import agreement

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "deepseek_v4_golden.json").read_text(encoding="utf-8")
)
SIZES = ["Flash", "Pro"]


def builtin(size: str, **changes: Any) -> dict[str, Any]:
    return {**open_model(f"builtin:DeepSeek-V4-{size}").config, **changes}


def graph_of(size: str) -> Graph:
    return lift(open_model(f"builtin:DeepSeek-V4-{size}")).graph


# -- the published configs


@pytest.mark.parametrize("size", SIZES)
def test_counts_are_exact(size: str) -> None:
    found, expected = parameters(graph_of(size)), GOLDEN["params"][size]
    config = builtin(size)
    tables = config["num_hash_layers"] * config["vocab_size"] * config["num_experts_per_tok"]
    assert found.total == expected["total_parameters_main_model"]
    assert found.active == expected["active_per_token_including_embedding_table"]
    assert found.active_without_embedding == expected["active_per_token_excluding_embedding_row_table"]
    assert found.embedding == expected["embedding_parameters"]
    assert found.buffers == expected["router_bias_buffers"] + tables


@pytest.mark.parametrize("size", SIZES)
def test_cache_bytes_are_exact(size: str) -> None:
    graph, expected = graph_of(size), GOLDEN["kv_cache_bytes"][size]
    fixed = sum(memory.op.cost({"B": 1, "T": 0, "S": 0}).cache for memory in graph.memories() if memory.op)
    worst = expected["tail_and_overlap_state_fp32"]["4096"]
    assert fixed == worst["worst_case_csa"] + worst["worst_case_hca"]
    for context, parts in expected["bf16"].items():
        assert cache_bytes(graph, int(context)) - fixed == parts["total"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("context", [1_000_000, 1 << 20])
def test_operations_of_a_decoded_token_are_exact(size: str, context: int) -> None:
    expected = GOLDEN["decode_flops"][f"T={context}"][size]["raw"]
    found = cost(graph_of(size), context=context)
    assert found.by_family["seq"].flops == expected["indexer_scores"]
    assert found.by_family["attn"].flops == expected["core_attention"]
    assert found.total.flops == expected["total"]


IN_BF16 = (
    *("lm_head", ".mlp.gate.", "weights_proj", ".compressor.kv_proj", ".compressor.gate_proj"),
    *(".indexer.kv_proj", ".indexer.gate_proj"),
)


def maps(graph: Graph) -> int:
    """Return the operations of a token's linear maps, in float8 as one and in more bits as two."""
    total, at = 0, {"B": 1, "T": 1, "S": 1}
    for op in graph.run_time():
        weights = [value.name for value in op.operands if value.is_weight]
        wide = isinstance(op, FromStreams) or any(part in name for name in weights for part in IN_BF16)
        total += 0 if op.opname.startswith(("attn.", "seq.")) else op.flops(at) * (2 if wide else 1)
    return total


@pytest.mark.parametrize("size", SIZES)
def test_operations_that_it_saves_beside_v32(size: str) -> None:
    mine, other = graph_of(size), lift(open_model("builtin:DeepSeek-V3.2")).graph
    context, golden = 1_000_000, GOLDEN["decode_flops"]["T=1000000"]
    found = cost(mine, context=context).by_family
    total = maps(mine) + found["seq"].flops // 2 + 2 * found["attn"].flops
    assert total == golden[size]["fp8_equivalent"]["total"]
    index = cost(other, context=context).by_family["seq"].flops
    attends = [op for op in other.ops if isinstance(op, Attend)]
    core = len(attends) * 2 * 128 * (576 + 512) * 2048  # with the latent's maps moved to queries and results
    assert maps(other) + index + 2 * core == golden["V3.2"]["fp8_equivalent"]["total"]
    assert total / (maps(other) + index + 2 * core) == pytest.approx(
        golden[size]["fp8_equivalent_fraction_of_V32"], abs=5e-5
    )


@pytest.mark.parametrize("size", SIZES)
def test_schedules_and_text(size: str) -> None:
    graph, schedule = graph_of(size), GOLDEN["schedule"][size]
    agreement.check_text(graph)
    kinds = block_kinds(graph)
    assert sum(len(kind.layers) for kind in kinds) == schedule["layers"]
    attends = [op for op in graph.ops if isinstance(op, Attend)]
    assert sum(op.entries is None for op in attends) == schedule["sliding"]
    assert sum(op.chosen is not None for op in attends) == schedule["csa"]
    assert len(kinds) == {"Flash": 4, "Pro": 4}[size]
    hashed = [op.scope for op in graph.ops if isinstance(op, Route) and op.given is not None]
    assert hashed == [f"layers.{layer}.moe" for layer in schedule["hash_moe_layers"]]


def test_inspecting_the_largest_takes_neither_torch_nor_much_memory() -> None:
    code = (
        "import sys; from regraft.cli.main import main; main(['-q', 'inspect', 'builtin:DeepSeek-V4-Pro']); "
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules); "
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')); "
        "print(heavy or peak.split()[1], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "1,572,997,179,491" in done.stdout
    assert int(done.stderr) * 1024 < 150e6


def test_rotary_tables() -> None:
    expected = GOLDEN["rope"]
    ropes = {op.base: op for op in graph_of("Flash").ops if isinstance(op, Rope)}
    for base, name in ((10000.0, "main"), (160000.0, "compress")):
        found = ropes[base].frequencies()
        assert ropes[base].channels == expected["rope_dim"]
        assert ropes[base].amplitude == expected["cos_sin_multiplier"]
        for place, frequency in expected[f"{name}_inv_freq_sample"].items():
            assert float(found[int(place)]) == pytest.approx(frequency, rel=1e-6)


# -- the golden tiny model


def filled(names: list[str], name: str, shape: tuple[int, ...], experts: int) -> Tensor:
    """Return a tensor of the golden model, by the rule that the file states."""
    mask, number = 0xFFFFFFFF, sorted(names).index(name)
    if name.endswith("tid2eid"):
        return torch.tensor([[(5 * t + 3 * j + number) % experts for j in range(shape[1])] for t in range(shape[0])])
    x = numpy.arange(math.prod(shape), dtype=numpy.uint64) * 2654435761 + ((number + 1) * 40503 + 12345)
    x = x & mask
    for shift, factor in ((15, 2246822519), (13, 3266489917), (16, 1)):
        x = ((x ^ (x >> numpy.uint64(shift))) * numpy.uint64(factor)) & mask
    u = 2 * x.astype(numpy.float64) / 2**32 - 1
    if "norm" in name or name.endswith("scale"):
        values = 1 + 0.3 * u
    elif name.endswith(("base", "sinks", "position_bias", "embed_tokens.weight")):
        values = u
    elif name.endswith("e_score_correction_bias"):
        values = 0.3 * u
    else:
        values = 2 * u / math.sqrt(shape[-1])
    return torch.from_numpy(values.astype(numpy.float32).reshape(shape))


def test_the_golden_tiny_model() -> None:
    golden = GOLDEN["tiny_model"]
    config = read_config({**golden["config"], "model_type": "deepseek_v4"})
    graph = lift_config(config, Declared("f32"))
    shapes = {info.name: info.shape for info in expected_tensors(graph)}
    weights = {name: filled(list(shapes), name, shape, 8) for name, shape in shapes.items()}
    for name, first in golden["first_values"].items():
        assert weights[name].flatten()[:3].tolist() == pytest.approx(first, abs=1e-6)
    tokens = torch.tensor([[(37 * p + 11) % 97 for p in range(131)]])
    interpreter = Interpreter(graph, TensorSource(weights))
    logits = interpreter(tokens)[0]
    for row, expected in golden["logits"].items():
        assert (logits[int(row), :8] - torch.tensor(expected)).abs().max() <= golden["tolerance"]
    assert float(logits.sum()) == pytest.approx(golden["logits_sum"], abs=0.01)
    cache = interpreter.new_cache()
    found = torch.cat([interpreter(part, cache) for part in tokens.split((50, 1, 13, 67), 1)], 1)[0]
    assert (found - logits).abs().max() <= golden["tolerance"]


def test_what_goes_on_in_which_stream() -> None:
    expected = GOLDEN["sinkhorn_vector"]["result"]
    numbers = [0.1 * j * k - 0.3 * j + 0.2 * k for j in range(4) for k in range(4)]
    graph = lift_config(read_config(twin_config(builtin("Flash"))), Declared("f64"))
    read = next(op for op in graph.ops if isinstance(op, Read))
    base = torch.tensor([0.0] * 8 + numbers, dtype=torch.float64)
    zero = [torch.zeros(v.tensor.sizes, dtype=torch.float64) for v in (read.fn, read.scale)]
    run: Any = type("Wide", (), {"wide": staticmethod(lambda x: x)})
    _, post, comb = read.reference(run, torch.ones(1, 1, 4, 64, dtype=torch.float64), zero[0], base, zero[1])
    assert (comb[0, 0] - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-8
    assert torch.equal(post, torch.ones_like(post))


# -- checkpoints as released, and as transformers saves them


TOKENS = torch.randint(0, 128, (1, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def twin() -> tuple[Graph, dict[str, Tensor]]:
    graph = lift_config(read_config(twin_config(builtin("Flash"))), Declared("f32"))
    arrays = random_tensors(graph, 5, gain=0.8)
    return graph, {name: torch.from_numpy(array) for name, array in arrays.items()}


def stored(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    """Write a checkpoint of the twin."""
    config = {**twin_config(builtin("Flash")), **changes}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    infos = [TensorInfo(name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
    data = [tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() for tensor in tensors.values()]
    (folder / "model.safetensors").write_bytes(b"".join([build_header(infos), *data]))
    return folder


def singly(name: str, tensor: Tensor, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Return a tensor under its name in a checkpoint; experts one by one."""
    module, _, part = name.rpartition(".")
    if not module.endswith(".experts"):
        return {rename(name): tensor}
    gate = rename(f"{module.removesuffix('.experts')}.gate.weight").removesuffix("gate.weight")
    maps = {"w2": tensor} if part == "down_proj" else dict(zip(("w1", "w3"), tensor.chunk(2, 1), strict=True))
    return {f"{gate}experts.{e}.{w}.weight": each for w, t in maps.items() for e, each in enumerate(t)}


@pytest.mark.parametrize("rename", [released_name, resaved_name])
def test_other_names_are_the_same_model(
    rename: Callable[[str], str], twin: tuple[Graph, dict[str, Tensor]], tmp_path: Path
) -> None:
    graph, tensors = twin
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        renamed |= singly(name, tensor, rename)
    model = open_model(stored(tmp_path, renamed))
    lifted = lift(model)
    assert not lifted.warnings
    found = Interpreter(lifted.graph, model.require_checkpoint())(TOKENS)
    assert torch.equal(found, Interpreter(graph, TensorSource(tensors))(TOKENS))
    agreement.check_text(lifted.graph)
    assert parameters(lifted.graph) == parameters(graph)


IN_FLOAT8 = ("q_a_proj", "q_b_proj", "self_attn.kv_proj", "o_a_proj", "o_b_proj")
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def power(tensor: Tensor, largest: float) -> Tensor:
    """Return powers of two that bring values within what codes can say."""
    return torch.exp2(torch.ceil(torch.log2(tensor / largest)))


def packed_experts(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return experts in float4 with their scales, and what they say."""
    packed: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        groups = tensor.unflatten(-1, (-1, 32))
        scale = power(groups.abs().amax(-1), 6)
        codes = (groups.abs() / scale[..., None])[..., None].sub(FP4).abs().argmin(-1)
        plain[name] = (FP4[codes] * groups.sign() * scale[..., None]).flatten(-2)
        codes = (codes + 8 * (groups < 0)).flatten(-2).to(torch.uint8)
        packed[name] = (codes[..., 0::2] + 16 * codes[..., 1::2]).view(torch.int8)
        packed[name.replace(".weight", ".scale")] = scale.to(torch.float8_e8m0fnu)
    return packed, plain


def test_a_released_checkpoint_is_its_own_dequantised_one(
    twin: tuple[Graph, dict[str, Tensor]], tmp_path: Path
) -> None:
    graph, tensors = twin
    released: dict[str, Tensor] = {"mtp.0.norm.weight": torch.ones(64)}
    plain = dict(tensors)
    for name, tensor in tensors.items():
        if ".mlp.experts." in name:
            packed, said = packed_experts(singly(name, tensor, released_name))
            released |= packed
            stacked = [torch.stack([said[n] for n in said if f".{w}." in n]) for w in ("w1", "w3", "w2")
                       if any(f".{w}." in n for n in said)]  # fmt: skip
            plain[name] = torch.cat(stacked, 1)
        elif "shared_experts" in name or name.removesuffix(".weight").endswith(IN_FLOAT8):
            scale = power(tensor.abs().amax(), 448)
            codes = (tensor / scale).to(torch.float8_e4m3fn)
            plain[name] = codes.float() * scale
            source = released_name(name)
            released |= {source: codes}
            blocks = (-(-tensor.shape[0] // 128), -(-tensor.shape[1] // 128))
            released[source.replace(".weight", ".scale")] = scale.expand(blocks).to(torch.float8_e8m0fnu)
        else:
            released[released_name(name)] = tensor
    model = open_model(stored(tmp_path, released, quantization_config=builtin("Flash")["quantization_config"]))
    lifted = lift(model)
    assert lifted.warnings == ("left out: what predicts further tokens (mtp); the text decoder is lifted",)
    assert {Dequantize, Fp4} < {type(op) for op in lifted.graph.ops}
    agreement.check_text(lifted.graph)
    found = Interpreter(lifted.graph, model.require_checkpoint())(TOKENS)
    assert (found - Interpreter(graph, TensorSource(plain))(TOKENS)).abs().max() < 1e-5


# -- configs that do not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compress_ratios": [0, 4]}, "2 ratios for 43 layers"),
        ({"compress_ratios": [7] * 44}, "not 7"),
        ({"o_groups": 7}, "64 heads in 7 groups"),
        ({"qk_rope_head_dim": 63}, "63 channels turn"),
        ({"qk_rope_head_dim": 128}, "128 channels turn"),  # all of an index head
        ({"compress_rates": {"compressed_sparse_attention": "4"}}, "compress_rates.compressed_sparse_attention = '4'"),
        ({"num_experts_per_tok": 300}, "300 experts"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"layer_types": ["sliding_attention"]}, "1 entries for 43 layers"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"n_shared_experts": 2}, "n_shared_experts"),
    ],
)
def test_a_value_that_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RegraftError, match=message):
        read_config(builtin("Flash", **changes))


def test_a_table_that_names_experts_beyond_the_last(twin: tuple[Graph, dict[str, Tensor]]) -> None:
    graph, tensors = twin
    name = "model.layers.0.mlp.gate.tid2eid"
    table = tensors[name].clone()
    table[3, 0] = 1000
    tokens = torch.tensor([[1, 2, 3]])
    with pytest.raises(ExpertNumberError, match=r"tid2eid names expert 1000, and there are experts 0 to \d+"):
        Interpreter(graph, TensorSource({**tensors, name: table}))(tokens)
