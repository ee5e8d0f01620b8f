"""What runs of the 2022 article's own size say follows the rows."""

import copy

import pytest
import synthetic

from replib.claims import EXPERIMENTS
from replib.claims.autopsy import charts, judge
from replib.claims.autopsy import full_size as full
from replib.claims.autopsy.defects import full_size_defects
from replib.claims.common import replication_model
from replib.lab import recorded
from replib.lab.verdict import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from replib.published import published

ARTICLE = published()["dm2022"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """As written softmax stands at 10.3 as printed, with the usual scale at 6; linear ends at 0."""
    folder = synthetic.write_recorded(tmp_path_factory.mktemp("rows"), "autopsy_full")
    return with_ends(
        recorded.read_rows("autopsy_full", folder),
        lambda attention, off: 0.0 if attention == "linear" else 10.3 if not off else 6.0,
    )


def with_ends(rows, end):
    """The rows with printed losses and accuracies that a function of mechanism and what is mended
    gives."""
    rows = copy.deepcopy(rows)
    for row in rows:
        attention, defects = row["config"]["model"]["attention"], row["config"]["defects"]
        off = {*full_size_defects(attention)} - {*defects, "batch_32"}
        loss = end(attention, off) / full.BATCH
        row["curve"]["loss"] = [loss] * len(row["curve"]["step"])
        row["summary"] |= {"final_loss": loss, "final_accuracy": 0.3 if loss else 1.0}
    return rows


def test_the_jobs_are_the_articles_model_as_written_and_with_one_thing_mended():
    jobs = EXPERIMENTS["autopsy_full"].jobs("laptop")
    sets = {}
    for job in jobs:
        config, attention = job.config, job.config.model.attention
        assert config.model == replication_model(attention)
        assert (config.task.seq_len, config.batch_size) == (8, 8)
        off = {*full_size_defects(attention)} - {*config.defects, "batch_32"}
        kind = attention, "batch_32" in config.defects
        assert config.n_steps == {("softmax", True): 1000, ("linear", True): 2000}.get(kind, 3000)
        sets.setdefault((*kind, frozenset(off)), []).append(job.seed)
        trained = config.trained
        as_written = {"adam", "details"} <= {*config.defects}
        assert not as_written or (trained.lr, trained.clip) == (1e-4, "none")
    for attention in ("softmax", "linear"):
        assert sets[attention, False, frozenset()] == [0, 1, 2]
        assert sets[attention, True, frozenset()] == [0]
    alone = {next(iter(off)) for kind, batch_32, off in sets if len(off) == 1}
    assert alone == {*full_size_defects("softmax")} - {"reused_encoder"}


def test_softmax_comes_back_where_all_runs_as_written_end_where_the_articles_does(rows):
    verdict = judge.softmax_returns(rows, ARTICLE)
    assert verdict.status == SUPPORTED
    assert "3 runs, and at 30% accuracy; the article's ends at 10.3" in verdict.headline
    evidence = "\n".join(verdict.lines)
    assert "softmax, as written, but with the embedding times √E: 6.0 (6.0 to 6.0)" in evidence
    assert "softmax, as written, batch 32, 1000 steps: 10.3" in evidence


@pytest.mark.parametrize("end", [8.0, 0.0])
def test_softmax_does_not_come_back_where_it_ends_elsewhere_or_learns(rows, end):
    moved = with_ends(rows, lambda attention, off: end)
    assert judge.softmax_returns(moved, ARTICLE).status == NOT_SUPPORTED


def test_one_run_apart_decides_nothing_and_without_runs_nothing_is_said(rows):
    moved = copy.deepcopy(rows)
    moved[0]["curve"]["loss"] = [0.9] * len(moved[0]["curve"]["loss"])
    assert judge.softmax_returns(moved, ARTICLE).status == INCONCLUSIVE
    one = [row for row in rows if row["seed"] == 0]
    assert judge.softmax_returns(one, ARTICLE).status == INCONCLUSIVE
    assert judge.softmax_returns([], ARTICLE).status == INCONCLUSIVE


def test_every_run_of_the_articles_size_is_drawn_in_a_line_of_what_is_mended(rows):
    chart = charts.full_size_chart(rows, ARTICLE).to_dict()
    drawn = max(chart["datasets"].values(), key=len)
    assert len(drawn) == len(rows) + 2  # and the article's two ends
    lines = {point["line"] for point in drawn}
    assert {"2022 article, softmax", "softmax, as written"} < lines
    assert len(lines) == len(full.variants(rows)) + 2
