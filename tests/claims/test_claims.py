"""The verdicts follow the stored rows, whatever rows there are."""

import numpy as np
import pytest
from choices import how

from replib import claims
from replib.claims.common import judged_linear, laptop_copy
from replib.claims.convergence.judge import BELOW_LSH, below_lsh, convergence
from replib.claims.crossover.crossings import crossings
from replib.claims.crossover.extrapolation import extrapolation_text
from replib.claims.crossover.judge import implementations, speed_crossover
from replib.claims.crossover.steps import step_ratios
from replib.claims.images.grid import pixel_model
from replib.claims.images.judge import images
from replib.lab import store
from replib.lab.recorded import recorded_rows
from replib.lab.runs.training import summary_of
from replib.lab.statistics import SOFTMAX_MODELS, article_fits
from replib.lab.timing import Cost, CostConfig
from replib.lab.verdict import INCONCLUSIVE, NOT_SUPPORTED, NOT_TESTED, SUPPORTED, by_device
from replib.published import published
from replib.tasks import SequenceCopy
from replib.tasks.images import Pixels
from replib.training import Metrics, TrainingConfig

VARIANTS = (("softmax", "textbook"), ("softmax", "fused"), ("linear", "torch"))
LENGTHS = tuple(2**e for e in range(6, 13))


def run_row(attention, seed, *, loss=0.01, accuracy=1.0, outcome="ok", seq_len=32, device="cpu"):
    metrics = [
        Metrics(
            step=step,
            train_loss=loss,
            loss=loss,
            accuracy=accuracy,
            steps_per_s=1.0,
            seconds_left=0.0,
        )
        for step in (50, 100)
    ]
    config = laptop_copy(attention, seq_len, 100)
    summary = summary_of(metrics)
    row = store.make_row("convergence", "laptop", config, seed, outcome, summary)
    row["provenance"]["device_name"] = device
    return row


def runs(n_seeds=5, *, linear_loss=0.01, linear_accuracy=1.0, **options):
    noise = np.random.default_rng(0).normal(0, 1e-3, (2, n_seeds))
    return [
        run_row(attention, seed, loss=loss + noise[i, seed], accuracy=accuracy, **options)
        for i, (attention, loss, accuracy) in enumerate(
            (("linear", linear_loss, linear_accuracy), ("softmax", 0.01, 1.0))
        )
        for seed in range(n_seeds)
    ]


def papers(rows):
    """The same runs, of the paper's size."""
    sizes = {"n_layers": 4, "n_heads": 8, "d_model": 256, "d_feedforward": 1024}
    changes = {"task": {"seq_len": 128, "n_symbols": 10}, "batch_size": 64, "n_steps": 10_000}
    configs = [row["config"] | changes | {"model": row["config"]["model"] | sizes} for row in rows]
    return [row | {"config": config} for row, config in zip(rows, configs, strict=True)]


def cost_row(attention, implementation, n, time_ms, *, memory=None, outcome="ok", **changes):
    options = {"batch_size": 8, "work": "forward_backward"} | changes
    device = options.pop("device", "cpu")
    config = CostConfig(attention=attention, seq_len=n, **how(attention, implementation), **options)
    samples = tuple(time_ms * factor for factor in (0.99, 1.0, 1.01)) if time_ms else ()
    cost = Cost(config, outcome, None, samples, memory)
    row = store.make_row("scaling", "laptop", config, 0, outcome, cost.summary())
    row["provenance"]["device_name"] = device
    return row


def cost_rows(power=1.0, lengths=LENGTHS, **changes):
    """Softmax takes N² and linear N^power; equal at N = 300 where that is 1."""
    rows = []
    for n in lengths:
        for attention, implementation in VARIANTS:
            time_ms = n**2 / 1e4 if attention == "softmax" else 300 * n**power / 1e4
            memory = int(n**2 * 100 if implementation == "textbook" else 1000 * n**power)
            rows.append(cost_row(attention, implementation, n, time_ms, memory=memory, **changes))
    return rows


