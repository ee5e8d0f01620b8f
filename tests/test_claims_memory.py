"""Verdicts on memories follow from the rows: orders, published figures, and rows that are not there
yet."""

import copy
import math

import pytest
import synthetic

from replib import claims_memory as claims
from replib import store
from replib.claims_memory import Solved, last_solved
from replib.experiments import EXPERIMENTS
from replib.published import published

THEIRS = published()["fastweights_logs"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    names = ("capacity", "update_rules", "evaluation", "favor_eps")
    folder = synthetic.write_recorded(tmp_path_factory.mktemp("rows"), *names)
    return {name: store.read_rows(name, folder) for name in names}


def changed(rows, name, loss):
    """The rows with other losses of one memory: `loss(S, seed)`."""
    rows = copy.deepcopy(rows)
    for row in rows:
        if name in {claims.memory_of(row["config"], half_length=half) for half in (False, True)}:
            value = loss(row["config"]["task"]["n_keys"], row["seed"])
            row["summary"] |= {"best_loss": value, "reported_loss": value}
    return rows


def of_keys(rows, *keys):
    return [row for row in rows if row["config"]["task"]["n_keys"] in keys]


def criterion(verdict, text):
    (found,) = [one for one in verdict.criteria if text in one.text]
    return found


@pytest.mark.parametrize("name", ["capacity", "update_rules"])
def test_every_run_of_the_grid_is_known_by_its_published_name(name, recorded):
    jobs = EXPERIMENTS[name].jobs("laptop")
    known = {
        claims.memory_of(row["config"], half_length=row["config"]["eval_half_length"])
        for row in recorded[name]
    }
    assert known == {job.config.model.published_name for job in jobs}
    setting = "setting1" if name == "capacity" else "setting2"
    assert THEIRS[setting].keys() <= known


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 16}, {"report": "last"}, {"n_steps": 500}, {"model": {"head_dim": 32}}],
)
def test_runs_with_other_settings_are_not_judged(recorded, change):
    config = copy.deepcopy(recorded["capacity"][0]["config"])
    assert claims.memory_of(config) == "softmax_cat"
    for name, value in change.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    assert claims.memory_of(config) is None
    verdict = claims.capacity([recorded["capacity"][0] | {"config": config}])
    assert verdict.status == "inconclusive" and "no runs" in verdict.headline


@pytest.mark.parametrize(
    ("solved", "expected"),
    [
        ({20: 1, 40: 1, 60: 0, 80: 0}, Solved(40, 60)),
        ({20: 1, 40: 0, 60: 1, 80: 0}, Solved(20, 40, again=60)),
        ({20: 0, 40: 0}, Solved(0, 20)),
        ({20: 0, 40: 1, 60: 1}, Solved(0, 20, again=60)),
        ({80: 1, 20: 1}, Solved(80, None)),
        ({20: 1, 100: 0}, Solved(20, 100)),
        ({}, Solved(0, None)),
    ],
)
def test_the_last_s_solved_is_the_last_before_a_failure(solved, expected):
    losses = {n: claims.SOLVED_LOSS if good else math.inf for n, good in solved.items()}
    assert last_solved(losses) == expected


def test_a_last_s_says_what_is_known_of_it():
    told = [Solved(40, 60).text, Solved(40, 100).text, Solved(0, 20).text, Solved(600, None).text]
    assert told == ["40", "40 (not 100)", "none", "600 or more"]
    assert Solved(40, 60, 80).text == "40 (not 60, but 80)"
    assert Solved(0, 20, 60).text == "none (not 20, but 60)"


def test_rows_that_follow_from_ranks_support_the_order(recorded):
    verdict = claims.capacity(recorded["capacity"])
    assert verdict.status == "supported"
    assert len(verdict.criteria) == len(claims.ABOVE) + 1
    for part in ("softmax 600 or more", "linear 60", "DPFP-1 120", "DPFP-3 360 (not 400)"):
        assert part in verdict.headline
    one = criterion(verdict, "DPFP-2 remembers")
    assert "last S solved 240 (not 280) against 120" in one.figure


