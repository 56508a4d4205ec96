"""Evaluation: numbers against transformers, and zero where nothing changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from regraft.evaluating import evaluate
from regraft.ir.errors.calibration import NeedleLengthError, TextError, TokenizerError
from regraft.ir.interpret import Interpreter
from regraft.model import lift
from regraft.passes.fitting.text import load_tokenizer, read_windows
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.quality import LayerError, Probes, layer_errors, needles

NONE = Probes(lengths=())


def test_perplexity_is_that_of_transformers(tiny: Path, heldout: Path) -> None:
    report = evaluate(tiny, heldout, tokens=2048, context=256, probes=NONE)
    windows = read_windows(heldout, load_tokenizer(tiny), 1024, 0, 256, 2048)
    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        loss = model(windows.tokens, labels=windows.tokens).loss.item()
    assert report.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert report.tokens == 8 * 255


def test_a_model_against_itself_is_no_different(tiny: Path, heldout: Path) -> None:
    report = evaluate(tiny, heldout, against=tiny, tokens=1024, context=256, probes=NONE)
    assert report.kl_mean == pytest.approx(0, abs=1e-6)
    assert report.top1_agreement == 1
    assert report.perplexity == report.base_perplexity
    assert [each.error_free_running for each in report.layers] == [0.0] * 8
    assert [each.error_teacher_forced for each in report.layers] == [0.0] * 8
    assert report.cache_predicted == report.cache_measured == 256 * 8 * 2 * 4 * 32 * 2


def test_the_shipped_model_recalls_as_its_card_says(tiny: Path, heldout: Path) -> None:
    report = evaluate(tiny, heldout, tokens=512, probes=Probes(lengths=(64,), count=20))
    recall = sum(each.recall for each in report.needle) / len(report.needle)
    assert recall > 0.85  # the card has 93.5 % over 6 pairs


def test_windows_cover_the_text_and_the_seed_draws_their_order(tiny: Path, heldout: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    first, second = (read_windows(heldout, tokenizer, 1024, 0, 128, 1280, seed).tokens for seed in (0, 1))
    assert first.shape == (10, 128)
    assert bool((first[:, 0] == 0).all())
    assert not torch.equal(first, second)


def test_a_text_that_is_too_short_says_so(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("pass\n")
    with pytest.raises(TextError, match="0 tokens in windows of 512"):
        evaluate(tiny, tmp_path / "a.txt", tokens=None)
    with pytest.raises(TextError, match="no token follows another"):
        evaluate(tiny, tmp_path / "a.txt", context=1)


def test_lines_of_json_without_text_are_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"txt": 1}\n')
    with pytest.raises(TextError, match=r"a\.jsonl:2"):
        evaluate(tiny, tmp_path / "a.jsonl")


def test_a_model_without_a_tokenizer_says_so(tiny: Path, heldout: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        evaluate(tmp_path, heldout)


def test_probes_beyond_the_context_are_refused_before_anything_is_read(tiny: Path) -> None:
    context = lift(tiny).graph.meta["context"]
    assert isinstance(context, int)
    with pytest.raises(NeedleLengthError, match=f"{context + 1:,} tokens is longer"):
        evaluate(tiny, "nowhere.txt", probes=Probes((64, context + 1), 1))


def test_probes_have_as_many_names_as_they_need(tiny: Path) -> None:
    class Short:
        """Says token 0, whatever it is asked."""

        def __call__(self, tokens: Tensor, cache: object = None, lengths: object = None, last: object = None) -> Tensor:
            return torch.ones(*tokens.shape, 1)

        def new_cache(self, batch: int, context: int) -> None:
            return None

    found = needles(Short(), load_tokenizer(tiny), None, Probes((16_000,), 1))
    assert [each.recall for each in found] == [0.0] * 5


def _errors(tiny: Path, heldout: Path, pipeline: str) -> list[LayerError]:
    model = lift(tiny)
    changed = run_pipeline(model.graph, parse_pipeline(pipeline)).graph
    source = model.require_source()
    tokens = read_windows(heldout, load_tokenizer(tiny), 1024, 0, 64, 128).tokens
    return layer_errors(Interpreter(changed, source), Interpreter(model.graph, source), tokens)


def test_a_reader_of_a_memory_in_another_form_is_fed_what_its_layer_makes_of_the_originals_stream(
    tiny: Path, heldout: Path
) -> None:
    share = "share-kv{layers=3,donor=1,refit=false}"
    expected = _errors(tiny, heldout, share)
    found = _errors(tiny, heldout, f"{share},gqa-to-latent")  # the same function; keys are turned where they are read
    assert expected[3].error_teacher_forced > 0.1
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.layer == theirs.layer
        assert mine.error_teacher_forced == pytest.approx(theirs.error_teacher_forced, abs=1e-5)
        assert mine.error_free_running == pytest.approx(theirs.error_free_running, abs=1e-5)


def test_several_streams_are_not_compared_with_one(tiny: Path, heldout: Path) -> None:
    assert [each.layer for each in _errors(tiny, heldout, 'add-hyper-connections{layers="6..7"}')] == [0, 1, 2, 3, 4, 5]
