"""Verdicts on memories follow from the rows: orders, published figures, and rows that are not there
yet. The synthetic rows solve S up to R: linear 60 of the S that are run, DPFP-1 120, DPFP-2 240,
DPFP-3 360, softmax all."""

import copy
import math
import re
from dataclasses import replace

import pytest
import synthetic

from replib.claims import EXPERIMENTS
from replib.claims.capacity import judge as claims
from replib.claims.capacity.judge import above
from replib.claims.capacity.memories import counts
from replib.claims.update_rules.judge import update_rules
from replib.lab.recorded import read_rows
from replib.lab.run import config_of
from replib.lab.store import plain
from replib.published import published

THEIRS = published()["fastweights_logs"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    names = ("capacity", "update_rules", "evaluation", "favor_eps")
    folder = synthetic.write_recorded(tmp_path_factory.mktemp("rows"), *names)
    return {name: read_rows(name, folder) for name in names}


def changed(rows, name, loss):
    """The rows with other losses of one memory: `loss(S, seed)`."""
    rows = copy.deepcopy(rows)
    for row in rows:
        if name in {claims.memory_of(config_of(row), half_length=half) for half in (False, True)}:
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
        claims.memory_of(config_of(row), half_length=config_of(row).eval_half_length)
        for row in recorded[name]
    }
    assert known == {job.config.model.published_name for job in jobs}
    setting = "setting1" if name == "capacity" else "setting2"
    assert THEIRS[setting].keys() <= known


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 16}, {"report": "last"}, {"n_steps": 500}, {"head_dim": 32}],
)
def test_runs_with_other_settings_are_not_judged(recorded, change):
    config = config_of(recorded["capacity"][0])
    assert claims.memory_of(config) == "softmax_cat"
    if "head_dim" in change:
        change = {"model": replace(config.model, **change)}
    config = replace(config, **change)
    assert claims.memory_of(config) is None
    verdict = claims.capacity([recorded["capacity"][0] | {"config": plain(config)}])
    assert verdict.status == "inconclusive" and "no runs" in verdict.headline


def solved(last, *keys):
    """Losses of one seed that solves S up to `last`."""
    return {n: {0: 0.0005 if n <= last else 0.2} for n in keys}


def test_the_keys_solved_are_told_with_their_interval_or_the_side_that_is_known():
    between = claims.solved_keys(solved(40, 20, 40, 60, 80))
    value, low, high = map(float, re.findall(r"\d+", claims.keys_text(between)))
    assert low <= 40 <= value <= 60 <= high
    assert claims.keys_text(between, interval=False) == f"{value:.0f}"
    every = claims.solved_keys(solved(80, 20, 40, 60, 80))
    assert claims.keys_text(every) == f"{every.low:.0f} or more" and 40 < every.low <= 80
    none = claims.solved_keys(solved(0, 20, 40))
    assert claims.keys_text(none).startswith("none (below ")
    assert claims.keys_text(none, interval=False) == "none"


def in_headline(verdict):
    """How many keys each memory solves by a headline; 0 where none."""
    some, _, none = verdict.headline.split(": never")[0].partition("none with ")
    found = {name: int(n) for n, name in re.findall(r"(\d+)(?: or more)? with ([^,]+)", some)}
    return found | {name: 0 for name in none.split(" or ") if name}


# The S that is solved, and the next that was run.
STEPS = {"linear": (60, 80), "DPFP-1": (120, 140), "DPFP-2": (240, 280), "DPFP-3": (360, 400)}


def test_rows_that_follow_from_ranks_support_the_order(recorded):
    verdict = claims.capacity(recorded["capacity"])
    assert verdict.status == "supported"
    assert len(verdict.criteria) == len(claims.ABOVE) + 1
    found = in_headline(verdict)
    assert all(low <= found[name] <= high for name, (low, high) in STEPS.items())
    assert 520 < found["softmax"] <= 600 and found["FAVOR+"] == 0
    assert "never more than features R" in verdict.says


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax_cat", "dpfp1_sum", "linear_sum", "favor512_sum"])
def test_no_single_run_turns_the_card(recorded, name):
    """One run of a memory that ends on the other side of 0.001, at any S."""
    rows = recorded["capacity"]
    pairs = [pair for pair in claims.ABOVE if name in pair]
    found = claims.best_losses(rows)
    for n, seeds in found[name].items():
        if claims.MEMORIES[name].n_features and n > claims.MEMORIES[name].n_features:
            continue  # no run solves these
        was_solved = seeds[0] <= claims.SOLVED_LOSS
        flipped = {**seeds, 0: 0.0015 if was_solved else 0.0009}
        changed_losses = found | {name: found[name] | {n: flipped}}
        for pair in pairs if was_solved else []:
            assert above(changed_losses, *pair).met is not False, n
            more = claims.solves_more(*(counts(changed_losses[one]) for one in pair))
            assert more is True or pair == ("linear_sum", name), (n, pair)
        assert claims._at_most_features(changed_losses).met is True