def test_a_memory_that_solves_more_keys_than_it_has_features_is_found_out(recorded):
    text = "no memory solves more keys than its number of features R"
    one = criterion(claims.capacity(recorded["capacity"]), text)
    assert one.met is True and "DPFP-1 120 of 128" in one.figure and "softmax" not in one.figure
    rows = changed(recorded["capacity"], "dpfp1_sum", lambda n, seed: 0.0005 if n < 160 else 0.3)
    one = criterion(claims.capacity(rows), text)
    assert one.met is False and "DPFP-1 140 of 128" in one.figure
    again = changed(recorded["capacity"], "linear_sum", lambda n, seed: 0.0005 * (n != 40) or 0.2)
    assert criterion(claims.capacity(again), text).met is False
    short = of_keys(recorded["capacity"], 20)
    assert criterion(claims.capacity(short), text).met is None


def test_what_the_published_eps_does_to_favor_is_told_and_not_judged(recorded):
    rows = copy.deepcopy(recorded["favor_eps"])
    for row in rows:
        row["summary"]["best_loss"] = 0.25
    lost = next(row for row in rows if row["config"]["task"]["n_keys"] == 100)
    lost["outcome"], lost["summary"]["best_loss"] = "diverged", None
    plain = claims.capacity(recorded["capacity"])
    verdict = claims.capacity([*recorded["capacity"], *rows])
    assert verdict.criteria == plain.criteria and verdict.headline == plain.headline
    assert plain.evidence == ()
    first = verdict.evidence[0]
    assert first.startswith("FAVOR+ 64 without the published ε") and "S = 20: 0.25 for " in first
    assert first.endswith("; 1 of 12 runs diverge")
    assert claims.best_losses(rows) == {}
    alone = claims.capacity(rows)
    assert "S = 20: 0.25 for nothing run" in alone.evidence[0]


def test_a_memory_that_remembers_fewer_keys_than_claimed_is_found_out(recorded):
    rows = changed(recorded["capacity"], "dpfp1_sum", lambda n, seed: 0.4 + n / 1e4 + seed / 1e3)
    verdict = claims.capacity(rows)
    assert verdict.status == "not supported"
    one = criterion(verdict, "DPFP-1 remembers more keys than linear")
    assert one.met is False and "last S solved none against 60" in one.figure
    assert criterion(verdict, "DPFP-2 remembers").met is True


def test_where_neither_memory_solves_an_s_the_loss_decides(recorded):
    worse, better = (
        changed(recorded["capacity"], "linear_sum", lambda n, seed, a=a: a + seed / 1e3)
        for a in (0.6, 0.3)
    )
    text = "linear remembers more keys than FAVOR+ 512"
    assert criterion(claims.capacity(better), text).met is True
    assert criterion(claims.capacity(worse), text).met is False


def test_seeds_that_differ_as_much_as_memories_decide_nothing(recorded):
    rows = changed(recorded["capacity"], "linear_sum", lambda n, seed: (0.1, 0.5, 0.9)[seed])
    one = criterion(claims.capacity(rows), "linear remembers more keys than FAVOR+ 512")
    assert one.met is None


def test_losses_below_the_limit_are_not_compared(recorded):
    rows = of_keys(recorded["capacity"], 20)
    rows = changed(rows, "dpfp2_sum", lambda n, seed: 9e-4 + 1e-6 * seed)
    one = criterion(claims.capacity(rows), "DPFP-2 remembers more keys than DPFP-1")
    assert one.met is None and "no S yet with 3 seeds" in one.figure


def test_a_grid_that_is_not_finished_leaves_open_what_it_does_not_tell(recorded):
    rows = of_keys(recorded["capacity"], *range(20, 101, 20))
    verdict = claims.capacity(rows)
    assert verdict.status == "inconclusive"
    assert criterion(verdict, "DPFP-2 remembers more keys than DPFP-1").met is None
    assert criterion(verdict, "DPFP-1 remembers more keys than linear").met is True
    assert "DPFP-1 100 or more" in verdict.headline
    without = [row for row in rows if claims.memory_of(row["config"]) != "linear_sum"]
    one = criterion(claims.capacity(without), "DPFP-1 remembers more keys than linear")
    assert one.met is None and one.figure == "no runs of linear yet"


def test_nothing_recorded_is_inconclusive_and_has_the_published_figures():
    assert "higher" not in str(claims.capacity([]))
    verdicts = claims.as_published([], THEIRS), claims.update_rules([])
    for verdict in (claims.capacity([]), *verdicts):
        assert verdict.status == "inconclusive" and "no runs" in verdict.headline
        assert all(one.met is None for one in verdict.criteria)
    assert "| linear | 64 | – / 20 (not 60) | – / 0.164 |" in claims.capacity_table([], THEIRS)
    assert "– / diverged" in claims.update_rules_table([], THEIRS)


