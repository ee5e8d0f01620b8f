"""The marimo parts of the generation notebook."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import marimo as mo

from replib.claims.generation import charts
from replib.claims.generation.grid import stream_jobs, token_jobs
from replib.claims.generation.measured import speedups
from replib.claims.images.charts import bits_chart
from replib.lab.run import CostJob
from replib.lab.runs.generation import GenerationConfig, state_bytes
from replib.lab.store import Row
from replib.lab.verdict import three_digits
from replib.pages import layout
from replib.published import published

N_REPEATS = 5
N_CACHED = 2_000  # tokens of a stream of this session that a cache is kept beside
STATE_EQUATIONS = r"""
$$\begin{aligned}
s_0 &= 0, \quad z_0 = 0 && (16, 17)\\
s_i &= s_{i-1} + \phi(k_i)\, v_i^\top && (18)\\
z_i &= z_{i-1} + \phi(k_i) && (19)\\
y_i &= \frac{\phi(q_i)^\top s_i}{\phi(q_i)^\top z_i} && (20)
\end{aligned}$$
"""


def sizes_of(values: Mapping[str, Any]) -> dict[str, int]:
    """The model and the batch that the controls ask for."""
    return {name: values[name] for name in ("batch_size", "n_layers", "n_heads", "head_dim")}


def live_jobs(values: Mapping[str, Any]) -> list[CostJob]:
    """The tokens that the controls ask for, a job a position, and then the streams."""
    jobs = token_jobs(values["seq_len"], N_REPEATS, **sizes_of(values))
    n = values["n_tokens"]
    return jobs + (stream_jobs(n, min(n, N_CACHED)) if n else [])


def kept_text(values: Mapping[str, Any]) -> str:
    """What must be kept to generate the last token of the settings, which no run is needed for."""

    def kept(way: str, n: int) -> float:
        return state_bytes(GenerationConfig(way=way, seq_len=n, **sizes_of(values)))

    n = values["seq_len"]
    figures = kept("recurrent", n), kept("cache", n), kept("cache", 1)
    state, cache, each = (f"{three_digits(one / 1e3)} kB" for one in figures)
    return (
        f"At position {n} the state holds **{state}**, as at every other, and the cache "
        f"**{cache}**, {each} more with each token."
    )


def folded(title: str, sections: Mapping[str, Callable[[], Any]]) -> mo.Html:
    """Tabs whose contents are made when a reader opens them."""
    return mo.accordion({title: mo.ui.tabs({tab: layout.later(x) for tab, x in sections.items()})})


def recorded_sections(
    rows: Sequence[Row], of_images: Sequence[Row]
) -> dict[str, Callable[[], Any]]:
    """What is recorded beside the first chart, by its title."""
    paper = published()["katharopoulos2020"]

    def sizes(y: str) -> mo.Html:
        found = charts.rows_by_size(rows).items()
        return mo.ui.tabs({name: charts.token_chart(some, name, y) for name, some in found})

    return {
        "Every model": lambda: sizes("time_ms"),
        "Memory": lambda: sizes("state_bytes"),
        "Whole images": lambda: charts.speedup_chart(speedups(rows), paper),
        "A stream": lambda: layout.device_tabs(rows, charts.stream_chart),
        "Learning the digits": lambda: bits_chart(of_images),
    }
