"""The autopsy's attribution, conclusions and hypotheses follow the stored rows."""

import copy
import math

import pytest
import synthetic

from replib.claims.autopsy import ablation as autopsy
from replib.claims.autopsy import article_losses, hypotheses, judge, tables
from replib.claims.autopsy import step_times as timing
from replib.claims.autopsy.defects import article_defects, loss_defects
from replib.claims.autopsy.grid import ablation
from replib.lab import recorded
from replib.lab.verdict import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from replib.published import published
from replib.tasks import SequenceCopy

ARTICLE = published()["dm2022"]
WHOLE = math.prod(synthetic.FACTORS.values())


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    return rows_of("autopsy", tmp_path_factory)


@pytest.fixture(scope="module")
def times(tmp_path_factory):
    return rows_of("autopsy_time", tmp_path_factory)


def rows_of(name, tmp_path_factory):
    folder = synthetic.write_recorded(tmp_path_factory.mktemp("rows"), name)
    return recorded.read_rows(name, folder)


def changed(rows, change, **where):
    """The rows, with the summary of those of a role changed."""
    rows = copy.deepcopy(rows)
    for row in rows:
        config = row["config"]
        key = {"attention": config["model"]["attention"], "seq_len": config["task"]["seq_len"]}
        key["defects"] = tuple(config["defects"])
        if all(key[name] == value for name, value in where.items()):
            change(row["summary"])
    return rows


@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_every_set_of_an_ablation_has_a_role_of_its_own(attention):
    for every in (article_defects(attention), loss_defects(attention)):
        sets = ablation(every)
        roles = [autopsy.role_of(attention, defects) for defects in sets]
        assert len(set(roles)) == len(sets) and None not in roles
        assert roles[:2] == [("mended", None), ("broken", None)]
        assert roles[2:4] == [("alone on", sets[2][0]), ("alone on", sets[3][0])]
        assert roles[-1] == ("alone off", every[-1])
    assert autopsy.role_of("linear", ("float64", "leak")) is None


def test_of_a_seed_the_run_with_all_defects_counts(losses):
    for rows in (losses, losses[::-1]):
        found = autopsy.ablated(rows)["linear", 8, "broken", None]
        assert sorted((row["seed"], tuple(row["config"]["defects"])) for row in found) == [
            (0, article_defects("linear")),
            (1, loss_defects("linear")),
            (2, loss_defects("linear")),
        ]


def test_the_slowdown_is_attributed_to_what_makes_it(times):
    found = timing.attribution(times, ARTICLE, 64)
    factors = {part.name: part.factor.value for part in found.parts}
    assert factors["float64 after attention"] == pytest.approx(2)
    assert factors["batch 32, loss summed"] == pytest.approx(3)
    assert factors["unfused attention"] == pytest.approx(0.9)
    assert factors["extra evaluations"] == pytest.approx(1.3)
    assert factors["the rest"] == pytest.approx(WHOLE / (6 * 0.9 * 1.3))
    assert found.whole.value == pytest.approx(WHOLE)
    assert sum(part.share.value for part in found.parts) == pytest.approx(1)
    assert found.mended.value == pytest.approx(72 / 84)
    assert found.broken.value * found.unexplained.value == pytest.approx(found.article)
    said = timing.NO_TRANSFER
    assert "1/32" in said and said in tables.attribution_text(found)
    assert judge.slowdown(times, ARTICLE).evidence[-1] == said.replace("**", "")
    assert found.article == ARTICLE["ratio_linear_softmax"][-1]
    product = found.mended.value * math.prod(factors.values()) / found.softmax_whole.value
    assert product == pytest.approx(found.broken.value)


def test_attributions_that_disagree_are_said_to(times):
    text = tables.attribution_text(timing.attribution(times, ARTICLE, 8))
    assert "The two attributions agree" in text

    def cheaper(summary):
        summary["time_ms_samples"] = [0.7 * x for x in summary["time_ms_samples"]]

    alone = changed(times, cheaper, attention="linear", defects=("float64",), seq_len=8)
    found = timing.attribution(alone, ARTICLE, 8)
    on, off, between = (
        parts[0].factor.value for parts in (found.alone_on, found.alone_off, found.parts)
    )
    assert (on, off) == pytest.approx((1.4, 2)) and between == pytest.approx(math.sqrt(2.8))
    text = tables.attribution_text(found)
    assert "The two attributions differ for float64 after attention" in text