@pytest.mark.parametrize(
    ("last", "met"), [(80, True), (100, True), (180, True), (200, None), (60, False), (240, False)]
)
def test_a_last_s_is_near_when_it_is_a_step_from_where_the_published_may_be(recorded, last, met):
    """The published runs of DPFP-1 solve S = 100 and not 200, the next that is known; here the S
    after 200 is 240."""
    rows = changed(recorded["capacity"], "dpfp1_sum", lambda n, seed: 0.0005 if n <= last else 0.2)
    one = criterion(claims.as_published(rows, THEIRS), "DPFP-1: last S solved")
    assert one.met is met
    gap = f" (not {last + 40})" if last >= 200 else ""
    assert one.figure == f"{last}{gap} here, 100 (not 200) published"


def test_a_last_s_that_is_not_known_yet_is_near_nothing(recorded):
    rows = of_keys(recorded["capacity"], *range(20, 121, 20))
    verdict = claims.as_published(rows, THEIRS)
    assert criterion(verdict, "DPFP-1: last S solved").met is None
    assert criterion(verdict, "linear: last S solved").met is True
    assert criterion(verdict, "DPFP-1: best loss").met is None


@pytest.mark.parametrize(
    ("factor", "met"), [(1.0, True), (1.1, True), (0.9, True), (1.3, False), (0.7, False)]
)
def test_best_losses_are_compared_with_the_published_best(recorded, factor, met):
    theirs = claims.published_losses(THEIRS, "setting1")["linear_sum"]

    def loss(n, seed):
        return factor * theirs.get(n, 0.3) * (1 + seed / 1000)

    rows = changed(recorded["capacity"], "linear_sum", loss)
    one = criterion(claims.as_published(rows, THEIRS), "linear: best loss")
    assert one.met is met
    assert all(f"S = {n}: " in one.figure for n in (100, 200, 400, 600))
    assert f"published {theirs[600]:.3g} ({factor + 0.001 - 1:+.0%}" in one.figure


def test_a_single_seed_cannot_tell_how_near_a_loss_is(recorded):
    rows = [row for row in recorded["capacity"] if row["seed"] == 0]
    one = criterion(claims.as_published(rows, THEIRS), "linear: best loss")
    assert one.met is None and "of 1 seed, published" in one.figure


def test_softmax_that_solves_what_the_published_run_did_not_is_said_so(recorded):
    verdict = claims.as_published(recorded["capacity"], THEIRS)
    one = criterion(verdict, "softmax: last S solved")
    assert verdict.status == "not supported" and one.met is False
    assert one.figure == "600 or more here, 400 (not 500) published"


def test_published_losses_that_no_mean_over_all_keys_has_are_named(recorded):
    assert claims.as_published(recorded["capacity"], THEIRS).evidence == ()  # without any mean
    rows = [*recorded["capacity"], recorded["evaluation"][0]]
    (line,) = [one for one in claims.as_published(rows, THEIRS).evidence if "not measured" in one]
    for name in ("linear, S = 100", "linear, S = 500", "DPFP-1, S = 300", "DPFP-2, S = 400"):
        assert f"{name}: the published" in line
    assert "the published 0.164 is below 0.18" in line


def test_how_many_medians_here_are_below_the_least_mean_of_all_keys_is_told(recorded):
    rows = [r for r in recorded["capacity"] if claims.memory_of(r["config"]) == "linear_sum"]

    def told(*below):
        low = changed(rows, "linear_sum", lambda n, seed: 0.2 if n in below else 0.5)
        return claims.as_published([*low, *recorded["evaluation"]], THEIRS).evidence[-1]

    assert told(240, 600).startswith("2 medians here are below")
    assert "all at S = 240 or more: above S = 200 the first 200 keys alone" in told(240, 600)
    assert told(120, 200, 600).endswith("all at S = 120 or more")  # which that does not explain
    assert "medians here" not in told()


def explained(rows):
    below = [one for one in claims.as_published(rows, THEIRS).evidence if "below" in one]
    return [
        "explains it" in one if "not measured" not in one and "not explain" not in one else None
        for one in below
        if "is below" in one
    ]


