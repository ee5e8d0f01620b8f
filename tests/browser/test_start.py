"""The start page in a real Chromium. What it takes is printed, and on a quiet machine
(REPLIB_QUIET=1) bounded three times as wide as on two idle cores."""

import pytest
from browser.test_browser import (  # noqa: F401
    DESK,
    HEIGHT,
    HEIGHT_PX,
    PHONE,
    address,
    browser,
    expect,
    new_page,
    photograph,
    pytestmark,
    slider,
    wait_for,
    what_axe_finds,
)
from browser.test_pace import FIRST_SEEN, FIRST_VERDICT_S, FOLLOWED_S, SLOWER, WATCH, seconds

from replib.claims import CLAIMS, PAGES

LISTED = [one for claim in CLAIMS for one in claim.listed]


@pytest.fixture(scope="module")
def warm(new_page):  # noqa: F811
    """The server has shown the page once."""
    page = new_page()
    page.locator(".r-answers .r-status").nth(len(LISTED) - 1).wait_for()
    page.context.close()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_start_page_answers_at_once_and_moves_by_itself(new_page, warm, size):  # noqa: F811
    page = new_page(viewport=size, watch=FIRST_SEEN)
    verdict_s = seconds(page, "verdict")
    letters = page.locator(".r-letters")
    letters.wait_for()
    first = letters.get_attribute("aria-label")
    wait_for(lambda: letters.get_attribute("aria-label") != first)
    moves_s = page.evaluate("performance.now() / 1000")
    expect(page.locator(".r-answers li")).to_have_count(len(LISTED))
    height = page.evaluate(HEIGHT)
    print(f"first verdict {verdict_s:.2f} s, moves after {moves_s:.2f} s, {height} px high")
    assert verdict_s < SLOWER * FIRST_VERDICT_S
    if size == DESK:
        assert height <= HEIGHT_PX
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    photograph(page, f"start_{size['width']}")
    assert not page.problems


def test_the_picture_follows_the_slider_and_the_player_the_reader(new_page, warm):  # noqa: F811
    page = new_page()
    letters = page.locator(".r-letters")
    letters.wait_for()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    slider(page, "Position").focus()
    slider(page, "Position").press("Home")
    expect(letters).to_have_attribute("aria-label", "position 1 of 12")
    took = []
    for n in range(2, 7):
        page.evaluate(WATCH, [f"moved_{n}", ".r-letters", f"position {n} of"])
        slider(page, "Position").press("ArrowRight")
        took.append(seconds(page, f"moved_{n}"))
    took.sort()
    print(f"slider to picture: {took[2]:.3f} s")
    assert took[2] < SLOWER * FOLLOWED_S
    expect(letters).to_have_attribute("aria-label", "position 6 of 12")
    page.get_by_role("button", name="Play").click()
    expect(letters).to_have_attribute("aria-label", "position 12 of 12")
    expect(page.get_by_role("button", name="Play")).to_be_visible()  # at the end it rests
    slider(page, "Sequence length").press("ArrowRight")
    expect(letters).to_have_attribute("aria-label", "position 12 of 16")
    assert not page.problems


def test_cards_lead_to_the_pages_and_words_to_the_glossary(new_page, warm):  # noqa: F811
    page = new_page("#glossary")
    expect(page.locator("#glossary")).to_be_in_viewport()
    page.locator(".r-glossary summary").click()
    page.locator(".r-answers a.r-word", has_text="Perplexity").first.click()
    expect(page.locator("#word-perplexity")).to_be_in_viewport()
    cards = page.locator("a.r-page")
    expect(cards).to_have_count(len(PAGES))
    assert all(cards.nth(i).locator("img").evaluate("x => x.naturalWidth") for i in range(2))
    cards.first.click()
    page.wait_for_url(f"**/{next(iter(PAGES))}/")
    page.get_by_role("link", name="Start").first.click()
    expect(page.locator(".r-answers li")).to_have_count(len(LISTED))
    assert not page.problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_in_what_is_ours(new_page, warm, size, scheme):  # noqa: F811
    page = new_page(viewport=size, color_scheme=scheme)
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    assert not what_axe_finds(page)
