"""What is read off the 2022 article's figures, in nats a token, and the levels of its task."""

import copy
import itertools
import math
from collections import Counter

import pytest

from replib.claims import convergence
from replib.claims.autopsy.article_losses import (
    FINAL,
    PLATEAU,
    article_batches,
    article_curves,
    article_jumps,
    article_losses,
    bag_entropy,
    unigram_entropy,
)
from replib.published import published
from replib.tasks import SequenceCopy

ARTICLE = published()["dm2022"]


def test_the_articles_plateaus_betray_its_batches_and_agree_in_nats():
    assert article_batches(ARTICLE) == {"softmax": 8, "linear": 32}
    read = article_losses(ARTICLE)
    for one in read:
        if one.what == PLATEAU:
            entropy = unigram_entropy(SequenceCopy(seq_len=one.seq_len))
            assert one.nats == pytest.approx(entropy, rel=0.02)
    nats = ARTICLE["loss_scale"]["nats_per_token"]
    finals = [one for one in read if one.what == FINAL]
    assert len(finals) == 8
    for one in finals:
        assert one.nats == pytest.approx(nats[one.attention][str(one.seq_len)], abs=0.006)


def test_a_run_that_jumps_ends_after_its_jump_and_that_is_said():
    (jump,) = article_jumps(ARTICLE)
    assert (jump.before.printed, jump.after.printed, jump.step) == (16.7, 17.8, 2580)
    assert jump.text == "softmax at N = 32 stands at 2.09 until it jumps at step 2580, to 2.22"
    (final,) = (r for r in article_losses(ARTICLE) if (r.attention, r.seq_len) == ("softmax", 32))
    assert (final.what, final.text) == (FINAL, "2.22")
    assert f"2.22 at N = 32, 2.24 at N = 64. Among these {jump.text}." in convergence.article()


@pytest.mark.parametrize("n", [8, 64])
def test_the_entropy_of_single_tokens_is_the_published_plateau(n):
    summed = 8 * unigram_entropy(SequenceCopy(seq_len=n))
    assert summed == pytest.approx(ARTICLE["loss_scale"]["H_check"][f"N={n}"]["B8"], abs=0.006)


def test_plateaus_that_contradict_each_other_are_refused():
    article = copy.deepcopy(ARTICLE)
    article["loss_scale"]["H_check"]["N=64"]["observed"][0] *= 2
    with pytest.raises(ValueError, match=r"softmax plateaus say batches \[8, 16\]"):
        article_batches(article)


@pytest.mark.parametrize(("seq_len", "n_symbols"), [(3, 10), (5, 3), (8, 3)])
def test_the_level_without_order_is_the_mean_over_every_sequence(seq_len, n_symbols):
    task = SequenceCopy(seq_len=seq_len, n_symbols=n_symbols)
    n = seq_len - 2
    losses = []
    for source in itertools.product(range(n_symbols), repeat=n):
        often = Counter(source)
        losses.append(-sum(math.log(often[one] / n) for one in source) / (n + 1))
    assert bag_entropy(task) == pytest.approx(sum(losses) / len(losses))
    assert bag_entropy(task) < unigram_entropy(task)


def curve(attention, n):
    return [
        one for one in article_curves(ARTICLE) if (one.attention, one.seq_len) == (attention, n)
    ]


def test_every_known_event_of_the_articles_curves_is_on_them_in_nats():
    start, between, read = curve("linear", 8)
    assert start.points == ((0, pytest.approx(76.7 / 32)),)
    assert not between.read and between.points == (*start.points, (1650, 0.0))
    assert dict(read.points)[2840] == pytest.approx(11 / 32)
    assert [loss for step, loss in read.points if step != 2840] == [0.0] * 4
    (read,) = curve("linear", 32)
    assert read.points == ((900, 0.0), (3000, 0.0))
    (read,) = curve("softmax", 32)
    assert dict(read.points) == {2560: 16.7 / 8, 2580: 17.8 / 8, 3000: 17.8 / 8}
    assert curve("softmax", 64)[0].points == ((0, pytest.approx(18.85 / 8)),)


def test_every_run_of_the_article_has_a_curve_that_ends_at_its_last_step():
    ends = {(p.attention, p.seq_len) for p in article_curves(ARTICLE) if p.points[-1][0] == 3000}
    assert ends == {(a, n) for a in ("softmax", "linear") for n in ARTICLE["N"]}


def test_a_reading_of_another_form_is_refused():
    article = copy.deepcopy(ARTICLE)
    article["plots_final_loss"]["linear"]["16"] = "57.7 or so"
    with pytest.raises(ValueError, match="reading '57.7 or so'"):
        article_curves(article)
