"""Every page of the report as its reader opens it: from a file, without a network."""

import re

import pytest
from test_browser import (
    CHROMIUM,
    DESK,
    PATIENCE_MS,
    PHONE,
    STEMS,
    n_pixels,
    photograph,
    pixels,
    wait_for,
)

from replib import charts, offline
from replib.report import NOTEBOOKS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
PAGES = ["index", *STEMS]
COLOURS = tuple(colour for name, colour in charts.PALETTE.items() if name != "lsh")  # a grey
LEGEND_BELOW, LEGEND_ABOVE = 30, 110  # pixels from the top of a chart


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests."""
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, built):
    """A function that opens a page of the report; no page may report an error, or ask for
    anything but itself."""
    contexts, problems = [], []

    def open_one(name, scheme="light"):
        context = browser.new_context(viewport=DESK, color_scheme=scheme, offline=True)
        contexts.append(context)
        context.route(re.compile("^(http|ws)"), lambda route: route.abort())
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: note(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.goto((built / "report" / f"{name}.html").as_uri())
        page.locator("canvas.marks").first.wait_for()
        wait_for(lambda: all(n > 100 for n in coloured(page)))
        return page

    def note(url):
        if not url.startswith(("file:", "blob:", "data:")):
            problems.append(f"asked for {url}")

    yield open_one
    for context in contexts:
        context.close()
    assert not problems


def shown(page):
    """The charts in sight that have data."""
    charts = page.locator("[role=graphics-document]:not([aria-label$='No data yet.'])")
    return [canvas for canvas in charts.locator("canvas.marks").all() if canvas.is_visible()]


def coloured(page):
    """Of each chart that is shown, how many pixels its marks have."""
    return [sum(n_pixels(page, canvas, colour) for colour in COLOURS) for canvas in shown(page)]


def below_legend(canvas):
    return sum(n_pixels(canvas.page, canvas, colour, LEGEND_ABOVE) for colour in COLOURS)


def first_symbol(canvas):
    """Where the first symbol of a chart's legend is."""
    places = [place for colour in COLOURS for place in pixels(canvas, colour, LEGEND_BELOW)]
    top = min(y for _, y in places)
    left = min(x for x, y in places if y < top + 8)
    symbol = [(x, y) for x, y in places if x < left + 10 and y < top + 10]
    return [sum(place) / len(symbol) for place in zip(*symbol, strict=True)]


def fits(page, width):
    """Whether no chart is wider than the page, and the page does not scroll sideways."""
    boxes = [canvas.bounding_box() for canvas in shown(page)]
    too_wide = page.evaluate(
        "[document.scrollingElement, document.querySelector('#App')].filter(Boolean)"
        ".map(e => e.scrollWidth - e.clientWidth)"
    )
    return not any(too_wide) and all(box["x"] + box["width"] <= width for box in boxes)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_one_small_file_that_names_nothing_to_load(built, name):
    page = (built / "report" / f"{name}.html").read_text()
    assert len(page.encode()) < 6_000_000
    assert not re.findall(r"<script[^>]*src=", page)
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"<(?:link|img|iframe)[^>]*(?:href|src)=", page)
    assert "@import" not in page and "cdn." not in page


needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM"
)


@needs_browser
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_charts_are_drawn_described_legible_and_fit_a_desk_and_a_phone(open_page, name, scheme):
    page = open_page(name, scheme)
    described = page.locator(".vega-embed [role=graphics-document]").evaluate_all(
        "all => all.map(e => e.getAttribute('aria-label'))"
    )
    assert len(described) == page.locator("canvas.marks").count() >= 2
    assert all(len(text) > 30 for text in described)
    if scheme == "light":
        answers = move_sliders(page) + turn_radios(page)
        assert answers or a_legend_fades_what_is_not_chosen(page), "no chart can be operated"
        assert name not in OPERATED or answers >= OPERATED[name]
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for viewport in (DESK, PHONE):
        page.set_viewport_size(viewport)
        wait_for(lambda width=viewport["width"]: fits(page, width))
        wait_for(lambda: all(n > 100 for n in coloured(page)))
        photograph(page, f"report_{name}_{viewport['width']}_{scheme}")
    found = axe.run(page).response["violations"]
    assert not [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]


