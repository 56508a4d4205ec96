"""The decoder of a package for target ``triton``: steps that choose their token."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from regraft.programs import load_program
from tests.codegen.programs import DECODERS, tokens_of
from tests.codegen.test_package import run, tokenizer
from tests.codegen.test_triton import built
from tests.ir.models import decoder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built(decoder(DECODERS["windows and full"]), tmp_path_factory.mktemp("decoder") / "package")[0]


def names_of(model: Any) -> dict[str, Any]:
    """Return what the package's file defines."""
    return type(model).run.__globals__


def likeliest(model: Any, prompts: Tensor, lengths: Tensor, steps: int) -> list[list[int]]:
    """Return the tokens that a loop over the model's logits takes."""
    cache = model.new_cache(len(prompts), prompts.shape[1] + steps)
    logits = model(prompts, cache, lengths, last=1)
    found = [logits[:, -1].argmax(-1)]
    for _ in range(steps):
        found.append(model(found[-1][:, None], cache)[:, -1].argmax(-1))
    return [tokens.tolist() for tokens in found]


@pytest.mark.parametrize("interpreted", [False, True])
def test_the_likeliest_tokens_are_those_of_the_logits(model: Any, interpreted: bool) -> None:
    names_of(model)["INTERPRETED"] = interpreted
    prompts, lengths = tokens_of(2, 6), torch.tensor([6, 4])
    grown = names_of(model)["Decoder"](model, prompts, lengths, context=12)
    found = [grown.tokens[:, 0].tolist()] + [grown.step().tolist() for _ in range(4)]
    assert found == likeliest(model, prompts, lengths, 4)


