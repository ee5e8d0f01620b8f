"""What notebooks 2 and 3 show of measured costs."""

import html

import marimo as mo
from drawn import title_of
from shown import cost_row

from replib.claims.crossover.charts import crossings_chart
from replib.claims.crossover.page import crossover_tabs, session_crossings, session_crossover_chart
from replib.claims.scaling import page as cost_parts


def crossing(power=1.0, **changes):
    return [
        cost_row(attention=a, kernel=i, seq_len=n, samples=(ms, ms * 1.01), **changes)
        for n in (64, 256, 1024)
        for a, i, ms in (("softmax", "fused", n**2), ("linear", "torch", 100 * n**power))
    ]


def test_the_crossover_chart_is_titled_with_what_was_measured():
    chart = session_crossover_chart(crossing())
    title = title_of(chart)
    assert title == "Linear (torch) is faster from N = 100 against softmax (fused)"
    always = session_crossover_chart(crossing(0.2))
    assert "from below N = 64 against" in title_of(always)
    never = session_crossover_chart(crossing(2.0))
    assert "faster never against" in title_of(never)
    short = session_crossover_chart(crossing()[:2]).to_dict()
    assert "Two lengths or more are needed" in str(short["title"])
    for rows in ([], [cost_row("out_of_memory", ())]):
        title = session_crossover_chart(rows).to_dict()["title"]
        assert "faster" not in str(title)


def test_the_crossings_chart_says_whether_the_implementation_matters():
    rows = crossing()
    title = str(crossings_chart(rows).to_dict()["title"]["text"])
    assert "Where linear attention" in title
    rows += [cost_row(kernel="plain", seq_len=n, samples=(n**3,) * 2) for n in (64, 1024)]
    title = str(crossings_chart(rows).to_dict()["title"]["text"])
    assert "moves to shorter" in title
    assert "no data yet" in str(crossings_chart([]).to_dict())


def test_a_session_without_crossings_has_no_chart_of_them(page):
    assert session_crossings([]).text == mo.md("").text
    assert session_crossings(crossing()[:2]).text == mo.md("").text
    assert "vega" in session_crossings(crossing()).text


def test_recorded_crossovers_have_a_tab_for_each_work_and_batch_and_device():
    shown = crossover_tabs(crossing(batch_size=8)).text
    for tab in ("Forward and backward, batch 8", "Forward and backward, batch 1", "Forward, batch"):
        assert tab in html.unescape(shown)
    two = crossing(batch_size=8, device="A") + crossing(batch_size=8, device="B")
    shown = html.unescape(crossover_tabs(two).text)
    assert "Forward, batch 1, A" in shown and "Forward, batch 1, B" in shown
    assert "No measurements yet" in html.unescape(crossover_tabs([]).text)


def test_exponents_are_a_table_of_what_has_two_lengths():
    shown = cost_parts.exponents_table(crossing(1.5), "forward_backward").text
    assert "softmax fused" in shown and "1.50" in shown and "2.00" in shown
    assert "linear" not in cost_parts.exponents_table(crossing()[:2], "forward_backward").text
    assert "exponent" not in cost_parts.exponents_table([], "forward_backward").text


# --- copies
