"""Evaluating a model, alone or against the one that it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import quality as measure
from regraft.ir.errors.calibration import TextError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.json_files import read_object
from regraft.model import Model, lift
from regraft.passes.fitting.text import Windows, load_tokenizer, read_windows, text_path, unseen
from regraft.programs import is_package, load_program
from regraft.quality import EvalReport, Probes, Progress, Runnable
from regraft.readings import readings

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class _Evaluated:
    """Something to be evaluated."""

    run: Runnable
    graph: Graph | None
    folder: Path | None
    vocab: int
    begin: int | None
    stored: Runnable  # the same in the stored dtype, to measure its cache


def evaluate(
    model: str | Path | Model,
    text: str | Path,
    *,
    against: str | Path | Model | None = None,
    context: int = 512,
    tokens: int | None = 32768,
    seed: int = 0,
    probes: Probes | None = None,
    progress: Progress | None = None,
) -> EvalReport:
    """Return perplexity of ``model`` on a text, and with ``against`` how far it is from that base.

    Computed in float32, in windows of ``context`` tokens, each after a begin token where the model has one. What the
    model's fits read of the text is left out.

    Args:
        model: A model, or a package that ``build`` wrote.
        text: A text file, a ``.jsonl`` file, a folder of them, or ``builtin:sample``.
        against: The base: KL(base ‖ model), agreement and, between two graphs, layer errors are measured against it.
        context: Tokens in a window.
        tokens: Tokens in all, or None for the whole text.
        seed: Draws the windows.
        probes: The recall probes; by default, prompts of 64 and 128 tokens.
        progress: Called with windows done and in all.

    Raises:
        TextError: The text is too short or no text.
        TokenizerError: The model has no tokenizer that fits it.
        IncomparableError: The vocabularies differ.
        NeedleLengthError: A probe is longer than the model's context.
    """
    subject = _open(model)
    probes = probes or Probes()
    _check_probes(probes, subject)
    tokenizer = load_tokenizer(subject.folder)
    path = text_path(str(text))
    windows = read_windows(path, tokenizer, subject.vocab, subject.begin, context, tokens, seed, spare=True)
    windows = _held_out(windows, tokens, path, subject.folder)
    base = _open(against) if against is not None else None
    return _report(subject, base, windows, tokenizer, probes, progress)


def _held_out(windows: Windows, tokens: int | None, path: Path, folder: Path | None) -> Windows:
    """Return the first windows, so many ``tokens``, that no fit of the model in ``folder`` read."""
    left = unseen(windows, readings(folder))
    found, context = windows.tokens.shape
    wanted = len(left.tokens) if tokens is None else -(-tokens // context)
    if not 0 < wanted <= len(left.tokens):
        reason = (
            f"without what the model was fitted on, {len(left.tokens)} windows of {context} tokens are left of {found}"
        )
        raise TextError(path=path, reason=f"{reason}, and {tokens or context} tokens are asked for")
    return replace(left, tokens=left.tokens[:wanted], starts=left.starts[:wanted])


def evaluate_on(model: Model, original: Model, windows: Windows, probes: Probes) -> EvalReport:
    """Evaluate a converted model against its original, on windows that are at hand."""
    return _report(_opened(model), _opened(original), windows, load_tokenizer(original.files), probes, None)


def _check_probes(probes: Probes, subject: _Evaluated) -> None:
    """Refuse recall probes beyond the context that a model was made for, before anything is measured."""
    graph = subject.graph
    if graph is not None and isinstance(context := graph.meta.get("context"), int):
        probes.check(context, graph.name)


def _report(
    subject: _Evaluated,
    base: _Evaluated | None,
    windows: Windows,
    tokenizer: Tokenizer,
    probes: Probes,
    progress: Progress | None,
) -> EvalReport:
    scores = measure.score(subject.run, base.run if base else None, windows.tokens, progress=progress)
    rest: dict[str, Any] = {
        "needle": measure.needles(subject.run, tokenizer, subject.begin, probes),
        "base_needle": measure.needles(base.run, tokenizer, base.begin, probes) if base else (),
    }
    if base is not None and isinstance(subject.run, Interpreter) and isinstance(base.run, Interpreter):
        rest["layers"] = measure.layer_errors(subject.run, base.run, windows.tokens[:8])
    context = windows.tokens.shape[1]
    cached = measure.measured_cache(subject.stored, context, subject.vocab)
    return measure.summarize(scores, context, (windows.text, windows.sha256), subject.graph, cached, **rest)


def _open(model: str | Path | Model) -> _Evaluated:
    if not isinstance(model, Model) and is_package(model):
        folder = Path(model)
        facts, graph = read_object(folder / "config.json"), lift(folder / "graph.rg").graph
        program = load_program(folder, dtype="float32")  # which also refuses a config that lacks something
        return _Evaluated(program, graph, folder, program.vocab, facts.get("bos"), load_program(folder))
    return _opened(lift(model))


def _opened(model: Model) -> _Evaluated:
    source = model.require_source()
    stored = Interpreter(model.graph, source, model.dtype)
    return _Evaluated(Interpreter(model.graph, source), model.graph, model.files, model.vocab, model.begin, stored)
