"""Every page of the report as its reader opens it: from a file, without a network."""

import re

import pytest
from browser.test_browser import (
    CHROMIUM,
    DESK,
    PATIENCE_MS,
    PHONE,
    STEMS,
    photograph,
    pixels,
    wait_for,
)

from replib.pages import style
from replib.report import offline
from replib.report.write import NOTEBOOKS

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
N_OPERATED = {
    "01_convergence": (0, 1, 1),
    "02_linear_scaling": (0, 0, 1),
    "03_speed_crossover": (0, 0, 0),
    "04_transformers_are_rnns": (0, 0, 1),
    "05_replication_autopsy": (0, 2, 0),  # its legends only explain
    "06_fast_weights": (2, 0, 0),
    "07_linformer": (0, 0, 0),
    "08_language_model": (0, 0, 0),
}
"""How many sliders, radio buttons and legends of charts a page has in sight at least."""
MIN_MARKS = 2  # of a chart that has data


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
        wait_for(lambda: drawn(page))
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


# The Vega view of a chart, which marimo's component has among its React hooks.
# Then the view's scene: what it draws, each with what it is, where, and how it looks.
SCENE = """(canvas) => {
    const place = canvas.closest(".vega-embed");
    let view;
    const key = Object.keys(place).find((name) => name.startsWith("__reactFiber"));
    for (let fiber = place[key], up = 0; !view && fiber && up < 5; fiber = fiber.return, up++)
        for (const one of [fiber, fiber.alternate])
            for (let hook = one?.memoizedState; hook?.next !== undefined; hook = hook.next) {
                const kept = hook.memoizedState?.view;  // that of before a redraw is also there
                if (kept?.scenegraph && kept.container()?.contains(canvas)) view = kept;
            }
    if (!view) return null;
    const [x, y] = view.origin(), { left, top } = view.padding(), found = [];
    const look = (mark, x, y) => {
        for (const item of mark.items || []) {
            const at = [x + (item.x || 0), y + (item.y || 0)];
            if (mark.marktype === "group") item.items.forEach((part) => look(part, ...at));
            else found.push({ role: mark.role, type: mark.marktype, x: at[0], y: at[1],
                opacity: item.opacity ?? 1,
                looks: [item.opacity, item.fill, item.stroke, item.text, item.width, item.height,
                    item.size].join() });
        }
    };
    look(view.scenegraph().root, left + x, top + y);
    const bound = Object.keys(view.getState({ signals: () => true, data: () => false }).signals)
        .some((name) => name.endsWith("_legend"));
    return { items: found, bound };
}"""


def scene(canvas):
    found = canvas.evaluate(SCENE)
    assert found, "the Vega view of a chart is not where it was known to be"
    return found


def marks(canvas):
    """The marks that a chart draws of its data: neither axes nor legends nor titles."""
    return [item for item in scene(canvas)["items"] if item["role"] == "mark"]


def looks(canvas):
    return [(item["type"], item["x"], item["y"], item["looks"]) for item in marks(canvas)]


PAINTED = """(canvas) => {  // pixels that have a colour: neither black, white nor grey
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let n = 0;
    for (let i = 0; i < data.length; i += 4)
        n += data[i + 3] > 200 && Math.max(data[i], data[i + 1], data[i + 2])
            - Math.min(data[i], data[i + 1], data[i + 2]) > 40;
    return n;
}"""


def drawn(page):
    """Whether each chart in sight has marks, and they are painted."""
    return all(
        len(marks(canvas)) >= MIN_MARKS and canvas.evaluate(PAINTED) > 100 for canvas in shown(page)
    )


def fits(page, width):
    """Whether no chart is wider than the page, and the page does not scroll sideways."""
    boxes = [canvas.bounding_box() for canvas in shown(page)]
    too_wide = page.evaluate(
        "[document.scrollingElement, document.querySelector('#App')].filter(Boolean)"
        ".map(e => e.scrollWidth - e.clientWidth)"
    )
    return not any(too_wide) and all(box["x"] + box["width"] <= width for box in boxes)


@pytest.mark.parametrize("name", ["index", *STEMS])
def test_a_page_is_one_small_file_that_names_nothing_to_load(built, name):
    page = (built / "report" / f"{name}.html").read_text()
    assert len(page.encode()) < 6_000_000
    assert not re.findall(r"<script[^>]*src=", page)
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r"<(?:link|img|iframe)[^>]*(?:href|src)=(?!\"data:)", page)
    assert "@import" not in page and "cdn." not in page


MOST_PX = 5000  # of the index on a desk


needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM"
)