@pytest.mark.parametrize(
    "rows, status",
    [
        (runs(), SUPPORTED),
        (papers(runs()), SUPPORTED),
        (papers(runs(linear_loss=1.5)), NOT_SUPPORTED),
        (papers(runs(linear_accuracy=0.4)), NOT_SUPPORTED),
        # a small model does not refute, and is evidence no more where there are runs of full size
        (runs(linear_loss=1.5), NOT_TESTED),
        (runs(linear_accuracy=0.4), NOT_TESTED),
        (runs(linear_accuracy=0.4) + papers(runs()), SUPPORTED),
        (runs() + papers(runs(linear_loss=1.5)), NOT_SUPPORTED),
        (runs(4), INCONCLUSIVE),
        (runs(1, linear_accuracy=0.4), INCONCLUSIVE),
        ([], INCONCLUSIVE),
        (runs()[:5], INCONCLUSIVE),
    ],
)
def test_convergence_follows_the_runs(rows, status):
    assert convergence(rows).status == status


def test_a_diverged_linear_run_speaks_against_convergence_and_an_interrupted_one_not_at_all():
    diverged = [*runs()[1:], run_row("linear", 0, loss=float("nan"), outcome="diverged")]
    assert convergence(papers(diverged)).status == NOT_SUPPORTED
    stopped = [*runs(), run_row("linear", 9, loss=2.3, accuracy=0.1, outcome="interrupted")]
    assert convergence(stopped).criteria == convergence(runs()).criteria


def test_convergence_is_judged_length_by_length():
    verdict = convergence([*runs(seq_len=16), *runs(seq_len=64, linear_loss=1.5)])
    good, bad = verdict.criteria
    assert good.text.startswith("N = 16") and good.text.endswith(" steps: supported")
    assert bad.text.startswith("N = 64") and bad.text.endswith(f" steps: {NOT_TESTED}")
    assert "violated: final loss equals softmax's" in bad.figure and "violated" not in good.figure
    assert "final loss is at most 2× softmax's" in verdict.evidence[0]  # the criteria are listed
    assert "as accurate as softmax at N = 16, 64; its loss ends higher at 64" in verdict.headline
    assert verdict.headline.startswith("small models")
    assert not convergence(papers(runs())).headline.startswith("small models")


def test_intervals_of_losses_are_wider_where_several_lengths_are_judged():
    """Losses whose ratio is above 1 by a 95 % interval, but not by one of 98.75 %."""
    some = [
        run_row(attention, seed, loss=loss, seq_len=16)
        for attention, losses in (
            ("linear", (0.02, 0.045, 0.1, 0.225, 0.5)),
            ("softmax", (0.019, 0.02, 0.021, 0.02, 0.02)),
        )
        for seed, loss in enumerate(losses)
    ]
    one = convergence(some).criteria[3]
    (of_four, *_) = convergence(some + sum((runs(seq_len=n) for n in (24, 32, 64)), [])).criteria
    assert "at most 2×" in one.text and one.met is False
    assert "cannot be told: final loss is at most 2×" in of_four.figure


@pytest.mark.parametrize(
    "lsh_loss, n_seeds, status",
    [(0.05, 3, SUPPORTED), (0.002, 3, NOT_SUPPORTED), (0.05, 2, INCONCLUSIVE)],
)
def test_linear_attention_is_judged_beside_lsh_where_the_seeds_suffice(lsh_loss, n_seeds, status):
    lsh = [run_row("lsh", seed, loss=lsh_loss * (1 + seed / 10)) for seed in range(n_seeds)]
    for row in lsh:
        row["config"]["model"]["options"] = {"rounds": 4, "original": False}
    rows = [*runs(), *lsh]
    assert below_lsh(papers(rows)).status == status
    small = NOT_TESTED if status == NOT_SUPPORTED else status
    assert below_lsh(rows).status == small
    label = below_lsh(rows).label
    assert any(BELOW_LSH in one and label in one for one in convergence(rows).evidence)
    assert "not judged" in below_lsh(runs()).headline


def test_lsh_takes_no_part_in_the_verdicts_that_it_is_drawn_beside():
    lsh = [run_row("lsh", seed, loss=2.0, accuracy=0.2) for seed in range(3)]
    assert convergence([*runs(), *lsh]) == convergence(runs())
    assert convergence(lsh).status == INCONCLUSIVE
    alone = [row | {"config": row["config"] | {"n_steps": 77}} for row in lsh]
    assert convergence([*runs(), *alone]) == convergence(runs())
    faster = [cost_row("lsh", "1 round", n, 1e-3) for n in LENGTHS]
    assert speed_crossover([*cost_rows(), *faster]) == speed_crossover(cost_rows())


