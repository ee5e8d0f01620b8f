"""The marimo parts of the generation notebook."""

from collections.abc import Mapping, Sequence
from typing import Any

import marimo as mo

from replib.claims.generation import agreement, charts
from replib.claims.generation.agreement import Agreement
from replib.claims.generation.charts import rows_by_size
from replib.claims.generation.grid import stream_jobs, token_jobs
from replib.claims.generation.measured import (
    IMAGE_KEYS,
    MIN_WHOLE_RUNS,
    Generated,
    Speedup,
    generated,
    speedup,
)
from replib.device import resolve_device
from replib.lab.kept_models import Kept
from replib.lab.run import CostJob
from replib.lab.runs.generation import WAYS, GenerationConfig
from replib.lab.store import Row
from replib.lab.text import LEFT, RIGHT, markdown_table
from replib.lab.verdict import by_device, three_digits
from replib.pages import controls
from replib.pages.live import on_one_core

WAY_LABELS = {
    "recurrent": "linear, recurrent state",
    "cache": "softmax, cache",
    "recompute": "softmax, recomputed",
}
EVERY = "Every comparison"


def live_jobs(values: Mapping[str, Any]) -> list[CostJob]:
    """The tokens that the controls ask for; a job a position."""
    names = ("batch_size", "n_layers", "n_heads", "head_dim")
    sizes = {name: values[name] for name in names}
    return token_jobs(values["seq_len"], values["repeats"], values["ways"], **sizes)


def live_stream_jobs(values: Mapping[str, Any]) -> list[CostJob]:
    """The two streams that the second panel asks for."""
    return stream_jobs(values["n_tokens"], min(values["n_tokens"], values["n_cached"]))


def recorded_tabs(rows: Sequence[Row], y: str = "time_ms") -> mo.Html:
    """`token_chart` of each recorded model and batch."""
    sizes = rows_by_size(rows) or {"": []}
    return mo.ui.tabs(
        {name or "–": charts.token_chart(some, y, name) for name, some in sizes.items()}
    )


def recorded_streams(rows: Sequence[Row]) -> mo.Html:
    """`charts.stream_chart` of each device."""
    return controls.device_tabs(rows, charts.stream_chart)


def agreement_table(settings: Mapping[str, Any]) -> mo.Html:
    """Whether outputs of a token at a time, of the whole sequence at once and of everything again
    agree, for the model of the settings on their device, in each dtype."""
    sizes = {name: settings[name] for name in ("n_layers", "n_heads", "head_dim")}
    found: dict[str, list[Agreement]] = {}
    try:
        for way in ("recurrent", "cache"):
            config = GenerationConfig(way=way, **sizes)
            found[WAYS[way]] = on_one_core(agreement.of_sizes, config, settings["device"])
    except ValueError as error:
        return mo.callout(str(error), kind="warn")
    return _agreement(found, settings["device"])


def kept_agreement(models: Mapping[str, Kept], device: str | None = None) -> mo.Html:
    """The same of the trained models of the digits, and whether they draw the same digits."""
    if not models:
        return mo.md("*No trained model is there.*")
    found = {name: on_one_core(agreement.of_kept, kept, device) for name, kept in models.items()}
    drawn = []
    for name, kept in models.items():
        same, n = on_one_core(agreement.levels_drawn_alike, kept, device)
        drawn.append(
            f"{agreement.N_DRAWN} digits drawn by the {agreement.STEPS[name]} of {name} attention, "
            "and by computing everything again with the same random numbers: "
            f"{same} of {n} pixels are the same."
        )
    return mo.vstack([_agreement(found, device), mo.md("\n\n".join(drawn))])


def _agreement(found: Mapping[str, Sequence[Agreement]], device: str | None) -> mo.Html:
    """The farthest apart of each attention and dtype, and below them every comparison."""
    every = [(name, one) for name, some in found.items() for one in some]
    farthest: dict[tuple[str, str], Agreement] = {}
    for name, one in every:
        other = farthest.setdefault((name, one.dtype), one)
        if not one.found.relative <= other.found.relative:
            farthest[name, one.dtype] = one
    held = [one.holds for _, one in every].count(True)
    said = f"**{held} of {len(every)} comparisons agree**, on {resolve_device(device).type}. "
    said += "The farthest apart of each dtype:"
    shown = [(name, one) for (name, _), one in farthest.items()]
    names = [f"{name}: {one.way}; {one.other}" for name, one in every]
    details = _agreement_table("compared", names, [one for _, one in every])
    table = _agreement_table("attention", [name for name, _ in shown], [x for _, x in shown])
    return mo.vstack([mo.md(f"{said}\n\n{table}"), mo.accordion({EVERY: mo.md(details)})])


def _agreement_table(head: str, names: Sequence[str], some: Sequence[Agreement]) -> str:
    lines = []
    for name, one in zip(names, some, strict=True):
        numbers = map(_power, (one.found.absolute, one.found.relative, one.tolerance))
        said = "agree" if one.holds else "**differ**"
        lines.append([name, one.dtype, *numbers, said])
    columns = "dtype", "largest difference", "of the largest output", "tolerance", "result"
    return markdown_table([head, *columns], lines, [LEFT, *[RIGHT] * 3, LEFT])


def _power(value: float) -> str:
    return f"{value:z.1e}" if value else "0"


PAPER_AT = "https://arxiv.org/abs/2006.16236"


def generation_table(rows: Sequence[Row], paper: Mapping[str, Any]) -> str:
    """Images a second of the paper's tables 1, 2 and 4 and here, as Markdown."""
    lines = []
    for image, (key, table) in IMAGE_KEYS.items():
        here = paper[table]["rows"]
        stateful = paper["table4_stateful"][key]["stateful-softmax"]
        rates = here["softmax"][1], stateful[1], here["linear"][1]
        over = [f"{three_digits(rates[2] / rate)}×" for rate in rates[:2]]
        cells = [three_digits(rate) for rate in rates] + over
        # The link is also what a keyboard scrolls the table by, on a narrow page.
        lines.append([_unbroken(f"[paper]({PAPER_AT}), {image}, GPU, many images"), *cells])
    for device, some in by_device(rows).items():
        for size, ways in generated(some).items():
            found = [ways.get(way) for way in ("recompute", "cache", "recurrent")]
            cells = [_rate(one) for one in found]
            cells += [_times(speedup(slow, found[2])) for slow in found[:2]]
            lines.append([_unbroken(f"{device}, {size.text}"), *cells])
    columns = "softmax, recomputed", "softmax, cached", "linear", "linear over recomputed"
    head = [_unbroken("images a second"), *columns, "over cached"]
    return markdown_table(head, lines) + (
        "\n\n~ is summed from single tokens, which were measured at some positions; the others are "
        f"medians of {MIN_WHOLE_RUNS} or more whole runs. A ratio is of whole runs where both have "
        "so many."
    )


def _rate(one: Generated | None) -> str:
    if one is None or one.total is None:
        return "–"
    return f"{'' if one.measured else '~'}{three_digits(one.images_per_s)}"


def _times(one: Speedup | None) -> str:
    return f"{'~' * one.integrated}{three_digits(one.found.value)}×" if one else "–"


def _unbroken(name: str) -> str:
    return name.replace(" ", "\N{NO-BREAK SPACE}")  # a narrow page scrolls the table