def of_batches(rows, of_published):
    """The rows of `evaluation` with other means: a factor of the published loss by seed."""
    rows = copy.deepcopy(rows)
    for row in rows:
        n = str(row["config"]["task"]["n_keys"])
        published = THEIRS["setting1"][claims.memory_of(row["config"])][n]["best"]
        row["summary"]["best_batches_loss"] = published * of_published(row["seed"])
    return rows


def test_a_published_loss_is_explained_where_runs_averaged_alike_reach_it(recorded):
    rows = recorded["evaluation"]
    assert explained([]) == [] and explained(rows[:2]) == [None]
    near = of_batches(rows, lambda seed: 1.05 + 0.05 * seed)
    assert explained(near) == 6 * [True]
    evidence = [one for one in claims.as_published(near, THEIRS).evidence if "S = 400" in one]
    assert "of the first 200 keys, which explains it" in evidence[0] and "5 runs" in evidence[0]
    far = of_batches(rows, lambda seed: 1.5 + 0.01 * seed)
    assert explained(far) == 6 * [None]
    told = claims.as_published(far, THEIRS).evidence
    assert sum("does not explain it" in one for one in told) == 6


def test_runs_that_measure_the_mean_are_not_judged_themselves(recorded):
    rows, more = recorded["capacity"], recorded["evaluation"]
    assert claims.capacity([*rows, *more]) == claims.capacity(rows)
    assert claims.best_losses(more) == {}
    with_means = claims.as_published([*rows, *more], THEIRS)
    assert with_means.criteria == claims.as_published(rows, THEIRS).criteria


def test_how_long_recording_took_and_how_many_seeds_there_are_is_counted(recorded):
    rows = [row for row in recorded["capacity"] if row["provenance"]["threads"]]
    for row in (rows := copy.deepcopy(rows)):
        row["provenance"] |= {"threads": 1, "device_name": "some CPU"}
    told = claims.recording(rows)
    assert told.startswith(
        f"{len(rows)} runs in {len(rows) * 36 / 3600:.1f} core-hours on some CPU"
    )
    assert told.endswith(
        "3 seeds or more of every memory at S = 20, 100, 200, 400, 600; 3 seeds or more of some "
        "memories at S = 60, 280; fewer elsewhere"
    )
    fewer = [row for row in rows if row["seed"] < 2 or row["config"]["task"]["n_keys"] != 280]
    assert "of some memories at S = 60;" in claims.recording(fewer)
    lone = changed(fewer, "linear_sum", lambda n, seed: 0.1)
    lone = [
        row for row in lone if claims.memory_of(row["config"]) == "linear_sum" or row["seed"] == 0
    ]
    assert "3 seeds or more of some memories at S = 20," in claims.recording(lone)
    assert "every" not in claims.recording(lone)
    assert claims.recording([]) == "nothing is recorded yet"


def test_delta_solves_what_sum_does_not(recorded):
    verdict = claims.update_rules(recorded["update_rules"])
    assert verdict.status == "supported"
    assert "DPFP-1 (sum) none" in verdict.headline and "DPFP-1 (delta) 120" in verdict.headline
    for other in ("sum", "fwm"):
        one = criterion(verdict, f"DPFP-1 (delta) remembers more keys than DPFP-1 ({other})")
        assert "120 against none" in one.figure
    assert any("2·S" in line for line in verdict.evidence)


def test_a_delta_rule_that_is_a_sum_is_found_out(recorded):
    rows = changed(recorded["update_rules"], "dpfp1_ours", lambda n, seed: 0.2 + seed / 1e3)
    verdict = claims.update_rules(rows)
    assert verdict.status == "not supported"
    for other in ("sum", "fwm"):
        text = f"DPFP-1 (delta) remembers more keys than DPFP-1 ({other})"
        assert criterion(verdict, text).met is (other != "sum")
    rows = changed(rows, "dpfp2_ours", lambda n, seed: 0.2)
    one = criterion(claims.as_published(rows, THEIRS), "DPFP-2 (delta), evaluated as published")
    assert one.met is False and one.figure == "none here, 200 or more published"


def test_last_s_solved_are_compared_as_published_where_they_were_run_so(recorded):
    rows = recorded["update_rules"]
    whole = [row for row in rows if not row["config"]["eval_half_length"]]
    assert len(whole) < len(rows)
    harder = changed(whole, "dpfp1_ours", lambda n, seed: 0.2)
    harder = changed(harder, "dpfp2_ours", lambda n, seed: 0.2)
    rows = [*rows, *harder]
    text = "DPFP-1 (delta) remembers more keys than DPFP-1 (sum)"
    assert criterion(claims.update_rules(rows), text).met is False
    near = "DPFP-2 (delta), evaluated as published: last S"
    assert criterion(claims.as_published(rows, THEIRS), near).met is True
    assert criterion(claims.as_published(whole, THEIRS), "DPFP-2 (delta): last S").met is True


