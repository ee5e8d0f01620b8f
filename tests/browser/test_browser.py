"""Each notebook in a real headless Chromium, as a reader meets it.

Charts are canvases: what they show is read from the colours of their pixels. Waiting is bounded
generously, and no test depends on how fast the machine is.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
import synthetic

from replib import files
from replib.claims import PAGES
from replib.pages import style

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no Chromium: apt-get install chromium, or set CHROMIUM=/path/to/chrome",
    ),
]

ADDRESSES = {notebook: address for address, notebook in PAGES.items()}
STEMS = list(ADDRESSES)
ARTIFACTS = Path(__file__).parents[1] / "artifacts"
PATIENCE_MS = 60_000  # for a machine that has other work; nothing is concluded from it
expect.set_options(timeout=PATIENCE_MS)
HEIGHT = "Math.max(...[...document.querySelectorAll('*')].map(e => e.scrollHeight))"
HEIGHT_PX = 3000
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 400, "height": 800}

# Settings that no machine runs by itself, so that a page rests; and ones that every machine does.
RESTING = {
    "01_convergence": "n_steps=10000",
    "02_linear_scaling": "seq_len=65536&tokens=65536&repeats=31",
    "03_speed_crossover": "seq_len=16384&batch_size=64&repeats=31",
    "04_transformers_are_rnns": "seq_len=4096&batch_size=64&n_layers=16&n_tokens=1000000",
    "05_replication_autopsy": "seq_len=256&n_steps=1000",
    "06_fast_weights": "n_keys=600&seeds=5",
    "07_linformer": "n_steps=3000&batch_size=128",
    "08_language_model": "n_steps=10000&batch_size=64",
}
QUICK = {
    "02_linear_scaling": "seq_len=128&shortest=64&tokens=256&n_heads=1&head_dim=8&repeats=1",
    "03_speed_crossover": "seq_len=32&shortest=8&batch_size=1&n_heads=1&head_dim=8&repeats=3",
    "04_transformers_are_rnns": "seq_len=16&n_layers=1&n_heads=1&head_dim=8&n_tokens=1000",
}
LIVE_CHART = {"02_linear_scaling": 1, "03_speed_crossover": 1, "04_transformers_are_rnns": 1}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a server of the notebooks, with recorded rows of known answers."""
    folder = tmp_path_factory.mktemp("served")
    environment = os.environ | {
        "REPLIB_CACHE": str(folder / "cache"),
        "REPLIB_DATA": str(synthetic.write_recorded(folder / "data")),
    }
    if not os.environ.get("REPLIB_QUIET"):  # other tests run beside these
        environment["OMP_NUM_THREADS"] = "1"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "replib", "serve", "--no-browser", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, cwd=files.ROOT, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}/"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(url, server):
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start (exit status {server.poll()})")


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests."""
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def new_page(browser, address):
    """A function that opens a path of the server; a page keeps the errors that it reported."""
    contexts = []

    def open_page(path="", watch=None, **options):
        context = browser.new_context(**{"viewport": DESK} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
        if watch:
            page.add_init_script(watch)
        page.goto(address + path)
        # What stands there until marimo has drawn itself.
        page.wait_for_function("!document.getElementById('opening')", polling=50)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def notebook(new_page):
    """A function that opens a notebook with a query; the page is closed after the test."""
    pages = []

    def open_notebook(stem, query="", **options):
        page = new_page(f"{ADDRESSES[stem]}?{query}", **options)
        pages.append(page)
        wait_until_drawn(page)
        return page

    yield open_notebook
    problems = [problem for page in pages for problem in page.problems]
    for page in pages:
        page.context.close()
    assert not problems


@pytest.fixture(scope="module", params=STEMS)
def resting(request, new_page):
    """A page of each notebook on which nothing runs, for tests that only look."""
    page = new_page(f"{ADDRESSES[request.param]}?{RESTING[request.param]}")
    page.stem = request.param
    wait_until_drawn(page)
    return page


POINTS_AT_FIRST = ("07_linformer", "08_language_model")  # charts without lines
OTHER_WORKS = {"07_linformer": "Linformer work", "08_language_model": "language-model study"}


def test_the_question_and_the_verdicts_stand_there_while_a_page_loads(browser, address):
    context = browser.new_context(viewport=PHONE, java_script_enabled=False)
    page = context.new_page()
    for path, selector in (("convergence/", ".r-card .r-status"), ("", ".r-answers .r-status")):

        def is_ready(path=path):  # the server judges the rows first
            page.goto(address + path)
            return page.locator("#opening h1").count()

        wait_for(is_ready)
        expect(page.locator("#opening h1")).to_be_visible()
        expect(page.locator(f"#opening {selector}").first).to_be_visible()
        assert page.evaluate("document.body.scrollWidth") <= PHONE["width"]
    context.close()


def wait_until_drawn(page):
    """Wait for the last cell, and for a chart to have its lines."""
    page.get_by_text("Method and limits").wait_for()
    wait_for(lambda: draws_linear(page) or getattr(page, "stem", "") in POINTS_AT_FIRST)


def draws_linear(page):
    """Whether a chart has the lines of linear attention."""
    charts = page.locator("canvas.marks").all()
    return any(n_pixels(page, one, style.PALETTE["linear"]) > 100 for one in charts)


def wait_for(holds):
    """Wait until something holds; a test asserts it by waiting."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not holds():
        assert time.monotonic() < deadline, "what was waited for never came"
        time.sleep(0.1)


