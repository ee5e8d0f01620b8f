"""The autopsy's charts draw what their frames hold, on any page, and say where nothing is known."""

import copy
import math

import pytest
import synthetic
import vl_convert

from replib.claims.autopsy import ablation as claims
from replib.claims.autopsy import charts as autopsy
from replib.claims.autopsy import frames
from replib.claims.autopsy import step_times as timing
from replib.claims.autopsy.defects import DEFECTS, article_defects
from replib.claims.autopsy.step_times import NOT_THERE
from replib.lab import recorded
from replib.pages import style
from replib.published import published

ARTICLE = published()["dm2022"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    names = ("autopsy", "autopsy_time")
    folder = synthetic.write_recorded(tmp_path_factory.mktemp("rows"), *names)
    return {name: recorded.read_rows(name, folder) for name in names}


def drawn(rows, name):
    losses, times = rows["autopsy"], rows["autopsy_time"]
    if name == "effects":
        return autopsy.effects_chart(times)
    if name == "slowdown":
        return autopsy.slowdown_chart(times, ARTICLE, 64)
    if name == "losses":
        return autopsy.losses_chart(losses, ARTICLE)
    if name == "scale":
        return autopsy.scale_chart(losses, ARTICLE)
    if name == "loss curves":
        return autopsy.loss_curves_chart(losses, ARTICLE)
    if name == "prediction":
        return autopsy.prediction_chart(ARTICLE, ARTICLE["N"], "quadratic")
    return autopsy.switches_curves([r for r in losses if r["config"]["defects"] in ([], ["adam"])])


NAMES = ("effects", "slowdown", "losses", "scale", "loss curves", "prediction", "switches")


def svg(chart):
    text = vl_convert.vegalite_to_svg(style.printable(chart).to_json())
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize("name", NAMES)
def test_a_chart_draws_without_missing_numbers_and_describes_itself(rows, name):
    chart = drawn(rows, name)
    drawing = svg(chart)
    assert "NaN" not in drawing and "undefined" not in drawing and ">null<" not in drawing
    spec = chart.to_dict()
    assert spec["width"] == "container" and spec["config"]["background"] == "transparent"
    assert len(spec["description"]) > 30


def test_every_defect_has_a_line_in_the_chart_of_effects_and_losses(rows):
    subtitle = drawn(rows, "effects").to_dict()["title"]["subtitle"]
    assert NOT_THERE in " ".join(subtitle)
    for chart in ("effects", "losses"):
        drawing = svg(drawn(rows, chart))
        assert all(f">{DEFECTS[name].title}<" in drawing for name in article_defects("linear"))


def test_effects_are_labelled_with_their_factors(rows):
    drawing = svg(drawn(rows, "effects"))
    assert drawing.count(">2.00×<") == drawing.count(">3.00×<") == 2  # alone on and alone off


def test_stages_lead_from_mended_to_the_article(rows):
    found = timing.attribution(rows["autopsy_time"], ARTICLE, 64)
    frame = frames.stages(found)
    by_line = {row["line"]: row for row in frame.to_dicts()}
    assert by_line["here, mended"]["end"] == pytest.approx(found.mended.value)
    steps = frame.filter(frame["kind"] == "step").to_dicts()
    for before, after in zip(steps, steps[1:], strict=False):
        assert after["start"] == pytest.approx(before["end"])
    assert steps[-1]["end"] == pytest.approx(by_line["here, broken"]["end"])
    assert by_line["unexplained"]["start"] == pytest.approx(by_line["here, broken"]["end"])
    assert by_line["unexplained"]["end"] == pytest.approx(by_line["2022 article"]["end"])


def test_losses_hold_every_run_and_the_article(rows):
    frame = frames.losses(rows["autopsy"], ARTICLE)
    ours = frame.filter(frame["line"] != frames.ARTICLE_LINE)
    runs = claims.ablated(rows["autopsy"])
    counted = [row for key, some in runs.items() if key[2] in claims.ROLES for row in some]
    assert len(ours) == len(counted) and len(frame) == len(ours) + 8
    for attention in ("linear", "softmax"):
        lines = frame.filter(frame["attention"] == attention)["line"].unique().to_list()
        assert sorted(lines) == sorted(frames.loss_lines(attention))
        assert len(lines) == 3 + len(article_defects(attention))
    assert "guessing, ln 10" in svg(drawn(rows, "losses"))


def test_losses_of_one_series_stand_beside_their_names_and_without_the_other_in_the_legend(rows):
    both = drawn(rows, "losses")
    assert "alone off" in svg(both) and "yOffset" in both.to_json()
    some = [
        row
        for key, runs in claims.ablated(rows["autopsy"]).items()
        for row in runs
        if key[2] != claims.ALONE_OFF
    ]
    one = autopsy.losses_chart(some, ARTICLE)
    assert "alone on<" in svg(one) and "alone off<" not in svg(one)
    assert "yOffset" not in one.to_json()


def test_the_loss_scale_can_be_undone_by_a_button(rows):
    params = drawn(rows, "scale").to_dict()["params"]
    unit = next(one for one in params if one["name"] == "loss_unit")
    assert unit["bind"]["options"] == ["nats", "printed"] and unit["value"] == "nats"
    frame = frames.scale(ARTICLE)
    ratios = {
        (r["attention"], round(r["printed"] / r["nats"])) for r in frame.to_dicts() if r["nats"]
    }
    assert ratios == {("softmax", 8), ("linear", 32)}


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("quadratic", "N = 3149 (2388 to 4699)"),
        ("full_quadratic", "N = 6219 (1690 to no end)"),
        ("linear", "no crossing"),
        ("power_law", "no crossing"),
    ],
)
def test_a_prediction_says_where_it_is_and_where_the_data_end(model, text):
    drawing = svg(autopsy.prediction_chart(ARTICLE, ARTICLE["N"], model))
    assert f">{text}<" in drawing
    assert ">measured:" in drawing and "N = 8 to 64" in drawing


