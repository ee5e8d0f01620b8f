"""The site of the notebooks: its addresses, and whom it answers."""

import http.client
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from replib.pages import server

PATIENCE_S = 60.0  # for a machine that has other work; nothing is concluded from it
MOST = 3
TOKEN = "a-token-for-tests"
NOTEBOOK = """
import marimo

app = marimo.App(app_title="{title}")


@app.cell
def _():
    import marimo as mo

    mo.md("the length is " + mo.query_params().get("seq_len", "unknown"))
    return


if __name__ == "__main__":
    app.run()
"""
PROGRAM = """
import sys
import time
from pathlib import Path
from replib.pages import server

folder, token = Path(sys.argv[1]), sys.argv[2] or None
def slow():
    time.sleep(5)
    return "late"

def failing():
    raise ValueError("no verdict")

pages = {
    "": server.Page(folder / "start.py", lambda: "<h1>asked</h1>", ".drawn"),
    "other": server.Page(folder / "other.py"),
    "slow": server.Page(folder / "other.py", slow),
    "failing": server.Page(folder / "other.py", failing),
}
site = server.application(pages, token=token, max_sessions=int(sys.argv[3]))
listener = server.listening("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
server.run(site, listener, browser=None, warm=lambda: None)
"""


@contextmanager
def serving(folder, token=""):
    """The port of a server of two small notebooks in a process of its own."""
    for name in ("start", "other"):
        (folder / f"{name}.py").write_text(NOTEBOOK.format(title=name))
    command = [sys.executable, "-c", PROGRAM, str(folder), token, str(MOST)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("open")) as port:
        yield port


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The port of a server that wants TOKEN."""
    with serving(tmp_path_factory.mktemp("guarded"), TOKEN) as port:
        yield port


def ask(port, path="/", method="GET", **headers):
    """The status, the headers and the text of an answer."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def open_page(port, session, path="", origin="http://127.0.0.1:{port}", **headers):
    """The websocket of a page."""
    return connect(
        f"ws://127.0.0.1:{port}{path}/ws?session_id={session}&seq_len=64",
        origin=origin and origin.format(port=port),
        additional_headers=headers,
        open_timeout=PATIENCE_S,
    )


def refused(port, session, **options):
    """The status with which a page's websocket is refused."""
    with pytest.raises(InvalidStatus) as found, open_page(port, session, **options):
        pass
    return found.value.response.status_code


def test_each_notebook_has_its_address_and_gets_what_the_address_asks_for(port):
    for path, title in (("/", "start"), ("/other/", "other")):
        status, _, text = ask(port, path)
        assert status == 200 and f"<title>{title}</title>" in text
    status, headers, _ = ask(port, "/other?seq_len=64")
    assert status == 307 and headers["location"] == "/other/?seq_len=64"
    assert ask(port, "/nowhere")[0] == 404
    assets = {re.findall(r'src="(\S*?)assets/index-', ask(port, p)[2])[0] for p in ("/", "/other/")}
    assert assets == {"./", "../"}  # one and the same place
    with open_page(port, "asks", path="/other") as page:
        while "the length is 64" not in page.recv(timeout=PATIENCE_S):
            pass


def test_what_a_page_answers_stands_in_it_unless_that_is_slow_or_fails(port):
    shown = ask(port)[2]
    assert shown.index("<h1>asked</h1>") < shown.index('<div id="root">')
    assert '"#root .drawn"' in shown and "{{" not in shown.partition('<div id="root">')[0]
    for path in ("/other/", "/slow/", "/failing/"):
        status, _, text = ask(port, path)
        assert status == 200 and 'id="opening"' not in text and '<div id="root">' in text


def test_the_files_that_all_pages_need_are_kept_by_browsers(port):
    name = re.findall(r"assets/(index-\S*?\.js)", ask(port)[2])[0]
    status, headers, _ = ask(port, f"/assets/{name}")
    assert status == 200 and "immutable" in headers["cache-control"]
    assert headers["content-type"].startswith("text/javascript")
    for name in ("nothing.js", "..%2Findex.html", ".."):
        assert ask(port, f"/assets/{name}")[0] == 404


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_loopback_names_are_answered(port, host):
    assert ask(port, Host=f"{host}:{port}")[0] == 200
    assert ask(port, Host=f"{host}:{port}", Origin=f"http://{host}:{port}")[0] == 200


