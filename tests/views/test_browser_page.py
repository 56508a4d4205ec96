"""Pages as people use them, in chromium: folding, opening, searching, stepping through passes, with mouse and keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from regraft.drawing import draw
from regraft.model import lift
from regraft.views.drawing.gallery import Entry, index
from regraft.views.drawing.staging import scene
from regraft.views.facts import facts

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a page of a model and one of a recipe."""
    made = tmp_path_factory.mktemp("pages")
    draw("builtin:gemma-4-E2B", made / "model.html")
    draw("builtin:Qwen3-0.6B", made / "recipe.html", recipe="budget-heads{heads=12},share-kv{layers='4..5', donor=3}")
    return made


@pytest.fixture
def model(page: Page, folder: Path) -> Page:
    """Return the page of a model."""
    page.goto((folder / "model.html").as_uri())
    return page


@pytest.fixture
def recipe(page: Page, folder: Path) -> Page:
    """Return the page of a recipe of two passes."""
    page.goto((folder / "recipe.html").as_uri())
    return page


def _card(page: Page, key: str) -> Locator:
    return page.locator(f'.step:not([hidden]) .card[data-key="{key}"]')


def _overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


# -- folding


def test_kinds_fold_and_unfold(model: Page) -> None:
    card = _card(model, "B")
    assert not card.locator(".op").first.is_visible()
    card.locator("summary").click()
    assert card.locator(".op").count() == 33
    assert card.locator(".op").first.is_visible()
    card.locator("summary").press("Enter")
    assert not card.locator(".op").first.is_visible()


def test_all_kinds_open_and_close_at_once(model: Page) -> None:
    opened = model.locator("details[open]")
    model.get_by_role("button", name="Open all").click()
    assert opened.count() == model.locator("details").count() == 6
    model.keyboard.press("o")
    assert opened.count() == 0


def test_a_layer_leads_to_its_kind(model: Page) -> None:
    model.locator('.cell[data-layer="19"]').click()
    assert _card(model, "D").locator("details").evaluate("each => each.open")
    assert model.url.endswith("#s0-kind-D")
    model.reload()
    assert _card(model, "D").locator("details").evaluate("each => each.open")


# -- operations


def test_an_operation_tells_what_it_is(model: Page) -> None:
    card = _card(model, "A")
    card.locator("summary").click()
    card.get_by_role("button", name="attn.q_proj: linear, 2048").click()
    said = model.locator("#panel").inner_text()
    for wanted in (
        "attn.q_proj",
        "core.linear in sliding",
        "bf16[B, T, 2048]",
        "model.language_model.layers.*.self_attn.q_proj.weight",
        "bf16[2048, 1536], 3.15 M numbers, 6.00 MiB",
        "6.29 MFLOP",
    ):
        assert wanted in said
    model.keyboard.press("Escape")
    assert model.locator("#panel").is_hidden()


def test_what_an_operation_reads_and_who_reads_it_is_one_step_away(model: Page) -> None:
    _card(model, "A").locator("summary").click()
    _card(model, "A").get_by_role("button", name="attn.q: split").click()
    model.locator("#about").get_by_role("button", name="attn.q_norm").click()
    assert model.locator("#about h2").inner_text() == "attn.q_norm"
    model.locator("#about").get_by_role("button", name="attn.q", exact=True).click()
    assert model.locator("#about h2").inner_text() == "attn.q"
    assert _card(model, "A").locator(".op[aria-pressed=true]").get_attribute("aria-label") == "attn.q: split, 8×256"


def test_a_kind_shows_its_layers(model: Page) -> None:
    _card(model, "B").locator("h3").hover()
    assert model.locator(".cell:not(.dim)").count() == 3
    model.locator("h1").hover()
    assert model.locator(".cell.dim").count() == 0


def test_keys_move_among_operations_and_open_them(model: Page) -> None:
    card = _card(model, "A")
    card.locator("summary").focus()
    model.keyboard.press("Enter")
    model.keyboard.press("Tab")  # the region that scrolls
    model.keyboard.press("Tab")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert model.evaluate(focused) == "attn.norm: norm, 1536"
    model.keyboard.press("ArrowDown")
    first = model.evaluate(focused)
    assert first.startswith("attn.")
    model.keyboard.press("ArrowUp")
    assert model.evaluate(focused) == "attn.norm: norm, 1536"
    model.keyboard.press("ArrowDown")
    model.keyboard.press("Enter")
    assert model.locator("#about h2").inner_text() == first.partition(":")[0]
    model.keyboard.press("Escape")
    assert model.evaluate(focused) == first


def test_keys_move_among_layers(model: Page) -> None:
    model.locator(".cell").first.focus()
    model.keyboard.press("ArrowRight")
    model.keyboard.press("ArrowRight")
    assert model.evaluate("document.activeElement.dataset.layer") == "2"
    model.keyboard.press("Enter")
    assert _card(model, "A").locator("details").evaluate("each => each.open")


# -- search


def test_search_finds_operations_and_weights(model: Page) -> None:
    model.keyboard.press("/")
    model.keyboard.type("embed_tokens_per_layer")
    found = model.get_by_role("option")
    assert found.count() == 1
    model.keyboard.press("Enter")
    assert model.locator("#panel").is_visible()
    assert "embed_tokens_per_layer" in model.locator("#about").inner_text()
    assert model.locator(".op[aria-pressed=true]").is_visible()


