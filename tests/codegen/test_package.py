"""Packages: what is in them, that they stand alone, and that nothing in them depends on anything but the input."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from regraft.codegen.package import emit
from regraft.codegen.torch import ops as torch_ops
from regraft.codegen.torch.ops import EMITTERS, missing_ops
from regraft.codegen.torch.target import TorchTarget
from regraft.ir.errors.base import RegraftError
from regraft.ir.errors.checkpoint import MissingTensorError
from regraft.ir.errors.codegen import MissingEmitterError, UnknownTargetError, WiringError
from regraft.ir.errors.files import OutputExistsError
from regraft.ir.graph import Graph
from regraft.ir.op import op_class
from regraft.ir.ops.pos import Rope
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.programs import load_program
from tests.codegen.programs import DECODERS, small, source_of
from tests.ir.models import FULL, decoder

torch = pytest.importorskip("torch")
GOLDEN = Path(__file__).parent / "golden" / "model.py.txt"
FILES = {
    "model.py",
    "generate.py",
    "verify.py",
    "config.json",
    "graph.rg",
    "README.md",
    "golden.safetensors",
    "model.safetensors",
    "regraft.lock.json",
}


def package(graph: Graph, folder: Path, **options: object) -> Path:
    return emit(graph, source_of(graph), folder, **options)  # pyright: ignore[reportArgumentType]


def text_of(graph: Graph) -> str:
    return TorchTarget(graph, [("model", "tiny")], "tiny.").program().model_py


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of a package where regraft cannot be imported."""
    script, *rest = arguments
    code = (
        "import sys, runpy; sys.modules['regraft'] = None; sys.path.insert(0, sys.argv[1]); "
        "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", code, str(folder), str(folder / script), *rest]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def agrees(folder: Path) -> bool:
    """Return whether the program in a folder gives its golden logits."""
    from safetensors.torch import load_file

    golden = load_file(folder / "golden.safetensors")
    with torch.no_grad():
        found = load_program(folder, dtype="float32")(golden["tokens"])
    return bool(torch.allclose(found, golden["logits"], rtol=0, atol=1e-5 * max(1, float(found.abs().max()) / 4)))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (package(small("shared"), tmp_path / name) for name in ("a", "b"))
    found = {path.name: path.read_bytes() for path in first.iterdir()}
    assert found == {path.name: path.read_bytes() for path in second.iterdir()}
    assert set(found) == FILES
    assert str(tmp_path).encode() not in b"".join(found.values())