def test_points_that_are_left_out_are_hollow():
    spec = autopsy.prediction_chart(ARTICLE, [16, 32, 64], "quadratic").to_dict()
    points = [p for data in spec["datasets"].values() for p in data if "used" in p]
    assert {p["seq_len"]: p["used"] for p in points} == {8: False, 16: True, 32: True, 64: True}


def test_curves_with_switches_are_told_from_mended_ones(rows):
    some = [row for row in rows["autopsy"] if row["config"]["defects"] in ([], ["adam"])]
    frame = frames.curves(some)
    assert set(frame["switches"]) == {"mended", "with switches"}
    assert frame["run_id"].n_unique() == len({row["run_id"] for row in some})
    drawing = svg(drawn(rows, "switches"))
    assert ">mended<" in drawing and ">with switches<" in drawing


@pytest.mark.parametrize(
    "chart",
    [
        lambda: autopsy.effects_chart([]),
        lambda: autopsy.slowdown_chart([], ARTICLE, 64),
        lambda: autopsy.losses_chart([], ARTICLE),
    ],
)
def test_no_rows_give_a_chart_that_says_so(chart):
    assert "no data yet" in svg(chart())


def test_the_articles_losses_are_shown_without_rows_of_ours():
    frame = frames.scale(ARTICLE)
    levels = {frames.EXPECTED, frames.BAG}
    assert set(frame["what"]) == {"final", "first plateau", *levels}
    assert "NaN" not in svg(autopsy.scale_chart([], ARTICLE))
    assert all(math.isfinite(value) for value in frame["nats"])


def test_our_own_first_plateaus_stand_beside_the_articles(rows):
    early = copy.deepcopy(rows["autopsy"])
    for row in early:
        row["curve"]["step"] = [20 * i for i in range(1, 11)]
    frame = frames.scale(ARTICLE, early)
    here = frame.filter(frame["what"] == frames.PLATEAU_HERE)
    assert {(r["attention"], r["seq_len"]) for r in here.to_dicts()} == {
        (a, n) for a in ("softmax", "linear") for n in ARTICLE["N"]
    }
    drawing = svg(autopsy.scale_chart(early, ARTICLE))
    assert ">broken here, steps 20–100<" in drawing and ">article, first plateau<" in drawing


@pytest.mark.slow
def test_the_articles_curves_are_drawn_over_our_broken_runs_and_marked_as_read(rows):
    frame = frames.loss_curves(ARTICLE, rows["autopsy"])
    ablated = claims.ablated(rows["autopsy"])
    broken = [row for key, some in ablated.items() if key[2] == claims.BROKEN for row in some]
    ours = frame.filter(frame["kind"] == frames.OURS)
    assert set(ours["line"]) == {row["run_id"] for row in broken}
    read = frame.filter(frame["kind"] == frames.READ)
    assert read["seed"].is_null().all() and read["nats"].max() < 2.5
    drawing = svg(drawn(rows, "loss curves"))
    for text in ("article, as read", "not known", "here, broken"):
        assert f">{text}<" in drawing
    alone = frames.loss_curves(ARTICLE)
    assert set(alone["kind"]) == {frames.READ, frames.BETWEEN}
    assert "here, broken" not in svg(autopsy.loss_curves_chart([], ARTICLE))