def test_intervals_are_of_the_repeats(times):
    def noisy(summary):
        summary["time_ms_samples"] = [
            x * f
            for x, f in zip(summary["time_ms_samples"], (0.8, 1.0, 1.3, 0.9, 1.1), strict=True)
        ]

    rows = changed(times, noisy, attention="linear", defects=("float64",), seq_len=64)
    exact = timing.attribution(times, ARTICLE, 64).alone_on[0].factor
    wide = timing.attribution(rows, ARTICLE, 64).alone_on[0].factor
    assert exact.high / exact.low < 1.001 and wide.high / wide.low > 1.2
    assert wide.low <= 2 <= wide.high


def test_without_a_run_nothing_is_attributed(times):
    broken = article_defects("linear")
    rows = [row for row in times if tuple(row["config"]["defects"]) != broken]
    assert timing.attribution(rows, ARTICLE, 64) is None
    assert timing.attribution(times, ARTICLE, 24) is None
    assert "no measurements yet" in tables.attribution_text(None)


def test_each_defect_has_its_factor_alone_and_among_the_others(times):
    found = {one.defect: one for one in timing.time_effects(times, "linear", 16)}
    assert set(found) == set(article_defects("linear"))
    for name, one in found.items():
        assert one.alone_on.value == pytest.approx(synthetic.FACTORS[name])
        assert one.alone_off.value == pytest.approx(synthetic.FACTORS[name])
    assert [one.defect for one in timing.time_effects(times, "softmax", 16)] == list(
        article_defects("softmax")
    )


def with_curve(rows, losses, steps=(20, 60, 100, 200)):
    """The rows, with such a curve for those that have broken runs' defects."""
    rows = copy.deepcopy(rows)
    for row in rows:
        config = row["config"]
        attention, n = config["model"]["attention"], config["task"]["seq_len"]
        if autopsy.role_of(attention, config["defects"]) == ("broken", None):
            row["curve"] = {"step": list(steps), "loss": losses(attention, n)}
    return rows


def test_our_broken_runs_show_or_refute_that_both_mechanisms_have_one_plateau(losses):
    level = {n: article_losses.unigram_entropy(SequenceCopy(seq_len=n)) for n in ARTICLE["N"]}
    rows = with_curve(losses, lambda a, n: [level[n] + 0.06, level[n], level[n] - 0.06, 0.0])
    early = autopsy.early_losses(rows)
    assert early == pytest.approx({(a, n): level[n] for a in ("softmax", "linear") for n in level})
    text = tables.scale_text(ARTICLE, rows)
    assert "| expected | 2.38 | 2.39 | 2.37 | 2.35 |" in text
    assert "| here, broken, linear | 2.38 | 2.39 | 2.37 | 2.35 |" in text
    article = "| 2022 article, linear | 76.7 / 32 = 2.40 | not read | not read | 75.2 / 32 = 2.35 |"
    assert article in text
    assert "| here, broken, linear | – | – | – | – |" in tables.scale_text(ARTICLE, [])


def test_the_articles_unsolved_runs_end_where_symbols_are_known_and_their_order_is_not(losses):
    assert len(autopsy.article_ends(ARTICLE)) == 8
    above = autopsy.above_level(ARTICLE)
    assert set(above) == {("linear", 16), ("linear", 64), *(("softmax", n) for n in ARTICLE["N"])}
    near = {key for key, gap in above.items() if abs(gap) <= autopsy.LEVEL_MARGIN}
    assert near == above.keys() - {("softmax", 32)}
    text = tables.level_text(ARTICLE, losses)
    assert "Of the article's 8 runs 2 end at 0. Of the other 6, 5 end within 0.05 nats" in text
    assert "softmax at N = 32 stands at 2.09 until it jumps at step 2580, to 2.22." in text
    moved = copy.deepcopy(ARTICLE)
    moved["plots_final_loss"]["linear"]["16"] = 70.0
    assert "Of the other 6, 4 end within 0.05 nats" in tables.level_text(moved, losses)