def chart(page, which):
    """A drawn chart, by number or by a part of its description."""
    if isinstance(which, int):
        return page.locator("canvas.marks").nth(which)
    return page.locator(f"[role=graphics-document][aria-label*='{which}'] canvas.marks").first


COUNT_PIXELS = """(canvas, [colour, top]) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    const found = [];
    for (let i = 0; i < pixels.length; i += 4) {
        const y = Math.floor(i / 4 / canvas.width);
        if (y >= top && pixels[i + 3] > 200 && Math.abs(pixels[i] - r) < 12
            && Math.abs(pixels[i + 1] - g) < 12 && Math.abs(pixels[i + 2] - b) < 12)
            found.push([(i / 4) % canvas.width, y]);
    }
    return found;
}"""


def pixels(canvas, colour, top=0):
    """Where a canvas has a colour at full strength, (x, y) from the top left, below `top`."""
    return canvas.evaluate(COUNT_PIXELS, [colour, top])


def n_pixels(page, canvas, colour, top=0):
    """How many pixels of a colour a chart has; none while it is not there."""
    count = f"(canvas, arguments) => ({COUNT_PIXELS})(canvas, arguments).length"
    return canvas.evaluate(count, [colour, top]) if canvas.count() else 0


def slider(page, label):
    return page.locator("marimo-slider").filter(has_text=label).get_by_role("slider")


def query(page):
    """The settings in the address bar."""
    return {
        name: values[-1]
        for name, values in parse_qs(urlparse(page.evaluate("location.href")).query).items()
    }


def photograph(page, name):
    """Save the whole page as tests/artifacts/<name>.png, to be looked at."""
    ARTIFACTS.mkdir(exist_ok=True)
    size = page.viewport_size
    page.set_viewport_size(size | {"height": min(page.evaluate(HEIGHT), 6000)})
    page.wait_for_timeout(300)
    page.screenshot(path=ARTIFACTS / f"{name}.png")
    page.set_viewport_size(size)


def verdict(page):
    return page.locator("section[aria-label^=Verdict]").first


RECORDED = {
    "01_convergence": "as accurate as softmax at N = 16",
    "02_linear_scaling": "linear cpu, time N^1.00",
    "03_speed_crossover": "judged",
    "04_transformers_are_rnns": "a token's time is the same at every position",
    "05_replication_autopsy": "12 of 12 runs without the defects copy",
    "06_fast_weights": "Half of the runs solve S = ",
    "07_linformer": "Linformer",
    "08_language_model": "a character: softmax 4.96, linear 4.96",
}


def test_a_notebook_opens_with_its_verdict_and_recorded_charts(resting):
    other = OTHER_WORKS.get(resting.stem, "2022 replication")
    for column in ("Paper", other, "Recorded here"):
        expect(verdict(resting)).to_contain_text(column)
    expect(verdict(resting)).to_contain_text(RECORDED[resting.stem])
    assert draws_linear(resting) or resting.stem in POINTS_AT_FIRST
    photograph(resting, resting.stem)
    assert not resting.problems


def test_a_page_is_short_before_anything_is_unfolded(resting):
    height = resting.evaluate(HEIGHT)
    print(f"{resting.stem}: {height} px high at {DESK['width']} px")
    assert height <= HEIGHT_PX


def test_every_chart_describes_itself_and_every_control_has_a_label(resting):
    described = resting.locator(".vega-embed [role=graphics-document]")
    assert described.count() == resting.locator("canvas.marks").count() > 0
    for text in described.evaluate_all("all => all.map(e => e.getAttribute('aria-label'))"):
        assert len(text) > 30, text
    controls = resting.locator(
        "marimo-slider [role=slider], marimo-dropdown select, marimo-multiselect button[id],"
        "marimo-text input, marimo-switch button"
    )
    assert controls.count() >= 9
    for name in controls.evaluate_all(LABELS):
        assert name, "a control has no label"


