"""Language models: how a text is scored, what is carried, and what is learned."""

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from replib.attention import ATTENTION
from replib.claims.common import laptop_model
from replib.language_model import LanguageModelConfig
from replib.lstm import LSTMConfig
from replib.models import CausalTransformer
from replib.perplexity import bits_per, mean_of_batch_means, score
from replib.tasks.text import Text
from replib.training import TrainingConfig

RECURRENT = [name for name, mechanism in ATTENTION.items() if mechanism.recurrent]
V, N = 7, 50


class Uniform(nn.Module):
    """Every token is as likely."""

    def __init__(self, n_tokens):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n_tokens))

    def forward(self, tokens):
        return self.logits.expand(*tokens.shape, -1)


class Previous(Uniform):
    """The next token depends on the one before it alone."""

    def forward(self, tokens):
        return nn.functional.one_hot(tokens, len(self.logits)).float() * 2


def drawn(n=N, seed=0):
    return torch.randint(V, (n + 1,), generator=torch.Generator().manual_seed(seed))


def small(attention, max_len=N, **changes):
    torch.manual_seed(0)
    config = replace(laptop_model(attention), positions="none", d_model=16, **changes)
    return CausalTransformer(config, vocab_size=V, max_len=max_len).double().eval()


@pytest.mark.parametrize("how", [{"window": 8}, {"window": 8, "stride": 3}, {"window": None}])
def test_the_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary(how):
    found = score(Uniform(V), drawn(), **how)
    assert found.perplexity == pytest.approx(V, rel=1e-6)
    assert bits_per(found.nats, 2 * N) == pytest.approx(math.log2(V) / 2, rel=1e-6)
    assert mean_of_batch_means(Uniform(V), drawn(), seq_len=3) == pytest.approx(V, rel=1e-6)


def test_every_token_is_scored_once_from_the_window_that_has_it_first():
    model, ids = small("softmax"), drawn()
    found = score(model, ids, window=8, stride=3, batch_size=2)
    for i in range(N):
        first = 0 if i < 8 else 3 * math.ceil((i - 7) / 3)
        logits = model(ids[None, first : i + 1])[0, -1]
        expected = -logits.log_softmax(-1)[ids[i + 1]].item()
        assert found.nats[i].item() == pytest.approx(expected, abs=1e-9)
        assert (found.position[i], found.right[i]) == (i - first, logits.argmax() == ids[i + 1])


def test_blocks_and_a_sliding_window_agree_where_they_must():
    model, ids = small("linear"), drawn(48)
    blocks = score(model, ids, window=8)
    assert torch.allclose(score(model, ids, window=8, stride=8).nats, blocks.nats)
    sliding = score(model, ids, window=8, stride=2)
    assert torch.allclose(sliding.nats[:8], blocks.nats[:8])  # the first window
    assert not torch.allclose(sliding.nats, blocks.nats)
    one = [score(Previous(V), ids, window=w, stride=s).nats for w, s in ((8, 8), (8, 1), (48, 48))]
    assert all(torch.allclose(x, one[0]) for x in one)  # of no more context is there any use


def test_the_mean_of_batch_means_counts_a_short_batch_as_much_as_a_whole_one():
    ids = drawn(10 * 7)
    nats = torch.stack(
        [score(Previous(V), ids[7 * i : 7 * i + 8], window=5).nats for i in range(10)]
    )
    expected = math.exp((nats[:, :5].mean() + nats[:, 5:].mean()).item() / 2)
    found = mean_of_batch_means(Previous(V), ids, seq_len=5)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found != pytest.approx(score(Previous(V), ids, window=5).perplexity, rel=1e-3)


def test_means_by_position_and_by_segment_are_those_of_the_tokens_there():
    found = score(small("linear"), drawn(), window=16)
    groups = {g["position"]: g["nats"] for g in found.by_position()}
    assert list(groups) == [1, 2, 4, 8, 16]
    some = found.nats[(found.position >= 4) & (found.position < 8)]
    assert groups[8] == pytest.approx(some.mean().item())
    segments = found.by_segment(4)
    assert len(segments) == 4 and segments[1] == pytest.approx(some.mean().item())


@pytest.mark.parametrize("name", RECURRENT)
def test_a_carried_state_is_one_long_sequence(name):
    model, ids = small(name), drawn()
    whole = score(model, ids, window=None).nats
    carried = score(model, ids, window=None, segment=9).nats
    assert torch.allclose(carried, whole, atol=1e-9)
    two = score(model, ids, window=18, segment=9).nats
    assert torch.allclose(two[:18], whole[:18], atol=1e-9)
    assert not torch.allclose(two, whole, atol=1e-6)


@pytest.mark.parametrize("positions", ["added", "concatenated", "learned", "batch row"])
def test_positions_go_on_from_segment_to_segment(positions):
    torch.manual_seed(0)
    config = replace(laptop_model("linear"), positions=positions, d_model=16)
    model = CausalTransformer(config, vocab_size=V, max_len=N).double()
    whole, carried = (score(model, drawn(), window=N, segment=s).nats for s in (None, 9))
    assert torch.allclose(whole, carried, atol=1e-9)


def test_an_lstm_carries_its_state_too():
    torch.manual_seed(0)
    config = LSTMConfig(d_model=8, tied=True)
    model = config.build(vocab_size=V, max_len=1).double()
    whole, carried = (score(model, drawn(), window=None, segment=s).nats for s in (None, 9))
    assert torch.allclose(whole, carried, atol=1e-9)