def test_a_run_leaves_a_level_where_it_stays_below_it(losses):
    def curve(*values):
        return {"curve": {"step": [10, 20, 30, 40], "loss": list(values)}}

    assert autopsy.leaves(curve(2.0, 1.0, 0.5, 0.4), 1.5) == 20
    assert autopsy.leaves(curve(2.0, 1.0, 2.0, 0.4), 1.5) == 40
    assert autopsy.leaves(curve(2.0, 1.0, 0.5, 1.5), 1.5) is None
    rows = with_curve(losses, lambda a, n: [2.4, 0.1, 0.1, 0.1] if a == "linear" else [2.4] * 4)
    text = tables.level_text(ARTICLE, rows)
    assert "| here, broken linear, below “order not” from step | 60 (3 of 3) |" in text
    assert "| here, broken softmax, below “order not” from step | never |" in text


def test_no_stable_convergence_falls_where_mended_runs_learn_and_stands_where_they_do_not(losses):
    verdict = judge.convergence(losses)
    assert verdict.status == NOT_SUPPORTED
    assert verdict.headline.startswith("refuted, it does learn: 12 of 12 mended linear runs")
    assert verdict.evidence[-3:] == (
        "N = 64, mended: one defect keeps it from 99%: heads split twice, Adam at 1e-4",
        "N = 64, broken: mending one defect lets it reach 99%: none",
        "N = 64, broken, but for the mask: mending one more lets it reach 99%: not Adam at 1e-4",
    )
    failed = changed(losses, lambda s: s.update(final_accuracy=0.2), attention="linear", defects=())
    assert judge.convergence(failed).status == SUPPORTED
    assert judge.convergence(failed).headline.startswith("it stands: 0 of 12")
    assert judge.convergence(failed[:1]).status == INCONCLUSIVE


def test_the_failure_is_put_down_to_defects_that_alone_cause_or_cure_it(losses):
    without_adam = tuple(one for one in loss_defects("linear") if one != "adam")
    seen = iter(range(99))

    def in_one_run(summary):
        summary.update(final_accuracy=1.0 if next(seen) == 0 else 0.2)

    place = {"attention": "linear", "seq_len": 64}
    rows = changed(losses, in_one_run, defects=without_adam, **place)
    rows = changed(rows, lambda s: s.update(final_accuracy=0.2), defects=("leak",), **place)
    masked = tuple(one for one in without_adam if one != "leak")
    assert autopsy.role_of("linear", masked) == (autopsy.OFF_WITH_MASK, "adam")
    rows = changed(rows, lambda s: s.update(final_accuracy=1.0), defects=masked, **place)
    _, _, prevents, repairs, masks, *_ = tables.failure_table(rows).splitlines()
    both = "heads split twice, Adam at 1e-4"
    assert prevents.endswith(
        f"| {both} | {both} | heads split twice, no causal mask, Adam at 1e-4 |"
    )
    assert repairs.endswith(
        "| broken runs reach it | none | broken runs reach it | Adam at 1e-4 (1 of 3) |"
    )
    mended = [row for row in losses if not row["config"]["defects"]]
    assert masks.endswith("| not Adam at 1e-4 | not Adam at 1e-4 | Adam at 1e-4 |")
    assert tables.failure_table(mended).count("not measured") == 12
    assert tables.failure_table([]) == ""


def test_8_to_24_times_slower_stands_by_its_factor_alone(times):
    verdict = judge.slowdown(times, ARTICLE)
    assert verdict.status == NOT_SUPPORTED
    met = {one.text: one.met for one in verdict.criteria}
    assert met["N = 8, mended: linear takes longer"] is True
    assert met["N = 64, mended: linear takes longer"] is False
    assert met["N = 8, mended: by 7.9× or more"] is False

    def slower(summary):
        summary["time_ms_samples"] = [20 * x for x in summary["time_ms_samples"]]

    rows = changed(times, slower, attention="linear", defects=())
    assert judge.slowdown(rows, ARTICLE).status == SUPPORTED


