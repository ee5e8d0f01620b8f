"""The claims on text, on rows that are made up; what models write on the page."""

import math
from dataclasses import replace
from functools import partial

import pytest
import synthetic
import torch

from replib.claims import EXPERIMENTS, language_model, update_rules_text
from replib.claims.language_model import charts, grid, judge, page
from replib.claims.update_rules_text import charts as charts_of_rules
from replib.claims.update_rules_text import grid as grid_of_rules
from replib.claims.update_rules_text import judge as judge_of_rules
from replib.lab import recorded
from replib.lab.run import TrainingJob, Where, config_of
from replib.lab.runs.language_model import state_bytes
from replib.lab.verdict import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from replib.language_model import LanguageModelConfig
from replib.lstm import LSTMConfig
from replib.models import CausalTransformer
from replib.published import published
from replib.tasks.text import Text

CLAIMS = (language_model.CLAIM, update_rules_text.CLAIM)


@pytest.fixture
def rows(data):
    names = [one.name for claim in CLAIMS for one in claim.experiments]
    synthetic.write_recorded(data, *names)
    return {name: recorded.recorded_rows(name) for name in names}


def with_loss(rows, changed):
    """Rows with other test losses; `changed` gives what is added to that of a config."""
    found = []
    for row in rows:
        loss = math.log(row["summary"]["perplexity"]) + changed(config_of(row))
        told = row["summary"] | {"perplexity": math.exp(loss), "best_loss": loss}
        found.append(row | {"summary": told})
    return found


def test_every_recorded_row_can_be_read_back(rows):
    for name, some in rows.items():
        jobs = EXPERIMENTS[name].jobs("laptop")
        assert [config_of(row) for row in some] == [job.config for job in jobs]


def test_as_good_as_softmax_supports_the_claim_and_worse_does_not(rows):
    both = [*rows["language_model"], *rows["text_axes"]]
    verdict = judge.language_model(both)
    assert verdict.status == SUPPORTED
    assert "Shakespeare, a character: softmax 4.96, linear 4.96" in verdict.answer
    assert "ptb: softmax 122" in verdict.answer and "lstm 134" in verdict.answer
    worse = with_loss(both, lambda config: 0.2 * (config.model.attention == "linear"))
    assert judge.language_model(worse).status == NOT_SUPPORTED
    poor = with_loss(both, lambda config: -0.2 * (config.model.attention == "lstm"))
    assert [one.met for one in judge.language_model(poor).criteria] == [True, True, False]
    assert judge.language_model([]).status == INCONCLUSIVE


def test_each_mechanism_is_told_at_its_own_best_learning_rate(rows):
    def bent(config):  # linear wants a tenth
        own = abs(math.log10(config.lr / 1e-3)) - abs(math.log10(config.lr / 1e-2))
        return 0.1 * own * (config.model.attention == "linear")

    some = with_loss(rows["text_axes"], bent)
    assert judge.tuned(some, "softmax")[0] == 1e-2
    rate, losses = judge.tuned(some, "linear")
    assert rate == 1e-3 and len(losses) == 3


def test_the_test_is_told_where_the_validation_loss_is_lowest(rows):
    some = rows["text_axes"]
    for row in some:
        if config_of(row) == grid.axis_config("linear", "learning rate", 3e-2, "laptop"):
            row["summary"]["best_loss"] = 0.1  # and a test loss that is not the lowest
    rate, losses = judge.tuned(some, "linear")
    assert rate == 3e-2 and min(losses) > 1.6


def test_a_run_that_diverged_counts(rows):
    some = rows["language_model"]
    for row in some:
        if config_of(row).model.attention == "linear" and row["seed"] == 1:
            row["outcome"] = "diverged"
    (criterion, _) = judge.language_model(some).criteria
    assert criterion.met is False and "1 and 0 seeds diverged" in criterion.figure


def test_the_axes_have_the_verdicts_of_their_rows(rows):
    axes = rows["text_axes"]
    assert judge.layers(axes).status == SUPPORTED
    assert judge.heads(axes).status == SUPPORTED
    assert "Best: 11 (softmax, layers), 11 (linear, layers)" in judge.layers(axes).answer
    assert judge.batch(axes).status == SUPPORTED
    shorter = with_loss(axes, lambda config: 0.1 * math.log2(config.task.seq_len / 64))
    assert judge.length(shorter).status == SUPPORTED
    longer = with_loss(axes, lambda config: -0.1 * math.log2(config.task.seq_len / 64))
    assert judge.length(longer).status == NOT_SUPPORTED
    for name in ("layers", "batch", "length", "heads"):
        assert judge.VERDICTS[name]({"text_axes": []}).status == INCONCLUSIVE


