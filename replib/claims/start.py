"""What only the start page shows of the claims: an answer a line, and a card a page."""

import base64
import html
from collections.abc import Callable, Iterator

import marimo as mo

from replib import files
from replib.claims import CLAIMS, PAGES
from replib.claims.claim import Claim, Recorded, Statement
from replib.pages import layout, verdict_cards

NOTEBOOK = "00_start"
QUESTION = "Does linear attention really do what the paper says?"
ANSWER = "The answer as it stands"
CARDS = files.ROOT / "figures" / "cards"
ADDRESSES = {notebook: address for address, notebook in PAGES.items()}


def answers(link: Callable[[Claim, str], str] | None = None) -> mo.Html:
    """Each claim's status and what the recorded rows say of it, with the device; `link` makes one
    of a claim and a text where the pages are not those of the server."""
    link = link or _link
    lines, devices = "", set()
    for recorded, one in _listed():
        if recorded.rows[one.experiments[0]]:
            devices.add(recorded.device(one))
        said = verdict_cards.verdict_html(recorded.verdict(one), one.refutes)
        lines += f"<li>{link(recorded.claim, html.escape(one.title))}{said}</li>"
    told = f"Recorded on {'; '.join(sorted(devices))}. Each answer follows from written criteria."
    return layout.styled(f'<ul class="r-answers">{lines}</ul><p class="r-note">{told}</p>')


def cards() -> mo.Html:
    """A card a page: its picture and the first sentence that it judges."""
    of_page: dict[str, Statement] = {}
    for recorded, one in _listed():
        of_page.setdefault(recorded.claim.notebook, one)
    return layout.grid((_card(*page) for page in of_page.items()), "19rem", "Pages")


def opening(notebook: str) -> str:
    """What the page of a notebook shows before marimo has loaded, as HTML: its question, and the
    recorded verdicts."""
    if notebook == NOTEBOOK:
        return f"<h1>{QUESTION}</h1><h2>{ANSWER}</h2>{answers().text}"
    claim = next(one for one in CLAIMS if one.notebook == notebook)
    head = f"<h1>{html.escape(claim.question)}</h1>{layout.links(notebook, PAGES)}"
    return head + claim.recorded().cards().text


def glossary() -> mo.Html:
    """The words that pages use; others link to it as `/#glossary`."""
    _, _, text = (files.ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").partition("\n")
    return layout.styled(
        '<details id="glossary" class="r-glossary"><summary>Glossary</summary>'
        f"{mo.md(text).text}</details>"
    )


def _listed() -> Iterator[tuple[Recorded, Statement]]:
    for claim in CLAIMS:
        recorded = claim.recorded()
        yield from ((recorded, one) for one in claim.listed)


def _card(notebook: str, statement: Statement) -> str:
    address = ADDRESSES[notebook]
    picture = CARDS / f"{address}.png"
    shown = ""
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode()
        shown = f'<img alt="" src="data:image/png;base64,{data}">'
    return (
        f'<a class="r-page" href="./{address}">{shown}<div><strong>{address.capitalize()}</strong>'
        f"<p>{html.escape(statement.text)}</p></div></a>"
    )


def _link(claim: Claim, text: str) -> str:
    return f'<a href="./{ADDRESSES[claim.notebook]}">{text}</a>'