LABELS = """(controls) => controls.map((control) => {
    const root = control.getRootNode(), id = control.getAttribute("aria-labelledby");
    const by = id ? root.getElementById(id) : control.labels?.[0];
    return (by?.textContent || control.getAttribute("aria-label") || "").trim();
})"""


def test_a_page_400_pixels_wide_does_not_scroll_sideways(resting):
    resting.set_viewport_size(PHONE)
    wait_for(lambda: chart(resting, 0).bounding_box()["width"] < PHONE["width"])
    photograph(resting, f"{resting.stem}_phone")
    too_wide = resting.evaluate(
        "() => [document.scrollingElement, document.querySelector('#App')]"
        ".map(e => e.scrollWidth - e.clientWidth)"
    )
    boxes = [canvas.bounding_box() for canvas in resting.locator("canvas.marks").all()]
    resting.set_viewport_size(DESK)
    assert too_wide == [0, 0]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] for box in boxes if box)


@pytest.mark.parametrize("width", [360, 412])
def test_no_chart_of_a_phone_has_text_cut_off_at_its_edges(resting, width):
    resting.set_viewport_size(PHONE | {"width": width})
    canvases = resting.locator("canvas.marks")
    widths = "all => all.map(c => c.getBoundingClientRect().width)"
    wait_for(lambda: max(canvases.evaluate_all(widths)) < width)
    with suppress(AssertionError):  # titles and legends follow the width
        wait_for(lambda: not canvases.evaluate_all(CUT_OFF))
    cut_off = canvases.evaluate_all(CUT_OFF)
    resting.set_viewport_size(DESK)
    assert not cut_off


# The descriptions of charts that have something opaque in their outermost pixels.
CUT_OFF = """(canvases) => canvases.filter((canvas) => {
    const {width, height} = canvas, context = canvas.getContext("2d");
    const edges = [[0, 0, 2, height], [width - 2, 0, 2, height], [0, 0, width, 2],
        [0, height - 2, width, 2]];
    return width && edges.some((edge) => {
        const alphas = context.getImageData(...edge).data.filter((_, i) => i % 4 == 3);
        return alphas.filter((alpha) => alpha > 150).length > 3;
    });
}).map((canvas) => canvas.closest("[role=graphics-document]").getAttribute("aria-label"))"""


def test_a_dark_page_has_light_text_in_its_charts(notebook):
    page = notebook("03_speed_crossover", RESTING["03_speed_crossover"], color_scheme="dark")
    assert max(page.evaluate(BACKGROUND)) < 80
    assert n_pixels(page, chart(page, 0), "#ffffff") > 100
    assert n_pixels(page, chart(page, 0), "#000000") == 0
    photograph(page, "03_speed_crossover_dark")


BACKGROUND = """() => {  // red, green and blue, whichever way the style sheet writes them
    const painter = document.createElement("canvas").getContext("2d");
    painter.fillStyle = getComputedStyle(document.body).backgroundColor;
    painter.fillRect(0, 0, 1, 1);
    return [...painter.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_what_is_ours_of_a_served_notebook(notebook, scheme):
    stem = "04_transformers_are_rnns"
    page = notebook(stem, RESTING[stem], color_scheme=scheme)
    page.locator(".r-digits").wait_for()
    assert not what_axe_finds(page)


def what_axe_finds(page):
    """Rule and place of what is ours on a page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    return [
        (rule["id"], node["html"][:160])
        for rule in axe.run(page).response["violations"]
        for node in rule["nodes"]
        if not any(
            part in f"{node['target']}{node['html']}" for part in MARIMOS.get(rule["id"], ())
        )
    ]


# What marimo's own front end lacks, by axe's rule and a part of the place: landmarks, the names of
# its menus, the contrast of a tab that is not chosen and of "Back". Pages of the report mend it.
MARIMOS = {
    "region": ("",),
    "button-name": ("radix-_r_",),
    "summary-name": ('viewBox="0 0 16 16"',),
    "color-contrast": ("-trigger-", "<span>Back</span>"),
}


def test_a_slider_moved_by_keyboard_changes_address_and_prediction(notebook):
    page = notebook("01_convergence", "n_steps=5000")
    button = page.get_by_role("button", name="Run (about")
    before = button.text_content()
    slider(page, "Steps").focus()
    page.keyboard.press("ArrowRight")
    wait_for(lambda: query(page)["n_steps"] == "10000")
    expect(button).not_to_have_text(before)


