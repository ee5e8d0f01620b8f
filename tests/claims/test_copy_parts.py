"""What notebook 1 shows of its runs, and copies with."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from shown import job, markup

from replib.claims.common import laptop_copy, laptop_model
from replib.claims.convergence import page
from replib.lab import store
from replib.lab.run import TrainingJob
from replib.pages import frames
from replib.training import Training


def run_rows(seq_len, **changes):
    config = laptop_copy("linear", seq_len, 10, **changes)
    curve = {"step": [5, 10], "train_loss": [2, 1], "loss": [2, 1], "accuracy": [0, 1]}
    summary = {"final_loss": 1.0, "final_accuracy": 1.0}
    make = store.make_row
    return [make("convergence", "live", config, 0, "ok", summary, curve)]


def test_recorded_curves_of_the_same_length_are_drawn_behind():
    recorded = frames.training_curves([*run_rows(16), *run_rows(32)])
    behind = page.recorded_behind(frames.training_curves(run_rows(32)), recorded)
    assert behind["seq_len"].unique().to_list() == [32]
    assert page.recorded_behind(frames.training_curves([]), recorded) is None


def test_a_chart_of_live_runs_is_titled_with_their_settings():
    shown = page.title_of(frames.training_curves(run_rows(32)))
    assert shown == "N = 32, batch 32, 2 layers, 4 heads of 16"
    assert page.title_of(frames.training_curves([])) == "Nothing has run yet"


def test_the_title_names_the_settings_of_recorded_curves_where_they_are_others():
    shown = frames.training_curves(
        run_rows(32, model=replace(laptop_model("linear"), n_layers=1), batch_size=16)
    )
    recorded = frames.training_curves(run_rows(32))
    own = "N = 32, batch 16, 1 layer, 4 heads of 16"
    assert page.title_of(shown, shown) == page.title_of(shown) == own
    told = f"{own} (recorded: batch 32, 2 layers, 4 heads of 16)"
    assert page.title_of(shown, recorded) == told


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


def copies(copier, text, n_shuffles=0):
    return markup(page.copies(copier[0], copier[1], text, n_shuffles, "cpu"))


def test_a_trained_model_is_seen_to_copy_and_an_untrained_one_not(copier):
    shown = copies(copier, "badce")
    assert shown.count("<tr>") == 3
    rows = {re.search(">([a-z]+)</th>", row)[1]: row for row in shown.split("<tr>")[1:]}
    given, trained, raw = (rows[name] for name in ("given", "linear", "softmax"))
    assert "5 of 5 right" in given and "5 of 5 right" in trained and "wrong" not in trained
    assert "5 of 5 right" not in raw and "wrong" in raw  # a sign besides the colour
    assert letters_of(given) == list("badce")


def letters_of(row):
    return [span.split(">")[1][0] for span in row.split("<span")[1:]]


def test_capitals_and_spaces_around_are_forgiven(copier):
    assert copies(copier, " BADCE ") == copies(copier, "badce")


def test_shuffling_keeps_the_letters_and_changes_their_order(copier):
    def given(n_shuffles):
        row = copies(copier, "abcde", n_shuffles).split("<tr>")[1]
        return letters_of(row)

    assert given(0) == list("abcde")
    orders = {tuple(given(n)) for n in range(6)}
    assert len(orders) > 3 and all(sorted(order) == list("abcde") for order in orders)


def test_without_letters_a_sequence_of_a_trained_length_is_drawn(copier):
    drawn = [copies(copier, " ", n_shuffles).split("<tr>")[1] for n_shuffles in range(6)]
    assert len(set(drawn)) > 3
    for given in drawn:
        assert len(letters_of(given)) in page.trained_lengths(copier[1][0].config.task)


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
    assert "run them first" in page.copies(live, [job()], "abc", 0, "cpu").text
    assert "run them first" in page.copies(live, [], "abc", 0, "cpu").text
