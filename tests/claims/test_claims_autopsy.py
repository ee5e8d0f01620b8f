"""The autopsy's attribution, conclusions and tables follow the stored rows."""

import copy
import math

import pytest
import synthetic
from drawn import title_of

from replib.claims.autopsy import ablation as autopsy
from replib.claims.autopsy import judge, tables
from replib.claims.autopsy import step_times as timing
from replib.claims.autopsy.defects import DEFECTS, article_defects, loss_defects
from replib.claims.autopsy.grid import ablation
from replib.claims.autopsy.prediction import prediction_chart
from replib.claims.common import laptop_model
from replib.lab import recorded
from replib.lab.verdict import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from replib.published import published

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


def test_rows_of_another_size_are_not_mixed_in(times):
    other = copy.deepcopy(times[0])
    other["config"]["model"]["d_model"] = 64
    other["summary"]["time_ms_samples"] = [1e9] * 5
    assert steps_of([*times, other]) == steps_of(times)


def steps_of(rows):
    return timing.step_times(autopsy.ablated(rows))


def attributed(rows, n):
    return timing.attribution(steps_of(rows), ARTICLE, n)


def slower(factor):
    return lambda s: s.update(time_ms_samples=[factor * x for x in s["time_ms_samples"]])


def test_the_slowdown_is_attributed_to_what_makes_it(times):
    found = attributed(times, 64)
    factors = {name: factor.value for name, factor in found.parts.items()}
    assert factors["float64 after attention"] == pytest.approx(2)
    assert factors["batch 32, loss summed"] == pytest.approx(3)
    assert factors["unfused attention"] == pytest.approx(0.9)
    assert factors["extra evaluations"] == pytest.approx(1.3)
    assert factors["the rest"] == pytest.approx(WHOLE / (6 * 0.9 * 1.3))
    assert found.mended.value == pytest.approx(72 / 84)
    assert found.broken.value * found.unexplained.value == pytest.approx(found.article)
    assert found.article == ARTICLE["ratio_linear_softmax"][-1]
    product = found.mended.value * math.prod(factors.values()) / found.softmax_whole.value
    assert product == pytest.approx(found.broken.value)
    said = timing.NO_TRANSFER
    assert "1/32" in said
    assert judge.slowdown(times, ARTICLE).evidence[-1] == said


def test_attributions_that_disagree_meet_in_their_geometric_mean(times):
    alone = changed(times, slower(0.7), attention="linear", defects=("float64",), seq_len=8)
    found = attributed(alone, 8).parts["float64 after attention"]
    assert found.value == pytest.approx(math.sqrt(1.4 * 2))


def test_intervals_are_of_the_repeats(times):
    def noisy(summary):
        summary["time_ms_samples"] = [
            x * f
            for x, f in zip(summary["time_ms_samples"], (0.8, 1.0, 1.3, 0.9, 1.1), strict=True)
        ]

    rows = changed(times, noisy, attention="linear", defects=("float64",), seq_len=64)
    exact, wide = (attributed(some, 64).parts["float64 after attention"] for some in (times, rows))
    assert exact.high / exact.low < 1.001 and wide.high / wide.low > 1.1
    assert wide.low <= 2 <= wide.high


def test_without_a_run_nothing_is_attributed(times):
    broken = article_defects("linear")
    rows = [row for row in times if tuple(row["config"]["defects"]) != broken]
    assert attributed(rows, 64) is None and attributed(times, 24) is None


def test_each_defect_has_its_factor_alone_and_among_the_others(times):
    for attention in ("linear", "softmax"):
        found = timing.time_effects(steps_of(times), attention, 16)
        assert set(found) == {
            (defect, role)
            for defect in article_defects(attention)
            for role in (autopsy.ALONE_ON, autopsy.ALONE_OFF)
        }
        for (defect, _), factor in found.items():
            assert factor.value == pytest.approx(synthetic.FACTORS[defect])