def test_a_setting_survives_a_reload(notebook):
    page = notebook("01_convergence", RESTING["01_convergence"])
    slider(page, "Sequence length").focus()
    page.keyboard.press("ArrowRight")
    wait_for(lambda: query(page).get("seq_len") == "24")
    page.locator("marimo-dropdown select").first.select_option("encoder-decoder copy")
    wait_for(lambda: query(page).get("task") == "encoder-decoder copy")
    page.reload()
    wait_until_drawn(page)
    expect(page.locator("marimo-slider").first).to_contain_text("24")
    expect(page.locator("marimo-dropdown select").first).to_have_value("encoder-decoder copy")
    assert query(page)["n_steps"] == "10000"


def test_a_run_draws_its_curves_lets_the_models_copy_and_is_there_after_a_reload(notebook):
    page = notebook("01_convergence", "seq_len=24&n_steps=100&batch_size=8")
    copies = page.get_by_role("table", name="copies")
    expect(copies.get_by_role("row")).to_have_count(3)
    right = re.findall(r"(\d+) of (\d+) right", copies.text_content())
    assert len(right) == 3 and right[0][0] == right[0][1]  # the sequence itself
    live = chart(page, "N = 24, 100 steps, batch 8")
    for colour in (style.PALETTE["softmax"], style.PALETTE["linear"]):
        wait_for(lambda colour=colour: n_pixels(page, live, colour, top=70) > 50)
    expect(page.get_by_text("Runs of this session (2)")).to_be_visible()
    expect(verdict(page)).not_to_contain_text("Nothing has run yet")
    photograph(page, "01_convergence_ran")

    page.reload()
    wait_until_drawn(page)
    expect(page.get_by_text("These settings have been run").first).to_be_visible()
    expect(copies.get_by_role("row")).to_have_count(3)
    wait_for(lambda: n_pixels(page, live, style.PALETTE["linear"], top=70) > 50)


def test_typed_letters_are_copied_anew(notebook):
    page = notebook("01_convergence", "seq_len=24&n_steps=100&batch_size=8&attention=linear")
    copies = page.get_by_role("table", name="copies")
    expect(copies).to_be_visible()
    letters = page.get_by_label("Letters a to j")
    letters.fill("abcd")
    letters.press("Enter")
    given = copies.get_by_role("row").first
    expect(given).to_contain_text("abcd")
    expect(given).to_contain_text("4 of 4 right")
    letters.fill("xyz")
    letters.press("Enter")
    expect(page.get_by_text("type letters from a to j only")).to_be_visible()


def test_stop_ends_a_long_run_and_keeps_its_curve(notebook):
    page = notebook("01_convergence", "seq_len=8&n_steps=10000&batch_size=4&attention=linear")
    start = page.get_by_role("button", name="Run (about")
    wait_for(lambda: start.count() or page.get_by_role("progressbar").count())
    if start.count():  # a fast machine runs it by itself
        start.click()
    progress = page.get_by_role("progressbar")
    expect(progress).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text(re.compile(r"step \d+ of 10000, loss"))
    live = chart(page, "N = 8, 10000 steps, batch 4")
    wait_for(lambda: n_pixels(page, live, style.PALETTE["linear"], top=70) > 10)
    first = progress.get_attribute("value")
    wait_for(lambda: progress.get_attribute("value") != first)
    photograph(page, "01_convergence_running")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("What was computed so far is shown below")).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    wait_for(lambda: n_pixels(page, live, style.PALETTE["linear"], top=70) > 10)
    expect(page.get_by_role("button", name="Run on")).to_be_visible()


def test_an_absurd_address_is_mended_and_said(notebook):
    page = notebook(
        "01_convergence",
        "seq_len=0&n_steps=abc&lr=-1&batch_size=1000000000&attention=foo&task=%3Cb%3Ex",
    )
    for said in (
        "Sequence length: 0 is not offered, 8 used",
        "Steps: 'abc' is no number, 300 used",
        "Learning rate: -1 is not offered, 0.0003 used",
        "Batch size: 1000000000 is not offered, 128 used",
        "Attention: foo unknown, softmax, linear used",
        "Task: <b>x unknown, causal copy used",
    ):
        expect(page.locator("body")).to_contain_text(said)
    wait_for(lambda: query(page).get("n_steps") == "300")
    assert query(page)["batch_size"] == "128"


@pytest.mark.parametrize("stem", QUICK)
def test_a_short_measurement_runs_by_itself_and_its_points_appear(notebook, stem):
    page = notebook(stem, QUICK[stem])
    expect(page.get_by_text(re.compile(r"Runs of this session \(\d+\)"))).to_be_visible()
    expect(page.get_by_text("These settings have been run").first).to_be_visible()
    expect(verdict(page)).not_to_contain_text("Nothing has run yet")
    live = page.locator("canvas.marks").nth(LIVE_CHART[stem])
    wait_for(lambda: n_pixels(page, live, style.PALETTE["linear"], top=90) > 50)
    photograph(page, f"{stem}_ran")


