"""What notebooks 2 and 3 show of measured and predicted costs."""

import html

import pytest
import torch
from drawn import title_of
from shown import cost_row

from replib.claims import cost_page
from replib.claims.crossover.charts import crossings_chart, crossover_chart
from replib.claims.crossover.page import recorded_charts
from replib.claims.scaling.charts import scaling_chart
from replib.lab import predict
from replib.lab.run import CostJob, config_of
from replib.lab.timing import CostConfig

CPU = torch.device("cpu")


def crossing(power=1.0, **changes):
    return [
        cost_row(attention=a, kernel=i, seq_len=n, samples=(ms, ms * 1.01), **changes)
        for n in (64, 256, 1024)
        for a, i, ms in (("softmax", "fused", n**2), ("linear", "torch", 100 * n**power))
    ]


def test_the_crossover_chart_is_titled_with_what_was_measured():
    title = title_of(crossover_chart(crossing()))
    assert title == "Linear (torch) is faster from N = 100 against softmax (fused)"
    assert "from below N = 64 against" in title_of(crossover_chart(crossing(0.2)))
    assert "faster never against" in title_of(crossover_chart(crossing(2.0)))
    for rows in ([], crossing()[:2], [cost_row("out_of_memory", ())]):
        assert "faster" not in str(crossover_chart(rows).to_dict()["title"])


def test_the_scaling_chart_is_titled_with_the_exponents():
    rows = [row | {"experiment": "scaling"} for row in crossing(1.5)]
    assert "linear torch as N^1.50" in title_of(scaling_chart(rows))


def test_the_crossings_chart_says_whether_the_implementation_matters():
    rows = crossing()
    assert "Where linear attention" in title_of(crossings_chart(rows))
    rows += [cost_row(kernel="plain", seq_len=n, samples=(n**3,) * 2) for n in (64, 1024)]
    assert "moves to shorter" in title_of(crossings_chart(rows))
    assert "no data yet" in str(crossings_chart([]).to_dict())


def test_recorded_times_have_a_tab_for_each_work_and_batch_and_device():
    two = crossing(batch_size=8, device="A") + crossing(batch_size=8, device="B")
    shown = html.unescape("".join(f"{k} {v.text}" for k, v in recorded_charts(two).items()))
    assert "Times, forward only, batch 1, A" in shown and "Times, batch 8, B" in shown


def job(**changes):
    kinds = {"softmax": "textbook", "linear": "torch"}
    changes |= {"work": "forward"}
    configs = tuple(CostConfig(attention=a, kernel=k, **changes) for a, k in kinds.items())
    return CostJob(configs=configs, n_repeats=3)


def test_multiply_adds_are_those_of_the_equations():
    softmax, linear = job(seq_len=100, head_dim=16, n_heads=2).configs
    assert cost_page.multiply_adds(softmax) == 2 * 2 * 100**2 * 16
    assert cost_page.multiply_adds(linear) == 2 * 2 * 100 * 16 * 17
    assert cost_page.multiply_adds(CostConfig(attention="delta")) is None
    back = CostConfig(attention="linear", kernel="plain", seq_len=100, head_dim=16, n_heads=2)
    assert cost_page.multiply_adds(back) == 3 * cost_page.multiply_adds(softmax)


def test_predictions_follow_the_heads_and_the_head_size_without_another_call(monkeypatch):
    monkeypatch.setattr(predict, "_parts", {})
    (first, *_) = cost_page.predicted_ms(job(seq_len=64, head_dim=8).configs, "cpu")
    monkeypatch.setattr(predict, "_measure", pytest.fail)
    more = job(seq_len=64, head_dim=8, n_heads=16).configs
    wider = job(seq_len=64, head_dim=16).configs
    assert first < cost_page.predicted_ms(more, "cpu")[0]
    assert cost_page.predicted_ms(wider, "cpu")[0] == pytest.approx(2 * first)


def test_predicted_rows_are_those_of_the_jobs_with_the_memory_that_is_measured():
    asked = job(seq_len=128, batch_size=2, n_heads=2)
    rows = cost_page.predicted_rows([asked], "cpu", memory=True)
    assert [config_of(row) for row in rows] == list(asked.configs)
    expected = [2 * n_bytes for n_bytes in cost_page.memory_bytes(asked.configs, CPU)]
    assert [row["summary"]["memory_bytes"] for row in rows] == pytest.approx(expected, rel=1e-6)


def test_what_follows_the_settings_is_empty_where_they_cannot_be_run():
    settings = {"seq_len": 64, "shortest": 16, "batch_size": 1, "n_heads": 2, "head_dim": 8}
    settings |= {"repeats": 3, "work": "forward", "device": "cpu"}
    shown = cost_page.followed(settings | {"variants": ("softmax fused", "linear torch")}).text
    assert "softmax fused" in shown and "N = 64" in shown
    assert "softmax" not in cost_page.followed(settings | {"variants": ()}).text