@pytest.mark.parametrize("drawn", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 5, "top_p": 0.9}, {}])
def test_draws_by_kernels_are_those_of_plain_functions(model: Any, drawn: dict[str, Any]) -> None:
    prompts = tokens_of(2, 5)
    found: list[list[list[int]]] = []
    for interpreted in (False, True, True):
        names_of(model)["INTERPRETED"] = interpreted
        grown = names_of(model)["Decoder"](model, prompts, context=12, temperature=0.9, seed=len(found) // 2, **drawn)
        found.append([grown.tokens[:, 0].tolist()] + [grown.step().tolist() for _ in range(3)])
    assert found[0] == found[1]
    assert found[1] != found[2]  # another seed


def test_draws_have_the_shares_of_the_logits(model: Any) -> None:
    names_of(model)["INTERPRETED"] = False
    choice = names_of(model)["Choice"]
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(2000, 1)
    noise = (torch.arange(2000) + 0.5) / 2000
    found = torch.bincount(names_of(model)["chosen"](logits, choice(noise, 1.0, 3, 1.0)), minlength=4) / 2000
    wanted = torch.softmax(torch.tensor([0.0, 1.0, 2.0, -torch.inf]), -1)
    assert (found - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("choice", [{"temperature": -1.0}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0.0}])
def test_a_choice_that_there_is_not_is_refused(model: Any, choice: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1"):
        names_of(model)["Decoder"](model, tokens_of(1, 4), context=6, **choice)


def test_a_full_cache_is_refused_before_anything_is_written(model: Any) -> None:
    names_of(model)["INTERPRETED"] = False
    grown = names_of(model)["Decoder"](model, tokens_of(1, 4), context=6)
    grown.step()
    grown.step()
    before = [tensor.clone() for layer in grown.cache.layers for memory in layer for tensor in memory]
    tokens, lengths = grown.tokens.clone(), grown.cache.lengths.clone()
    with pytest.raises(ValueError, match="7 tokens do not fit a cache made for 6"):
        grown.step()
    after = [tensor for layer in grown.cache.layers for memory in layer for tensor in memory]
    assert all(map(torch.equal, before, after))
    assert torch.equal(tokens, grown.tokens)
    assert torch.equal(lengths, grown.cache.lengths)


def test_a_sequence_that_ended_does_not_grow(model: Any) -> None:
    names_of(model)["INTERPRETED"] = True
    prompts = tokens_of(2, 5)
    grown = names_of(model)["Decoder"](model, prompts, context=12)
    first = grown.tokens[:, 0].tolist()
    steps = [grown.step(torch.tensor([1, 0])).tolist()[0] for _ in range(3)]
    assert [first[0], *steps] == [each[0] for each in likeliest(model, prompts, torch.tensor([5, 5]), 3)]
    assert grown.cache.lengths.tolist() == [8, 5]


def test_a_sequence_that_waits_goes_on_with_its_token(model: Any) -> None:
    names_of(model)["INTERPRETED"] = False
    prompts = tokens_of(2, 5)
    wanted = [each[1] for each in likeliest(model, prompts, torch.tensor([5, 5]), 4)]
    assert len(set(wanted)) > 2
    grown = names_of(model)["Decoder"](model, prompts, context=12)
    found = [int(grown.tokens[1])]
    for waits in (True, False, True, True, False, False, False):
        token = int(grown.step(torch.tensor([1, not waits]))[1])
        if waits:
            assert token == found[-1]
        else:
            found.append(token)
    assert found == wanted


def test_a_graph_is_not_replayed_on_a_cache_that_went_on_without_it(model: Any) -> None:
    names_of(model)["INTERPRETED"] = False
    prompts = tokens_of(2, 5)
    wanted = likeliest(model, prompts, torch.tensor([5, 5]), 3)
    grown = names_of(model)["Decoder"](model, prompts, context=12)
    grown.step()
    grown.tokens.copy_(model(grown.tokens, grown.cache)[:, -1].argmax(-1, keepdim=True))
    grown.graph = object()  # nothing that can be replayed
    assert grown.step().tolist() == wanted[3]
    assert grown.graph is None


def test_decoders_that_take_turns_share_no_counters(model: Any) -> None:
    names = names_of(model)
    names["INTERPRETED"] = True
    prompts = tokens_of(2, 5)
    wanted = likeliest(model, prompts, torch.tensor([5, 5]), 2)
    outside = names["COUNTERS"]
    known = set(outside)
    one, other = (names["Decoder"](model, prompts, context=12) for _ in range(2))
    assert [each.step().tolist() for each in (one, other, one, other)] == [wanted[1], wanted[1], wanted[2], wanted[2]]
    assert one.counters.keys() == other.counters.keys() != set()
    assert set(outside) == known, "nothing was counted for calls without a Decoder"
    tables = (one.counters, other.counters, outside)
    places = [counters.data_ptr() for table in tables for counters in table.values()]
    assert len(set(places)) == len(places)
    assert not any(counters.any() for table in tables for counters in table.values()), "all are set back"
    assert names["counting"].get() is outside


def test_copies_of_a_package_in_one_process_keep_their_own_kernels(tmp_path: Path) -> None:
    first = built(decoder(DECODERS["llama-like"]), tmp_path / "package")[0]
    tokens = tokens_of(1, 1)
    wanted = first(tokens, first.new_cache(1, 2))
    second = load_program(tmp_path / "package", dtype="float32")
    assert names_of(second)["SPACE"] != names_of(first)["SPACE"]
    for model in (first, second):
        assert torch.equal(model(tokens, model.new_cache(1, 2)), wanted)


def test_kernels_that_are_wrong_are_found(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_of(model)
    monkeypatch.setitem(names, "INTERPRETED", True)
    ops = {name: names[name] for name in ("o", "attention")}
    assert names["self_check"](model) < 1e-5
    right = names["o_plain"]
    monkeypatch.setitem(names, "o_plain", lambda *given: right(*given) * 1.2)
    with pytest.raises(RuntimeError, match=r"kernels differ from plain PyTorch: o by 0\.17 of its largest number"):
        names["self_check"](model, 2)
    assert names["PLAIN"] is False
    assert {name: names[name] for name in ops} == ops


def test_a_memory_that_is_written_wrongly_is_found(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_of(model)
    monkeypatch.setitem(names, "INTERPRETED", True)
    right = names["attention_plain"]

    def elsewhere(*given: Any) -> Tensor:
        made = right(*given)
        next(x for x in given if x.dim() == 4 and x.shape[1] > 8)[:, 5] += 3.0
        return made

    monkeypatch.setitem(names, "attention_plain", elsewhere)
    with pytest.raises(RuntimeError, match="kernels differ from plain PyTorch: attention by"):
        names["self_check"](model)


@pytest.mark.parametrize(
    ("ours", "theirs", "apart"),
    [
        ([[1.0, -2.0]], [[1.0, -4.0]], 0.5),
        ([[1.0, float("-inf")]], [[1.0, float("-inf")]], 0.0),
        ([[1.0, float("nan")]], [[1.0, 2.0]], float("inf")),
        ([[3, 1], [9.0]], [[1, 2], [1.0]], 0.0625),  # a choice differs, and so may what is given with it
        ([[3, 1], [9.0]], [[1, 3], [9.0]], 0.0),
    ],
)
def test_how_far_results_are_apart(model: Any, ours: Any, theirs: Any, apart: float) -> None:
    pairs = [(torch.tensor(x), torch.tensor(y)) for x, y in zip(ours, theirs, strict=True)]
    assert names_of(model)["distance"](pairs) == pytest.approx(apart)


def test_kernels_that_failed_are_not_used_the_next_time(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> float:
        raise RuntimeError("kernels differ")

    monkeypatch.setitem(names_of(model), "self_check", wrong)
    monkeypatch.setattr(model, "parameters", lambda: iter([SimpleNamespace(is_cuda=True, device=torch.device("cpu"))]))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="kernels differ"):
            model.check(1)


def test_kernels_are_checked_for_one_sequence_and_for_more(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setitem(names_of(model), "self_check", lambda _, batch: asked.append(batch))
    monkeypatch.setattr(model, "parameters", lambda: iter([SimpleNamespace(is_cuda=True, device=torch.device("cpu"))]))
    monkeypatch.setattr(model, "checked", set())
    for batch in (1, 7, 1, 2):
        model.check(batch)
    assert asked == [1, 2]


def test_kernels_are_right_for_several_sequences_beyond_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(decoder(DECODERS["windows and full"]), tmp_path / "package")[0]
    names = names_of(model)
    monkeypatch.setitem(names, "INTERPRETED", True)
    assert names["self_check"](model, 2) < 1e-5
    assert names["PLAIN"] is False


@pytest.mark.parametrize("brought", ["", "3.9.0/sm_80", "other/sm_90", "here/sm_90"])
def test_kernels_that_were_compiled_for_another_are_told(
    brought: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = names_of(model)["triton"].__version__
    where = brought.replace("here", version)
    if where:
        (tmp_path / where).mkdir(parents=True)
    monkeypatch.setitem(names_of(model), "COMPILED", tmp_path if where else tmp_path / "none")
    names_of(model)["tell_compiled"].__wrapped__(torch.device("cpu"))  # cut as for sm_90
    told = (
        ""
        if brought in ("", "here/sm_90")
        else f"kernels are here for {where.split('/')[1]} by Triton {where.split('/')[0]}; "
    )
    assert capsys.readouterr().err == (told and f"{told}for sm_90, Triton {version} compiles\n")


@pytest.mark.parametrize(
    ("device", "can"), [("gfx906", False), ("gfx908", False), ("gfx90a", True), ("gfx942", True), ("gfx1100", False)]
)
def test_devices_without_matrix_units_run_plain_functions(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str, can: bool
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setitem(names_of(model), "target", lambda _: device)
    assert names_of(model)["told_able"].__wrapped__(torch.device("cuda")) is can
    told = f"{device}: kernels need sm_80 or gfx90a at least; plain PyTorch runs instead\n"
    assert capsys.readouterr().err == ("" if can else told)


def test_what_cannot_be_reported_is_said(tmp_path: Path) -> None:
    built(decoder(DECODERS["llama-like"]), tmp_path / "package")
    tokenizer(tmp_path / "package", [f"w{i}" for i in range(40)])
    made = run(tmp_path / "package", "generate.py", "w3", "--max-new-tokens", "2", "--report")
    assert made.returncode == 0
    assert made.stderr == "no report: it is of one prompt, and of 5 tokens at least\n"


@pytest.mark.parametrize("text", ["", "[]", '{"tiles": {"no_such_kernel": {}}}', '{"tiles": 1}', "{}"])
def test_a_table_of_tiles_that_is_damaged_is_told(text: str, model: Any, tmp_path: Path) -> None:
    table = tmp_path / "tiles.json"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"tiles\.json holds no tiles of this program's kernels"):
        names_of(model)["take_tuned"](table)
