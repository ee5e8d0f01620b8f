"""What notebook 1 shows of its runs, and copies with."""

import re
from dataclasses import replace
from types import SimpleNamespace

import marimo as mo
import pytest
import torch
from shown import job, markup

from replib.claims.common import laptop_copy, laptop_model
from replib.claims.convergence import page
from replib.lab import store
from replib.lab.run import TrainingJob
from replib.pages import tidy
from replib.training import Training


def run_rows(seq_len, **changes):
    config = laptop_copy("linear", seq_len, 10, **changes)
    curve = {"step": [5, 10], "train_loss": [2, 1], "loss": [2, 1], "accuracy": [0, 1]}
    summary = {"final_loss": 1.0, "final_accuracy": 1.0}
    make = store.make_row
    return [make("convergence", "live", config, 0, "ok", summary, curve)]


SETTINGS = {"seq_len": 32, "task": "causal copy", "attention": ("linear",)}


def test_recorded_curves_of_the_chosen_length_are_drawn_behind_whatever_has_run():
    recorded = {"convergence": [*run_rows(16), *run_rows(32)]}
    behind = page.curves_behind(recorded, SETTINGS)
    assert behind["seq_len"].unique().to_list() == [32]
    assert page.curves_behind(recorded, SETTINGS | {"seq_len": 24}).is_empty()
    assert page.curves_behind(recorded, SETTINGS | {"attention": ("softmax",)}).is_empty()


def test_runs_of_other_settings_stay_in_the_chart():
    before, now = run_rows(16), run_rows(32)
    live = SimpleNamespace(finished=[*before, *now])
    assert page.curves_before(live, now)["seq_len"].unique().to_list() == [16]
    assert page.curves_before(live, []).height == 4


def test_a_chart_is_titled_with_what_was_learned_and_the_settings():
    shown = tidy.training_curves(run_rows(32, model=replace(laptop_model("linear"), n_layers=1)))
    own = "99% right: linear at step 10. N = 32, 10 steps, batch 32, 1 layer, 4 heads of 16"
    assert page.title_of(shown, shown) == page.title_of(shown) == own
    recorded = tidy.training_curves(run_rows(32))
    told = f"{own} (recorded: 10 steps, batch 32, 2 layers, 4 heads of 16)"
    assert page.title_of(shown, recorded) == told
    assert page.title_of(tidy.training_curves([])) == "Nothing has run yet"


def test_numbers_follow_the_settings_before_anything_runs():
    values = {"n_layers": 1, "n_heads": 2, "head_dim": 8, "batch_size": 4, "n_steps": 10}
    shown = page.sizes(SETTINGS | values | {"lr": 1e-3, "seeds": 1}).text
    assert "1,024" in shown and "72" in shown  # N², and D² + D
    assert (
        page.sizes(SETTINGS | values | {"lr": 1e-3, "seeds": 1, "seq_len": 1}).text
        == mo.md("").text
    )


@pytest.fixture(scope="module")
def copier():
    """A model that has learned to copy, and one that has not."""
    trained = Training(laptop_copy("linear", 16, 250), seed=0, device="cpu")
    *_, last = trained.metrics()
    assert last.accuracy > 0.9
    raw = Training(laptop_copy("softmax", 16, 250), seed=0, device="cpu")
    jobs = [TrainingJob(config=t.config, seed=0) for t in (trained, raw)]
    models = dict(zip(jobs, (trained, raw), strict=True))
    return SimpleNamespace(model=lambda job, device: models.get(job)), jobs


def copies(copier, text, drawing=0):
    return markup(page.copies(copier[0], copier[1], text, drawing, "cpu"))


@pytest.mark.slow
def test_a_trained_model_is_seen_to_copy_and_an_untrained_one_not(copier):
    shown = copies(copier, "badce")
    assert shown.count("<tr>") == 3
    rows = [row.split("</tr>")[0] for row in shown.split("<tr>")[1:]]
    rows = {re.search(">([a-z]+)</th>", row)[1]: row for row in rows}
    given, trained, raw = (rows[name] for name in ("given", "linear", "softmax"))
    assert "5 of 5 right" in given and "5 of 5 right" in trained and "wrong" not in trained
    assert "5 of 5 right" not in raw and "wrong" in raw  # a sign besides the colour
    assert letters_of(given) == list("badce")


def letters_of(row):
    return [span.split(">")[1][0] for span in row.split("<span")[1:]]


def test_capitals_and_spaces_around_are_forgiven(copier):
    assert copies(copier, " BADCE ") == copies(copier, "badce")


def test_without_letters_a_sequence_of_a_trained_length_is_drawn(copier):
    drawn = [copies(copier, " ", drawing).split("<tr>")[1] for drawing in range(6)]
    assert len(set(drawn)) > 3
    for given in drawn:
        assert len(letters_of(given)) in page.trained_lengths(copier[1][0].config.task)
    assert copies(copier, "badce", 3) == copies(copier, "badce", 4)  # what was typed stays


def test_the_weights_of_a_head_are_those_that_it_mixes_values_with(copier):
    training = copier[0].model(copier[1][0], "cpu")
    tokens = torch.tensor([[2, 1, 4, 3, 5, 0, 2, 1, 4, 3]])
    weights = page.attention_weights(training, tokens)
    assert weights.shape == (10, 10) and weights.triu(1).abs().max() == 0
    assert torch.allclose(weights.sum(1), torch.ones(10), atol=1e-3)
    # A letter is found a position after where it stood, or there.
    assert set((torch.arange(5, 10) - weights[5:].argmax(1)).tolist()) <= {4, 5}


def test_a_length_that_the_models_were_not_trained_on_is_said(copier):
    assert "1 symbol: the models were trained on 4 to 6" in copies(copier, "a")
    assert "trained on" not in copies(copier, "badce")


@pytest.mark.parametrize(
    "text, told",
    [
        ("abk", "type letters from a to j only"),
        ("a b", "type letters from a to j only"),
        ("é😀", "type letters from a to j only"),
        ("<b>", "&lt;b&gt;"),
        ("abcdefg", "7 symbols: a model of length 16 copies 1 to 6"),
    ],
)
def test_what_cannot_be_copied_is_explained(copier, text, told):
    shown = copies(copier, text)
    assert told in shown and "<table" not in shown


def test_without_a_trained_model_the_reader_is_told_to_run_first(live):
    assert "let them run first" in page.copies(live, [job()], "abc", 0, "cpu").text
    assert "let them run first" in page.copies(live, [], "abc", 0, "cpu").text