def test_a_measured_crossover_decides_and_an_extrapolated_one_does_not(times, tmp_path_factory):
    verdict = judge.article_crossover(times)
    assert verdict.status == NOT_SUPPORTED
    assert verdict.headline == "mended steps cross: N = 40"
    assert verdict.criteria[0].figure.startswith("N = 40 (measured up to N = 64; 95 % interval ")
    short = [row for row in times if row["config"]["task"]["seq_len"] <= 32]
    assert judge.article_crossover(short).status == INCONCLUSIVE
    steps = rows_of("step_time", tmp_path_factory)
    longer = judge.article_crossover(short, steps)
    assert longer.status == NOT_SUPPORTED
    assert longer.headline.endswith(", by what they are timed against and beside")
    assert "linear cpu against softmax textbook" in longer.criteria[1].text
    found = timing.step_crossovers(steps)["linear cpu against softmax textbook"]
    assert found.length == pytest.approx(synthetic.CROSSOVERS["textbook"], rel=0.02)


def test_steps_beyond_the_articles_lengths_measure_what_its_lengths_extrapolate(
    times, tmp_path_factory
):
    short = [row for row in times if row["config"]["task"]["seq_len"] <= 32]
    steps = rows_of("autopsy_longer", tmp_path_factory)
    verdict = judge.article_crossover(short, steps)
    assert verdict.status == NOT_SUPPORTED
    assert verdict.headline.startswith("mended steps cross: N = 4")
    assert "measured up to N = 256" in verdict.criteria[0].figure
    broken = verdict.evidence[1]
    assert broken.startswith("broken steps cross at N = ") and "beyond N = 256" in broken
    place = broken.removeprefix("broken steps cross at ")
    table = tables.prediction_table(ARTICLE, short, steps)
    assert f"| broken, timed in turns with defects | {place} |" in table


def test_without_rows_everything_is_inconclusive():
    for verdict in (
        judge.convergence([]),
        judge.slowdown([], ARTICLE),
        judge.article_crossover([]),
    ):
        assert verdict.status == INCONCLUSIVE and "no measurements yet" in verdict.headline
    assert {one.status for one in hypotheses.findings([], [])} == {hypotheses.UNDECIDED}
    assert "Nothing has been measured yet" in hypotheses.headline(hypotheses.findings([], []))
    assert "measured yet" in tables.prediction_table(ARTICLE, [])


def test_rows_of_another_size_are_not_mixed_in(times):
    other = copy.deepcopy(times[0])
    other["config"]["model"]["d_model"] = 64
    other["summary"]["time_ms_samples"] = [1e9] * 5
    assert timing.step_times([*times, other]) == timing.step_times(times)


def test_the_tables_hold_the_articles_figures_and_ours(losses, times):
    table = tables.four_points(ARTICLE, times)
    assert "| 2022 article, linear | 1738 | 3004 | 5373 | 10071 |" in table
    assert f"| here, mended, softmax | {28 * 3} | {36 * 3} | {52 * 3} | {84 * 3} |" in table
    table = tables.loss_table(ARTICLE, losses)
    assert "| 2022 article | 0.00 | 1.80 | 0.00 | 2.19 |" in table
    assert "| article less broken | +0.00 | -0.40 | +0.00 | -0.01 |" in table
    assert "| 2022 article | 3149 | never | 6219 | never |" in tables.prediction_table(
        ARTICLE, times
    )


STATUS = {  # what the synthetic rows make of each hypothesis
    ("float64", "a step takes longer"): hypotheses.RIGHT,
    ("float64", "the main cause of the slowdown on this device"): hypotheses.WRONG,
    ("float64", "twice the memory"): hypotheses.RIGHT,
    ("split_heads", "less is copied"): hypotheses.RIGHT,
    ("leak", "a loss near 0 in broken runs, as in the article"): hypotheses.RIGHT,
    ("adam", "slower convergence"): hypotheses.RIGHT,
    ("batch_32", "up to four times the time of a step"): hypotheses.RIGHT,
    ("batch_32", "four times the time of a step"): hypotheses.WRONG,
    ("extra_losses", "a third more time a step"): hypotheses.RIGHT,
    ("elu_feedforward", "slower convergence"): hypotheses.WRONG,
    ("unfused", "a step takes longer"): hypotheses.WRONG,
}


