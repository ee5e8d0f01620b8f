"""A notebook as one HTML file that opens from `file://` without a network, its charts alive.

`marimo export html` writes a page that loads marimo's front end from a CDN. Here the modules that a
page needs are taken from the installed marimo instead, packed into the page, and made blob URLs by
a short script that names them in an import map: standards that Chromium has since version 89 and
Firefox since 113. What reports do not use (Plotly, Mermaid, data grids, editors) is left out.
"""

import base64
import gzip
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from replib.pages.failures import STYLE

MARIMO = "0.25.2"  # the version whose assets and pages are known here
MAX_BYTES = 6_000_000  # of a page: what can still be sent by e-mail
# Modules that marimo loads when it needs them and a report does need, by the start of their names;
# KaTeX only where there is a formula.
LOADED_LATER = ("run-page-", "vega-component-", "vega-embed-container-", "web-vitals-")
FORMULA, KATEX = "marimo-tex", ("katex-", "mhchem-")
MODULE = r"[\w.-]+\.js"
STATIC_IMPORT = re.compile(rf'(\b(?:from|import)\s*)(["`\'])\./({MODULE})\2')
LATER_IMPORT = re.compile(rf'(\bimport\(\s*)(["`\'])\./({MODULE})\2')
FONT_FACE = re.compile(r"@font-face\s*\{[^}]*\}")
# What a screen reader and a reader of low contrast need, and marimo's front end lacks.
MENU, NAMED_MENU = (
    '<svg viewBox="0 0 16 16"',
    '<svg role="img" aria-label="save chart" viewBox="0 0 16 16"',
)
NOT_CONNECTED = re.compile(r"\{\w+\(\{id:\w+,once:!0,title:`Static notebook`[^}]*\}\)\}")
CONTRAST = (Path(__file__).parent / "contrast.css").read_text(encoding="utf-8")
CONFIG_MARK = '"__MARIMO_MOUNT_CONFIG__", {'
RANDOM_ID = re.compile(r"(random-id='?\"?)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Page = dict[str, Any]
"""What marimo mounts: the notebook, its outputs ("session") and the configuration."""

LOADER = (Path(__file__).parent / "loader.js").read_text(encoding="utf-8")


def export(notebook: Path, arguments: Sequence[str] = ()) -> tuple[Page, str]:
    """Run a notebook with `-- --static`; what marimo mounts, and the page around it.

    Raises:
        ValueError: marimo is not of the known version, or the notebook did not run to its end.
    """
    _check_version()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        # Without the reader's own marimo settings, which would travel with the page.
        environment = os.environ | {"XDG_CONFIG_HOME": folder}
        command = [sys.executable, "-m", "marimo", "-q", "-y", "-l", "ERROR", "export", "html"]
        command += [str(notebook), "--no-include-code", "--force", "-o", str(page)]
        command += ["--", "--static", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if not page.exists():
            raise ValueError(f"{notebook.name} did not run to its end:\n{done.stderr.strip()}")
        text = page.read_text()
    before, config, after = _split(text)
    if done.returncode:
        raise ValueError(f"{notebook.name}: {_what_failed(config) or done.stderr.strip()}")
    return config, f"{before}\0{after}"


def offline_page(config: Page, around: str, header: str = "", footer: str = "") -> str:
    """The page as one file; `header` and `footer` (HTML) become its first and last cells.

    Raises:
        ValueError: marimo's assets are not as known, or the page is larger than MAX_BYTES.
    """
    config = _numbered(_between(config, header, footer))
    formulas = FORMULA in json.dumps(config["session"])
    entry, modules, css = _front_end(formulas)
    packed = _packed({"entry": entry, "modules": modules, "css": css, "config": config})
    before, after = (_without_links(part) for part in around.split("\0"))
    script = (
        f'<script type="application/octet-stream" id="packed">{packed}</script>'
        f"<script>{LOADER}</script>"
    )
    page = f"{before}{script}{after}"
    if "cdn.jsdelivr.net" in page or page.count('<div id="root">') != 1:
        raise ValueError(_unlike("the exported page"))
    page = page.replace('<div id="root">', '<div id="root" role="main">Unpacking the page …')
    if len(page.encode()) > MAX_BYTES:
        raise ValueError(
            f"{config['filename']}: the page has {len(page.encode()) / 1e6:.1f} MB, more than "
            f"{MAX_BYTES / 1e6:.0f}: show fewer points or fewer charts"
        )
    return page


def _packed(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _split(text: str) -> tuple[str, Page, str]:
    """The exported page before the script that says what to mount, that, and after the script."""
    at = text.find(CONFIG_MARK)
    begin, end = text.rfind("<script", 0, at), text.find("</script>", at)
    value = text.find("{", at + len(CONFIG_MARK))
    if at < 0 or begin < 0 or end < 0 or value < 0:
        raise ValueError(_unlike("the exported page"))
    config, _ = json.JSONDecoder().raw_decode(text, value)
    return text[:begin], config, text[end + len("</script>") :]


def _what_failed(config: Page) -> str:
    """The message of the cell that raised; the cells after it only say that it did."""
    outputs = [output for cell in config["session"]["cells"] for output in cell["outputs"]]
    errors = [str(output["evalue"]) for output in outputs if output["type"] == "error"]
    return next((text for text in errors if not text.startswith("An ancestor raised")), "")


def _without_links(part: str) -> str:
    """Without what would be loaded: style sheets, fonts, icons and the entry module."""
    part = re.sub(r"\s*<link\b[^>]*>", "", part)
    return re.sub(r'\s*<script type="module"[^>]*></script>', "", part)


def _between(config: Page, header: str, footer: str) -> Page:
    cells, shown = config["notebook"]["cells"], config["session"]["cells"]
    for place, text in ((0, header), (len(cells) + 1, footer)):
        name = {"id": f"added{place}", "code_hash": f"added{place}"}
        styled = f'<style>{STYLE}</style><div class="r-footer">{text}</div>'
        output = {"type": "data", "data": {"text/html": styled}}
        cells = [*cells[:place], cells[0] | name, *cells[place:]]
        shown = [*shown[:place], name | {"console": [], "outputs": [output]}, *shown[place:]]
    return config | {
        "notebook": config["notebook"] | {"cells": cells},
        "session": config["session"] | {"cells": shown},
    }


def _numbered(config: Page) -> Page:
    """With the random ids of elements replaced by their order, so that pages can be compared."""
    numbers = itertools.count(1)
    text = RANDOM_ID.sub(
        lambda found: f"{found[1]}00000000-0000-0000-0000-{next(numbers):012d}",
        json.dumps(config["session"]),
    )
    return config | {"session": json.loads(text)}


def _check_version() -> None:
    found = version("marimo")
    if found != MARIMO:
        raise ValueError(
            f"marimo {found}: offline pages are made from the files of marimo {MARIMO}; "
            "pip install -r requirements.txt"
        )


def _unlike(what: str) -> str:
    return f"{what} is not as marimo {MARIMO} makes it: pip install -r requirements.txt"


@lru_cache(maxsize=2)
def _front_end(formulas: bool) -> tuple[str, dict[str, str], str]:
    """The entry module's name, every module by name, and the style sheet."""
    _check_version()
    folder = Path(find_spec("marimo").origin).parent / "_static"
    index = folder / "index.html"
    entry = re.search(rf'<script type="module"[^>]*\./assets/({MODULE})"', index.read_text())
    if not entry:
        raise ValueError(_unlike(str(index)))
    assets, wanted = folder / "assets", LOADED_LATER + KATEX * formulas
    modules = dict(_modules(assets, entry[1], wanted))
    for start in wanted:
        if not any(name.startswith(start) for name in modules):
            raise ValueError(_unlike(f"marimo's front end, without {start}*.js,"))
    first = re.findall(r'<link rel="stylesheet"[^>]*\./assets/([^"]+)"', index.read_text())
    chunks = {_chunk(name) for name in modules}
    others = [path.name for path in sorted(assets.glob("*.css")) if _chunk(path.name) in chunks]
    css = "\n".join(_style(assets, name, formulas) for name in dict.fromkeys([*first, *others]))
    return entry[1], modules, css + CONTRAST


def _modules(assets: Path, entry: str, wanted: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each module that the entry needs, and its source with names of the import map."""
    seen, todo = set(), [entry]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        source = _read(assets / name)
        todo += [found[3] for found in STATIC_IMPORT.finditer(source)]
        later = (found[3] for found in LATER_IMPORT.finditer(source))
        todo += [module for module in later if module.startswith(wanted)]
        if name.startswith("preload-helper-"):
            # It adds links to files that are not there; what is left is to call the import.
            if not source.rstrip().endswith("export{n as t};"):
                raise ValueError(_unlike(name))
            source = "export const t = (load) => load();"
        source = STATIC_IMPORT.sub(r"\1\2m/\3\2", source)
        source = LATER_IMPORT.sub(r"\1\2m/\3\2", source)
        # marimo's icon lies beside its own pages.
        source = source.replace("./favicon.ico", "data:,")
        # It says at the first click that nothing can be operated, and charts, tabs and legends can.
        source = NOT_CONNECTED.sub("{}", source)
        if name.startswith("react-vega-"):
            if MENU not in source:
                raise ValueError(_unlike(name))
            source = source.replace(MENU, NAMED_MENU)
        yield name, source.replace("import.meta.url", "document.baseURI")


def _chunk(name: str) -> str:
    """`layout` of `layout-DmcNEu3P.js` and of `layout-D-WxHzKd.css`."""
    return re.sub(r"-[\w-]{8}\.(js|css)$", "", name)


def _style(assets: Path, name: str, formulas: bool) -> str:
    """A style sheet with its fonts inside, those of formulas only where there are formulas."""

    def face(found: re.Match) -> str:
        font = re.search(r"url\(\./([\w-]+\.woff2)\)", found[0])
        if not font or (font[1].startswith("KaTeX") and not formulas):
            return found[0] if not font else ""
        data = base64.b64encode(_read_bytes(assets / font[1])).decode()
        source = f'src:url(data:font/woff2;base64,{data}) format("woff2")'
        return re.sub(r"src:[^;}]*url\([^;}]*", source, found[0])

    text = FONT_FACE.sub(face, _read(assets / name))
    return re.sub(r"url\(\./[^)]*\)", "none", text)  # pictures of a page without its kernel


def _read(path: Path) -> str:
    return _read_bytes(path).decode()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(_unlike(f"marimo's front end, without {path.name},")) from error
