"""A cell that fails on a served page says so where its output would be."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest
from marimo._messaging.errors import MarimoAncestorPreventedError, MarimoExceptionRaisedError

from replib.pages.failures import failure_html

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
PATIENCE_S = 60.0  # for a machine that has other work; nothing is concluded from it
NOTEBOOK = """
import marimo

app = marimo.App()

with app.setup(hide_code=True):
    import marimo as mo

    from replib.pages import layout


@app.cell(hide_code=True)
def _():
    recorded = {"linear": 1}["<img src=x>"]
    return (recorded,)


@app.cell(hide_code=True)
def _(recorded):
    mo.md(f"what {recorded} holds")
    return


@app.cell(hide_code=True)
def _():
    mo.md("another part")
    return


if __name__ == "__main__":
    app.run()
"""


def test_the_line_says_what_is_wrong_and_renders_nothing_of_it():
    raised = MarimoExceptionRaisedError(
        msg="<img src=x>", exception_type="KeyError", raising_cell=None
    )
    line = failure_html([raised, raised])
    assert line.count("KeyError: &lt;img src=x&gt;") == 1 and "<img" not in line
    after = MarimoAncestorPreventedError(msg="", raising_cell="a", blamed_cell=None)
    assert "a part of the page that it needs failed" in failure_html([after])
    assert failure_html([]) == ""


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: see README")
def test_a_failing_cell_leaves_a_line_on_a_served_page(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (tmp_path / "broken.py").write_text(NOTEBOOK)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "marimo", "-q", "-y", "run", "broken.py", "--headless"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **output)
    try:
        url, ends = f"http://127.0.0.1:{port}/", time.monotonic() + PATIENCE_S
        while time.monotonic() < ends and server.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{url}health", timeout=5):
                break
            time.sleep(0.2)
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(1000 * PATIENCE_S)
            page.goto(url)
            page.get_by_text("another part").wait_for()
            page.get_by_text("This part of the page failed: KeyError: '<img src=x>'").wait_for()
            page.get_by_text("a part of the page that it needs failed").wait_for()
            assert page.locator("img[src=x]").count() == 0
            browser.close()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
