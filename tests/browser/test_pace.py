"""How soon a page is alive, in a real Chromium: what it takes is printed, and on a quiet machine
(REPLIB_QUIET=1) bounded three times as wide as on two idle cores."""

import math
import os
import time

import pytest
from browser.test_browser import (  # noqa: F401
    DESK,
    HEIGHT,
    HEIGHT_PX,
    PHONE,
    address,
    browser,
    chart,
    expect,
    new_page,
    photograph,
    pytestmark,
    slider,
    verdict,
    wait_for,
)

SLOWER = 3 if os.environ.get("REPLIB_QUIET") else math.inf
FIRST_VERDICT_S, FIRST_POINT_S, LEARNED_S = 3.0, 5.0, 13.0  # from the address on
NEXT_POINT_S, FOLLOWED_S = 0.5, 0.15  # from the slider on
WARM_S = 15.0  # in which a server that has just begun gets ready
# Notes when a text of the page first holds a pattern, in milliseconds since it was asked for.
WATCH = """([name, selector, pattern]) => {
    const began = performance.now(), wanted = new RegExp(pattern);
    const look = () => {
        const found = [...document.querySelectorAll(selector)];
        if (!found.some(e => wanted.test(e.textContent + e.getAttribute("aria-label"))))
            return setTimeout(look, 10);  // to ask for frames would keep a core busy
        window[name] = performance.now() - began;
    };
    look();
}"""

# From a page's first line on: notes when it shows a verdict, and the first step of a run.
FIRST_SEEN = """{
    const note = (name, holds) => {
        if (holds()) requestAnimationFrame(() => { window[name] = performance.now(); });
        else setTimeout(note, 10, name, holds);
    };
    const told = (e) => /step [1-9]/.test(e.textContent);
    note("verdict", () => document.querySelector(".r-card .r-status, .r-answers .r-status"));
    note("point", () => [...document.querySelectorAll("[role=status]")].some(told));
}"""


def seconds(page, name):
    """When what was watched for came."""
    page.wait_for_function(f"window.{name} !== undefined", polling=50)
    return page.evaluate(f"window.{name}") / 1000


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_page_1_is_not_too_long(new_page, capsys, viewport):  # noqa: F811
    page = new_page("convergence/?n_steps=10000&seq_len=256", viewport=viewport)
    expect(page.get_by_text("Method and limits")).to_be_visible()
    wait_for(lambda: chart(page, 1).count())
    height = page.evaluate(HEIGHT)
    photograph(page, f"01_convergence_{viewport['width']}")
    with capsys.disabled():
        print(f"\npage 1 at {viewport['width']} px: {height} px high")
    assert viewport == PHONE or height <= HEIGHT_PX
    assert not page.problems


@pytest.mark.skipif(
    "REPLIB_QUIET" not in os.environ,
    reason="a busy machine starts no run by itself: on a quiet one, with REPLIB_QUIET=1",
)
def test_page_1_is_alive_at_once_and_follows_its_sliders(new_page, capsys):  # noqa: F811
    warm = new_page("convergence/?n_steps=10000&seq_len=256")
    verdict(warm).wait_for()
    time.sleep(WARM_S)
    warm.context.close()
    page = new_page("convergence/", watch=FIRST_SEEN)
    took = {"first verdict": seconds(page, "verdict"), "first point": seconds(page, "point")}
    learned = "[role=graphics-document][aria-label*='right: '][aria-label*=', linear at step']"
    page.locator(learned).wait_for()
    took["both learned"] = page.evaluate("performance.now() / 1000")
    wait_for(lambda: page.get_by_role("button", name="Run again").count())
    slider(page, "Sequence length").focus()
    page.evaluate(WATCH, ["followed", "strong", "576"])
    page.evaluate(WATCH, ["next", "[role=status]", r"N = 24.*step [1-9]"])
    slider(page, "Sequence length").press("ArrowRight")
    took["slider to number"] = seconds(page, "followed")
    took["slider to next point"] = seconds(page, "next")
    with capsys.disabled():
        print("\npage 1, seconds:", {name: round(s, 2) for name, s in took.items()})
    limits = (FIRST_VERDICT_S, FIRST_POINT_S, LEARNED_S, FOLLOWED_S, NEXT_POINT_S)
    for (name, found), limit in zip(took.items(), limits, strict=True):
        assert found < SLOWER * limit, name
    assert not page.problems
