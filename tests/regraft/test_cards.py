"""Sections that evaluations add to a folder's card: each once, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from regraft.cards import add_evaluation, has_card
from regraft.ir.errors.output import OutputError
from regraft.quality import EvalReport, LayerError, Needle

REPORT = EvalReport(
    tokens=4064,
    context=128,
    perplexity=11.5,
    base_perplexity=10.25,
    kl_mean=0.0625,
    kl_p99=0.5,
    top1_agreement=0.875,
    needle=(Needle(64, 0.5, 0.9),),
    base_needle=(Needle(64, 0.5, 1.0),),
    layers=(LayerError(0, 0.01, float("nan")),),
    cache_predicted=4096,
    cache_measured=4096,
    text="held|out.txt",
    text_sha256="ab",
)


def test_a_section_is_added_and_replaced_where_it_stands(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    own = "# model\r\n\r\nPêche <!-- a remark -->\n".encode("latin-1")  # neither UTF-8 nor of one line end
    card.write_bytes(own)
    assert add_evaluation(tmp_path, REPORT, against="base") == card
    first = card.read_bytes()
    assert first.startswith(own + b"\n<!-- regraft eval ")
    text = first[len(own) :].decode()
    assert "\n## Evaluated against base on 4,064 tokens of held|out.txt, windows of 128, seed 0\n" in text
    for row in (
        "| perplexity | 11.5000 |",
        "| KL(base || model), mean",
        "| 64 | 0.50 | 90% | 100% |",
        "| 0 | 1.00% | - |",
    ):
        assert row.replace("||", "\\|\\|") in text
    assert text.count("\n### ") == 2
    add_evaluation(tmp_path, REPORT, seed=1)
    both = card.read_bytes()
    assert both.startswith(first)
    add_evaluation(tmp_path, replace(REPORT, perplexity=12.0), against="base")
    assert card.read_bytes() == both.replace(b"11.5000", b"12.0000", 1)


def test_a_section_that_was_cut_short_stays_and_a_whole_one_follows(tmp_path: Path) -> None:
    card = add_evaluation(tmp_path, REPORT)
    whole = card.read_bytes()
    assert whole.startswith(f"# {tmp_path.name}\n\n<!-- ".encode())
    card.write_bytes(whole[:80])
    add_evaluation(tmp_path, REPORT)
    assert card.read_bytes().startswith(whole[:80] + b"\n\n<!-- regraft eval ")


def test_only_folders_that_were_written_here_have_a_card(tmp_path: Path) -> None:
    assert not has_card(tmp_path)
    assert not has_card("builtin:Llama-3.1-8B")
    (tmp_path / "regraft.lock.json").write_text("{}")
    assert has_card(tmp_path)


def test_a_card_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"README\.md"):
        add_evaluation(tmp_path / "missing", REPORT)
