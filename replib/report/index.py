"""The report's index: the verdict table and a living chart a claim, in one file."""

import html
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import vl_convert

from replib.pages import controls
from replib.pages.failures import STYLE

TITLE = "Does linear attention do what the paper says?"


def index_page(
    sections: Sequence[Mapping[str, Any]],
    sources: Mapping[str, Sequence[str]],
    others: Sequence[str],
    made_from: str,
) -> str:
    """The index as one HTML file.

    Args:
        sections: of a claim each its title, page, paper, article, verdict, device, chart (JSON) and
            the chart's sources.
        sources: of every figure, by its name.
        others: notebooks that stand for no claim.
    """
    body = "".join(map(_row, sections))
    figures = "".join(_figure(i, section) for i, section in enumerate(sections))
    listed = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{_sources(said)}</td></tr>'
        for name, said in sources.items()
    )
    more = "".join(f'<li><a href="{name}.html">{name}</a></li>' for name in others)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE}</title><style>{STYLE}{_file("index.css")}</style></head><body><main>
<h1>{TITLE}</h1>
<p>A reproduction of <i>Transformers are RNNs: Fast Autoregressive Transformers with Linear
Attention</i> (Katharopoulos et al. 2020), beside the replication of 2022 (Do &amp; Bergner). Each
verdict follows from written criteria and 95&nbsp;% intervals. Made from {html.escape(made_from)}.
</p>
<table class="verdicts"><thead><tr><th scope="col">claim</th><th scope="col">paper</th>
<th scope="col">2022 replication</th><th scope="col">here</th></tr></thead>
<tbody>{body}</tbody></table>
{figures}
{f"<h2>More pages</h2><ul>{more}</ul>" if more else ""}
<h2>Where the figures come from</h2>
<p>File of recorded rows, number of rows shown, and the hash of these rows.</p>
<table class="sources"><tbody>{listed}</tbody></table>
</main><script>{_vega()}</script><script>{_file("draw.js")}</script></body></html>
"""


def _row(section: Mapping[str, Any]) -> str:
    title = html.escape(section["title"])
    if section["page"]:
        title = f'<a href="{section["page"]}">{title}</a>'
    here = controls.verdict_html(section["verdict"]) + controls.criteria_html(section["verdict"])
    return (
        f'<tr><th scope="row">{title}</th>'
        f'<td data-from="paper">{html.escape(section["paper"])}</td>'
        f'<td data-from="2022 replication">{html.escape(section["article"])}</td>'
        f'<td data-from="here">{here}<p class="soft">{html.escape(section["device"])}</p></td></tr>'
    )


def _figure(number: int, section: Mapping[str, Any]) -> str:
    title = html.escape(section["title"])
    if section["chart"] is None:
        return f"<section><h2>{title}</h2><p>No figure yet.</p></section>"
    more = f' <a href="{section["page"]}">More of {title}</a>' if section["page"] else ""
    chart = json.dumps(json.loads(section["chart"]), separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<section><h2>{title}</h2><figure><div class="chart" data-spec="spec{number}"></div>'
        f'<figcaption class="soft">{_sources(section["sources"])}.{more}</figcaption></figure>'
        f'<script type="application/json" id="spec{number}">{chart}</script></section>'
    )


def _sources(said: Sequence[str]) -> str:
    return html.escape("; ".join(said))


@lru_cache(maxsize=1)
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed, of the version that draws the SVG files."""
    return vl_convert.javascript_bundle()


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