def crossovers(rows, **options):
    """What each implementation is held against -> the crossover."""
    return {(one.implementation, one.baseline): one.found for one in crossings(rows, **options)}


@pytest.mark.parametrize("baseline", ["textbook", "fused"])
def test_the_crossover_is_where_the_times_meet(baseline):
    found = crossovers(cost_rows())["torch", baseline]
    assert found.length == pytest.approx(300, rel=1e-3)
    assert 256 < found.low <= found.length <= found.high < 512
    assert not found.extrapolated


def test_a_crossover_beyond_the_lengths_is_called_extrapolated():
    found = crossovers(cost_rows(lengths=LENGTHS[:2]))["torch", "fused"]
    assert found.extrapolated and found.length == pytest.approx(300, rel=1e-3)


def test_a_crossover_needs_two_lengths_at_which_both_ran():
    short = cost_rows(lengths=(64,))
    lone = [cost_row("linear", "torch", 4096, 1.0), cost_row("softmax", "fused", 2048, 1.0)]
    gone = cost_row("softmax", "fused", 4096, None, outcome="out_of_memory")
    assert crossovers([*short, *lone, gone]) == {} == crossovers([])
    assert crossovers(cost_rows(), work="forward") == {}


def kernel_rows(lengths=LENGTHS, **changes):
    """`cost_rows` with linear attention in two more implementations: compiled it crosses at N = 30,
    and in its plain form never."""
    rows = cost_rows(lengths=lengths, **changes)
    for n in lengths:
        rows.append(cost_row("linear", "cpu", n, 30 * n / 1e4, memory=1000 * n, **changes))
        rows.append(cost_row("linear", "plain", n, 2 * n**2 / 1e4, memory=100 * n**2, **changes))
    return rows


def test_every_implementation_has_its_crossover_the_compiled_one_last():
    found = crossovers(kernel_rows())
    for baseline in ("textbook", "fused"):
        assert found["torch", baseline].length == pytest.approx(300, rel=1e-3)
        assert found["cpu", baseline].length == pytest.approx(30, rel=1e-3)  # extended down to it
        assert found["plain", baseline].length == np.inf
    assert [name for name, _ in found] == 2 * ["plain", "torch", "cpu"]
    batches = [*kernel_rows(batch_size=1), *kernel_rows()]
    assert [one.batch_size for one in crossings(batches)] == 6 * [8] + 6 * [1]


def test_rows_without_an_implementation_have_a_crossover_of_their_own():
    rows = [row for row in cost_rows() if row["config"]["attention"] == "softmax"]
    rows += [cost_row("linear", None, n, 300 * n / 1e4) for n in LENGTHS]
    assert crossovers(rows)[None, "fused"].length == pytest.approx(300, rel=1e-3)
    assert speed_crossover(rows).status == SUPPORTED


def test_linear_attention_is_judged_by_its_fastest_implementation():
    assert judged_linear(kernel_rows()) == "cpu"
    assert judged_linear(cost_rows()) == "torch"
    assert judged_linear(cost_rows()[:2]) is None is judged_linear([])
    failed = [cost_row("linear", "cpu", n, None, outcome="out_of_memory") for n in LENGTHS]
    assert judged_linear([*cost_rows(), *failed]) == "torch"


def test_only_points_that_all_implementations_finished_decide_which_is_fastest():
    # The sum over all of its points is larger for the compiled one, as it alone went on.
    rows = [cost_row("linear", "plain", n, n**2 / 1e4) for n in LENGTHS[:3]]
    rows += [cost_row("linear", "cpu", n, n / 10) for n in LENGTHS]
    assert judged_linear(rows) == "plain"
    assert judged_linear(rows + cost_rows(0.5, LENGTHS[2:])) == "torch"


