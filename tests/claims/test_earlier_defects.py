"""Each defect of the earlier works does what its sentence says, beside the mended thing."""

import math
import sys
from dataclasses import replace

import pytest
import torch

from replib.attention.softmax import softmax_attention
from replib.claims.autopsy.other_works import (
    BATCH,
    HELD_OUT,
    N_PAIRS,
    N_SYMBOLS,
    BatchIndexed,
    NaiveCausalLinformer,
    bleu_scores,
    future_leak,
    half_encoder,
    position_losses,
    prediction_losses,
    ruined_but_first,
    small_corpus,
    timings,
)
from replib.models import CausalTransformer, TransformerConfig
from replib.published import published

SMALL = TransformerConfig(attention="softmax", n_layers=1, n_heads=2, d_model=16, dropout=0.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def language_model(*, broken, **sizes):
    model = CausalTransformer(replace(SMALL, **sizes), vocab_size=9, max_len=12).double().eval()
    if broken:
        model.embedding = BatchIndexed(model.embedding)
    return model


def test_a_corpus_is_drawn_anew_from_its_seed_alone():
    assert small_corpus(20) == small_corpus(20) != small_corpus(20, seed=1)
    translations, references = small_corpus(50)
    assert len(translations) == len(references) == 50
    assert 5 < sum(a != b for a, b in zip(translations, references, strict=True)) <= 50


def test_the_wrong_call_scores_the_first_translation_alone_against_every_reference():
    sacrebleu = pytest.importorskip("sacrebleu")
    translations, references = small_corpus(60)
    scores = bleu_scores(translations, references)
    assert scores.right.n_words == sum(len(one.split()) for one in translations)
    assert scores.wrong.n_words == len(translations[0].split())
    alone = sacrebleu.corpus_bleu(translations[:1], [[one] for one in references])
    assert scores.wrong.bleu == pytest.approx(alone.score)
    assert bleu_scores(references, references).right.bleu == pytest.approx(100)


def test_ruining_all_other_translations_leaves_the_wrong_score_and_ends_the_right_one():
    pytest.importorskip("sacrebleu")
    translations, references = small_corpus(60)
    ruined = ruined_but_first(translations)
    assert ruined[0] == translations[0] and not set(ruined[1:]) & set(translations)
    scores, of_ruined = (bleu_scores(some, references) for some in (translations, ruined))
    assert of_ruined.wrong == scores.wrong
    assert of_ruined.right.bleu < 1 < 40 < scores.right.bleu


def test_the_order_of_the_pairs_changes_the_wrong_score_alone():
    pytest.importorskip("sacrebleu")
    translations, references = small_corpus(60)
    wrong = set()
    for first in range(5):
        pairs = (x[first:] + x[:first] for x in (translations, references))
        scores = bleu_scores(*pairs)
        assert scores.right == bleu_scores(translations, references).right
        wrong.add(scores.wrong.bleu)
    assert len(wrong) > 1


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


def test_with_positions_of_the_batch_a_layer_cannot_tell_the_order_of_what_it_has_read():
    tokens = torch.randint(9, (3, 8), generator=generator())
    swapped = tokens.clone()
    swapped[:, [1, 4]] = tokens[:, [4, 1]]
    assert not torch.equal(tokens, swapped)
    for broken in (False, True):
        model = language_model(broken=broken)
        same = torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], rtol=0, atol=1e-12)
        assert same == broken


def test_positions_of_the_batch_depend_on_the_place_in_the_batch():
    model = language_model(broken=True)
    tokens = torch.randint(9, (1, 8), generator=generator()).expand(2, -1)
    logits = model(tokens)
    assert not torch.allclose(logits[0], logits[1])
    real = language_model(broken=False)(tokens)
    assert torch.allclose(real[0], real[1])


@pytest.mark.slow
def test_a_language_model_without_order_stays_above_one_with_it():
    losses = position_losses(n_steps=150)
    assert losses.mended < 0.3 and losses.broken > losses.mended + 0.5


def test_held_out_sequences_have_the_positions_of_a_training_batch(monkeypatch):
    sizes, forward = [], BatchIndexed.forward

    def seen(self, tokens):
        sizes.append(len(tokens))
        return forward(self, tokens)

    monkeypatch.setattr(BatchIndexed, "forward", seen)
    position_losses(n_steps=2)
    assert sizes == [BATCH] * (2 + HELD_OUT // BATCH)


def test_a_naively_causal_linformer_sees_the_future_and_softmax_does_not():
    linformer = NaiveCausalLinformer(12, 4, generator())
    assert future_leak(linformer, seq_len=12) > 0.1
    assert future_leak(softmax_attention, seq_len=12) == 0


def test_what_a_linformer_sees_of_the_future_is_what_it_mixes_into_its_rows():
    linformer = NaiveCausalLinformer(12, 4, generator())
    with torch.no_grad():  # each row is of one block of three positions
        blocks = torch.eye(4).repeat_interleave(3, dim=1)
        linformer.keys.copy_(blocks)
        linformer.values.copy_(blocks)
    q, k, v = (torch.randn(1, 1, 12, 16, generator=generator(i)) for i in range(3))
    later = [x.clone() for x in (q, k, v)]
    for x in later:
        x[:, :, 3:] += 1
    y, changed = (linformer(*inputs, causal=True) for inputs in ((q, k, v), later))
    assert torch.equal(y[:, :, :3], changed[:, :, :3])  # blocks do not reach beyond their end
    assert not torch.equal(y[:, :, 3:], changed[:, :, 3:])


@pytest.mark.slow
def test_a_leaking_linformer_predicts_what_nobody_can():
    losses = prediction_losses(n_steps=150)
    assert losses.floor == pytest.approx(math.log(N_SYMBOLS))
    assert losses.mended > losses.floor - 0.05  # up to the luck of a finite held-out batch
    assert losses.broken < losses.floor - 0.5


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="n_rows 0: use 1 or more"):
        NaiveCausalLinformer(4, 0, generator())
    with pytest.raises(ValueError, match="n_sentences 1: use 2"):
        small_corpus(1)


def test_a_timing_without_waiting_needs_a_gpu():
    with pytest.raises(ValueError, match="needs a CUDA device"):
        timings("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_clock_that_does_not_wait_times_the_asking():
    found = timings("cuda")
    assert found.unsynchronised < found.synchronised / 3


def test_half_an_encoder_encodes_what_its_used_layers_do_and_applies_twice_as_many():
    found = half_encoder(seq_len=8, n_repeats=1)
    assert found.difference == 0
    assert (found.n_applied, found.n_used) == (4, 2)
    assert found.broken_ms > 0 and found.half_ms > 0
