"""The commands on a model of kilobytes: what they print, in which form, and what they write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regraft.cli.main import main

Recipe = Callable[[str], str]
SHARE = "share-kv: {layers: '1, 3', donor: nearest, refit: false}"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command which must succeed, and returns what it printed on stdout."""

    def run(*arguments: str | Path, exit_code: int = 0) -> str:
        found = main([*map(str, arguments)])
        captured = capsys.readouterr()
        assert found == exit_code, captured.err
        assert "\x1b" not in captured.out + captured.err
        return captured.out

    return run


Printed = Callable[..., str]


def data(text: str, schema: str) -> dict[str, Any]:
    found = json.loads(text)
    assert found["schema"] == schema
    return found


def test_passes_in_both_forms(printed: Printed) -> None:
    assert "share-kv" in printed("passes")
    found = data(printed("passes", "--json"), "regraft.passes/1")
    assert {each["name"] for each in found["passes"]} >= {"share-kv", "budget-heads", "dce", "cse"}
    assert "Options" in printed("passes", "share-kv")
    one = data(printed("passes", "share-kv", "--json"), "regraft.pass/1")
    assert {"layers", "donor", "refit"} <= {each["name"] for each in one["options"]}


def test_plan_in_both_forms(printed: Printed, model: Path, recipe: Recipe) -> None:
    text = printed("plan", model, "-r", recipe(SHARE))
    assert "reads %layers.0.attn.memory" in text
    found = data(printed("plan", model, "-r", recipe(SHARE), "--json"), "regraft.plan/1")
    assert found["decided"] is True
    assert found["after"]["cache_bytes"] * 2 == found["before"]["cache_bytes"]
    assert [each["applied"] for each in found["steps"][0]["layers"]] == [False, True, False, True]


def test_a_recipe_may_be_a_pipeline(printed: Printed, model: Path) -> None:
    pipeline = 'share-kv{layers="1, 3", refit=false}'
    found = data(printed("plan", model, "-r", pipeline, "--json"), "regraft.plan/1")
    assert found["recipe"].startswith("share-kv{")
    assert found["after"]["cache_bytes"] * 2 == found["before"]["cache_bytes"]


def test_plan_needs_no_weights(printed: Printed, model: Path, recipe: Recipe) -> None:
    found = data(printed("plan", model / "config.json", "-r", recipe(SHARE), "--json"), "regraft.plan/1")
    assert found["disk_bytes"] > 0