def test_hypotheses_are_right_or_wrong_by_the_rows(losses, times):
    found = hypotheses.findings(losses, times)
    status = {(one.hypothesis.defect, one.hypothesis.text): one.status for one in found}
    assert STATUS.items() <= status.items()
    assert {one.hypothesis.defect for one in found} == set(article_defects("linear"))
    told = hypotheses.headline(found).splitlines()[0]
    assert told == (
        "**Wrong:** float64 after attention: the main cause of the slowdown on this "
        "device; batch 32, loss summed: four times the time of a step; elu + 1 in the decoder: "
        "slower convergence; unfused attention: a step takes longer."
    )
    assert hypotheses.measured(found, "float64") == (
        "✓ a step takes longer; ✗ the main cause of the slowdown on this device; "
        "✓ twice the memory; ✓ the losses hardly change"
    )
    assert hypotheses.measured(hypotheses.findings([], []), "float64") == ""


def finding(rows, defect, text):
    """Of rows of losses and of times."""
    found = {(f.hypothesis.defect, f.hypothesis.text): f for f in hypotheses.findings(*rows)}
    return found[defect, text]


def slower(factor):
    return lambda s: s.update(time_ms_samples=[factor * x for x in s["time_ms_samples"]])


def test_the_main_cause_is_the_one_with_the_largest_factor(times):
    rows = times
    for defects in (("float64",), article_defects("linear")):
        rows = changed(rows, slower(4), attention="linear", defects=defects)
    off = tuple(one for one in article_defects("linear") if one != "batch_32")
    rows = changed(rows, slower(4), attention="linear", defects=off)
    found = finding(([], rows), "float64", "the main cause of the slowdown on this device")
    assert found.status == hypotheses.RIGHT and "✓ N = 64: 8×" in found.figures[-1]
    found = finding(([], times), "float64", "the main cause of the slowdown on this device")
    assert found.wrong_at == (8, 16, 32, 64) and "batch 32, loss summed: 3×" in found.figures[0]


def test_an_expectation_that_fails_at_some_lengths_is_told_with_them_at_the_head(times):
    rows = times
    for n in (8, 32):
        rows = changed(
            rows,
            lambda s: s.update(memory_bytes=2**20),
            attention="linear",
            defects=("float64",),
            seq_len=n,
        )
    found = finding(([], rows), "float64", "twice the memory")
    assert (found.status, found.wrong_at) == (hypotheses.PARTLY, (8, 32))
    assert hypotheses.measured([found], "float64") == "✓ N = 16, 64, ✗ N = 8, 32: twice the memory"
    told = hypotheses.headline(hypotheses.findings([], rows)).splitlines()[2]
    assert told == (
        "**Wrong at some lengths:** float64 after attention: twice the memory (N = 8, 32)."
    )


def test_a_model_of_half_the_encoder_is_not_judged_by_rows_that_have_none(losses, times):
    found = hypotheses.findings(losses, times)
    (half,) = [f for f in found if "half the encoder layers" in f.hypothesis.text]
    assert half.status == hypotheses.UNDECIDED and len(half.figures) == len(half.unknown_at) == 4


def test_what_cannot_be_told_at_one_length_does_not_change_what_the_others_say(losses):
    def one_seed(rows, n):
        where = (["float64"], n)
        return [
            row
            for row in rows
            if (row["config"]["defects"], row["config"]["task"]["seq_len"]) != where
            or row["seed"] == 0
        ]

    found = finding((one_seed(losses, 64), []), "float64", "the losses hardly change")
    assert (found.status, found.unknown_at) == (hypotheses.RIGHT, (64,))
    rows = one_seed(losses, 64)
    assert "| right; cannot be told at N = 64 |" in hypotheses.table(hypotheses.findings(rows, []))
    far = changed(
        losses, lambda s: s.update(final_loss=1.0), attention="linear", defects=("float64",)
    )
    found = finding((one_seed(far, 64), []), "float64", "the losses hardly change")
    assert (found.status, found.wrong_at) == (hypotheses.WRONG, (8, 16, 32))