def test_results_are_chosen_with_keys_and_mouse(model: Page) -> None:
    model.locator("#search").fill("q_proj linear")
    options = model.get_by_role("option")
    assert options.count() == 4
    model.keyboard.press("ArrowDown")
    assert options.nth(1).get_attribute("aria-selected") == "true"
    options.nth(3).click()
    assert _card(model, "D").locator(".op[aria-pressed=true]").count() == 1
    model.locator("#search").fill("no such thing")
    assert model.locator("#found").inner_text() == "nothing found"
    model.keyboard.press("Escape")
    assert model.locator("#found").is_hidden()


# -- passes


def test_the_slider_goes_through_the_passes(recipe: Page) -> None:
    shown = recipe.locator(".step:not([hidden])")
    assert shown.get_attribute("data-step") == "3"
    assert "What the whole recipe changed" in shown.inner_text()
    recipe.locator("#step").press("ArrowLeft")
    assert shown.get_attribute("data-step") == "2"
    assert "gone: attn.k_proj" in _card(recipe, "B").inner_text()
    recipe.locator("#step").press("ArrowLeft")
    assert shown.get_attribute("data-step") == "1"
    assert "changed" in _card(recipe, "A").inner_text()
    recipe.get_by_role("button", name="0 as lifted").click()
    assert shown.get_attribute("data-step") == "0"
    assert recipe.locator("#step").input_value() == "0"
    assert shown.locator(".flag").count() == 0
    recipe.locator("h1").click()
    recipe.keyboard.press("]")
    assert shown.get_attribute("data-step") == "1"


def test_what_was_open_stays_open_and_pictures_come_along(recipe: Page) -> None:
    recipe.keyboard.press("o")
    count = _card(recipe, "A").locator(".op").count()
    recipe.keyboard.press("[")
    assert _card(recipe, "A").locator("details").evaluate("each => each.open")
    assert _card(recipe, "A").locator(".op").count() == count == 23
    before = _card(recipe, "before the layers").locator(".op")
    assert before.count() == 1
    before.click()
    assert "core.embed" in recipe.locator("#about").inner_text()


def test_changed_operations_carry_a_sign(recipe: Page) -> None:
    recipe.get_by_role("button", name="1 budget-heads").click()
    card = _card(recipe, "A")
    card.locator("details").evaluate("each => { each.open = true }")
    assert card.get_by_role("button", name="attn.q_proj: linear, 1536, changed").count() == 1


# -- looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_dark_where_the_system_is_and_can_be_switched(model: Page, scheme: str) -> None:
    model.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark, light = "rgb(29, 33, 38)", "rgb(245, 246, 248)"
    assert model.evaluate(ground) == (dark if scheme == "dark" else light)
    model.keyboard.press("t")
    assert model.evaluate(ground) == (light if scheme == "dark" else dark)
    assert model.locator("#theme").inner_text() == ("Dark" if scheme == "dark" else "Light")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_but_regions_that_scroll_is_wider_than_the_window(model: Page, width: int) -> None:
    model.set_viewport_size({"width": width, "height": 800})
    assert _overflow(model) <= 0
    model.keyboard.press("o")
    assert _overflow(model) <= 0


def test_nothing_moves_while_the_page_loads(model: Page) -> None:
    shift = """new Promise(done => {
      let total = 0;
      new PerformanceObserver(list => list.getEntries().forEach(e => { total += e.value; }))
        .observe({type: "layout-shift", buffered: true});
      setTimeout(() => done(total), 50);
    })"""
    assert model.evaluate(shift) == 0


def test_paper_shows_what_is_open_and_no_controls(model: Page) -> None:
    _card(model, "A").locator("summary").click()
    model.emulate_media(media="print", color_scheme="dark")
    assert _card(model, "A").locator(".op").first.is_visible()
    for hidden in ("#search", ".buttons", "#panel", "summary >> nth=0"):
        assert model.locator(hidden).is_hidden()
    assert model.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert model.evaluate("getComputedStyle(document.body).color") == "rgb(26, 29, 33)"
    assert model.pdf(format="A4")[:5] == b"%PDF-"


@pytest.mark.parametrize("width", [390, 1280])
def test_a_gallery_leads_to_its_pages(page: Page, folder: Path, width: int) -> None:
    graph = lift("builtin:gemma-4-E2B", strict=False).graph
    entry = Entry("gemma-4-E2B", graph, scene(graph), facts(graph, (4096, 131072)), "model.html")
    (folder / "index.html").write_text(index([entry], (entry.name,)), encoding="utf-8")
    page.set_viewport_size({"width": width, "height": 800})
    page.goto((folder / "index.html").as_uri())
    assert _overflow(page) <= 0
    page.get_by_role("link", name="gemma-4-E2B").first.click()
    assert page.locator("h1").inner_text() == "gemma-4-E2B"
    assert page.locator("[data-ready]").count() == 1


def test_text_of_a_recipe_and_a_name_stays_text(page: Page, tmp_path: Path) -> None:
    path = draw(lift("builtin:Qwen3-0.6B").named(EVIL), tmp_path / "evil.html")
    page.goto(path.as_uri())
    assert page.locator("h1").inner_text() == EVIL
    assert page.evaluate("document.scripts.length") == 2
