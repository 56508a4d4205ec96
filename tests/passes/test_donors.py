"""Who reads whom: sets of readers against all assignments there are, and what text decides in a whole recipe."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch

from regraft.ir.errors.recipe import MissingKeyError, OptionConflictError, OptionRangeError, UndecidedError
from regraft.passes.fitting import donors
from regraft.passes.fitting.donors import best_sets, most_readers
from regraft.passes.fitting.measure import Measurements
from regraft.passes.pipeline import PipelineResult, run_pipeline
from regraft.passes.recipe import parse_pipeline

Costs = dict[tuple[int, int], float]


def random_costs(layers: int, seed: int, share: float = 1.0) -> Costs:
    draw = torch.rand(layers, layers, 2, generator=torch.Generator().manual_seed(seed))
    pairs = [(j, i) for j in range(layers) for i in range(j) if float(draw[j, i, 1]) < share]
    return {(j, i): float(draw[j, i, 0]) for j, i in pairs}


def every_assignment(costs: Costs, layers: int, count: int) -> float:
    """Return the least cost of all maps from each layer to a donor or to none."""
    options = [[None, *(i for j, i in costs if j == layer)] for layer in range(layers)]
    least = math.inf
    for donor in product(*options):
        readers = [layer for layer in range(layers) if donor[layer] is not None]
        if len(readers) == count and not any(donor[layer] in readers for layer in readers):
            least = min(least, sum(costs[layer, int(donor[layer] or 0)] for layer in readers))
    return least


def total(costs: Costs, found: dict[int, int]) -> float:
    assert not set(found) & set(found.values())
    return sum(costs[pair] for pair in found.items())


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_set_is_the_best_of_all(seed: int, share: float) -> None:
    costs = random_costs(6, seed, share)
    most = len(most_readers(costs))
    for count in range(1, 6):
        wanted = every_assignment(costs, 6, count)
        found = best_sets(costs, count, wanted=4)
        assert bool(found) == (wanted < math.inf) >= (count <= most)
        if found:
            assert total(costs, found[0]) == pytest.approx(wanted)
            spent = [total(costs, each) for each in found]
            assert spent == sorted(spent)


@pytest.mark.parametrize("seed", range(4))
def test_exchanges_come_near_the_best_where_sets_are_too_many(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = random_costs(12, seed)
    exact = total(costs, best_sets(costs, 6)[0])
    monkeypatch.setattr(donors, "MOST_SETS", 0)
    found = best_sets(costs, 6, wanted=3)
    assert all(len(each) == 6 for each in found)
    assert exact <= total(costs, found[0]) < 1.2 * exact
    assert len(best_sets(costs, 11)[0]) == 11


def run(model: Any, pipeline: str) -> PipelineResult:
    return run_pipeline(model.graph, parse_pipeline(pipeline), Measurements(model.graph, model.source, model.tokens))


def with_a_copy(decoder: Any) -> Any:
    """Return a model whose layer 3 makes the keys and values of layer 1, for layers 1 and 2 add nothing."""
    model = decoder(layers=4)
    for layer in (1, 2):
        model.weight(layer, "o_proj").zero_()
    for name, tensor in model.tensors.items():
        if any(f"layers.3.{part}" in name for part in ("norm", "k_", "v_")):
            tensor.copy_(model.tensors[name.replace("layers.3", "layers.1")])
    return model


@pytest.mark.parametrize("donor", ["measured", "similar"])
def test_text_shows_who_is_a_copy_of_whom(decoder: Any, donor: str) -> None:
    model = with_a_copy(decoder)
    model.weight(2, "k_proj").mul_(-1)
    found = run(model, f"share-kv{{layers=3, donor={donor}}}")
    assert found.steps[0].step.options()["donor"] == {3: 1}
    if donor == "similar":
        found = run(model, "share-kv{choose=1, donor=similar, refit=false}")
        assert found.steps[0].step.options()["donor"] == {3: 1}
    again = run_pipeline(model.graph, found.recipe)
    assert again.graph.equals(found.graph)
    assert again.recipe == found.recipe


def test_measured_readers_are_those_that_cost_least_together(decoder: Any) -> None:
    model = decoder(layers=4)
    found = run(model, "share-kv{choose=0.5, donor=measured, finalists=100}")
    chosen = found.steps[0].step.options()["donor"]
    measure = Measurements(model.graph, model.source, model.tokens)
    pairs = [(j, i) for j in range(4) for i in range(j)]
    sets = [{a[0]: a[1], b[0]: b[1]} for a in pairs for b in pairs if a[0] < b[0] and not {a[0], b[0]} & {a[1], b[1]}]
    steps = [parse_pipeline(f"share-kv{{donor={each}}}").passes[0] for each in sets]
    costs = measure.damage(model.graph, [lambda graph, step=step: step.rewrite(graph) for step in steps])
    assert isinstance(chosen, dict)
    order = sorted(range(len(sets)), key=costs.__getitem__)
    assert {int(k): v for k, v in chosen.items()} in [sets[place] for place in order[:3]]  # one donor set a reader set


def test_donors_may_be_looked_for_nearby_only(decoder: Any) -> None:
    found = run(decoder(layers=5), "share-kv{choose=2, donor=measured, within=1, refit=false, finalists=1}")
    chosen = found.steps[0].step.options()["donor"]
    assert isinstance(chosen, dict)
    assert all(int(reader) - int(str(donor)) == 1 for reader, donor in chosen.items())


def test_without_text_the_number_is_known_and_the_choice_is_not(decoder: Any) -> None:
    model = decoder(layers=4)
    recipe = parse_pipeline("share-kv{choose=2, donor=measured}")
    with pytest.raises(UndecidedError):
        run_pipeline(model.graph, recipe)
    step = run_pipeline(model.graph, recipe, assume=True).steps[0]
    assert not step.decided
    assert len(step.report.applied) == 2
    assert step.after.cache_bytes == step.before.cache_bytes // 2
    assert "decided at apply" in step.report.applied[0].text


@pytest.mark.parametrize(
    ("pipeline", "error"),
    [
        ("share-kv{donor=measured}", MissingKeyError),
        ("share-kv{choose=4, donor=measured}", OptionRangeError),
        ("share-kv{choose=0.01, donor=measured}", OptionRangeError),
        ("share-kv{choose=2}", OptionConflictError),
        ("share-kv{layers=2, within=1}", OptionConflictError),
        ("share-kv{groups=2, donor=measured}", OptionConflictError),
        ("share-kv{last=2, layers=3}", OptionConflictError),
        ("share-kv{last=4}", OptionRangeError),
    ],
)
def test_wishes_that_cannot_be(decoder: Any, pipeline: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_pipeline(decoder(layers=4).graph, parse_pipeline(pipeline), assume=True)


def test_the_last_layers_read_the_last_own_layer_of_their_kind(decoder: Any) -> None:
    model = decoder(layers=6, windows={0: 8, 2: 8, 4: 8})
    found = run_pipeline(model.graph, parse_pipeline("share-kv{last=3, refit=false}"))
    assert found.steps[0].step.options()["donor"] == {3: 1, 4: 2, 5: 1}