def test_losses_stand_in_nats_a_token_beside_the_levels_of_the_task(losses):
    text = tables.losses_table(ARTICLE, losses)
    assert "| nothing known yet | 2.38 | 2.39 | 2.37 | 2.35 |" in text
    assert "19.3 / 8 = 2.41" in text
    assert "| 2022 article, end, linear | 0.00 | 1.80 | 0.00 | 2.19 |" in text
    assert "| here, mended, end, linear | 0.0002 (3) |" in text


def test_no_stable_convergence_falls_where_mended_runs_learn_and_stands_where_none_of_its_size_do(
    losses, monkeypatch
):
    verdict = judge.convergence(losses)
    assert verdict.status == NOT_SUPPORTED
    assert verdict.headline.startswith("refuted, it does learn: 12 of 12 mended linear runs")
    assert verdict.answer.startswith("It does learn: 12 of 12 runs without the defects")
    failed = changed(losses, lambda s: s.update(final_accuracy=0.2), attention="linear", defects=())
    assert judge.convergence(failed).status == INCONCLUSIVE  # a small model may be too small
    assert judge.convergence(failed).answer.startswith("Open: 0 of 12")
    monkeypatch.setattr(judge, "replication_model", laptop_model)
    assert judge.convergence(failed).status == SUPPORTED
    assert judge.convergence(failed).answer.startswith("It stands: 0 of 12")
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
    assert masks.endswith("| not Adam at 1e-4 | not Adam at 1e-4 | Adam at 1e-4 |")
    mended = [row for row in losses if not row["config"]["defects"]]
    assert tables.failure_table(mended).count("not measured") == 12
    assert tables.failure_table([]) == ""


def test_8_to_24_times_slower_stands_by_its_factor_alone(times):
    verdict = judge.slowdown(times, ARTICLE)
    assert verdict.status == NOT_SUPPORTED
    met = {one.text: one.met for one in verdict.criteria}
    assert met["N = 8, mended: linear takes longer"] is True
    assert met["N = 64, mended: linear takes longer"] is False
    assert met["N = 8, mended: by 7.9× or more"] is False
    assert "1.57 at N = 8 and 0.857 at N = 64" in verdict.answer
    rows = changed(times, slower(20), attention="linear", defects=())
    assert judge.slowdown(rows, ARTICLE).status == SUPPORTED


def test_a_measured_crossover_decides_and_an_extrapolated_one_does_not(times, tmp_path_factory):
    verdict = judge.article_crossover(times)
    assert verdict.status == NOT_SUPPORTED
    assert verdict.headline == "mended steps cross: N = 40"
    assert verdict.answer.endswith("from N = 40 on, not from 3149.")
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
    verdict = judge.article_crossover(short, rows_of("autopsy_longer", tmp_path_factory))
    assert verdict.status == NOT_SUPPORTED
    assert verdict.headline.startswith("mended steps cross: N = 4")
    assert "measured up to N = 256" in verdict.criteria[0].figure
    broken = verdict.evidence[1]
    assert broken.startswith("broken steps cross at N = ") and "beyond N = 256" in broken


def test_without_rows_everything_is_inconclusive():
    for verdict in (
        judge.convergence([]),
        judge.slowdown([], ARTICLE),
        judge.article_crossover([]),
    ):
        assert verdict.status == INCONCLUSIVE and "no measurements yet" in verdict.headline


def test_a_defect_is_told_with_what_was_expected_and_what_was_measured(losses, times):
    lines = {
        line.split(" | ")[0]: line for line in tables.defects_table(losses, times).splitlines()
    }
    for defect in DEFECTS.values():
        line = lines[f"| {defect.title}"]
        assert defect.what in line and defect.where in line and defect.expected in line
    assert "a step takes 2× (no interval) the time at N = 64" in lines["| float64 after attention"]
    assert "0 of 3 runs learn at N = 64" in lines["| Adam at 1e-4"]
    assert "3 of 3 runs learn at N = 64" in lines["| elu + 1 in the decoder"]


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
    assert "51 times beyond" in title_of(prediction_chart(ARTICLE, [16, 32, 64], "quadratic"))
    with pytest.raises(ValueError, match="2 lengths, the quadratic model needs 3"):
        timing.predicted(ARTICLE, [8, 64], "quadratic")
