import functools
import json
import math
import re
import warnings
from dataclasses import replace
from xml.etree import ElementTree

import polars as pl
import pytest
import vl_convert
from choices import how
from drawn import title_of

from replib.attention import ATTENTION
from replib.claims.common import laptop_model, replication_model
from replib.claims.crossover import charts as crossover_charts
from replib.claims.crossover import extrapolation
from replib.claims.crossover.charts import crossover_chart
from replib.claims.crossover.crossings import Crossing
from replib.claims.crossover.steps import replication_chart
from replib.claims.generation import charts as generation
from replib.claims.generation.charts import streams
from replib.claims.generation.measured import Size, Speedup
from replib.claims.images import charts as images
from replib.claims.images.grid import pixel_model
from replib.lab import store
from replib.lab.run import config_of
from replib.lab.runs.generation import WAYS, GenerationConfig, GenerationCost, state_bytes
from replib.lab.statistics import Crossover, Ratio, article_fits
from replib.lab.timing import CostConfig
from replib.pages import costs, style, tidy
from replib.pages import curves as learning
from replib.published import published
from replib.tasks.copy import CausalCopy, SequenceCopy
from replib.tasks.images import Pixels
from replib.training import TrainingConfig

PAPER = published()["katharopoulos2020"]
LENGTHS = (64, 128, 256, 512, 1024)
VARIANTS = (("softmax", "textbook"), ("softmax", "fused"), ("linear", "torch"))


KERNELS = (*VARIANTS, ("linear", "plain"), ("linear", "cpu"))


def cost_row(attention, implementation, n, *, scale="laptop", batch_size=4):
    failed = implementation == "textbook" and n == LENGTHS[-1]
    time_ms = 0.2 * n if attention == "linear" else 0.002 * n * n
    time_ms *= {"cpu": 0.2, "plain": 0.02 * n}.get(implementation, 1)
    summary = {
        "time_ms": time_ms,
        "time_ms_q25": 0.9 * time_ms,
        "time_ms_q75": 1.2 * time_ms,
        "time_ms_samples": [time_ms] * 3,
        "time_ms_per_sample": time_ms / batch_size,
        "memory_bytes": 4096 * n,
        "memory_bytes_per_sample": 4096 * n / batch_size,
        "n_repeats": 3,
    }
    config = CostConfig(
        attention=attention,
        **how(attention, implementation),
        causal=ATTENTION[attention].causal,
        seq_len=n,
        batch_size=batch_size,
        n_heads=8,
        head_dim=32,
        work="forward",
    )
    return store.make_row(
        "scaling",
        scale,
        config,
        0,
        "out_of_memory" if failed else "ok",
        {"time_ms": None} if failed else summary,
        detail="needs 17 GB: shorten seq_len" if failed else None,
    )


def training_row(attention, n, seed, *, scale="laptop", diverged=False, n_points=20):
    steps = [10 * (i + 1) for i in range(n_points)]
    losses = [2.3 * math.exp(-i / 3 - seed / 9) for i in range(n_points)]
    if diverged:
        losses[-1] = math.nan
    config = TrainingConfig(
        task=CausalCopy(seq_len=n),
        model=laptop_model(attention),
        batch_size=32,
        n_steps=steps[-1],
        lr=0.005,
    )
    return store.make_row(
        "convergence",
        scale,
        config,
        seed,
        "diverged" if diverged else "ok",
        {"n_steps": steps[-1], "final_loss": losses[-1], "final_accuracy": 0.995, "n_spikes": 0},
        {
            "step": steps,
            "train_loss": losses,
            "loss": losses,
            "accuracy": [max(0.1, 1 - min(1, loss / 2.3)) for loss in losses],
        },
    )


def cost_rows(variants=VARIANTS, **changes):
    return [cost_row(a, i, n, **changes) for a, i in variants for n in LENGTHS]


def crossing(implementation, baseline, length, low, high, *, beyond=False):
    """A crossover measured over N = 8 to 1024, or found beyond these lengths."""
    return Crossing(
        implementation=implementation,
        baseline=baseline,
        batch_size=4,
        found=Crossover(length, low, high, beyond, 8, 1024),
        row=cost_row("linear", implementation, LENGTHS[0]),
    )


