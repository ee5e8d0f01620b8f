"""What the autopsy's page offers to run, and shows of it."""

import pytest
import synthetic
from drawn import title_of

from replib.claims.autopsy import charts, other_works, page
from replib.claims.autopsy.defects import DEFECTS, all_defects
from replib.lab.recorded import read_rows
from replib.lab.run import CostJob
from replib.published import published

VALUES = {
    "seq_len": 8,
    "n_steps": 10,
    "model": page.MODELS[0],
    "attention": ("softmax", "linear"),
}


@pytest.mark.parametrize("defects", [(), ("leak", "float64"), tuple(DEFECTS)])
def test_the_runs_are_mended_ones_and_ones_with_the_switches_that_the_article_had(defects):
    *runs, timed = page.live_jobs(VALUES | {"defects": defects})
    sets = [
        (attention, some)
        for attention in ("linear", "softmax")
        for some in dict.fromkeys(
            ((), tuple(one for one in all_defects(attention) if one in defects))
        )
    ]
    assert [(job.config.model.attention, job.config.defects) for job in runs] == sets
    assert isinstance(timed, CostJob)
    assert [(one.model.attention, one.defects) for one in timed.configs] == sets
    assert page.live_jobs(VALUES | {"defects": defects, "attention": ()}) == []


def test_a_set_of_defects_has_a_line_and_its_step_is_compared_with_a_mended_one(tmp_path):
    synthetic.write_recorded(tmp_path, "autopsy_time", "autopsy")

    def rows(name, attention, *sets):
        return [
            row
            for row in read_rows(name, tmp_path)
            if row["config"]["defects"] in sets
            and row["config"]["model"]["attention"] == attention
            and row["config"]["task"]["seq_len"] == 8
        ]

    times = rows("autopsy_time", "linear", [], ["float64"])
    _, _, mended, switched = page.comparison(times, lambda row: "100% / 9%").splitlines()
    assert mended == "| linear, mended | – | – | – | – |"
    assert switched == "| linear, with switches | – | – | – | 2× (no interval) |"
    losses = rows("autopsy", "softmax", [])
    (line,) = page.comparison(losses, lambda row: "100% / 9%").splitlines()[2:]
    assert line.endswith("| 100%, 100%, 100% | 100% / 9% | – |")


def test_the_losses_are_titled_with_the_defect_that_it_helps_most_to_mend(tmp_path):
    synthetic.write_recorded(tmp_path, "autopsy")
    rows, article = read_rows("autopsy", tmp_path), published()["dm2022"]
    title = title_of(charts.losses_chart(rows, article))
    assert title == (
        "At N = 64, linear runs end at 2.2 broken, 1.5 with “Adam at 1e-4” alone mended (1.5 with "
        "the mask too), under 0.001 mended"
    )
    some = [row for row in rows if len(row["config"]["defects"]) in (0, 1, 7)]
    assert "2.2 broken, under 0.001 mended" in title_of(charts.losses_chart(some, article))
    for few in ([], some[:1]):
        assert "linear runs end at" not in title_of(charts.losses_chart(few, article))


@pytest.mark.slow
def test_other_works_are_told_mended_and_broken():
    pytest.importorskip("sacrebleu")
    lines = page.others_table().splitlines()
    assert len(lines) == 2 + len(other_works.shown())
    assert "moves by 0% when two earlier tokens" in lines[3].split(" | ")[2]
    assert "move by 0% when all later tokens" in lines[4].split(" | ")[1]