@pytest.mark.parametrize(
    "rows, status",
    [
        (cost_rows(), SUPPORTED),  # from N = 300, claimed from 512
        (cost_rows(1.5), NOT_SUPPORTED),  # from N = 90000
        ([], INCONCLUSIVE),
        (cost_rows(lengths=(64,)), INCONCLUSIVE),
    ],
)
def test_speed_crossover_follows_the_times(rows, status):
    assert speed_crossover(rows).status == status


def test_speed_crossover_is_judged_by_the_fastest_and_tells_what_the_others_would_say():
    slow = cost_rows(1.5)  # torch crosses at N = 90000
    assert speed_crossover(slow).status == NOT_SUPPORTED
    extra = [row for row in kernel_rows() if row["config"]["kernel"] in ("cpu", "plain")]
    verdict = speed_crossover([*slow, *extra])
    assert verdict.status == SUPPORTED
    assert "Linear cpu is faster from: below N = 64" in verdict.headline
    moves = "plain not up to N = 4096; torch not up to N = 4096; cpu below N = 64"
    assert any(moves in line for line in verdict.evidence)
    assert any(line.startswith("softmax fused, batch 8: supported") for line in verdict.evidence)


def test_a_crossover_is_told_by_where_it_lies_among_the_measured_lengths():
    def told(rows):
        return speed_crossover(rows).criteria[0].figure.removeprefix("crossover ")

    below = told(kernel_rows())
    assert below.startswith("below N = 64, the shortest measured (95 % interval ")
    assert told(cost_rows()).startswith("N = 300 (measured up to N = 4096; 95 % interval ")
    beyond = told(cost_rows(lengths=LENGTHS[:2]))
    assert beyond.startswith(f"N = 300 (extrapolated beyond N = {LENGTHS[1]}; 95 % interval ")
    assert "inf" not in beyond


def test_times_whose_repeats_disagree_are_not_judged():
    rows = cost_rows()
    for row in rows[::2]:
        row["summary"]["time_ms_q75"] *= 3
    verdict = speed_crossover(rows)
    assert verdict.status == INCONCLUSIVE and "busy" in verdict.says
    assert "busy" not in speed_crossover(cost_rows()).says


def test_crossovers_of_several_settings_are_told_from_the_earliest_to_the_latest():
    rows = [*kernel_rows(), *cost_rows(1.5, batch_size=1)]
    headline = implementations(rows).headline
    assert "torch N = 300 or not up to N = 4096;" in headline
    assert implementations([]).headline == "no measurements yet"


def test_the_crossover_moves_with_the_implementation():
    verdict = implementations(kernel_rows())
    assert verdict.status == SUPPORTED
    spans = "plain not up to N = 4096; torch N = 300; cpu below N = 64, the shortest measured"
    assert verdict.headline.endswith(spans)
    assert [one.text for one in verdict.criteria] == [
        f"softmax {name}, batch 8: cpu crosses before plain" for name in ("textbook", "fused")
    ]
    assert implementations(cost_rows()).status == INCONCLUSIVE
    assert implementations([]).status == INCONCLUSIVE
    assert implementations(kernel_rows(), work="forward").status == INCONCLUSIVE


def test_speed_crossover_is_judged_for_each_batch_with_the_fused_softmax_as_evidence():
    verdict = speed_crossover([*cost_rows(), *cost_rows(1.5, batch_size=1)])
    assert [one.text for one in verdict.criteria] == [
        "softmax textbook, batch 8: supported",
        "softmax textbook, batch 1: not supported",
    ]
    fused = [line for line in verdict.evidence if line.startswith("softmax fused")]
    assert "batch 8: supported" in fused[0] and "batch 1: not supported" in fused[1]


def test_runs_of_two_budgets_are_not_judged_together():
    longer = [row | {"config": row["config"] | {"n_steps": 77}} for row in runs(seq_len=16)]
    verdict = convergence([*runs(seq_len=16, linear_loss=1.5), *longer])
    assert [one.met for one in verdict.criteria] == [None, True]
    assert "77 steps" in verdict.criteria[1].text


def test_step_ratios_are_those_of_the_times():
    article = published()["dm2022"]
    there, here = step_ratios(article, [])
    assert "7.9 to 24.2" in there and here == "nothing yet"
    times = {("linear", "torch"): 30, ("linear", "cpu"): 10, ("softmax", "fused"): 20}
    steps = [step_row(*variant, n, ms) for n in (8, 64) for variant, ms in times.items()]
    assert step_ratios(article, steps)[1] == (
        "Linear cpu takes 0.50 to 0.50 times softmax fused's time; "
        "linear torch takes 1.50 to 1.50 times softmax fused's time at N = 8 to 64."
    )