def test_where_one_run_of_three_solves_what_the_published_run_did_it_cannot_be_told(recorded):
    rows = changed(
        recorded["update_rules"],
        "linear_ours",
        lambda n, seed: 0.0005 if seed == 2 and n <= 60 else 0.01,
    )
    one = criterion(claims.as_published(rows, THEIRS), "linear (delta), evaluated as published")
    assert one.met is None
    assert one.figure == "none here, 60 (not 100) published; some runs here 60"
    none = changed(rows, "linear_ours", lambda n, seed: 0.01)
    assert criterion(claims.as_published(none, THEIRS), one.text).met is False


def test_agreement_on_remembering_nothing_is_counted_apart(recorded):
    rows = [*recorded["capacity"], *recorded["update_rules"]]
    nothing = changed(rows, "favor64_sum", lambda n, seed: 0.5 - seed / 1e4)
    told = claims.as_published(nothing, THEIRS).headline
    assert "of them in that nothing is remembered)" in told
    reads = changed(nothing, "favor64_sum", lambda n, seed: 0.48)
    fewer = claims.as_published(reads, THEIRS).headline

    def apart(headline):
        return int(headline.split("(")[1].split()[0])

    assert apart(fewer) == apart(told) - 1


def test_what_did_not_run_is_not_compared(recorded):
    linear = [r for r in recorded["capacity"] if claims.memory_of(r["config"]) == "linear_sum"]
    verdict = claims.as_published(of_keys(linear, 40), THEIRS)
    assert [one.text.split(":")[0] for one in verdict.criteria] == ["linear", "linear"]
    assert verdict.status == "inconclusive" and "0 of 2 comparisons" in verdict.headline


def test_a_published_log_that_stops_early_is_left_out():
    assert any("dpfp2_ours S=100 log truncated" in defect for defect in THEIRS["defects"])
    assert 100 not in claims.published_losses(THEIRS, "setting2")["dpfp2_ours"]
    assert claims.published_losses(THEIRS, "setting2")["favor128_ours"][200] == math.inf
    assert THEIRS["setting1"]["softmax_cat"]["500"]["final"] > 0.1
    assert claims.published_losses(THEIRS, "setting1")["softmax_cat"][500] < 0.01  # its best


def test_diverged_runs_count_as_unsolved_and_are_shown(recorded):
    rows = recorded["update_rules"]
    losses = claims.best_losses(rows)["favor128_ours"]
    assert set(losses[200].values()) == {math.inf}
    assert "| diverged / – / diverged |" in claims.update_rules_table(rows, THEIRS)


def test_interrupted_runs_count_for_nothing(recorded):
    rows = [row | {"outcome": "interrupted"} for row in recorded["capacity"]]
    assert claims.best_losses(rows) == {}


def test_tables_hold_here_beside_published(recorded):
    table = claims.capacity_table(recorded["capacity"], THEIRS)
    head, rule, *lines = table.split("\n\n")[0].splitlines()
    assert len({line.count("|") for line in (head, rule, *lines)}) == 1
    assert len(lines) == 8
    (linear,) = [line for line in lines if line.startswith("| linear |")]
    assert linear.startswith("| linear | 64 | 60 / 20 (not 60) | 0.182 / 0.164 | 0.343 / 0.342 |")
    (dpfp3,) = [line for line in lines if line.startswith("| DPFP-3 |")]
    assert "360 (not 400) / –" in dpfp3
    table = claims.update_rules_table(recorded["update_rules"], THEIRS)
    assert "DPFP-2\N{NO-BREAK SPACE}(delta)" in table and "200 or more / 200 or more" in table


def test_devices_are_judged_apart(recorded):
    other = copy.deepcopy(recorded["capacity"])
    for row in other:
        row["provenance"]["device_name"] = "another device"
    worse = changed(other, "dpfp1_sum", lambda n, seed: 0.4 + n / 1e4 + seed / 1e3)
    verdict = claims.capacity([*recorded["capacity"], *worse])
    assert verdict.status == "not supported"
    assert verdict.headline == "supported in 1, not supported in 1 of 2 settings"