def a_legend_fades_what_is_not_chosen(page):
    """Whether a click on a legend of one of the charts takes marks away; clicked again, they are
    back."""
    for canvas in shown(page):
        x, y = first_symbol(canvas)
        before = below_legend(canvas)
        canvas.click(position={"x": x, "y": y})
        page.wait_for_timeout(500)
        faded = below_legend(canvas) < 0.9 * before
        canvas.dblclick(position={"x": x, "y": y})
        if faded:
            return True
    return False


OPERATED = {"04_transformers_are_rnns": 1, "05_replication_autopsy": 1}
"""How many sliders and radio buttons of charts a page has at least; the others have legends."""


def chart_of(control):
    around = control.locator("xpath=ancestor::*[contains(@class, 'vega-embed')][1]")
    return around.locator("canvas.marks").first


def move_sliders(page):
    """Move each slider of a chart by the keyboard; its marks change, and are not all gone."""
    moved = 0
    for slider in page.locator(".vega-bindings input[type=range]").all():
        least, value, most = (
            slider.evaluate(f"one => Number(one.{name})") for name in ("min", "value", "max")
        )
        if slider.is_visible() and least < most:
            canvas = chart_of(slider)
            before = below_legend(canvas)
            slider.focus()
            for _ in range(8):
                page.keyboard.press("ArrowLeft" if value > least else "ArrowRight")
            wait_for(lambda canvas=canvas, before=before: below_legend(canvas) != before)
            assert below_legend(canvas) > 100
            moved += 1
    return moved


def turn_radios(page):
    """Choose what is not chosen of each radio button of a chart, and back: its marks change."""
    turned = 0
    for group in page.locator(".vega-bind-radio").all():
        if group.is_visible():
            canvas, chosen = chart_of(group), group.locator("input:checked")
            before, first = canvas.screenshot(), chosen.get_attribute("value")
            group.locator(f"input:not([value='{first}'])").first.check()
            wait_for(lambda canvas=canvas, before=before: canvas.screenshot() != before)
            group.locator(f"input[value='{first}']").check()
            turned += 1
    return turned


@needs_browser
@pytest.mark.browser
@pytest.mark.parametrize("name", ["01_convergence", "03_speed_crossover"])
def test_a_click_on_a_legend_fades_what_is_not_chosen(open_page, name):
    assert a_legend_fades_what_is_not_chosen(open_page(name)), "no legend changes its chart"


@needs_browser
@pytest.mark.browser
def test_a_point_under_the_pointer_says_what_it_is(open_page):
    page = open_page("02_linear_scaling")
    canvas = shown(page)[0]
    canvas.scroll_into_view_if_needed()
    tooltip = page.locator("#vg-tooltip-element.visible")
    for x, y in pixels(canvas, charts.PALETTE["softmax"], top=110)[::40]:
        canvas.hover(position={"x": x, "y": y})
        page.wait_for_timeout(50)
        if tooltip.count():
            break
    expect(tooltip).to_contain_text("softmax")


def test_a_page_is_refused_where_marimo_is_another(monkeypatch):
    monkeypatch.setattr(offline, "version", lambda name: "0.99.0")
    with pytest.raises(ValueError, match=r"marimo 0\.99\.0: .* marimo 0\.25\.2"):
        offline.export(NOTEBOOKS / "01_convergence.py")


def test_what_a_page_leaves_out_is_refused_by_name():
    cell = {"outputs": [{"data": {"text/html": "<marimo-plotly data-figure='{}'>"}}]}
    with pytest.raises(ValueError, match=r"x\.py uses Plotly"):
        offline.offline_page({"filename": "x.py", "session": {"cells": [cell]}}, "\0")


def test_what_unlike_marimo_was_exported_is_refused():
    with pytest.raises(ValueError, match="not as marimo"):
        offline._split("<html></html>")
