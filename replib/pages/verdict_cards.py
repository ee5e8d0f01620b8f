"""Verdict cards: what each source says of a claim, side by side."""

import html
from collections.abc import Callable, Mapping, Sequence

import marimo as mo

from replib.lab.verdict import (
    INCONCLUSIVE,
    NOT_SUPPORTED,
    SUPPORTED,
    Verdict,
)
from replib.pages import layout

REFUTED, SO_FAR = "refuted", "so far"  # statuses of cards alone
NOTHING_RUN = "Nothing has run yet with these settings."
THIS_MACHINE = "This machine"  # the column of a card for runs of this session

# A sign and the classes of `style.css`; of what is open a question mark.
_LABELS = {
    SUPPORTED: ("✓", "r-status r-supported"),
    NOT_SUPPORTED: ("✗", "r-status r-not-supported"),
    REFUTED: ("≠", "r-status r-refuted"),
    SO_FAR: ("…", "r-status"),
}
_OPEN = "?", "r-status"


def verdict_card(
    claim: str,
    columns: Sequence[tuple[str, Verdict | str]],
    more: Mapping[str, str] | None = None,
    refutes: bool = False,
) -> mo.Html:
    """A claim, and side by side what each source says of it: a text, or a verdict. What else they
    say (`more`), the headlines and the criteria are folded below. A static page says of
    THIS_MACHINE what it ran for that page alone, and not what is in the cache."""
    if layout.in_static_page():
        columns = [
            (title, said)
            for title, said in columns
            if title != THIS_MACHINE or (layout.has_own_run() and said != NOTHING_RUN)
        ]
    cells = "".join(_column(title, said, refutes) for title, said in columns)
    below = "".join(_folded(f"<p>{html.escape(x)}</p>", by) for by, x in (more or {}).items())
    below += "".join(
        _folded(verdict_lines(said), title) for title, said in columns if isinstance(said, Verdict)
    )
    said = html.escape(claim)
    return layout.styled(
        f'<section role="group" class="r-card" aria-label="Verdict: {said}"><p>{said}</p>'
        f'<div class="r-columns">{cells}</div><details class="r-criteria">'
        f"<summary>Criteria and evidence</summary>{below}</details></section>"
    )


def _column(title: str, said: Verdict | str, refutes: bool) -> str:
    if isinstance(said, str):
        body = f"<p>{html.escape(said)}</p>"
    else:
        body = verdict_html(said, refutes, live=title == THIS_MACHINE)
    return f'<div class="r-column"><strong>{html.escape(title)}</strong>{body}</div>'


def _folded(body: str, title: str) -> str:
    return f"<strong>{html.escape(title)}</strong>{body}"


def verdict_html(
    said: Verdict,
    refutes: bool = False,
    live: bool = False,
    markup: Callable[[str], str] = html.escape,
) -> str:
    """A verdict's label and answer, of which `markup` makes HTML; what cannot be told of runs of
    this session may be told after more of them."""
    label = SO_FAR if live and said.status == INCONCLUSIVE else label_of(said, refutes)
    sign, classes = _LABELS.get(label, _OPEN)
    return f'<p><span class="{classes}">{sign} {label}</span></p><p>{markup(said.says)}</p>'


def label_of(said: Verdict, refutes: bool) -> str:
    """A verdict's label; a negative result that is not supported is refuted."""
    return REFUTED if refutes and said.status == NOT_SUPPORTED else said.label


def verdict_lines(said: Verdict) -> str:
    """A verdict's headline where it is not its answer, its criteria, each with whether it is met,
    and its evidence."""
    apart = bool(said.answer) and said.answer != said.headline
    lines = [said.headline] * apart + list(said.lines)
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul class='r-list'>{items}</ul>"
