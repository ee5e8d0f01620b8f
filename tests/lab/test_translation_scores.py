"""Scores of translators: what a perfect and a guessing one get, and rows that hold them."""

import math

import pytest
import torch

from replib.claims.common import laptop_model
from replib.lab import recorded
from replib.lab.run import TrainingJob, Where
from replib.lab.runs import translation
from replib.tasks.translation import NumberWords, ParallelText
from replib.training import Training, TrainingConfig

SOURCES = ["the dog runs home fast", "a cat sleeps on the sofa", "two men"]
REFERENCES = ["der Hund rennt schnell nach Hause", "eine Katze schläft auf dem Sofa", "zwei Männer"]


def config(**changes):
    options = {"task": NumberWords(), "model": laptop_model("softmax"), "batch_size": 16}
    sizes = {"n_steps": 4, "eval_every": 2, "eval_batches": 1, "optimizer": "adamw"}
    return TrainingConfig(**options | sizes | changes)


def test_bleu_is_of_the_whole_corpus():
    pytest.importorskip("sacrebleu")
    right = translation.corpus_scores(REFERENCES, REFERENCES)
    assert right["bleu"] == pytest.approx(100) and right["chrf"] == pytest.approx(100)
    assert "nrefs:1" in right["bleu_signature"] and "nc:6" in right["chrf_signature"]
    wrong = translation.corpus_scores([REFERENCES[0], "x", "y"], REFERENCES)
    assert 0 < wrong["bleu"] < 60  # the first alone is perfect


def test_sources_are_sorted_by_their_words():
    groups = translation.by_length(["a " * n for n in (1, 8, 9, 13, 46)])
    assert groups == {8: [0, 1], 10: [2], 15: [3], None: [4]}


def test_perplexity_is_that_of_the_targets():
    training = Training(config(), seed=0, device="cpu")
    found = translation.scores(training)
    total = n = 0
    with torch.no_grad():
        for batch in training.config.task.test_batches(64, "cpu"):
            logits = training.model.eval()(*batch.inputs).log_softmax(-1)
            of_targets = logits.gather(-1, batch.targets[..., None])[..., 0]
            total -= of_targets[batch.in_loss].double().sum().item()
            n += batch.in_loss.sum().item()
    assert found["perplexity"] == pytest.approx(math.exp(total / n), rel=1e-4)
    letters = sum(len(x) + 1 for x in training.config.task.test_texts()[1])
    assert found["perplexity_per_char"] == pytest.approx(math.exp(total / letters), rel=1e-4)
    assert sum(group["n"] for group in found["by_length"]) == found["n_test"] == 1000
    assert found["exact"] == 0


def test_a_translation_does_not_depend_on_what_it_is_decoded_with():
    training = Training(config(), seed=0, device="cpu")
    training.model.double()
    texts = training.config.task.test_texts()[0][:30]
    together = translation.translations(training, texts=texts)
    assert together == [translation.translations(training, texts=[text])[0] for text in texts]


def test_a_row_holds_the_scores_and_is_read_again():
    job = TrainingJob(config=config(), seed=0)
    (row,) = job.execute(Where("number_words", "smoke", "cpu"))
    checked, current = recorded.checked(row)
    assert current and checked["summary"]["exact"] == 0
    del row["summary"]["perplexity"]
    with pytest.raises(ValueError, match="has no perplexity"):
        recorded.checked(row)


def test_parallel_texts_are_trained_in_epochs_scored_and_resumed(tmp_path, monkeypatch):
    pytest.importorskip("sentencepiece")
    folder = tmp_path / "texts" / "tiny"
    folder.mkdir(parents=True)
    for split in ("train", "val", "test"):
        for side, lines in (("en", SOURCES), ("de", REFERENCES)):
            (folder / f"{split}.{side}").write_text("\n".join(8 * lines) + "\n")
    monkeypatch.setenv("REPLIB_TEXTS", str(folder.parent))
    monkeypatch.setenv("REPLIB_CACHE", str(tmp_path / "cache"))
    task = ParallelText(corpus="tiny", vocab_size=60, max_len=40)
    job = TrainingJob(config=config(task=task, batch_size=6), seed=0)
    (row,) = job.execute(Where("translation", "smoke", "cpu"))
    checked, current = recorded.checked(row)
    summary = checked["summary"]
    assert current and summary["n_test"] == len(8 * SOURCES)
    assert 0 <= summary["bleu"] <= 100 and "nrefs:1" in summary["bleu_signature"]
    assert summary["text_digest"] == task.text.digest
    whole, stopped = (Training(job.config, seed=0, device="cpu") for _ in range(2))
    list(whole.metrics())
    list(stopped.metrics(stop=lambda: stopped.step == 3))
    stopped.save(tmp_path / "run.pt")
    again = Training(job.config, seed=0, device="cpu")
    again.load(tmp_path / "run.pt")
    list(again.metrics())
    assert [m.loss for m in again.history] == [m.loss for m in whole.history]


@pytest.mark.slow
def test_number_words_are_learned():
    model = laptop_model("softmax")
    changes = {"n_steps": 800, "batch_size": 64, "lr": 3e-3, "schedule": "cosine"}
    training = Training(config(model=model, warmup_steps=50, clip="global", **changes), seed=0)
    last = list(training.metrics())[-1]
    assert last.accuracy > 0.97
    assert translation.scores(training)["exact"] > 0.9