def test_a_defect_that_changes_nothing_is_no_defect(rows):
    verdict = judge.defects(rows["text_defects"])
    assert verdict.status == SUPPORTED
    assert "0.10% off the perplexity of all tokens" in verdict.evidence[0]
    mended = with_loss(
        rows["text_defects"], lambda config: -0.3 * (config.model.embedding_dropout == 0.5)
    )
    assert [one.met for one in judge.defects(mended).criteria] == [True, True, False]


def test_a_sum_that_fails_without_end_supports_the_delta_rule(rows):
    rules, carry = rows["update_rules_text"], rows["text_carry"]
    assert judge_of_rules.update_rules_text(rules).status == SUPPORTED
    assert judge_of_rules.text_carry(carry).status == SUPPORTED
    mended = with_loss(
        carry,
        lambda config: -1.0 * (config.model.attention == "dpfp" and config.n_carried == 0),
    )
    assert judge_of_rules.text_carry(mended).status == NOT_SUPPORTED
    sums = with_loss(rules, lambda config: -0.2 * (config.model.attention == "dpfp"))
    assert judge_of_rules.update_rules_text(sums).status == NOT_SUPPORTED
    assert judge_of_rules.update_rules_text([]).status == INCONCLUSIVE
    assert judge_of_rules.text_carry([]).status == INCONCLUSIVE


@pytest.mark.slow
def test_charts_are_drawn_with_rows_and_without(rows):
    for claim in CLAIMS:
        for figures in (claim.figures(rows), claim.figures({name: [] for name in claim.reads})):
            for figure in figures.values():
                figure.chart.to_dict()
    assert "no data yet" in str(charts.axis_chart([], "layers").to_dict())
    assert "best softmax 11, linear 11" in str(charts.axis_chart(rows["text_axes"], "layers").title)
    assert len(judge_of_rules.along_segments(rows["text_carry"], "sum")) == 16
    shown = charts_of_rules.state_chart(rows["text_carry"]).to_dict()
    assert "bytes of the state" in str(shown)


def test_statements_are_of_published_figures():
    told = {one.name: one for claim in CLAIMS for one in claim.statements}
    assert "Penn Treebank 133.3, enwik8 3.49" in told["language_model"].article_says
    assert "1.80 bits a byte" in told["language_model"].more[language_model.WORK]
    assert "sum >260, delta 29.4" in told["text_carry"].paper_says
    assert "Transformer 29.6, sum 33.0, delta 31.5" in told["update_rules_text"].paper_says
    bits = {name: name not in page.OTHER_TOKENS for name in published()["lm_study"]["ppl"]}
    assert not bits["Sparse"] and bits["Transformer-XL"]


def test_models_of_penn_treebank_have_weights_alike():
    sizes = {}
    for model in (grid.word_model("softmax"), grid.LSTM):
        build = getattr(model, "build", partial(CausalTransformer, model))
        with torch.device("meta"):
            made = build(vocab_size=10_000, max_len=64)
        sizes[model.attention] = sum(x.numel() for x in made.parameters())
        outside = sizes[model.attention] - made.head.weight.numel()
        assert 1.2e6 < outside < 4e6
    assert sizes["lstm"] == pytest.approx(sizes["softmax"], rel=0.03)


def test_a_memory_and_a_state_of_equal_bytes_are_compared():
    configs = (
        grid_of_rules.carried_config("delta", 0, "laptop"),
        grid_of_rules.carried_config("softmax", 0, "laptop", 16),
    )
    delta, softmax = (state_bytes(config.training(device="cpu")) for config in configs)
    assert delta == softmax and configs[1] in grid_of_rules.memory_configs("laptop")


# A run, and what it writes


def tiny(attention="linear", **changes):
    options = {"n_steps": 3, "batch_size": 2, "eval_every": 1, "eval_batches": 1}
    model = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_feedforward": 16}
    return grid.character_config(
        attention, **model, **options | {"task": Text(seq_len=16)} | changes
    )


