"""What only the start page shows of the claims: an answer a line, and a card a page."""

import base64
import html
import re
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
WORDS = {  # of answers, as a pattern, with the entry of the glossary that says what they mean
    r"N\^-?\d+\.\d+": "Scaling exponent",
    r"(?<=[Ll]inear )cpu": "Kernel",
    r"textbook|fused": "Textbook, fused",
    r"cache": "Cache",
    r"bits per dimension": "Bits per dimension",
    r"without the defects": "Mended, broken",
    r"solve|right to the letter": "Solved",
    r"(?<=solve )S\b": "S keys",
    r"DPFP-\d": "DPFP",
    r"FAVOR\+": "FAVOR+",
    r"features R\b|R features": "N",
    r"delta": "Delta rule",
    r"\bsum\b": "Sum",
    r"\bfwm\b": "fwm",
    r"linformer k\d": "Linformer",
    r"[Pp]erplexity": "Perplexity",
    r"nats": "Nats",
}
ADDRESSES = {notebook: address for address, notebook in PAGES.items()}


def answers(link: Callable[[Claim, str], str] | None = None) -> mo.Html:
    """Each claim's label and what the recorded rows say of it, with the device; `link` makes one
    of a claim and a text where the pages are not those of the server, and have no glossary."""
    more = "" if link else ' More words are in the <a class="r-word" href="#glossary">glossary</a>.'
    markup = html.escape if link else with_words
    link = link or _link
    lines, devices = "", set()
    for recorded, one in _listed():
        if recorded.rows[one.experiments[0]]:
            devices.add(recorded.device(one))
        said = verdict_cards.verdict_html(recorded.verdict(one), one.refutes, markup=markup)
        lines += f"<li>{link(recorded.claim, html.escape(one.title))}{said}</li>"
    told = f"Recorded on {'; '.join(sorted(devices))}. Each answer follows from written criteria."
    told += more
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


def with_words(answer: str) -> str:
    """An answer as HTML, in which the first use of each of WORDS leads to its entry."""
    entries, linked = list(WORDS.values()), set()

    def link(found: re.Match) -> str:
        entry = entries[found.lastindex - 1]
        if entry in linked:
            return found[0]
        linked.add(entry)
        return f'<a class="r-word" href="#{place_of(entry)}">{found[0]}</a>'

    return re.sub("|".join(f"({pattern})" for pattern in WORDS), link, html.escape(answer))


def place_of(entry: str) -> str:
    """Where on the start page an entry of the glossary stands."""
    return "-".join(["word", *re.findall(r"\w+", entry.lower())])


def glossary() -> mo.Html:
    """The words that pages use; others link to it as `/#glossary`, and to an entry's `place_of`."""
    _, _, text = (files.ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").partition("\n")
    entries = re.sub(
        r"<li>\s*<strong>(.*?)</strong>",
        lambda found: f'<li id="{place_of(found[1])}"><strong>{found[1]}</strong>',
        mo.md(text).text,
    )
    return layout.styled(
        f'<details id="glossary" class="r-glossary"><summary>Glossary</summary>{entries}</details>'
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
