"""The report's index in one file: the answer to each claim, and its figure."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from replib.claims.claim import Recorded, Statement
from replib.pages import controls
from replib.pages.failures import STYLE

TITLE = "Does linear attention do what the paper says?"
SUBJECT = (
    "a reproduction of <i>Transformers are RNNs: Fast Autoregressive Transformers with Linear "
    "Attention</i> (Katharopoulos et al. 2020), beside the replication of 2022 (Do &amp; Bergner)"
)


def index_page(
    recorded: Sequence[Recorded],
    drawn: Mapping[str, str],
    sources: Mapping[str, Sequence[str]],
    made_from: str,
) -> str:
    """The index as one HTML file.

    Args:
        drawn: the SVG of each figure that stands for a statement, by its name.
        sources: what every figure was drawn from, by its name.
    """
    listed = [(one, statement) for one in recorded for statement in one.claim.listed]
    devices = sorted({one.device(statement) for one, statement in listed})
    answers = "".join(
        f"<li>{_link(one, statement)}"
        f"{controls.verdict_html(one.verdict(statement), statement.refutes)}</li>"
        for one, statement in listed
    )
    figures = "".join(
        _figure(_link(one, statement), one.figures[statement.figure].chart.description, svg)
        for one, statement in listed
        if (svg := drawn.get(statement.figure))
    )
    rows = "".join(f"<li>{name}: {html.escape('; '.join(x))}</li>" for name, x in sources.items())
    css = (Path(__file__).parent / "index.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE}</title><style>{STYLE}{css}</style></head><body><main>
<h1>{TITLE}</h1>
<ul>{answers}</ul>
<p>This is {SUBJECT}. Each answer follows from written criteria and 95&nbsp;% intervals, which stand
on the page it links to. Recorded on {html.escape("; ".join(devices))}. Made from
{html.escape(made_from)}.</p>
<div class="figures">{figures}</div>
<details><summary>Where the figures come from</summary>
<p>File of recorded rows, number of rows shown, and the hash of these rows.</p><ul>{rows}</ul>
</details>
</main></body></html>
"""


def _link(one: Recorded, statement: Statement) -> str:
    return f'<a href="{one.claim.notebook}.html">{html.escape(statement.title)}</a>'


def _figure(link: str, said: str, svg: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure><img alt="{html.escape(said)}" src="data:image/svg+xml;base64,{data}">'
        f'<figcaption class="soft">{link}</figcaption></figure>'
    )
