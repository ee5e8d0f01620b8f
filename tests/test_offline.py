"""The report in a real browser, opened from `file://` with the network off, as it is sent around.

The pages are those of the recorded rows. Charts are canvases, and read by their pixels.
"""

import shutil

import pytest
from test_browser import (
    ARTIFACTS,
    DESK,
    PATIENCE_MS,
    PHONE,
    STEMS,
    chart,
    n_pixels,
    photograph,
    pixels,
    pytestmark,  # noqa: F401
    wait_for,
)
from test_browser import browser  # noqa: F401

from replib import charts, offline, report

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

PAGES = ["index", *STEMS]
LOOKS = [(size, scheme) for size in (DESK, PHONE) for scheme in ("light", "dark")]
# Of the pages themselves; what marimo draws around them is marimo's.
RULES = ("color-contrast", "image-alt", "label", "link-name", "list", "role-img-alt", "svg-img-alt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The report of the recorded rows, in a folder of its own."""
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REPLIB_DATA", raising=False)
        patch.setenv("REPLIB_CACHE", str(root / "cache"))
        shutil.copy(report.README, root)
        patch.setattr(report, "README", root / "README.md")
        patch.setattr(report, "FIGURES", root / "figures")
        patch.setattr(report, "PICTURES", root / "pictures")
        written = report.write_report()
    assert {path.stem for path in written if path.suffix == ".html"} == set(PAGES)
    return root / "figures" / "report"


@pytest.fixture
def open_page(browser, folder):  # noqa: F811
    """A function that opens a page of the report offline; a page that needs the network, or
    reports an error, fails its test."""
    contexts, problems = [], []

    def opened(name, size=DESK, scheme="light"):
        context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: problems.append(f"{name}: {error}"))
        page.on(
            "console",
            lambda m: problems.append(f"{name}: {m.text}") if m.type == "error" else None,
        )
        page.on(
            "request",
            lambda request: (
                problems.append(f"{name} asks for {request.url}")
                if not request.url.startswith(("file:", "blob:", "data:"))
                else None
            ),
        )
        page.goto((folder / f"{name}.html").as_uri())
        wait_for(lambda: page.locator("canvas.marks, .chart canvas").count() > 0)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


COLOURED = """(canvas) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let n = 0;
    for (let i = 0; i < pixels.length; i += 4) {
        const [r, g, b] = [pixels[i], pixels[i + 1], pixels[i + 2]];
        n += pixels[i + 3] > 100 && Math.max(r, g, b) - Math.min(r, g, b) > 40;
    }
    return n;
}"""


def canvases(page):
    """The charts that are in sight; those in other tabs are drawn when these are opened."""
    return [one for one in page.locator("canvas").all() if one.is_visible()]


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("size, scheme", LOOKS, ids=lambda x: x if isinstance(x, str) else x["width"])
def test_every_page_opens_offline_with_the_marks_of_its_charts(open_page, name, size, scheme):
    page = open_page(name, size, scheme)
    wait_for(lambda: all(one.evaluate(COLOURED) > 50 for one in canvases(page)))
    assert len(canvases(page)) >= (len(report.CLAIMS) - 1 if name == "index" else 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    ARTIFACTS.mkdir(exist_ok=True)
    photograph(page, f"report_{name}_{size['width']}_{scheme}")


def test_pages_are_small_enough_to_be_sent(folder):
    for page in folder.glob("*.html"):
        assert page.stat().st_size < offline.MAX_BYTES, page.name


def test_a_click_on_a_legend_works_without_a_kernel(open_page):
    page = open_page("02_linear_scaling")
    canvas, colour = chart(page, 0), charts.PALETTE["linear"]
    wait_for(lambda: n_pixels(page, canvas, colour, top=90) > 100)
    before = n_pixels(page, canvas, colour, top=90)
    legend = [(x, y) for x, y in pixels(canvas, charts.PALETTE["softmax"]) if y < 70]
    left = min(legend)[0]
    symbol = [(x, y) for x, y in legend if x < left + 10]
    x, y = (sum(place) / len(symbol) for place in zip(*symbol, strict=True))
    canvas.click(position={"x": x, "y": y})
    wait_for(lambda: n_pixels(page, canvas, colour, top=90) < before / 4)


def test_a_slider_of_a_chart_moves_its_marks_without_a_kernel(open_page):
    page = open_page("01_convergence")
    slider = page.locator(".vega-bindings input[type=range]").first
    slider.wait_for()
    canvas = chart(page, 0)
    wait_for(lambda: canvas.evaluate(COLOURED) > 50)
    before = canvas.evaluate("canvas => canvas.toDataURL()")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    wait_for(lambda: canvas.evaluate("canvas => canvas.toDataURL()") != before)
    assert canvas.evaluate(COLOURED) > 50


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible(open_page, name, scheme):
    page = open_page(name, DESK, scheme)
    wait_for(lambda: all(one.evaluate(COLOURED) > 50 for one in canvases(page)))
    found = axe.Axe().run(page, options={"runOnly": list(RULES)})
    assert found.violations_count == 0, found.generate_report()
    charts_found = page.locator("[role=graphics-document]")
    for text in charts_found.evaluate_all("all => all.map(e => e.getAttribute('aria-label'))"):
        assert text and len(text) > 30, text
