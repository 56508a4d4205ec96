"""Packages: a program with its weights, tokenizer, card and checks, in a folder that needs nothing of ours."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from regraft.codegen.kernels.shipping import check_targets, contexts, shipped_kernels, stored
from regraft.codegen.names import comment
from regraft.codegen.render import render
from regraft.codegen.schedule import schedule
from regraft.codegen.torch.forms import Forms
from regraft.codegen.torch.target import Program, TorchTarget
from regraft.codegen.triton.target import TritonTarget
from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.base import RegraftError
from regraft.ir.errors.codegen import UnknownTargetError
from regraft.ir.files import OutputFolder
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter, Run, execute
from regraft.ir.json_files import read_object
from regraft.ir.op import Op, Value
from regraft.ir.ops.final import Last
from regraft.ir.ops.weight import Load
from regraft.ir.sink import SHARD_BYTES, ShardWriter
from regraft.ir.source import Source, TensorInfo, to_bytes
from regraft.ir.text import print_graph

Progress = Callable[[int, int, str], None]

SCHEMA = "regraft.package/1"
CARD = "README.md"
TARGETS = ("torch", "triton")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
STEP_CONTEXTS = (1, 4096, 131072, 1048576)  # at which a package says what a decoded token has to move
GOLDEN_PARAMETERS = 2_000_000_000  # a larger model gets no golden logits: the interpreter holds it in float32
GOLDEN_LOGITS = 8_000_000  # numbers in the golden file, at most, unless the vocabulary needs more
_TORCH = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def emit(
    model: Graph | Forms,
    source: Source,
    out: Path,
    *,
    target: str = "torch",
    tokenizer_folder: Path | None = None,
    lock: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Write a package, whole or not at all, and return its folder. The same input gives the same bytes.

    Args:
        model: A verified graph, or one in two forms, of which the program runs the second when it is given one token.
        source: Where its tensors are.
        out: The folder to make; its parent must exist.
        target: One of `TARGETS`.
        tokenizer_folder: Where the tokenizer's files are copied from.
        lock: The ``regraft.lock.json`` of the recipe that made the graph, with what was measured.
        shard_bytes: Bytes of tensors in one weight file.
        progress: Called with tensors written, tensors in all, and the tensor.

    Raises:
        UnknownTargetError, UnknownGpuError: There is no such target.
        MissingEmitterError, WiringError: The target cannot write the graph.
        NoTileError, TritonMissingError: The search found no tile, or is not possible here.
        ShippingError: A kernel does not compile.
        OutputExistsError, DiskFullError, OutputError: The folder cannot be written.
        CheckpointError: A tensor cannot be read.
    """
    if target not in TARGETS:
        raise UnknownTargetError(target=target, targets=", ".join(TARGETS))
    forms = model if isinstance(model, Forms) else Forms(model)
    check_targets(forms.gpus)
    graph = forms.graph
    recipe = read_object(lock) if lock is not None else {"regraft": 1, "pipeline": []}
    facts = _facts(graph, recipe)
    program = _target(target, forms, facts).program()
    facts["step"] = _step(forms)
    texts = _texts(graph, program, {**facts, "target": target, "gpus": ", ".join(forms.gpus)}, recipe)
    kernels = _kernels(program, texts, forms.gpus)
    with OutputFolder(out, f"build {hashlib.sha256(program.model_py.encode()).hexdigest()}") as folder:
        try:
            digests = _weights(folder, program, source, shard_bytes, progress)
            for name, data in (texts | _golden(graph, source, facts) | kernels).items():
                folder.write(name, data)
                if name != CARD:  # evaluations add to it
                    digests[name] = _digest(data)
            for name in TOKENIZER_FILES:
                if tokenizer_folder is not None and (tokenizer_folder / name).is_file():
                    digests[name] = _digest(folder.copy(tokenizer_folder / name, name).read_bytes())
            folder.write("regraft.lock.json", _json({**recipe, "outputs": dict(sorted(digests.items()))}))
            return folder.commit()
        except BaseException as error:
            if not isinstance(error, RegraftError):
                shutil.rmtree(folder.path, ignore_errors=True)  # there is nothing worth continuing
                out.with_name(f"{out.name}.partial.journal").unlink(missing_ok=True)
            raise