def test_one_confused_run_of_all_the_published_ones_decides_nothing(recorded):
    """The logs hold every S in steps of 20: one run in them that fails where its neighbours solve
    does not make the runs here unlike them."""
    here = claims.best_losses(recorded["capacity"])["softmax_cat"]
    for confused in (None, 60, 360):
        theirs = {n: 0.0005 for n in range(20, 601, 20)}
        if confused:
            theirs[confused] = 0.0017
        assert claims._near_solved("softmax", here, theirs).met is True
    short = {n: 0.0005 if n <= 300 else 0.2 for n in range(20, 601, 20)}
    assert claims._near_solved("softmax", here, short).met is False


def test_a_memory_that_solves_more_keys_than_it_has_features_is_found_out(recorded):
    text = "no memory solves more keys than its number of features R"
    one = criterion(claims.capacity(recorded["capacity"]), text)
    assert one.met is True and ") of 128" in one.figure and "softmax" not in one.figure
    for last, met in ((120, True), (200, False), (600, False)):
        rows = changed(
            recorded["capacity"], "dpfp1_sum", lambda n, seed, s=last: 0.0005 if n <= s else 0.3
        )
        assert criterion(claims.capacity(rows), text).met is met, last
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
    assert "S = 20: 0.25 for none run" in alone.evidence[0]


def test_a_memory_that_remembers_fewer_keys_than_claimed_is_found_out(recorded):
    rows = changed(recorded["capacity"], "dpfp1_sum", lambda n, seed: 0.4 + n / 1e4 + seed / 1e3)
    verdict = claims.capacity(rows)
    assert verdict.status == "not supported"
    one = criterion(verdict, "DPFP-1 remembers more keys than linear")
    assert one.met is False and one.figure.startswith("solves none")
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
    assert re.search(r"\d+ or more with DPFP-1", verdict.headline)
    without = [row for row in rows if claims.memory_of(config_of(row)) != "linear_sum"]
    one = criterion(claims.capacity(without), "DPFP-1 remembers more keys than linear")
    assert one.met is None and one.figure == "no runs of linear yet"


def test_nothing_recorded_is_inconclusive_and_has_the_published_figures():
    assert "higher" not in str(claims.capacity([]))
    verdicts = claims.as_published([], THEIRS), update_rules([])
    for verdict in (claims.capacity([]), *verdicts):
        assert verdict.status == "inconclusive" and "no runs" in verdict.headline
        assert all(one.met is None for one in verdict.criteria)


@pytest.mark.parametrize(
    ("last", "met"), [(60, True), (120, True), (180, True), (0, False), (360, False)]
)
def test_keys_solved_are_as_published_where_their_interval_lies_in_the_published(
    recorded, last, met
):
    """The published run of DPFP-1 solves S = 100 and not 200, the next that is known."""
    rows = changed(recorded["capacity"], "dpfp1_sum", lambda n, seed: 0.0005 if n <= last else 0.2)
    one = criterion(claims.as_published(rows, THEIRS), "DPFP-1: solves as many")
    assert one.met is met


def test_keys_solved_that_are_not_known_yet_are_near_nothing(recorded):
    rows = of_keys(recorded["capacity"], *range(20, 121, 20))
    verdict = claims.as_published(rows, THEIRS)
    assert criterion(verdict, "DPFP-1: solves as many").met is None
    assert criterion(verdict, "linear: solves as many").met is True
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
    assert criterion(verdict, "softmax: solves as many").met is None  # 600 or more, 500 not
    theirs = copy.deepcopy(THEIRS)
    for n in ("300", "400", "500", "600"):
        theirs["setting1"]["softmax_cat"][n]["best"] = 0.3
    verdict = claims.as_published(recorded["capacity"], theirs)
    assert verdict.status == "not supported"
    assert criterion(verdict, "softmax: solves as many").met is False


def test_published_losses_that_no_mean_over_all_keys_has_are_named(recorded):
    assert claims.as_published(recorded["capacity"], THEIRS).evidence == ()  # without any mean
    rows = [*recorded["capacity"], recorded["evaluation"][0]]
    told = claims.as_published(rows, THEIRS).evidence
    assert len(told) == 6 and all(line.endswith("not measured") for line in told)
    assert "linear, S = 100: the published 0.164 is below the least" in told[0]


def of_batches(rows, of_published):
    """The rows of `evaluation` with other means: a factor of the published loss by seed."""
    rows = copy.deepcopy(rows)
    for row in rows:
        n = str(row["config"]["task"]["n_keys"])
        published = THEIRS["setting1"][claims.memory_of(config_of(row))][n]["best"]
        row["summary"]["best_batches_loss"] = published * of_published(row["seed"])
    return rows


@pytest.mark.parametrize(
    ("first", "step", "says"), [(1.05, 0.05, ", explains it"), (1.5, 0.01, "does not explain it")]
)
def test_a_published_loss_is_explained_where_runs_averaged_alike_reach_it(
    recorded, first, step, says
):
    rows = of_batches(recorded["evaluation"], lambda seed: first + step * seed)
    told = claims.as_published(rows, THEIRS).evidence
    assert len(told) == 6 and all(says in line and "5 runs" in line for line in told)