def test_the_whole_text_of_one_program() -> None:
    text = text_of(small("shared"))
    if os.environ.get("REGRAFT_GOLDEN") == "write":  # then read what changed
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(DECODERS))
def test_the_text_is_formatted_and_clean(name: str, tmp_path: Path) -> None:
    folder = package(small(name), tmp_path / "package")
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["format", "--check", "--line-length=120"], ["check", "--line-length=120", "--select=E,F,I,W,B"]):
        done = subprocess.run(
            [*ruff, *command, "--isolated", "."], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_as_long_for_80_layers_as_for_8() -> None:
    assert len(text_of(decoder([FULL] * 8)).splitlines()) == len(text_of(decoder([FULL] * 80)).splitlines())
    pattern = DECODERS["windows and full"]
    assert len(text_of(decoder([*pattern] * 2)).splitlines()) == len(text_of(decoder([*pattern] * 20)).splitlines())


def test_weights_are_copied_byte_by_byte(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    graph = decoder([FULL] * 2, "bf16")
    source = source_of(graph)
    emit(graph, source, tmp_path / "package", shard_bytes=2000)
    files = sorted((tmp_path / "package").glob("model*.safetensors"))
    assert len(files) > 2
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert torch.equal(state["layers.1.q_proj.weight"], source.read("model.layers.1.self_attn.q_proj.weight"))
    assert state["norm"].dtype == torch.bfloat16
    assert len(state) == len(graph.parameters())
    index = json.loads((tmp_path / "package" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(state)
    assert agrees(tmp_path / "package")


def test_stands_alone(tmp_path: Path) -> None:
    folder = package(small("windows and full"), tmp_path / "package")
    done = run(folder, "verify.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok") == 5
    golden = folder / "golden.safetensors"
    data = bytearray(golden.read_bytes())
    data[-2] ^= 0x40  # the exponent of the last logit
    golden.write_bytes(bytes(data))
    assert run(folder, "verify.py").returncode == 1


def test_a_recipe_is_told_in_the_card_the_header_and_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "regraft.lock.json"
    lock.write_text(
        json.dumps(
            {
                "regraft": 1,
                "pipeline": [{"share-kv": {"donor": 3}}, {"budget-heads": {"heads": list(range(60))}}],
                "inputs": {"model": "the base"},
                "measured": {"perplexity": 11.25, "kl": {"mean": 0.5}},
            }
        )
    )
    folder = package(small("shared"), tmp_path / "package", lock=lock)
    written = json.loads((folder / "regraft.lock.json").read_text())
    assert written["pipeline"] == json.loads(lock.read_text())["pipeline"]
    assert set(written["outputs"]) == FILES - {"regraft.lock.json", "README.md"}
    card, program = (folder / "README.md").read_text(), (folder / "model.py").read_text()
    assert "| kl, mean | 0.5 |" in card
    assert "against the base, which the recipe changed" in card
    assert "- `share-kv donor=3`" in card
    assert "#   recipe   share-kv donor=3\n#            budget-heads (regraft.lock.json)\n" in program


HOSTILE = '"""\nraise SystemExit("boom")\n\'\'\'\\ {% for %} {{ boom }} `boom` \u202eboom'


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    graph = small("one layer")
    graph.name = HOSTILE
    graph.meta |= {"family": HOSTILE, "model_type": HOSTILE, "eos": (), "dtype": HOSTILE}
    lock = tmp_path / "regraft.lock.json"
    lock.write_text(json.dumps({"regraft": 1, "pipeline": [{HOSTILE: {HOSTILE: 1}}], "measured": {HOSTILE: 1.0}}))
    (tmp_path / "tokenizer.json").write_text(HOSTILE)
    folder = package(graph, tmp_path / "package", lock=lock, tokenizer_folder=tmp_path)
    for name in ("model.py", "generate.py", "verify.py"):
        plain = package(small("one layer"), tmp_path / f"plain {name}") / name
        assert _shape((folder / name).read_text()) == _shape(plain.read_text())
    assert agrees(folder)
    assert (folder / "tokenizer.json").read_text() == HOSTILE
    assert "\nraise" not in (folder / "README.md").read_text()


def _shape(text: str) -> str:
    """Return a program without its docstrings and comments."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def test_names_that_python_or_torch_use(tmp_path: Path) -> None:
    text = """
    graph @tiny {family = "test"} (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {
      %model.forward.weight = weight.load : f32[40, 16]
      %print = core.embed %tokens, %model.forward.weight : f32[B, T, 16]
      %class.weight = weight.load : f32[16, 16]
      %self = core.linear %print, %class.weight : f32[B, T, 16]
      %layers.weight = weight.load : f32[16]
      %torch = core.norm %self, weight=%layers.weight {eps = 1e-05} : f32[B, T, 16]
      %tokens_2 = core.mul %torch, %print : f32[B, T, 16]
      %lambda = core.linear %tokens_2, %model.forward.weight : f32[B, T, 40]
      return %lambda
    }
    """
    assert agrees(package(parse_graph(text), tmp_path / "package"))


def test_expressions_over_weights_are_evaluated(tmp_path: Path) -> None:
    text = """
    graph @tiny {family = "test"} (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {
      %table = weight.load : f32[40, 16]
      %a = weight.load : f32[8, 16]
      %b = weight.load : f32[8, 16]
      %both = weight.concat %a, %b : f32[16, 16]
      %x = core.embed %tokens, %table : f32[B, T, 16]
      %y = core.linear %x, %both : f32[B, T, 16]
      %logits = core.linear %y, %table : f32[B, T, 40]
      return %logits
    }
    """
    assert agrees(package(parse_graph(text), tmp_path / "package"))


# -- refusals


def test_the_target_lacks_no_op() -> None:
    assert missing_ops() == []


def test_an_op_without_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch_ops, "EMITTERS", {cls: e for cls, e in EMITTERS.items() if cls is not Rope})
    assert missing_ops() == ["pos.rope"]
    with pytest.raises(MissingEmitterError) as caught:
        package(small("one layer"), tmp_path / "package")
    assert str(caught.value) == (
        "error[RG561]: target torch has no code for pos.rope %layers.0.attn.q_rope\n"
        "  --> layers.0.attn\n"
        "  = help: targets are listed by `regraft build --help`; an op is added in codegen/, in its target's map"
    )
    assert list(tmp_path.iterdir()) == []
    assert op_class("pos.rope") is Rope


def test_layers_fed_in_different_ways() -> None:
    text = """
    graph @tiny {family = "test"} (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {
      %table = weight.load : f32[40, 16]
      %x = core.embed %tokens, %table : f32[B, T, 16]
      %layers.0.a = core.scale %x {factor = 2.0} : f32[B, T, 16]
      %layers.0.b = core.scale %x {factor = 3.0} : f32[B, T, 16]
      %layers.1.out = core.add %layers.0.a, %layers.0.b : f32[B, T, 16]
      %layers.2.out = core.add %layers.1.out, %layers.0.b : f32[B, T, 16]
      %logits = core.linear %layers.2.out, %table : f32[B, T, 40]
      return %logits
    }
    """
    with pytest.raises(WiringError) as caught:
        text_of(parse_graph(text))
    assert caught.value.text == "block_2: layers 1..2 take %x from places of different kinds"


@pytest.mark.parametrize(("options", "error"), [({"target": "cobol"}, UnknownTargetError)])
def test_unknown_targets(options: dict[str, str], error: type[RegraftError], tmp_path: Path) -> None:
    with pytest.raises(error, match="there is no target cobol"):
        package(small("one layer"), tmp_path / "package", **options)


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    with pytest.raises(OutputExistsError):
        package(small("one layer"), tmp_path / "package")
    assert list((tmp_path / "package").iterdir()) == []


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small("one layer")
    source = source_of(graph)
    without = TensorSource({name: source.read(name) for name in source.names() if "norm" not in name})
    with pytest.raises(MissingTensorError):
        emit(graph, without, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        emit(graph, source, tmp_path / "package", progress=stop)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert emit(graph, source, tmp_path / "package").is_dir()


# -- text


def tokenizer(folder: Path, words: Sequence[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    made.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    made.save(str(folder / "tokenizer.json"))


def test_text_in_text_out(tmp_path: Path) -> None:
    tokenizer(tmp_path, [f"w{i}" for i in range(40)])
    folder = package(small("windows and full"), tmp_path / "package", tokenizer_folder=tmp_path)
    both = run(folder, "generate.py", "w3 w4", "w9 w8 w7 w6 w5", "--max-new-tokens", "3")
    assert both.returncode == 0, both.stderr
    tokens, model = [3, 4], load_program(folder)
    for _ in range(3):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    first, second = both.stdout.splitlines()
    assert first == "[1] " + "".join(f"w{token}" for token in tokens[2:])
    assert second.startswith("[2] ")
    wrong = run(folder, "generate.py", "w3", "--top-p", "0")
    assert wrong.returncode == 2
    assert "0 < top-p <= 1" in wrong.stderr
    for arguments in (["generate.py", "w3"], ["verify.py"]):
        missing = run(folder, *arguments, "--device", "xpu:7")
        assert missing.returncode == 2
        assert missing.stderr.endswith("has no device xpu:7 here\n")


def test_generation(tmp_path: Path) -> None:
    folder = package(small("windows and full"), tmp_path / "package")
    code = """
import torch
from model import load
from generate import generate
model = load("FOLDER")
def greedy(prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt):]
def rows(prompts, count, **how):
    return [list(row) for row in zip(*generate(model, prompts, count, **how))]
with torch.no_grad():
    prompts = [[3, 4], [9, 8, 7, 6, 5, 1], [2]]
    expected = [greedy(prompt, 12) for prompt in prompts]
    assert rows(prompts, 12) == expected
    assert rows(prompts, 12, temperature=2.0, top_k=1) == expected
    assert rows(prompts, 12, temperature=2.0, top_p=1e-9) == expected
    sampled = rows(prompts, 12, temperature=2.0, seed=1)
    assert sampled == rows(prompts, 12, temperature=2.0, seed=1) != rows(prompts, 12, temperature=2.0, seed=2)
    end = expected[0][3]
    cut = [row[: row.index(end) + 1] if end in row else row for row in expected]
    longest = max(map(len, cut))
    assert rows(prompts, 12, eos=[end]) == [row + [None] * (longest - len(row)) for row in cut]
    assert len(rows(prompts, 1)[0]) == 1
""".replace("FOLDER", str(folder))
    script = tmp_path / "check.py"
    script.write_text(code)
    code = "import sys, runpy; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(folder), str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
