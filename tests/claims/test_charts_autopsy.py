"""The autopsy's charts draw what the rows hold, on any page, and say where nothing is known."""

import pytest
import synthetic
import vl_convert

from replib.claims.autopsy import ablation, charts
from replib.claims.autopsy.defects import DEFECTS, article_defects
from replib.claims.autopsy.prediction import prediction_chart
from replib.claims.autopsy.step_times import NOT_THERE, attribution, step_times
from replib.lab import recorded
from replib.pages import style
from replib.published import published

ARTICLE = published()["dm2022"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    names = ("autopsy", "autopsy_time", "autopsy_full")
    folder = synthetic.write_recorded(tmp_path_factory.mktemp("rows"), *names)
    return {name: recorded.read_rows(name, folder) for name in names}


def with_adam_or_none(rows):
    return [row for row in rows["autopsy"] if row["config"]["defects"] in ([], ["adam"])]


CHARTS = {
    "effects": lambda rows: charts.effects_chart(rows["autopsy_time"]),
    "slowdown": lambda rows: charts.slowdown_chart(rows["autopsy_time"], ARTICLE, 64),
    "losses": lambda rows: charts.losses_chart(rows["autopsy"], ARTICLE),
    "full size": lambda rows: charts.full_size_chart(rows["autopsy_full"], ARTICLE),
    "prediction": lambda rows: prediction_chart(ARTICLE, ARTICLE["N"], "quadratic"),
    "switches": lambda rows: charts.switches_curves(with_adam_or_none(rows)),
}


def svg(chart):
    text = vl_convert.vegalite_to_svg(style.printable(chart).to_json())
    return text.replace("\u00a0", " ")


def points_of(chart, field):
    data = chart.to_dict()["datasets"].values()
    return max((points for points in data if field in points[0]), key=len)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_draws_without_missing_numbers_and_describes_itself(rows, name):
    chart = CHARTS[name](rows)
    drawing = svg(chart)
    assert "NaN" not in drawing and "undefined" not in drawing and ">null<" not in drawing
    spec = chart.to_dict()
    assert spec["width"] == "container" and spec["config"]["background"] == "transparent"
    assert len(spec["description"]) > 30


@pytest.mark.parametrize("name", ["effects", "slowdown", "losses", "full size"])
def test_no_rows_give_a_chart_that_says_so(name):
    assert "no data yet" in svg(
        CHARTS[name]({"autopsy": [], "autopsy_time": [], "autopsy_full": []})
    )


@pytest.mark.slow
def test_every_defect_has_a_line_in_the_chart_of_effects_and_losses(rows):
    subtitle = CHARTS["effects"](rows).to_dict()["title"]["subtitle"]
    assert NOT_THERE in " ".join(subtitle)
    for name in ("effects", "losses"):
        drawing = svg(CHARTS[name](rows))
        assert all(f">{DEFECTS[one].title}<" in drawing for one in article_defects("linear"))


def test_effects_are_labelled_with_their_factors(rows):
    drawing = svg(CHARTS["effects"](rows))
    assert drawing.count(">1.3×<") == drawing.count(">3×<") == 2  # alone on and alone off


def test_stages_lead_from_mended_to_the_article(rows):
    found = attribution(step_times(ablation.ablated(rows["autopsy_time"])), ARTICLE, 64)
    bars = {one["line"]: one for one in points_of(CHARTS["slowdown"](rows), "factor")}
    assert bars["here, mended"]["end"] == pytest.approx(found.mended.value, rel=1e-4)
    steps = [one for one in bars.values() if one["kind"] == "step"]
    for before, after in zip(steps, steps[1:], strict=False):
        assert after["start"] == pytest.approx(before["end"], rel=1e-4)
    assert steps[-1]["end"] == pytest.approx(bars["here, broken"]["end"], rel=1e-4)
    assert bars["unexplained"]["start"] == pytest.approx(bars["here, broken"]["end"], rel=1e-4)
    assert bars["unexplained"]["end"] == pytest.approx(bars["2022 article"]["end"], rel=1e-4)


def test_losses_hold_every_run_and_the_article(rows):
    chart = CHARTS["losses"](rows)
    points = points_of(chart, "final_loss")
    runs = ablation.ablated(rows["autopsy"])
    counted = [row for key, some in runs.items() if key[2] in ablation.ROLES for row in some]
    assert len(points) == len(counted) + len(ARTICLE["N"]) * 2
    for attention in ("linear", "softmax"):
        lines = {one["line"] for one in points if one["attention"] == attention}
        assert len(lines) == 3 + len(article_defects(attention))
    assert "guessing, ln 10" in svg(chart)


@pytest.mark.slow
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
    drawing = svg(prediction_chart(ARTICLE, ARTICLE["N"], model))
    assert f">{text}<" in drawing
    assert ">measured:" in drawing and "N = 8 to 64" in drawing


def test_points_that_are_left_out_are_hollow():
    points = points_of(prediction_chart(ARTICLE, [16, 32, 64], "quadratic"), "used")
    assert {p["seq_len"]: p["used"] for p in points} == {8: False, 16: True, 32: True, 64: True}


def test_curves_with_switches_are_told_from_mended_ones(rows):
    drawing = svg(CHARTS["switches"](rows))
    assert ">mended<" in drawing and ">with switches<" in drawing