@needs_browser
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", STEMS)
def test_charts_are_drawn_described_legible_and_fit_a_desk_and_a_phone(open_page, name, scheme):
    page = open_page(name, scheme)
    described = page.locator(".vega-embed [role=graphics-document]").evaluate_all(
        "all => all.map(e => e.getAttribute('aria-label'))"
    )
    assert len(described) == page.locator("canvas.marks").count() >= 1
    assert all(len(text) > 30 for text in described)
    if scheme == "light":
        operated = move_sliders(page), turn_radios(page), click_legends(page)
        least = N_OPERATED[name]
        assert all(n >= wanted for n, wanted in zip(operated, least, strict=True)), operated
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for viewport in (DESK, PHONE):
        page.set_viewport_size(viewport)
        wait_for(lambda width=viewport["width"]: fits(page, width))
        wait_for(lambda: drawn(page))
        photograph(page, f"report_{name}_{viewport['width']}_{scheme}")
        found = axe.run(page).response["violations"]
        assert not [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]


def click_legends(page):
    """Click the first symbol of each legend that can be clicked: other marks fade; clicked again
    with Shift, they are back. How many charts have such a legend."""
    clicked = 0
    for canvas in shown(page):
        symbols = [x for x in scene(canvas)["items"] if x["role"] == "legend-symbol"]
        if not symbols or not scene(canvas)["bound"]:
            continue
        place = {"x": symbols[0]["x"], "y": symbols[0]["y"]}
        before = opacity(canvas)
        canvas.click(position=place)
        wait_for(lambda canvas=canvas, before=before: 0 < opacity(canvas) < 0.95 * before)
        canvas.click(position=place, modifiers=["Shift"])
        wait_for(lambda canvas=canvas, before=before: opacity(canvas) > 0.99 * before)
        clicked += 1
    return clicked


def opacity(canvas):
    """Of all marks of a chart, summed: less where some fade."""
    return sum(mark["opacity"] for mark in marks(canvas))


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
            before = looks(canvas)
            slider.focus()
            for _ in range(8):
                page.keyboard.press("ArrowLeft" if value > least else "ArrowRight")
            wait_for(lambda canvas=canvas, before=before: looks(canvas) != before)
            assert len(marks(canvas)) >= MIN_MARKS
            moved += 1
    return moved


def turn_radios(page):
    """Choose what is not chosen of each radio button of a chart, and back: its marks change."""
    turned = 0
    for group in page.locator(".vega-bind-radio").all():
        if group.is_visible():
            canvas, chosen = chart_of(group), group.locator("input:checked")
            before, first = looks(canvas), chosen.get_attribute("value")
            group.locator(f"input:not([value='{first}'])").first.check()
            wait_for(lambda canvas=canvas, before=before: looks(canvas) != before)
            group.locator(f"input[value='{first}']").check()
            wait_for(lambda canvas=canvas, before=before: looks(canvas) == before)
            turned += 1
    return turned


@needs_browser
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_index_answers_first_and_is_short(browser, built, scheme):
    page = browser.new_page(viewport=DESK, color_scheme=scheme)
    page.goto((built / "report" / "index.html").as_uri())
    assert page.locator(".r-answers li").last.bounding_box()["y"] < DESK["height"]
    assert page.evaluate("[...document.images].every((one) => one.naturalWidth > 100)")
    assert page.evaluate("document.documentElement.scrollHeight") < MOST_PX
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for viewport in (DESK, PHONE):
        page.set_viewport_size(viewport)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        photograph(page, f"report_index_{viewport['width']}_{scheme}")
        assert not [one["id"] for one in axe.run(page).response["violations"]]
    page.close()


@needs_browser
@pytest.mark.browser
def test_a_point_under_the_pointer_says_what_it_is(open_page):
    page = open_page("02_linear_scaling")
    canvas = shown(page)[0]
    canvas.scroll_into_view_if_needed()
    tooltip = page.locator("#vg-tooltip-element.visible")
    for x, y in pixels(canvas, style.PALETTE["softmax"], top=110)[::40]:
        canvas.hover(position={"x": x, "y": y})
        page.wait_for_timeout(50)
        if tooltip.count():
            break
    expect(tooltip).to_contain_text("softmax")


def test_a_page_is_refused_where_marimo_is_another(monkeypatch):
    monkeypatch.setattr(offline, "version", lambda name: "0.99.0")
    with pytest.raises(ValueError, match=r"marimo 0\.99\.0: .* marimo 0\.25\.2"):
        offline.export(NOTEBOOKS / "01_convergence.py")


def test_what_unlike_marimo_was_exported_is_refused():
    with pytest.raises(ValueError, match="not as marimo"):
        offline._split("<html></html>")
