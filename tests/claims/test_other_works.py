"""Each defect of other public works does what its sentence says, beside the mended thing."""

import sys

import pytest

from replib.attention.softmax import softmax_attention
from replib.claims.autopsy.other_works import (
    N_PAIRS,
    bleu_scores,
    future_leak,
    order_seen,
    small_corpus,
)
from replib.claims.linformer.probes import slots_masked
from replib.published import published


def test_a_corpus_is_drawn_anew_from_its_seed_alone():
    assert small_corpus(20) == small_corpus(20) != small_corpus(20, seed=1)
    translations, references = small_corpus(50)
    assert len(translations) == len(references) == 50
    assert 5 < sum(a != b for a, b in zip(translations, references, strict=True)) <= 50


def test_the_wrong_call_scores_the_first_translation_alone_against_every_reference():
    sacrebleu = pytest.importorskip("sacrebleu")
    translations, references = small_corpus(60)
    right, wrong = bleu_scores(translations, references)
    assert right.n_words == sum(len(one.split()) for one in translations)
    assert wrong.n_words == len(translations[0].split())
    alone = sacrebleu.corpus_bleu(translations[:1], [[one] for one in references])
    assert wrong.bleu == pytest.approx(alone.score)
    assert bleu_scores(references, references)[0].bleu == pytest.approx(100)


def test_the_order_of_the_pairs_changes_the_wrong_score_alone():
    pytest.importorskip("sacrebleu")
    translations, references = small_corpus(60)
    scores = [
        bleu_scores(
            translations[first:] + translations[:first], references[first:] + references[:first]
        )
        for first in range(5)
    ]
    assert len({right for right, _ in scores}) == 1 < len({wrong for _, wrong in scores})


def test_the_demonstration_has_as_many_pairs_as_the_work_and_its_published_call():
    bug = published()["linformer_project"]["bleu_bug"]
    assert f"scores only the first hypothesis against {N_PAIRS} references" in bug
    assert "corpus_bleu(cands,[[s] for s in refs])" in bug


def test_bleu_without_sacrebleu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match="sacrebleu is missing: pip install sacrebleu=="):
        bleu_scores(["a"], ["a"])


def test_bleu_of_an_incomplete_corpus_is_refused():
    with pytest.raises(ValueError, match="2 translations, 1 references: give one"):
        bleu_scores(["a", "b"], ["a"])


def test_with_positions_of_the_batch_a_model_cannot_tell_the_order_of_what_it_has_read():
    assert order_seen("batch row") < 1e-12 < 1e-3 < order_seen("concatenated")


def test_a_linformer_with_masked_slots_sees_the_future_and_softmax_does_not():
    assert future_leak(slots_masked(12, 4), 12) > 0.1
    assert future_leak(softmax_attention, 12) == 0


def test_a_corpus_of_one_sentence_is_refused():
    with pytest.raises(ValueError, match="n_sentences 1: use 2"):
        small_corpus(1)