def test_a_memory_of_keys_and_values_is_a_window_of_attention():
    """One layer: position i of segment s sees from the memory's first position on."""
    n_seen, segment = 5, 4
    model, ids = small("softmax", n_layers=1, kernel="textbook"), drawn(20)
    found = score(model, ids, window=None, segment=segment, memory_len=n_seen).nats
    for i in range(20):
        first = max(0, i // segment * segment - n_seen)
        logits = model(ids[None, first : i + 1])[0, -1]
        assert found[i].item() == pytest.approx(
            -logits.log_softmax(-1)[ids[i + 1]].item(), abs=1e-9
        )
    deep = small("softmax")
    whole = score(deep, ids, window=None).nats
    enough = score(deep, ids, window=None, segment=segment, memory_len=20).nats
    assert torch.allclose(enough, whole, atol=1e-9)


def config(attention="linear", *, model=None, **changes):
    model = model or replace(laptop_model(attention), positions="none", d_model=16, n_layers=1)
    options = {"task": Text(seq_len=8), "batch_size": 3, "n_steps": 6, "eval_every": 2}
    return LanguageModelConfig(
        model=model, **options | {"eval_batches": 2, "n_carried": 3} | changes
    )


@pytest.mark.parametrize(
    "one",
    [
        config("linear"),
        config("delta", n_carried=0),
        config("softmax", n_carried=0, memory_len=5),
        config(model=LSTMConfig(d_model=8), n_carried=0),
        config(n_carried=1),
    ],
    ids=["linear", "delta", "memory", "lstm", "nothing carried"],
)
def test_a_run_that_was_stopped_is_the_same_as_one_that_was_not(one, tmp_path):
    whole = one.training(seed=1, device="cpu")
    losses = [m.loss for m in whole.metrics()]
    first = one.training(seed=1, device="cpu")
    next(first.metrics())
    first.save(tmp_path / "checkpoint")
    again = one.training(seed=1, device="cpu")
    again.load(tmp_path / "checkpoint")
    [*again.metrics()]
    assert [m.loss for m in again.history] == losses
    for x, y in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(x, y)


def test_gradients_stay_within_a_segment_and_its_state_begins_where_the_last_ended():
    run = config(n_carried=2).training(device="cpu")
    run.train_step()
    state = run._carried
    assert state.position == 8 and not any(x.requires_grad for x in state.blocks[0])
    seen = []
    prefill = run.model.prefill
    run.model.prefill = lambda state, tokens: (seen.append(state.position), prefill(state, tokens))[
        1
    ]
    for _ in range(3):
        run.train_step()
    assert seen == [8, 0, 8]


def test_the_model_of_an_ended_run_is_the_one_of_the_lowest_validation_loss(monkeypatch):
    run = config().training(device="cpu")
    losses, weights = iter([3.0, 2.0, 2.5]), []

    def evaluated():
        weights.append(run.model.head.weight.detach().clone())
        return next(losses), 0.5

    monkeypatch.setattr(run, "evaluate", evaluated)
    [*run.metrics()]
    assert torch.equal(run.model.head.weight, weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_a_run_without_carrying_trains_as_any_other():
    one = config(n_carried=1)
    same = TrainingConfig(**{f.name: getattr(one, f.name) for f in fields(TrainingConfig)})
    runs = [some.training(seed=2, device="cpu") for some in (one, same)]
    assert [runs[0].train_step().item() for _ in range(3)] == [
        runs[1].train_step().item() for _ in range(3)
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_carried": -1}, "n_carried -1: use 0"),
        ({"n_carried": 0, "attention": "softmax"}, "grows without end: set n_carried, or memory"),
        ({"n_carried": 0, "attention": "lsh"}, "grows without end: set n_carried$"),
        ({"memory_len": 4}, "memory_len is of softmax attention whose state is carried"),
        ({"memory_len": 4, "attention": "softmax", "n_carried": 1}, "memory_len is of softmax"),
        ({"stride": 4}, "a carried state has no sliding window"),
        ({"stride": 0, "n_carried": 1}, "stride 0: use at least 1"),
        ({"n_carried": 0, "model": laptop_model("linear")}, "positions end"),
    ],
)
def test_what_cannot_be_carried_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def markov(n, generator):
    """A text of a and b in which a letter is that of two before it in 9 of 10 cases."""
    flips = torch.rand(n, generator=generator) < 0.1
    letters = [0, 1]
    for flip in flips.tolist():
        letters.append(letters[-2] ^ flip)
    return "".join("ab"[i] for i in letters)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["softmax", "linear", "delta", "lstm"])
def test_a_corpus_of_known_entropy_is_learned_to_it(attention, tmp_path, monkeypatch):
    monkeypatch.setenv("REPLIB_TEXTS", str(tmp_path))
    (tmp_path / "markov").mkdir()
    text = markov(60_000, torch.Generator().manual_seed(0))
    (tmp_path / "markov" / "markov.txt").write_text(text)
    model = LSTMConfig(d_model=32, n_layers=1, dropout=0.0)
    if attention != "lstm":
        model = replace(laptop_model(attention), d_model=32)
    one = LanguageModelConfig(
        task=Text(corpus="markov", seq_len=32),
        model=model,
        batch_size=16,
        n_steps=500,
        optimizer="adamw",
        lr=1e-2,
        schedule="cosine",
        warmup_steps=20,
        clip="global",
        eval_every=100,
    )
    run = one.training(seed=0, device="cpu")
    [*run.metrics()]
    test = one.task.text.test
    entropy = -(0.1 * math.log2(0.1) + 0.9 * math.log2(0.9))
    found = run.score(test.ids)
    late = found.nats[found.position > 2]
    flipped = sum(a != b for a, b in zip(text[-3000:], text[-2998:], strict=False)) / 2998
    own = -(flipped * math.log2(0.1) + (1 - flipped) * math.log2(0.9))  # of this part of the text
    assert own == pytest.approx(entropy, abs=0.05)
    assert bits_per(late, len(late)) == pytest.approx(own, abs=0.03)