def crossed():
    return [
        crossing("plain", "fused", math.inf, 2000, math.inf, beyond=True),
        crossing("torch", "fused", 100, 90, 115),
        crossing("cpu", "fused", 20, 15, 26),
        crossing("cpu", "textbook", 5, 1, 7, beyond=True),
    ]


def training_rows(**changes):
    return [
        training_row(a, n, seed, **changes)
        for a in ("softmax", "linear")
        for n in (16, 32)
        for seed in range(3)
    ]


def step_rows():
    rows = []
    for row in cost_rows():
        cost = config_of(row)
        model = replication_model(cost.attention, kernel=cost.kernel)
        task = SequenceCopy(seq_len=cost.seq_len)
        config = TrainingConfig(task=task, model=model, batch_size=8, n_steps=3000)
        rows.append(row | {"kind": "training step", "config": store.plain(config)})
    return rows


def draw(name):
    timed, curves = tidy.costs(cost_rows()), tidy.training_curves(training_rows())
    article = published()["dm2022"]
    kernels, regressions = tidy.costs(cost_rows(KERNELS)), article_fits(article)
    return {
        "loss": lambda: learning.learning_curves(curves, title="T"),
        "accuracy": lambda: learning.learning_curves(curves, y="accuracy", title="T"),
        "live": lambda: learning.live_curves(
            tidy.training_curves([training_row("linear", 16, 9, scale="live")]),
            curves.filter(pl.col("seq_len") == 16),
        ),
        "time": lambda: costs.cost_chart(timed, title="T"),
        "memory": lambda: costs.cost_chart(timed, y="memory", title="T"),
        "replication": lambda: replication_chart(tidy.costs(step_rows()), article),
        "kernels": lambda: costs.cost_chart(kernels, title="T"),
        "crossover": lambda: crossover_chart(cost_rows(KERNELS)),
        "crossings": lambda: crossings_drawn(crossed()),
        "extrapolation": lambda: extrapolation.extrapolation_chart(article, regressions),
        "seeds": lambda: learning.seeds_chart(tidy.training_summaries(training_rows()), title="T"),
        "token": lambda: generation.token_chart(token_rows()),
        "kept": lambda: generation.token_chart(token_rows(), y="state_bytes"),
    }[name]()


