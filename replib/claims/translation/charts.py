"""Charts of translators."""

from collections.abc import Callable, Iterator, Sequence
from statistics import mean

import altair as alt
import polars as pl

from replib.claims.claim import Figure, Rows
from replib.claims.common import name_of
from replib.claims.translation.judge import by_length, by_variant, of_baseline
from replib.lab.store import Row
from replib.lab.verdict import device_names
from replib.pages import style


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """BLEU of each seed, how perplexity goes with the length of a source, and number words."""
    some, numbers = rows["translation"], rows["number_words"]
    chart = seeds_chart(some, "bleu", "BLEU", "BLEU of each seed")
    yield "translation_bleu", Figure(chart=chart, experiment="translation", rows=some)
    chart = length_chart(some)
    yield "translation_length", Figure(chart=chart, experiment="translation", rows=some)
    title = "Number and date words that are right to the letter"
    chart = seeds_chart(numbers, "exact", "share right", title)
    yield "number_words", Figure(chart=chart, experiment="number_words", rows=numbers)


def seeds_chart(
    rows: Sequence[Row], figure: str, axis: str, title: str, best: Callable = max
) -> alt.LayerChart:
    """A figure of each seed, a line a mechanism, and the mean; `best` is max or min of them."""
    found = by_variant(rows, figure)
    if not found:
        return style.no_data(title)
    lines = [
        {"series": name_of(variant), "attention": variant[0], "value": value, "mean": mean(values)}
        for variant, values in found.items()
        for value in values
    ]
    frame = pl.DataFrame(lines)
    names = [name_of(variant) for variant in found]
    base = alt.Chart(style.records_of(frame)).encode(
        alt.X("value:Q", title=axis, scale=alt.Scale(zero=False)),
        alt.Y("series:N", title=None, sort=names),
        style.attention_colour(frame, legend=None),
    )
    tick = base.mark_tick(thickness=3, size=18).encode(alt.X("mean:Q"))
    means = {variant: mean(values) for variant, values in found.items()}
    first = [name_of(variant) for variant in found if means[variant] == best(means.values())]
    return style.finished(
        alt.layer(base.mark_point(filled=True, size=60, opacity=0.6), tick),
        f"{title}: {'highest' if best is max else 'lowest'} with {', '.join(first)}",
        device_names(rows),
        f"{axis} of each seed and the mean of the seeds, a line a mechanism.",
        40 * len(names) + 30,
    )


def length_chart(rows: Sequence[Row]) -> alt.LayerChart:
    """Perplexity over that of softmax, by the words of the source."""
    title = "Perplexity over that of softmax, by the length of the source"
    found = by_length(rows, "perplexity")
    base = of_baseline(found)
    if not base:
        return style.no_data(title)
    order = [str(words or "more") for words in base]
    lines = [
        {"series": name_of(variant), "words": str(words or "more")}
        | {"attention": variant[0], "value": mean(values) / mean(base[words])}
        for variant, groups in found.items()
        for words, values in groups.items()
        if words in base
    ]
    frame = pl.DataFrame(lines)
    colours = {line["series"]: style.colour(line["attention"]) for line in lines}
    chart = alt.Chart(style.records_of(frame)).encode(
        alt.X("words:O", sort=order, title="words of the source, at most"),
        alt.Y("value:Q", title="perplexity / that of softmax", scale=alt.Scale(zero=False)),
        style.looks(alt.Color, "series:N", colours, legend=style.legend(colours)),
        alt.Shape("series:N", legend=None),
        tooltip=["series", "words", alt.Tooltip("value", format=".3~f")],
    )
    return style.finished(
        alt.layer(
            chart.mark_line().encode(alt.StrokeDash("series:N", legend=None)),
            chart.mark_point(filled=True, size=60),
        ),
        title,
        f"{device_names(rows)}; means of the seeds",
        "Perplexity relative to softmax against the words of the source, a line a mechanism.",
    )