def test_apply_writes_a_folder_that_every_command_takes(
    printed: Printed, model: Path, recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = data(printed("apply", model, "-r", recipe(SHARE), "-o", out, "--json"), "regraft.apply/1")
    assert found["predicted"]["weight_bytes"] == found["measured"]["weight_bytes"]
    assert {"graph.rg", "config.json", "regraft.lock.json", "model.safetensors"} <= {f.name for f in out.iterdir()}
    facts = data(printed("inspect", out, "--context", "64", "--json"), "regraft.inspect/1")
    assert facts["block_kinds"] == 2
    assert facts["cache"]["at"]["64"]["bytes"] * 2 == facts["cache"]["at"]["64"]["bytes_without_sharing"]
    assert facts["parameters"]["total"] == found["predicted"]["parameters"]
    report = data(printed("verify", out, "--json"), "regraft.verify/1")
    assert report["passed"] is True
    again = data(printed("plan", out, "-r", out / "regraft.lock.json", "--json", exit_code=0), "regraft.plan/1")
    assert again["after"] == again["before"]


def test_a_dump_has_the_graph_after_each_pass(printed: Printed, model: Path, recipe: Recipe, tmp_path: Path) -> None:
    text = printed("apply", model, "-r", recipe(SHARE), "-o", tmp_path / "out", "--dump-ir", tmp_path / "ir")
    assert "Wrote" in text
    files = sorted((tmp_path / "ir").iterdir())
    assert [file.name for file in files] == ["00-lifted.rg", "01-share-kv.rg"]
    assert printed("opt", files[1], "--pipeline", "dce").startswith("graph @tiny")


def test_opt_is_text_to_text(printed: Printed, model: Path, tmp_path: Path) -> None:
    lifted = printed("opt", model / "config.json", "--pipeline", "cse")
    file = tmp_path / "x.rg"
    file.write_text(lifted, encoding="utf-8")
    assert printed("opt", file, "--pipeline", "dce,cse") == lifted
    shared = printed("opt", file, "--pipeline", "share-kv{layers=2, donor=0, refit=false}")
    assert "%layers.0.attn.memory" in shared
    assert shared.count("state.kv") == 1
    assert printed("opt", file, "--pipeline", "share-kv{layers=2, donor=0, refit=false}", "-o", tmp_path / "y.rg") == ""
    assert (tmp_path / "y.rg").read_text(encoding="utf-8") == shared


def test_fitted_passes_go_from_text_to_text_too(printed: Printed, model: Path, tmp_path: Path) -> None:
    pipeline = 'share-kv{layers=1, donor=0},calibration{text="builtin:sample"}'
    fitted = printed("opt", model / "config.json", "--pipeline", pipeline)
    file = tmp_path / "fitted.rg"
    file.write_text(fitted, encoding="utf-8")
    assert "weight.moment" in fitted
    assert printed("opt", file, "--pipeline", "dce") == fitted


def test_verify_exits_with_5_where_two_models_differ(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = tmp_path / "twin"
    assert main(["twin", str(model), "-o", str(twin)]) == 0
    assert capsys.readouterr().out == f"{twin}\n"
    again = tmp_path / "again"
    assert main(["twin", str(model), "-o", str(again), "--seed", "1"]) == 0
    assert main(["verify", str(twin), "--against", str(again)]) == 5
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert captured.err.startswith("error[RG552]")


def test_verify_against_another_vocabulary_is_no_comparison(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    other = tmp_path / "config.json"
    other.write_text(json.dumps(config | {"vocab_size": 64, "eos_token_id": 0}), encoding="utf-8")
    assert main(["verify", str(model), "--against", str(other)]) == 2
    assert capsys.readouterr().err.startswith("error[RG")


@pytest.fixture(scope="session")
def package(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny model's package, with a tokenizer of one token a word."""
    import shutil

    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("source") / "tiny")
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(128)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(folder / "tokenizer.json"))
    out = tmp_path_factory.mktemp("package") / "pkg"
    assert main(["-q", "build", str(folder), "-o", str(out)]) == 0
    return out


def test_run_streams_what_the_package_s_own_program_prints(printed: Printed, package: Path) -> None:
    before = sorted(package.rglob("*"))
    out = printed("run", package, "w1 w2 w3", "-n", "5")
    assert 0 < len(out.split()) <= 5
    assert printed("run", package, "w1 w2 w3", "--max-new-tokens", "5") == out
    two = printed("run", package, "w1", "w2 w3", "-n", "3", "--temperature", "0.5", "--seed", "7")
    assert [line[:4] for line in two.splitlines()] == ["[1] ", "[2] "]
    assert sorted(package.rglob("*")) == before


def test_run_takes_no_model(model: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(model), "w1"]) == 2
    assert capsys.readouterr().err.startswith("error[RG551]")
    assert main(["run", str(package), "w1", "--temperature", "-1"]) == 2
    capsys.readouterr()
    for command in (["run", str(package), "w1"], ["bench", str(package)]):
        assert main([*command, "--device", "tpu:3"]) == 2
        assert capsys.readouterr().err.startswith("error[RG606]: torch has no device tpu:3")


def test_a_program_that_fails_says_so(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    broken = shutil.copytree(package, tmp_path / "pkg")
    (broken / "generate.py").write_text("raise RuntimeError('no such device')", encoding="utf-8")
    assert main(["run", str(broken), "w1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error[RG605]")
    assert "no such device" in said
    (broken / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert main(["run", str(broken), "w1"]) == 2
    assert capsys.readouterr().err.startswith("error[RG352]")
    (broken / "tokenizer.json").unlink()
    assert main(["run", str(broken), "w1"]) == 2
    assert "tokenizer.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "exit_code", "code"),
    [
        ("model.safetensors", None, 2, "RG313"),
        ("model.safetensors", b"\x10", 2, "RG302"),
        ("model.py", b"(((", 1, "RG605"),
        ("model.py", b"", 1, "RG605"),
        ("config.json", b'{"schema": "regraft.package/1"}', 1, "RG605"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "run", "bench", "eval"])
def test_a_damaged_package_is_no_internal_error(
    file: str,
    content: bytes | None,
    exit_code: int,
    code: str,
    command: str,
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    damaged = shutil.copytree(package, tmp_path / "pkg")
    if content is None:
        (damaged / file).unlink()
    else:
        (damaged / file).write_bytes(content)
    more = {"run": ["w1"], "eval": ["--text", "builtin:sample"]}.get(command, [])
    assert main([command, str(damaged), *more]) == exit_code
    assert capsys.readouterr().err.startswith(f"error[{code}]")


@pytest.mark.parametrize("command", ["inspect", "build", "twin"])
def test_a_package_is_no_model(command: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = [] if command == "inspect" else ["-o", str(tmp_path / "out")]
    assert main([command, str(package), *out]) == 2
    assert capsys.readouterr().err.startswith("error[RG325]")


def test_a_package_is_verified_against_its_model(printed: Printed, package: Path, model: Path) -> None:
    found = data(printed("verify", package, "--against", model, "--json"), "regraft.verify/1")
    assert found["passed"] is True
    assert {"prefill = tiny", "decode = tiny"} <= {check["name"] for check in found["checks"]}


def test_bench_measures_beside_what_the_graph_predicts(printed: Printed, package: Path) -> None:
    work = ("--prompt", "16", "--new", "8")
    found = data(printed("bench", package, *work, "--json"), "regraft.bench/1")
    assert found["prefill"]["measured"] > 0
    assert found["decode"]["at_most"] > 0
    assert found["cache_predicted"] == found["cache_measured"]
    assert found["weights"] > 0
    assert "predicted" in printed("bench", package, *work)


def test_eval_in_both_forms(printed: Printed, package: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i * i % 128}" for i in range(600)), encoding="utf-8")
    options = ("--text", text, "--context", "64", "--tokens", "256", "--probes", "0")
    found = data(printed("eval", package, "--against", package, *options, "--json"), "regraft.eval/1")
    assert found["tokens"] == 4 * 63
    assert found["kl"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found["top1_agreement"] == 1
    assert found["perplexity"] == pytest.approx(found["base_perplexity"])
    card = package / "README.md"
    held = card.read_text()
    assert held.count("\n## Evaluated against pkg on 252 tokens of text.txt, windows of 64, seed 0\n") == 1
    assert "perplexity" in printed("eval", package, *options, "--no-card")
    assert card.read_text() == held
