"""The charts of memories draw what their frame holds, on any page, and say where nothing is."""

import copy
import re

import numpy as np
import pytest
import synthetic
import vl_convert
from drawn import title_of

from replib.claims import EXPERIMENTS
from replib.claims.capacity import charts as memories
from replib.claims.capacity import frames
from replib.claims.capacity.judge import SOLVED_LOSS
from replib.lab import recorded
from replib.pages import style
from replib.published import published

THEIRS = published()["fastweights_logs"]
SOLVED = ((520, 600), (360, 400), (240, 280), (120, 140), (60, 80))  # where half of the runs do
CHARTS = {"capacity": memories.capacity_chart, "update_rules": memories.update_rules_chart}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = synthetic.write_recorded(tmp_path_factory.mktemp("rows"), *CHARTS)
    return [row for name in CHARTS for row in recorded.read_rows(name, folder)]


@pytest.fixture(scope="module")
def frame(rows):
    return frames.retrieval_frame(rows, THEIRS)


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
    assert frames.retrieval_frame([], THEIRS).schema == frame.schema


def test_live_runs_are_told_apart_and_the_latest_settings_count(rows):
    first = next(row for row in rows if row["config"]["model"]["attention"] == "linear")
    later = copy.deepcopy(first) | {"scale": "live"}
    other = copy.deepcopy(later)
    other["config"]["n_steps"], other["summary"]["reported_loss"] = 500, 0.25
    small = copy.deepcopy(later)
    small["config"]["model"]["head_dim"] = 16
    frame = frames.retrieval_frame([first, later, other, small], THEIRS)
    live = frame.filter(frame["source"] == "live")
    assert live.select("series", "value", "n_seeds", "n_features").rows() == [
        ("linear", 0.25, 1, 64),
        ("linear, D = 16", first["summary"]["best_loss"], 1, 16),
    ]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_draws_without_missing_numbers_and_describes_itself(frame, name):
    chart = CHARTS[name](frame)
    drawing = svg(chart)
    assert "NaN" not in drawing and "undefined" not in drawing and ">null<" not in drawing
    spec = chart.to_dict()
    assert spec["width"] == "container" and spec["config"]["background"] == "transparent"
    assert "log axis" in spec["description"] and str(SOLVED_LOSS) in spec["description"]


@pytest.mark.slow
def test_every_memory_is_named_with_its_loss_at_the_slider(frame):
    drawing = svg(memories.capacity_chart(frame, s=400))
    for text in ("linear 0.42", "DPFP-1 0.34", "DPFP-2 0.18", "DPFP-3 0.02", "softmax 0.0005"):
        assert f">{text}" in drawing.replace("  ", " "), text
    assert ">linear 0.18" in svg(memories.capacity_chart(frame, s=100)).replace("  ", " ")
    drawing = svg(memories.update_rules_chart(frame, s=200)).replace("  ", " ")
    assert ">FAVOR+ 128 (delta) diverged" in drawing and "crosses: diverged" in drawing


def test_the_numbers_at_the_right_say_which_s_they_are_for_and_a_missing_one_is_a_dash(frame):
    some = frame.filter((frame["series"] != "linear") | (frame["n_keys"] != 400))
    drawing = svg(memories.capacity_chart(some, s=400)).replace("  ", " ")
    assert ">loss at S = 400:<" in drawing and ">linear –<" in drawing
    assert ">loss at S = 100:<" in svg(memories.capacity_chart(some, s=100))
    published = svg(memories.capacity_chart(frames.retrieval_frame([], THEIRS)))
    assert "loss at S" not in published and "–<" not in published


@pytest.mark.parametrize(("s", "shown"), [(None, 200), (100, 100), (95, 100), (10_000, 600)])
def test_the_slider_starts_at_the_nearest_s_that_was_run(frame, s, shown):
    params = {
        param["name"]: param for param in memories.capacity_chart(frame, s).to_dict()["params"]
    }
    slider = params["shown_keys"]
    assert slider["value"] == shown
    assert [slider["bind"][name] for name in ("min", "max", "step")] == [20, 600, 20]


@pytest.mark.parametrize("name", CHARTS)
def test_a_click_in_the_legend_singles_out_a_memory(frame, name):
    vega = vl_convert.vegalite_to_vega(CHARTS[name](frame).to_json())
    (legend,) = vega["legends"]
    assert all(legend["encode"][part]["interactive"] for part in ("labels", "symbols", "entries"))
    params = {param["name"]: param for param in CHARTS[name](frame).to_dict()["params"]}
    assert params["shown_series"]["bind"] == "legend"