@pytest.mark.parametrize("stem", ["01_convergence", "02_linear_scaling"])
def test_a_click_on_the_legend_singles_out_a_mechanism(notebook, stem):
    page = notebook(stem, RESTING[stem])
    canvas, colour = chart(page, 0), style.PALETTE["linear"]
    before = n_pixels(page, canvas, colour, top=90)
    legend = [(x, y) for x, y in pixels(canvas, style.PALETTE["softmax"]) if y < 70]
    left = min(legend)[0]
    symbol = [(x, y) for x, y in legend if x < left + 10]
    x, y = (sum(place) / len(symbol) for place in zip(*symbol, strict=True))
    canvas.click(position={"x": x, "y": y})
    wait_for(lambda: n_pixels(page, canvas, colour, top=90) < before / 4)
    canvas.click(position={"x": x, "y": y}, modifiers=["Shift"])
    wait_for(lambda: n_pixels(page, canvas, colour, top=90) > before / 2)


def test_the_radio_button_of_a_length_changes_the_chart(notebook):
    page = notebook("01_convergence", RESTING["01_convergence"])
    before = chart(page, 0).screenshot()
    page.get_by_role("radio", name="16").first.check()
    wait_for(lambda: chart(page, 0).screenshot() != before)
    assert n_pixels(page, chart(page, 0), style.PALETTE["linear"], top=90) > 100


def test_a_stream_of_tokens_is_drawn_and_its_length_is_in_the_address(notebook):
    page = notebook("04_transformers_are_rnns", QUICK["04_transformers_are_rnns"])
    drawn = page.locator("[role=graphics-document][aria-label^='1,000 tokens'] canvas.marks")
    wait_for(lambda: n_pixels(page, drawn, style.PALETTE["softmax"], top=90) > 50)
    slider(page, "Tokens").press("ArrowRight")
    wait_for(lambda: query(page)["n_tokens"] == "5000")


def test_a_switch_that_is_moved_is_in_the_address_and_a_preset_moves_all(notebook):
    stem = "05_replication_autopsy"
    page = notebook(stem, f"{RESTING[stem]}&defects=float64")
    page.locator("marimo-switch").filter(has_text="batch 32").get_by_role("switch").click()
    wait_for(lambda: query(page).get("defects") == "float64,batch_32")
    page.get_by_role("button", name="all off").click()
    wait_for(lambda: query(page).get("defects") == "none")


def test_the_model_of_the_extrapolation_moves_its_prediction(notebook):
    stem = "05_replication_autopsy"
    page = notebook(stem, RESTING[stem])

    def predicts(text):
        found = page.locator(f"[role=graphics-document][aria-label*='“predict” N = {text}']")
        return expect(found.first).to_be_visible()

    page.get_by_role("tab", name="Where 3149 comes from").click()
    predicts("3149, 49 times")
    page.locator("marimo-dropdown").filter(has_text="Softmax as").locator("select").select_option(
        label="a + b N + c N²"
    )
    predicts("6219, 97 times")
    assert query(page)["softmax_model"] == "full_quadratic"


def test_a_memory_fills_by_itself_and_as_its_slider_moves_and_a_training_starts(notebook):
    stem = "06_fast_weights"
    query_text = (
        "fill_keys=8&fill_dim=8&fill_again=1&n_keys=5&head_dim=8&n_steps=50&attention=relu,linear"
    )
    page = notebook(stem, query_text)
    writes = page.locator("input[name=writes]")
    wait_for(lambda: writes.input_value() == "9")
    memory = chart(page, "What a memory")
    wait_for(lambda: n_pixels(page, memory, style.PALETTE["dpfp"], top=60) > 50)
    drawn = "canvas => canvas.toDataURL()"
    full = memory.evaluate(drawn)
    writes.press("Home")
    wait_for(lambda: memory.evaluate(drawn) != full)
    for _ in range(9):
        writes.press("ArrowRight")
    wait_for(lambda: memory.evaluate(drawn) == full)

    expect(page.get_by_text("Runs of this session (2)")).to_be_visible()
    live = chart(page, "This session: S = 5, D = 8")
    wait_for(lambda: n_pixels(page, live, style.PALETTE["linear"], top=90) > 50)
    expect(page.get_by_text("These settings have been run").first).to_be_visible()
    photograph(page, f"{stem}_ran")