def _target(target: str, forms: Forms, facts: dict[str, Any]) -> TorchTarget:
    """Return what writes the program."""
    header, title = _header(forms.graph, facts), _title(forms.graph, facts)
    if target == "torch":
        return TorchTarget(forms.graph, header, title, forms.step)
    assert forms.fused is not None, "target triton is given the fused step"
    return TritonTarget(forms.graph, header, title, forms.fused, forms.prefill, forms.tiles)


def _step(forms: Forms) -> dict[str, Any] | None:
    """Return what a step of one token launches and has to move, at some contexts; none without kernels."""
    if forms.fused is None:
        return None
    found = [schedule(forms.graph, forms.fused, 1, context, forms.tiles) for context in STEP_CONTEXTS]
    return {
        "kernels": found[0].whole.launches,
        "least_bytes": {str(each.context): each.whole.least for each in found},
    }


def _kernels(program: Program, texts: Mapping[str, bytes], targets: Sequence[str]) -> dict[str, bytes]:
    """Return the kernels to ship, by the names of their files."""
    if not targets:
        return {}
    config = json.loads(texts["config.json"])
    return shipped_kernels(program.model_py, config, stored(program.tensors), targets, contexts(config["context"]))


# -- text


def _facts(graph: Graph, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the card, the config and the header say of a model."""
    counts = parameters(graph)
    text = print_graph(graph)
    context = graph.meta.get("context")
    return {
        "name": comment(graph.name),
        "family": comment(str(graph.meta.get("family", "unknown"))),
        "layers": graph.layer_count(),
        "parameters": counts.total,
        "active": counts.active,
        "dtype": graph.outputs[0].tensor.dtype,
        "vocab": graph.outputs[0].tensor.shape[-1],
        "context": context if isinstance(context, int) and context > 0 else 2048,
        "row_bytes": cache_bytes(graph, 4096) / 4096,
        "cache": {length: cache_bytes(graph, length) for length in (4096, 131072)},
        "graph": text,
        "digest": hashlib.sha256(text.encode()).hexdigest(),
        "tensors": len(graph.parameters()),
        "recipe": _steps(recipe),
    }


def _steps(recipe: Mapping[str, Any]) -> list[str]:
    """Return a recipe's steps as text, one a line; options that take too much room are left to the lock file."""
    steps: list[str] = []
    for step in cast("list[Any]", recipe.get("pipeline") or []):
        if isinstance(step, Mapping):
            ((name, options),) = list(cast("Mapping[str, Any]", step).items())[:1]
            told = _options(options)
            steps.append(f"{comment(str(name))} {told if len(told) <= 90 else '(regraft.lock.json)'}".rstrip())
        else:
            steps.append(comment(str(step)))
    return steps


def _options(options: object) -> str:
    """Return a step's options as text: ``donor=3, layers=[4, 5]``."""
    if not isinstance(options, Mapping):
        return ""
    pairs = cast("Mapping[str, object]", options).items()
    return comment(", ".join(f"{key}={json.dumps(value)}".replace('"', "") for key, value in pairs))


def _title(graph: Graph, facts: Mapping[str, Any]) -> str:
    recipe = ", then ".join(step.split()[0] for step in facts["recipe"])
    return f"{facts['name']}: {facts['layers']} layers{f', after {recipe}' if recipe else ''}."


def _header(graph: Graph, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    width = graph.parameters()[0].tensor.sizes[-1]
    pooled = any(memory.memory.rate for memory in graph.memories())
    model = f"{facts['name']} ({facts['family']}): {facts['layers']} layers, M = {width}, V = {facts['vocab']}"
    weights = f"{facts['tensors']} tensors, {facts['parameters']:,} parameters, {facts['dtype']}"
    recipe = [("recipe" if i == 0 else "", step) for i, step in enumerate(facts["recipe"] or ["none"])]
    return [
        ("model", model),
        *recipe,
        ("graph", f"sha256 {facts['digest']}"),
        ("weights", weights),
        ("dims", "B batch, T tokens of a call, N slots of a memory, S rows that queries see, V vocabulary"),
        *([("", "L the last of a call's tokens, those whose logits are wanted")] if _cut(graph) else []),
        *([("", "E rows of several tokens that a call may finish")] if pooled else []),
    ]


def _cut(graph: Graph) -> bool:
    """Return whether a graph keeps, from some place on, the tokens alone whose logits are wanted."""
    return any(isinstance(op, Last) for op in graph.ops)


def _texts(graph: Graph, program: Program, facts: dict[str, Any], recipe: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the package's text files by name."""
    meta = graph.meta
    config = {
        "schema": SCHEMA,
        "target": facts["target"],
        "name": graph.name,
        "model_type": "regraft",
        "family": meta.get("family"),
        "dtype": _TORCH[facts["dtype"]],
        "vocab": facts["vocab"],
        "context": facts["context"],
        "bos": meta.get("bos"),
        "eos": list(cast("tuple[int, ...]", meta.get("eos") or ())),
        "parameters": facts["parameters"],
        "layers": program.layers,
        **({"step": facts["step"]} if facts.get("step") else {}),
    }
    measured = cast("Mapping[str, Any]", recipe.get("measured") or {})
    inputs = recipe.get("inputs")
    changed = cast("Mapping[str, Any]", inputs).get("model") if isinstance(inputs, dict) else None
    changed = " ".join(changed.split()) if isinstance(changed, str) else "the original"
    golden = facts["parameters"] <= GOLDEN_PARAMETERS
    card = render("README.md.j2", **facts, measured=_flat(measured), changed=changed, golden=golden)
    texts = {
        "model.py": program.model_py,
        "generate.py": render("generate.py.j2", fused=facts["target"] == "triton"),
        "verify.py": render("verify.py.j2"),
        "config.json": _json(config),
        "graph.rg": str(facts["graph"]),
        CARD: card,
    }
    return {name: text.encode() for name, text in texts.items()}


def _flat(measured: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Return the numbers of a report as rows of a table."""
    rows: list[tuple[str, str]] = []
    for key, value in measured.items():
        name = f"{above}{comment(str(key))}"
        if isinstance(value, Mapping):
            rows += _flat(cast("Mapping[str, Any]", value), f"{name}, ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            rows.append((name.replace("_", " "), f"{value:.6g}"))
    return rows


def _json(document: object) -> str:
    return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def _digest(data: bytes) -> str:
    from blake3 import blake3

    return blake3(data).hexdigest()


# -- numbers


def _weights(
    folder: OutputFolder, program: Program, source: Source, shard_bytes: int, progress: Progress | None
) -> dict[str, str]:
    """Write the weight files: bytes as they are in the source, or an expression over them evaluated."""
    infos = [TensorInfo(name, v.tensor.dtype, v.tensor.sizes) for name, v in program.tensors.items()]
    with ShardWriter(folder, infos, shard_bytes) as writer:
        pending = writer.pending()
        for done, name in enumerate(pending):
            value = program.tensors[name]
            if isinstance(value.op, Load):
                writer.copy(name, source, value.op.source)
            else:
                writer.write(name, to_bytes(_evaluate(value, source)))
            if progress is not None:
                progress(done + 1, len(pending), name)
        return writer.finish()


def _evaluate(value: Value, source: Source) -> Any:
    """Return a weight-time value, in the stored dtypes."""
    import torch

    needed: dict[Op, None] = {}

    def visit(op: Op) -> None:
        for operand in op.operands:
            if operand.op is not None and operand.op not in needed:
                visit(operand.op)
        needed[op] = None

    assert value.op is not None
    visit(value.op)
    nothing = torch.zeros(0, 0)
    with torch.no_grad():
        run = Run(nothing, nothing, None, lambda op: source.read(op.source))
        return execute(list(needed), {}, run, {value})[value]


def _golden(graph: Graph, source: Source, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Return ``golden.safetensors``: fixed tokens, and the logits that the graph itself gives for them in float32."""
    if facts["parameters"] > GOLDEN_PARAMETERS:
        return {}
    import torch
    from safetensors.torch import save

    vocab = int(facts["vocab"])
    length = max(4, min(24, int(facts["context"]), GOLDEN_LOGITS // (2 * vocab)))
    place = torch.arange(2 * length).view(2, length)
    tokens = (place * place * 7 + place * 131 + 5) % vocab
    logits = Interpreter(graph, source, "f32")(tokens)
    return {"golden.safetensors": save({"tokens": tokens, "logits": logits.contiguous()})}
