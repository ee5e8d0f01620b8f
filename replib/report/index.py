"""The report's index in one file: the answer to each claim, and its figure."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from replib.claims import start
from replib.claims.claim import Claim, Recorded

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
    figures = "".join(
        _figure(
            _link(one.claim, html.escape(statement.title)),
            one.figures[name].chart.description,
            drawn[name],
        )
        for one in recorded
        for statement in one.claim.listed
        if (name := statement.figure) in drawn
    )
    rows = "".join(f"<li>{name}: {html.escape('; '.join(x))}</li>" for name, x in sources.items())
    css = (Path(__file__).parent / "index.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE}</title><style>{css}</style></head><body><main>
<h1>{TITLE}</h1>
{start.answers(_link).text}
<p>This is {SUBJECT}. The criteria, with 95&nbsp;% intervals, stand on the pages.</p>
<p class="soft">Made from {html.escape(made_from)}.</p>
<div class="figures">{figures}</div>
<details><summary>Where the figures come from</summary>
<p>File of recorded rows, number of rows shown, and the hash of these rows.</p><ul>{rows}</ul>
</details>
</main></body></html>
"""


def _link(claim: Claim, text: str) -> str:
    return f'<a href="{claim.notebook}.html">{text}</a>'


def _figure(link: str, said: str, svg: str) -> str:
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure><img alt="{html.escape(said)}" src="data:image/svg+xml;base64,{data}">'
        f'<figcaption class="soft">{link}</figcaption></figure>'
    )
