"""Linformer's claims on rows that are made up, its probes, and what a model costs by hand."""

import math

import pytest
import torch
from drawn import title_of

from replib.attention import ATTENTION, softmax_attention
from replib.claims import linformer, translation
from replib.claims.linformer import charts, judge, probes
from replib.claims.linformer.grid import JUDGED_K, KS
from replib.claims.linformer.stack import PARTS, StackConfig, n_matrices, operations
from replib.claims.translation import judge as of_text
from replib.claims.translation.charts import length_chart, seeds_chart
from replib.claims.translation.grid import NUMBER_KS, number_config, text_config, translators
from replib.claims.translation.maps import translated, weights
from replib.lab import recorded, store
from replib.lab.run import CostJob, Where, config_of, variant_of
from replib.lab.timing import Cost, CostConfig
from replib.lab.verdict import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED, TOO_FEW
from replib.published import published
from replib.tasks.translation import ParallelText
from replib.training import Training

LENGTHS = tuple(2**e for e in range(8, 13))
Options = ATTENTION["linformer"].Options


def cost_row(attention, n, time_ms, config=CostConfig, **changes):
    sizes = {"seq_len": n, "batch_size": 2**12 // n, "work": "forward", "causal": False}
    one = config(attention=attention, **sizes, **changes)
    samples = tuple(time_ms * factor for factor in (0.99, 1.0, 1.01))
    summary = Cost(one, "ok", None, samples, 100 * n).summary()
    return store.make_row("linformer", "laptop", one, 0, "ok", summary, kind=one.kind)


def alone(equal_at=300.0, slope=1.0):
    """Softmax takes N² and Linformer N^slope · k; k = 128 equal to fused softmax at a length, and
    the textbook form twice the fused one."""
    rows = []
    for n in LENGTHS:
        rows.append(cost_row("softmax", n, n**2 / 1e4, kernel="fused"))
        rows.append(cost_row("softmax", n, n**2 / 5e3, kernel="textbook"))
        rows.append(cost_row("linear", n, n / 1e2, kernel="torch"))
        for k in KS:
            time_ms = equal_at ** (2 - slope) * n**slope / 1e4 * k / JUDGED_K
            rows.append(cost_row("linformer", n, time_ms, options=Options(k=k)))
    return rows


def test_a_crossover_below_512_supports_the_speed_and_one_above_does_not():
    verdict = judge.linformer(alone())
    assert verdict.status == SUPPORTED
    assert "Faster than textbook softmax from below N = 256, than fused" in verdict.answer
    assert judge.linformer(alone(equal_at=1000.0)).status == NOT_SUPPORTED
    assert judge.linformer(alone(slope=2.2)).status == NOT_SUPPORTED  # the ratio falls
    assert judge.linformer([]).status == INCONCLUSIVE


def stack(share_of_attention):
    rows = []
    for part in PARTS:
        for k in KS:
            time_ms = 1 - share_of_attention + share_of_attention * k / KS[0]
            rows.append(
                cost_row("linformer", 256, time_ms, StackConfig, part=part, options=Options(k=k))
            )
    return rows


def test_k_matters_to_attention_alone_and_hardly_to_a_model():
    verdict = judge.slots(alone(), stack(0.01))
    assert [one.met for one in verdict.criteria] == [False, True, True, True]
    assert verdict.status == NOT_SUPPORTED
    assert judge.slots([], []).status == INCONCLUSIVE


def test_an_encoders_time_is_told_by_its_parts_where_all_of_them_were_timed():
    def timed(time_ms, kind, **how):
        mechanisms = (("softmax", {"kernel": "fused"}), ("linear", {"kernel": "torch"}))
        mechanisms += (("linformer", {"options": Options(k=JUDGED_K)}),)
        return [cost_row(a, 256, time_ms, kind, **o, **how) for a, o in mechanisms]

    attention = timed(1.0, CostConfig)
    stacks = timed(3.0, StackConfig, part="layer") + timed(24.0, StackConfig, part="encoder")
    assert charts.time_parts_chart(attention, stacks[:3]) is None
    chart = charts.time_parts_chart(attention, stacks)
    (data,) = chart.to_dict()["datasets"].values()
    per_token = 1e3 / (256 * config_of(stacks[0]).batch_size)
    values = [row["value"] / per_token for row in data if row["attention"] == "softmax fused"]
    assert values == pytest.approx([6 * 1.0, 6 * 2.0, 24.0 - 6 * 3.0], rel=1e-3)
    assert "attention takes 25% of the time" in title_of(chart)


def test_operations_of_attention_are_the_shares_of_the_published_benchmark():
    """Without the projection of what is put out, which the Linformer work does not apply."""
    for k, share in ((32, 0.009), (64, 0.018), (128, 0.035)):
        needs = operations("linformer", 1024, k=k)
        total = needs.total - needs.projections / 4
        assert needs.attention / total == pytest.approx(share, abs=0.0006)
        assert 0.56 < needs.output / total < 0.60
    assert operations("softmax", 2**14).attention > 60 * operations("softmax", 2**8).attention
    assert (n_matrices("headwise"), n_matrices("none")) == (24, 288)


def test_operations_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    n, sizes = 64, {"n_layers": 2, "n_heads": 2, "d_feedforward": 48, "vocab_size": 50}
    for attention, how in (
        ("linformer", {"options": Options(k=8)}),
        ("softmax", {"kernel": "textbook"}),
    ):
        config = StackConfig(
            attention=attention,
            seq_len=n,
            head_dim=8,
            work="forward",
            part="encoder",
            **sizes,
            **how,
        )
        work = config.work_on(torch.device("cpu"), 0)
        with FlopCounterMode(display=False) as counted:
            work()
        needs = operations(attention, n, k=8, head_dim=8, **sizes)
        found = counted.get_total_flops() / 2 / n
        if attention == "linformer" and found < needs.total:  # the fused kernel is not counted
            found += 2 * 2 * 8 * 16
        assert found == pytest.approx(needs.total, rel=1e-6)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("work", ["forward", "forward_backward"])
def test_a_layer_and_models_are_timed_and_their_rows_are_read_again(part, work):
    sizes = {"n_layers": 1, "n_heads": 2, "head_dim": 4, "d_feedforward": 8, "vocab_size": 11}
    configs = tuple(
        StackConfig(attention=a, options=o, seq_len=16, work=work, part=part, **sizes)
        for a, o in (("softmax", None), ("linformer", Options(k=4)))
    )
    rows = list(CostJob(configs=configs, n_repeats=2).execute(Where("linformer_stack", "smoke")))
    assert [row["outcome"] for row in rows] == ["ok"] * 2
    for row in rows:
        checked, current = recorded.checked(row)
        assert current and checked["config"]["part"] == part


def test_a_causal_mask_over_slots_leaks_all_of_the_future():
    past = probes.leak(softmax_attention, 7)
    assert past.triu(1).abs().max() == 0
    seen = probes.leak(probes.slots_masked(7, 3), 7)
    assert (seen[torch.ones(7, 7).triu(1) > 0] > 0).all()


def test_padding_changes_nothing_where_it_is_hidden_before_the_projections():
    changes = {how: probes.padding_change(how, 9, 5, 3) for how in probes.PADDING}
    assert changes["hidden before E and F"] < 1e-12
    assert min(changes["not hidden"], changes["hidden before a bias"]) > 1e-3


def test_the_best_low_rank_is_that_of_singular_values_and_random_ones_fall_as_root_k():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    v = torch.randn(40, 8, generator=generator)
    found = probes.errors_of_rank(scores.softmax(-1), v, [4, 16, 40])
    best = [one["error"] for one in found if one["how"] == "best of rank k"]
    drawn = [one["error"] for one in found if one["how"] == "random projection"]
    assert best[2] < 1e-10 and best[0] > best[1]
    assert drawn[0] / drawn[1] == pytest.approx(2, rel=0.4)
    assert probes.spectrum(torch.eye(4))[1].item() == pytest.approx(0.5)


# Translation


def text_row(how, seed, bleu, long=0.0, task=None, **changes):
    config = text_config(how, task or ParallelText(), 100, **changes)
    perplexity = 5.0 if how["attention"] == "softmax" else 5.5
    groups = [
        {"words": words, "n": 50, "perplexity": perplexity * math.exp(long * i), "bleu": bleu}
        for i, words in enumerate((8, 15, None))
    ]
    summary = {
        "n_steps": 100,
        "final_loss": 1.0,
        "final_accuracy": 0.5,
        "best_loss": 1.0,
        "bleu": bleu,
        "chrf": 60.0,
        "perplexity": perplexity,
        "perplexity_per_char": 1.4,
        "bleu_beam": bleu + 1,
        "by_length": groups,
        "bleu_signature": "nrefs:1",
    }
    curve = {name: [1.0] for name in ("train_loss", "loss")} | {"step": [100], "accuracy": [0.5]}
    return store.make_row("translation", "laptop", config, seed, "ok", summary, curve)


def text_rows(below=0.0, softmax=35.0):
    rows = []
    for how in translators((32,)):
        bleu = softmax - (0 if how["attention"] == "softmax" else below)
        rows += [text_row(how, seed, bleu + 0.1 * seed, long=0.02) for seed in range(3)]
    return rows


@pytest.mark.parametrize(
    "changes, status",
    [
        ({}, SUPPORTED),
        ({"below": 3.0}, NOT_SUPPORTED),
        ({"softmax": 20.0}, NOT_SUPPORTED),  # a poor baseline shows nothing
        ({"below": 1.0}, INCONCLUSIVE),
    ],
)
def test_a_translator_is_as_good_within_a_margin_of_a_fair_baseline(changes, status):
    verdict = of_text.translation(text_rows(**changes))
    assert verdict.status == status
    assert "softmax 35" in verdict.answer or "softmax 20" in verdict.answer


def test_too_few_seeds_decide_nothing():
    rows = [text_row(how, 0, 35.0) for how in translators((32,))]
    assert of_text.translation(rows).status == INCONCLUSIVE
    assert of_text.translation([]).status == of_text.number_words([]).status == INCONCLUSIVE
    without = [row for row in text_rows() if variant_of(row)[0] != "linformer"]
    verdict = of_text.translation(without)
    assert (verdict.status, verdict.label) == (INCONCLUSIVE, TOO_FEW)


def test_rows_of_translations_are_read_again_and_drawn():
    rows = [recorded.checked(row)[0] for row in text_rows(below=2.0)]
    assert "series" in seeds_chart(rows, "bleu", "BLEU", "BLEU").to_json()
    assert "linformer k32" in length_chart(rows).to_json()
    seeds_chart([], "bleu", "BLEU", "BLEU").to_json()
    length_chart([]).to_json()
    lines = of_text.with_length(rows)
    assert len(lines) == 2 and "at more than 15" in lines[0]
    for row in rows:
        row["summary"]["by_length"][-1]["n"] = 2  # sentences, which tell nothing
    assert "up to 15" in of_text.with_length(rows)[0]


def test_scored_as_a_corpus_the_published_outputs_come_in_the_order_of_perplexity():
    table = published()["linformer_project"]["table"]

    def order(score, sign):
        return sorted(table, key=lambda model: sign * table[model][score])

    right = order("ppl", 1)
    assert order("bleu_recomputed", -1) == order("chrf2_recomputed", -1) == right
    assert order("bleu_published", -1) != right


def test_charts_are_drawn_of_rows_and_of_none():
    rows = {"linformer": alone(), "linformer_stack": stack(0.1)}
    names = dict(linformer.CLAIM.figures(rows))
    empty = dict(linformer.CLAIM.figures({"linformer": [], "linformer_stack": []}))
    for figure in (*names.values(), *empty.values()):
        figure.chart.to_json()
    nothing = {"translation": [], "number_words": []}
    for figure in translation.CLAIM.figures(nothing).values():
        figure.chart.to_json()
    charts.operations_chart(1024, 64, 8000).to_json()


def test_what_the_earlier_works_say_is_short():
    for claim in (linformer.CLAIM, translation.CLAIM):
        for statement in claim.statements:
            for says in (statement.paper_says, statement.article_says, statement.text):
                assert len(says.split()) <= 30, says


@pytest.mark.parametrize("how", translators(NUMBER_KS[:1]), ids=lambda how: how["attention"])
def test_weights_of_a_translator_give_what_it_reads(how):
    """A translation comes with a map of what was read for each of its tokens."""
    training = Training(number_config(how, 2, batch_size=4), seed=0, device="cpu")
    attention = training.model.decoder[0].cross_attention.attention.double()
    q, k, v = (torch.randn(1, 4, n, 16, dtype=torch.float64) for n in (3, 5, 5))
    torch.testing.assert_close(weights(attention, q, k) @ v, attention(q, k, v, causal=False))
    made = translated(Training(number_config(how, 2), seed=0, device="cpu"), "forty-two")
    assert made.cross.shape == (len(made.target), 3) and made.encoder.shape == (3, 3)
    assert len(made.confidence) == len(made.target) and made.source[:2] == ["forty", "two"]
