"""What is read off the 2022 article's figures, in nats a token, and the levels of its task."""

import copy
import itertools
import math
from collections import Counter

import pytest

from replib.claims.autopsy.article_losses import (
    article_ends,
    article_jumps,
    article_plateaus,
    bag_entropy,
    unigram_entropy,
)
from replib.published import published
from replib.tasks import SequenceCopy

ARTICLE = published()["dm2022"]


def test_the_articles_plateaus_betray_its_batches_and_agree_in_nats():
    for (attention, _), one in article_plateaus(ARTICLE).items():
        assert one.batch == {"softmax": 8, "linear": 32}[attention]
        entropy = unigram_entropy(SequenceCopy(seq_len=one.seq_len))
        assert one.nats == pytest.approx(entropy, rel=0.02)
    nats, ends = ARTICLE["loss_scale"]["nats_per_token"], article_ends(ARTICLE)
    assert len(ends) == 8
    for (attention, n), one in ends.items():
        assert one.nats == pytest.approx(nats[attention][str(n)], abs=0.006)


def test_a_run_that_jumps_ends_after_its_jump_and_that_is_said():
    (jump,) = article_jumps(ARTICLE)
    assert (jump.before.printed, jump.after.printed, jump.step) == (16.7, 17.8, 2580)
    assert jump.text == "softmax at N = 32 stands at 2.09 until it jumps at step 2580, to 2.22"
    assert article_ends(ARTICLE)["softmax", 32].text == "2.22"


@pytest.mark.parametrize("n", [8, 64])
def test_the_entropy_of_single_tokens_is_the_published_plateau(n):
    summed = 8 * unigram_entropy(SequenceCopy(seq_len=n))
    assert summed == pytest.approx(ARTICLE["loss_scale"]["H_check"][f"N={n}"]["B8"], abs=0.006)


def test_plateaus_that_contradict_each_other_are_refused():
    article = copy.deepcopy(ARTICLE)
    article["loss_scale"]["H_check"]["N=64"]["observed"][0] *= 2
    with pytest.raises(ValueError, match=r"softmax plateaus say batches \[8, 16\]"):
        article_plateaus(article)


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


def test_a_reading_of_another_form_is_refused():
    article = copy.deepcopy(ARTICLE)
    article["plots_final_loss"]["linear"]["16"] = "57.7 or so"
    with pytest.raises(ValueError, match="reading '57.7 or so'"):
        article_ends(article)
