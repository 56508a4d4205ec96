"""Recipes: both spellings, round trips, and the exact text of every error that a recipe alone can cause."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.ir.errors import RegraftError
from regraft.ir.errors.files import InputMissingError
from regraft.ir.errors.recipe import NoCalibrationError, OptionIdleError, RecipeError
from regraft.passes import all_passes
from regraft.passes.base import Constraints
from regraft.passes.budget_heads import BudgetHeads
from regraft.passes.located import read_pipeline, read_yaml, spell
from regraft.passes.recipe import Calibration, Recipe, load_recipe, parse_pipeline, parse_recipe
from regraft.passes.selection import Selection
from regraft.passes.share_kv import ShareKV

DOCUMENTED = """\
regraft: 1
pipeline:
  - share-kv: {layers: "4..7", donor: nearest, refit: true}                 # ranges are inclusive
  - budget-heads: {heads: {full: 6, sliding: 8}, score: output-error}
calibration: {text: sample.txt, tokens: 65536, seed: 0}      # no silent default: a fitted pass without it refuses
constraints: {tensor_parallel: [1, 2]}
"""


def test_the_documented_recipe_reads() -> None:
    recipe = parse_recipe(DOCUMENTED)
    share, budget = recipe.passes
    assert share == ShareKV(layers=Selection(((4, 7),)))
    assert budget == BudgetHeads(heads={"full": 6, "sliding": 8})
    assert recipe.calibration == Calibration("sample.txt", 65536, 0)
    assert recipe.constraints == Constraints((1, 2))


def test_both_spellings_print_as_each_other() -> None:
    recipe = parse_recipe(DOCUMENTED)
    pipeline = (
        'share-kv{layers="4..7"},budget-heads{heads={full: 6, sliding: 8}},'
        "calibration{text=sample.txt, tokens=65536, seed=0},constraints{tensor_parallel=[1, 2]}"
    )
    assert recipe.to_pipeline() == pipeline
    assert parse_pipeline(pipeline) == recipe
    assert parse_recipe(parse_pipeline(pipeline).to_yaml()) == recipe
    assert recipe.to_yaml() == (
        "regraft: 1\n"
        "pipeline:\n"
        '  - share-kv: {layers: "4..7"}\n'
        "  - budget-heads: {heads: {full: 6, sliding: 8}}\n"
        "calibration: {text: sample.txt, tokens: 65536, seed: 0}\n"
        "constraints: {tensor_parallel: [1, 2]}\n"
    )


def test_a_pipeline_string_as_people_type_it() -> None:
    typed = "share-kv{ layers=4..7,donor=nearest ,refit=true}, budget-heads{heads={full: 6}} ,dce"
    assert parse_pipeline(typed).to_pipeline() == 'share-kv{layers="4..7"},budget-heads{heads={full: 6}},dce'
    assert parse_pipeline("share-kv{layers='kind == full'}") == parse_pipeline('share-kv{layers="kind  ==  full"}')


def test_a_lock_is_a_recipe_and_keeps_its_records() -> None:
    recipe = parse_pipeline('share-kv{layers="1", donor={1: 0}, ridge=1e-5},calibration{text="a \\"b\\" é.txt"}')
    lock = recipe.to_lock(inputs={"model.safetensors": "1f"}, outputs={"é.safetensors": "2e"}, measured={"kl": 1e-7})
    again = parse_recipe(lock, "regraft.lock.json")
    assert again == recipe
    assert again.records == {
        "inputs": {"model.safetensors": "1f"},
        "outputs": {"é.safetensors": "2e"},
        "measured": {"kl": 1e-7},
    }
    (step,) = json.loads(lock)["pipeline"]
    assert step["share-kv"] == {
        "layers": 1,
        "donor": {"1": 0},
        "finalists": 8,
        "refit": True,
        "target": "drift",
        "ridge": 1e-05,
    }


def test_every_pass_says_what_it_takes() -> None:
    for cls in all_passes():
        assert cls.summary().endswith(".")
        assert all(option.doc and option.kind.name for option in cls.declared())
        assert cls.preserves == "exact" or cls.source


# -- round trips

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN)
def test_values_read_back_from_both_spellings(value: Any) -> None:
    text = spell(value)
    assert read_yaml(f"[{text}]", "f").plain == [value]
    assert read_pipeline(f"p{{x={text}}}", "f").plain == [{"p": {"x": value}}]


LAYER = st.integers(0, 40)
RANGE = st.tuples(LAYER, st.integers(1, 9)).map(lambda pair: (pair[0], pair[0] + pair[1]))
SELECTIONS = st.one_of(
    st.lists(LAYER | RANGE, min_size=1, max_size=4).map(lambda parts: Selection(tuple(parts))),
    st.sampled_from(["all", "kind == full", "not (layer < 3 or heads >= 8) and window != none"]).map(
        lambda text: Selection(predicate=text)
    ),
)
GROUPS = st.lists(
    st.sets(LAYER, min_size=2, max_size=3).map(lambda group: tuple(sorted(group))), min_size=1, max_size=3
)
RIDGE = st.floats(0, 1e6)
SHARE = st.builds(
    ShareKV,
    layers=st.none() | SELECTIONS | GROUPS.map(tuple),
    groups=st.none() | st.integers(2, 9),
    last=st.none() | LAYER.map(lambda n: n + 1),
    choose=st.none() | st.integers(1, 64) | st.floats(0.001, 1.0),
    donor=st.sampled_from(["nearest", "measured", "similar"]) | LAYER | st.dictionaries(LAYER, LAYER, max_size=3),
    within=st.none() | st.integers(1, 64),
    finalists=st.integers(1, 64),
    level=st.sampled_from([None, "raw", "gauge", "map", "input", "latent"]),
    rank=st.none() | st.integers(1, 64) | st.floats(0.001, 1.0),
    refit=st.booleans(),
    target=st.sampled_from(["drift", "original"]),
    ridge=RIDGE,
)
COUNT = st.integers(1, 64) | st.floats(0.001, 1.0)
BUDGET = st.builds(
    BudgetHeads,
    heads=st.none()
    | COUNT
    | st.lists(COUNT, min_size=1, max_size=4).map(tuple)
    | st.dictionaries(st.sampled_from(["full", "sliding"]) | LAYER, COUNT, min_size=1, max_size=3),
    layers=st.none() | SELECTIONS,
    score=st.sampled_from(["output-error", "activation-norm", "loss-error", "measured", "taylor", "weight-norm"]),
    layout=st.sampled_from(["map", "padded"]),
    total=st.none() | COUNT,
    step=st.integers(1, 64),
    keep=st.none()
    | st.dictionaries(
        LAYER, st.sets(LAYER, min_size=1, max_size=3).map(lambda heads: tuple(sorted(heads))), max_size=2
    ),
    refit=st.booleans(),
    ridge=RIDGE,
)
TIDY = st.sampled_from(["dce", "cse"]).map(lambda name: parse_pipeline(name).passes[0])
RECIPES = st.builds(
    Recipe,
    passes=st.lists(SHARE | BUDGET | TIDY, max_size=3).map(tuple),
    calibration=st.none()
    | st.builds(Calibration, TEXTS, st.integers(1, 10**9), st.integers(0, 99), st.integers(2, 4096)),
    constraints=st.sets(st.integers(1, 64), max_size=3).map(lambda sizes: Constraints(tuple(sorted(sizes)))),
)


@given(RECIPES, st.booleans())
def test_recipes_read_back_from_every_spelling(recipe: Recipe, expanded: bool) -> None:
    assert parse_recipe(recipe.to_yaml(expanded=expanded)) == recipe
    assert parse_pipeline(recipe.to_pipeline(expanded=expanded)) == recipe
    assert parse_recipe(recipe.to_lock()) == recipe


@given(st.text(max_size=40))
def test_no_text_escapes_the_error_catalogue(text: str) -> None:
    for read in (parse_recipe, parse_pipeline):
        try:
            read(text)
        except RegraftError as error:
            assert str(error).startswith(f"error[{error.code}]: ")
            assert error.exit_code in (2, 4)


# -- errors, to the letter


def block(text: str) -> str:
    """Return a recipe with one more line in its first pass."""
    return f"regraft: 1\npipeline:\n  - share-kv:\n      {text}\n"


ERRORS = [
    (
        "pipeline: []\n",
        "error[RG108]: recipe: regraft is missing\n"
        "  --> recipe.yaml:1:1   pipeline: []\n"
        "  = help: begin the recipe with regraft: 1",
    ),
    (
        "regraft: 2\npipeline: []\n",
        "error[RG106]: recipe: regraft is 2, out of range\n"
        "  --> recipe.yaml:1:10   regraft: 2\n"
        "  = help: regraft goes from 1 to 1",
    ),
    (
        "regraft: 1\npipline: []\n",
        "error[RG102]: recipe: unknown key pipline; did you mean pipeline?\n"
        "  --> recipe.yaml:2:1   pipline: []\n"
        "  = help: legal keys: regraft, pipeline, calibration, constraints, inputs, outputs, measured, dequantized",
    ),
    (
        "regraft: 1\npipeline:\n  - share-vk: {layers: 1}\n",
        "error[RG103]: unknown pass share-vk; did you mean share-kv?\n"
        "  --> recipe.yaml:3:5   - share-vk: {layers: 1}\n"
        "  = help: `regraft passes` lists the passes",
    ),
    (
        block("layer: 4..7"),
        "error[RG102]: share-kv: unknown key layer; did you mean layers?\n"
        "  --> recipe.yaml:4:7   layer: 4..7\n"
        "  = help: legal keys: layers, groups, last, choose, donor, within, finalists, level, rank, "
        "refit, target, ridge",
    ),
    (
        block("refit: yes"),
        "error[RG105]: share-kv: refit is yes, expected true or false\n"
        "  --> recipe.yaml:4:14   refit: yes\n"
        "  = help: `regraft passes NAME` shows the options of a pass with their types and defaults",
    ),
    (
        block("ridge: -1"),
        "error[RG106]: share-kv: ridge is -1, out of range\n"
        "  --> recipe.yaml:4:14   ridge: -1\n"
        "  = help: ridge goes from 0 to 1e+06",
    ),
    (
        block("level: guage"),
        "error[RG107]: share-kv: level has no choice guage; did you mean gauge?\n"
        "  --> recipe.yaml:4:14   level: guage\n"
        "  = help: choices: raw, gauge, cross, map, input, latent",
    ),
    (
        block("donor: nearst"),
        "error[RG107]: share-kv: donor has no choice nearst; did you mean nearest?\n"
        "  --> recipe.yaml:4:14   donor: nearst\n"
        "  = help: choices: nearest, measured, similar, a layer, or a map {reader: donor}",
    ),
    (
        block("layers: 7..4"),
        "error[RG110]: share-kv: layers '7..4': the range 7..4 runs backwards\n"
        "  --> recipe.yaml:4:15   layers: 7..4\n"
        '  = help: write "all", a number, a range "4..7", a list of these, or a predicate such as '
        '"kind == full and layer >= 4"',
    ),
    (
        block("layers: kinds == full"),
        "error[RG110]: share-kv: layers 'kinds == full': unknown 'kinds'; did you mean kind?\n"
        "  --> recipe.yaml:4:15   layers: kinds == full\n"
        '  = help: write "all", a number, a range "4..7", a list of these, or a predicate such as '
        '"kind == full and layer >= 4"',
    ),
    (
        block("refit: true\n      refit: false"),
        "error[RG109]: recipe: refit is given twice\n"
        "  --> recipe.yaml:5:7   refit: false\n"
        "  = help: keep one of them; the other stands at recipe.yaml:4:7",
    ),
    (
        "regraft: 1\npipeline:\n  - budget-heads: {heads: 1.5}\n",
        "error[RG106]: budget-heads: heads is 1.5, out of range\n"
        "  --> recipe.yaml:3:27   - budget-heads: {heads: 1.5}\n"
        "  = help: heads goes above 0 and up to 1 as a share; a count is an integer",
    ),
    (
        "regraft: 1\npipeline: []\ncalibration: {tokens: 5}\n",
        "error[RG108]: calibration: text is missing\n"
        "  --> recipe.yaml:3:14   calibration: {tokens: 5}\n"
        "  = help: add text: a file, a folder, or builtin:sample",
    ),
    (
        "regraft: 1\npipeline: []\nconstraints: {tensor_parallel: [0]}\n",
        "error[RG106]: constraints: tensor_parallel is 0, out of range\n"
        "  --> recipe.yaml:3:33   constraints: {tensor_parallel: [0]}\n"
        "  = help: tensor_parallel goes from 1 to 4096",
    ),
    (
        "regraft: 1\npipeline:\n  - {share-kv: {}, dce: {}}\n",
        "error[RG117]: pipeline: share-kv and dce exclude each other\n"
        "  --> recipe.yaml:3:5   - {share-kv: {}, dce: {}}\n"
        "  = help: give each pass an item of the list, with its options in {} or indented below it",
    ),
    (
        "regraft: 1\npipeline: [\n",
        "error[RG101]: the recipe does not parse: expected the node content, but found '<stream end>'\n"
        "  --> recipe.yaml:3:1\n"
        "  = help: a recipe is YAML: regraft: 1, then pipeline: with one `- pass: {option: value}` a line",
    ),
    (
        "regraft: 1\npipeline: &a [*a]\n",
        "error[RG101]: the recipe does not parse: anchors and aliases are not used in recipes\n"
        "  --> recipe.yaml:2:11   pipeline: &a [*a]\n"
        "  = help: a recipe is YAML: regraft: 1, then pipeline: with one `- pass: {option: value}` a line",
    ),
]


@pytest.mark.parametrize(("text", "wanted"), ERRORS)
def test_errors_to_the_letter(text: str, wanted: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    assert str(caught.value) == wanted
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "share-kv{layers=4..7, refitt=true}",
            "error[RG102]: share-kv: unknown key refitt; did you mean refit?\n"
            "  --> pipeline:1:23   share-kv{layers=4..7, refitt=true}\n"
            "  = help: legal keys: layers, groups, last, choose, donor, within, finalists, level, rank, "
            "refit, target, ridge",
        ),
        (
            "share-kv{layers=4..7",
            "error[RG101]: the recipe does not parse: expected '}', found 'the end'\n"
            "  --> pipeline:1:21   share-kv{layers=4..7\n"
            "  = help: a pipeline is pass{option=value, ...},pass{...}; strings in double quotes, lists in [], maps as "
            "{key: value}",
        ),
        (
            "dce,cse,dcee",
            "error[RG103]: unknown pass dcee; did you mean dce?\n"
            "  --> pipeline:1:9   dce,cse,dcee\n"
            "  = help: `regraft passes` lists the passes",
        ),
    ],
)
def test_errors_of_pipeline_strings(text: str, wanted: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_pipeline(text)
    assert str(caught.value) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "layers: [1, [2, 3]]",
        "layers: []",
        "layers: [[1]]",
        "layers: [[1, 1]]",
        "layers: [kind == full]",
        "layers: -1",
        "layers: {a: 1}",
        "layers: kind == odd",
        "layers: kind < full",
        "layers: layer ==",
        "layers: (layer == 1",
        "layers: layer == 1 layer == 2",
        "layers: layer == 1; import os",
        f"layers: {'not ' * 200} layer == 1",
        "donor: {a: 1}",
        "donor: true",
        "groups: 1",
        "ridge: .inf",
        "ridge: .nan",
        "ridge: 9" + "9" * 5000,
    ],
)
def test_values_that_are_refused(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(block(text))
    assert caught.value.where.startswith("recipe.yaml:4:")


def test_yaml_reads_words_as_words() -> None:
    plain = read_yaml("[no, 1e-5, 4:30, 0x10, 1_000, 010, ~, 'true']", "f").plain
    assert plain == ["no", 1e-05, "4:30", "0x10", "1_000", 10, None, "true"]


def test_a_fitted_pass_without_text_is_refused() -> None:
    recipe = parse_recipe(block("layers: 4..7"))
    with pytest.raises(NoCalibrationError) as caught:
        recipe.check_calibration()
    assert str(caught.value) == (
        "error[RG113]: share-kv needs calibration text for the refit, and the recipe names none\n"
        "  --> recipe.yaml:3:5   - share-kv:\n"
        "  = help: add calibration: {text: sample.txt, tokens: 65536, seed: 0}; builtin:sample is the bundled one"
    )
    replace(recipe, calibration=Calibration("builtin:sample")).check_calibration()
    parse_pipeline("budget-heads{heads=2, score=weight-norm, refit=false}").check_calibration()
    with pytest.raises(NoCalibrationError):
        parse_pipeline("budget-heads{heads=2, refit=false}").check_calibration()


@pytest.mark.parametrize(
    ("step", "needs"),
    [
        ("compress-seq{rate=4, window=8, index=light}", "index: light does nothing without chosen"),
        ("compress-seq{rate=4, window=8, chosen=2, index_width=8}", "index_width: 8 does nothing without index: light"),
        ("compress-seq{rate=4, window=8, shut=-2}", "shut: -2.0 does nothing without overlap: true"),
        ("window{window=8, sink=fitted, sinks=4}", "sinks: 4 does nothing without sink: kept"),
        ("window{window=8, refit=false, ridge=0.1}", "ridge: 0.1 does nothing without refit: true"),
        ("budget-heads{heads=1, refit=false, mlp=true}", "mlp: true does nothing without refit: true"),
        ("share-kv{donor={1: 0}, finalists=2}", "finalists: 2 does nothing without donor: measured"),
        ("to-latent{rank=8, step=4}", "step: 4 does nothing without total"),
        ("absorb-mla{tokens=4}", "tokens: 4 does nothing without when: faster"),
    ],
)
def test_options_that_would_change_nothing_are_refused(step: str, needs: str) -> None:
    (found,) = parse_pipeline(step).passes
    with pytest.raises(OptionIdleError, match=re.escape(needs)):
        found.check_needs()


def test_what_an_option_needs_is_another_one() -> None:
    for cls in all_passes():
        options = {each.name: each for each in cls.declared()}
        for each in options.values():
            other, _, wanted = each.needs.partition(": ")
            assert not other or (other in options and other != each.name), f"{cls.name}.{each.name}"
            assert not wanted or wanted in options[other].kind.name, f"{cls.name}.{each.name}"


def test_files(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"regraft: 1 # \xe9\n")
    with pytest.raises(InputMissingError):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "recipe.yaml").write_text(DOCUMENTED, encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml") == parse_recipe(DOCUMENTED)