@pytest.fixture
def short(monkeypatch, tmp_path):
    """A text that is scored at once."""
    monkeypatch.setenv("REPLIB_TEXTS", str(tmp_path))
    (tmp_path / "play").mkdir()
    (tmp_path / "play" / "play.txt").write_text("To be, or not to be: that is it.\n" * 60)
    return Text(corpus="play", seq_len=16)


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 4},
        {"positions": "none", "n_carried": 2},
        {"attention": "softmax", "positions": "none", "n_carried": 0, "memory_len": 5},
        {"model": LSTMConfig(d_model=8), "n_carried": 0},
    ],
    ids=["blocks", "carried", "memory", "lstm"],
)
def test_a_job_makes_a_row_that_can_be_read(changes, short, data):
    changes = dict(changes)
    model = changes.pop("model", None)
    config = tiny(task=short, **({} if model else changes))
    config = replace(config, model=model, **changes) if model else config
    (row,) = TrainingJob(config=config, seed=0).execute(Where("language_model", "smoke", "cpu"))
    checked, current = recorded.checked(row)
    assert current and config_of(checked) == config
    told = row["summary"]
    n = len(config.task.text.test.ids) - 1
    assert told["n_test"] == n and told["n_parameters"] > 100
    assert told["bits_per_byte"] == pytest.approx(math.log2(told["perplexity"]))
    assert told["bits_per_character"] == told["bits_per_byte"]
    assert ("perplexity_sliding" in told) == ("stride" in changes)
    assert ("by_segment" in told) == config.carries
    assert told["state_bytes"] > 0
    if config.memory_len:
        assert told["state_bytes"] == 2 * 16 * 4 * config.memory_len


def test_what_is_written_is_drawn_from_the_likeliest(short):
    config = replace(tiny(), task=Text(seq_len=16))
    training = config.training(device="cpu")
    one = page.write(training, "ROMEO:\n", 0.7, 1, 0, 40)
    again = page.write(training, "ROMEO:\n", 0.7, None, 0, 40)
    assert len(one.tokens) == len(one.likeliest) == 40
    assert all(token == top[0][0] for token, top in zip(one.tokens, one.likeliest, strict=True))
    assert (
        again.tokens != one.tokens
        and again.tokens == page.write(training, "ROMEO:\n", 0.7, None, 0, 40).tokens
    )
    assert all(sum(share for _, share in top) < 1 + 1e-6 for top in again.likeliest)
    with pytest.raises(ValueError, match="'√' is in no line of shakespeare: leave it out"):
        page.write(training, "√", 1.0, None, 0, 4)
    made = {"linear": one}
    assert "r-written" in page.texts(made).text and "ROMEO" in page.texts(made).text
    assert f"stopped at step 0 of {config.n_steps}" in page.texts(made).text
    page.bars(made, 40)


def test_the_first_tokens_are_those_of_the_whole_sequence():
    """Of greedy choice, by the recurrent form."""
    training = tiny(task=Text(seq_len=64)).training(device="cpu")
    vocabulary = training.config.task.text.vocabulary
    one = page.write(training, "The ", 1.0, 1, 0, 20)
    ids = vocabulary.encode("The " + "".join(one.tokens)).long()
    training.model.eval()
    expected = training.model(ids[None, :-1])[0, 3:].argmax(-1)
    assert vocabulary.pieces(expected.tolist()) == one.tokens


def test_live_jobs_follow_the_controls():
    values = {"n_layers": 3, "n_heads": 8, "batch_size": 4, "lr": 3e-3, "n_steps": 50}
    values |= {"seq_len": 32, "positions": "none", "attention": ("linear", "delta")}
    values |= {"embedding_dropout": 0.5}
    jobs = page.live_jobs(values)
    assert [job.config.model.attention for job in jobs] == ["linear", "delta"]
    for config in (job.config for job in jobs):
        assert isinstance(config, LanguageModelConfig)
        assert (config.model.n_layers, config.model.n_heads, config.lr) == (3, 8, 3e-3)
        assert (config.task.seq_len, config.model.positions) == (32, "none")
        assert (config.batch_size, config.n_steps) == (4, 50)
        assert config.model.embedding_dropout == 0.5


def test_a_tab_is_shown_where_there_are_rows_of_it():
    claims = language_model.CLAIM.recorded(), update_rules_text.CLAIM.recorded()
    figures = {name: one for claim in claims for name, one in claim.figures.items()}
    shown = page.recorded_charts(*claims)
    for title, name in page.FIGURES.items():
        assert (title in shown) == bool(figures[name].rows)
