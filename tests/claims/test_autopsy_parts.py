"""What the autopsy notebook offers to run, and shows of it."""

import pytest
import synthetic
import vl_convert
from drawn import title_of

from replib.claims.autopsy import charts
from replib.claims.autopsy import page as parts
from replib.claims.autopsy.defects import DEFECTS, all_defects, article_defects
from replib.lab.recorded import read_rows
from replib.lab.run import CostJob
from replib.pages import style
from replib.published import published

VALUES = {
    "seq_len": 8,
    "n_steps": 10,
    "seeds": 1,
    "repeats": 3,
    "model": parts.MODELS[0],
    "attention": ("softmax", "linear"),
    "defects": ("leak", "float64"),
}


@pytest.mark.parametrize("defects", [(), ("leak",), tuple(DEFECTS)])
def test_each_defect_alone_is_timed_beside_mended_steps_whatever_the_switches_are(defects):
    values = VALUES | {"measure": parts.EACH_ALONE, "defects": defects}
    (job,) = parts.live_jobs(values)
    assert isinstance(job, CostJob) and job.n_repeats == 3
    for attention in ("softmax", "linear"):
        sets = [one.defects for one in job.configs if one.model.attention == attention]
        assert sets == [(), *((name,) for name in all_defects(attention))]
    assert parts.live_jobs(values | {"attention": ()}) == []


def test_steps_with_each_defect_alone_are_drawn_as_its_effect(tmp_path):
    synthetic.write_recorded(tmp_path, "autopsy_time")
    recorded = read_rows("autopsy_time", tmp_path)
    alone = [r for r in recorded if len(r["config"]["defects"]) < 2]
    shown = parts.session_charts([r for r in alone if r["config"]["task"]["seq_len"] == 8])
    assert "“batch 32, loss summed” costs most of a linear step: 3×" in shown.text.replace(
        "\\n", " "
    )
    drawing = vl_convert.vegalite_to_svg(style.printable(charts.effects_chart(alone)).to_json())
    assert all(f">{DEFECTS[name].title}<" in drawing for name in article_defects("linear"))
    for row in alone:
        row["summary"]["time_ms_samples"] = row["summary"]["time_ms_samples"][:1]
    assert "repeated fewer than 3 times, too seldom to compare" in parts.session_charts(alone).text
    switched = [r for r in recorded if r["config"]["defects"] in ([], ["leak"])]
    some = [r for r in switched if r["config"]["task"]["seq_len"] == 8]
    assert "time of a step, with switches over mended" in parts.session_charts(some).text


def test_the_losses_are_titled_with_the_defect_that_it_helps_most_to_mend(tmp_path):
    synthetic.write_recorded(tmp_path, "autopsy")
    rows, article = read_rows("autopsy", tmp_path), published()["dm2022"]
    title = title_of(charts.losses_chart(rows, article))
    assert title == (
        "At N = 64, linear runs end at 2.2 broken, 1.5 with “Adam at 1e-4” alone mended (1.5 with "
        "the mask too), under 0.001 mended"
    )
    masked = [row for row in rows if len(row["config"]["defects"]) != 5]
    assert "alone mended, under 0.001 mended" in title_of(charts.losses_chart(masked, article))
    some = [row for row in rows if len(row["config"]["defects"]) in (0, 1, 7)]
    assert "2.2 broken, under 0.001 mended" in title_of(charts.losses_chart(some, article))
    for few in ([], some[:1]):
        assert "linear runs end at" not in title_of(charts.losses_chart(few, article))


def test_what_was_not_measured_has_no_column(tmp_path):
    synthetic.write_recorded(tmp_path, "autopsy_time", "autopsy")

    def rows(name):
        found = read_rows(name, tmp_path)
        return [r for r in found if r["config"]["defects"] in ([], ["leak"])]

    steps, losses = (rows(name)[:40] for name in ("autopsy_time", "autopsy"))
    of_steps = parts.comparison([], steps).splitlines()
    assert of_steps[0] == "|  | time of a step, with switches over mended |"
    assert parts.comparison(losses, []).splitlines()[0] == (
        "|  | final loss, mended | with switches |"
    )
    both = parts.comparison(losses, steps).splitlines()
    assert both[0].count("|") == both[2].count("|") == 5
    assert parts.comparison([], []) == ""
    mended = [row for row in steps if not row["config"]["defects"]]
    assert "turn one on to compare" in parts.comparison([], mended)
    lone = [row for row in steps if row["config"]["defects"]][:1]  # its mended side is to come
    assert parts.comparison([], lone) == ""