def test_runs_that_measure_the_mean_are_not_judged_themselves(recorded):
    rows, more = recorded["capacity"], recorded["evaluation"]
    assert claims.capacity([*rows, *more]) == claims.capacity(rows)
    assert claims.best_losses(more) == {}
    with_means = claims.as_published([*rows, *more], THEIRS)
    assert with_means.criteria == claims.as_published(rows, THEIRS).criteria


def test_delta_solves_what_sum_does_not(recorded):
    verdict = update_rules(recorded["update_rules"])
    assert verdict.status == "supported"
    found = in_headline(verdict)
    assert found["DPFP-1 (sum)"] == 0 and 120 <= found["DPFP-1 (delta)"] <= 140
    for other in ("sum", "fwm"):
        one = criterion(verdict, f"DPFP-1 (delta) remembers more keys than DPFP-1 ({other})")
        assert one.met is True and "against none" in one.figure
    assert any("2·S" in line for line in verdict.evidence)


def test_a_delta_rule_that_is_a_sum_is_found_out(recorded):
    rows = changed(recorded["update_rules"], "dpfp1_ours", lambda n, seed: 0.2 + seed / 1e3)
    verdict = update_rules(rows)
    assert verdict.status == "not supported"
    for other in ("sum", "fwm"):
        text = f"DPFP-1 (delta) remembers more keys than DPFP-1 ({other})"
        assert criterion(verdict, text).met is (other != "sum")
    rows = changed(rows, "dpfp2_ours", lambda n, seed: 0.2)
    one = criterion(claims.as_published(rows, THEIRS), "DPFP-2 (delta), evaluated as published")
    assert one.met is False and one.figure.startswith("none (below ")


def test_keys_solved_are_compared_as_published_where_they_were_run_so(recorded):
    rows = recorded["update_rules"]
    whole = [row for row in rows if not row["config"]["eval_half_length"]]
    assert len(whole) < len(rows)
    harder = changed(whole, "dpfp1_ours", lambda n, seed: 0.2)
    harder = changed(harder, "dpfp2_ours", lambda n, seed: 0.2)
    rows = [*rows, *harder]
    text = "DPFP-1 (delta) remembers more keys than DPFP-1 (sum)"
    assert criterion(update_rules(rows), text).met is False
    near = "DPFP-2 (delta), evaluated as published: solves"
    assert criterion(claims.as_published(rows, THEIRS), near).met is True
    assert criterion(claims.as_published(whole, THEIRS), "DPFP-2 (delta): solves").met is True


def test_a_memory_that_solves_nothing_is_unlike_a_published_one_that_does(recorded):
    rows = changed(recorded["update_rules"], "linear_ours", lambda n, seed: 0.01)
    one = criterion(claims.as_published(rows, THEIRS), "linear (delta), evaluated as published")
    assert one.met is not True
    mine = claims.solved_keys(claims.best_losses(rows, half_length=True)["linear_ours"])
    assert mine.value == 0


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
    linear = [r for r in recorded["capacity"] if claims.memory_of(config_of(r)) == "linear_sum"]
    verdict = claims.as_published(of_keys(linear, 40), THEIRS)
    assert [one.text.split(":")[0] for one in verdict.criteria] == ["linear", "linear"]
    assert verdict.status == "inconclusive" and "0 of 2 comparisons" in verdict.headline


def test_a_published_log_that_stops_early_is_left_out():
    assert any("dpfp2_ours S=100 log truncated" in defect for defect in THEIRS["defects"])
    assert 100 not in claims.published_losses(THEIRS, "setting2")["dpfp2_ours"]
    assert claims.published_losses(THEIRS, "setting2")["favor128_ours"][200] == math.inf
    assert THEIRS["setting1"]["softmax_cat"]["500"]["final"] > 0.1
    assert claims.published_losses(THEIRS, "setting1")["softmax_cat"][500] < 0.01  # its best


def test_diverged_runs_count_as_unsolved(recorded):
    rows = recorded["update_rules"]
    losses = claims.best_losses(rows)["favor128_ours"]
    assert set(losses[200].values()) == {math.inf}


def test_interrupted_runs_count_for_nothing(recorded):
    rows = [row | {"outcome": "interrupted"} for row in recorded["capacity"]]
    assert claims.best_losses(rows) == {}


def test_devices_are_judged_apart(recorded):
    other = copy.deepcopy(recorded["capacity"])
    for row in other:
        row["provenance"]["device_name"] = "another device"
    worse = changed(other, "dpfp1_sum", lambda n, seed: 0.4 + n / 1e4 + seed / 1e3)
    verdict = claims.capacity([*recorded["capacity"], *worse])
    assert verdict.status == "not supported"
    assert verdict.headline == "supported in 1, not supported in 1 of 2 settings"