def test_another_name_that_leads_here_is_refused(port):
    assert ask(port, Host="evil.example")[0] == 400
    assert refused(port, "a", origin="http://evil.example", Host="evil.example") in (400, 403)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://["]
)
def test_a_page_of_another_origin_is_refused(port, origin):
    post = "/api/kernel/set_ui_element_value"
    assert ask(port, post, method="POST", Origin=origin)[0] == 403
    assert ask(port, Origin=origin)[0] == 403
    assert refused(port, "b", origin=origin) == 403
    own = ask(port, post, method="POST", Origin=f"http://127.0.0.1:{port}")
    assert own[0] not in (403, 404)


def test_another_site_can_link_here_and_neither_embed_nor_frame(port):
    image = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}
    assert ask(port, "/sse?session_id=c", **image)[0] == 403
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    status, headers, _ = ask(port, **link)
    assert status == 200
    assert headers["content-security-policy"] == "frame-ancestors 'self'"
    assert headers["x-frame-options"] == "SAMEORIGIN"


def test_so_many_pages_are_open_and_one_that_was_closed_makes_room(tmp_path):
    with serving(tmp_path) as port, ExitStack() as pages:
        for i in range(MOST):
            page = pages.enter_context(open_page(port, f"page{i}", path="/other" * (i % 2)))
            page.recv(timeout=PATIENCE_S)
        assert refused(port, "one_more") == 503
        page.close()
        deadline = time.monotonic() + PATIENCE_S
        while True:  # until the server has noticed
            try:
                page = pages.enter_context(open_page(port, "one_more"))
                break
            except InvalidStatus:
                assert time.monotonic() < deadline
        assert page.recv(timeout=PATIENCE_S)


def test_a_token_is_brought_along_once(guarded):
    assert ask(guarded)[0] == 401
    assert ask(guarded, "/other/?token=wrong")[0] == 401
    assert ask(guarded, "/assets/", Cookie=f"replib_{guarded}=wrong")[0] == 401
    assert refused(guarded, "a") == 401
    assert refused(guarded, "a", Cookie=f"replib_{guarded}=wrong") == 401
    status, headers, _ = ask(guarded, f"/other/?seq_len=64&token={TOKEN}")
    assert status == 303 and headers["location"] == "/other/?seq_len=64"
    cookie = headers["set-cookie"].partition(";")[0]
    assert "httponly" in headers["set-cookie"].lower() and TOKEN not in cookie
    assert ask(guarded, Cookie=cookie)[0] == 200
    with open_page(guarded, "b", Cookie=cookie) as page:
        assert page.recv(timeout=PATIENCE_S)
    assert refused(guarded, "c", Cookie=cookie, origin="http://evil.example") == 403


def test_a_host_that_others_reach_wants_a_token():
    for host in ("0.0.0.0", "::", "192.168.1.5", "lab.example"):
        with pytest.raises(ValueError, match="use --token"):
            server.application({}, host=host)
    with pytest.raises(ValueError, match="at least 8"):
        server.application({}, token="short")
    assert server.is_loopback("127.0.0.1") and server.is_loopback("localhost")


def test_a_port_that_is_taken_is_passed_over():
    with server.listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with server.listening("127.0.0.1", port) as other:
            assert port < other.getsockname()[1] < port + 100
    with pytest.raises(ValueError, match="use 127.0.0.1"):
        server.listening("no.such.host.example", 0)


def test_the_address_is_one_that_this_machine_opens():
    assert server.address("127.0.0.1", 2718, None) == "http://127.0.0.1:2718/"
    assert server.address("::1", 2718, None) == "http://[::1]:2718/"
    assert server.address("0.0.0.0", 2718, "a b") == "http://127.0.0.1:2718/?token=a+b"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a signal cannot be sent to one process")
def test_serve_opens_the_start_page_and_ends_with_a_line():
    command = [sys.executable, "-m", "replib", "serve", "--no-browser", "--port", "0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    try:
        said = process.stdout.readline()
        with urllib.request.urlopen(said.split()[5], timeout=PATIENCE_S) as answer:
            assert "Does linear attention" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert process.stderr.read() == "replib: ended; what was recorded is kept\n"
    finally:
        process.kill()


@pytest.mark.slow
def test_serve_for_other_machines_wants_a_token():
    command = [sys.executable, "-m", "replib", "serve", "--no-browser", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2 and "use --token" in done.stderr
