"""The page of a comparison in a browser: silent, readable on a phone, in the dark, on paper, and when it is heard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from regraft.comparing import compare

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

MODELS = ("builtin:DeepSeek-V3.2", "builtin:DeepSeek-V4-Pro")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "compare.html"
    compare(*MODELS).write_html(path)
    return path


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(page: Page, file: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(file.as_uri())
    assert page.title() == "DeepSeek-V3.2, DeepSeek-V4-Pro"
    assert page.locator("h1").inner_text() == "DeepSeek-V3.2 beside DeepSeek-V4-Pro"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_by_role("table").count() == 5


def test_signs_are_words_and_rows_have_heads(page: Page, file: Path) -> None:
    page.goto(file.as_uri())
    assert page.get_by_role("rowheader", name="changed: family").count() == 1
    assert page.get_by_role("columnheader", name="DeepSeek-V4-Pro").count() == 5
    assert page.get_by_role("heading", name="What differs in structure").count() == 1
    assert page.locator("li.added", has_text="attention sinks").count() >= 1


def test_the_page_follows_the_system_to_the_dark_and_prints_light(page: Page, file: Path) -> None:
    page.goto(file.as_uri())
    paper = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) != light
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(paper) == light