def crossings_drawn(found):
    """The chart of some crossovers, in place of those of rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossover_charts, "crossings", lambda rows, work: found)
        return crossover_charts.crossings_chart([])


def token_rows(scale="laptop"):
    """Single tokens of all ways at four positions; the last that recomputes ran out of memory."""
    rows = []
    for way in WAYS:
        for n in (1, 4, 16, 64):
            config = GenerationConfig(way=way, seq_len=n)
            failed = (way, n) == ("recompute", 64)
            time_ms = () if failed else (1.0 if way == "recurrent" else 0.2 * n,) * 3
            outcome = "out_of_memory" if failed else "ok"
            cost = GenerationCost(
                config, outcome, None, time_ms, 10**6, state_bytes=state_bytes(config)
            )
            row = store.make_row("generation", scale, config, 0, outcome, cost.summary())
            rows.append(row)
    return rows


def stream_rows(last=100_000):
    rows = []
    for way in ("recurrent", "cache"):
        positions = [1, 100, last if way == "recurrent" else last // 10]
        config = GenerationConfig(way=way, span="stream", seq_len=positions[-1])
        curve = {
            "position": positions,
            "ms_per_token": [1.0] * 3,
            "state_bytes": [state_bytes(replace(config, seq_len=n)) for n in positions],
            "process_bytes": [10**9] * 3,
        }
        rows.append(store.make_row("generation", "laptop", config, 0, "ok", {}, curve))
    return rows


def faster(batch_size=1, **changes):
    size = Size(seq_len=784, n_layers=8, n_heads=8, head_dim=32, batch_size=batch_size)
    return [
        Speedup(
            size=replace(size, **changes),
            over=over,
            found=Ratio(value, 0.9 * value, 1.1 * value),
            integrated=False,
            row=token_rows()[0],
        )
        for over, value in (("cache", 5.0), ("recompute", 200.0))
    ]


NAMES = {
    "loss": "loss (nats a token)",
    "accuracy": "accuracy (% of tokens)",
    "live": "loss (nats a token)",
    "time": "time (ms a sequence)",
    "memory": "peak memory (MB a sequence)",
    "replication": "time of 3000 steps (s)",
    "kernels": "time (ms a sequence)",
    "crossover": "time (µs a token)",
    "crossings": "against softmax fused, batch 4",
    "extrapolation": "time of 3000 steps (s)",
    "seeds": "final accuracy (% of tokens)",
    "token": "time of a token (ms)",
    "kept": "kept between tokens (MB)",
}


@functools.cache
def drawn(name):
    return svg(draw(name))


def svg(chart):
    """The chart as the browser draws it, text marks and points included."""
    return vl_convert.vegalite_to_svg(style.printable(chart).to_json())


def points(drawing, attention):
    """The point symbols of a mechanism outside the legend, filled or hollow."""
    colour = re.escape(style.colour(attention))
    marks = re.findall(r'aria-roledescription="point"[^>]*>', drawing)
    return [mark for mark in marks if re.search(f'(fill|stroke)="{colour}"', mark)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_chart_is_drawn_without_warnings_with_description_and_units(name, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chart = draw(name)
        drawing = svg(chart)
    assert "WARN" not in "".join(capfd.readouterr())
    assert NAMES[name] in drawing
    assert len(chart.to_dict()["description"]) > 20
    axes = dict.fromkeys(("loss", "accuracy", "live"), "training step")
    axes |= dict.fromkeys(("token", "kept"), generation.N_AXIS)
    assert axes.get(name, style.N_AXIS) in drawing
    assert chart.to_dict()["width"] == "container"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_axes_of_N_have_powers_of_two_and_no_label_is_a_negative_zero(name):
    axes = re.findall(r"axis titled '([^']*)'.*?role-axis-label(.*?)role-axis-", drawn(name), re.S)
    assert axes or name in ("crossings", "seeds")
    for title, group in axes:
        labels = re.findall(r"<text[^>]*>([^<]*)</text>", group)
        if title in (style.N_AXIS, generation.N_AXIS):
            lengths = [float(n.replace("k", "")) * (1024 if "k" in n else 1) for n in labels]
            assert all(math.log2(n).is_integer() for n in lengths)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn(name))
    assert texts and not [
        text for text in texts if re.search(r"(?<![\w.])[-−]0(?![.\d]*[1-9])", text)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["softmax", "linear"])
@pytest.mark.parametrize("name", NAMES)
def test_mechanism_keeps_its_colour_in_every_chart(name, attention):
    if name in ("live", "crossings"):  # each draws one mechanism's series here
        attention = "linear"
    drawing = drawn(name)
    assert style.colour(attention) in drawing
    colours = {found for found in re.findall(r"#[0-9A-F]{6}\b", drawing)}
    assert colours <= {*style.PALETTE.values(), style.NEUTRAL}


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTION)
def test_every_mechanism_is_drawn_in_its_colour_in_each_of_its_implementations(attention):
    names = ATTENTION[attention].choices()
    rows = [cost_row(attention, i, n) for i in names for n in LENGTHS]
    drawing = svg(costs.cost_chart(tidy.costs(rows), title="T"))
    assert style.colour(attention) in drawing
    assert all(i in drawing for i in names)
    curves = tidy.training_curves([training_row(a, 16, 0) for a in ("softmax", attention)])
    assert style.colour(attention) in svg(learning.learning_curves(curves, y="loss", title="T"))


def test_implementations_of_a_mechanism_differ_in_dash_and_shape():
    for mechanism in ATTENTION.values():
        for marks in (style.DASHES, style.SHAPES):
            used = [str(marks[i]) for i in mechanism.choices() if i in marks]
            assert len(set(used)) == len(used)


def test_registered_mechanisms_have_colours_of_their_own_and_unknown_ones_a_stable_one():
    colours = [style.colour(name) for name in ATTENTION]
    assert len(set(colours)) == len(colours) and set(ATTENTION) <= set(style.PALETTE)
    assert style.colour("new") == style.colour("new") in style.SPARE_COLOURS
    implementations = {i for mechanism in ATTENTION.values() for i in mechanism.choices() if i}
    assert implementations <= set(style.DASHES) and implementations <= set(style.SHAPES)


def contrast(one, other):
    def luminance(colour):
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("page", ["#FFFFFF", "#181C1A"])
@pytest.mark.parametrize("colour", [*style.PALETTE.values(), *style.SPARE_COLOURS, style.NEUTRAL])
def test_colours_stand_out_on_light_and_dark_pages(colour, page):
    assert contrast(colour, page) >= 3  # WCAG 2.2, 1.4.11


def test_every_measured_point_is_drawn_and_out_of_memory_is_marked_and_named():
    drawing = drawn("time")
    assert len(points(drawing, "linear")) == len(LENGTHS)
    assert len(points(drawing, "softmax")) == 2 * len(LENGTHS)  # one of them the failed point
    assert ">out of memory<" in drawing
    assert "out of memory" not in svg(costs.cost_chart(linear_costs(), title="T"))


def linear_costs(**changes):
    return tidy.costs([cost_row("linear", "torch", n, **changes) for n in LENGTHS])


def test_live_points_are_filled_and_recorded_ones_hollow():
    both = pl.concat([linear_costs(), linear_costs(scale="live")])
    marks = points(svg(costs.cost_chart(both, title="T")), "linear")
    filled = [mark for mark in marks if f'fill="{style.colour("linear")}"' in mark]
    assert (len(marks), len(filled)) == (2 * len(LENGTHS), len(LENGTHS))


@pytest.mark.slow
def test_diverged_run_is_marked_and_its_curve_drawn():
    rows = [training_row("linear", 16, 0, diverged=True), training_row("linear", 16, 1)]
    assert rows[0]["curve"]["loss"][-1] is None
    for y in learning.CURVES:
        drawing = svg(learning.learning_curves(tidy.training_curves(rows), y=y, title="T"))
        assert ">diverged<" in drawing and "NaN" not in drawing
    seeds = svg(learning.seeds_chart(tidy.training_summaries(rows), title="T"))
    assert ">diverged<" in seeds
    live = tidy.training_curves(rows[:1]).with_columns(loss=pl.lit(math.nan))
    assert "NaN" not in svg(learning.live_curves(live))


@pytest.mark.parametrize(
    "chart",
    [
        lambda: learning.learning_curves(tidy.training_curves([]), title="T"),
        lambda: learning.live_curves(tidy.training_curves([])),
        lambda: costs.cost_chart(tidy.costs([]), title="T"),
        lambda: crossover_chart([]),
        lambda: crossover_charts.crossings_chart([]),
        lambda: learning.seeds_chart(tidy.training_summaries([]), title="T"),
        lambda: generation.token_chart([]),
        lambda: generation.stream_chart([]),
        lambda: generation.speedup_chart([], PAPER),
    ],
)
def test_no_rows_give_a_chart_that_says_so(chart):
    assert "no data yet" in svg(chart())


def test_article_is_shown_where_nothing_of_ours_is_measured():
    chart = replication_chart(tidy.costs([]), published()["dm2022"])
    assert len(points(svg(chart), "linear")) == 4


def test_length_control_offers_the_recorded_lengths_and_starts_at_the_longest():
    params = {param["name"]: param for param in draw("loss").to_dict()["params"]}
    assert params["shown_length"]["bind"]["options"] == [16, 32]
    assert params["shown_length"]["value"] == 32
    assert "N = 32" in drawn("loss").replace("\u00a0", " ")


def test_long_curves_stay_below_the_row_limit_and_keep_their_extremes():
    rows = [training_row("linear", 16, seed, n_points=400) for seed in range(20)]
    rows[0]["curve"]["loss"][203] = 50.0
    spec = learning.learning_curves(tidy.training_curves(rows), title="T").to_dict()
    points = max(spec["datasets"].values(), key=len)
    assert len(points) <= learning.MAX_CURVE_POINTS + 1
    assert max(point["high"] for point in points) == 50.0
    assert min(point["low"] for point in points) == learning.LOSS_FLOOR
    assert all(point["low"] <= point["value"] <= point["high"] for point in points)


def test_the_length_where_two_lines_cross_is_marked_and_named_for_the_fastest():
    spec = draw("crossover").to_dict()
    labels = {
        point["seq_len"]: (point["value"], point["label"])
        for data in spec["datasets"].values()
        for point in data
        if {"value", "label", "seq_len"} == point.keys()
    }
    (n, (value, label)) = min(labels.items())
    assert n == pytest.approx(100, rel=0.01) and label is None  # 0.2 N ms = 0.002 N² ms
    assert value == pytest.approx(1e3 * 0.2 / 4, rel=0.01)  # µs a token in a batch of 4
    fastest = crossover_chart(cost_rows())
    assert ">N = 100<" in svg(fastest) and "is faster from N = 100" in title_of(fastest)


def test_what_is_predicted_is_dotted_and_titles_the_chart_until_two_lengths_are_measured():
    predicted = cost_rows(VARIANTS[1:], scale="predicted")
    for rows in ([], cost_rows(VARIANTS[1:], scale="live")):
        chart = crossover_chart(rows, predicted)
        assert ("Predicted" in str(chart.to_dict()["title"])) == (not rows)
        assert len(points(svg(chart), "linear")) == (len(LENGTHS) if rows else 0)
        lines = svg(chart).count('aria-roledescription="line mark"')
        assert lines == len(VARIANTS[1:])  # one a mechanism, whatever was measured


def test_crossings_are_told_with_their_intervals_and_open_where_none_was_measured():
    drawing = drawn("crossings")
    for told in (">100 (90 to 115)<", ">20 (15 to 26)<", ">not up to 1024<", ">below 8<"):
        assert told in drawing
    for reference in (">paper: 512<", ">2022 article: 3149<"):
        assert reference in drawing
    assert drawing.count(">→<") == drawing.count(">←<") == 1
    assert len(points(drawing, "linear")) == 2  # the measured ones
    for implementation in ("plain", "torch", "cpu"):
        assert f">{implementation}<" in drawing


def test_a_crossing_without_an_upper_bound_is_open_to_the_right():
    drawing = svg(crossings_drawn([crossing(None, "fused", 40, 30, math.inf)]))
    assert ">40 (30 to …)<" in drawing and ">→<" in drawing and ">fastest<" in drawing


def test_extrapolation_shows_the_articles_crossover_and_how_it_moves():
    drawing = drawn("extrapolation")
    assert "3149" in drawing and "6219" in drawing and "measured:" in drawing


def test_two_values_at_one_length_are_refused():
    twice = pl.concat([tidy.costs(cost_rows()), tidy.costs(cost_rows(batch_size=8))])
    with pytest.raises(ValueError, match="two values at N = 64: filter"):
        costs.cost_chart(twice, title="T")


def test_unknown_measure_and_length_are_refused():
    with pytest.raises(ValueError, match="use loss, accuracy"):
        learning.learning_curves(tidy.training_curves([]), y="perplexity", title="T")
    with pytest.raises(ValueError, match="use 16, 32"):
        learning.learning_curves(tidy.training_curves(training_rows()), seq_len=64, title="T")


@pytest.mark.slow
def test_charts_need_no_network_and_text_leaves_its_colour_to_the_page():
    for name in NAMES:
        spec = draw(name).to_dict()
        spec.pop("$schema")
        assert "http" not in json.dumps(spec)
        assert not {"labelColor", "titleColor"} & set(spec["config"]["axis"])


def test_frames_name_series_and_keep_units():
    row = tidy.costs(step_rows()[:1]).row(0, named=True)
    assert (row["series"], row["work"], row["n_steps"]) == (
        "softmax (textbook)",
        "training_step",
        3000,
    )
    assert (row["seq_len"], row["head_dim"]) == (64, 64)
    curve = tidy.training_curves([training_row("linear", 16, 2, scale="live")])
    assert set(curve["source"]) == {"live"} and set(curve["series"]) == {"linear"}
    assert curve.columns == list(tidy.CURVE_COLUMNS)


def test_every_way_to_generate_is_drawn_and_the_one_out_of_memory_is_marked():
    drawing = drawn("token")
    assert len(points(drawing, "linear")) == 4 and len(points(drawing, "softmax")) == 8
    assert ">out of memory<" in drawing
    for way in WAYS:
        assert f"({way})<" in drawing


def test_a_token_chart_of_two_models_is_refused():
    with pytest.raises(ValueError, match="two values at N = 1"):
        generation.token_chart(token_rows() * 2)
    with pytest.raises(ValueError, match="y 'joules': use time_ms, state_bytes"):
        generation.token_chart(token_rows(), y="joules")


def test_speedups_stand_in_groups_beside_the_published_ones_of_their_images_alone():
    drawing = svg(generation.speedup_chart(faster(), PAPER))
    assert ">MNIST" not in drawing  # one setting, which the page names
    assert ">over a cache<" in drawing and ">over recomputing<" in drawing
    for told in ("5×", "200×", "18.9×", "317×", "13.2×", "paper GPU, many", "here, batch 1"):
        assert f">{told}<" in drawing
    assert "4462" not in drawing
    drawing = svg(generation.speedup_chart(faster() + faster(seq_len=3072, n_layers=16), PAPER))
    assert ">MNIST, over a cache<" in drawing and ">CIFAR-10, over recomputing<" in drawing
    assert ">4462×<" in drawing


def test_a_stream_chart_extends_the_cache_to_the_last_token_and_shows_the_process():
    drawing = svg(generation.stream_chart(stream_rows()))
    assert "tokens generated" in drawing and "memory (MB)" in drawing
    values = streams(reversed(stream_rows()))
    last = dict(values.filter(pl.col("seq_len") == 100_000).select("series", "value").rows())
    assert last == {
        "linear (recurrent)": pytest.approx(8 * 8 * 32 * 33 * 4 / 1e6),
        "whole process": pytest.approx(1000),
        "softmax (cache, to come)": pytest.approx(1638.4),
    }


def pixel_rows():
    """Pixel models of three seeds, whose bits per dimension fall to 2 and 1.8."""
    rows = []
    for attention, last in (("linear", 2.0), ("softmax", 1.8)):
        for seed in range(3):
            losses = [math.log(2) * (last + 1 / step) for step in (1, 2, 4, 8)]
            curve = {"step": [1, 2, 4, 8], "loss": losses, "train_loss": losses}
            config = TrainingConfig(task=Pixels(), model=pixel_model(attention))
            rows.append(store.make_row("images", "laptop", config, seed, "ok", {}, curve))
    return rows


def test_bits_per_dimension_are_drawn_with_the_histogram_to_compare_with(capfd):
    chart = images.bits_chart(pixel_rows())
    drawing = svg(chart)
    assert "WARN" not in "".join(capfd.readouterr())
    assert "a histogram of each position: 2." in chart.to_dict()["description"]
    assert images.Y_TITLE in drawing and "loss (nats" not in drawing
    assert style.colour("linear") in drawing and style.colour("softmax") in drawing
    assert "no data yet" in svg(images.bits_chart([]))


def heights_of_text(element, above=0.0):
    """How far below the upper edge of a drawing the base line of each of its texts is."""
    moved = re.search(r"translate\([-\d.]+,([-\d.]+)\)", element.get("transform", ""))
    above += float(moved[1]) if moved else 0.0
    if element.tag.endswith("text"):
        yield above
    for part in element:
        yield from heights_of_text(part, above)


@pytest.mark.slow
def test_a_long_title_has_fewer_lines_on_a_wider_page_and_is_not_cut_off():
    title = "Every key written once; last S solved: softmax 440, not 480, DPFP-3 360, linear 40"
    chart = costs.cost_chart(linear_costs(), title=title)
    lines = [json.loads(some) for some in re.findall(r"\[\"[^\]]*\]", chart.title.text.expr)]
    counts = [len(some) for some in lines]  # from narrow to wide
    assert counts == sorted(counts, reverse=True) and counts[0] > 2 and counts[-1] == 1
    assert all(" ".join(some) == title for some in lines)
    assert all(f">{line}</" in svg(chart) for line in lines[counts.index(2)])
    for width in (660, 720):  # the plot is narrower, by its axis and labels
        drawing = vl_convert.vegalite_to_svg(style.printable(chart, width).to_json())
        assert min(heights_of_text(ElementTree.fromstring(drawing))) >= 15  # a title's font size
    assert isinstance(costs.cost_chart(linear_costs(), title="Short").title.text, list)


def test_a_long_subtitle_follows_the_width_of_the_page_too():
    subtitle = (
        "An Unusually Long Name Of A Processor @ 2.45 GHz, 2 threads; Quadro P4000 8GB (article)"
    )
    spec = style.finished(costs.cost_chart(linear_costs(), title="T"), "T", subtitle, "")
    spec = style.printable(spec).to_dict()
    (patch,) = spec["usermeta"]["embedOptions"]["patch"]
    compiled = vl_convert.vegalite_to_vega(spec)
    for part in patch["path"].split("/")[1:]:  # it is where the page replaces it
        compiled = compiled[part]
    lines = [json.loads(some) for some in re.findall(r"\[\"[^\]]*\]", patch["value"]["signal"])]
    assert [len(some) for some in lines] == [3, 2, 1] and len(compiled) == 2
    assert all(" ".join(some) == subtitle for some in [*lines, compiled])
