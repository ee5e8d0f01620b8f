"""What is recorded first where time is short."""

import math
from dataclasses import replace
from time import monotonic

import pytest
from small import cost_job, experiment_of, tiny

from replib.lab import budget
from replib.lab.budget import Budget, by_value, wanted
from replib.lab.record import record
from replib.tasks.text import Text


def named(name, *jobs):
    return replace(experiment_of(*jobs), name=name)


def test_first_runs_come_before_second_seeds_and_what_decides_before_the_rest():
    deciding = named("deciding", tiny(0), tiny(1), tiny(0, attention="softmax"))
    other = named("other", tiny(0), tiny(1), cost_job())
    asked = [(one, job) for one in (other, deciding) for job in one.jobs("smoke")]
    order = [(e.name, job.seeds[0], job.timed) for _, (e, job) in by_value(asked, {"deciding"})]
    assert order == [
        ("deciding", 0, False),
        ("deciding", 0, False),  # of another mechanism
        ("other", 0, False),
        ("other", 0, True),
        ("deciding", 1, False),
        ("other", 1, False),
    ]


def test_what_is_recorded_is_not_wanted_and_its_second_seed_stays_a_second(data):
    one = named("tiny", tiny(0), tiny(1), tiny(0, attention="softmax"))
    assert len(list(record(named("tiny", tiny(0)), "smoke", device="cpu"))) == 1
    left = wanted([one], {"tiny"}, "smoke", "cpu")
    found = [(job.seed, job.config.model.attention) for _, (_, job) in left]
    assert found == [(0, "softmax"), (1, "linear")]


def test_what_lacks_its_data_is_named_with_the_reason(data, monkeypatch):
    monkeypatch.delenv("REPLIB_TEXTS", raising=False)
    job = tiny(attention="softmax")
    lacking = replace(job, config=replace(job.config, task=Text(corpus="ptb")))
    with pytest.warns(UserWarning, match="softmax is left out: ptb is not at hand: set REPLIB"):
        left = wanted([named("tiny", lacking, tiny())], {"tiny"}, "smoke", "cpu")
    assert [job.config.model.attention for _, (_, job) in left] == ["linear"]


@pytest.fixture
def predicted(monkeypatch):
    """Seconds of a run by its number of steps; a timed job has none."""

    def seconds(self, job):
        return math.nan if job.timed else job.config.n_steps

    monkeypatch.setattr(Budget, "_predicted", seconds)


def steps_of(placed, left_s, said=None):
    chooser = Budget(monotonic() + left_s, "cpu", (said if said is not None else []).append)
    return [getattr(job.configs[0], "n_steps", None) for _, job in chooser.chosen(placed)]


def placed(*jobs):
    return [(0, (experiment_of(*jobs), job)) for job in jobs]


def test_the_shortest_comes_first_and_what_does_not_fit_is_told(predicted):
    said = []
    jobs = placed(tiny(n_steps=300), tiny(n_steps=10), tiny(n_steps=200))
    assert steps_of(jobs, 251, said) == [10, 200, 300]  # the last has the rest of the time
    assert said == ["tiny: 1 job left out, the shortest would take about 300 s"]


def test_a_better_place_goes_before_a_shorter_run(predicted):
    (first, second) = placed(tiny(n_steps=30), tiny(n_steps=10))
    assert steps_of([first, (1, second[1])], 1000) == [30, 10]


def test_of_what_cannot_be_predicted_nothing_is_left_out(predicted):
    assert steps_of(placed(cost_job(), tiny(n_steps=10)), 1000) == [10, None]


def test_timed_points_that_do_not_fit_are_not_begun(monkeypatch):
    monkeypatch.setattr(Budget, "_predicted", lambda self, job: 1e6)
    assert steps_of(placed(cost_job(), tiny(n_steps=10)), 1000) == [10]


def test_when_time_is_up_nothing_is_begun(predicted):
    assert steps_of(placed(tiny(n_steps=10)), -1.0) == []
    assert budget.WORTH_S > 1
    assert steps_of(placed(tiny(n_steps=10)), 1.0) == []


def test_predictions_take_no_more_than_their_share_of_the_time(monkeypatch):
    asked = []

    def slow(self, job):
        asked.append(job)
        self._may_predict_s -= 6.0  # as if it had taken so long
        return 1.0

    monkeypatch.setattr(Budget, "_predicted", slow)
    jobs = placed(*(tiny(n_steps=n) for n in (10, 20, 30, 40, 50, 60)))
    assert steps_of(jobs, 60.0) == [10, 20, 30, 40, 50, 60]
    assert len(asked) == 3  # of 15 seconds


def test_a_run_is_predicted_by_what_it_is_made_of():
    """No more than that it is a number: how good it is, the tests of predictions say."""
    assert 0 < Budget(monotonic() + 100, "cpu").seconds(tiny()) < 1000