def test_the_leak_is_held_to_the_lengths_at_which_the_article_has_zero(losses):
    zeros = [n for n, text in ARTICLE["plots_final_loss"]["linear"].items() if text_is_zero(text)]
    assert tuple(map(int, zeros)) == hypotheses.ZERO_AT
    text = "a loss near 0 in broken runs, as in the article"
    assert len(finding((losses, []), "leak", text).figures) == 2
    high = losses
    for defects in (article_defects("linear"), loss_defects("linear")):
        high = changed(
            high,
            lambda s: s.update(final_loss=1.0),
            attention="linear",
            defects=defects,
            seq_len=32,
        )
    found = finding((high, []), "leak", text)
    assert (found.status, found.wrong_at) == (hypotheses.PARTLY, (32,))


def text_is_zero(text):
    return str(text).split()[0] == "0"


@pytest.mark.parametrize(
    ("defect", "text", "change", "status"),
    [
        ("float64", "twice the memory", {"memory_bytes": 2**20}, hypotheses.WRONG),
        ("float64", "a step takes longer", {"time_ms_samples": [1.0] * 5}, hypotheses.WRONG),
        ("batch_32", "up to four times the time of a step", {"time_ms_samples": [1e4] * 5},
         hypotheses.WRONG),
        ("extra_losses", "a third more time a step", {"time_ms_samples": [1e4] * 5},
         hypotheses.WRONG),
    ],
)  # fmt: skip
def test_a_hypothesis_about_steps_turns_with_the_rows(times, defect, text, change, status):
    rows = changed(times, lambda s: s.update(change), attention="linear", defects=(defect,))
    found = {(f.hypothesis.defect, f.hypothesis.text): f for f in hypotheses.findings([], rows)}
    assert found[defect, text].status == status


@pytest.mark.parametrize(
    ("defect", "text", "loss"),
    [
        ("float64", "the losses hardly change", 1.0),
        ("split_heads", "less is copied", 0.0),
        ("extra_losses", "the losses do not change", 0.5),
        ("unfused", "the losses do not change", 0.5),
    ],
)
def test_a_hypothesis_about_losses_turns_with_the_rows(losses, defect, text, loss):
    rows = changed(
        losses, lambda s: s.update(final_loss=loss), attention="linear", defects=(defect,)
    )
    found = {(f.hypothesis.defect, f.hypothesis.text): f for f in hypotheses.findings(rows, [])}
    assert found[defect, text].status == hypotheses.WRONG


def test_one_run_a_side_decides_nothing_about_losses(losses):
    rows = [row for row in losses if row["seed"] == 0]
    for one in hypotheses.findings(rows, []):
        if "losses" in one.hypothesis.text:
            assert one.status == hypotheses.UNDECIDED and one.unknown_at == (8, 16, 32, 64)


@pytest.mark.parametrize(
    ("model", "crossing"), [("quadratic", 3148.7), ("full_quadratic", 6219.2), ("linear", math.inf)]
)
def test_predictions_are_the_published_ones(model, crossing):
    found = timing.predicted(ARTICLE, ARTICLE["N"], model)
    assert found.fit.crossover == pytest.approx(crossing, abs=0.05)
    assert found.low <= found.fit.crossover <= found.high
    assert found.lengths == (8, 16, 32, 64)


def test_a_prediction_uses_the_points_that_it_is_given():
    found = timing.predicted(ARTICLE, [64, 16, 32], "quadratic")
    assert found.lengths == (16, 32, 64) and found.fit.crossover == pytest.approx(3238.8, abs=0.05)
    assert "51 times beyond the data" in tables.prediction_text(found)
    with pytest.raises(ValueError, match="2 lengths, the quadratic model needs 3"):
        timing.predicted(ARTICLE, [8, 64], "quadratic")
