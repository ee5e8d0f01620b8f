"""The charts of memories draw what their frame holds, on any page, and say where nothing is."""

import copy
import re

import numpy as np
import pytest
import synthetic
import vl_convert
from drawn import title_of

from replib.claims import EXPERIMENTS
from replib.claims.capacity.charts import (
    MOST_SHOWN,
    loss_chart,
    retrieval_frame,
    solved_chart,
)
from replib.claims.capacity.memories import SOLVED_LOSS, least_loss
from replib.lab import recorded
from replib.pages import style
from replib.published import published

THEIRS = published()["fastweights_logs"]
SOLVED = ((520, 600), (360, 400), (240, 280), (120, 140), (60, 80))  # where half of the runs do
CHARTS = {"capacity": 1, "update_rules": 2}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = synthetic.write_recorded(tmp_path_factory.mktemp("rows"), *CHARTS)
    return [row for name in CHARTS for row in recorded.read_rows(name, folder)]


@pytest.fixture(scope="module")
def frame(rows):
    return retrieval_frame(rows)


def svg(chart):
    text = vl_convert.vegalite_to_svg(style.printable(chart).to_json())
    return text.replace("\u00a0", " ")


def data_with(chart, *names, but=None):
    """The inline data sets of a chart that have these columns, and not another."""
    return [
        rows
        for rows in chart.to_dict()["datasets"].values()
        if rows and set(names) <= rows[0].keys() and but not in rows[0]
    ]


def test_the_frame_has_a_line_a_memory_and_s_and_the_published_beside_it(frame):
    ours = frame.filter((frame["source"] == "recorded") & (frame["setting"] == 1))
    assert ours.height == len(EXPERIMENTS["capacity"].jobs("laptop"))
    one = ours.filter((ours["series"] == "DPFP-2") & (ours["n_keys"] == 400)).to_dicts()[0]
    assert (one["n_seeds"], one["n_solved"], one["n_features"]) == (3, 0, 256)
    assert one["low"] == pytest.approx(0.5 * (1 - 256 / 400)) and one["high"] > one["value"]
    theirs = frame.filter(frame["source"] == "published")
    n_published = sum(len(runs) for s in ("setting1", "setting2") for runs in THEIRS[s].values())
    assert theirs.height == n_published - 1  # the log that stops early
    assert retrieval_frame([]).schema == frame.schema


