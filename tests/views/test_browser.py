"""The harness that pages are tested with: what a page says on its console is not lost."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.views.conftest import Complaints

pytestmark = pytest.mark.browser


@pytest.fixture
def complained(complaints: Complaints) -> Generator[Complaints]:
    """Return what a page complained of, and forget it before `page` looks."""
    yield complaints
    complaints.clear()


def test_a_page_without_faults_raises_no_complaint(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<!doctype html><title>quiet</title><p>text", encoding="utf-8")
    page.goto(file.as_uri())
    assert page.title() == "quiet"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<script>console.error('broken')</script>", "broken"),
        ("<script>throw new Error('thrown')</script>", "thrown"),
        ("<script src='https://cdn.example/x.js'></script>", "asked: https://cdn.example/x.js"),
        ("<img src='missing.png' alt=''>", "failed: "),
    ],
)
def test_what_is_wrong_with_a_page_is_heard(
    page: Page, complained: Complaints, tmp_path: Path, body: str, complaint: str
) -> None:
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><title>loud</title>{body}", encoding="utf-8")
    page.goto(file.as_uri())
    assert any(complaint in each for each in complained)