@pytest.mark.parametrize(
    "judge, well, ill",
    [
        (
            convergence,
            lambda **o: papers(runs(**o)),
            lambda **o: papers(runs(linear_loss=1.5, **o)),
        ),
        (speed_crossover, cost_rows, lambda **o: cost_rows(1.5, **o)),
    ],
)
def test_devices_are_judged_by_themselves(judge, well, ill):
    verdict = judge([*well(device="slow"), *ill(device="fast")])
    assert [one.text for one in verdict.criteria] == ["slow: supported", "fast: not supported"]
    assert verdict.status == NOT_SUPPORTED
    assert judge([*well(device="slow"), *well(device="fast")]).status == SUPPORTED


def test_headlines_of_the_recorded_rows_fit_a_cell_of_a_table():
    for name, judge in (
        ("convergence", convergence),
        ("crossover", speed_crossover),
    ):
        rows = recorded_rows(name)
        for some in by_device(rows).values():
            assert len(judge(some).headline.split()) <= 30, judge(some).headline


ARTICLE = published()["dm2022"]


def test_the_extrapolation_gives_the_articles_length_and_its_fragility():
    text = extrapolation_text(article_fits(ARTICLE))
    crossings = [line.split("|")[3].strip() for line in text.splitlines() if " | 0." in line]
    assert crossings[:3] == ["3149", "never", "6219"]
    assert len(crossings) == len(SOFTMAX_MODELS)


def step_row(attention, implementation, n, time_ms, outcome="ok"):
    from replib.claims.common import replication_model

    config = TrainingConfig(
        task=SequenceCopy(seq_len=n), model=replication_model(attention, kernel=implementation)
    )
    summary = Cost(config, outcome, None, (time_ms,) if time_ms else (), None).summary()
    return store.make_row("step_time", "laptop", config, 0, outcome, summary)


CLAIMS_OF = {"convergence": claims.convergence, "crossover": claims.crossover}
CLAIMS_OF |= {"scaling": claims.scaling, "images": claims.images}


def test_what_the_article_says_is_quoted_from_its_figures():
    told = CLAIMS_OF["convergence"].article()
    for losses in ARTICLE["loss_scale"]["nats_per_token"].values():
        assert all(f"{loss:.2f} at N = {n}" in told for n, loss in losses.items())
    assert "3149" in CLAIMS_OF["crossover"].article()
    assert "0.9902" in CLAIMS_OF["scaling"].article()


def images_row(attention, seed, bits, *, n_steps=2000, outcome="ok"):
    config = TrainingConfig(
        task=Pixels(), model=pixel_model(attention), n_steps=n_steps, batch_size=32
    )
    summary = {"bits_per_dim": bits, "histogram_bits_per_dim": 2.4}
    return store.make_row("images", "laptop", config, seed, outcome, summary)


def images_rows(**changes):
    return [
        images_row(attention, seed, bits + 0.01 * seed, **changes)
        for attention, bits in (("linear", 1.85), ("softmax", 1.83))
        for seed in range(3)
    ]


def test_images_are_judged_by_setting():
    verdict = images(images_rows())
    assert verdict.status == "supported"
    assert verdict.headline.startswith("digits, 2000 steps: linear 1.860, softmax 1.840")
    both = images([*images_rows(), *images_rows(n_steps=10)])
    assert "supported in 2 of 2 settings" in both.headline


def test_a_diverged_images_run_is_not_left_out():
    rows = [*images_rows(), images_row("linear", 3, None, outcome="diverged")]
    assert images(rows).status == "not supported"
    assert images([]).status == "inconclusive"


def test_the_papers_images_are_quoted_from_the_published_figures():
    said = CLAIMS_OF["images"].paper()
    assert "MNIST: linear 0.644, softmax 0.621 (table 1)" in said
    assert "CIFAR-10: linear 3.40, softmax 3.47 (table 2)" in said
    assert "not those here" in said