def test_live_runs_are_told_apart_and_the_latest_settings_count(rows):
    first = next(row for row in rows if row["config"]["model"]["attention"] == "linear")
    later = copy.deepcopy(first) | {"scale": "live"}
    other = copy.deepcopy(later)
    other["config"]["n_steps"], other["summary"]["reported_loss"] = 500, 0.25
    small = copy.deepcopy(later)
    small["config"]["model"]["head_dim"] = 16
    frame = retrieval_frame([first, later, other, small])
    live = frame.filter(frame["source"] == "live")
    assert live.select("series", "value", "n_seeds", "n_features").rows() == [
        ("linear", 0.25, 1, 64),
        ("linear, D = 16", first["summary"]["best_loss"], 1, 16),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_draws_without_missing_numbers_and_describes_itself(frame, name):
    chart = loss_chart(frame, CHARTS[name])
    drawing = svg(chart)
    assert "NaN" not in drawing and "undefined" not in drawing and ">null<" not in drawing
    spec = chart.to_dict()
    assert spec["width"] == "container" and spec["config"]["background"] == "transparent"
    assert "log axis" in spec["description"] and str(SOLVED_LOSS) in spec["description"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTS)
def test_six_series_are_shown_at_first_and_a_click_on_a_name_shows_another(frame, name):
    chart = loss_chart(frame, CHARTS[name])
    vega = vl_convert.vegalite_to_vega(chart.to_json())
    (store,) = (data for data in vega["data"] if data["name"] == "shown_series_store")
    shown = {value for one in store["values"] for value in one["values"]}
    series = set(frame.filter(frame["setting"] == CHARTS[name])["series"])
    assert len(shown) == MOST_SHOWN < len(series) and shown < series
    drawing = svg(chart)
    assert all(f">{one}<" in drawing for one in series) and "click a name" in drawing
    assert {"DPFP-1", "softmax"} <= shown or {"DPFP-1 (delta)", "DPFP-1 (sum)"} <= shown


def test_the_title_says_what_each_memory_solves(frame):
    title = title_of(loss_chart(frame, 1))
    found = re.findall(r"(softmax|DPFP-\d|linear) (\d+)", title)
    assert [name for name, _ in found] == ["softmax", "DPFP-3", "DPFP-2", "DPFP-1", "linear"]
    assert all(low <= int(n) <= high for (_, n), (low, high) in zip(found, SOLVED, strict=True))
    title = title_of(loss_chart(frame, 2))
    assert re.search(r"DPFP-1 \(delta\) 1[23]\d", title) and "(sum)" not in title


@pytest.mark.parametrize("n_features", [64, 384])
def test_the_least_loss_is_the_error_of_the_best_matrix_of_rank_r(n_features):
    for n_keys in (51, 101, 399):
        left = np.linalg.svd(np.eye(n_keys), compute_uv=False)[n_features:]
        assert least_loss(n_features, n_keys) == pytest.approx((left**2).sum() / n_keys / 2)


def test_what_is_far_below_the_limit_is_drawn_at_the_edge_and_told_as_it_is(frame):
    (points,) = data_with(loss_chart(frame, 1), "drawn", "n_seeds")
    softmax = [p for p in points if p["series"] == "softmax" and p["source"] == "published"]
    least = min(softmax, key=lambda point: point["value"])
    assert least["value"] < 1e-5 and least["drawn"] == pytest.approx(1e-4)


@pytest.mark.slow
def test_published_points_stand_alone_before_anything_is_recorded():
    frame = retrieval_frame([])
    for chart in (loss_chart(frame, 1), loss_chart(frame, 2)):
        title = title_of(chart)
        assert "published losses" in title and "NaN" not in svg(chart)
    assert "no data yet" in svg(loss_chart(frame.clear(), 1))


@pytest.mark.slow
def test_one_live_run_makes_a_chart(rows):
    live = [copy.deepcopy(rows[0]) | {"scale": "live"}]
    chart = loss_chart(retrieval_frame(live), 1)
    (points,) = data_with(chart, "drawn", "n_seeds")
    assert "NaN" not in svg(chart) and "live" in {one["source"] for one in points}


def test_a_memory_keeps_its_colour_and_no_two_series_look_alike(frame):
    looks = {}
    for name, setting in CHARTS.items():
        scales = {}
        for layer in loss_chart(frame, setting).to_dict()["layer"]:
            for channel in ("color", "strokeDash"):
                scale = layer["encoding"].get(channel, {}).get("scale")
                if scale:
                    scales[channel] = dict(zip(scale["domain"], scale["range"], strict=True))
        for series in scales["color"]:
            looks[name, series] = [str(scale[series]) for scale in scales.values()]
        drawn = [look for (chart, _), look in looks.items() if chart == name]
        assert len(scales) == 2 and len(set(map(tuple, drawn))) == len(drawn)
    assert looks["capacity", "linear"][0] == style.colour("linear")
    for series in ("DPFP-1", "DPFP-3"):
        assert looks["capacity", series][0] == style.colour("dpfp")
    assert looks["update_rules", "linear (delta)"][0] == style.colour("delta")


def test_the_keys_solved_are_a_point_with_their_interval(rows, frame):
    drawn = data_with(solved_chart(frame), "solved", "low", "high")[0]
    found = {(one["series"], one["source"]): one for one in drawn}
    for one in drawn:
        assert 0 <= one["low"] <= one["solved"] <= one["high"] <= 600
    assert 120 <= found["DPFP-1", "recorded"]["solved"] <= 140
    assert found["DPFP-1", "published"]["low"] < found["DPFP-1", "recorded"]["low"]
    assert found["FAVOR+ 64", "published"]["solved"] == 0
    assert found["softmax", "recorded"]["solved"] == 600
    assert ("DPFP-3", "published") not in found
    title = title_of(solved_chart(frame))
    assert "linear" in title and "FAVOR+" not in title
    published_only = solved_chart(retrieval_frame([]))
    assert title_of(published_only) == "Every key written once: published losses"
    assert "no data yet" in svg(solved_chart(frame.head(0)))
