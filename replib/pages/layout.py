"""How a page is laid out: its parts side by side, links between pages, and what a static page,
which has no kernel behind it later, leaves out."""

import html
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import marimo as mo

from replib.lab import recorded
from replib.lab.store import Row
from replib.lab.verdict import (
    by_device,
)
from replib.pages import failures
from replib.pages.failures import STYLE

failures.show_on_pages()


def styled(text: str) -> mo.Html:
    """HTML with the classes of `style.css`."""
    return mo.Html(f"<style>{STYLE}</style>{text}")


def grid(cells: Iterable[Any], least: str, label: str = "") -> mo.Html:
    """Cells side by side, as many as are at least so wide."""
    role = f'role="group" aria-label="{label}" ' if label else ""
    texts = (cell if isinstance(cell, str) else mo.as_html(cell).text for cell in cells)
    body = "".join(f"<div>{text}</div>" for text in texts)
    return styled(f'<div class="r-grid" {role}style="--least:{least}">{body}</div>')


def plain(text: str) -> mo.Html:
    """Words from outside, shown as they are: as Markdown, a shared URL could bring links along."""
    return mo.Html(f"<span>{html.escape(text)}</span>")


def callout(text: str, kind: str = "warn") -> mo.Html:
    return mo.callout(plain(text), kind=kind)


def unseen(element) -> mo.Html:
    """An element that works and is not shown, such as a ticker; nothing where it is None."""
    return styled(f'<div class="r-hidden">{"" if element is None else element}</div>')


def live_only(*parts) -> mo.Html:
    """Parts one above the other; nothing in a static page that has no run of its own to show."""
    return mo.md("") if in_static_page() and not has_own_run() else mo.vstack(parts)


def inputs(*elements) -> mo.Html:
    """Elements side by side; nothing in a static page, where they would do nothing."""
    return mo.md("") if in_static_page() else mo.hstack(elements, justify="start", wrap=True)


def later(make: Callable[[], Any]) -> Any:
    """What is made when it comes into view; at once in a static page, where nobody could later."""
    return make() if in_static_page() else mo.lazy(make)


def in_static_page() -> bool:
    """Whether the page is being exported (`-- --static`) and has no kernel behind it later."""
    return "--static" in sys.argv or "static" in _arguments()


def has_own_run() -> bool:
    """Whether a static page was asked for with parameters, and so shows a run with them."""
    return in_static_page() and bool(asked_parameters())


def asked_parameters() -> list[str]:
    """The parameters that a command line names, beside `--static`."""
    return [name for name in _arguments() if name != "static"]


def _arguments() -> dict[str, Any]:
    """What the command line gave the notebook; nothing outside of one."""
    return mo.cli_args().to_dict() if mo.running_in_notebook() else {}


def page_head(notebook: str, pages: Mapping[str, str]) -> mo.Html:
    """Links to the start page and to the pages before and after a notebook's; nothing where there
    are none, as of a notebook that is served alone.

    Args:
        pages: the notebook of each page by its short address, in order.
    """
    if in_static_page():
        places = {address: f"{stem}.html" for address, stem in pages.items()}
        return styled(links(notebook, pages, "index.html", places))
    return styled(links(notebook, pages)) if _served_at() in pages else mo.md("")


def links(
    notebook: str,
    pages: Mapping[str, str],
    home: str = "../",
    places: Mapping[str, str] | None = None,
) -> str:
    """The links of `page_head` as HTML, to the places of pages by their short address; on the
    server's pages if none are given."""
    places = places or {address: f"../{address}" for address in pages}
    addresses = list(pages)
    here = list(pages.values()).index(notebook)
    shown = [f'<a href="{home}">Start</a>']
    if here:
        before = addresses[here - 1]
        shown.append(f'<a rel="prev" href="{places[before]}">← {before.capitalize()}</a>')
    if here + 1 < len(addresses):
        after = addresses[here + 1]
        shown.append(f'<a rel="next" href="{places[after]}">{after.capitalize()} →</a>')
    return f'<nav class="r-nav" aria-label="Pages">{"".join(shown)}</nav>'


def _served_at() -> str:
    """The last part of the page's address; "" where there is none."""
    request = mo.app_meta().request if mo.running_in_notebook() else None
    path = request.url["path"].removesuffix("/ws") if request else ""
    return path.strip("/").rpartition("/")[2]


def unread(*experiments: str) -> mo.Html:
    """What of recorded rows is not on the page, as the code cannot use it or computes otherwise
    since; nothing where all is."""
    skipped, old = (
        [text for name in experiments if (text := ask(name))]
        for ask in (recorded.skipped, recorded.left_out)
    )
    said = [callout(text) for text in skipped]
    said += [mo.Html(f'<div class="r-note">{html.escape(text)}</div>') for text in old]
    return mo.vstack(said) if said else mo.md("")


def device_tabs(rows: Sequence[Row], show: Callable[[Sequence[Row]], Any]) -> mo.Html:
    """What `show` makes of the rows of each device, a tab each where there are several."""
    devices = by_device(rows)
    if len(devices) < 2:
        return mo.as_html(show(rows))
    return mo.ui.tabs({device: show(some) for device, some in devices.items()})
