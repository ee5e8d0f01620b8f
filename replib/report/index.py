"""The report's index: the verdict table and a living chart a claim, in one file."""

import html
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import vl_convert

from replib.pages import controls

CSS = """
:root { color-scheme: light dark; --line: #8886; --soft: #6b6b6b; --back: #fff; --text: #1a1a1a;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --soft: #a8a8a8; --back: #181c1a; --text: #ececec; --link: #7db8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem;
  background: var(--back); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { margin-top: 3rem; font-size: 1.25rem; }
a { color: var(--link); } .soft { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .6rem .7rem .6rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
.verdicts th[scope=row] { width: 13%; } .verdicts td { width: 29%; }
.status { color: #fff; padding: .1rem .55rem; border-radius: 1rem; font-weight: 600;
  white-space: nowrap; }
ul { list-style: none; padding-left: 1rem; margin: .3rem 0; }
.chart { width: 100%; min-height: 20rem; } .chart canvas { display: block; }
figure { margin: 1rem 0; } figcaption { margin-top: .3rem; }
.vega-embed { width: 100%; padding-right: 0 !important; }
@media (max-width: 45rem) {
  .verdicts thead { position: absolute; clip-path: inset(50%); height: 1px; overflow: hidden; }
  .verdicts tr, .verdicts th[scope], .verdicts td { display: block; width: 100%; }
  .verdicts tr { padding: .8rem 0; border-bottom: 1px solid var(--line); }
  .verdicts th, .verdicts td { border: 0; padding: .15rem 0; }
  .verdicts td::before { content: attr(data-from); display: block; color: var(--soft);
    font-size: .8rem; } }
@media (max-width: 45rem) { .sources th, .sources td { display: block; padding: .2rem 0; }
  .sources th { border: 0; } }
@media print { section { break-inside: avoid; } details { display: none; } }
"""
DRAW = """
const dark = matchMedia("(prefers-color-scheme: dark)");
async function draw() {
  const options = { renderer: "canvas", actions: { export: true, source: false, compiled: false,
    editor: false }, theme: dark.matches ? "dark" : undefined,
    tooltip: { theme: dark.matches ? "dark" : "light" } };
  for (const place of document.querySelectorAll(".chart"))
  {
    const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
    place.embedded?.finalize();  // drawn in the other colours before
    place.embedded = await vegaEmbed(place, spec, options);
    place.querySelector("summary").setAttribute("aria-label", "save chart");
  }
}
dark.addEventListener("change", draw);
draw();
"""
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
<title>{TITLE}</title><style>{CSS}</style></head><body><main>
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
</main><script>{_vega()}</script><script>{DRAW}</script></body></html>
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