def test_the_title_says_what_each_memory_solves(frame):
    title = title_of(memories.capacity_chart(frame))
    found = re.findall(r"(softmax|DPFP-\d|linear) (\d+)", title)
    assert [name for name, _ in found] == ["softmax", "DPFP-3", "DPFP-2", "DPFP-1", "linear"]
    assert all(low <= int(n) <= high for (_, n), (low, high) in zip(found, SOLVED, strict=True))
    title = title_of(memories.update_rules_chart(frame))
    assert re.search(r"DPFP-1 \(delta\) 1[23]\d", title) and "(sum)" not in title


def test_the_dotted_line_is_the_error_of_the_best_matrix_of_rank_r(frame):
    (curves,) = data_with(
        memories.capacity_chart(frame), "series", "n_keys", "drawn", but="n_seeds"
    )
    held = {"linear": 64, "DPFP-1": 128, "DPFP-2": 256, "DPFP-3": 384}
    assert {row["series"] for row in curves} == held.keys()
    for s in (101, 399):
        here = {row["series"]: row["drawn"] for row in curves if row["n_keys"] == s}
        singular = np.linalg.svd(np.eye(s), compute_uv=False)
        for name, loss in here.items():
            assert loss == pytest.approx((singular[held[name] :] ** 2).sum() / s / 2, rel=1e-3)
        assert here.keys() == {name for name, r in held.items() if r < s}


def test_what_is_far_below_the_limit_is_drawn_at_the_edge_and_told_as_it_is(frame):
    (points,) = data_with(memories.capacity_chart(frame), "drawn", "n_seeds")
    softmax = [p for p in points if p["series"] == "softmax" and p["source"] == "published"]
    least = min(softmax, key=lambda point: point["value"])
    assert least["value"] < 1e-5 and least["drawn"] == pytest.approx(1e-4)


def test_published_points_stand_alone_before_anything_is_recorded():
    frame = frames.retrieval_frame([], THEIRS)
    for chart in (memories.capacity_chart(frame), memories.update_rules_chart(frame)):
        title = title_of(chart)
        assert "published losses" in title and "NaN" not in svg(chart)
    assert "no data yet" in svg(memories.capacity_chart(frame.clear()))


def test_one_live_run_makes_a_chart(rows):
    live = [copy.deepcopy(rows[0]) | {"scale": "live"}]
    chart = memories.capacity_chart(frames.retrieval_frame(live, THEIRS))
    drawing = svg(chart)
    assert "filled: this session" in drawing and "NaN" not in drawing
    assert "bind" not in {p["name"]: p for p in chart.to_dict()["params"]}["shown_keys"]


def test_a_memory_keeps_its_colour_and_no_two_series_look_alike(frame):
    looks = {}
    for name, draw in CHARTS.items():
        scales = {}
        for layer in draw(frame).to_dict()["layer"]:
            for channel in ("color", "strokeDash", "shape"):
                scale = layer["encoding"].get(channel, {}).get("scale")
                if scale:
                    scales[channel] = dict(zip(scale["domain"], scale["range"], strict=True))
        for series in scales["color"]:
            looks[name, series] = [str(scale[series]) for scale in scales.values()]
        drawn = [look for (chart, _), look in looks.items() if chart == name]
        assert len(scales) == 3 and len(set(map(tuple, drawn))) == len(drawn)
    assert looks["capacity", "linear"][0] == style.colour("linear")
    for series in ("DPFP-1", "DPFP-3"):
        assert looks["capacity", series][0] == style.colour("dpfp")
    assert looks["update_rules", "linear (delta)"][0] == style.colour("delta")


def test_the_keys_solved_are_a_point_with_their_interval(rows, frame):
    drawn = data_with(memories.solved_chart(frame), "solved", "low", "high")[0]
    found = {(one["series"], one["source"]): one for one in drawn}
    for one in drawn:
        assert 0 <= one["low"] <= one["solved"] <= one["high"] <= 600
    assert 120 <= found["DPFP-1", "recorded"]["solved"] <= 140
    assert found["DPFP-1", "published"]["low"] < found["DPFP-1", "recorded"]["low"]
    assert found["FAVOR+ 64", "published"]["solved"] == 0
    assert found["softmax", "recorded"]["solved"] == 600
    assert ("DPFP-3", "published") not in found
    title = title_of(memories.solved_chart(frame))
    assert "linear" in title and "FAVOR+" not in title
    published_only = memories.solved_chart(frames.retrieval_frame([], THEIRS))
    assert title_of(published_only) == "Keys solved, as published"
    assert "no data yet" in svg(memories.solved_chart(frame.head(0)))
