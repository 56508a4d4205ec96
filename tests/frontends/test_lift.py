"""Checkpoints as they are found: layouts, element types, tied heads, what is missing and what is too much."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from regraft.frontends.folder import ModelFolder, open_model
from regraft.frontends.lift import lift
from regraft.frontends.twin import write_twin
from regraft.ir.errors import RegraftError
from regraft.ir.interpret import Interpreter
from regraft.ir.parse import parse_graph
from regraft.ir.text import print_graph

Tensors = dict[str, numpy.ndarray[Any, Any]]
LAYER = "model.layers.1"
MOE = {"model_type": "qwen3_moe", "norm_topk_prob": True, "head_dim": 64, "num_hidden_layers": 4}


def edited(tmp_path: Path, config: dict[str, Any], change: Callable[[Tensors], object]) -> ModelFolder:
    """Write a twin, let ``change`` change its tensors, and open it."""
    folder = write_twin(config, tmp_path / "model")
    file = folder / "model.safetensors"
    tensors: Tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return open_model(folder)


def refused(model: ModelFolder, strict: bool = True) -> RegraftError:
    with pytest.raises(RegraftError) as caught:
        lift(model, strict=strict)
    return caught.value


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    config = {"model_type": "qwen3", "num_hidden_layers": 4}
    first = write_twin(config, tmp_path / "a")
    second = write_twin(config, tmp_path / "b")
    other = write_twin(config, tmp_path / "c", seed=1)
    files = [(folder / "model.safetensors").read_bytes() for folder in (first, second, other)]
    assert files[0] == files[1] != files[2]
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "model.safetensors"]


def test_a_twin_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(RegraftError) as caught:
        write_twin({"model_type": "llama"}, tmp_path / "a")
    assert caught.value.code == "RG401"


def test_experts_one_by_one_and_stacked_are_the_same_model(tmp_path: Path) -> None:
    import torch

    single = open_model(write_twin(MOE, tmp_path / "single"))

    def stack(tensors: Tensors) -> None:
        for layer in range(2):
            module = f"model.layers.{layer}.mlp.experts"
            parts = {
                kind: numpy.stack([tensors.pop(f"{module}.{e}.{kind}_proj.weight") for e in range(8)])
                for kind in ("gate", "up", "down")
            }
            tensors[f"{module}.gate_up_proj"] = numpy.concatenate([parts["gate"], parts["up"]], axis=1)
            tensors[f"{module}.down_proj"] = parts["down"]

    stacked = edited(tmp_path, MOE, stack)
    graphs = [lift(model).graph for model in (single, stacked)]
    assert {v.name for v in graphs[0].parameters()} == {v.name for v in graphs[1].parameters()}
    assert len(graphs[0].ops) < 100  # not an op an expert
    tokens = torch.arange(30)[None]
    logits = [
        Interpreter(graph, model.require_checkpoint())(tokens)
        for graph, model in zip(graphs, (single, stacked), strict=True)
    ]
    assert torch.equal(logits[0], logits[1])
    for graph in graphs:
        text = print_graph(graph)
        assert print_graph(parse_graph(text)) == text


def test_headers_give_the_element_types(tmp_path: Path) -> None:
    def narrow(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.astype(numpy.float32 if "norm" in name and ".0." in name else numpy.float16)

    graph = lift(edited(tmp_path, {"model_type": "llama", "torch_dtype": "bfloat16"}, narrow)).graph
    assert graph.meta["dtype"] == "f16"
    assert graph["embed"].tensor.dtype == "f16"
    assert graph["model.layers.0.input_layernorm.weight"].tensor.dtype == "f32"
    assert graph["model.layers.1.input_layernorm.weight"].tensor.dtype == "f16"
    assert graph["model.norm.weight"].tensor.dtype == "f16"
    graph.verify()


def test_a_tied_head_that_is_stored_too_is_one_weight(tmp_path: Path) -> None:
    def repeat(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    lifted = lift(edited(tmp_path, {"model_type": "llama", "tie_word_embeddings": True}, repeat))
    assert not lifted.warnings
    assert lifted.graph.meta["tied"]
    assert "lm_head.weight" not in lifted.graph


def test_a_tied_head_that_differs_is_used_untied(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2

    lifted = lift(edited(tmp_path, {"model_type": "llama", "tie_word_embeddings": True}, change))
    assert len(lifted.warnings) == 1
    assert not lifted.graph.meta["tied"]
    assert lifted.graph["lm_head.weight"].users


def test_a_head_alone_serves_as_the_embedding(tmp_path: Path) -> None:
    def move(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    lifted = lift(edited(tmp_path, {"model_type": "llama", "tie_word_embeddings": True}, move))
    assert len(lifted.graph["lm_head.weight"].users) == 2


def test_rotary_tables_are_passed_over(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors[f"{LAYER}.self_attn.rotary_emb.inv_freq"] = numpy.ones(8, numpy.float32)

    assert not lift(edited(tmp_path, {"model_type": "llama"}, add)).warnings


def test_tensors_beside_the_model_are_said(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["v_head.weight"] = numpy.ones(8, numpy.float32)

    (warning,) = lift(edited(tmp_path, {"model_type": "llama"}, add)).warnings
    assert "v_head.weight" in warning


@pytest.mark.parametrize("name", [f"{LAYER}.self_attn.q_proj.bias", "model.layers.2.mlp.up_proj.weight"])
def test_tensors_of_the_model_that_the_graph_would_lack_are_refused(tmp_path: Path, name: str) -> None:
    def add(tensors: Tensors) -> None:
        tensors[name] = numpy.ones(8, numpy.float32)

    model = edited(tmp_path, {"model_type": "llama"}, add)
    error = refused(model)
    assert error.code == "RG312"
    assert name in error.text
    assert lift(model, strict=False).warnings


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model = edited(tmp_path, {"model_type": "llama"}, lambda tensors: tensors.pop(f"{LAYER}.mlp.up_proj.weight"))
    error = refused(model, strict=False)
    assert error.code == "RG306"
    assert f"{LAYER}.mlp.up_proj.weight" in error.text


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    name = f"{LAYER}.mlp.experts.5.down_proj.weight"
    assert name in refused(edited(tmp_path, MOE, lambda tensors: tensors.pop(name))).text


def test_an_expert_of_another_element_type_is_named(tmp_path: Path) -> None:
    name = f"{LAYER}.mlp.experts.5.down_proj.weight"

    def narrow(tensors: Tensors) -> None:
        tensors[name] = tensors[name].astype(numpy.float16)

    error = refused(edited(tmp_path, MOE, narrow))
    assert error.code == "RG305"
    assert name in error.text


def test_a_wrong_shape_is_named_with_the_right_one(tmp_path: Path) -> None:
    def cut(tensors: Tensors) -> None:
        tensors[f"{LAYER}.mlp.up_proj.weight"] = numpy.ones((96, 63), numpy.float32)

    error = refused(edited(tmp_path, {"model_type": "llama"}, cut))
    assert error.code == "RG305"
    assert error.text == f"{LAYER}.mlp.up_proj.weight is f32[96, 63], the config calls for f32[96, 64]"


def test_integers_are_no_weights(tmp_path: Path) -> None:
    def round_off(tensors: Tensors) -> None:
        tensors[f"{LAYER}.mlp.up_proj.weight"] = numpy.ones((96, 64), numpy.int8)

    error = refused(edited(tmp_path, {"model_type": "llama"}, round_off))
    assert error.exit_code in (2, 3)
    assert f"{LAYER}.mlp.up_proj.weight" in str(error)


def test_end_tokens_of_the_generation_config_count(tmp_path: Path) -> None:
    folder = write_twin({"model_type": "llama"}, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}', encoding="utf-8")
    assert lift(open_model(folder)).graph.meta["eos"] == (7, 9)
    (folder / "generation_config.json").write_text('{"eos_token_id": "x"}', encoding="utf-8")
    assert lift(open_model(folder)).graph.meta["eos"] == (2,)


def test_a_folder_with_a_graph_is_read_as_it_is(tmp_path: Path) -> None:
    folder = write_twin({"model_type": "llama"}, tmp_path / "model")
    graph = lift(open_model(folder)).graph
    base = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({"model_type": "regraft", "base": base}), encoding="utf-8")
    error = refused(open_model(folder))
    assert error.code == "RG208"
    (folder / "graph.rg").write_text(print_graph(graph), encoding="utf-8")
    lifted = lift(open_model(folder))
    assert print_graph(lifted.graph) == print_graph(graph)
    assert lifted.family == "llama"
    assert lifted.config == base
    text = print_graph(graph).replace("96", "98")
    (folder / "graph.rg").write_text(text, encoding="utf-8")
    assert refused(open_model(folder)).code == "RG305"
    (folder / "graph.rg").write_bytes(b"\xff\xfe")
    assert refused(open_model(folder)).code == "RG402"


def test_a_graph_file_alone_is_a_model(tmp_path: Path) -> None:
    graph = lift(open_model("builtin:Qwen3-0.6B")).graph
    (tmp_path / "x.rg").write_text(print_graph(graph), encoding="utf-8")
    assert print_graph(lift(open_model(tmp_path / "x.rg")).graph) == print_graph(graph)


def test_pickles_are_refused_where_weights_matter(tmp_path: Path) -> None:
    folder = write_twin({"model_type": "llama"}, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert refused(open_model(folder)).code == "RG308"
    assert lift(open_model(folder), strict=False).warnings


def test_names_become_those_of_graphs(tmp_path: Path) -> None:
    folder = write_twin({"model_type": "llama"}, tmp_path / "my model (2)")
    graph = lift(open_model(folder)).graph
    assert graph.name == "my-model-2"
    assert parse_graph(print_graph(graph)).name == graph.name


def test_lifting_a_config_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from regraft.frontends.folder import open_model\n"
        "from regraft.frontends.lift import lift\n"
        "lift(open_model('builtin:Qwen3-30B-A3B'))\n"
        "heavy = {'torch', 'transformers', 'networkx', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
