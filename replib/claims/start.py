"""What only the start page shows of the claims: an answer a line, and a card a page."""

import base64
import html
from collections.abc import Iterator

import marimo as mo

from replib import files
from replib.claims import CLAIMS, PAGES
from replib.claims.claim import Claim, Recorded, Statement
from replib.pages import controls

CARDS = files.ROOT / "figures" / "cards"
ADDRESSES = {notebook: address for address, notebook in PAGES.items()}


def answers() -> mo.Html:
    """Each claim's status and what the recorded rows say of it, with the device."""
    lines, devices = "", set()
    for recorded, one in _listed():
        devices.add(recorded.device(one))
        said = controls.verdict_html(recorded.verdict(one), one.refutes)
        lines += f"<li>{_link(recorded.claim, html.escape(one.title))}{said}</li>"
    told = f"Recorded on {'; '.join(sorted(devices))}. Each answer follows from written criteria."
    return controls.styled(f'<ul class="r-answers">{lines}</ul><p class="r-note">{told}</p>')


def cards() -> mo.Html:
    """A card a page: its picture and the sentences that it judges."""
    of_page: dict[str, list[Statement]] = {}
    for recorded, one in _listed():
        of_page.setdefault(recorded.claim.notebook, []).append(one)
    return controls.grid((_card(*page) for page in of_page.items()), "17rem", "Pages")


def glossary() -> mo.Html:
    """The words that pages use; others link to it as `/#glossary`."""
    words = mo.md((files.ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"))
    return controls.styled(f'<section id="glossary" class="r-glossary">{words}</section>')


def _listed() -> Iterator[tuple[Recorded, Statement]]:
    for claim in CLAIMS:
        recorded = claim.recorded()
        yield from ((recorded, one) for one in claim.listed)


def _card(notebook: str, statements: list[Statement]) -> str:
    address = ADDRESSES[notebook]
    picture = CARDS / f"{address}.png"
    shown = ""
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode()
        shown = f'<img alt="" src="data:image/png;base64,{data}">'
    texts = "".join(f"<p>{html.escape(one.text)}</p>" for one in statements)
    return (
        f'<a class="r-page" href="./{address}">{shown}'
        f"<strong>{address.capitalize()}</strong>{texts}</a>"
    )


def _link(claim: Claim, text: str) -> str:
    return f'<a href="./{ADDRESSES[claim.notebook]}">{text}</a>'
